"""Depth 1: ridge regression, in closed form."""

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.solvers.problem import Problem, Solution

# Where λ is below this multiple of the largest eigenvalue, forming normal equations loses too many digits.
SAFE_SHIFT = 1e-8


def ridge(problem: Problem) -> Solution:
    """The minimiser of (1/2N)‖Xβ − y‖² + λ‖β‖²: Cholesky on the smaller of N and C·D, or singular values where λ is too small for that.

    Lower bound: the dual (1/N)(⟨y, θ⟩ − ½‖θ‖²) − ‖Xᵀθ‖²/(4λN²) at the best multiple of θ = y − Xβ, valid at any θ.
    """
    x, y, n = problem.x.flatten(1), problem.y, len(problem.x)
    shift = 2 * n * problem.weight_decay
    small = x @ x.T if n < x.shape[1] else x.T @ x
    if shift < SAFE_SHIFT * float(torch.linalg.matrix_norm(small)):
        solved, theta = _by_singular_values(x, y, shift)
    else:
        solved, theta = _by_cholesky(x, y, small, shift)
    beta = solved.T.reshape(-1, *problem.x.shape[1:])
    linear = float((y * theta).sum()) / n
    square = float(theta.square().sum()) / (2 * n) + float((x.T @ theta).square().sum()) / (4 * problem.weight_decay * n**2)
    lower = linear / square * linear / 4 if square > 0 and linear > 0 else 0.0
    return Solution(beta, problem.objective(beta), lower, "ridge")


def _by_cholesky(
    x: Float[Tensor, "N CD"], y: Float[Tensor, "N K"], small: Float[Tensor, "m m"], shift: float
) -> tuple[Float[Tensor, "CD K"], Float[Tensor, "N K"]]:
    """β = (XᵀX + shift)⁻¹Xᵀy and y − Xβ from `small` = XXᵀ or XᵀX, whichever is the smaller."""
    factor = torch.linalg.cholesky(small + shift * torch.eye(len(small), dtype=small.dtype, device=small.device))
    if len(x) < x.shape[1]:
        dual = torch.cholesky_solve(y, factor)
        beta = x.T @ dual
        rest = x.T @ (y - x @ beta) - shift * beta  # one step of refinement
        return beta + (rest - x.T @ torch.cholesky_solve(x @ rest, factor)) / shift, shift * dual
    beta = torch.cholesky_solve(x.T @ y, factor)
    beta = beta + torch.cholesky_solve(x.T @ (y - x @ beta) - shift * beta, factor)  # the same
    return beta, y - x @ beta


def _by_singular_values(
    x: Float[Tensor, "N CD"], y: Float[Tensor, "N K"], shift: float
) -> tuple[Float[Tensor, "CD K"], Float[Tensor, "N K"]]:
    """The same; directions in which X is 0 up to rounding are left out."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    kept = sigma > max(x.shape) * torch.finfo(x.dtype).eps * sigma[0]
    u, sigma, vh = u[:, kept], sigma[kept], vh[kept]
    inner = u.T @ y / (sigma**2 + shift)[:, None]
    outside = y - u @ (u.T @ y) if len(sigma) < len(x) else 0.0
    return vh.T @ (sigma[:, None] * inner), outside + shift * (u @ inner)
