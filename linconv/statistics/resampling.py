"""Bootstrap intervals: of independent samples, and of correlations.  For few samples see `linconv.statistics.student`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from linconv.validation import validate_generator, validate_size, validate_tensor

Array = NDArray[np.float64]
NEARLY_CONSTANT = 1e-13  # spread relative to the mean below which a correlation is one of rounding errors, as in SciPy


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
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.bootstrap(arrays, statistic, n_resamples=count, batch=batch, method="BCa", **options)
    low, high = np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high)
    low, high = _repaired(estimate, low, high, np.asarray(found.bootstrap_distribution), confidence)
    return as_interval(estimate, low, high, confidence, given[0].device)


def correlation(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Pearson's correlation of the entries of two tensors of one shape.

    Raises `ValueError` for different shapes, fewer than three entries, NaN, or entries that are all alike up to rounding.

    >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0])) > 0.99
    True
    """
    x, y = as_array("a", a).ravel(), as_array("b", b).ravel()
    if a.shape != b.shape or x.size < 3:
        raise ValueError(f"a, b: expected one shape with at least three entries, got {tuple(a.shape)} and {tuple(b.shape)}")
    for name, values in (("a", x), ("b", y)):
        largest = np.abs(values).max()
        scaled = values / largest if largest > 0 else values
        if np.linalg.norm(scaled - scaled.mean()) <= NEARLY_CONSTANT * abs(scaled.mean()):
            raise ValueError(
                f"{name}: expected entries that are not all alike, got {values[0]:.6g} {values.size} times; nothing correlates"
            )
    return float(stats.pearsonr(x / np.abs(x).max(), y / np.abs(y).max()).statistic)


def correlation_interval(
    a: Float[Tensor, "*runs m"], b: Float[Tensor, "*runs m"], *, generator: torch.Generator, level: float = 0.95, resamples: int = 9999
) -> Interval:
    """Bootstrap interval of the correlation of two curves: over their entries, or over runs.

    Curves `(m,)`: pairs of entries are resampled, which takes them for independent.  Curves `(runs, m)`: rows are resampled, those of `a`
    and `b` together, and the mean curves correlated; give a curve that is the same in all runs as `curve.expand(runs, m)`.  Resamples
    whose entries are all alike have no correlation and are left out.  Raises as `correlation` and `bootstrap_interval` do.

    >>> r = torch.linspace(0, 1, 20, dtype=torch.float64)
    >>> interval = correlation_interval(r, r**2, generator=torch.Generator().manual_seed(0), resamples=999)
    >>> 0.9 < interval.low <= interval.estimate <= interval.high <= 1
    True
    """
    validate_tensor("a", a, ndim=(1, 2), shape="(m,) or (runs, m)")
    validate_tensor("b", b, ndim=(1, 2), shape="(m,) or (runs, m)")
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected one shape, got {tuple(a.shape)} and {tuple(b.shape)}; use expand for a curve common to all runs")
    correlation(*(x if x.ndim == 1 else x.mean(0) for x in (a, b)))
    if a.ndim == 1:
        return bootstrap_interval((a, b), _pearson, generator=generator, level=level, resamples=resamples)

    def of_mean_curves(x: Array, y: Array, axis: int) -> Array | np.float64:
        # SciPy moves the runs to the end, behind its resamples: (m, resamples, runs). The entries of the curves stay in front.
        return _pearson(x.mean(axis), y.mean(axis), 0)

    return bootstrap_interval((a, b), of_mean_curves, generator=generator, level=level, resamples=resamples)


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


def _pearson(x: Array, y: Array, axis: int) -> Array | np.float64:
    x, y = x - x.mean(axis, keepdims=True), y - y.mean(axis, keepdims=True)
    return (x * y).sum(axis) / np.sqrt(np.square(x).sum(axis) * np.square(y).sum(axis))
