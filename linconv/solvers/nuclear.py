r"""Depth 2, and the convex relaxation of greater depths: a convex loss with a weighted nuclear norm at each frequency.

    min_B (1/N) Σ_n ℓ(Σ_u B_u x̂_{n,u}, y_n) + Σ_u μ_u ‖B_u‖_*

Most blocks of a minimiser are 0.  The problem is solved on a working set of frequencies (as Massias, Gramfort and Salmon 2018 do
for the lasso), which grows by those whose dual constraint is violated until the gap on all frequencies is small: nothing is
dropped for good, and steps cost what the working set costs (`linconv.solvers.splitting`, and `loss_splitting` for losses other
than squared error).  Where that stands still: accelerated proximal gradient steps (Beck and Teboulle 2009) with the restart of
O'Donoghue and Candès (2015), in the metric κ‖S_u‖ of each frequency, since natural images have spectra over many decades.
Every residual gives a dual point, and with it a lower bound that needs no trust in the iteration.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.loss_splitting import LossSplitting
from linconv.solvers.monitor import Monitor
from linconv.solvers.problem import SPREAD, Problem, Solution
from linconv.solvers.splitting import Frequencies, Splitting

CHECK_EVERY = 10
MAX_STEPS = 20_000
FIRST = 48  # frequencies by which a working set may grow, or twice its active ones
LOOSE = 0.1  # a working set is solved to this part of the gap on all frequencies
STALE = 5  # runs on one working set in which the gap must halve: where the two ways to compute it differ by rounding, one is not enough
STILL = 100  # checks of gradient steps after which neither end of the bracket has moved at all: what is left is rounding
ALONE = (
    1e-9  # relative gap by the residual of the blocks alone, so that the bracket can be had from the predictor; less is lost to rounding
)
Proceed = Callable[[Complex[Tensor, "F K C"], float, float], bool]  # (blocks, objective there, lower bound) -> whether to go on


def nuclear(problem: Problem, tol: float, start: Float[Tensor, "K C *grid"] | None = None, monitor: Monitor | None = None) -> Solution:
    """The minimiser at depth 2, until the certified gap is at most `tol` (or 20,000 steps are made: the gap tells)."""
    mu = torch.full_like(problem.weights, problem.mu)
    monitor = Monitor() if monitor is None else monitor

    def proceed(blocks: Tensor, value: float, lower: float) -> bool:
        if not monitor.attentive:
            return True
        beta = problem.predictor(blocks)
        return monitor(Solution(beta, value, below(problem, beta, value, lower), "nuclear norm"))

    blocks, lower = solve_nuclear(problem, mu, tol, None if start is None else problem.blocks(start), proceed=proceed)
    beta = problem.predictor(blocks)
    objective = problem.objective(beta)
    return Solution(beta, objective, below(problem, beta, objective, lower), "nuclear norm")


def solve_nuclear(
    problem: Problem,
    mu: Float[Tensor, " F"],
    tol: float,
    start: Complex[Tensor, "F K C"] | None = None,
    max_steps: int = MAX_STEPS,
    proceed: Proceed = lambda blocks, value, lower: True,
) -> tuple[Complex[Tensor, "F K C"], float]:
    """Blocks of a minimiser to relative gap `tol`, if `max_steps` suffice and `proceed` agrees, and the best lower bound found.

    From the blocks `start`, or from 0; with another loss than squared error, which is nearly flat where an answer is sure,
    from 0 too where that is better.
    """
    zero = torch.zeros_like(problem.cross_moment)
    if start is None or not (problem.quadratic or _value(problem, start, mu) < _value(problem, zero, mu)):
        start = zero
    return _by_working_sets(problem, mu, tol, start, max_steps, proceed)


def _value(problem: Problem, blocks: Complex[Tensor, "F K C"], mu: Float[Tensor, " F"]) -> float:
    return problem.data_term(problem.predictor(blocks)) + weighted_norm(problem, blocks, mu)


def _by_working_sets(
    problem: Problem, mu: Float[Tensor, " F"], tol: float, blocks: Complex[Tensor, "F K C"], max_steps: int, proceed: Proceed
) -> tuple[Complex[Tensor, "F K C"], float]:
    """`solve_nuclear` by splitting on working sets, the gap taken on all frequencies."""
    frequencies = Frequencies(problem, mu)
    make = Splitting if problem.quadratic else partial(LossSplitting, problem.loss)
    best, lower, upper, steps, going = blocks, -math.inf, math.inf, 0, True
    least, stale = math.inf, 0
    splitting: Splitting | None = None
    halted = False

    def ask(*bracket: Any) -> bool:
        nonlocal halted
        halted = not proceed(*bracket)
        return not halted

    chosen = torch.zeros(0, dtype=torch.int64, device=mu.device)
    others: list[Tensor] = []
    while True:
        outputs = problem.outputs(problem.predictor(blocks))
        own = -problem.loss.gradient(outputs, problem.y)
        value = problem.constant + float(problem.loss.value(outputs, problem.y)) / len(own) + weighted_norm(problem, blocks, mu)
        duals = [_dual(problem, residual, mu) for residual in [own, *others]]
        bound, pulled = max(duals, key=lambda dual: dual[0])
        reached = value - bound <= tol * value and value - duals[0][0] <= max(tol, ALONE) * value
        if value < upper or reached:
            best, upper = blocks, value
        lower = max(lower, bound)
        if reached or halted or steps >= max_steps or not ask(best, upper, lower):
            return best, lower
        if not going:
            break
        stale = 0 if value - bound < least / 2 else stale + 1
        least = min(least, value - bound)
        inside, pulled = frequencies.gather(blocks), frequencies.gather(pulled)
        wanted = _working_set(inside, torch.linalg.matrix_norm(pulled, ord=2) / frequencies.mu)
        if splitting is None or not bool(torch.isin(wanted, chosen).all()):
            chosen, stale = wanted, 0
            splitting = make(frequencies.columns(chosen), problem.y, frequencies.mu[chosen], inside[chosen], pulled[chosen])
        goal = tol / 2 * value if len(chosen) == len(inside) else max(tol / 2 * value, LOOSE * (value - bound))
        alone = max(goal, ALONE / 2 * value)
        made, going = splitting.run(goal, alone, max_steps - steps, partial(ask, best, upper, lower))
        steps, going = steps + made, going and stale < STALE
        _, *others = splitting.residuals()
        blocks = frequencies.scatter(torch.zeros_like(inside).index_copy(0, chosen, splitting.blocks))
    if upper - lower <= ALONE * upper:  # rounding
        return best, lower
    # Where splitting stands still for another reason than rounding (nearly singular problems of few images), steps that always converge.
    ended, bound = _by_gradients(problem, mu, tol, best, max_steps - steps, proceed)
    return ended, max(lower, bound)


def _working_set(blocks: Complex[Tensor, "P K C"], ratio: Float[Tensor, " P"]) -> Int64[Tensor, " w"]:
    """The active frequencies and those of the largest ratio of a dual point to its bound, as many as violate it but not too many."""
    active: Bool[Tensor, " P"] = blocks.abs().amax(dim=(1, 2)) > 0
    count = int(active.sum())
    size = count + min(int(((ratio > 1) & ~active).sum()), max(count, FIRST))
    if size > 0.7 * len(ratio):
        size = len(ratio)
    return torch.where(active, math.inf, ratio).topk(size).indices.sort().values


def _by_gradients(
    problem: Problem, mu: Float[Tensor, " F"], tol: float, blocks: Complex[Tensor, "F K C"], max_steps: int, proceed: Proceed
) -> tuple[Complex[Tensor, "F K C"], float]:
    """`solve_nuclear` by accelerated proximal gradient steps, which always converge."""
    metric = step_metric(problem)
    norm = Schatten(1.0)
    previous, ahead, momentum = blocks, blocks, 1.0
    best, lower, upper, still = blocks, -math.inf, math.inf, 0
    for step in range(max_steps):
        if step % CHECK_EVERY == 0:
            value = _value(problem, blocks, mu)
            bound = dual_bound(problem, problem.residual(problem.predictor(blocks)), mu)
            reached = value - bound <= tol * value  # one predictor for both bounds, so that they can be had from it again
            still = 0 if value < upper or bound > lower else still + 1
            if value < upper or reached:
                best, upper = blocks, value
            lower = max(lower, bound)
            if reached or still > STILL or not proceed(best, upper, lower):
                break
        previous, blocks = blocks, norm.prox(ahead - problem.gradient(ahead) / metric[:, None, None], mu / metric)
        if float(((ahead - blocks) * (blocks - previous).conj()).real.sum(dim=(1, 2)) @ (problem.weights * metric)) > 0:
            momentum = 1.0  # the step went uphill
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = blocks + (momentum - 1) / following * (blocks - previous), following
    return best, lower


def dual_bound(problem: Problem, residual: Float[Tensor, "N K"], mu: Float[Tensor, " F"]) -> float:
    r"""The dual value −(1/N) Σ ℓ*(−θ_n) at a feasible multiple θ of a residual, for squared error the best one.

    θ is feasible if ‖(1/N) Σ_n θ_n x̂_{n,u}†‖ ≤ μ_u at every u (spectral norm); the value is then at or below the minimum,
    whatever residual was given.

    A residual that is nearly orthogonal to all images leaves a constraint, and a value, of rounding.  The norms are therefore taken
    larger by 32 ε/√N, and the value smaller by 64 ε, times the root mean squares of what is multiplied: an order of magnitude more than
    the errors of sums of N products, of which √N add up as errors of random signs do (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """
    return _dual(problem, residual, mu)[0]


def _dual(problem: Problem, residual: Float[Tensor, "N K"], mu: Float[Tensor, " F"]) -> tuple[float, Complex[Tensor, "F K C"]]:
    """`dual_bound`, and (1/N) Σ_n r_n x̂_{n,u}† for the residual itself."""
    pulled, n = problem.adjoint(residual), len(residual)
    size = float(torch.linalg.vector_norm(residual)) / math.sqrt(n)
    norms = torch.linalg.matrix_norm(pulled, ord=2) + SPREAD * size * problem.pixel / math.sqrt(n)
    active = norms > 0
    largest = float((mu[active] / norms[active]).min()) if bool(active.any()) else math.inf
    s = min(problem.loss.multiple(-residual, problem.y), largest)
    value = problem.dual_value(s * residual)
    summed = s * size * float(torch.linalg.vector_norm(problem.y)) / math.sqrt(n) if problem.quadratic else abs(value)
    return value - 2 * SPREAD * summed, pulled


def below(problem: Problem, beta: Float[Tensor, "K C *grid"], objective: float, lower: float, images: int | None = None) -> float:
    """The lower bound, or the objective at β where the bound exceeds it by no more than the rounding of the two.

    A smaller lower bound stays one.  A larger excess is no rounding and stays visible: it would mean that the bound is wrong.

    The sums behind both have n = N + C·D + K terms; `images` is N where that of the problem has been reduced.  With outputs off by
    nε Σ|β||x| the data term is off by nε (1/N) Σ_n |r_n|ᵀ|β||x_n|, r minus the gradient of the loss; the dual value changes by as much
    where (1/N) Σ r_n x̂†, and with it the feasible multiple, is off by nε (1/N) Σ |r_n||x_n|ᵀ.  What else is summed, losses, conjugates and
    norms, has the size of the objective.  Source: derived here, from the bounds for sums in Higham 2002, §3.1.
    """
    excess = lower - objective
    if excess <= 0:
        return lower
    products = problem.residual(beta).abs() * (problem.x.flatten(1).abs() @ beta.flatten(1).T.abs())
    terms = (images or len(problem.x)) + problem.x[0].numel() + problem.y.shape[1]
    rounding = 2 * terms * torch.finfo(problem.x.dtype).eps * (objective + float(products.sum()) / len(problem.x))
    return objective if excess <= rounding else lower


def step_metric(problem: Problem) -> Float[Tensor, " F"]:
    """Step denominators M_u = κ‖S_u‖ with M ⪰ H, the largest Hessian of the data term: κ = λ_max(M^{-1/2} H M^{-1/2}) for κ = 1."""
    norms = problem.loss.smoothness * torch.linalg.matrix_norm(problem.second_moments, ord=2)
    norms = norms.clamp(min=1e-12 * float(norms.max()) if float(norms.max()) else 1.0)
    shape = problem.x.shape[1:]

    def scale(vector: Tensor) -> Tensor:
        blocks = problem.blocks(vector.reshape(1, *shape)) / norms.sqrt()[:, None, None]
        return problem.predictor(blocks).reshape(-1)

    def apply(vector: np.ndarray) -> np.ndarray:
        x = problem.x.flatten(1)
        moved = scale(torch.as_tensor(vector.ravel(), dtype=x.dtype, device=x.device))
        return scale(x.T @ (x @ moved) * (problem.loss.smoothness / len(x))).cpu().numpy()

    size = math.prod(shape)
    if size <= 2:
        return norms * size  # trace bound; ARPACK wants at least three dimensions
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    try:
        largest = eigsh(operator, k=1, tol=1e-3, v0=np.cos(np.arange(size)), return_eigenvectors=False)[0]
    except ArpackNoConvergence:
        largest = size
    return norms * max(1.0, 1.01 * float(largest))


def weighted_norm(problem: Problem, blocks: Complex[Tensor, "F K C"], mu: Float[Tensor, " F"]) -> float:
    """Σ_u μ_u ‖B_u‖_* over the full spectrum."""
    return float(problem.weights @ (mu * torch.linalg.svdvals(blocks).sum(-1)))
