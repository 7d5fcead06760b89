r"""Weight decay on a deep linear network is a Schatten penalty on its matrix, and on a diagonal network a bridge penalty.

For every matrix A and depth L, over all factorisations whose hidden widths are at least rank A,

$$\min_{W_L \cdots W_1 = A}\ \sum_{l=1}^{L} \|W_l\|_F^2 \;=\; L\, \|A\|_{S_{2/L}}^{2/L} \;=\; L \sum_i \sigma_i(A)^{2/L},$$

and for every vector $\beta$, the product taken entry by entry,

$$\min_{u_1 \odot \cdots \odot u_L = \beta}\ \sum_{l=1}^{L} \|u_l\|^2 \;=\; L \sum_i |\beta_i|^{2/L}.$$

A fully connected network is a convolutional one on a single site. A convolutional network with one channel in every layer, full
kernels and D sites is diagonal in the orthonormal Fourier basis: with coefficients $b_u$ its cost is $L\,D^{-(L-1)/L}\sum_u |b_u|^{2/L}$.

Source: Dai, Karzand, Srebro, Representation costs of linear neural networks: analysis and design, NeurIPS 2021; proofs derived here:
$\|A\|_{S_{2/L}} \le \prod_l \|W_l\|_F$ (Hölder) and the inequality of the means, with equality for balanced factors.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval, Len
from jaxtyping import Float
from scipy.optimize import minimize

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Progress, agree, at_most, attains, control, main
from verification._networks import least_gauge, one_thread

Array = np.ndarray

FAST = {"depth": 3, "draws": 1}
SEARCHED: dict[str, Any] = {"tolerance": 1e-6, "reason": "the search ends where steps of 1e-3 change the cost by 1e-6 of it"}
FACTORISATIONS = 20


def claim(
    *,
    depth: Annotated[int, Interval(ge=2, le=12), "number of layers L"] = 4,
    inputs: Annotated[int, Interval(ge=2, le=8), "columns of the matrix, inputs of the network"] = 3,
    outputs: Annotated[int, Interval(ge=2, le=8), "rows of the matrix, outputs of the network"] = 4,
    grid: Annotated[tuple[Annotated[int, Interval(ge=2, le=16)], ...], Len(1, 3), "sites of the one-channel network, H W"] = (3, 5),
    draws: Annotated[int, Interval(ge=1, le=50), "number of random matrices and vectors"] = 3,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the matrices, vectors and searches"] = 0,
) -> Iterator[Check | Progress]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Float[Array, "..."]:
        return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()

    full = [normal(outputs, inputs) for _ in range(draws)]
    rank_one = [normal(outputs, 1) @ normal(1, inputs) for _ in range(draws)]
    yield from matrix_checks(full + rank_one, depth)
    yield Progress("search over all factorisations of a matrix")
    yield from factorisation_checks(normal, inputs, outputs, depth, generator)
    yield Progress("search over all factorisations of a vector")
    yield from diagonal_checks([normal(math.prod(grid)) for _ in range(draws)], depth, generator)
    yield from one_channel_checks([normal(1, 1, *grid) for _ in range(draws)], depth)
    yield from controls(full, depth)


def bridge(values: Float[Array, " n"], depth: int, exponent: float | None = None) -> float:
    """L Σ|v|^{2/L} over the entries above 1e-13 of the largest: smaller ones are rounding, which a small power would blow up."""
    sizes = np.abs(values)
    return float(depth * (sizes[sizes > 1e-13 * sizes.max()] ** (exponent or 2 / depth)).sum())


def schatten(matrix: Float[Array, "K C"], depth: int, exponent: float | None = None) -> float:
    return bridge(np.linalg.svd(matrix, compute_uv=False), depth, exponent)


def on_one_site(matrix: Float[Array, "K C"]) -> torch.Tensor:
    return torch.from_numpy(matrix.copy())[:, :, None]


def product(net: lc.LinearCNN) -> Float[Array, "K C"]:
    """W_L ⋯ W_1 of the layers of a network on one site."""
    return reduce(lambda first, w: w @ first, [w.detach().numpy()[..., 0] for w in net.weights])


def matrix_checks(matrices: list[Float[Array, "K C"]], depth: int) -> Iterator[Check]:
    """The library's cost on one site, and its cheapest network there: both cost the Schatten sum, and the network is the matrix."""
    predicted = [schatten(a, depth) for a in matrices]
    costs = [lc.representation_cost(on_one_site(a), depth).lower for a in matrices]
    yield agree("matrix: representation cost on one site", costs, predicted, draws=len(matrices))
    nets = [lc.minimal_network(on_one_site(a), depth) for a in matrices]
    squares = [sum(float(w.detach().square().sum()) for w in net.weights) for net in nets]
    yield agree("matrix: Σ‖W‖² of explicit factors", squares, predicted, draws=len(matrices))
    maps = np.stack([product(net) for net in nets])
    yield agree("matrix: the product of the explicit factors", maps, np.stack(matrices), size=depth * maps.size, draws=len(matrices))
    # Reversing the rows of the last factor keeps every norm: the cost alone would not notice.
    reversed_rows = agree("", maps[:, ::-1], np.stack(matrices), size=depth * maps.size)
    yield control("matrix: factors of the same cost with the outputs in reverse order", reversed_rows)


