r"""Better local minima by dropping, adding and exchanging components, with all others optimised anew.

A component is t·uv† at one frequency, and at −u as its mirror.  Along it, with everything else fixed, the objective is the data
term, at most ½ht² − gt, plus μt^p: what a move gains at once is known for all components from one gradient.  That ranks
the moves; what they gain in the end is found by descending from the most promising of them, all at once.
"""

from collections.abc import Sequence
from operator import itemgetter

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.solvers.descents import Frequencies
from linconv.solvers.networks import RANK, descend_networks
from linconv.solvers.quasi_newton import Late, never

MOVES = 12  # of either kind, that are tried in a round
PARTNERS = 8  # of the best moves, that are tried in pairs
KICKS = 12
FIRST_LOOK, SECOND_LOOK = 15, 60  # steps of a descent before the worse half is given up, and after
BETTER = 1e-10  # relative gain that counts
ALIKE = 1e-6  # relative difference of objectives below which two solutions count as one
SEED = 1
Improved = tuple[Complex[Tensor, "I K C"], float]  # blocks and the objective there
Ends = tuple[Complex[Tensor, "I K C"], float, Float[Tensor, " S"]]  # the best of some descents, the objective there, and those of all


def exchange(space: Frequencies, starts: Sequence[Complex[Tensor, "I K C"]], rounds: int, late: Late = never) -> list[Improved]:
    """Each of the starts after at most `rounds` rounds of improving moves, with its objective, the best first.

    All of them at once, since in small problems a descent costs its steps and hardly its number of starts.  Of those that have become
    alike one goes on; all end where it is `late`.
    """
    values = space.objective(torch.stack(list(starts))).tolist()
    found: list[Improved] = sorted(zip(starts, values, strict=True), key=itemgetter(1))
    going = list(range(len(found)))
    for _ in range(rounds):
        going = [k for k in going if not any(_alike(found[k][1], found[other][1]) for other in range(k))]
        moves = {k: torch.cat([drops(space, found[k][0]), additions(space, found[k][0])]) for k in going}
        going = [k for k in going if len(moves[k])]  # else there is nothing to drop, and nothing that the gradient could add
        if not going or late():
            break
        first = _race(space, [moves[k] for k in going], late)
        starts = [_combined(space, found[k], moves[k], ends) for k, ends in zip(going, first, strict=True)]
        second = first if late() else _race(space, starts, late)
        improved = {k: min(one[:2], two[:2], key=itemgetter(1)) for k, one, two in zip(going, first, second, strict=True)}
        going = [k for k in going if improved[k][1] < found[k][1] * (1 - BETTER)]
        for k in going:
            found[k] = improved[k]
    return sorted(found, key=itemgetter(1))


def _alike(value: float, other: float) -> bool:
    return abs(value - other) <= ALIKE * other


def _combined(space: Frequencies, found: Improved, moved: Complex[Tensor, "S I K C"], ends: Ends) -> Complex[Tensor, "T I K C"]:
    """Where one move has helped, all that did at once, which often helps more than the best alone; else pairs of the best, and kicks."""
    (blocks, value), (best, _, reached) = found, ends
    helped = value - reached > BETTER * value
    if bool(helped.any()):
        return torch.stack([blocks + (moved[helped] - blocks).sum(0), best])
    order = reached.argsort()[:PARTNERS]
    i, j = torch.triu_indices(len(order), len(order), 1, device=order.device)
    return torch.cat([moved[order[i]] + moved[order[j]] - blocks, kicks(space, blocks)])


