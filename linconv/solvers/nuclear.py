r"""Depth 2, and the convex relaxation of greater depths: a convex loss with a weighted nuclear norm at each frequency.

    min_B (1/N) Σ_n ℓ(Σ_u B_u x̂_{n,u}, y_n) + Σ_u μ_u ‖B_u‖_*

by accelerated proximal gradient steps (Beck and Teboulle 2009) with the restart of O'Donoghue and Candès (2015), in the
metric κ‖S_u‖ of each frequency: natural images have spectra over many decades, and one step size would serve only the
strongest.  Every residual gives a dual point, and with it a lower bound that needs no trust in the iteration.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.monitor import Monitor
from linconv.solvers.problem import Problem, Solution

CHECK_EVERY = 10
MAX_STEPS = 20_000


def nuclear(problem: Problem, tol: float, start: Float[Tensor, "K C *grid"] | None = None, monitor: Monitor | None = None) -> Solution:
    """The minimiser at depth 2, until the certified gap is at most `tol` (or 20,000 steps: the gap tells)."""
    mu = torch.full_like(problem.weights, problem.mu)
    monitor = Monitor() if monitor is None else monitor

    def proceed(blocks: Tensor, value: float, lower: float) -> bool:
        return not monitor.attentive or monitor(Solution(problem.predictor(blocks), value, lower, "nuclear norm"))

    blocks, lower = solve_nuclear(problem, mu, tol, None if start is None else problem.blocks(start), proceed=proceed)
    beta = problem.predictor(blocks)
    return Solution(beta, problem.objective(beta), lower, "nuclear norm")


def solve_nuclear(
    problem: Problem,
    mu: Float[Tensor, " F"],
    tol: float,
    start: Complex[Tensor, "F K C"] | None = None,
    max_steps: int = MAX_STEPS,
    proceed: Callable[[Tensor, float, float], bool] = lambda blocks, value, lower: True,
) -> tuple[Complex[Tensor, "F K C"], float]:
    """Blocks of a minimiser to relative gap `tol`, if `max_steps` suffice and `proceed` agrees, and the best lower bound found."""
    metric = step_metric(problem)
    norm = Schatten(1.0)
    blocks = torch.zeros_like(problem.cross_moment) if start is None else start
    previous, ahead, momentum = blocks, blocks, 1.0
    best, lower, upper = blocks, -math.inf, math.inf
    for step in range(max_steps):
        if step % CHECK_EVERY == 0:
            beta = problem.predictor(blocks)
            value = problem.data_term(beta) + weighted_norm(problem, blocks, mu)
            bound = dual_bound(problem, problem.residual(beta), mu)
            reached = value - bound <= tol * value  # one predictor for both bounds, so that they can be had from it again
            if value < upper or reached:
                best, upper = blocks, value
            lower = max(lower, bound)
            if reached or not proceed(best, upper, lower):
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
    """
    norms = torch.linalg.matrix_norm(problem.adjoint(residual), ord=2)
    active = norms > 0
    largest = float((mu[active] / norms[active]).min()) if bool(active.any()) else math.inf
    return problem.dual_value(min(problem.loss.multiple(-residual, problem.y), largest) * residual)


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
