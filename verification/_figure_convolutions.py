"""The figure of the claim about frequency blocks."""

import math
from typing import Any

import numpy as np
import torch

from linconv import witnesses
from verification._convolutions import Network, dense_layers, in_frequency


def figure(sample: Network) -> Any:
    """A layer's matrix between sites and between frequencies, and every block of the network against its dense matrix."""
    from matplotlib.figure import Figure as Drawing

    black, orange, blue = "#000000", "#E69F00", "#0072B2"  # Okabe and Ito: told apart with every kind of colour vision
    grid, layer = sample.net.grid, sample.layers[0]
    sites, (c_out, c_in) = math.prod(grid), layer.shape[-2:]
    dense = dense_layers([sample.weights[0]], grid)
    shown = Drawing(figsize=(12, 3.7), layout="constrained")
    axes = shown.subplots(1, 3, width_ratios=(1, 1, 1.25))
    for ax, matrix, where in ((axes[0], dense, "site"), (axes[1], in_frequency(dense, grid), "frequency")):
        grouped = np.abs(matrix).reshape(c_out, sites, c_in, sites).transpose(1, 0, 3, 2).reshape(matrix.shape)
        image = ax.imshow(grouped, cmap="Blues", interpolation="nearest", aspect="auto", extent=(-0.5, sites - 0.5, sites - 0.5, -0.5))
        ax.set(xlabel=f"{where} in, {c_in} channels each", ylabel=f"{where} out, {c_out} channels each")
        ax.locator_params(integer=True)
        shown.colorbar(image, ax=ax)
    layer_name = "first layer" if sample.net.depth > 1 else "readout as a convolution"
    axes[0].set_title(f"{layer_name} in space, |W|", fontsize=10)
    axes[1].set_title("the same in frequency, |F W F⁻¹|", fontsize=10)

    blocks = sample.blocks.flatten(0, -3)
    rows = sample.matrix.reshape(len(sample.matrix), -1, sites) @ witnesses.dense_fourier(grid).conj().T
    truth = np.moveaxis(rows, -1, 0)
    values, expected = torch.linalg.svdvals(blocks), np.linalg.svd(truth, compute_uv=False)
    errors = np.abs(blocks.numpy() - truth).max((1, 2))
    u = np.arange(sites)
    for i in range(values.shape[1]):
        axes[2].plot(
            u, expected[:, i], "o", mfc="none", ms=7, color=blue, label="singular values from the dense matrix" if i == 0 else None
        )
        axes[2].plot(u, values[:, i], "x", ms=4, color=orange, label="singular values of V_u" if i == 0 else None)
    floor = torch.finfo(blocks.real.dtype).eps * float(values.max())
    axes[2].plot(u, np.maximum(errors, 1e-3 * floor), ".", color=black, label="largest error of an entry of V_u")
    axes[2].axhline(floor, color=black, lw=0.8, ls=":")
    axes[2].text(sites - 1, 1.3 * floor, "rounding unit", ha="right", va="bottom", fontsize=8)
    axes[2].set(yscale="log", xlabel="frequency u")
    axes[2].locator_params(axis="x", integer=True)
    axes[2].set_title(f"network of depth {sample.net.depth}: each V_u, and its error", fontsize=10)
    axes[2].legend(fontsize=8, loc="center right")
    return shown
