r"""Divided by the depth, the cost of a predictor tends to the mean rank of its frequency blocks as the depth grows.

With $V_u$ the K×C block at each of the D frequencies and $R_L$ the least $\sum_l \|w^l\|^2$ of networks of depth L and full kernels,

$$\frac{R_L(\beta)}{L} \;=\; \frac1D \sum_u \operatorname{rank} V_u \;+\; \frac{2}{LD} \sum_u \sum_{\sigma_i(V_u) > 0} \log \sigma_i(V_u)
\;+\; O(L^{-2}),$$

and for each L the distance to the limit is at most $\frac{2}{LD}\sum \max(1,\sigma_i)^{2/L}\, |\log\sigma_i|$, because
$|e^t - 1| \le |t| \max(1, e^t)$. In the limit, weight decay counts the singular values that are not zero, over all frequencies.

Source: derived here from the formula for $R_L$ (Godfrey et al., arXiv 2210.01257; proved in docs/theorem410.md) by expanding
$\sigma^{2/L}$ in $1/L$; the linear analogue of what Wen, Jacot, arXiv 2402.08010, study for nonlinear convolutional networks.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval, Len
from jaxtyping import Float, Int

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, agree, at_most, control, main, not_applicable, rate
from verification._given import Given, InputShape, ModulePath, Net, on_given_network

Array = np.ndarray

FAST = {"grid": (3, 4), "deepest": 1024}
# The extrapolation is (8 f(h/4) − 6 f(h/2) + f(h))/3: relative errors of the costs grow by at most (8 + 6 + 1)/3.
ROUNDING = 5 * 32 * float(np.finfo(np.float64).eps)  # 32 ε, so many times, per square root of the number of singular values
ZERO, SMALLEST = 2e-14, 1e-10  # of the largest singular value: what is below the first is rounding, what is above the second is not
SMALL = 400  # entries of a predictor whose network of 24 layers is built
LIMIT: dict[str, Any] = {"tolerance": 0.05, "reason": "a fitted exponent: the next term of the expansion bends the line by less"}


def claim(
    *,
    outputs: Annotated[int, Interval(ge=2, le=6), "outputs K"] = 4,
    channels: Annotated[int, Interval(ge=2, le=6), "input channels C"] = 3,
    grid: Annotated[tuple[Annotated[int, Interval(ge=2, le=12)], ...], Len(1, 3), "sites in each dimension, H W"] = (4, 5),
    deepest: Annotated[int, Interval(ge=1024, le=65536), "greatest depth of the formula"] = 4096,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the ranks and blocks"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(on_network, net, module, input_shape, torch.Generator().manual_seed(seed))
        return
    generator = torch.Generator().manual_seed(seed)
    ranks = given_ranks(grid, min(outputs, channels), generator)
    beta = predictor(ranks, outputs, channels, generator)
    yield Note(f"ranks 0 to {ranks.max()} on {ranks.size} frequencies, {ranks.mean():g} on average", in_scope=True)

    depths = np.array([2**i for i in range(3, int(math.log2(deepest)) + 1)])
    logarithms = block_logarithms(beta, int(ranks.sum()))
    yield from formula_checks(beta, depths, logarithms, ranks)
    yield from weights_checks(beta, logarithms, ranks.size)


def formula_checks(
    beta: torch.Tensor, depths: Int[Array, " n"], logarithms: Float[Array, " m"], ranks: Int[Array, "*grid"]
) -> Iterator[Check]:
    costs, mean_rank = np.array([lc.representation_cost(beta, int(depth)).lower / depth for depth in depths]), float(ranks.mean())
    yield from limit_checks(depths, costs, logarithms, mean_rank, ranks)
    yield from extrapolation_checks(depths, costs, logarithms, mean_rank, ranks)
    yield from controls(depths, costs, logarithms, ranks, beta)


def on_network(given: Given) -> Iterator[Check | Note | Progress]:
    """The predictor of the network, its ranks and singular values by NumPy; depths large enough for the smallest logarithm to be small."""
    beta = lc.frequency_blocks(given.net).predictor().detach()
    blocks = np.moveaxis(np.fft.fftn(beta.numpy(), axes=range(2, beta.ndim)), (0, 1), (-2, -1))
    sigma = np.linalg.svd(blocks, compute_uv=False)
    relative = sigma / sigma.max()
    unclear = relative[(relative > ZERO) & (relative < SMALLEST)]
    if unclear.size:
        low, high = ((relative >= end).sum() / sigma[..., 0].size for end in (SMALLEST, ZERO))
        yield Note(f"nearest form: R_L/L tends to a mean rank between {low:g} and {high:g}, whatever those singular values are")
        yield not_applicable("rank", f"a singular value is {unclear.max():.1e} of the largest: neither zero nor not in double precision")
        return
    kept = relative >= SMALLEST
    logarithms = np.log(sigma[kept])
    yield Note(f"ranks {kept.sum(-1).min()} to {kept.sum(-1).max()} on {kept[..., 0].size} frequencies", in_scope=True)
    if np.abs(logarithms).max() < SMALLEST:
        yield not_applicable("a singular value other than 0 and 1", "there is none, and R_L/L is the mean rank at every depth")
        return
    first = max(3, math.ceil(math.log2(5 * float(np.abs(logarithms).max()))))
    yield from formula_checks(beta, 2 ** np.arange(first, first + 10), logarithms, kept.sum(-1))
    if beta.numel() <= SMALL:
        yield from weights_checks(beta, logarithms, kept[..., 0].size)


def given_ranks(grid: tuple[int, ...], most: int, generator: torch.Generator) -> Int[Array, "*grid"]:
    """A rank from 0 to `most` for every frequency, the same at u and −u; zero frequency has full rank, so that not all are 0."""
    drawn = torch.randint(0, most + 1, grid, generator=generator).numpy()
    drawn.flat[0] = most
    mirrored = drawn[np.ix_(*[-np.arange(n) % n for n in grid])]
    return np.maximum(drawn, mirrored)


def predictor(ranks: Int[Array, "*grid"], outputs: int, channels: int, generator: torch.Generator) -> torch.Tensor:
    """A random real predictor whose block at u keeps its `ranks[u]` largest singular values."""
    noise = torch.randn(outputs, channels, *ranks.shape, generator=generator, dtype=torch.float64)
    full = torch.fft.fftn(noise, dim=tuple(range(2, noise.ndim))).movedim((0, 1), (-2, -1))
    left, sigma, right = torch.linalg.svd(full, full_matrices=False)
    kept = torch.arange(min(outputs, channels)) < torch.from_numpy(ranks)[..., None]
    return lc.FrequencyBlocks((left * (sigma * kept)[..., None, :]) @ right).predictor()


def block_logarithms(beta: torch.Tensor, kept: int) -> Float[Array, " n"]:
    """log σ of the `kept` largest singular values of the dense matrix of the convolution with β: those of all blocks, no transform."""
    sigma = np.linalg.svd(witnesses.dense_convolution(beta.numpy(), tuple(beta.shape[2:])), compute_uv=False)
    return np.asarray(np.log(sigma[:kept]))


def limit_checks(
    depths: Int[Array, " n"], costs: Float[Array, " n"], logarithms: Float[Array, " m"], limit: float, ranks: Int[Array, "*grid"]
) -> Iterator[Check]:
    distances, sites = np.abs(costs - limit), ranks.size
    growth = np.maximum(1, np.exp(2 * logarithms[:, None] / depths))
    bounds = (2 / depths / sites * (growth * np.abs(logarithms[:, None])).sum(0)).astype(float)
    yield at_most("R_L/L: distance to the mean rank, at each depth", distances, bounds, scope="sampled")
    slope = 2 / sites * float(logarithms.sum())
    remainders = np.abs(costs - limit - slope / depths)
    yield rate("R_L/L − mean rank − (2/LD) Σ log σ falls as L^{−2}", depths[3:].astype(float), remainders[3:], -2, **LIMIT)


def extrapolation_checks(
    depths: Int[Array, " n"], costs: Float[Array, " n"], logarithms: Float[Array, " m"], limit: float, ranks: Int[Array, "*grid"]
) -> Iterator[Check]:
    """Two steps of Richardson's extrapolation: the value at 0 of the parabola in 1/L through the last three depths."""
    sites = ranks.size
    once = 2 * costs[1:] - costs[:-1]
    twice = (4 * once[-1] - once[-2]) / 3
    allowed: dict[str, Any] = {
        "tolerance": extrapolation_bound(logarithms, sites, float(depths[-3])) / limit + ROUNDING * math.sqrt(len(logarithms)),
        "reason": "the remainder h³/48 max|f‴| of the interpolation in h = 1/L, and rounding",
    }
    yield agree("R_L/L extrapolated to infinite depth", twice, limit, **allowed)
    yield agree("rank by the cost: the number of singular values that are not zero", round(float(twice) * sites), int(ranks.sum()))
    yield control("R_L/L extrapolated by a line", agree("", once[-1], limit, **allowed))


