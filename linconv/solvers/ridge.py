"""Depth 1: ridge regression, in closed form."""

import torch

from linconv.solvers.problem import Problem, Solution


def ridge(problem: Problem) -> Solution:
    """The minimiser of (1/2N)‖Xβ − y‖² + λ‖β‖², by Cholesky on the smaller of N and C·D.

    Lower bound: the dual (1/N)(⟨y, θ⟩ − ½‖θ‖²) − ‖Xᵀθ‖²/(4λN²) at θ = y − Xβ, valid at any θ.
    """
    x, y, n = problem.x.flatten(1), problem.y, len(problem.x)
    shift = 2 * n * problem.weight_decay
    small, target = (x.T @ x, x.T @ y) if n >= x.shape[1] else (x @ x.T, y)
    factor, failed = torch.linalg.cholesky_ex(small + shift * torch.eye(len(small), dtype=small.dtype, device=small.device))
    if failed:  # the shift is below the rounding of singular data: divide in the eigenbasis instead
        values, vectors = torch.linalg.eigh(small)
        solved = vectors @ ((vectors.T @ target) / (values.clamp(min=0) + shift)[:, None])
    else:
        solved = torch.cholesky_solve(target, factor)
    beta = (solved if n >= x.shape[1] else x.T @ solved).T.reshape(-1, *problem.x.shape[1:])
    theta = problem.residual(beta)
    linear = float((y * theta).sum() - theta.square().sum() / 2) / n
    lower = linear - float((x.T @ theta).square().sum()) / (4 * problem.weight_decay * n**2)
    return Solution(beta, problem.objective(beta), lower, "ridge")
