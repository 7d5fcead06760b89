r"""A multichannel linear CNN is one small matrix per frequency.

Layers l < L are circular convolutions, $(w \star x)_{ci} = \sum_{m,d} w_{cdm}\, x_{d,\,i-m \bmod n}$, and the readout contracts
channels and space. With the unnormalised DFT $\hat w_u = \sum_m w_m e^{-2\pi i\,u\cdot m/n}$ and D sites,

$$f(x) = \frac1D \sum_u V_u \hat x_u, \qquad V_u = \overline{\hat w^L_u}\; \hat w^{L-1}_u \cdots \hat w^1_u \in C^{K \times C},$$

and the singular values of a convolution are those of its blocks $\hat w_u$, all together.

Source: Godfrey et al., arXiv 2210.01257, (1.1) and (3.1) to (3.3); the singular values: Sedghi, Gupta, Long, arXiv 1805.10408.
Here the blocks are compared with dense block-circulant matrices built tap by tap, with torch's own convolutions, and on small
grids in exact algebra, for all kernels and images at once.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval, Len
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, control, main, proved
from linconv.spectrum import pair_weights
from verification import _roots_of_unity as algebra
from verification._convolutions import (
    Draw,
    Network,
    as_matrix,
    block_diagonal,
    dense_layers,
    in_frequency,
    stack,
    through,
    through_half,
    zero_padded,
)
from verification._figure_convolutions import figure
from verification._given import Given, InputShape, ModulePath, Net, on_given_network

FAST = {"draws": 2, "grid": (3, 4), "hidden": 2}
EXACT = "polynomials in all entries, with roots of unity as coefficients"
SMALL_GRIDS = ((2,), (3,), (4,), (5,), (2, 3))
MOST_SITES = 256
LARGEST_SIDE = {1: 9, 2: 5, 3: 3}  # of the random grids, so that the tap-by-tap matrices take a second


def claim(
    *,
    depth: Annotated[int, Interval(ge=1, le=8), "number of layers L, the readout counted"] = 3,
    channels: Annotated[int, Interval(ge=1, le=8), "input channels C"] = 2,
    hidden: Annotated[int, Interval(ge=1, le=8), "width of every hidden layer"] = 3,
    outputs: Annotated[int, Interval(ge=1, le=8), "outputs K"] = 2,
    grid: Annotated[tuple[Annotated[int, Interval(ge=1, le=64)], ...], Len(1, 3), "sites in each dimension, H W"] = (4, 5),
    kernel_size: Annotated[tuple[Annotated[int, Interval(ge=1, le=64)], ...], Len(1, 3), "taps in each dimension, or one for all"] = (3,),
    dtype: Annotated[Literal["float32", "float64"], "precision of the networks and of their blocks"] = "float64",
    draws: Annotated[int, Interval(ge=1, le=100), "number of random networks in each check"] = 5,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the weights and images"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Figure | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(on_network, net, module, input_shape, torch.Generator().manual_seed(seed))
        return
    if math.prod(grid) > MOST_SITES:
        raise UsageError(f"grid must have at most {MOST_SITES} sites, so that its dense matrices fit, got {math.prod(grid)}")
    if len(kernel_size) not in (1, len(grid)):
        raise UsageError(f"kernel_size must have one entry, or {len(grid)} as grid has, got {len(kernel_size)}")
    kernel = kernel_size * len(grid) if len(kernel_size) == 1 else kernel_size
    draw = Draw(seed, getattr(torch, dtype))
    widths = [channels, *[hidden] * (depth - 1), outputs]
    yield Progress("drawing networks and building their dense matrices")
    networks = [draw.network(widths, grid, kernel) for _ in range(draws)]
    yield from exact_checks()
    yield from layer_checks(draw, (hidden, channels), grid, kernel, draws)
    yield from network_checks(networks)
    yield from torch_checks(draw, widths, grid, draws)
    yield from random_size_checks(draw, draws)
    yield from exact_controls()
    yield from network_controls(networks[0])
    yield from layer_controls(draw, (hidden, channels), grid, kernel)
    yield from drawn_controls(draw, widths, grid)
    yield Figure("convolution_theorem", lambda: figure(networks[0]))


def on_network(given: Given) -> Iterator[Check | Progress]:
    """The module itself, run on every unit impulse, is the dense matrix."""
    yield Progress("running the network on every impulse")
    sample = as_matrix(given)
    yield from network_checks([sample], hidden=False)
    yield from network_controls(sample)


def exact_checks() -> Iterator[Check | Progress]:
    """For all kernels and images at once, on small grids, by SymPy over the roots of unity."""
    grids = ", ".join(map(by, SMALL_GRIDS))
    yield Progress("exact algebra")
    units = [case for sides in SMALL_GRIDS for case in algebra.orthogonality(sides)]
    yield proved(f"exact, {grids} sites: F*F = D", cases=len(units), failures=units.count(False), reason="sums of roots of unity")
    layers = [case for sides in SMALL_GRIDS for case in algebra.layer(sides)]
    yield proved(f"exact, {grids} sites: w ⋆ x has transform ŵ_u x̂_u", cases=len(layers), failures=layers.count(False), reason=EXACT)
    for widths in ((2, 2, 2), (2, 2, 2, 1)):
        found = [case for sides in SMALL_GRIDS for case in algebra.network(sides, widths)]
        name = f"exact, {grids} sites: f(x) = (1/D) Σ V_u x̂_u at depth {len(widths) - 1}"
        yield proved(name, cases=len(found), failures=found.count(False), reason=EXACT)


def layer_checks(
    draw: Draw, channels: tuple[int, int], grid: tuple[int, ...], kernel: tuple[int, ...], draws: int
) -> Iterator[Check | Progress]:
    """One convolution, its kernel as asked for, as large as the grid, and wider than it."""
    for taps in dict.fromkeys([kernel, grid, tuple(n + 2 for n in grid)]):
        name = f"layer, {by(taps)} taps on {by(grid)} sites"
        yield Progress(name)
        kernels = [draw.weight(*channels, *taps) for _ in range(draws)]
        dense = [dense_layers([w], grid) for w in kernels]
        blocks = stack(block_diagonal(lc.conv_blocks(w, grid).values) for w in kernels)
        turned = stack(in_frequency(matrix, grid) for matrix in dense)
        yield agree(f"{name}: F W F⁻¹ is block-diagonal with blocks ŵ_u", blocks, turned, draws=draws)
        found = stack(lc.conv_singular_values(w, grid) for w in kernels).flatten(1, -2)
        diagonal = turned.reshape(draws, channels[0], -1, channels[1], math.prod(grid)).diagonal(axis1=2, axis2=4).transpose(0, 3, 1, 2)
        values = np.linalg.svd(diagonal, compute_uv=False)
        yield agree(f"{name}: singular values at each frequency", found, values, size=dense[0].size, draws=draws)
        values = stack(np.linalg.svd(matrix, compute_uv=False) for matrix in dense)
        in_order = found.flatten(1).sort(descending=True).values
        yield agree(f"{name}: all of them are those of W", in_order, values, size=dense[0].size, draws=draws)


def network_checks(networks: list[Network], *, hidden: bool = True) -> Iterator[Check]:
    """The whole network: what it computes, its blocks, its predictor, and its hidden layers alone."""
    grid, depth, draws = networks[0].net.grid, networks[0].net.depth, len(networks)
    outputs = stack(sample.outputs for sample in networks)
    # A sum behind an entry has a term for each column of a dense matrix, at each layer.
    terms: dict[str, Any] = {"size": depth * networks[0].matrix.shape[1], "draws": draws}
    in_space = stack(sample.net(sample.x) for sample in networks)
    yield agree("network: layer by layer in space, and dense matrices", in_space, outputs, **terms)
    fourier = witnesses.dense_fourier(grid)
    rows = [sample.matrix.reshape(len(sample.matrix), -1, len(fourier)) @ fourier.conj().T for sample in networks]
    dense = stack(np.moveaxis(row, -1, 0) for row in rows)
    yield agree("network: its blocks V_u, and those of its dense matrix", stack(s.blocks.flatten(0, -3) for s in networks), dense, **terms)
    yield agree("network: (1/D) Σ V_u x̂_u is f(x)", stack(through(s.blocks, s.x) for s in networks), outputs, **terms)
    half = stack(through_half(s.blocks, s.x, pair_weights(grid)) for s in networks)
    yield agree("network: half the spectrum with pair weights gives f(x)", half, outputs, **terms)
    found = stack(lc.frequency_blocks(s.net).predictor().detach().flatten(1) for s in networks)
    yield agree("network: predictor() is its dense matrix", found, stack(s.matrix for s in networks), **terms)
    if depth > 1 and hidden:
        alone = [
            reduce(lambda first, w: lc.conv_blocks(w, grid) @ first, s.weights[1:-1], lc.conv_blocks(s.weights[0], grid)) for s in networks
        ]
        matrices = [dense_layers(s.weights[:-1], grid) for s in networks]
        turned = stack(in_frequency(matrix, grid) for matrix in matrices)
        yield agree("hidden layers alone: F W F⁻¹ is block-diagonal", stack(block_diagonal(b.values) for b in alone), turned, **terms)
        values = stack(b.singular_values().flatten().sort(descending=True).values for b in alone)
        predicted = stack(np.linalg.svd(matrix, compute_uv=False) for matrix in matrices)
        yield agree("hidden layers alone: their singular values", values, predicted, **terms)


def torch_checks(draw: Draw, widths: list[int], grid: tuple[int, ...], draws: int) -> Iterator[Check | Progress]:
    """torch's own layers run in space, against the blocks of their import."""
    room = min(grid) > 1  # torch refuses a circular padding wider than the grid
    twice = [2 * width for width in widths[:-1]] + widths[-1:]
    variants: list[tuple[str, list[int], dict[str, Any]]] = [
        ("odd kernels", widths, {"kernel_size": 3}),
        ("even kernels", widths, {"kernel_size": 4 if room else 2}),
        ("dilation 2", widths, {"kernel_size": 3 if room else 2, "dilation": 2}),
        ("two groups", twice, {"kernel_size": 3, "groups": 2}),
    ]
    for name, chosen, options in variants:
        yield Progress(f"torch's convolutions, {name}")
        modules = [draw.module(chosen if len(chosen) > 2 else [chosen[0], *chosen], grid, **options) for _ in range(draws)]
        images = [draw.images(chosen[0], *grid) for _ in modules]
        nets = [lc.from_torch(module, (chosen[0], *grid)) for module in modules]
        found = stack(through(lc.frequency_blocks(net).values.detach(), x) for net, x in zip(nets, images, strict=True))
        outputs = stack(module(x) for module, x in zip(modules, images, strict=True))
        terms = len(chosen) * chosen[0] * math.prod(grid)
        yield agree(f"torch's own convolutions, {name}: (1/D) Σ V_u x̂_u", found, outputs, size=terms, draws=draws)


