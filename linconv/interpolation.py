"""Images between their sites: bilinear interpolation and the Gaussian window at p − τ(p), with a border or around a period.

The engine of `linconv.deformation.warp`, which checks its arguments.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["linear", "gaussian", "nearest"]
Boundary = Literal["clamp", "periodic"]

WIDTH = 0.4715  # of the Gaussian window in pixels, as published
REACH = 4  # taps of the window on each side; the first one left out weighs exp(−4²/2·WIDTH²) = 2e-16 of the largest


def linear(images: Float[Tensor, "N C H W"], tau: Float[Tensor, "N 2 H W"], boundary: Boundary) -> Float[Tensor, "N C H W"]:
    """By torch's `grid_sample`, whose coordinates on [−1, 1] are exact at sites where the sides are powers of two: so they are made.

    What is added repeats the border; around a period there comes first one more row and column of it.
    """
    around = int(boundary == "periodic")
    x = F.pad(images, (0, around, 0, around), mode="circular") if around else images
    sides = [1 << (n - 1).bit_length() for n in x.shape[2:]]
    more = (0, sides[1] - x.shape[3], 0, sides[0] - x.shape[2])
    x = F.pad(x, more, mode="replicate") if any(more) else x
    scale = torch.tensor([2 / n for n in sides], dtype=x.dtype, device=x.device)[:, None, None]
    sites = _sites(images)
    if around:
        sizes = torch.tensor(images.shape[2:], dtype=x.dtype, device=x.device)[:, None, None]
        sites, tau = (sites - tau).remainder(sizes), torch.zeros_like(tau)
    coordinates = torch.addcmul(sites * scale + (scale / 2 - 1), tau, scale, value=-1).movedim(1, -1)
    # grid_sample takes the last dimension first: that of the transposed images are the rows.
    return F.grid_sample(x.mT, coordinates, mode="bilinear", padding_mode="zeros" if around else "border", align_corners=False)


def gaussian(images: Float[Tensor, "N C H W"], tau: Float[Tensor, "N 2 H W"], boundary: Boundary) -> Float[Tensor, "N C H W"]:
    """The sum over pairs of taps, one on each axis: the window is a product."""
    flat = images.flatten(2)
    rows, columns = (_sites(images) - tau).flatten(2).unbind(1)
    row_taps, row_weights = _window(rows, images.shape[2], boundary)
    column_taps, column_weights = _window(columns, images.shape[3], boundary)
    total = torch.zeros_like(flat)
    for i, a in zip(row_taps, row_weights, strict=True):
        line = torch.zeros_like(flat)
        for j, b in zip(column_taps, column_weights, strict=True):
            line = line + b[:, None] * flat.gather(2, (i * images.shape[3] + j)[:, None].expand_as(flat))
        total = total + a[:, None] * line
    return total.reshape(images.shape)


def _sites(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "2 H W"]:
    """Row and column of every site."""
    axes = [torch.arange(n, dtype=images.dtype, device=images.device) for n in images.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _window(p: Float[Tensor, "N sites"], n: int, boundary: Boundary) -> tuple[Tensor, Float[Tensor, "taps N sites"]]:
    """Sites `(taps, N, sites)` around positions on one axis, and their weights, of sum 1."""
    p = p.clamp(0, n - 1) if boundary == "clamp" else p.remainder(n)
    offsets = torch.arange(1 - REACH, REACH + 1, dtype=p.dtype, device=p.device)[:, None, None]
    taps = p.detach().floor() + offsets
    weights = torch.exp(-(p - taps).square() / (2 * WIDTH**2))
    if boundary == "periodic":
        return taps.remainder(n).long(), weights / weights.sum(0)
    weights = weights * ((taps >= 0) & (taps < n))
    return taps.clamp(0, n - 1).long(), weights / weights.sum(0)
