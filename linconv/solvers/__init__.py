"""The optimum of the weight-decayed problem: one solver a file, one `Solution`, one `fit` that chooses."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.solvers.decoupled import decoupled
from linconv.solvers.local import local
from linconv.solvers.nuclear import nuclear
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.ridge import ridge
from linconv.validation import validate_number, validate_size, validate_tensor

__all__ = ["Solution", "fit"]


def fit(
    x: Float[Tensor, "N C *grid"],
    y: Float[Tensor, "N K"],
    *,
    depth: int,
    weight_decay: float,
    hidden_channels: int | None = None,
    tol: float = 1e-8,
) -> Solution:
    """The minimiser of (1/2N) Σ_n ‖f(x_n) − y_n‖² + weight_decay · Σ_l ‖w^l‖² over linear CNNs of full kernels.

    The minimum over weights is the minimum over predictors with the representation cost as penalty; that problem is what
    is solved.  `x` `(N, C, *grid)`, `y` `(N, K)`; `hidden_channels`, the narrowest hidden width (default: wide enough);
    `tol`, the target for the relative gap between `objective` and the proved `lower_bound`.

    Depth 1 is ridge regression.  Depth 2 is convex, solved to a certified gap.  Where the second moment of the data has
    no cross-frequency terms (whitened images), every depth is solved globally.  Otherwise depth ≥ 3 gives the best
    local solution found, and the lower bound of a convex relaxation.

    All is computed in float64; for float32 data the predictor is rounded at the end, and `objective` is that before rounding.

    Raises `ValueError` or `TypeError` naming the argument.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(40, 2, 3, 3, dtype=torch.float64, generator=g), torch.randn(40, 2, dtype=torch.float64, generator=g)
    >>> solution = fit(x, y, depth=2, weight_decay=0.01)
    >>> solution.method, solution.gap <= 1e-8
    ('nuclear norm', True)
    """
    validate_tensor("x", x, ndim=(3, 4, 5), shape="(N, C, *grid)")
    validate_tensor("y", y, ndim=(2,), shape="(N, K)")
    if len(x) != len(y):
        raise ValueError(f"y: expected {len(x)} rows, one an image, got {len(y)}")
    if (x.dtype, x.device) != (y.dtype, y.device):
        raise TypeError(f"y: expected {x.dtype} on {x.device} as x has, got {y.dtype} on {y.device}")
    for name, data in (("x", x), ("y", y)):
        # Objectives are sums of squares: beyond these sizes they overflow, or vanish, in float64.
        largest = float(data.detach().abs().max())
        if largest > 1e100 or 0 < largest < 1e-100:
            raise ValueError(f"{name}: expected numbers between 1e-100 and 1e100 in size, got up to {largest:.1e}; change the units")
    depth = validate_size("depth", depth)
    decay, tol = validate_number("weight_decay", weight_decay, positive=True), validate_number("tol", tol, positive=True)
    width = None if hidden_channels is None else validate_size("hidden_channels", hidden_channels)
    rank = None if width is None or depth == 1 or width >= min(x.shape[1], y.shape[1]) else width
    problem = Problem(x.detach().to(torch.float64), y.detach().to(torch.float64), depth, decay, rank)
    solution = _solve(problem, tol)
    if x.dtype == torch.float64:
        return solution
    # Rounding leaves dust in every block, of which the cost at float64's rank tolerance would make whole components.
    return replace(solution, predictor=solution.predictor.to(x.dtype))


def _solve(problem: Problem, tol: float) -> Solution:
    if not bool(problem.cross_moment.any()):  # nothing to learn: the zero predictor is optimal
        zero = problem.predictor(problem.cross_moment)
        value = problem.objective(zero)
        return Solution(zero, value, value, "zero")
    if problem.depth == 1:
        return ridge(problem)
    exact = decoupled(problem)
    if exact is not None:
        return exact
    if problem.depth == 2 and problem.max_rank is None:
        return nuclear(problem, tol)
    return local(problem)
