r"""Lower bounds at depth ≥ 3: what is left of the data term after a separable quadratic is linearised, the rest solved exactly.

For any s ≥ 0 with Σ_u m_u s_u‖B_u‖² ≤ ⟨B, HB⟩ (`orbits.minorant`) and any blocks B̄, with Z = −∇D(B̄) + sB̄,

    F(B) ≥ D(B̄) − ⟨∇D(B̄), B̄⟩ + ½Σ m_u s_u‖B̄_u‖² + Σ_u m_u min_{B_u} [½s_u‖B_u‖² + μ‖B_u‖_{S_p}^p − Re⟨Z_u, B_u⟩].

The minima over the blocks of a `Cell` are exact (`cells`), nonconvex as they are, so that B̄ need not be trusted; a good B̄ comes from
proximal gradient steps on the convex envelope.  A bound below the value of a known predictor proves, besides, which singular values
no better predictor has: the cell shrinks, blocks turn out to be 0, and the second moment of the rest has a larger s.
Source: derived here; docs/lower-bounds.md.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from linconv.solvers.cells import Blocks, Box, Cell, Envelope, Penalty, envelope, sublevel, tangents
from linconv.solvers.monitor import Monitor
from linconv.solvers.nuclear import solve_nuclear
from linconv.solvers.orbits import EPS, Orbits, least_squares_point, minorant, orbits_of
from linconv.solvers.problem import Problem

ROUNDS = 24  # at the root
ROOT_STEPS = 500  # proximal gradient steps of a round
NUCLEAR_TOL = 1e-4
NUCLEAR_STEPS = 1_000
PROGRESS = 0.003  # of the gap: a round that gains less makes the steps of s shorter
LEAST_SHARE = 0.02  # a step of s that is not worth the while
CHECK_EVERY = 10
PATIENCE = 5  # checks without progress
PULLS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # how far to a least-squares point bounds are looked for that shrink the cell
PATIENT = Monitor()


@dataclass(frozen=True)
class Bound:
    """`value`, at or below F on the cell; `blocks`, B̄; for each singular value its `minima` and σ_i(Z); for each orbit its `totals`."""

    value: float
    blocks: Blocks
    minima: Float[np.ndarray, "O r"]
    totals: Float[np.ndarray, " O"]
    z: Float[np.ndarray, "O r"]


@dataclass(frozen=True)
class Region:
    """Where a better predictor can be, and how low F can be there: the orbits that are not 0, their cell, s, and the best bound."""

    orbits: Orbits
    cell: Cell
    s: Float[np.ndarray, " O"]
    bound: Bound

    @property
    def penalty(self) -> Penalty:
        return Penalty(self.s[:, None], self.orbits.problem.mu, self.orbits.problem.p)


def singular_values(blocks: Blocks) -> Float[np.ndarray, "O r"]:
    if min(blocks.shape[1:]) == 1:
        return np.sqrt((blocks.real**2 + blocks.imag**2).sum((1, 2)))[:, None]
    return np.linalg.svd(blocks, compute_uv=False)


def bound_at(orbits: Orbits, penalty: Penalty, cell: Cell, blocks: Blocks) -> tuple[Bound, Blocks]:
    """The bound of the module at B̄ = `blocks`, less what rounding can hide; and Z.

    Sums of n numbers are taken to be wrong by n ε times the sum of their sizes, those of the data as `Orbits.rounding` says.
    """
    value, gradient, inner, size = orbits.linearise(blocks)
    dual = penalty.s[:, :, None] * blocks - gradient
    hidden, slack = orbits.rounding(blocks)
    # A larger z makes every minimum smaller: what rounding may have taken from it is given back before anything is concluded.
    z = singular_values(dual)[:, : cell.low.shape[1]] + slack
    square = float(orbits.mult @ (penalty.s * (np.abs(blocks) ** 2).sum(2)).sum(1)) / 2
    minima = penalty.minima(z, cell)
    totals = minima.sum(1)
    if cell.box is not None:
        totals = np.maximum(totals, penalty.box_minima(dual, cell, cell.box) - slack * cell.box.largest())
    sizes = np.abs(minima) + z * cell.high + penalty.value(cell.high)
    rounding = hidden + sum(orbits.features.shape) * EPS * (size + square + float(orbits.mult @ np.where(cell.high > 0, sizes, 0.0).sum(1)))
    return Bound(value - inner + square + float(orbits.mult @ totals) - rounding, blocks, minima, totals, z), dual


def shrink_to(blocks: Blocks, hull: Envelope, metric: Float[np.ndarray, " O"]) -> Blocks:
    """The proximal map of the envelope, singular value by singular value."""
    if min(blocks.shape[1:]) == 1:
        sigma = singular_values(blocks)
        return blocks * (hull.prox(sigma, metric[:, None]) / np.maximum(sigma, 1e-300))[:, :, None]
    wide = blocks.shape[1] < blocks.shape[2]
    tall = blocks.conj().swapaxes(1, 2) if wide else blocks
    squares, v = np.linalg.eigh(tall.conj().swapaxes(1, 2) @ tall)  # the bound does not depend on the accuracy of steps
    v, sigma = v[:, :, ::-1], np.sqrt(np.maximum(squares[:, ::-1], 0.0))
    t = np.zeros_like(sigma)
    t[:, : hull.knee.shape[1]] = hull.prox(sigma[:, : hull.knee.shape[1]], metric[:, None])
    out = tall @ ((v * (t / np.maximum(sigma, 1e-300))[:, None, :]) @ v.conj().swapaxes(1, 2))
    return out.conj().swapaxes(1, 2) if wide else out


def _into_boxes(blocks: Blocks, pull: Blocks, hull: Envelope, metric: Float[np.ndarray, " O"], box: Box) -> Blocks:
    """The proximal map where the cell has boxes: of the tangents in boxes away from 0, elsewhere of the envelope, cut off."""
    linear = (metric[:, None, None] * blocks - pull) / (metric[:, None, None] + hull.penalty.s[:, :, None])
    return box.clip(np.where(box.apart()[:, None, None], linear, shrink_to(blocks, hull, metric)))


def solve(
    orbits: Orbits,
    penalty: Penalty,
    cell: Cell,
    metric: Float[np.ndarray, " O"],
    start: Blocks,
    upper: float,
    max_steps: int,
    monitor: Monitor = PATIENT,
) -> Bound:
    """The best bound of accelerated proximal gradient steps on the relaxed problem, until it is `upper`, stands still or time is up."""
    hull, metric = envelope(penalty, cell), np.maximum(metric - penalty.s[:, 0], 0.02 * metric)
    box = cell.box
    pull = None if box is None else tangents(penalty, cell, box)[0]
    blocks, ahead, momentum = start, start, 1.0
    best, dual = bound_at(orbits, penalty, cell, start)
    peak, history = -math.inf, []
    for step in range(1, max_steps + 1):
        moved = ahead + dual / metric[:, None, None]
        previous = blocks
        blocks = shrink_to(moved, hull, metric) if box is None or pull is None else _into_boxes(moved, pull, hull, metric, box)
        if float(((ahead - blocks) * (blocks - previous).conj()).real.sum((1, 2)) @ (orbits.mult * metric)) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = blocks + (momentum - 1) / following * (blocks - previous), following
        if step % CHECK_EVERY:
            dual = penalty.s[:, :, None] * ahead - orbits.linearise(ahead)[1]
            continue
        found, dual = bound_at(orbits, penalty, cell, ahead)
        best = found if found.value > best.value else best
        peak = max(peak, found.value)
        history.append(peak)
        if (
            monitor.late()
            or peak >= upper
            or (peak > orbits.problem.constant and len(history) > PATIENCE and peak - history[-1 - PATIENCE] <= 0.01 * (upper - peak))
        ):
            break
    return best


def tighten(orbits: Orbits, penalty: Penalty, cell: Cell, bound: Bound, upper: float) -> Cell | None:
    """The part of the cell where F can be at or below `upper`; None if there is none.

    σ_i(B_u) = t adds m_u (φ(t) − z_i t − its minimum) to the bound, and makes σ_1, …, σ_{i−1} nonzero; σ_i = 0 makes the following ones 0.
    """
    spare = (max(upper - bound.value, 0.0) / orbits.mult + bound.totals - bound.minima.sum(1))[:, None]
    forced = penalty.least(bound.z, cell.low, cell.high) - bound.minima
    before = np.cumsum(forced, 1) - forced
    low, high = sublevel(penalty, bound.z, cell, bound.minima + spare - before)
    after = np.cumsum(-bound.minima[:, ::-1], 1)[:, ::-1]
    zero = cell.zero & (after <= spare)
    none = low > high
    return replace(cell, low=np.where(none, 0.0, low), high=np.where(none, 0.0, high), zero=zero).ordered()


def nuclear_point(region: Region, monitor: Monitor) -> Blocks:
    """Where no quadratic is split off the envelope is a weighted nuclear norm: the minimiser of depth 2, or where time is up near it."""
    problem, slope = region.orbits.problem, envelope(region.penalty, region.cell).slope[:, :1]
    shape = region.orbits.shape
    mu = region.orbits.predictor_blocks(slope[:, :, None] * np.ones(shape, dtype=complex))[:, 0, 0].real
    mu = torch.where(mu > 0, mu, 1e6 * mu.max())  # blocks that are 0 stay 0
    found, _ = solve_nuclear(problem, mu, NUCLEAR_TOL, max_steps=NUCLEAR_STEPS, proceed=lambda *_: not monitor.late())
    return region.orbits.take(found)


def feasible(region: Region, start: Blocks) -> Bound:
    """The better of the bounds at `start` and as far from there to where ∇D is small as makes every minimum over a block 0."""
    found = bound_at(region.orbits, region.penalty, region.cell, start)[0]
    slope = envelope(region.penalty, region.cell).slope
    pull = 1 - float((slope / np.maximum(found.z, 1e-300))[region.cell.zero & (slope > 0)].min(initial=1.0))
    far = far_point(replace(region, bound=found))
    other = bound_at(region.orbits, region.penalty, region.cell, start + pull * (far - start))[0]
    return max(found, other, key=lambda bound: bound.value)


def tightened(region: Region, upper: float, far: Blocks | None = None) -> Region | None:
    """The region with a cell as small as bounds at B̄, and at points from there to `far`, can make it; None if nothing is left.

    Towards a point where ∇D is smaller Z shrinks, which bounds large singular values at a small loss.
    """
    start = region.bound.blocks
    for pull in PULLS if far is not None else PULLS[:1]:
        found = region.bound
        if pull and far is not None:
            found, _ = bound_at(region.orbits, region.penalty, region.cell, start + pull * (far - start))
        cell = tighten(region.orbits, region.penalty, region.cell, found, upper)
        if cell is None:
            return None
        region = replace(region, cell=cell, bound=max(region.bound, found, key=lambda bound: bound.value))
    return region


def first_cell(orbits: Orbits, upper: float) -> Cell:
    r"""What holds at every global optimum: m_u μσ^p ≤ F − least data term, and σ ≥ (2μ(1−p)/h_u)^{1/(2−p)} unless σ = 0.

    The second since B_u without the component has no smaller F: that gains m_u μσ^p and costs at most m_u (μpσ^p + ½h_uσ²).
    """
    problem = orbits.problem
    count, outputs, channels = orbits.shape
    rank = min(outputs, channels, problem.max_rank or outputs)
    high = (max(upper - problem.constant, 1e-15 * upper) / (orbits.mult * problem.mu)) ** (1 / problem.p) * (1 + 1e-12)
    curvature = orbits.curvatures()
    with np.errstate(divide="ignore"):
        low = (2 * problem.mu * (1 - problem.p) / curvature) ** (1 / (2 - problem.p)) * (1 - 1e-12)
    high = np.where(low > high, 0.0, high)
    low = np.where(high > 0, low, 0.0)
    return Cell(np.repeat(low[:, None], rank, 1), np.repeat(high[:, None], rank, 1), np.ones((count, rank), dtype=bool))


def far_point(region: Region) -> Blocks:
    """Blocks beyond B̄ at which the gradient of the data term is smaller."""
    least = least_squares_point(region.orbits)
    return 4 * region.bound.blocks if least is None else least


def wanted(region: Region) -> Float[np.ndarray, " O"]:
    """The derivative of the relaxed minimum in s_u, and a little for all, whose cells s_u bounds."""
    hull, sigma = envelope(region.penalty, region.cell), singular_values(region.bound.blocks)[:, : region.cell.low.shape[1]]
    gain = region.orbits.mult * np.maximum(hull.knee * sigma - sigma**2, 0.0).sum(1)
    return gain + 0.02 * max(float(gain.max(initial=0.0)), 1e-300)


def root_region(problem: Problem, value: float, target: float = math.inf, monitor: Monitor = PATIENT) -> tuple[Region | None, float]:
    r"""The region where F can be below `value`, F at a known predictor, and a lower bound on F; None where that is nowhere.

    Cells are tightened in turn with s, for which the bound is concave: steps to the s that is best for its derivative (Frank and Wolfe
    1956), accepted where the bound gains.  Ends where the bound is `target`.  Deterministic; no more than ROUNDS·ROOT_STEPS gradients.
    """
    orbits, enough = orbits_of(problem), min(value, target)
    cell = first_cell(orbits, value)
    least = least_squares_point(orbits)
    s, metric = minorant(orbits, orbits.mult), orbits.metric()
    start = np.zeros(orbits.shape, dtype=complex) if least is None or s.any() else least
    bounds = [
        bound_at(orbits, Penalty(s[:, None], problem.mu, problem.p), cell, at)[0] for at in (start, start if least is None else least)
    ]
    region, toward, share = Region(orbits, cell, s, max(bounds, key=lambda bound: bound.value)), s, 0.5
    for _ in range(ROUNDS):
        lower = region.bound.value
        trial = replace(region, s=region.s + share * (toward - region.s))
        if trial.s.any():
            found = solve(trial.orbits, trial.penalty, trial.cell, metric, start, enough, ROOT_STEPS)
        else:
            found = feasible(trial, start := nuclear_point(trial, monitor))
        region = replace(trial, bound=found) if found.value > lower else region
        share = share if found.value - lower > PROGRESS * (value - found.value) else share / 3
        if region.bound.value >= enough or share < LEAST_SHARE or monitor.late():
            break
        smaller = tightened(region, value, far_point(region))
        kept = np.zeros(0, dtype=bool) if smaller is None else smaller.cell.high[:, 0] > 0
        if smaller is None or not kept.any():
            nothing = problem.objective(torch.zeros_like(problem.predictor(problem.cross_moment)))
            return None, value if smaller is None else min(value, nothing)
        region = smaller
        if not kept.all():
            region, share = _restricted(region, kept), 0.5
            metric = region.orbits.metric()
        toward, start = minorant(region.orbits, wanted(region)), found.blocks[kept]
    lower = min(max(region.bound.value, problem.constant), value)
    return (None if lower >= enough else region), lower


def _restricted(region: Region, kept: Bool[np.ndarray, " O"]) -> Region:
    """The region without the orbits that are 0 in it."""
    b = region.bound
    bound = Bound(b.value, b.blocks[kept], b.minima[kept], b.totals[kept], b.z[kept])
    return Region(region.orbits.restrict(kept), region.cell.kept(kept), region.s[kept], bound)


def root_bound(
    problem: Problem, value: float, target: float = math.inf, monitor: Monitor = PATIENT
) -> tuple[Complex[Tensor, "F K C"], float]:
    """Blocks near the minimiser of the relaxation, a start for descents, and a lower bound on F, given `value` = F at some predictor.

    `target`: a bound that is good enough.  Deterministic, and bounded in work; `monitor` may end it sooner.
    """
    region, lower = root_region(problem, value, target, monitor)
    if region is None:
        return torch.zeros_like(problem.cross_moment), lower
    return region.orbits.predictor_blocks(region.bound.blocks), lower
