r"""General data at depth ≥ 3: the best local solution that a portfolio of descents finds.

The problem is not convex, and every block at 0 is a strict local minimum along itself.  Which components survive is what local
minima differ in, and no one method finds the best set everywhere.  Here each family of methods makes proposals, cheaply, from
spectral and from random starts; the best are then improved by dropping, adding and exchanging components, with all others
optimised anew, and made stationary by Newton's method.  Nothing is proved: for a lower bound see `linconv.solvers.relaxation`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.solvers.descents import Frequencies, continuation, cut_rank, proximal_gradient, reweighting
from linconv.solvers.exchange import ALIKE, exchange
from linconv.solvers.monitor import Monitor
from linconv.solvers.networks import balanced, blocks_of, descend_networks, newton, prune, random_networks, stationarity, train_networks
from linconv.solvers.nuclear import solve_nuclear
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.quasi_newton import Late, never
from linconv.solvers.ridge import ridge
from linconv.solvers.smooth import smooth

METHOD = "portfolio"
SEED = 0
RANDOM_TOL = 1e-5
CONVEX_TOL, CONVEX_STEPS = 1e-4, 500
# Numbers in the blocks up to which overhead is most of the time, and up to which few steps choose the components.
SMALL, MEDIUM = 500, 8_000


class Effort(NamedTuple):
    """Steps of a member; random networks and their steps; proposals that are improved, and rounds of exchanges."""

    steps: int
    networks: int
    network_steps: int
    improved: int
    rounds: int


# In small, medium and large problems. The more components there are, the longer they take to part into those that live and those that die.
EFFORTS = [Effort(120, 16, 600, 3, 20), Effort(120, 4, 120, 2, 8), Effort(1500, 8, 1500, 4, 12)]
POLISH_STEPS, POLISH_ROUNDS = 1_000, 10
STATIONARY = 1e-10
ROUNDING = 1e-14
MET = 1e-12  # relative distance to a lower bound at which there is nothing left to find
UNDERFLOW = 1e-150


def portfolio(
    problem: Problem, monitor: Monitor | None = None, starts: Sequence[Float[Tensor, "K C *grid"]] = (), lower: float = -math.inf
) -> Solution:
    """The best of all members, made stationary; `members` has the objective that each of them reached.

    For depth ≥ 3.  `starts`, further predictors to descend from; `lower`, a known lower bound, which the solution carries, and which
    ends the search where it is met: where the penalty is large, before the first member, at 0.  `monitor` is called before the first
    and after every member with the best solution so far; where it returns False, that is returned.  Members look at its clock between
    steps, and end with what they have.  Random starts come from a generator with a fixed seed.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(40, 2, 3, 3, dtype=torch.float64, generator=g), torch.randn(40, 2, dtype=torch.float64, generator=g)
    >>> found = portfolio(Problem(x, y, 3, 0.01))
    >>> found.objective <= min(found.members.values()) * (1 + 1e-12)
    True
    """
    monitor = Monitor() if monitor is None else monitor
    space = Frequencies(problem)
    best = torch.zeros_like(space.restrict(problem.cross_moment))
    value = float(space.objective(best[None])[0])
    members: dict[str, float] = {}
    if monitor.attentive and not monitor(_solution(space, best, members, lower)):
        return _solution(space, best, members, lower)
    if value - lower <= MET * value:
        return _solution(space, best, members, lower)
    for name, blocks in _members(space, starts, monitor.late):
        values = space.objective(blocks)
        reached = float(values.min())
        members[name] = min(members.get(name, math.inf), reached)
        # Of equals the later: Newton's method makes stationary what it found.
        if reached <= value * (1 + ROUNDING):
            best, value = blocks[int(values.argmin())], reached
        if monitor.attentive and not monitor(_solution(space, best, members, lower)):
            break
        if value - lower <= MET * value:
            break
    return _solution(space, best, members, lower)


def _solution(space: Frequencies, blocks: Complex[Tensor, "I K C"], members: dict[str, float], lower: float) -> Solution:
    beta = space.problem.predictor(space.extend(blocks))
    if float(beta.abs().max()) < UNDERFLOW:  # on its way to 0, and of no definite rank any more
        beta = torch.zeros_like(beta)
    return Solution(beta, space.problem.objective(beta), lower, METHOD, dict(members))


def _members(
    space: Frequencies, starts: Sequence[Float[Tensor, "K C *grid"]], late: Late
) -> Iterator[tuple[str, Complex[Tensor, "S I K C"]]]:
    """Each member's name with what it found, one after the other; the last ones improve on the first."""
    pool: list[Complex[Tensor, "S I K C"]] = []
    size = len(space.kept) * space.problem.cross_moment.shape[1:].numel()
    effort = EFFORTS[(size > SMALL) + (size > MEDIUM)]
    for name, blocks in _proposals(space, starts, effort, size > SMALL, late):
        pool.append(blocks)
        yield name, blocks
    proposals, number = torch.cat(pool), effort.improved
    values = space.objective(proposals)
    if 2 * int((values <= values.min() * (1 + ALIKE)).sum()) >= len(values):  # most agree: there are hardly others to improve
        number = 1
    best = exchange(space, _distinct(space, proposals, number, effort.steps, late), effort.rounds, late)[0][0]
    yield "exchange", best[None]
    yield "Newton", polish(space, best, late)[None]


