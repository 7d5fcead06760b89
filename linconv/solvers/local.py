r"""General data at depth ≥ 3: the best local solution found, and a proved lower bound.

The problem is not convex, and every block at 0 is a strict local minimum along itself: a local method proves nothing.
What is proved is the minimum of a convex relaxation: where all singular values of a block are at most R,
t^p ≥ R^{p−1} t on [0, R], so that Σσ^p ≥ R^{p−1} ‖B‖_*.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Complex
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.nuclear import solve_nuclear, step_metric
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.relaxation import root_bound
from linconv.solvers.ridge import ridge
from linconv.solvers.smooth import smooth

MAX_STEPS = 5_000
RELAXATION_TOL = 1e-4
RELAXATION_STEPS = 1_000  # of the convex problems that starts come from


def local(problem: Problem) -> Solution:
    """The best of descents from 0 and from the optima of depth 1, depth 2 and the relaxation; and the lower bound of the relaxation."""
    flat = replace(problem, depth=1, max_rank=None)
    linear = ridge(flat) if problem.quadratic else smooth(flat, RELAXATION_TOL)
    convex = replace(problem, depth=2, max_rank=None)
    sparse, _ = solve_nuclear(convex, torch.full_like(convex.weights, convex.mu), RELAXATION_TOL, max_steps=RELAXATION_STEPS)
    starts = [problem.blocks(linear.predictor), sparse, torch.zeros_like(sparse)]
    best, value = min((descend(problem, start) for start in starts), key=lambda found: found[1])
    relaxed, lower = root_bound(problem, value)
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