def extrapolation_bound(logarithms: Float[Array, " m"], sites: int, depth: float) -> float:
    r"""A bound on the error at 0 of the parabola through $f(h) = \frac1D \sum \sigma^{2h}$ at h, h/2, h/4 with h = 1/`depth`.

    The remainder of the interpolation at 0 is $-f'''(\xi)/6 \cdot h \cdot h/2 \cdot h/4$ for a ξ between 0 and h, and there
    $|f'''| \le \frac1D \sum |2 \log\sigma|^3 \max(1, \sigma^{2h})$.
    """
    third = (np.abs(2 * logarithms) ** 3 * np.maximum(1, np.exp(2 * logarithms / depth))).sum() / sites
    return float(third) / 48 / depth**3


def weights_checks(beta: torch.Tensor, logarithms: Float[Array, " m"], sites: int) -> Iterator[Check]:
    """Explicit weights of 24 layers, whose squares are added up in space."""
    depth = 24
    net = lc.minimal_network(beta, depth)
    squares = sum(float(w.detach().square().sum()) for w in net.weights) / depth
    expected = float(np.exp(2 * logarithms / depth).sum()) / sites
    size = depth * beta.numel()
    yield agree(f"explicit weights of depth {depth}: Σ‖w‖²/L", squares, expected, size=size)
    x = torch.eye(beta[0].numel(), dtype=beta.dtype).reshape(-1, *beta.shape[1:])
    yield agree(f"explicit weights of depth {depth}: the map", net(x).detach().T, beta.flatten(1), size=size)


