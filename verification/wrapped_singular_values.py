r"""The singular values of a circular convolution, its kernel smaller or wider than the grid, are those of its frequency blocks.

A kernel w with any number of taps acts on D sites as its periodic sum (taps that differ by multiples of the grid wrap around and
add up), and with the unnormalised transform $\hat w_u = \sum_m w_m e^{-2\pi i\, u\cdot m/n}$, the sum over *all* taps,

$$\sigma(W_w) \;=\; \bigcup_u \sigma(\hat w_u), \qquad \|W_w\| = \max_u \|\hat w_u\|, \qquad \|W_w\|_F^2 = \sum_u \|\hat w_u\|_F^2,$$

counted with multiplicity, W being the block-circulant matrix of the convolution on $C_{in} D$ numbers.

Source: Sedghi, Gupta, Long, The singular values of convolutional layers, arXiv 1805.10408, for kernels no wider than the grid.
Here W is built tap by tap, the library's values are compared with its dense singular values, enclosed, and on four sites, whose
roots of unity are Gaussian integers, compared as polynomials with integer coefficients.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import sympy
import torch
from annotated_types import Interval
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, agree, at_most, control, main, proved
from linconv.network import circular_convolution
from verification._given import Given, InputShape, ModulePath, Net, on_given_network

Array = np.ndarray

FAST = {"draws": 1, "largest": 4}
DENSE = 400_000  # entries of a dense matrix whose singular values take a second
MOST_SITES = 60  # of a random grid: its dense matrix has at most 240 rows


def claim(
    *,
    out_channels: Annotated[int, Interval(ge=2, le=4), "output channels of the convolution"] = 3,
    in_channels: Annotated[int, Interval(ge=2, le=4), "input channels of the convolution"] = 2,
    largest: Annotated[int, Interval(ge=3, le=8), "largest side of the random grids"] = 7,
    draws: Annotated[int, Interval(ge=1, le=50), "random kernels in each dimension and of each kind of kernel"] = 4,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of grids and kernels"] = 0,
    module: ModulePath = "",
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(on_network, net, module, input_shape, torch.Generator().manual_seed(seed), least_depth=2)
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
    for i, weight in enumerate(w.detach() for w in given.net.weights[:-1]):
        case = (weight, given.net.grid)
        yield Progress(f"layer {i}")
        if weight.shape[0] * weight.shape[1] * math.prod(given.net.grid) ** 2 <= DENSE:
            yield from value_checks(f"layer {i}", [case])
        else:
            yield from norm_checks(f"layer {i}", *case)
        values, sites, observed = lc.conv_singular_values(*case), math.prod(given.net.grid), kernel_norm(*case)
        wrong = {"scaled by 1.01": 1.01 * values} | ({"orthonormal transform": values / math.sqrt(sites)} if sites > 1 else {})
        for name, found in wrong.items():
            yield control(f"layer {i}: {name}", agree("", float(found.square().sum()), observed, size=weight.numel()))


def kernel_norm(kernel: Tensor, grid: tuple[int, ...]) -> float:
    """‖W‖_F² counted in space: each tap of the periodic sum stands once for every site."""
    return float((kernel_on(kernel, grid) ** 2).sum()) * math.prod(grid)


def norm_checks(label: str, kernel: Tensor, grid: tuple[int, ...]) -> Iterator[Check]:
    """‖W‖ by Lanczos iterations with the convolution and its adjoint in space, and ‖W‖_F."""

    def forward(x: Array) -> Array:
        image = torch.from_numpy(x).reshape(1, kernel.shape[1], *grid)
        return np.asarray(circular_convolution(image, kernel).numpy().ravel())

    def adjoint(y: Array) -> Array:
        image = torch.zeros(1, kernel.shape[1], *grid, dtype=torch.float64, requires_grad=True)
        product = (circular_convolution(image, kernel).flatten() * torch.from_numpy(y).flatten()).sum()
        return np.asarray(torch.autograd.grad(product, image)[0].numpy().ravel())

    sites = math.prod(grid)
    shape = (kernel.shape[0] * sites, kernel.shape[1] * sites)
    operator = LinearOperator(shape, matvec=forward, rmatvec=adjoint, dtype=np.float64)
    largest = float(svds(operator, k=1, return_singular_vectors=False, random_state=0)[0])
    values = lc.conv_singular_values(kernel, grid)
    yield agree(f"{label}: the largest singular value", float(values.max()), largest, tolerance=1e-9, reason="Lanczos, to its own 1e-10")
    yield agree(f"{label}: Σσ² is ‖W‖_F²", float(values.square().sum()), kernel_norm(kernel, grid), size=kernel.numel())


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
