r"""Depth 1 with a loss other than squared error: a smooth and strongly convex problem.

    min_β (1/N) Σ_n ℓ(⟨β, x_n⟩, y_n) + λ‖β‖²

by Newton's method with an Armijo line search, each step solved by conjugate gradients, in the C·D coordinates of β or, where there
are fewer images, in the N coordinates of their span, which contains the minimiser.  The coordinates are the principal axes
of the images: with the same curvature of ℓ everywhere the Hessian would be diagonal in them, which preconditions it.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from linconv.solvers.monitor import Monitor
from linconv.solvers.nuclear import below
from linconv.solvers.problem import Problem, Solution

MAX_STEPS = 100
MAX_INNER = 1_000
ARMIJO = 1e-4


def smooth(problem: Problem, tol: float, start: Float[Tensor, "K C *grid"] | None = None, monitor: Monitor | None = None) -> Solution:
    """The minimiser until the certified gap is at most `tol`, or until rounding stops the descent (the gap tells).

    From the predictor `start`, or from 0 where that is better.  `monitor` is told the bracket after every Newton step and asked for
    the time between conjugate gradients too; where it says so, the bracket reached so far is returned.

    Lower bound: the dual −(1/N) Σ ℓ*(z_n) − ‖Xᵀz‖²/(4λN²) at the gradient z of the loss, or far from the minimum at a multiple of it;
    with ∇F the gradient of the objective the gap is ‖∇F‖²/(4λ), which is how the accuracy is chosen.
    """
    monitor = Monitor() if monitor is None else monitor
    basis, rows, moments = _principal_axes(problem.x.flatten(1))
    loss, y, n, decay = problem.loss, problem.y, len(rows), problem.weight_decay

    def value(b: Tensor) -> float:
        return float(loss.value(rows @ b, y)) / n + decay * float(b.square().sum())

    def gradient(b: Tensor) -> Tensor:
        return rows.T @ loss.gradient(rows @ b, y) / n + 2 * decay * b

    def hessian(f: Tensor, d: Tensor) -> Tensor:
        return rows.T @ loss.curvature(f, y, rows @ d) / n + 2 * decay * d

    def solution(b: Tensor) -> Solution:
        beta = (basis @ b).T.reshape(-1, *problem.x.shape[1:])
        objective = problem.objective(beta)
        return Solution(beta, objective, below(problem, beta, objective, max(_dual_value(problem, beta, objective), 0.0)), "Newton")

    b = torch.zeros(rows.shape[1], y.shape[1], dtype=rows.dtype, device=rows.device)
    reached, slope = value(b), gradient(b)
    first = float(slope.norm())
    if start is not None:
        warm = basis.T @ start.flatten(1).T
        if (warm_value := value(warm)) < reached:
            b, reached, slope = warm, warm_value, gradient(warm)
    for _ in range(MAX_STEPS):
        norm, goal = float(slope.norm()), (4 * decay * reached * tol) ** 0.5 / 10  # a tenth: the bound is recomputed from the images
        if norm <= goal or (monitor.attentive and not monitor(solution(b))):
            break
        f = rows @ b
        diagonal = _mean_curvature(problem, f) * moments + 2 * decay
        step = _newton_step(partial(hessian, f), slope, diagonal, max(min(0.1, (norm / first) ** 0.5), goal / (2 * norm)), monitor)
        found = _line_search(value, gradient, b, step, reached, slope)
        if found is None:
            break
        b, reached, slope = found
    return solution(b)


def _principal_axes(x: Float[Tensor, "N CD"]) -> tuple[Float[Tensor, "CD m"], Float[Tensor, "N m"], Float[Tensor, "m 1"]]:
    """Orthonormal axes of a space that contains all images, the images in them, and their second moments along them."""
    if len(x) >= x.shape[1]:
        moments, axes = torch.linalg.eigh(x.T @ x / len(x))
        return axes, x @ axes, moments.clamp(min=0)[:, None]
    basis, triangle = torch.linalg.qr(x.T)
    moments, axes = torch.linalg.eigh(triangle @ triangle.T / len(x))
    return basis @ axes, triangle.T @ axes, moments.clamp(min=0)[:, None]


def _mean_curvature(problem: Problem, f: Float[Tensor, "N K"]) -> float:
    """The mean over images and outputs of the second derivatives of ℓ."""
    units = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    traces = [float(problem.loss.curvature(f, problem.y, unit.expand_as(f))[:, k].sum()) for k, unit in enumerate(units)]
    return sum(traces) / f.numel()


def _newton_step(
    hessian: Callable[[Tensor], Tensor], slope: Float[Tensor, "m K"], diagonal: Float[Tensor, "m 1"], accuracy: float, monitor: Monitor
) -> Float[Tensor, "m K"]:
    """d with ‖H d + slope‖ ≤ accuracy · ‖slope‖, by conjugate gradients, or until the time is up: any iterate is a direction of descent."""
    step, rest = torch.zeros_like(slope), -slope
    goal = accuracy * float(slope.norm())
    scaled = rest / diagonal
    direction, energy = scaled, float((rest * scaled).sum())
    for _ in range(MAX_INNER):
        bent = hessian(direction)
        length = energy / float((direction * bent).sum())
        step, rest = step + length * direction, rest - length * bent
        if float(rest.norm()) <= goal or monitor.late():
            break
        scaled = rest / diagonal
        previous, energy = energy, float((rest * scaled).sum())
        direction = scaled + energy / previous * direction
    return step


def _line_search(
    value: Callable[[Tensor], float], gradient: Callable[[Tensor], Tensor], b: Tensor, step: Tensor, reached: float, slope: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """The first of the steps 1, ½, ¼, … that lowers the objective enough or, within its rounding, the gradient; None if none does."""
    descent, noise = float((slope * step).sum()), 8 * torch.finfo(b.dtype).eps * reached
    for halvings in range(40):
        length = 0.5**halvings
        trial = b + length * step
        found = value(trial)
        if found <= reached + ARMIJO * length * descent:
            return trial, found, gradient(trial)
        if found <= reached + noise:
            turned = gradient(trial)
            return (trial, found, turned) if float(turned.norm()) <= float(slope.norm()) / 2 else None
    return None


def _dual_value(problem: Problem, beta: Float[Tensor, "K C *grid"], objective: float) -> float:
    """The dual at the gradient z of the loss, or where that proves less than half of the objective at the best of its multiples s z.

    It is concave in s and positive for small s, where −ℓ*(s z) falls like s log(1/s), or s, and ‖Xᵀz‖² s²/(4λN²) like s².
    """
    residual = problem.residual(beta)
    pulled = float(torch.linalg.vector_norm(residual.T @ problem.x.flatten(1))) / len(problem.x) / math.sqrt(4 * problem.weight_decay)

    def value(s: float) -> float:
        return problem.dual_value(s * residual) - (s * pulled) ** 2

    whole = value(1.0)
    if whole >= objective / 2 or pulled == 0:
        return whole
    found = minimize_scalar(lambda logarithm: -value(math.exp(logarithm)), bounds=(-690.0, 0.0), method="bounded", options={"xatol": 1e-3})
    return max(whole, value(math.exp(found.x)))
