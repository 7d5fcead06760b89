"""Hypothesis strategies for grids, predictors, linear CNNs and images.

Imported only on demand (`from linconv import strategies`), because it needs nothing but Hypothesis and imports it.  Every
option is keyword-only.  Entries are small integers and short binary fractions, many of them equal, which finds degenerate
cases (zeros, blocks of low rank), and half of the time normal numbers from a seed are added, which makes them generic; a
failing example shrinks towards few entries, small integers and no seed.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

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
    return _grids(min_dims, max_dims, max_side, max_sites)


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
    return _predictors(_grid(grid), max_outputs, max_channels, _dtype(dtype))


@st.composite
def _predictors(
    draw: Draw, grid: SearchStrategy[tuple[int, ...]], outputs: int, channels: int, dtype: SearchStrategy[torch.dtype]
) -> Tensor:
    shape = (draw(st.integers(1, outputs)), draw(st.integers(1, channels)), *draw(grid))
    return draw(_tensors(shape, draw(dtype)))


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
    return _linear_cnns(_grid(grid), max_depth, max_channels, max_outputs, _dtype(dtype))


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
    return LinearCNN.from_weights([draw(_tensors(shape, dtype)) for shape in shapes], grid)


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
    if net is None:
        return _images(validate_size("channels", channels), _grid(grid), max_images, _dtype(dtype))
    if not isinstance(net, LinearCNN):
        raise TypeError(f"net: expected a LinearCNN, got {type(net).__name__}")
    first = net.weights[0]
    return _images(first.shape[1], st.just(net.grid), max_images, st.just(first.dtype))


@st.composite
def _images(
    draw: Draw, channels: int, grid: SearchStrategy[tuple[int, ...]], max_images: int, dtype: SearchStrategy[torch.dtype]
) -> Tensor:
    return draw(_tensors((draw(st.integers(1, max_images)), channels, *draw(grid)), draw(dtype)))


def _grid(grid: Grid | None) -> SearchStrategy[tuple[int, ...]]:
    if grid is None:
        return grids()
    return grid if isinstance(grid, SearchStrategy) else st.just(validate_grid(grid))


def _dtype(dtype: Dtype) -> SearchStrategy[torch.dtype]:
    if isinstance(dtype, SearchStrategy):
        return dtype
    if dtype not in REAL_DTYPES:
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, or a strategy of them, got {dtype}")
    return st.just(dtype)


def _tensors(shape: tuple[int, ...], dtype: torch.dtype) -> SearchStrategy[Tensor]:
    """Tensors of one shape: integers and fractions that both precisions hold exactly, plus normal numbers from a seed other than 0."""
    entries = st.integers(-3, 3).map(float) | st.floats(-2, 2, width=16, allow_subnormal=False)
    seeds = st.just(0) | st.integers(1, 2**32 - 1)
    return st.builds(_sum, npst.arrays(np.float64, shape, elements=entries), seeds, st.just(dtype))


def _sum(entries: npt.NDArray[np.float64], seed: int, dtype: torch.dtype) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal(entries.shape) if seed else 0.0
    return torch.from_numpy(entries + noise).to(dtype)
