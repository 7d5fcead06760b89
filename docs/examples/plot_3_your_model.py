"""
The frequencies that a model of yours is sensitive to
=====================================================

Any torch module: one backward pass an output and one Fourier transform.
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import linconv as lc
from linconv import images

torch.manual_seed(0)
layers = [nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
photos = images.load("photos", samples=64, grid=(32, 32), generator=torch.Generator().manual_seed(0)).images.float()

# %%
# Beside the spectrum of the images, each divided by its sum.
sensitivity, spectrum = lc.frequency_sensitivity(model, photos), lc.power_spectrum(photos).sqrt()
figure, axes = plt.subplots(figsize=(5.5, 3.4))
for values, name, style in ((sensitivity, "sensitivity of the untrained model", "-"), (spectrum, "spectrum of the images", "--")):
    radii, curve = lc.radial_average(values)
    axes.loglog(radii[1:], curve[1:] / curve[1:].sum(), style, label=name)
axes.set(xlabel="spatial frequency (cycles per image)", ylabel="share")
axes.legend()
figure.tight_layout()
