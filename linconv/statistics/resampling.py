"""Bootstrap intervals of independent samples.  For few samples see `linconv.statistics.student`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its stats load at their first use, so that the workers of a sweep need not wait for them
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from linconv.validation import validate_generator, validate_size, validate_tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval [low, high] at `level` around `estimate`: numbers, or tensors of one shape for a band."""

    estimate: float | Tensor
    low: float | Tensor
    high: float | Tensor
    level: float


def bootstrap_interval(
    samples: Float[Tensor, "..."] | Sequence[Float[Tensor, "..."]],
    statistic: Callable[..., Any] = np.mean,
    *,
    generator: torch.Generator,
    level: float = 0.95,
    resamples: int = 9999,
    axis: int = 0,
) -> Interval:
    """Bootstrap interval of a statistic of independent samples along `axis`, bias-corrected and accelerated (BCa).

    `samples` is a tensor or a sequence of tensors of one shape, which are resampled together (paired).  `statistic` takes their NumPy
    arrays and `axis`, as `np.mean` and `np.median` do; the other axes give a band, in tensors on the device of the samples.  Where BCa is
    undefined (all jackknife values alike, or the estimate beyond all resamples) the percentile interval stands in; where no resample
    differs it is a point.  Raises `ValueError` for fewer than two samples, NaN, or a statistic that is not defined on them.
    Source: Efron (1987), by `scipy.stats.bootstrap`.

    >>> x = torch.arange(1.0, 10.0, dtype=torch.float64)
    >>> interval = bootstrap_interval(x, generator=torch.Generator().manual_seed(0))
    >>> interval.estimate, interval.low < 5 < interval.high
    (5.0, True)
    >>> constant = bootstrap_interval(torch.ones(5), generator=torch.Generator().manual_seed(0))
    >>> constant.low, constant.high
    (1.0, 1.0)
    """
    given = [samples] if isinstance(samples, Tensor) else list(samples)
    if not given or len({getattr(x, "shape", None) for x in given}) > 1:
        raise ValueError(f"samples: expected one tensor or several of one shape, got {[getattr(x, 'shape', x) for x in given]}")
    arrays = [as_array("samples", x) for x in given]
    if not -arrays[0].ndim <= axis < arrays[0].ndim:
        raise ValueError(f"axis: expected one of the {arrays[0].ndim} axes of the samples, got {axis}")
    if arrays[0].shape[axis] < 2:
        raise ValueError(f"samples: expected at least two along axis {axis}, got shape {arrays[0].shape}; one says nothing of the spread")
    confidence, count, rng = checked_level(level), validate_size("resamples", resamples), numpy_generator(generator)
    estimate = np.asarray(statistic(*arrays, axis=axis), dtype=np.float64)
    if not np.isfinite(estimate).all():
        raise ValueError("statistic: not finite on the samples; leave out what it is not defined on")
    options: dict[str, Any] = {"paired": True, "axis": axis, "confidence_level": confidence, "rng": rng}
    # Chunks of about 32 MB.
    batch = max(1, 2**22 // arrays[0].size)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = scipy.stats.bootstrap(arrays, statistic, n_resamples=count, batch=batch, method="BCa", **options)
    low, high = np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high)
    low, high = _repaired(estimate, low, high, np.asarray(found.bootstrap_distribution), confidence)
    return as_interval(estimate, low, high, confidence, given[0].device)


def as_array(name: str, value: object, ndim: tuple[int, ...] | None = None) -> Array:
    return validate_tensor(name, value, ndim=ndim).detach().cpu().to(torch.float64).numpy()


def checked_level(level: object) -> float:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.5 <= level < 1:
        raise ValueError(f"level: expected a confidence from 0.5 to below 1, got {level!r}; 0.95 is usual")
    return float(level)


def numpy_generator(generator: object) -> np.random.Generator:
    """NumPy's generator, seeded by torch's."""
    source = validate_generator(generator)
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), device=source.device, generator=source)))


def as_interval(estimate: Array, low: Array, high: Array, level: float, device: torch.device) -> Interval:
    if estimate.ndim == 0:
        return Interval(float(estimate), float(low), float(high), level)
    centre, lower, upper = (torch.tensor(x, dtype=torch.float64, device=device) for x in (estimate, low, high))
    return Interval(centre, lower, upper, level)


def _percentiles(resampled: Array, level: float) -> tuple[Array, Array]:
    """Percentiles over the last axis of those resamples that have a value."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return np.asarray(low), np.asarray(high)


def _repaired(estimate: Array, low: Array, high: Array, resampled: Array, level: float) -> tuple[Array, Array]:
    """A point where no resample differs, and percentiles where the BCa interval does not exist."""
    percentile_low, percentile_high = _percentiles(resampled, level)
    undefined = np.isnan(low) | np.isnan(high)
    low, high = np.where(undefined, percentile_low, low), np.where(undefined, percentile_high, high)
    scale = np.abs(estimate) * 8 * np.finfo(float).eps
    constant = np.nanmax(resampled, -1) - np.nanmin(resampled, -1) <= scale
    return np.where(constant, estimate, low), np.where(constant, estimate, high)
