"""How branch and bound splits a cell: a singular value into 0 and not 0, an interval, or the box of a block."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from linconv.solvers.cells import Box, Cell, envelope, tangents
from linconv.solvers.relaxation import Region, singular_values


def split(region: Region) -> list[Cell]:
    """Two cells that together hold all of a region's cell, less where one of them is empty."""
    cell, penalty, mult = region.cell, region.penalty, region.orbits.mult[:, None]
    sigma = np.minimum(singular_values(region.bound.blocks)[:, : cell.low.shape[1]], cell.high)
    hull = envelope(penalty, cell)
    excess = mult * (penalty.value(np.maximum(sigma, np.where(cell.zero, 0.0, cell.low))) - hull.value(sigma))
    turned = (mult * np.where(cell.zero, 0.0, penalty.value(cell.low) - penalty.value(np.minimum(sigma, cell.low)))).sum(1)
    if cell.box is not None:
        turned = np.where(cell.box.apart(), np.maximum(turned, _sag(region, cell.box)), turned)
    place = np.unravel_index(int(np.argmax(excess)), excess.shape)
    if max(float(excess.max()), float(turned.max())) <= 1e-12 * penalty.weight * float(np.max(cell.high)) ** penalty.p:
        return _halves(region, int(np.argmax((np.abs(_box(region).half) ** 2).sum((1, 2)))))
    if excess[place] < turned.max():
        return _halves(region, int(np.argmax(turned)))
    o, i = int(place[0]), int(place[1])
    below, above = [part.copy() for part in (cell.low, cell.high, cell.zero)], [part.copy() for part in (cell.low, cell.high, cell.zero)]
    if cell.zero[o, i]:
        below[1][o, i:] = 0.0
    else:
        margin = 0.2 * (cell.high[o, i] - cell.low[o, i])
        at = min(max(float(sigma[o, i]), cell.low[o, i] + margin), cell.high[o, i] - margin)
        below[1][o, i:] = np.minimum(cell.high[o, i:], at)
        above[0][o, : i + 1] = np.maximum(cell.low[o, : i + 1], at)
    above[2][o, : i + 1] = False
    parts = (replace(cell, low=low, high=high, zero=zero).ordered() for low, high, zero in (below, above))
    return [part for part in parts if part is not None]


def _box(region: Region) -> Box:
    """The boxes, which are all of the cell where none have been cut yet; blocks at u = −u are real."""
    cell = region.cell
    unit = np.where(region.orbits.mult == 2, 1 + 1j, 1.0)[:, None, None] * np.ones(region.orbits.shape[1:])
    return cell.box or Box(-cell.high[:, :1, None] * unit, cell.high[:, :1, None] * unit)


def _sag(region: Region, box: Box) -> Float[np.ndarray, " O"]:
    """How far the tangents are below the penalty at B̄."""
    pull, constant = tangents(region.penalty, region.cell, box)
    blocks = region.bound.blocks
    true = (region.penalty.weight * singular_values(blocks) ** region.penalty.p).sum(1)
    return region.orbits.mult * (true - constant - (pull * blocks.conj()).real.sum((1, 2)))


def _halves(region: Region, o: int) -> list[Cell]:
    """The cell with the box of one orbit cut across its longest edge; ‖B‖ in the box narrows the interval of a lone singular value."""
    box = _box(region)
    edges = 2 * np.stack([box.half[o].real, box.half[o].imag])
    part, k, c = np.unravel_index(int(np.argmax(edges)), edges.shape)
    unit = (1.0, 1j)[int(part)]
    cut = edges[part, k, c] / 2
    found = []
    for left in (True, False):
        part_box = Box(box.near.copy(), box.far.copy())
        if left:
            part_box.far[o, k, c] -= cut * unit
        else:
            part_box.near[o, k, c] += cut * unit
        low, high = region.cell.low.copy(), region.cell.high.copy()
        nearest, near, far = part_box.clip(np.zeros_like(box.near))[o], part_box.near[o], part_box.far[o]
        farthest = np.maximum(np.abs(near.real), np.abs(far.real)) + 1j * np.maximum(np.abs(near.imag), np.abs(far.imag))
        high[o] = np.minimum(high[o], np.linalg.norm(farthest) * (1 + 1e-12))
        if low.shape[1] == 1:
            low[o] = np.maximum(low[o], np.linalg.norm(nearest) * (1 - 1e-12))
        cell = replace(region.cell, low=low, high=high, box=part_box).ordered()
        if cell is not None and (not bool(np.any(nearest)) or cell.high[o, 0] > 0):
            found.append(cell)
    return found