def controls(
    depths: Int[Array, " n"], costs: Float[Array, " n"], logarithms: Float[Array, " m"], ranks: Int[Array, "*grid"], beta: torch.Tensor
) -> Iterator[Check]:
    sites, scales = ranks.size, depths.astype(float)
    limit, slope = float(ranks.mean()), 2 / sites * float(logarithms.sum())
    remainder = np.abs(costs - limit - slope / depths)
    wrong = {
        "1/D dropped": float(ranks.sum()),
        "greatest rank in the place of the mean": float(ranks.max()),
        "half of the spectrum without pair weights": float(ranks[..., : ranks.shape[-1] // 2 + 1].sum() / sites),
        "number of frequencies that are not zero": float((ranks > 0).mean()),
    }
    allowed: dict[str, Any] = {
        "tolerance": float(2 * np.abs(logarithms).sum() / depths[-1] / sites / limit),
        "reason": "the first-order term",
    }
    for name, value in wrong.items():
        if value != limit:
            yield control(f"limit: {name}", agree("", costs[-1], value, **allowed))
    yield control("first-order term: (1/LD) Σ log σ", rate("", scales[3:], np.abs(costs - limit - slope / 2 / depths)[3:], -2, **LIMIT))
    yield control("remainder of first order", rate("", scales[3:], remainder[3:], -1, **LIMIT))
    if ranks.min() < min(beta.shape[:2]):  # without a rank tolerance a singular value of 1e-17 counts as 1 in the limit
        sigma = lc.FrequencyBlocks.from_predictor(beta).singular_values().clamp_min(1e-17).numpy()
        uncut = float((sigma ** (2 / depths[-1])).sum()) / sites
        yield control("limit: rounding errors counted as singular values", agree("", uncut, limit, **allowed))


if __name__ == "__main__":
    main(claim)
