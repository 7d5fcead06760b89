"""
Singular values of a convolution
================================

A circular convolution is one small matrix per frequency; its singular values are those of these blocks, all together.
"""

import torch
from matplotlib import pyplot as plt

import linconv as lc

generator = torch.Generator().manual_seed(0)
kernel = torch.randn(16, 16, 3, 3, dtype=torch.float64, generator=generator) / 12
sigma = lc.conv_singular_values(kernel, (32, 32))
print(f"{sigma.numel()} singular values, from {sigma.min():.3g} to {sigma.max():.3g}")

# %%
# The largest at each frequency, zero frequency in the centre.
figure, axes = plt.subplots(figsize=(4.2, 3.4))
image = axes.imshow(torch.fft.fftshift(sigma[..., 0]), extent=(-16.5, 15.5, -16.5, 15.5), cmap="cividis", origin="lower")
axes.set(xlabel="cycles per image, horizontal", ylabel="cycles per image, vertical", title="largest singular value")
figure.colorbar(image)
figure.tight_layout()

# %%
# Intervals that are proved to contain the exact values for these floating-point weights.
bounds = lc.conv_singular_values(kernel, (8, 8), enclose=True)
print(f"widest interval: {float((bounds.upper - bounds.lower).max()):.1e}")
