"""
What weight decay does to the spectrum of a predictor
=====================================================

The optimum of a weight-decayed linear CNN shrinks every frequency by what its data say: all of them at depth 1, and beyond that
components are dropped.
"""

import torch
from matplotlib import pyplot as plt

import linconv as lc
from linconv import images

generator = torch.Generator().manual_seed(0)
photos = images.load("photos", samples=400, grid=(8, 8), greyscale=True, generator=generator)
x, y = images.center(photos.images), photos.one_hot()
y = y - y.mean(0)

# %%
# One optimum a depth, each at its own weight decay, with the gap that is proved.
figure, axes = plt.subplots(figsize=(5.5, 3.4))
for depth, decay, marker in ((1, 1e-2, "o"), (2, 2e-3, "s")):
    solution = lc.fit(x, y, depth=depth, weight_decay=decay)
    print(f"depth {depth}: objective {solution.objective:.6f}, proved relative gap {solution.gap:.0e}, by {solution.method}")
    radii, curve = lc.radial_average(lc.frequency_sensitivity(lc.LinearCNN.from_weights([solution.predictor], (8, 8))))
    axes.semilogy(radii, curve, marker=marker, label=f"depth {depth}")
axes.set(xlabel="spatial frequency (cycles per image)", ylabel="sensitivity of the optimum")
axes.legend()
figure.tight_layout()
