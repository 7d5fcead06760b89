r"""Descents of the penalised problem from many starting points at once, in frequency coordinates.

One frequency of each pair u, −u is stored, with `weights` 2 for a pair and 1 where u = −u: with the real and imaginary parts
of blocks as coordinates the data term is one product with the transformed images, for all starting points together.
"""

import math
from copy import copy
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from linconv.penalties import Schatten, truncate
from linconv.solvers.nuclear import step_metric
from linconv.solvers.problem import Problem
from linconv.solvers.quasi_newton import Late, never
from linconv.spectrum import half_pairs

CHECK_EVERY = 10
CONTINUATION = 6  # powers between 1 and 2/L
REWEIGHTINGS = 8


class Frequencies:
    """A problem in the coordinates of one frequency of each pair, or of some of these; blocks are `(S, I, K, C)`, S of them at once.

    `kept` `(I,)`, where the frequencies stand in the half spectrum; `own`, where u = −u; `weights`, 1 there and else 2;
    `images` `(N, I, C, 2)`, the real coordinates of images with f_k(x) = Σ_u w_u Re Σ_c B_ukc x̂_uc = ⟨B_k, images⟩.
    """

    def __init__(self, problem: Problem):
        _, second, own = half_pairs(problem.grid)
        places = torch.ones_like(problem.weights, dtype=torch.bool)
        mirrored = torch.zeros_like(places)
        places[second], mirrored[own] = False, True
        self.problem = problem
        self.kept: Int64[Tensor, " I"] = places.nonzero()[:, 0]
        self.own: Bool[Tensor, " I"] = mirrored[self.kept]
        self.weights: Float[Tensor, " I"] = torch.where(self.own, 1.0, 2.0).to(problem.weights)
        spectra = problem.blocks(problem.x)[self.kept]  # conj(x̂), (I, N, C)
        self.images: Float[Tensor, "N I C 2"] = torch.view_as_real((self.weights[:, None, None] * spectra).movedim(1, 0).contiguous())

    def part(self, chosen: Int64[Tensor, " J"]) -> "Frequencies":
        """The same with all other blocks at 0."""
        if len(chosen) == len(self.kept):
            return self
        part = copy(self)
        part.__dict__.pop("metric", None)
        part.kept, part.own, part.weights, part.images = self.kept[chosen], self.own[chosen], self.weights[chosen], self.images[:, chosen]
        return part

    @cached_property
    def metric(self) -> Float[Tensor, " I"]:
        """Denominators of gradient steps (`step_metric`)."""
        return step_metric(self.problem)[self.kept]

    def restrict(self, blocks: Complex[Tensor, "F K C"]) -> Complex[Tensor, "I K C"]:
        return blocks[self.kept]

    def extend(self, blocks: Complex[Tensor, "I K C"]) -> Complex[Tensor, "F K C"]:
        """The blocks of half the spectrum."""
        full = blocks.new_zeros(len(self.problem.weights), *blocks.shape[1:])
        full[self.kept] = blocks
        first, second, _ = half_pairs(self.problem.grid)
        full[second] = full[first].conj()
        return self.problem.symmetric(full)

    def outputs(self, blocks: Complex[Tensor, "S I K C"]) -> Float[Tensor, "N S K"]:
        flat = torch.view_as_real(blocks).permute(1, 3, 4, 0, 2).reshape(-1, blocks.shape[0] * blocks.shape[2])
        return (self.images.flatten(1) @ flat).reshape(-1, blocks.shape[0], blocks.shape[2])

    def adjoint(self, slopes: Float[Tensor, "N S K"]) -> Complex[Tensor, "S I K C"]:
        """(1/N) Σ_n slopes_n x̂_n†: the gradient of the data term, in the inner product weighted by `weights`."""
        pulled = (slopes.flatten(1).T @ self.images.flatten(1)) / len(slopes)
        parts = pulled.reshape(*slopes.shape[1:], *self.images.shape[1:])
        return torch.view_as_complex(parts.transpose(1, 2).contiguous() / self.weights[:, None, None, None])

    def data_term(self, blocks: Complex[Tensor, "S I K C"]) -> tuple[Float[Tensor, " S"], Complex[Tensor, "S I K C"]]:
        """(1/N) Σ ℓ(f(x_n), y_n), the constant included, and its gradient."""
        f, problem = self.outputs(blocks), self.problem
        if problem.quadratic:
            slopes = f - problem.y[:, None]
            values = slopes.square().sum((0, 2)) / 2
        else:
            parts = [f[:, s] for s in range(f.shape[1])]
            slopes = torch.stack([problem.loss.gradient(part, problem.y) for part in parts], 1)
            values = torch.stack([problem.loss.value(part, problem.y) for part in parts])
        return problem.constant + values / len(f), self.adjoint(slopes)

    def objective(self, blocks: Complex[Tensor, "S I K C"]) -> Float[Tensor, " S"]:
        """F, without the dust of rounding, which a power p < 1 magnifies."""
        sigma = torch.stack([truncate(s) for s in torch.linalg.svdvals(blocks)])
        return self.data_term(blocks)[0] + self.problem.mu * (self.weights * (sigma**self.problem.p).sum(-1)).sum(-1)