def _proposals(
    space: Frequencies, starts: Sequence[Float[Tensor, "K C *grid"]], effort: Effort, several_ways: bool, late: Late
) -> Iterator[tuple[str, Complex[Tensor, "S I K C"]]]:
    problem = space.problem
    rank = problem.max_rank
    convex_problem = replace(problem, depth=2, max_rank=None)
    flat = replace(problem, depth=1, max_rank=None)
    linear = ridge(flat) if problem.quadratic else smooth(flat, CONVEX_TOL, monitor=Monitor(on_progress=lambda _: not late()))
    weights = torch.full_like(problem.weights, convex_problem.mu)
    convex = solve_nuclear(convex_problem, weights, CONVEX_TOL, max_steps=CONVEX_STEPS, proceed=lambda *_: not late())[0]
    spectral = [space.restrict(blocks) for blocks in (problem.blocks(linear.predictor), convex, *map(problem.blocks, starts))]
    several = torch.stack([*spectral, torch.zeros_like(spectral[0])])
    yield "proximal gradient", proximal_gradient(space, cut_rank(several, rank), effort.steps, late=late)
    if several_ways:  # where random networks are cheap they find more, and what these find too
        yield "continuation", continuation(space, spectral[1][None], effort.steps // 3, late)
        yield "reweighting", reweighting(space, spectral[1][None], effort.steps // 20, late)
    # Penalised by a sum of σ, not of σ^p, the convex optimum is too small: also twice it.
    nets = balanced(space, torch.stack([*spectral, 2 * spectral[1]]))
    random = random_networks(space, effort.networks, torch.Generator().manual_seed(SEED))
    ends = prune(blocks_of(space, train_networks(space, torch.cat([nets, random]), effort.network_steps, RANDOM_TOL, late)))
    yield "networks, spectral starts", ends[: len(nets)]
    yield "networks, random starts", ends[len(nets) :]


def _distinct(
    space: Frequencies, blocks: Complex[Tensor, "S I K C"], number: int, steps: int, late: Late
) -> list[Complex[Tensor, "I K C"]]:
    """The best `number` of the proposals whose objectives differ, each descended further."""
    values = space.objective(blocks)
    chosen: list[int] = []
    for index in values.argsort().tolist():
        if len(chosen) < number and all(abs(float(values[index] - values[other])) > ALIKE * float(values[other]) for other in chosen):
            chosen.append(index)
    return list(descend_networks(space, blocks[chosen], steps, late=late))


def polish(space: Frequencies, blocks: Complex[Tensor, "I K C"], late: Late = never) -> Complex[Tensor, "I K C"]:
    """A stationary point at or below the blocks: L-BFGS, until components that die are gone, then Newton's method."""
    for _ in range(POLISH_ROUNDS):
        blocks = descend_networks(space, blocks[None], POLISH_STEPS, STATIONARY, late)[0]
        exact = newton(space, blocks, late)
        before, after = space.objective(torch.stack([blocks, exact])).tolist()
        # A saddle point, to which Newton's method goes as well, may lie above.
        if after <= before * (1 + ROUNDING):
            blocks = exact
        if stationarity(space, blocks) <= STATIONARY or late():
            break
    return blocks
