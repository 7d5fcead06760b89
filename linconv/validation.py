"""Checks of arguments, with errors that say what was expected, what came and what to do."""

import math
import operator
from collections.abc import Iterable

import torch
from torch import Tensor

REAL_DTYPES = (torch.float32, torch.float64)


def validate_tensor(name: str, value: object, *, ndim: tuple[int, ...] | None = None, shape: str = "", finite: bool = True) -> Tensor:
    """Return `value` if it is a finite real tensor with as many dimensions as `ndim` allows, else raise naming the argument."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor{f' {shape}' if shape else ''}, got {type(value).__name__}; use torch.as_tensor")
    if value.dtype not in REAL_DTYPES:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}; convert with .to(torch.float64)")
    if ndim is not None and value.ndim not in ndim:
        raise ValueError(f"{name}: expected {shape or f'{ndim} dimensions'}, got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name}: expected data, got the empty shape {tuple(value.shape)}")
    if finite and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; clean the data first")
    return value


def validate_sizes(name: str, sizes: object, *, dims: int | None = None) -> tuple[int, ...]:
    """Return `sizes` as a tuple of positive integers (an integer is repeated `dims` times), else raise naming the argument."""
    if isinstance(sizes, int) and not isinstance(sizes, bool) and dims is not None:
        sizes = (sizes,) * dims
    if not isinstance(sizes, Iterable) or isinstance(sizes, str):
        raise TypeError(f"{name}: expected a sequence of positive integers, got {sizes!r}")
    numbers = tuple(sizes)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in numbers):
        raise TypeError(f"{name}: expected integers, got {numbers!r}")
    integers = tuple(operator.index(n) for n in numbers)
    if any(not 0 < n < 2**31 for n in integers):
        raise ValueError(f"{name}: expected positive integers below 2^31, got {integers}")
    if dims is not None and len(integers) != dims:
        raise ValueError(f"{name}: expected {dims} positive integers, one a dimension, got {integers}")
    return integers


def validate_size(name: str, size: object) -> int:
    """Return `size` as one positive integer, else raise naming the argument."""
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"{name}: expected a positive integer, got {size!r}")
    return validate_sizes(name, (size,))[0]


def validate_number(name: str, value: object, *, positive: bool = False) -> float:
    """Return `value` as a finite float ≥ 0 (> 0 if `positive`), else raise naming the argument."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name}: expected a finite number {'> 0' if positive else '≥ 0'}, got {number}")
    return number


def validate_grid(grid: object) -> tuple[int, ...]:
    """Return the grid as a tuple of one to three positive integers, else raise."""
    sizes = validate_sizes("grid", grid)
    if len(sizes) not in (1, 2, 3):
        raise ValueError(f"grid: expected 1, 2 or 3 dimensions, got {sizes}")
    return sizes
