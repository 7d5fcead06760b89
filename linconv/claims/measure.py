"""How far apart two numerical objects are, and how far apart rounding alone may put them."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Number: TypeAlias = float | int

ROUNDING_FACTOR = 32
SMALLEST_SIZE, LARGEST_SIZE = 16, 4096
COARSEST = 0.1
LISTED_ENTRIES = 32


@dataclass(frozen=True)
class Values:
    """An array ready to be compared: float64, complex128, or Python integers and fractions, which are exact.

    `epsilon` is the relative rounding unit of the precision in which the numbers were *made*, 0 for exact ones.
    """

    array: Array
    precision: str
    epsilon: float

    @property
    def exact(self) -> bool:
        return self.epsilon == 0

    def floating(self) -> Array:
        """The entries as float64 or complex128."""
        return self.array.astype(np.float64) if self.exact else self.array

    def has_nan(self) -> bool:
        return not self.exact and bool(np.isnan(self.array).any())

    def magnitude(self) -> float:
        """Largest finite absolute value; 0 where there is none."""
        absolute = np.abs(self.floating())
        finite = absolute[np.isfinite(absolute)]
        return float(finite.max()) if finite.size else 0.0


def as_values(value: object, what: str) -> Values:
    """Read a tensor, an array, a number or a nested sequence of numbers.

    `TypeError`, naming `what`, for anything that is not numerical.
    """
    if isinstance(value, torch.Tensor):
        return _from_tensor(value.detach().cpu())
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return Values(_integers(array), "exact", 0.0)
    if array.dtype.kind in "fc":
        wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        return Values(wide, array.dtype.name, max(float(np.finfo(array.dtype).eps), float(np.finfo(np.float64).eps)))
    if array.dtype.kind == "O":
        return _from_objects(array, what)
    raise TypeError(f"{what} must be a tensor, an array or a number, got {type(value).__name__}; convert it before the check")


def _integers(array: Array) -> Array:
    return array.astype(np.int64 if array.dtype.kind == "b" else array.dtype).astype(object)


def _from_tensor(tensor: torch.Tensor) -> Values:
    name = str(tensor.dtype).removeprefix("torch.")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return Values(_integers(tensor.numpy()), "exact", 0.0)
    wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).resolve_conj().resolve_neg()
    return Values(wide.numpy(), name, float(torch.finfo(tensor.dtype).eps))


def _from_objects(array: Array, what: str) -> Values:
    entries = list(array.ravel())
    if all(isinstance(entry, numbers.Rational) for entry in entries):
        return Values(array, "exact", 0.0)
    try:
        wide = np.array([complex(entry) for entry in entries], dtype=np.complex128).reshape(array.shape)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must hold numbers: {error}; convert it before the check") from None
    return Values(wide if wide.imag.any() else wide.real, "float64", float(np.finfo(np.float64).eps))


def distance(observed: Values, predicted: Values) -> Array:
    """Entrywise |observed − predicted| as float64. Equal infinities are at distance 0."""
    if observed.exact and predicted.exact:
        return np.asarray(np.abs(observed.array - predicted.array), dtype=np.float64)
    left, right = observed.floating(), predicted.floating()
    with np.errstate(all="ignore"):
        result: Array = np.abs(left - right)
    return np.where(left == right, 0.0, result)


def excess(observed: Values, bound: Values) -> Array:
    """Entrywise observed − bound as float64, for real numbers. Equal infinities give 0.

    `TypeError` for complex numbers, which have no order.
    """
    if observed.exact and bound.exact:
        return np.asarray(observed.array - bound.array, dtype=np.float64)
    left, right = observed.floating(), bound.floating()
    if left.dtype.kind == "c" or right.dtype.kind == "c":
        raise TypeError("complex numbers have no order: bound their absolute value")
    with np.errstate(all="ignore"):
        result: Array = left - right
    return np.where(left == right, 0.0, result)


def relative(gap: float, scale: float) -> float:
    """gap / scale, where nothing relative to nothing is 0 and something relative to nothing is infinite."""
    if scale == 0 or math.isinf(gap):
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / scale


def rounding(observed: Values, predicted: Values, size: int | None) -> tuple[float, str]:
    """The tolerance that rounding explains, and the sentence that says so.

    32·ε·√n with ε the unit of the coarser of the two precisions and n = `size` (by default the number of entries), taken
    between 16 and 4096: rounding errors of n operations add like a random walk, and the cap keeps an error of 10⁻³ visible
    in float32 at any size. It never exceeds 0.1, in half precision either. Integers and fractions on both sides have tolerance 0.
    """
    if observed.exact and predicted.exact:
        return 0.0, "exact: integers or fractions on both sides"
    coarser = max(observed, predicted, key=_epsilon)
    entries = max(observed.array.size, predicted.array.size) if size is None else size
    counted = min(max(entries, SMALLEST_SIZE), LARGEST_SIZE)
    tolerance = min(ROUNDING_FACTOR * coarser.epsilon * math.sqrt(counted), COARSEST)
    return tolerance, f"rounding: {ROUNDING_FACTOR}·ε({coarser.precision})·√{counted}"


def _epsilon(values: Values) -> float:
    return values.epsilon


def permuted(array: Array) -> Array | None:
    """The entries in another order, as far from the given one as a few tries find; None where order does not matter."""
    flat = array.ravel()
    rng = np.random.default_rng(0)
    candidates = [np.roll(flat, 1), flat[::-1], *(rng.permutation(flat) for _ in range(8))]
    finite = np.isfinite(flat)
    if flat.size < 2 or not finite.all():
        return None
    changes = [float(np.abs(candidate - flat).max()) for candidate in candidates]
    best = int(np.argmax(changes))
    return candidates[best].reshape(array.shape) if changes[best] > 0 else None


def summary(values: Values) -> Any:
    """A JSON value: the number, the nested list of a small array, or the shape and range of a large one."""
    array = values.array
    if array.size <= LISTED_ENTRIES:
        return _listed(array.tolist())
    absolute = np.abs(values.floating())
    described = {"shape": list(array.shape), "precision": values.precision, "norm": float(np.sqrt(np.sum(absolute**2)))}
    reducers: dict[str, Callable[[Array], Any]] = {"smallest": np.min, "largest": np.max}
    return described | {f"{name} absolute value": float(reduce(absolute)) for name, reduce in reducers.items()}


def _listed(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_listed(item) for item in entry]
    if isinstance(entry, complex):
        return {"re": entry.real, "im": entry.imag}
    if isinstance(entry, numbers.Integral):
        return int(entry)
    return entry if isinstance(entry, float) else str(entry)
