"""Checks of arguments, with errors that say what was expected, what came and what to do."""

import math
import operator
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

REAL_DTYPES = (torch.float32, torch.float64)


def validate_tensor(name: str, value: object, *, ndim: tuple[int, ...] | None = None, shape: str = "", finite: bool = True) -> Tensor:
    """Return `value` if it is a finite real tensor with as many dimensions as `ndim` allows, else raise naming the argument."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor{f' {shape}' if shape else ''}, got {type(value).__name__}; use torch.as_tensor")
    if value.layout != torch.strided or value.device.type == "meta":
        raise TypeError(f"{name}: expected a dense tensor with data, got {value.layout} on {value.device}; use .to_dense(), or load it")
    if value.dtype not in REAL_DTYPES:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}; convert with .to(torch.float64)")
    if ndim is not None and value.ndim not in ndim:
        raise ValueError(f"{name}: expected {shape or f'{ndim} dimensions'}, got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name}: expected data, got the empty shape {tuple(value.shape)}")
    # The extremes are NaN or infinite where an entry is, and take no memory of the size of the data.
    if finite and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value.detach())):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; clean the data first")
    return value


def validate_sizes(name: str, sizes: object, *, dims: int | None = None, per: str = "dimension") -> tuple[int, ...]:
    """Return `sizes` as a tuple of positive integers (one integer is repeated `dims` times), else raise naming the argument."""
    if dims is not None and hasattr(sizes, "__index__") and not isinstance(sizes, Iterable):
        sizes = (sizes,) * dims
    if not isinstance(sizes, Iterable) or isinstance(sizes, str):
        raise TypeError(f"{name}: expected a sequence of positive integers, got {sizes!r}; write a tuple such as (4, 4)")
    integers = tuple(validate_size(name, n) for n in sizes)
    if dims is not None and len(integers) != dims:
        raise ValueError(f"{name}: expected {dims} positive integers, one a {per}, got {integers}; give {dims}")
    return integers


def validate_size(name: str, size: object) -> int:
    """Return `size` as one positive integer, else raise naming the argument."""
    wrong = TypeError(f"{name}: expected a positive integer, got {size!r}; write it as an int, 1 or larger")
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise wrong
    try:
        number = operator.index(size)
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    if not 0 < number < 2**31:
        raise ValueError(f"{name}: expected a positive integer below 2^31, got {number}; choose one in that range")
    return number


def validate_number(name: str, value: object, *, positive: bool = False) -> float:
    """Return `value` as a finite float ≥ 0 (> 0 if `positive`), else raise naming the argument."""
    wrong = TypeError(f"{name}: expected a number, got {value!r}; write it as a float")
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise wrong
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name}: expected a finite number {'> 0' if positive else '≥ 0'}, got {number}; choose one in that range")
    return number


def validate_steps(steps: object) -> float:
    """The number of steps as a float, whole and ≥ 0 or infinite (a float, or a tensor without dimensions), else raise."""
    scalar = isinstance(steps, float) or getattr(steps, "ndim", None) == 0
    number = math.inf if scalar and steps == math.inf else validate_number("steps", steps)
    if number < math.inf and number % 1:
        raise ValueError(f"steps: expected a whole number ≥ 0 or math.inf, got {number}; round it")
    return number


def validate_memory(name: str, entries: int, limit: int = 2**34) -> None:
    """Raise, naming the argument that makes it so large, where an array would have more than `limit` entries."""
    if entries > limit:
        raise ValueError(f"{name}: expected sizes whose arrays fit in memory, got one of {entries:.1e} numbers; take a smaller one")


def validate_generator(generator: object) -> torch.Generator:
    """Return the generator, else raise naming the argument."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r}; pass torch.Generator().manual_seed(0)")
    return generator


def validate_grid(grid: object) -> tuple[int, ...]:
    """Return the grid as a tuple of one to three positive integers, else raise."""
    sizes = validate_sizes("grid", grid)
    if len(sizes) not in (1, 2, 3):
        raise ValueError(f"grid: expected 1, 2 or 3 dimensions, got {sizes}; give one size a spatial dimension")
    return sizes


def validate_module(name: str, value: object) -> nn.Module:
    """Return `value` if it is a torch module whose weights are there, else raise naming the argument.

    A lazy module would take its weights from the global generator at its first call.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch module, got {type(value).__name__}; wrap a function in one whose forward calls it")
    for where, weight in chain(value.named_parameters(), value.named_buffers()):
        if isinstance(weight, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise ValueError(f"{name}: expected weights, got a lazy module whose {where} has none yet; call it once on an image first")
        if weight.device.type == "meta":
            raise ValueError(f"{name}: expected weights, got a module whose {where} has no data, on the device meta; load them first")
    return value


def validate_device(device: torch.device | str | None) -> torch.device:
    """The device, the CPU by default, else raise naming the argument."""
    try:
        return torch.empty(0, device=device).device if device is not None else torch.device("cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that torch has here, got {device!r}: {str(error).splitlines()[0]}") from None
