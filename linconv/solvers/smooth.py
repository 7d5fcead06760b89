r"""Depth 1 with a loss other than squared error: a smooth and strongly convex problem.

    min_β (1/N) Σ_n ℓ(⟨β, x_n⟩, y_n) + λ‖β‖²

by a truncated Newton method (conjugate gradients inside a trust region), in the C·D coordinates of β or, where there are
fewer images, in the N coordinates of their span, which contains the minimiser.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from linconv.solvers.problem import Problem, Solution

MAX_STEPS = 1_000


def smooth(problem: Problem, tol: float) -> Solution:
    """The minimiser until the certified gap is at most `tol` (or 1,000 Newton steps: the gap tells).

    Lower bound: the dual −(1/N) Σ ℓ*(z_n) − ‖Xᵀz‖²/(4λN²) at the gradient z of the loss; with ∇F the gradient of the objective the
    gap is ‖∇F‖²/(4λ), which is how the accuracy is chosen.
    """
    basis, rows = _coordinates(problem.x.flatten(1))
    n, outputs, decay = len(rows), problem.y.shape[1], problem.weight_decay

    def matrix(flat: np.ndarray) -> Float[Tensor, "m K"]:
        return torch.as_tensor(flat, dtype=rows.dtype, device=rows.device).reshape(-1, outputs)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        b = matrix(flat)
        f = rows @ b
        value = float(problem.loss.value(f, problem.y)) / n + decay * float(b.square().sum())
        return value, (rows.T @ problem.loss.gradient(f, problem.y) / n + 2 * decay * b).flatten().cpu().numpy()

    def curvature(flat: np.ndarray, direction: np.ndarray) -> np.ndarray:
        f, d = rows @ matrix(flat), matrix(direction)
        bent = torch.func.jvp(lambda outputs: problem.loss.gradient(outputs, problem.y), (f,), (rows @ d,))[1]
        return (rows.T @ bent / n + 2 * decay * d).flatten().cpu().numpy()

    start = np.zeros(rows.shape[1] * outputs)
    floor = value_and_gradient(start)[0]
    goal = math.sqrt(4 * decay * floor * min(tol, 1.0)) / 10
    for _ in range(3):  # the objective may end far below that of 0, which set the first goal
        found = minimize(
            value_and_gradient, start, jac=True, hessp=curvature, method="trust-ncg", options={"gtol": goal, "maxiter": MAX_STEPS}
        )
        start, reached = found.x, max(float(found.fun), 0.0)
        if 4 * decay * reached * tol >= float(found.jac @ found.jac):
            break
        goal = math.sqrt(4 * decay * reached * tol) / 10
    beta = (basis @ matrix(found.x)).T.reshape(-1, *problem.x.shape[1:])
    return Solution(beta, problem.objective(beta), _dual_value(problem, beta), "Newton")


def _coordinates(x: Float[Tensor, "N CD"]) -> tuple[Float[Tensor, "CD m"], Float[Tensor, "N m"]]:
    """An orthonormal basis of a space that contains all images, and the images in it."""
    if len(x) >= x.shape[1]:
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x
    basis, triangle = torch.linalg.qr(x.T)
    return basis, triangle.T


def _dual_value(problem: Problem, beta: Float[Tensor, "K C *grid"]) -> float:
    residual = problem.residual(beta)
    pulled = residual.T @ problem.x.flatten(1) / len(problem.x)
    return problem.dual_value(residual) - float(pulled.square().sum()) / (4 * problem.weight_decay)
