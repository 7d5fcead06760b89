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
from linconv.spectrum import half_pairs

LARGEST = 1e150  # singular value of which bounds can be computed


def nonconvex(
    problem: Problem,
    tol: float,
    start: Float[Tensor, "K C *grid"] | None,
    monitor: Monitor,
    max_nodes: int | float,
    checkpoint: str | os.PathLike[str] | None,
) -> Solution:
    """The best predictor that the portfolio finds and the best lower bound, after at most `max_nodes` nodes of branch and bound.

    Branch and bound needs squared error and depth ≥ 3; narrow networks of depth 2 have the bound of wide ones.  Where the weight decay
    is so small for the depth that singular values whose squares overflow are not excluded, there is the first bound alone.
    """
    first = first_bound(problem)
    found = portfolio(problem, monitor, () if start is None else (start,), first)
    if monitor.stopped or found.gap <= tol:
        return found
    if float(radii(problem, found.objective).max()) > LARGEST:
        return found
    if problem.depth == 2:
        lower = solve_nuclear(problem, torch.full_like(problem.weights, problem.mu), tol, proceed=lambda *_: not monitor.late())[1]
        return replace(found, lower_bound=max(lower, first))
    if max_nodes == 0 or not problem.quadratic:
        lower = root_bound(problem, found.objective, found.objective * (1 - tol), monitor)[1]
        return replace(found, lower_bound=max(lower, first))
    blocks = problem.blocks(found.predictor)
    ended = branch_and_bound(problem, blocks, found.objective, tol=tol, max_nodes=max_nodes, monitor=monitor, checkpoint=checkpoint)
    return replace(ended, lower_bound=max(ended.lower_bound, first), members=found.members)


def first_bound(problem: Problem) -> float:
    """A lower bound for one adjoint: the dual value where t^p ≥ R^{p−1}t up to R, the largest singular value that F(0) allows (`radii`)."""
    zero = torch.zeros_like(problem.predictor(problem.cross_moment))
    value = problem.objective(zero)
    bound = dual_bound(problem, problem.residual(zero), problem.mu * radii(problem, value) ** (problem.p - 1))
    return min(max(bound, 0.0), value) if math.isfinite(bound) else 0.0


def radii(problem: Problem, value: float) -> Float[Tensor, " F"]:
    """R_u ≥ ‖B_u‖_{S_p} ≥ σ_1(B_u) wherever F ≤ `value`, F at a known predictor: m_u μ‖B_u‖_{S_p}^p ≤ value − constant.

    For no data term is below the constant, and of a real predictor B_{−u} is the conjugate of B_u, with the same norm: in the penalty,
    the sum over the full spectrum, both stand, so that m_u = 2 unless u = −u.  That is more than `weights` at frequencies which the
    half spectrum stores beside their mirrors; there R is the smaller by 2^{L/2}.
    """
    _, _, own = half_pairs(problem.grid)
    mult = torch.full_like(problem.weights, 2.0)
    mult[own] = 1.0
    return (max(value - problem.constant, 1e-15 * value) / (mult * problem.mu)) ** (1 / problem.p)
