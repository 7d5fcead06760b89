r"""General data at depth ≥ 3: a portfolio for the upper bound, a relaxation for the lower one, branch and bound to bring them together."""

import math
import os
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.solvers.branch import branch_and_bound
from linconv.solvers.monitor import Monitor
from linconv.solvers.nuclear import dual_bound, solve_nuclear
from linconv.solvers.portfolio import portfolio
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.relaxation import root_bound


def nonconvex(
    problem: Problem,
    tol: float,
    start: Float[Tensor, "K C *grid"] | None,
    monitor: Monitor,
    max_nodes: int | float,
    checkpoint: str | os.PathLike[str] | None,
) -> Solution:
    """The best predictor that the portfolio finds and the best lower bound, after at most `max_nodes` nodes of branch and bound.

    Branch and bound needs squared error and depth ≥ 3; narrow networks of depth 2 have the bound of wide ones.
    """
    first = first_bound(problem)
    watched = Monitor(on_progress=lambda found: monitor(replace(found, lower_bound=first))) if monitor.attentive else None
    found = replace(portfolio(problem, watched, () if start is None else (start,)), lower_bound=first)
    if monitor.stopped:
        return found
    if problem.depth == 2:
        lower = solve_nuclear(problem, torch.full_like(problem.weights, problem.mu), tol)[1]
        return replace(found, lower_bound=max(lower, first))
    if max_nodes == 0 or not problem.quadratic:
        lower = root_bound(problem, found.objective, found.objective * (1 - tol), monitor)[1]
        return replace(found, lower_bound=max(lower, first))
    blocks = problem.blocks(found.predictor)
    ended = branch_and_bound(problem, blocks, found.objective, tol=tol, max_nodes=max_nodes, monitor=monitor, checkpoint=checkpoint)
    return replace(ended, lower_bound=max(ended.lower_bound, first), members=found.members)


def first_bound(problem: Problem) -> float:
    """A lower bound for one adjoint: t^p ≥ R^{p−1}t up to the largest singular value R that F(0) allows, and the dual value there.

    At an optimum weights_u μ‖B_u‖_{S_p}^p is at most F(0) less what no predictor can change.
    """
    zero = torch.zeros_like(problem.predictor(problem.cross_moment))
    value = problem.objective(zero)
    radius = (max(value - problem.constant, 1e-15 * value) / (problem.weights * problem.mu)) ** (1 / problem.p)
    bound = dual_bound(problem, problem.residual(zero), problem.mu * radius ** (problem.p - 1))
    return min(max(bound, 0.0), value) if math.isfinite(bound) else 0.0
