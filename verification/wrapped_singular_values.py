r"""The singular values of a circular convolution, its kernel smaller or wider than the grid, are those of its frequency blocks.

A kernel w with any number of taps acts on D sites as its periodic sum (taps that differ by multiples of the grid wrap around and
add up), and with the unnormalised transform $\hat w_u = \sum_m w_m e^{-2\pi i\, u\cdot m/n}$, the sum over *all* taps,

$$\sigma(W_w) \;=\; \bigcup_u \sigma(\hat w_u), \qquad \|W_w\| = \max_u \|\hat w_u\|, \qquad \|W_w\|_F^2 = \sum_u \|\hat w_u\|_F^2,$$

counted with multiplicity, W being the block-circulant matrix of the convolution on $C_{in} D$ numbers.

A convolution that pads with p zeros on a side, or with none, and has any stride is a part of the rows and columns of a circular one on a
grid larger by 2p: each of its singular values, in order, is at most that of the larger grid. Of the layers of a given network that is no
linear CNN this is what is checked.

Source: Sedghi, Gupta, Long, The singular values of convolutional layers, arXiv 1805.10408, for kernels no wider than the grid.
Here W is built tap by tap, the library's values are compared with its dense singular values, enclosed, and on four sites, whose
roots of unity are Gaussian integers, compared as polynomials with integer coefficients.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, TypeAlias

import numpy as np
import sympy
import torch
from annotated_types import Interval
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, agree, at_most, control, main, proved
from linconv.network import circular_convolution
from linconv.torch_import import leaves
from verification._given import Given, InputShape, ModulePath, Net, none_known, on_given_network

Array = np.ndarray

FAST = {"draws": 1, "largest": 4}
Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
DENSE = 400_000  # entries of a dense matrix whose singular values take a second
MOST_SITES = 60  # of a random grid: its dense matrix has at most 240 rows


def claim(
    *,
    out_channels: Annotated[int, Interval(ge=2, le=4), "output channels of the convolution"] = 3,
    in_channels: Annotated[int, Interval(ge=2, le=4), "input channels of the convolution"] = 2,
    largest: Annotated[int, Interval(ge=3, le=8), "largest side of the random grids"] = 7,
    draws: Annotated[int, Interval(ge=1, le=50), "random kernels in each dimension and of each kind of kernel"] = 4,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of grids and kernels"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Note | Progress]:
    if net is not None or module:
        generator = torch.Generator().manual_seed(seed)
        yield from on_given_network(on_network, net, module, input_shape, generator, least_depth=2, nearest=padded)
        return
    generator = torch.Generator().manual_seed(seed)
    channels = (out_channels, in_channels)
    for kind in ("no wider than the grid", "wider than the grid"):
        for dims in (1, 2, 3):
            yield Progress(f"dense matrices in {dims}-D, kernels {kind}")
            drawn = [draw(channels, dims, largest, kind.startswith("wider"), generator) for _ in range(draws)]
            yield from value_checks(f"{dims}-D, kernels {kind}", drawn)
    yield Progress("integers")
    yield exact_check(generator)
    yield from controls(draw(channels, 2, largest, True, generator))


def on_network(given: Given) -> Iterator[Check | Progress]:
    """Every hidden convolution: all singular values where the dense matrix is small, else the largest, met by iteration in space."""
    for i, layer in enumerate(hidden_layers(given)):
        weight = given.net.weights[i].detach()
        case = (weight, given.net.grid)
        yield Progress(f"layer {i}")
        if weight.shape[0] * weight.shape[1] * math.prod(given.net.grid) ** 2 <= DENSE:
            yield from value_checks(f"layer {i}", [case])
        else:
            yield from norm_checks(f"layer {i}", *case, layer)
        values, sites, observed = lc.conv_singular_values(*case), math.prod(given.net.grid), kernel_norm(*case)
        wrong = {"scaled by 1.01": 1.01 * values} | ({"orthonormal transform": values / math.sqrt(sites)} if sites > 1 else {})
        for name, found in wrong.items():
            yield control(f"layer {i}: {name}", agree("", float(found.square().sum()), observed, size=weight.numel()))


def kernel_norm(kernel: Tensor, grid: tuple[int, ...]) -> float:
    """‖W‖_F² counted in space: each tap of the periodic sum stands once for every site."""
    return float((kernel_on(kernel, grid) ** 2).sum()) * math.prod(grid)


def hidden_layers(given: Given) -> Iterator[Callable[[Tensor], Tensor]]:
    """The module's own hidden convolutions, in space."""
    if isinstance(given.module, lc.LinearCNN):
        yield from (partial(circular_convolution, weight=w.detach()) for w in given.module.weights[:-1])
    else:
        yield from (layer for _, layer in leaves(given.module) if isinstance(layer, Conv))


