"""The optimum of the weight-decayed problem: one solver a file, one `Solution`, one `fit` that chooses."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.losses import LossName, SquaredError, loss_of
from linconv.solvers.decoupled import decoupled
from linconv.solvers.monitor import Monitor
from linconv.solvers.nonconvex import nonconvex
from linconv.solvers.nuclear import below, nuclear
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.reduction import certified_least_error, certify, least_squares, reduce, squared_residual
from linconv.solvers.ridge import distinct_columns, least_error, ridge, ridge_path
from linconv.solvers.smooth import smooth
from linconv.symbols import one_thread
from linconv.validation import validate_number, validate_size, validate_tensor

__all__ = ["Solution", "fit", "fit_path"]

LARGE = 2**26  # numbers in the data beyond which images are not sorted to find equal ones
NEGLIGIBLE = 1e-12  # of weight decays: rounding of the dual point, divided by them, may leave no bound
DEEPEST = 1000
SHARE = 0.9  # of the tolerance: the rest is for the rounding that certificates pay for
SMALL = 2**20  # numbers in the data up to which a second thread costs more than it saves, ten times more on a busy machine


def fit(
    x: Float[Tensor, "N C *grid"],
    y: Float[Tensor, "N K"],
    *,
    depth: int,
    weight_decay: float,
    loss: LossName = "squared",
    hidden_channels: int | None = None,
    tol: float = 1e-8,
    max_nodes: int = 0,
    time_limit: float | None = None,
    on_progress: Callable[[Solution], bool | None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """The minimiser of (1/N) Σ_n ℓ(f(x_n), y_n) + weight_decay · Σ_l ‖w^l‖² over linear CNNs of full kernels.

    The minimum over weights is the minimum over predictors with the representation cost as penalty; that problem is what
    is solved.  `x` `(N, C, *grid)`, `y` `(N, K)`; `loss`: "squared" (½‖f − y‖²), "cross-entropy" (softmax; rows of y are
    distributions over K classes) or "logistic" (each y_k a probability); `hidden_channels`, the narrowest hidden width
    (default: wide enough); `tol`, the target for the relative gap between `objective` and the proved `lower_bound`.

    Depth 1 is ridge regression, or for another loss solved to a certified gap.  Depth 2 is convex, solved to a certified
    gap.  Where squared error meets a second moment of the data without cross-frequency terms (whitened images), and channels
    are alike and uncorrelated or there is one output, every depth is solved globally.  Otherwise depth ≥ 3 gives the best that
    a portfolio of methods finds (`members`: each one's objective) and the lower bound of a relaxation; with squared error,
    branch and bound then narrows the bracket for
    `max_nodes` nodes, or, where a time limit but no number is given, until that.  `checkpoint`, a file that keeps its
    tree: a search that was interrupted goes on from it.

    After `time_limit` seconds, or where `on_progress`, called now and then with the `Solution` so far, returns False, the
    bracket found so far is returned.  The clock is looked at between the steps of every iteration, `on_progress` is called between
    those at depth 2 and, with another loss than squared error, at depth 1, between the members of the portfolio and between the
    nodes beyond; ridge regression and decoupled data are solved in one go.  Without a limit results do not depend on time.
    `weight_decay` may be 0 for squared error and wide networks: elsewhere there need be no minimum.

    All is computed in float64; for float32 data the predictor is rounded at the end, and `objective` is that before rounding.
    Squared error of more than C·D images is reduced to that of C·D rows in one pass, so that memory beyond x does not grow with N.

    Raises `ValueError` or `TypeError` naming the argument.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(40, 2, 3, 3, dtype=torch.float64, generator=g), torch.randn(40, 2, dtype=torch.float64, generator=g)
    >>> solution = fit(x, y, depth=2, weight_decay=0.01)
    >>> solution.method, solution.gap <= 1e-8
    ('nuclear norm', True)
    """
    limit = None if time_limit is None else validate_number("time_limit", time_limit, positive=True)
    problem = _problem(x, y, depth, weight_decay, loss, hidden_channels)
    tol = validate_number("tol", tol, positive=True)
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress: expected a function of a Solution, got {on_progress!r}")
    nodes: int | float = 0 if max_nodes == 0 else validate_size("max_nodes", max_nodes)
    nodes = math.inf if nodes == 0 and limit is not None else nodes
    if checkpoint is not None:
        _validate_checkpoint(checkpoint, nodes)
    with one_thread() if problem.x.numel() <= SMALL else nullcontext():
        found = _solve(problem, tol, None, Monitor(limit, on_progress), nodes, checkpoint)
    return _finish(found, problem, x, y)


def fit_path(
    x: Float[Tensor, "N C *grid"],
    y: Float[Tensor, "N K"],
    *,
    depth: int,
    weight_decays: Sequence[float],
    loss: LossName = "squared",
    hidden_channels: int | None = None,
    tol: float = 1e-8,
) -> list[Solution]:
    """`fit` for each of many weight decays, in their order; what one has found is used for the next.

    The data are reduced once.  Depth 1 with squared error needs one decomposition for all; elsewhere the decays are taken
    from the largest down, each starting from the solution before.  Raises as `fit` does.
    """
    if not isinstance(weight_decays, Iterable):
        raise TypeError(f"weight_decays: expected a sequence of numbers, got {weight_decays!r}; put one into a list, or use fit")
    decays = [validate_number("weight_decays", decay) for decay in weight_decays]
    if not decays:
        raise ValueError("weight_decays: expected at least one number, got none")
    tol = validate_number("tol", tol, positive=True)
    problem = _problem(x, y, depth, decays[0], loss, hidden_channels)
    problems = [problem if decay == decays[0] else _checked_decay(replace(problem, weight_decay=decay)) for decay in decays]
    if problem.depth == 1 and problem.quadratic:
        return [_finish(found, problem, x, y) for found, problem in zip(ridge_path(problem, decays), problems, strict=True)]
    solutions: dict[int, Solution] = {}
    start = None
    for i in sorted(range(len(decays)), key=lambda i: -decays[i]):
        with one_thread() if problem.x.numel() <= SMALL else nullcontext():
            found = _solve(problems[i], tol, start, Monitor())
        solutions[i] = _finish(found, problems[i], x, y)
        start = found.predictor
    return [solutions[i] for i in range(len(decays))]


def _validate_checkpoint(checkpoint: str | os.PathLike[str], nodes: int | float) -> None:
    """Before any work: a file that could not be written in the end would lose it."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint: expected the path of a file, got {checkpoint!r}")
    if nodes == 0:
        raise ValueError(f"checkpoint: expected max_nodes or time_limit with it, got neither; {checkpoint} would stay unused")
    folder = Path(checkpoint).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"checkpoint: expected a file in a folder that can be written, got {checkpoint}; make {folder} first")


