"""Strategies of grids, predictors, linear CNNs and images, with any entries.

Entries are small integers and short binary fractions, many of them equal, which finds degenerate
cases (zeros, blocks of low rank), and half of the time normal numbers from a seed are added, which makes them generic; a
failing example shrinks towards few entries, small integers and no seed.

Each strategy has a function `admits(value, known)`: whether it can yield the value, given that it can yield the `known` one.  With it
`linconv.falsify` may change the entries and the shape of what was drawn and stay inside the claim's domain.  `map` and `filter` lose it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from linconv.network import LinearCNN
from linconv.validation import REAL_DTYPES, validate_grid, validate_size

Grid = Sequence[int] | SearchStrategy[tuple[int, ...]]
Dtype = torch.dtype | SearchStrategy[torch.dtype]
T = TypeVar("T")
Draw = Callable[..., Any]  # Hypothesis's own DrawFn cannot be checked at run time


def grids(*, min_dims: int = 1, max_dims: int = 3, max_side: int = 7, max_sites: int = 36) -> SearchStrategy[tuple[int, ...]]:
    """Grids of `min_dims` to `max_dims` dimensions, sides 1 to `max_side`, at most `max_sites` sites; shrinks to `(1,)`.

    Raises `ValueError` or `TypeError` for bounds that are not positive integers or that leave no dimension between 1 and 3.

    >>> from hypothesis import find
    >>> find(grids(), lambda grid: len(grid) == 2 and math.prod(grid) % 2 == 0)
    (1, 2)
    """
    bounds = {"min_dims": min_dims, "max_dims": max_dims, "max_side": max_side, "max_sites": max_sites}
    for name, bound in bounds.items():
        validate_size(name, bound)
    if not min_dims <= max_dims <= 3:
        raise ValueError(f"max_dims: expected min_dims ≤ max_dims ≤ 3, got min_dims={min_dims}, max_dims={max_dims}")

    def admits(grid: object, known: object) -> bool:
        return (
            isinstance(grid, tuple) and min_dims <= len(grid) <= max_dims and _all_within(grid, max_side) and math.prod(grid) <= max_sites
        )

    return _admitting(_grids(min_dims, max_dims, max_side, max_sites), admits)


@st.composite
def _grids(draw: Draw, min_dims: int, max_dims: int, max_side: int, max_sites: int) -> tuple[int, ...]:
    grid: tuple[int, ...] = ()
    for _ in range(draw(st.integers(min_dims, max_dims))):
        grid += (draw(st.integers(1, max(1, min(max_side, max_sites // math.prod(grid))))),)
    return grid


def predictors(
    *, grid: Grid | None = None, max_outputs: int = 3, max_channels: int = 3, dtype: Dtype = torch.float64
) -> SearchStrategy[Tensor]:
    """Real tensors β of shape `(K, C, *grid)`, 1 ≤ K ≤ `max_outputs` and 1 ≤ C ≤ `max_channels`.

    `grid` and `dtype` are values or strategies (default: `grids()`, float64).  Raises as `grids` does.

    >>> from hypothesis import find
    >>> find(predictors(grid=(2,)), lambda beta: beta.sum() > 1)
    tensor([[[0., 2.]]], dtype=torch.float64)
    """
    validate_size("max_outputs", max_outputs)
    validate_size("max_channels", max_channels)
    sites = grid_strategy(grid)

    def admits(beta: object, known: object) -> bool:
        small = (
            isinstance(beta, Tensor)
            and beta.ndim > 2
            and _all_within(beta.shape[:1], max_outputs)
            and _all_within(beta.shape[1:2], max_channels)
        )
        return small and _like(beta, known) and _admits_grid(sites, beta, known)

    return _admitting(_predictors(sites, max_outputs, max_channels, _dtype(dtype)), admits)


@st.composite
def _predictors(
    draw: Draw, grid: SearchStrategy[tuple[int, ...]], outputs: int, channels: int, dtype: SearchStrategy[torch.dtype]
) -> Tensor:
    shape = (draw(st.integers(1, outputs)), draw(st.integers(1, channels)), *draw(grid))
    return draw(tensors(shape, draw(dtype)))


def linear_cnns(
    *, grid: Grid | None = None, max_depth: int = 4, max_channels: int = 3, max_outputs: int = 3, dtype: Dtype = torch.float64
) -> SearchStrategy[LinearCNN]:
    """Networks of depth 1 to `max_depth` with any widths up to the bounds and kernels narrower, as wide and wider than the grid.

    Every layer has its own kernel, 1 to n + 2 taps in a dimension of n sites.  `grid` and `dtype` are values or strategies
    (default: `grids()`, float64).  Raises as `grids` does.

    >>> from hypothesis import find
    >>> net = find(linear_cnns(), lambda net: net.depth == 3)
    >>> [tuple(w.shape) for w in net.weights], net.grid
    ([(1, 1, 1), (1, 1, 1), (1, 1, 1)], (1,))
    """
    for name, bound in {"max_depth": max_depth, "max_channels": max_channels, "max_outputs": max_outputs}.items():
        validate_size(name, bound)
    sites = grid_strategy(grid)

    def admits(net: object, known: object) -> bool:
        if not isinstance(net, LinearCNN) or not isinstance(known, LinearCNN) or net.depth > max_depth:
            return False
        widths = _all_within([w.shape[1] for w in net.weights], max_channels) and _all_within(net.weights[-1].shape[:1], max_outputs)
        kernels = all(_all_within([k - n for k, n in zip(w.shape[2:], net.grid, strict=True)], 2, least=-math.inf) for w in net.weights)
        alike = all(_like(w, known.weights[0]) for w in net.weights)
        return widths and kernels and alike and _admits_grid(sites, net.weights[-1], known.weights[-1])

    return _admitting(_linear_cnns(sites, max_depth, max_channels, max_outputs, _dtype(dtype)), admits)


@st.composite
def _linear_cnns(
    draw: Draw,
    grids: SearchStrategy[tuple[int, ...]],
    max_depth: int,
    max_channels: int,
    max_outputs: int,
    dtypes: SearchStrategy[torch.dtype],
) -> LinearCNN:
    grid, dtype = draw(grids), draw(dtypes)
    widths = [draw(st.integers(1, max_channels)) for _ in range(draw(st.integers(1, max_depth)))]
    shapes = [(b, a, *(draw(st.integers(1, n + 2)) for n in grid)) for a, b in pairwise(widths)]
    shapes.append((draw(st.integers(1, max_outputs)), widths[-1], *grid))
    return LinearCNN.from_weights([draw(tensors(shape, dtype)) for shape in shapes], grid)


def images(
    *, net: LinearCNN | None = None, channels: int = 1, grid: Grid | None = None, max_images: int = 3, dtype: Dtype = torch.float64
) -> SearchStrategy[Tensor]:
    """Images `(N, C, *grid)`, 1 ≤ N ≤ `max_images`: those that `net` takes, or with `channels`, on `grid` and of `dtype`.

    Raises as `grids` does, and `TypeError` for a `net` that is no `LinearCNN`.

    >>> from hypothesis import find
    >>> net = LinearCNN(2, (3,), 4, (2,), dtype=torch.float32)
    >>> find(images(net=net), lambda x: len(x) == 1)
    tensor([[[0., 0.],
             [0., 0.]]])
    """
    validate_size("max_images", max_images)
    if net is not None and not isinstance(net, LinearCNN):
        raise TypeError(f"net: expected a LinearCNN, got {type(net).__name__}")
    if net is None:
        depth, sites, dtypes = validate_size("channels", channels), grid_strategy(grid), _dtype(dtype)
    else:
        first = net.weights[0]
        depth, sites, dtypes = first.shape[1], grid_strategy(net.grid), st.just(first.dtype)

    def admits(x: object, known: object) -> bool:
        small = isinstance(x, Tensor) and x.ndim > 2 and x.shape[1] == depth and _all_within(x.shape[:1], max_images)
        return small and _like(x, known) and _admits_grid(sites, x, known)

    return _admitting(_images(depth, sites, max_images, dtypes), admits)


@st.composite
def _images(
    draw: Draw, channels: int, grid: SearchStrategy[tuple[int, ...]], max_images: int, dtype: SearchStrategy[torch.dtype]
) -> Tensor:
    return draw(tensors((draw(st.integers(1, max_images)), channels, *draw(grid)), draw(dtype)))


def grid_strategy(grid: Grid | None) -> SearchStrategy[tuple[int, ...]]:
    if grid is None:
        return grids()
    if isinstance(grid, SearchStrategy):
        return grid
    only = validate_grid(grid)
    return _admitting(st.tuples(*map(st.just, only)), lambda value, known: value == only)


def _admitting(strategy: SearchStrategy[T], admits: Callable[[object, object], bool]) -> SearchStrategy[T]:
    strategy.admits = admits  # type: ignore[attr-defined]  # an attribute of its own, which Hypothesis does not look at
    return strategy


def _all_within(sizes: Sequence[int], most: int, *, least: float | int = 1) -> bool:
    return all(least <= size <= most for size in sizes)


def _like(value: object, known: object) -> bool:
    """Finite numbers of the known dtype: every entry is possible, since normal numbers are added."""
    return (
        isinstance(value, Tensor)
        and isinstance(known, Tensor)
        and value.dtype == known.dtype
        and value.numel() > 0
        and bool(value.detach().isfinite().all())
    )


def _admits_grid(grid: SearchStrategy[tuple[int, ...]], value: object, known: object) -> bool:
    """Whether the tensor's sites are a grid of the strategy; of one that cannot tell, only the known grid is."""
    if not isinstance(value, Tensor) or not isinstance(known, Tensor):
        return False
    here, there = tuple(value.shape[2:]), tuple(known.shape[2:])
    admits = getattr(grid, "admits", None)
    return here == there if admits is None else bool(admits(here, there))


def _dtype(dtype: Dtype) -> SearchStrategy[torch.dtype]:
    if isinstance(dtype, SearchStrategy):
        return dtype
    if dtype not in REAL_DTYPES:
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, or a strategy of them, got {dtype}")
    return st.just(dtype)


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> SearchStrategy[Tensor]:
    """Tensors of one shape: integers and fractions that both precisions hold exactly, plus normal numbers from a seed other than 0."""
    entries = st.integers(-3, 3).map(float) | st.floats(-2, 2, width=16, allow_subnormal=False)
    seeds = st.just(0) | st.integers(1, 2**32 - 1)
    return st.builds(_sum, npst.arrays(np.float64, shape, elements=entries), seeds, st.just(dtype))


def _sum(entries: npt.NDArray[np.float64], seed: int, dtype: torch.dtype) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal(entries.shape) if seed else 0.0
    return torch.from_numpy(entries + noise).to(dtype)