def norm_checks(label: str, kernel: Tensor, grid: tuple[int, ...], layer: Callable[[Tensor], Tensor]) -> Iterator[Check]:
    """‖W‖ by iteration with the convolution and its adjoint in space, and ‖W‖_F."""
    largest = norm_of(layer, (kernel.shape[1], *grid))
    values = lc.conv_singular_values(kernel, grid)
    yield agree(f"{label}: the largest singular value", float(values.max()), largest, tolerance=1e-9, reason="Lanczos, to its own 1e-10")
    yield agree(f"{label}: Σσ² is ‖W‖_F²", float(values.square().sum()), kernel_norm(kernel, grid), size=kernel.numel())


def norm_of(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The norm of a linear map of images of this shape, by Lanczos iterations."""
    image = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)

    def forward(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(layer(torch.from_numpy(x).reshape(image.shape)).numpy().ravel())

    def adjoint(y: Array) -> Array:
        product = (layer(image).flatten() * torch.from_numpy(y).flatten()).sum()
        return np.asarray(torch.autograd.grad(product, image)[0].numpy().ravel())

    sizes = (forward(np.zeros(image.numel())).size, image.numel())
    operator = LinearOperator(sizes, matvec=forward, rmatvec=adjoint, dtype=np.float64)
    return float(svds(operator, k=1, return_singular_vectors=False, random_state=0)[0])


def padded(given: Given) -> Iterator[Check | Note | Progress]:
    """The nearest form: each convolution of the module, alone and without its bias, against a circular one on the larger grid."""
    met = dict(convolutions(given))
    if not met:
        yield from none_known(given)
    for name, (layer, shape) in met.items():
        kernel, larger = on_larger_grid(layer, shape[1:])
        yield Progress(f"layer {name}")
        bound = in_order(lc.conv_singular_values(kernel, larger)).numpy()
        rows = layer(torch.zeros(1, *shape, dtype=torch.float64)).numel()
        if rows * math.prod(shape) <= DENSE:
            columns = layer(torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)).flatten(1)
            observed = np.linalg.svd(columns.detach().numpy(), compute_uv=False)
        else:
            observed = np.array([norm_of(layer, shape)])
        label = f"layer {name}: nearest form: singular values at most those on {'×'.join(map(str, larger))} sites"
        yield at_most(label, observed, bound[: observed.size], size=4096)


def convolutions(given: Given) -> Iterator[tuple[str, tuple[Conv, tuple[int, ...]]]]:
    """By name, without their biases: the convolutions that an image meets of which the nearest form speaks, and the shapes they get."""
    found = {name: layer for name, layer in given.module.named_modules() if isinstance(layer, Conv)}
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: shapes.update({name: tuple(x[0].shape[1:])}))
        for name, layer in found.items()
    ]
    with torch.no_grad(), suppress(RuntimeError, ValueError):
        given.module(torch.zeros(1, *given.input_shape, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    for name, shape in shapes.items():
        layer = copy.deepcopy(found[name])
        layer.register_parameter("bias", None)
        # Circular padding beyond the kernel's reach repeats rows.
        once = layer.padding_mode == "circular" and all(m <= s for m, s in zip(paddings_of(layer), spans_of(layer), strict=True))
        if (once or layer.padding_mode == "zeros") and not layer._forward_hooks and not layer._forward_pre_hooks:
            yield name, (layer, shape)


def on_larger_grid(layer: Conv, grid: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The kernel with its groups and its dilation as zeros, and the grid with its padding; circular padding needs no larger one."""
    weight, spans = layer.weight.detach(), spans_of(layer)
    kernel = torch.zeros(len(weight), layer.in_channels, *(span + 1 for span in spans), dtype=torch.float64)
    taps = tuple(slice(None, None, d) for d in layer.dilation)
    rows, columns = len(weight) // layer.groups, layer.in_channels // layer.groups
    for g in range(layer.groups):
        kernel[(slice(g * rows, (g + 1) * rows), slice(g * columns, (g + 1) * columns), *taps)] = weight[g * rows : (g + 1) * rows]
    more = paddings_of(layer) if layer.padding_mode == "zeros" else [0] * len(grid)
    return kernel, tuple(n + m for n, m in zip(grid, more, strict=True))


def spans_of(layer: Conv) -> list[int]:
    """How far the last tap is from the first."""
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]


