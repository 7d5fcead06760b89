"""Two pixels on a periodic plane for `two_pixels`: exact D of layers with constant filters, by enumeration, and its depth law.

Coordinates move independently, so that the transform of a move is a product; with N = hw sites and 3×3 filters of ones all else is as on a
ring.  To leading order D_k = 3m/(4k), m the mean square of a move of one coordinate: twice that of a ring.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from linconv.claims import Check, agree, at_most, control
from linconv.pooling import Moves
from linconv.pooling_stability import two_pixel_deformation_stability

GRID, DEPTH = (6, 7), 3  # 861 pairs and up to 81 moves
WIDE = 300  # sites a side at which the leading order is looked at


def boxes(depth: int) -> nn.Sequential:
    """One channel, 3×3 filters of ones, circular, ReLU after each."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.utils.skip_init(nn.Conv2d, 1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
        layers += [layer.requires_grad_(False), nn.ReLU()]
        layer.weight.fill_(1)
    return nn.Sequential(*layers)


def law(layers: int, grid: tuple[int, int], steps: tuple[int, ...], *, collisions: bool = True, together: bool = False) -> float:
    """D_k in frequency space; the flags forget that pixels meet, and move both coordinates of a pixel alike, as wrong variants."""
    p, q = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in grid), indexing="ij")
    ways = [(p, 0 * q), (0 * p, q)] if not together else [(p, q)]
    away, others = 1 - np.prod([np.mean([np.cos(step * (a + b)) for step in steps], axis=0) for a, b in ways], axis=0), math.prod(grid) - 1
    moved = 4 * away - (2 * away**2 / others if collisions else 0)
    gains = ((1 + 2 * np.cos(p)) * (1 + 2 * np.cos(q)) / 9) ** (2 * layers)
    return float((gains * moved).sum() / (2 * (2 - 2 / others) * gains.flatten()[1:].sum()))


def plane_checks(moves: Moves, steps: tuple[int, ...]) -> Iterator[Check]:
    exact = two_pixel_deformation_stability(boxes(DEPTH), moves=moves, sites=GRID, periodic=True)[: DEPTH + 1]
    found, name = [float(d) for d in exact], f"'{moves}', a plane of {GRID[0]}×{GRID[1]} sites: D by enumeration and depth law"
    yield agree(name, found, [law(k, GRID, steps) for k in range(DEPTH + 1)], size=math.prod(GRID))
    yield control(f"{name}, collisions ignored", agree("", found, [law(k, GRID, steps, collisions=False) for k in range(DEPTH + 1)]))
    yield control(f"{name}, coordinates moved alike", agree("", found, [law(k, GRID, steps, together=True) for k in range(DEPTH + 1)]))
    leading, depths = 3 * float(np.mean(np.square(steps))) / 4, (8, 16, 32)
    values = [law(k, (WIDE, WIDE), steps) * k / leading for k in depths]
    orders = [1 / k + 8 * math.pi * k / (3 * WIDE**2) for k in depths]
    reason = f"next orders, 1/k and 8πk/3N, at k = 8, 16, 32 on {WIDE}×{WIDE} sites"
    yield at_most(f"'{moves}', a plane: {leading:g}/k, relative errors", [abs(v - 1) for v in values], orders, tolerance=0, reason=reason)
    ring = at_most("", [abs(2 * v - 1) for v in values], orders, tolerance=0, reason=reason)
    yield control(f"'{moves}', a plane: {leading / 2:g}/k, the law of a ring", ring)