def cut_rank(blocks: Complex[Tensor, "*batch K C"], rank: int | None) -> Complex[Tensor, "*batch K C"]:
    """The `rank` largest components of each block."""
    if rank is None or rank >= min(blocks.shape[-2:]):
        return blocks
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    return (u[..., :rank] * sigma[..., None, :rank]) @ vh[..., :rank, :]


def proximal_gradient(
    space: Frequencies,
    start: Complex[Tensor, "S I K C"],
    steps: int,
    tol: float = 1e-9,
    p: float | None = None,
    mu: float | None = None,
    late: Late = never,
) -> Complex[Tensor, "S I K C"]:
    """Generalised thresholding of gradient steps with extrapolation, restarted row by row where a step goes uphill.

    `p` and `mu` default to those of the problem.  It ends where it is `late`, or where no step is longer than `tol` times the blocks, in
    the metric.
    """
    problem, metric = space.problem, space.metric
    norm, steps_of = Schatten(problem.p if p is None else p), (problem.mu if mu is None else mu) / metric
    scale, spread = (space.weights * metric)[:, None, None], metric[:, None, None]
    momentum = torch.ones(len(start), dtype=spread.dtype, device=spread.device)
    blocks = ahead = start
    for step in range(steps):
        previous = blocks
        moved = norm.prox(ahead - space.data_term(ahead)[1] / spread, steps_of.expand(len(start), -1))
        blocks = cut_rank(moved, problem.max_rank)
        change = blocks - previous
        uphill = (((ahead - blocks) * change.conj()).real * scale).sum((1, 2, 3)) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = blocks + ((momentum - 1) / following)[:, None, None, None] * change
        momentum = following
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            lengths, sizes = ((part.abs().square() * scale).sum((1, 2, 3)) for part in (change, blocks))
            if bool((lengths <= tol**2 * sizes).all()):
                break
        if late():
            break
    return blocks


def continuation(space: Frequencies, convex: Complex[Tensor, "S I K C"], steps: int, late: Late = never) -> Complex[Tensor, "S I K C"]:
    """From the optimum at p = 1 down to p = 2/L, each descent from the one before, the weight of the penalty between the two in ratio."""
    problem = space.problem
    flat = problem.weight_decay * 2 * math.prod(problem.grid) ** -0.5
    blocks = convex
    for k in range(1, CONTINUATION + 1):
        part = k / CONTINUATION
        p, mu = 1 + part * (problem.p - 1), flat ** (1 - part) * problem.mu**part
        blocks = proximal_gradient(space, blocks, steps, 1e-6 if k < CONTINUATION else 1e-9, p, mu, late)
    return blocks


def reweighting(space: Frequencies, convex: Complex[Tensor, "S I K C"], steps: int, late: Late = never) -> Complex[Tensor, "S I K C"]:
    """Nuclear norms reweighted by the slopes p(σ + ε)^{p−1} of the last solution, ε → 0; then a descent of the penalty itself."""
    problem, blocks, spread = space.problem, convex, space.metric[:, None, None]
    largest = torch.linalg.matrix_norm(convex, ord=2).amax(1)[:, None, None]
    for k in range(REWEIGHTINGS):
        sigma = torch.linalg.svdvals(blocks)
        slopes = problem.p * (sigma + largest * 10.0 ** -(1 + k / 2) + 1e-300) ** (problem.p - 1)
        for _ in range(steps):
            if late():
                break
            u, sigma, vh = torch.linalg.svd(blocks - space.data_term(blocks)[1] / spread, full_matrices=False)
            # The weights ascend where singular values descend: thresholding one by one is then the proximal map.
            shrunk = (sigma - problem.mu * slopes / space.metric[:, None]).clamp(min=0)
            blocks = cut_rank((u * shrunk[..., None, :]) @ vh, problem.max_rank)
    return proximal_gradient(space, blocks, 4 * steps, late=late)