def _problem(x: Tensor, y: Tensor, depth: int, weight_decay: float, loss: LossName, hidden_channels: int | None) -> Problem:
    """The problem in float64 after all checks, more than C·D images with squared error reduced to as many rows."""
    validate_tensor("x", x, ndim=(3, 4, 5), shape="(N, C, *grid)")
    validate_tensor("y", y, ndim=(2,), shape="(N, K)")
    if len(x) != len(y):
        raise ValueError(f"y: expected {len(x)} rows, one an image, got {len(y)}")
    if (x.dtype, x.device) != (y.dtype, y.device):
        raise TypeError(f"y: expected {x.dtype} on {x.device} as x has, got {y.dtype} on {y.device}")
    for name, data in (("x", x), ("y", y)):
        # Objectives are sums of squares: beyond these sizes they overflow, or vanish, in float64.
        low, high = torch.aminmax(data.detach())
        largest = max(-float(low), float(high))
        if largest > 1e100 or 0 < largest < 1e-100:
            raise ValueError(f"{name}: expected numbers between 1e-100 and 1e100 in size, got up to {largest:.1e}; change the units")
    depth = validate_size("depth", depth)
    if depth > DEEPEST:
        raise ValueError(f"depth: expected at most {DEEPEST}, got {depth}: powers of singular values leave double precision")
    decay, ell = validate_number("weight_decay", weight_decay), loss_of(loss)
    if decay > 1e200 or 0 < decay < 1e-200:
        raise ValueError(f"weight_decay: expected 0 or a number between 1e-200 and 1e200, got {decay:.1e}; change the units of the data")
    ell.validate(y)
    width = None if hidden_channels is None else validate_size("hidden_channels", hidden_channels)
    rank = None if width is None or depth == 1 or width >= min(x.shape[1], y.shape[1]) else width
    x, y, constant = x.detach(), y.detach().to(torch.float64), 0.0
    # One linear solve would not earn the reduction.
    if (depth > 1 or decay == 0) and isinstance(ell, SquaredError) and len(x) > x[0].numel():
        x, y, constant = reduce(x, y)
    return _checked_decay(Problem(x.to(torch.float64), y, depth, decay, rank, ell, constant))