def random_size_checks(draw: Draw, draws: int) -> Iterator[Check | Progress]:
    """Networks whose depth, widths, grid and kernel are drawn too, kernels up to two taps wider than the grid."""
    for dims, largest in LARGEST_SIDE.items():
        yield Progress(f"networks of random sizes in {dims}-D")
        found, maps, terms = [], [], 0
        for _ in range(draws):
            grid = tuple(draw.integer(1, largest) for _ in range(dims))
            kernel = tuple(draw.integer(1, n + 2) for n in grid)
            widths = [draw.integer(1, 3) for _ in range(draw.integer(2, 5))]
            sample = draw.network(widths, grid, kernel)
            scale = float(np.abs(sample.matrix).max())  # so that no network hides behind a larger one
            found.append(lc.frequency_blocks(sample.net).predictor().detach().flatten() / scale)
            maps.append(sample.matrix.ravel() / scale)
            terms = max(terms, len(widths) * sample.matrix.shape[1])
        yield agree(
            f"random sizes in {dims}-D: predictor(), and dense matrices", torch.cat(found), np.concatenate(maps), size=terms, draws=draws
        )


def exact_controls() -> Iterator[Check]:
    """False identities that the exact algebra must reject."""
    wrong = [
        ("readout not conjugated, 5 sites", algebra.network((5,), (2, 2, 2), conjugated=False)),
        ("1/D dropped, 2×3 sites", algebra.network((2, 3), (2, 2, 2), normalised=False)),
        ("hidden layers in reverse order, 3 sites", algebra.network((3,), (2, 2, 2, 1), reverse=True)),
        ("cross-correlation in the place of convolution, 4 sites", algebra.layer((4,), correlation=True)),
    ]
    for name, cases in wrong:
        yield control(f"exact: {name}", proved("", cases=len(cases), failures=cases.count(False)))


