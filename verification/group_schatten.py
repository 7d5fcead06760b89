r"""The cost of a linear network that is equivariant under a finite group is a sum of Schatten norms over its irreducible representations.

On functions $x : G \to R^C$ a layer is the group convolution $(w \star x)(g) = \sum_h w(h)\, x(h^{-1} g)$, and the readout contracts
with $w^L : G \to R^{K \times C_{L-1}}$. For a predictor $\beta : G \to R^{K \times C}$ and irreducible orthogonal representations $\rho$
of degree $d_\rho$ let $\hat\beta_\rho = \sum_g \beta(g) \otimes \rho(g)$, a matrix of $K d_\rho$ rows and $C d_\rho$ columns. With hidden
widths of at least min(K, C)

$$R_L(\beta) = \min \Big\{ \sum_l \|w^l\|^2 : \text{the network computes } \beta \Big\}
= \frac{L}{|G|} \sum_\rho d_\rho\, \|\hat\beta_\rho\|_{S_{2/L}}^{2/L} .$$

For a cyclic group, whose $d_\rho$ are 1, it is the formula for one-dimensional convolutions. Where all irreducible representations are
real, as for $S_3$ and $D_4$, the blocks are independent real matrices and balanced factors of each attain it.

Source: Lawrence, Georgiev, Dienes, Kiani, Implicit bias of linear equivariant networks, arXiv 2110.06084, for the Schatten norms of the
blocks as the implicit bias of training; the cost, with its factors, is derived here as in docs/theorem410.md.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import permutations, product
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float, Int
from scipy.optimize import minimize

import linconv as lc
from linconv.claims import Check, Progress, agree, attains, control, main, proved
from verification._networks import one_thread

Array = np.ndarray

FAST = {"depth": 3, "group": "S3", "starts": 1}
SEARCHED: dict[str, Any] = {"tolerance": 1e-6, "reason": "the search ends where the cost changes by less than 1e-8 of it"}


@dataclass(frozen=True)
class Group:
    """A finite group: `table[g, h]` is the index of gh, `inverse[g]` that of g⁻¹, and its irreducible representations (|G|, d, d)."""

    table: Int[Array, "G G"]
    irreducible: tuple[Float[Array, "G d d"], ...]

    @property
    def order(self) -> int:
        return len(self.table)

    @property
    def inverse(self) -> Int[Array, " G"]:
        return np.argmin(self.table, axis=1)  # the identity has index 0


def claim(
    *,
    group: Annotated[Literal["S3", "D4"], "permutations of 3 things, or symmetries of the square"] = "D4",
    depth: Annotated[int, Interval(ge=2, le=6), "number of layers L, the readout counted"] = 4,
    channels: Annotated[int, Interval(ge=1, le=4), "input channels C"] = 2,
    outputs: Annotated[int, Interval(ge=1, le=4), "outputs K"] = 3,
    starts: Annotated[int, Interval(ge=1, le=20), "random starts of the search over weights"] = 2,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of predictors, weights and starts"] = 0,
) -> Iterator[Check | Progress]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Float[Array, "..."]:
        return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()

    chosen = symmetric(3) if group == "S3" else square()
    yield from group_checks(group, chosen)
    beta, other = normal(chosen.order, outputs, channels), normal(chosen.order, channels, 2)
    yield from transform_checks(group, chosen, beta, other)
    yield from cost_checks(group, chosen, beta, depth)
    yield from weights_checks(group, chosen, beta, depth)
    yield Progress("search over weights")
    yield from search_checks(group, chosen, normal, depth, starts)
    yield from cyclic_checks(normal(7, outputs, channels), depth)


def of_matrices(elements: list[Float[Array, "d d"]], representations: Callable[[Float[Array, "d d"]], list[Float[Array, "e e"]]]) -> Group:
    """The group of the given matrices, identity first, with representations given as functions of the matrix."""
    keys = {tuple(np.rint(matrix).astype(int).ravel()): i for i, matrix in enumerate(elements)}
    table = np.array([[keys[tuple(np.rint(a @ b).astype(int).ravel())] for b in elements] for a in elements])
    images = zip(*(representations(matrix) for matrix in elements), strict=True)
    return Group(table, tuple(np.stack(image) for image in images))


def symmetric(n: int) -> Group:
    """S₃ as permutation matrices: trivial, sign, and what permutations do to vectors whose entries add up to 0."""
    elements = [np.eye(n)[list(p)] for p in permutations(range(n))]
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    return of_matrices(elements, lambda g: [np.eye(1), np.full((1, 1), np.rint(np.linalg.det(g))), plane @ g @ plane.T])


def square() -> Group:
    """D₄ as the matrices that permute and reflect the axes: four signs, and the matrices themselves."""
    elements = [np.diag(signs) @ np.eye(2)[list(p)] for p in permutations(range(2)) for signs in product((1, -1), repeat=2)]

    def representations(g: Float[Array, "2 2"]) -> list[Float[Array, "d d"]]:
        turn, axes = np.rint(np.linalg.det(g)), 1.0 if g[0, 0] else -1.0
        return [*(np.full((1, 1), sign) for sign in (1.0, turn, axes, turn * axes)), g]

    return of_matrices(elements, representations)


def transform(w: Float[Array, "G K C"], group: Group) -> list[Float[Array, "rows columns"]]:
    """Σ_g w(g) ⊗ ρ(g) for each irreducible representation."""
    return [np.einsum("gkc,gij->kicj", w, rho).reshape(w.shape[1] * rho.shape[1], -1) for rho in group.irreducible]


def inverse_transform(blocks: list[Float[Array, "rows columns"]], group: Group) -> Float[Array, "G K C"]:
    """w(g) = (1/|G|) Σ_ρ d_ρ tr_ρ(ρ(g)ᵀ ŵ_ρ), the trace over the representation."""
    parts = []
    for block, rho in zip(blocks, group.irreducible, strict=True):
        d = rho.shape[1]
        split = block.reshape(len(block) // d, d, -1, d)
        parts.append(d / group.order * np.einsum("kicj,gij->gkc", split, rho))
    return np.asarray(sum(parts))


def dense(w: Any, group: Group) -> Any:
    """The |G|K × |G|C matrix of x ↦ w ⋆ x, entry ((g, k), (h, c)) being w(g h⁻¹)[k, c]; of a tensor it is one."""
    there = group.table[:, group.inverse]
    k, c = w.shape[1:]
    picked = w[torch.from_numpy(there)] if isinstance(w, torch.Tensor) else w[there]
    return picked.swapaxes(1, 2).reshape(group.order * k, group.order * c)


def schatten(sigma: Float[Array, " n"], depth: int) -> float:
    return float((sigma ** (2 / depth)).sum())


def formula(beta: Float[Array, "G K C"], group: Group, depth: int, *, weighted: bool = True) -> float:
    """(L/|G|) Σ_ρ d_ρ ‖β̂_ρ‖_{S_{2/L}}^{2/L}; not `weighted`, the d_ρ are left out."""
    blocks = zip(transform(beta, group), group.irreducible, strict=True)
    parts = [(rho.shape[1] if weighted else 1) * schatten(np.linalg.svd(block, compute_uv=False), depth) for block, rho in blocks]
    return depth / group.order * float(sum(parts))


def group_checks(name: str, group: Group) -> Iterator[Check]:
    """The representations are ones, and all of them: products, orthogonality of their entries, Σ d² = |G|."""
    table, reps = group.table, group.irreducible
    n = range(group.order)
    laws = [table[table[a, b], c] == table[a, table[b, c]] for a in n for b in n for c in n]
    yield proved(f"{name}: associativity", cases=len(laws), failures=laws.count(False), reason="all triples")
    products = np.concatenate([(rho[:, None] @ rho[None]).ravel() for rho in reps])
    yield agree(f"{name}: ρ(g)ρ(h) = ρ(gh)", products, np.concatenate([rho[table].ravel() for rho in reps]))
    entries = np.concatenate([math.sqrt(rho.shape[1] / group.order) * rho.reshape(group.order, -1) for rho in reps], axis=1)
    yield agree(f"{name}: entries of all ρ, times √(d/|G|), are an orthonormal basis", entries.T @ entries, np.eye(group.order))


def transform_checks(name: str, group: Group, w: Float[Array, "G K C"], v: Float[Array, "G C E"]) -> Iterator[Check]:
    """Convolution, by its definition, is the product of the blocks; squares are preserved with the weights d_ρ/|G|."""
    convolution = np.zeros((group.order, w.shape[1], v.shape[2]))
    for g, h in product(range(group.order), repeat=2):
        convolution[group.table[h, g]] += w[h] @ v[g]
    found = np.concatenate([block.ravel() for block in transform(convolution, group)])
    pairs = list(zip(transform(w, group), transform(v, group), strict=True))
    yield agree(f"{name}: the transform of w ⋆ v is ŵ_ρ v̂_ρ", found, np.concatenate([(a @ b).ravel() for a, b in pairs]))
    if w.shape[1] == w.shape[2] == v.shape[2]:
        yield control(f"{name}: v̂_ρ ŵ_ρ", agree("", found, np.concatenate([(b @ a).ravel() for a, b in pairs])))
    transposed = [transform(u[group.inverse], group) for u in (w, v)]
    wrong = np.concatenate([(a @ b).ravel() for a, b in zip(*transposed, strict=True)])
    yield control(f"{name}: representations of the inverse", agree("", found, wrong))
    sums = sum(rho.shape[1] / group.order * float((b**2).sum()) for b, rho in zip(transform(w, group), group.irreducible, strict=True))
    yield agree(f"{name}: ‖w‖² = (1/|G|) Σ d_ρ ‖ŵ_ρ‖²", sums, float((w**2).sum()), size=w.size)
    yield agree(f"{name}: the inverse transform", inverse_transform(transform(w, group), group), w)


def cost_checks(name: str, group: Group, beta: Float[Array, "G K C"], depth: int) -> Iterator[Check]:
    """The formula against the dense matrix of the convolution, each of whose blocks occurs d_ρ times: no representation is needed."""
    sigma = np.linalg.svd(dense(beta, group), compute_uv=False)
    expected = depth / group.order * schatten(sigma, depth)
    found = formula(beta, group, depth)
    yield agree(f"{name}: the formula, and singular values of the dense matrix", found, expected, size=dense(beta, group).size)
    yield control(f"{name}: weights d_ρ left out", agree("", formula(beta, group, depth, weighted=False), expected))
    on_a_circle = lc.representation_cost(torch.from_numpy(beta).permute(1, 2, 0).contiguous(), depth).lower
    yield control(f"{name}: the cyclic group of the same order", agree("", on_a_circle, expected))
    yield control(f"{name}: exponent of the next depth", agree("", depth / group.order * schatten(sigma, depth + 1), expected))


def weights_checks(name: str, group: Group, beta: Float[Array, "G K C"], depth: int) -> Iterator[Check]:
    """Balanced factors of each block, back in space: what they compute, and what they cost."""
    layers: list[list[Array]] = [[] for _ in range(depth)]
    width = min(beta.shape[1:])
    for block in transform(beta, group):
        u, sigma, vh = np.linalg.svd(block, full_matrices=False)
        root = np.diag(sigma ** (1 / depth))
        for layer, factor in zip(layers, [root @ vh, *[root] * (depth - 2), u @ root], strict=True):
            layer.append(factor)
    weights = [inverse_transform(blocks, group) for blocks in layers]
    maps = reduce(lambda first, w: dense(w, group) @ first, weights[1:], dense(weights[0], group))
    target = dense(beta, group)
    yield agree(f"{name}: explicit weights of width {width} compute β", maps, target, size=depth * len(target))
    squares = sum(float((w**2).sum()) for w in weights)
    yield agree(f"{name}: Σ‖w‖² of the explicit weights", squares, formula(beta, group, depth), size=depth * len(target))


def search_checks(name: str, group: Group, normal: Callable[..., Array], depth: int, starts: int) -> Iterator[Check]:
    """One channel in every layer: the last layer is what the others leave of β, and L-BFGS looks for the least Σ‖w‖² over them."""
    beta = normal(group.order, 1, 1)
    target = torch.from_numpy(dense(beta, group))

    def objective(flat: Float[Array, " m"]) -> tuple[float, Float[Array, " m"]]:
        free = torch.from_numpy(flat).reshape(depth - 1, group.order, 1, 1).requires_grad_()
        before = reduce(lambda first, w: dense(w, group) @ first, free[1:], dense(free[0], group))
        last = torch.linalg.solve(before, target, left=False)  # the matrix of a convolution, in which each weight occurs |G| times
        cost = free.square().sum() + last.square().sum() / group.order
        (slope,) = torch.autograd.grad(cost, free)
        return float(cost.detach()), slope.numpy().ravel()

    begin = [0.3 * normal(depth - 1, group.order) for _ in range(starts)]
    with one_thread():
        for w in begin:
            w[:, 0] += 1  # near the identity, where all layers are invertible
        options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-10}
        search: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": options}
        least = min(float(minimize(objective, w.ravel(), **search).fun) for w in begin)
    predicted = formula(beta, group, depth)
    yield attains(f"{name}, one channel: the least Σ‖w‖² found", least, predicted, **SEARCHED)
    yield control(f"{name}, one channel: a minimum raised by 10⁻³", attains("", least, predicted * (1 + 1e-3), **SEARCHED))


def cyclic_checks(beta: Float[Array, "n K C"], depth: int) -> Iterator[Check]:
    """The group of shifts of a circle: the dense matrix of group convolutions, and the library's cost."""
    n = np.arange(len(beta))
    shifts = Group((n[:, None] + n) % len(beta), ())
    predicted = depth / len(beta) * schatten(np.linalg.svd(dense(beta, shifts), compute_uv=False), depth)
    found = lc.representation_cost(torch.from_numpy(beta).permute(1, 2, 0).contiguous(), depth).lower
    yield agree("cyclic group of order 7: the library's cost of a one-dimensional convolution", found, predicted, size=beta.size)


if __name__ == "__main__":
    main(claim)