def _checked_decay(problem: Problem) -> Problem:
    if problem.weight_decay == 0 and not (problem.quadratic and problem.max_rank is None):
        why = "without decay separable data have none" if problem.max_rank is None else "blocks of limited rank may have none"
        raise ValueError(f"weight_decay: expected a number > 0, got 0: the minimum must exist, and {why}")
    return problem


def _solve(
    problem: Problem,
    tol: float,
    start: Tensor | None,
    monitor: Monitor,
    max_nodes: int | float = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """A solution of the problem as reduced; `start`, a predictor."""
    if not bool(problem.cross_moment.any()):  # nothing to learn: the zero predictor is optimal
        zero = problem.predictor(torch.zeros_like(problem.cross_moment))
        value = problem.objective(zero)
        return Solution(zero, value, value, "zero")
    if problem.weight_decay == 0:
        return ridge(replace(problem, depth=1))
    if problem.depth == 1:
        return ridge(problem) if problem.quadratic else smooth(problem, tol, start, monitor)
    exact = decoupled(problem) if problem.quadratic else None
    if exact is not None:
        return exact
    if problem.depth == 2 and problem.max_rank is None:
        return nuclear(problem, SHARE * tol, start, monitor)
    return nonconvex(problem, tol, start, monitor, max_nodes, checkpoint)


def _finish(solution: Solution, problem: Problem, x: Tensor, y: Tensor) -> Solution:
    """The objective, and at depth 2 the lower bound, from the data themselves where they were reduced; the predictor in their dtype."""
    negligible = problem.quadratic and problem.depth < 3 and 0 < problem.weight_decay < NEGLIGIBLE * _scale(problem)
    predictor = solution.predictor
    if len(problem.x) < len(x):
        images, targets = x.detach(), y.detach().to(torch.float64)
        penalty = solution.objective - problem.data_term(predictor)
        lower = solution.lower_bound
        if solution.method == "least squares":
            lower = _least_error(images, targets)
        if solution.method == "nuclear norm":
            lower = certify(images, targets, problem, predictor, torch.full_like(problem.weights, problem.mu))
        solution = replace(solution, objective=squared_residual(images, targets, predictor) + penalty, lower_bound=lower)
        if negligible and solution.gap > 1e-6:
            least = least_squares(problem)  # without the directions that only rounding of the reduction has left
            value = squared_residual(images, targets, least) + problem.objective(least) - problem.data_term(least)
            solution = replace(solution, predictor=least, objective=value) if value < solution.objective else solution
    predictor = solution.predictor
    if negligible and solution.gap > 1e-6:
        lower = max(solution.lower_bound, _least_error(x.detach(), y.detach().to(torch.float64)))
        solution = replace(solution, lower_bound=lower)
    solution = replace(solution, lower_bound=below(problem, predictor, solution.objective, solution.lower_bound, len(x)))
    # Rounding leaves dust in every block, of which the cost at float64's rank tolerance would make whole components.
    return solution if x.dtype == torch.float64 else replace(solution, predictor=predictor.to(x.dtype))


def _scale(problem: Problem) -> float:
    """A weight decay that is not small: depth 1 adds it to eigenvalues, depth 2 subtracts it from singular values."""
    return problem.pixel**2 if problem.depth == 1 else float(problem.cross_moment.abs().max())


def _least_error(x: Tensor, y: Tensor) -> float:
    """A bound on the least-squares value from the images themselves: a reduction may have rounded away what tells equal columns apart."""
    columns = distinct_columns(x.flatten(1))
    proved = certified_least_error(columns[..., None], y) if 0 < columns.shape[1] < len(x) else 0.0
    return proved if proved > 0 or x.numel() > LARGE else least_error(Problem(x.to(torch.float64), y, 1, 0.0))