def factorisation_checks(
    normal: Callable[..., Array], inputs: int, outputs: int, depth: int, generator: torch.Generator
) -> Iterator[Check]:
    """Any factorisation costs at least the Schatten sum, and the best change of basis between the layers attains it."""
    r = min(inputs, outputs)
    costs, bounds = [], []
    for width in (r, 2 * r):
        for _ in range(FACTORISATIONS):
            widths = [inputs, *[width] * (depth - 1), outputs]
            factors = [normal(b, a) for a, b in pairwise(widths)]
            costs.append(sum(float((w**2).sum()) for w in factors))
            bounds.append(schatten(reduce(lambda first, w: w @ first, factors), depth))
    name = f"matrix: the Schatten sum is at most the cost of random factorisations, widths {r} and {2 * r}"
    yield at_most(name, bounds, costs, draws=len(costs))
    net = lc.LinearCNN(inputs, [r] * (depth - 1), outputs, (1,), generator=generator)
    with one_thread():
        _, found = least_gauge(net, generator)
    predicted = schatten(product(net), depth)
    yield attains(f"matrix: the least over all factorisations of width {r}", found, predicted, **SEARCHED)
    above = attains("", found, predicted * (1 + 1e-3), **SEARCHED)
    yield control("matrix: a minimum raised by 10⁻³", above)


def diagonal_checks(vectors: list[Float[Array, " n"]], depth: int, generator: torch.Generator) -> Iterator[Check]:
    """The least over factors of a vector, by a search that is convex in their logarithms; and the same vector as a diagonal matrix."""
    predicted = [bridge(beta, depth) for beta in vectors]
    found = [least_diagonal(beta, depth, generator) for beta in vectors]
    label = "diagonal network: the least over all factorisations"
    yield agree(label, found, predicted, draws=len(vectors), **SEARCHED)
    wrong = [bridge(beta, depth, 2 / (depth + 1)) for beta in vectors]
    yield control("diagonal network: exponent of the next depth", agree("", found, wrong, **SEARCHED))
    yield control("diagonal network: exponent 1/L", agree("", found, [bridge(beta, depth, 1 / depth) for beta in vectors], **SEARCHED))
    dense = [lc.representation_cost(on_one_site(np.diag(beta)), depth).lower for beta in vectors]
    yield agree("a diagonal matrix costs the same where the layers need not be diagonal", dense, predicted, draws=len(vectors))


def least_diagonal(beta: Float[Array, " n"], depth: int, generator: torch.Generator) -> float:
    """min Σ_l ‖u_l‖² over u_1 ⊙ … ⊙ u_L = β: in a_l = log|u_l| a sum of exponentials with Σ_l a_l = log|β|, which is convex."""
    shape, target = (depth - 1, len(beta)), np.log(np.abs(beta))

    def objective(flat: Float[Array, " m"]) -> tuple[float, Float[Array, " m"]]:
        free = flat.reshape(shape)
        squares, last = np.exp(2 * free), np.exp(2 * (target - free.sum(0)))
        return float(squares.sum() + last.sum()), 2 * (squares - last).ravel()

    start = torch.randn(shape, generator=generator, dtype=torch.float64).numpy().ravel()
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-12}).fun)


def one_channel_checks(predictors: list[Float[Array, "1 1 *grid"]], depth: int) -> Iterator[Check]:
    """A one-channel network of full kernels is a diagonal network in the orthonormal Fourier basis, up to a factor."""
    grid = predictors[0].shape[2:]
    sites = math.prod(grid)
    coefficients = [witnesses.dense_fourier(grid) @ beta.ravel() / math.sqrt(sites) for beta in predictors]
    costs = [lc.representation_cost(torch.from_numpy(beta), depth).lower for beta in predictors]
    bare = np.array([bridge(b, depth) for b in coefficients])
    yield agree("one channel: representation cost", costs, sites ** ((1 - depth) / depth) * bare, draws=len(predictors))
    yield control("one channel: factor D^{−(L−1)/L} dropped", agree("", costs, bare))
    pixels = [bridge(beta.ravel(), depth) for beta in predictors]
    yield control("one channel: diagonal in pixels and not in frequencies", agree("", costs, pixels))


def controls(matrices: list[Float[Array, "K C"]], depth: int) -> Iterator[Check]:
    costs = [lc.representation_cost(on_one_site(a), depth).lower for a in matrices]
    wrong = {
        "exponent of the next depth": [schatten(a, depth, 2 / (depth + 1)) for a in matrices],
        "factor L dropped": [schatten(a, depth) / depth for a in matrices],
        "entries in the place of singular values": [bridge(a.ravel(), depth) for a in matrices],
        "Frobenius norm in the place of the Schatten quasi-norm": [depth * np.linalg.norm(a) ** (2 / depth) for a in matrices],
    }
    for name, predicted in wrong.items():
        yield control(f"matrix: {name}", agree("", costs, predicted))


if __name__ == "__main__":
    main(claim)
