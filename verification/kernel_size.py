r"""At depth 2 larger kernels never cost more, and with one input channel in one dimension the number of hidden channels does not matter.

Let $R^{(k)}$ be the least $\|w^1\|^2 + \|w^2\|^2$ of networks with k taps in each dimension, a full readout and enough hidden
channels that compute $\beta \in R^{K \times C \times n}$. For k ≤ k′ ≤ n

$$R^{(k)} \;\ge\; R^{(k')} \;\ge\; R^{(n)} = \frac2D \sum_u \|V_u\|_*, \qquad R^{(1)} = 2\,\|\beta_{(K D) \times C}\|_* ,$$

with equality often, so that no "strictly" can stand here. On a one-dimensional grid with C = 1 the cost is the same for every
number of hidden channels from 1 on: every $\sum_j |\hat w_j(u)|^2$ is $|\hat w(u)|^2$ of a single real kernel (Fejér, Riesz). In two
dimensions it is not: $\beta = 4\delta_0 + \sum_{|m| = 1} \delta_m$ on any grid of sides at least 3 costs 8 with 2×2 taps and two channels,
and more with one. Kernels of $n_0 n$ taps in each of d dimensions cost $n_0^{-d(L-1)/L} R_L$ at depth L: the weights share the squares.

Source: Jagadeesan, Razenshteyn, Gunasekar, Inductive bias of multi-channel linear convolutional networks with bounded weight norm, arXiv
2102.12238, for the programme at depth 2 and its independence of channels; the rest is derived here and in docs/restricted-kernels.md.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any

import numpy as np
import sympy
import torch
from annotated_types import Interval
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import (
    Check,
    Note,
    Progress,
    agree,
    at_most,
    attains,
    control,
    main,
    not_applicable,
    predicted_failure,
    proved,
)
from linconv.hypotheses import hidden_kernel
from verification._given import Given, InputShape, ModulePath, Net, on_given_network
from verification._networks import one_thread
from verification._own_network import singular_values

Array = np.ndarray

FAST = {"outputs": 2, "sites": 6, "starts": 4}
PROGRAMME: dict[str, Any] = {"tolerance": 1e-6, "reason": "the conic solver's accuracy on small problems"}
SEARCHED: dict[str, Any] = {"tolerance": 1e-6, "reason": "L-BFGS ends where the cost changes by less than 1e-8 of it"}
LARGEST_PROGRAMME = 7  # rows, taps times channels, of a programme that the conic solver closes in a fraction of a second
MOST_ROWS = 120  # numbers in an image of a given network
CHAIN = ((1, 1), (2, 1), (2, 2), (2, 3), (3, 4))


def claim(
    *,
    outputs: Annotated[int, Interval(ge=2, le=5), "outputs K"] = 3,
    sites: Annotated[int, Interval(ge=5, le=12), "sites of the one-dimensional grid"] = 7,
    starts: Annotated[int, Interval(ge=1, le=100), "random starts of the search over kernels"] = 8,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the predictors and starts"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(on_network, net, module, input_shape, torch.Generator().manual_seed(seed), least_depth=2)
        return
    generator = torch.Generator().manual_seed(seed)

    def predictor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    line, several, image = predictor(outputs, 1, sites), predictor(outputs, 2, 5), predictor(outputs, 2, 3, 4)
    yield Progress("bounds for each kernel size")
    yield from monotone_checks("1-D, one channel", line, [(k,) for k in range(1, sites + 1)])
    yield from monotone_checks("1-D, two channels", several, [(k,) for k in range(1, 6)])
    yield from monotone_checks("2-D, two channels", image, list(CHAIN))
    yield from one_tap_checks([line, several, image])
    yield from wide_checks([line, several])
    yield Progress("search over kernels, one dimension")
    yield from channel_checks(line, starts, generator)
    yield Progress("search over kernels, two dimensions")
    yield from two_dimensional_checks(starts, generator)
    yield from width_check(several)


def on_network(given: Given) -> Iterator[Check | Note | Progress]:
    """What the network computes, at depth 2, with nested kernels from one tap to the whole grid."""
    beta, grid, depth = lc.frequency_blocks(given.net).predictor().detach(), given.net.grid, given.net.depth
    if math.prod(grid) == 1:
        yield not_applicable("more than one site", "on one site all kernels have one tap")
        return
    beta = beta / beta.norm()  # costs of depth 2 are homogeneous, and a conic solver's accuracy is not
    small = beta.shape[1] * math.prod(grid) <= MOST_ROWS
    yield Progress("bounds for each kernel size")
    if depth != 2:
        own = [hidden_kernel(given.module, given.input_shape)] if small else []
        yield from nested_checks(beta, depth, list(dict.fromkeys([(1,) * len(grid), *own, grid])))
        yield not_applicable("depth 2", f"the network has {depth} layers, and larger kernels are compared for two")
    elif small:
        kernels = [tuple(min(k, n) for n in grid) for k in range(1, max(grid) + 1)]
        yield from monotone_checks("given network", beta, list(dict.fromkeys(kernels)))
        yield from one_tap_checks([beta])
    else:
        yield Note(f"one tap and full kernels alone: programmes between are for images of at most {MOST_ROWS} numbers", in_scope=True)
        yield from end_checks(beta)
        yield from one_tap_checks([beta])


def nested_checks(beta: Tensor, depth: int, kernels: list[tuple[int, ...]]) -> Iterator[Check | Note]:
    """The nearest form: at every depth a smaller kernel is a larger one with zeros, so that proved brackets are in order."""
    costs = [lc.representation_cost(beta, depth, kernel_size=k) for k in kernels]
    for kernel, cost in zip(kernels, costs, strict=True):
        yield Note(f"depth {depth}, {'×'.join(map(str, kernel))} taps: {cost.lower:.6g} to {cost.upper:.6g}")
    lower, upper = [cost.lower for cost in costs[1:]], [cost.upper for cost in costs[:-1]]
    yield at_most(f"nearest form: at depth {depth} a larger kernel costs at most as much", lower, upper, size=beta.numel())


def end_checks(beta: Tensor) -> Iterator[Check]:
    """The least and the largest kernel, whose costs are formulas."""
    one, full = (lc.representation_cost(beta, 2, kernel_size=k).lower for k in ((1,) * (beta.ndim - 2), tuple(beta.shape[2:])))
    yield at_most("given network: full kernels cost at most what one tap does", full, one, size=beta.numel())
    if one > (1 + 1e-3) * full:
        yield control("given network: one tap costs at most what full kernels do", at_most("", one, full, size=beta.numel()))
    expected = schatten(singular_values(beta), 2) / math.prod(beta.shape[2:])
    yield agree("given network: full kernels cost what the formula says", full, expected, size=beta.numel())
    yield control("given network: 1/D dropped", agree("", full, math.prod(beta.shape[2:]) * expected, size=beta.numel()))


def monotone_checks(label: str, beta: Tensor, kernels: list[tuple[int, ...]]) -> Iterator[Check | Note]:
    """Brackets of the cost for nested kernels, against the conic programme where it is small and the full formula at the end."""
    brackets = [lc.representation_cost(beta, 2, kernel_size=k) for k in kernels]
    lower, upper = (np.array([getattr(cost, end) for cost in brackets]) for end in ("lower", "upper"))
    accuracy: dict[str, Any] = {"tolerance": float((upper / lower).max() - 1) + 1e-12, "reason": "the widths of the proved brackets"}
    yield at_most(f"{label}: a larger kernel costs at most as much", lower[1:], upper[:-1], scope="certified", **accuracy)
    if float((lower[:-1] / upper[1:]).max()) > 1 + 1e-3:  # all sizes of kernels cost the same where one tap is enough
        yield control(f"{label}: a larger kernel costs at least as much", at_most("", upper[:-1], lower[1:], **accuracy))
    full = witnesses.dense_cost(beta.numpy(), 2)
    yield agree(f"{label}: kernels as large as the grid cost what the formula says", upper[-1], full, size=beta.numel())
    small = [i for i, k in enumerate(kernels) if math.prod(k) * beta.shape[1] <= LARGEST_PROGRAMME]
    programme = [witnesses.restricted_cost_programme(beta.numpy(), kernels[i]) for i in small]
    largest = "×".join(map(str, kernels[small[-1]]))
    yield agree(f"{label}: up to {largest} taps, the conic programme", upper[small], programme, **PROGRAMME)
    first = next(i for i, cost in enumerate(upper) if cost <= full * (1 + accuracy["tolerance"]))
    yield Note(f"{label}: from {'×'.join(map(str, kernels[first]))} taps on the cost is that of full kernels: no strict decrease there")


def one_tap_checks(predictors: list[Tensor]) -> Iterator[Check]:
    """One tap is a fully connected layer on channels, at every depth."""
    for depth in (2, 3):
        found = [lc.representation_cost(beta, depth, kernel_size=1).lower for beta in predictors]
        sigma = [np.linalg.svd(beta.movedim(1, -1).flatten(0, -2).numpy(), compute_uv=False) for beta in predictors]
        yield agree(f"one tap, depth {depth}: the matrix with a row a pixel and output", found, [schatten(s, depth) for s in sigma])
        other = [schatten(np.linalg.svd(beta.flatten(1).numpy(), compute_uv=False), depth) for beta in predictors]
        if not np.allclose(other, found, rtol=1e-6):  # one output is one row
            yield control(f"one tap, depth {depth}: the matrix with a row an output", agree("", found, other))


def schatten(sigma: Float[Array, " n"], depth: int) -> float:
    return float(depth * (sigma ** (2 / depth)).sum())


def wide_checks(predictors: list[Tensor]) -> Iterator[Check]:
    """Kernels twice and three times as wide as a one-dimensional grid."""
    cases = [(beta, depth, times) for beta in predictors for depth in (2, 3) for times in (2, 3)]
    found = [lc.representation_cost(beta, depth, kernel_size=times * beta.shape[-1]).upper for beta, depth, times in cases]
    full = np.array([witnesses.dense_cost(beta.numpy(), depth) for beta, depth, _ in cases])
    shares = np.array([times ** ((1 - depth) / depth) for _, depth, times in cases])
    yield agree("kernels wider than the grid: n₀^{−(L−1)/L} times the full cost", found, shares * full, size=4096)
    yield control("kernels wider than the grid: no cheaper than full ones", agree("", found, full, size=4096))


def shifts(taps: tuple[int, ...], grid: tuple[int, ...]) -> Float[Tensor, "T D D"]:
    """The D×D permutation matrix of each tap: the shift by it. A convolution with one channel is their weighted sum."""
    sites = torch.arange(math.prod(grid)).reshape(grid)
    there = [torch.roll(sites, [-m for m in tap], tuple(range(len(grid)))).flatten() for tap in product(*map(range, taps))]
    return torch.stack([torch.eye(sites.numel(), dtype=torch.float64)[:, to] for to in there])


def least_cost(beta: Tensor, taps: tuple[int, ...], width: int, starts: int, generator: torch.Generator) -> float:
    """The least ‖w¹‖² + ‖w²‖² over kernels with one input channel, by L-BFGS; the cheapest readout solves a linear system."""
    moves, rows = shifts(taps, tuple(beta.shape[2:])), beta.flatten(1)

    def objective(flat: Array) -> tuple[float, Array]:
        kernels = torch.from_numpy(flat).reshape(width, -1).requires_grad_()
        matrices = (kernels @ moves.flatten(1)).reshape(-1, *moves.shape[1:]).flatten(0, 1)
        gram = matrices.T @ matrices
        cost = kernels.square().sum() + (rows * torch.linalg.solve(gram, rows.T).T).sum()
        (gradient,) = torch.autograd.grad(cost, kernels)
        return float(cost.detach()), gradient.numpy().ravel()

    begin = [torch.randn(width * math.prod(taps), generator=generator, dtype=torch.float64).numpy() for _ in range(starts)]
    with one_thread():
        return min(float(minimize(objective, w, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "maxiter": 500}).fun) for w in begin)


def channel_checks(beta: Tensor, starts: int, generator: torch.Generator) -> Iterator[Check]:
    """One input channel on a line: one, two and three hidden channels reach the same cost, that of any number."""
    for taps in (2, 3):
        bracket = lc.representation_cost(beta, 2, kernel_size=taps)
        for width in (1, 2, 3):
            found = least_cost(beta, (taps,), width, starts, generator)
            name = f"1-D, {taps} taps: the least found with {width} hidden channel{'s' * (width > 1)}"
            yield attains(name, found, bracket.upper, lower=bracket.lower, **SEARCHED)
    claimed = bracket.upper * (1 + 1e-3)
    yield control("1-D: a cost raised by 10⁻³", attains("", found, claimed, **SEARCHED))


def two_dimensional_checks(starts: int, generator: torch.Generator) -> Iterator[Check | Note]:
    """The transform of β is |1 + z₁|² + |1 + z₂|², a sum of two squares that is no single square."""
    beta = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    beta[0, 0, 0, 0] = 4
    for tap in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        beta[(0, 0, *tap)] = 1
    a, b, c, d = sympy.symbols("a b c d")
    # Lags (1, 1), (1, −1), (1, 0), (0, 1) of |a + b z₁ + c z₂ + d z₁z₂|².
    basis = sympy.groebner([a * d, b * c, a * b + c * d - 1, a * c + b * d - 1], a, b, c, d)
    reason = "the ideal of the equations for its four taps contains 1 (Gröbner basis)"
    yield proved(
        "2-D, 2×2 taps: no single kernel has |ŵ|² = 4 + 2 cos θ₁ + 2 cos θ₂", cases=1, failures=int(basis.exprs != [1]), reason=reason
    )
    solvable = sympy.groebner([a * d, b * c, a * b + c * d - 1, a * c + b * d], a, b, c, d)
    yield control("2-D, 2×2 taps: nor |ŵ|² = 2 + 2 cos θ₁", proved("", cases=1, failures=int(solvable.exprs != [1])))
    # So with one channel the inequality of the means |ŵ_u|² + β̂_u²/|ŵ_u|² ≥ 2β̂_u is strict somewhere, and the minimum is attained.
    one, two = (least_cost(beta, (2, 2), width, starts, generator) for width in (1, 2))
    full = witnesses.dense_cost(beta.numpy(), 2)
    yield attains("2-D, 2×2 taps: the least found with 2 hidden channels is the cost of full kernels", two, full, **SEARCHED)
    cheap = agree("", one, full, **SEARCHED)
    yield predicted_failure("2-D, 2×2 taps: one hidden channel costs what two do", cheap)
    yield Note(f"2-D: 4δ₀ + Σ δ_m over the 4 neighbours, 2×2 taps on 3×4 sites: {one:.6f} with one hidden channel, {two:.6f} with two")


def width_check(beta: Tensor) -> Iterator[Check]:
    """Several input channels need several hidden channels to compute β at all."""
    costs = [lc.representation_cost(beta, 2, kernel_size=2, hidden_channels=width).lower for width in (1, 2)]
    yield agree("two input channels: one hidden channel computes β, and two", [int(math.isfinite(cost)) for cost in costs], [0, 1])


if __name__ == "__main__":
    main(claim)