def network_controls(sample: Network) -> Iterator[Check]:
    """Wrong formulas for f(x), those that the sizes leave different from the truth."""
    grid, depth, x = sample.net.grid, sample.net.depth, sample.x
    *hidden, readout = sample.layers
    sites, taps = math.prod(grid), sample.weights[0].shape[2:]
    # Some frequency is not its own negative; some hidden block there is not real.
    paired, turning = any(n > 2 for n in grid), any(n > 2 and k > 1 for n, k in zip(grid, taps, strict=True))

    def product(first: Tensor | None, *rest: Tensor) -> Tensor:
        return reduce(lambda values, w: w @ values, rest, first)

    right = sample.blocks
    sizes = right.abs().square().sum((-2, -1), keepdim=True)
    wrong = [
        (paired, "readout not conjugated", lambda: through(product(*hidden, readout), x)),
        (turning and depth > 1, "hidden layers conjugated", lambda: through(product(*(w.conj() for w in [*hidden, readout])), x)),
        (sites > 1, "1/D dropped", lambda: sites * through(right, x)),
        (sites > 1 and depth > 1, "orthonormal DFT of weights and images", lambda: through(right, x) / sites ** ((depth - 1) / 2)),
        (True, "one frequency left out", lambda: through(right * (sizes < sizes.max()), x)),
        (grid[-1] > 2, "half the spectrum without pair weights", lambda: through_half(right, x, torch.ones(grid[-1] // 2 + 1))),
        (depth > 1 and max(taps) > 1, "zero padding in the place of circular", lambda: zero_padded(sample.weights, x)),
    ]
    truth = through(right, x)
    for applies, name, outputs in wrong:
        found = outputs() if applies else truth
        if float((found - truth).abs().max()) > 1e-6 * float(truth.abs().max()):  # kernels that are symmetric have real transforms
            yield control(f"network: {name}", agree("", found, sample.outputs, size=depth * sample.matrix.shape[1]))


def layer_controls(draw: Draw, channels: tuple[int, int], grid: tuple[int, ...], kernel: tuple[int, ...]) -> Iterator[Check]:
    """Wrong blocks and singular values of one convolution."""
    wide = draw.weight(*channels, *(n + 2 for n in grid))
    cut = reduce(lambda w, dim: w.narrow(dim + 2, 0, grid[dim]), range(len(grid)), wide)
    turned = in_frequency(dense_layers([wide], grid), grid)
    yield control("layer: a wide kernel cut off at the grid", agree("", block_diagonal(lc.conv_blocks(cut, grid).values), turned))
    if math.prod(kernel) > 1:
        w = draw.weight(*channels, *kernel)
        largest = np.linalg.norm(dense_layers([w], grid), 2)
        reshaped = torch.linalg.svdvals(w.flatten(1))[0]
        yield control("layer: singular values of the kernel as one matrix (spectral_norm)", agree("", reshaped, largest, size=w.numel()))


def drawn_controls(draw: Draw, widths: list[int], grid: tuple[int, ...]) -> Iterator[Check]:
    """Wrong variants that need networks of their own: square layers, and torch's even kernels."""
    r = max(2, *widths)
    square = draw.network([r] * 4, grid, grid)
    first, second, readout = square.layers
    terms = 3 * square.matrix.shape[1]
    transposed = through(square.blocks.mT, square.x)
    yield control("network: every block transposed (same singular values)", agree("", transposed, square.outputs, size=terms))
    swapped = through(readout.conj() @ first @ second, square.x)
    yield control("network: hidden layers in reverse order", agree("", swapped, square.outputs, size=terms))
    if math.prod(grid) == 1:
        return
    shape = [widths[0], 2, widths[-1]]
    module, even, x = draw.module(shape, grid, kernel_size=3), draw.module(shape, grid, kernel_size=2), draw.images(shape[0], *grid)
    kernel, last = module.parameters()
    unflipped = lc.LinearCNN.from_weights([kernel, last.unflatten(1, (2, *grid))], grid)
    yield control("torch: cross-correlation read as a convolution", agree("", unflipped(x), module(x), size=2 * x[0].numel()))
    first, *rest = lc.from_torch(even, x.shape[1:]).weights
    moved = lc.LinearCNN.from_weights([first.roll((1,) * len(grid), tuple(range(2, x.ndim))), *rest], grid)
    found = through(lc.frequency_blocks(moved).values, x)
    yield control("torch: an even kernel centred one site off", agree("", found, even(x), size=2 * x[0].numel()))


def by(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


if __name__ == "__main__":
    main(claim)