def _race(space: Frequencies, groups: Sequence[Complex[Tensor, "_ I K C"]], late: Late) -> list[Ends]:
    """For each group of starts the best end of a descent, its objective, and the objectives of all ends; the worse half ends early."""
    ends = descend_networks(space, torch.cat(list(groups)), FIRST_LOOK, late=late)
    reached = space.objective(ends)
    sizes = [len(group) for group in groups]
    firsts = [sum(sizes[:k]) for k in range(len(sizes))]
    halves = [at + part.argsort()[: max(4, (len(part) + 1) // 2)] for at, part in zip(firsts, reached.split(sizes), strict=True)]
    if not late():
        kept = torch.cat(halves)
        ends[kept] = descend_networks(space, ends[kept], SECOND_LOOK, late=late)
        reached[kept] = space.objective(ends[kept])
    parts = zip(ends.split(sizes), reached.split(sizes), strict=True)
    return [(part[int(values.argmin())], float(values.min()), values) for part, values in parts]


def drops(space: Frequencies, blocks: Complex[Tensor, "I K C"]) -> Complex[Tensor, "S I K C"]:
    """The blocks without one component each, those first whose loss costs least at a stationary point: ½hσ² − (1−p)μσ^p."""
    problem = space.problem
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    active = sigma > RANK * sigma.max()
    loss = curvature(space, vh) * sigma.square() / 2 - (1 - problem.p) * problem.mu * torch.where(active, sigma, 1.0) ** problem.p
    loss = torch.where(active, loss * space.weights[:, None], torch.inf).flatten()
    order = loss.argsort()[: min(MOVES, int(active.sum()))]
    i, j = order // sigma.shape[1], order % sigma.shape[1]
    moved = blocks.expand(len(order), *blocks.shape).clone()
    moved[range(len(order)), i] -= sigma[i, j, None, None] * u[i, :, j, None] * vh[i, j, None, :]
    return moved


def additions(space: Frequencies, blocks: Complex[Tensor, "I K C"]) -> Complex[Tensor, "S I K C"]:
    """The blocks with one component more each: the top singular pair of minus the gradient off row and column space, at its best t > 0."""
    problem = space.problem
    p, mu = problem.p, problem.mu
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    active = sigma > RANK * sigma.max()
    u, vh = u * active[:, None, :], vh * active[:, :, None]
    pull = -space.data_term(blocks[None])[1][0]
    pull = pull - u @ (u.mH @ pull)
    pull = pull - (pull @ vh.mH) @ vh
    left, g, right = (part for part in torch.linalg.svd(pull, full_matrices=False))
    left, g, right = left[:, :, :1], g[:, 0], right[:, :1]
    h = curvature(space, right)[:, 0].clamp(min=1e-300)
    # Newton's method from g/h falls to the larger root of ht + μp t^{p−1} = g; without one, to where the slope is least.
    bend = (mu * p * (1 - p) / h) ** (1 / (2 - p))
    t = torch.maximum(g / h, bend)
    for _ in range(8):
        slope = h - mu * p * (1 - p) * t.clamp(min=1e-150) ** (p - 2)
        t = torch.maximum(t - (h * t - g + mu * p * t ** (p - 1)) / slope.clamp(min=1e-3 * h), bend)
    gain = (g * t - h * t.square() / 2 - mu * t**p) * space.weights
    rank = min(blocks.shape[-2:]) if problem.max_rank is None else problem.max_rank
    gain = torch.where((active.sum(-1) < rank) & (g > 0) & (t > 0), gain, -torch.inf)
    order = gain.argsort(descending=True)[: min(MOVES, int(torch.isfinite(gain).sum()))]
    moved = blocks.expand(len(order), *blocks.shape).clone()
    moved[range(len(order)), order] += t[order, None, None] * left[order] * right[order]
    return moved


def kicks(space: Frequencies, blocks: Complex[Tensor, "I K C"]) -> Complex[Tensor, "S I K C"]:
    """The blocks with random ones added, of a third of the size and of the same."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(KICKS, *blocks.shape, 2, dtype=torch.float64, generator=generator).to(blocks.device)
    loose = torch.view_as_complex(noise)
    loose[:, space.own] = loose[:, space.own].real.to(loose.dtype)
    size = blocks.abs().square().mean().sqrt()
    factors = torch.tensor([1 / 3, 1.0], dtype=torch.float64, device=blocks.device).repeat(KICKS // 2)
    return blocks + size * factors[:, None, None, None] * loose


def curvature(space: Frequencies, rows: Complex[Tensor, "I r C"]) -> Float[Tensor, "I r"]:
    """v†S_u v for rows v†: the curvature of the data term along uv†, up to the cross terms of a pair, which at most double it."""
    moments = space.problem.second_moments[space.kept]
    return space.problem.loss.smoothness * ((rows @ moments) * rows.conj()).sum(-1).real