def paddings_of(layer: Conv) -> list[int]:
    """By how much each side of the grid grows, both ends together."""
    if layer.padding == "same":
        return spans_of(layer)
    return [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else [2 * p for p in layer.padding]


def draw(channels: tuple[int, int], dims: int, largest: int, wide: bool, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    """A random kernel and a grid of unequal sides: with up to n taps a side, or with up to 2n + 1 and more than n on each."""

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    grid: tuple[int, ...] = ()
    while len(grid) < dims:
        side = integer(2, largest if dims < 3 else min(largest, 4))
        grid = (*grid, side) if math.prod(grid) * side <= MOST_SITES else grid
    taps = [integer(n + 1, 2 * n + 1) if wide else integer(1, n) for n in grid]
    return torch.randn(*channels, *taps, generator=generator, dtype=torch.float64), grid


def dense_values(kernel: Tensor, grid: tuple[int, ...]) -> Float[Array, " n"]:
    """All singular values of the block-circulant matrix, descending."""
    return np.asarray(np.linalg.svd(witnesses.dense_convolution(kernel.numpy(), grid), compute_uv=False))


def in_order(values: Tensor) -> Tensor:
    return values.flatten().sort(descending=True).values


def value_checks(label: str, drawn: list[tuple[Tensor, tuple[int, ...]]]) -> Iterator[Check]:
    """All singular values, and intervals proved to contain those of these very floating-point kernels."""
    dense = [dense_values(kernel, grid) for kernel, grid in drawn]
    # Relative to the largest of each, so that no kernel hides behind a larger one.
    found = torch.cat([in_order(lc.conv_singular_values(*case)) / values[0] for case, values in zip(drawn, dense, strict=True)])
    expected = np.concatenate([values / values[0] for values in dense])
    count: dict[str, Any] = {"size": max(values.size for values in dense), "draws": len(drawn)}
    yield agree(f"{label}: all singular values", found, expected, **count)
    ends = [lc.conv_singular_values(kernel, grid, enclose=True) for kernel, grid in drawn]
    low = torch.cat([in_order(end.lower) / values[0] for end, values in zip(ends, dense, strict=True)])
    high = torch.cat([in_order(end.upper) / values[0] for end, values in zip(ends, dense, strict=True)])
    yield at_most(f"{label}: the dense values are at most the enclosures' upper ends", expected, high, **count)
    yield at_most(f"{label}: the dense values are at least the enclosures' lower ends", low, expected, **count)
    squares = [float((kernel_on(kernel, grid) ** 2).sum()) * math.prod(grid) for kernel, grid in drawn]
    sums = [float(lc.conv_singular_values(kernel, grid).square().sum()) for kernel, grid in drawn]
    yield agree(f"{label}: Σσ² is D times the squares of the periodic sum", sums, squares, size=count["size"], draws=len(drawn))


def kernel_on(kernel: Tensor, grid: tuple[int, ...]) -> Float[Array, "C_out C_in *grid"]:
    """The periodic sum of a kernel, tap by tap."""
    folded = np.zeros((*kernel.shape[:2], *grid))
    for tap in np.ndindex(*kernel.shape[2:]):
        site = tuple(m % n for m, n in zip(tap, grid, strict=True))
        folded[(slice(None), slice(None), *site)] += kernel[(slice(None), slice(None), *tap)].numpy()
    return folded


def exact_check(generator: torch.Generator) -> Check:
    """det(x − WᵀW) = Π_u det(x − ŵ_u* ŵ_u) on four sites, in integers: the same singular values with the same multiplicities."""
    cases = []
    for taps in (3, 4, 5, 9):
        kernel = torch.randint(-3, 4, (2, 2, taps), generator=generator).numpy()
        cases.append(exactly_equal(kernel))
    reason = "characteristic polynomials with integer coefficients, 4 sites, 3 to 9 taps"
    return proved(
        "integer kernels: characteristic polynomials of WᵀW and of the blocks", cases=len(cases), failures=cases.count(False), reason=reason
    )


def exactly_equal(kernel: Int[Array, "C_out C_in taps"], *, taps: int | None = None) -> bool:
    """Whether the two polynomials are equal; with `taps` the blocks see that many taps only, which is wrong."""
    x = sympy.Symbol("x")
    used = kernel[..., :taps]
    entries = witnesses.dense_convolution(kernel.astype(float), (4,)).astype(int).tolist()
    dense = sympy.Matrix(entries)
    expected = sympy.Integer(1)
    for u in range(4):
        block = sympy.zeros(*used.shape[:2])
        for m in range(used.shape[2]):
            block += sympy.Matrix(used[:, :, m].tolist()) * (-sympy.I) ** (u * m % 4)
        expected *= (block.H * block).applyfunc(sympy.expand).charpoly(x).as_expr()
    return bool(sympy.expand((dense.T * dense).charpoly(x).as_expr() - expected) == 0)


def controls(case: tuple[Tensor, tuple[int, ...]]) -> Iterator[Check]:
    kernel, grid = case
    dense, sites = dense_values(kernel, grid), math.prod(grid)
    truncated = kernel[(slice(None), slice(None), *(slice(n) for n in grid))].contiguous()
    padded = torch.zeros(*kernel.shape[:2], *(3 * n for n in grid), dtype=kernel.dtype)
    padded[(slice(None), slice(None), *(slice(k) for k in kernel.shape[2:]))] = kernel
    on_padded = in_order(lc.conv_singular_values(padded, tuple(3 * n for n in grid)))
    wrong = {
        "a wide kernel truncated to the grid": in_order(lc.conv_singular_values(truncated, grid)),
        "zeros around the grid in the place of wrapping": on_padded[:: 3 ** len(grid)],
        "orthonormal transform of the kernel": in_order(lc.conv_singular_values(kernel, grid)) / math.sqrt(sites),
        "signs of the taps dropped": in_order(lc.conv_singular_values(kernel.abs(), grid)),
        "one frequency's values for all": lc.conv_singular_values(kernel, grid).flatten(0, -2)[0].repeat_interleave(sites),
    }
    for name, values in wrong.items():
        yield control(name, agree("", values, dense))
    integers = np.arange(-6, 14).reshape(2, 2, 5)
    yield control(
        "integer kernels: five taps on four sites, truncated", proved("", cases=1, failures=int(not exactly_equal(integers, taps=4)))
    )


if __name__ == "__main__":
    main(claim)
