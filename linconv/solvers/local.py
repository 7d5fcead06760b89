r"""General data at depth ≥ 3: the best local solution found, and a proved lower bound.

The problem is not convex, and every block at 0 is a strict local minimum along itself: a local method proves nothing.
What is proved is the minimum of a convex relaxation: where all singular values of a block are at most R,
t^p ≥ R^{p−1} t on [0, R], so that Σσ^p ≥ R^{p−1} ‖B‖_*.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.nuclear import solve_nuclear, step_metric, weighted_norm
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.ridge import ridge
from linconv.solvers.smooth import smooth

MAX_STEPS = 5_000
ROUNDS = 8
RELAXATION_TOL = 1e-4
RELAXATION_STEPS = 1_000  # where that is not enough the ball is so large that the bound is of little use anyway


def local(problem: Problem) -> Solution:
    """The best of descents from 0 and from the optima of depth 1, depth 2 and the relaxation; and the lower bound of the relaxation."""
    flat = replace(problem, depth=1, max_rank=None)
    linear = ridge(flat) if problem.quadratic else smooth(flat, RELAXATION_TOL)
    convex = replace(problem, depth=2, max_rank=None)
    sparse, _ = solve_nuclear(convex, torch.full_like(convex.weights, convex.mu), RELAXATION_TOL, max_steps=RELAXATION_STEPS)
    starts = [problem.blocks(linear.predictor), sparse, torch.zeros_like(sparse)]
    best, value = min((descend(problem, start) for start in starts), key=lambda found: found[1])
    relaxed, lower = relaxation(problem, value, problem.constant)
    again = descend(problem, relaxed)
    if again[1] < value:
        best, value = again
    beta = problem.predictor(best)
    return Solution(beta, problem.objective(beta), lower, "proximal gradient")


def descend(problem: Problem, start: Complex[Tensor, "F K C"]) -> tuple[Complex[Tensor, "F K C"], float]:
    """Proximal gradient steps with extrapolation, undone where it does not help, until the objective stands still."""
    metric, penalty = step_metric(problem), Schatten(problem.p)
    weights = torch.full_like(metric, problem.mu)

    def value(blocks: Tensor) -> float:
        return problem.data_term(problem.predictor(blocks)) + problem.penalty(blocks, weights)

    def step(blocks: Tensor) -> Tensor:
        moved = penalty.prox(blocks - problem.gradient(blocks) / metric[:, None, None], problem.mu / metric)
        return problem.symmetric(cut_rank(moved, problem.max_rank))

    blocks = step(start)
    previous, current, momentum = blocks, value(blocks), 1.0
    for _ in range(MAX_STEPS):
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        trial = step(blocks + (momentum - 1) / following * (blocks - previous))
        reached = value(trial)
        if reached > current:
            if momentum == 1.0:
                break
            momentum = 1.0
            continue
        gain = current - reached
        previous, blocks, current, momentum = blocks, trial, reached, following
        if gain <= 1e-15 * current:
            break
    return blocks, current


def cut_rank(blocks: Complex[Tensor, "F K C"], rank: int | None) -> Complex[Tensor, "F K C"]:
    """The `rank` largest components of each block."""
    if rank is None or rank >= min(blocks.shape[-2:]):
        return blocks
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    return (u[..., :rank] * sigma[..., None, :rank]) @ vh[..., :rank, :]


def relaxation(problem: Problem, value: float, floor: float) -> tuple[Complex[Tensor, "F K C"], float]:
    r"""Minimiser and lower bound of the relaxation, tightened while that pays.

    At an optimum, weights_u μ‖B_u‖_{S_p}^p ≤ F − least data term, so every singular value is at most R_u = (that/(weights_u μ))^{L/2}.
    The relaxation is strongly convex where the data have full rank: with B̄ its minimiser and lb its minimum, every B with
    F(B) ≤ `value` has ½⟨B − B̄, H(B − B̄)⟩ ≤ value − lb, so ‖B_u − B̄_u‖ ≤ (2(value − lb) λ_max((H⁻¹)_uu))^{1/2}.  An
    approximate minimiser of relaxed value r is itself within the same bound with r in the place of `value`.
    """
    radius = (max(value - floor, 1e-15 * value) / (problem.weights * problem.mu)) ** (1 / problem.p)
    spread = inverse_diagonal(problem)
    blocks, lower = torch.zeros_like(problem.cross_moment), 0.0
    for _ in range(ROUNDS):
        mu = problem.mu * radius ** (problem.p - 1)
        blocks, bound = solve_nuclear(problem, mu, RELAXATION_TOL, blocks, RELAXATION_STEPS)
        gained, lower = bound - lower, max(lower, bound)
        if spread is None or gained <= 1e-3 * (value - floor):
            break
        relaxed = problem.data_term(problem.predictor(blocks)) + weighted_norm(problem, blocks, mu)
        reach = sum(math.sqrt(max(2 * (at - bound), 1e-14 * value)) for at in (value, relaxed))  # never less than rounding hides
        radius = torch.minimum(radius, torch.linalg.matrix_norm(blocks, ord=2) + reach * spread)
    return blocks, lower


def inverse_diagonal(problem: Problem) -> Float[Tensor, " F"] | None:
    """λ_max((H⁻¹)_uu)^{1/2} for every frequency of the half spectrum, None where H is singular or too large to invert."""
    size = problem.x[0].numel()
    if not problem.quadratic or size > min(4096, len(problem.x)):
        return None
    values, vectors = torch.linalg.eigh(problem.gram)
    if float(values[0]) <= 1e-12 * float(values[-1]):
        return None
    values = values - 1e-14 * values[-1]  # what rounding in the Gram matrix and its decomposition can hide
    # H⁻¹ = W Wᵀ: its diagonal blocks in frequency space are sums over the columns of W, read as images.
    root = (vectors * values.rsqrt()).T.reshape(size, *problem.x.shape[1:])
    spectrum = problem.blocks(root)
    return torch.linalg.matrix_norm(spectrum.mT @ spectrum.conj(), ord=2).sqrt()
