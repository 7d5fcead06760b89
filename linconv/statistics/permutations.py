"""Tests by permutation, exact where there are few enough: trends over levels, differences of means."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # its stats load at their first use, so that the workers of a sweep need not wait for them
import torch
from jaxtyping import Float
from torch import Tensor

from linconv.statistics.resampling import Array, Interval, as_array, checked_level, numpy_generator
from linconv.statistics.slopes import sen_slope
from linconv.validation import validate_size

Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Trend:
    """Kendall's τ-b of values against levels, its permutation p-value, and the Theil–Sen slope per unit of the level."""

    tau: float
    p_value: float
    slope: Interval


@dataclass(frozen=True)
class Difference:
    """A difference of means and its permutation p-value."""

    estimate: float
    p_value: float


def trend(
    values_by_level: Sequence[Float[Tensor, "_"]],
    levels: Sequence[float] | None = None,
    *,
    generator: torch.Generator,
    alternative: Alternative = "two-sided",
    level: float = 0.95,
    resamples: int = 9999,
) -> Trend:
    """Whether values increase or decrease from level to level: depth, weight decay, number of images.

    `values_by_level` holds the runs at each level, `levels` their increasing positions (0, 1, 2, … by default).  The p-value is that of the
    Jonckheere–Terpstra statistic, which for given levels is Kendall's S, under permutations of all values: exact where `resamples` covers
    the different ones.  `alternative="greater"` asks for an increase.  The slope is the median over pairs of runs with the
    interval of Sen (1968), exact however few they are (`linconv.statistics.slopes`), in units of a value per unit of a level.  Raises
    `ValueError` for fewer than two levels, three values in all, or positions that do not increase.

    >>> runs = [torch.tensor([1.0, 1.2, 1.1]), torch.tensor([2.0, 2.2, 2.1]), torch.tensor([3.0, 3.2, 3.1])]
    >>> found = trend(runs, generator=torch.Generator().manual_seed(0))
    >>> found.p_value, found.tau > 0.8, 0.9 < found.slope.estimate < 1.1
    (0.0011904761904761906, True, True)
    """
    samples: Any = [as_array(f"values_by_level[{i}]", values, ndim=(1,)) for i, values in enumerate(values_by_level)]
    positions = np.asarray(range(len(samples)) if levels is None else levels, dtype=np.float64)
    if len(samples) < 2 or sum(x.size for x in samples) < 3 or positions.shape != (len(samples),):
        raise ValueError(
            f"values_by_level: expected two levels or more and three values in all, got {len(samples)}, {positions.size} levels"
        )
    if not (np.isfinite(positions).all() and (np.diff(positions) > 0).all()):
        raise ValueError(f"levels: expected finite numbers that increase, got {positions.tolist()}; sort the samples with them")
    confidence, count, rng = checked_level(level), validate_size("resamples", resamples), numpy_generator(generator)
    x, y = np.repeat(positions, [len(values) for values in samples]), np.concatenate(samples)
    if np.ptp(y) == 0:
        return Trend(0.0, 1.0, Interval(0.0, 0.0, 0.0, confidence))
    # SciPy counts relabellings of samples, but not with one value in a level: then it permutes all values, n! of them.
    kind: Literal["independent", "pairings"] = "independent" if min(map(len, samples)) > 1 else "pairings"
    tested = scipy.stats.permutation_test(
        samples if kind == "independent" else [y],
        functools.partial(_kendall_s, x),
        permutation_type=kind,
        vectorized=True,
        n_resamples=count,
        batch=max(1, 2**22 // y.size),
        alternative=_checked(alternative),
        rng=rng,
    )
    tau = float(scipy.stats.kendalltau(x, y).statistic)
    return Trend(tau, float(tested.pvalue), sen_slope(x, y, confidence))


def permutation_test(
    a: Float[Tensor, " n"],
    b: Float[Tensor, " m"],
    *,
    generator: torch.Generator,
    alternative: Alternative = "two-sided",
    resamples: int = 9999,
) -> Difference:
    """Whether mean(a) − mean(b) is more than the labels of exchangeable values make it: exact where `resamples` covers all relabellings.

    `alternative="greater"` asks for mean(a) > mean(b).  Raises `ValueError` for fewer than two values in either.

    >>> permutation_test(torch.tensor([5.0, 6, 7, 8]), torch.tensor([1.0, 2, 3, 4]), generator=torch.Generator().manual_seed(0))
    Difference(estimate=4.0, p_value=0.02857142857142857)
    """
    x, y = as_array("a", a, ndim=(1,)), as_array("b", b, ndim=(1,))
    samples: Any = (x, y)
    if min(x.size, y.size) < 2:
        raise ValueError(f"a, b: expected at least two values each, got {x.size} and {y.size}")
    count, rng = validate_size("resamples", resamples), numpy_generator(generator)
    batch = max(1, 2**22 // (x.size + y.size))
    tested = scipy.stats.permutation_test(
        samples, _mean_difference, vectorized=True, n_resamples=count, batch=batch, alternative=_checked(alternative), rng=rng
    )
    return Difference(float(tested.statistic), float(tested.pvalue))


def _checked(alternative: Alternative) -> Alternative:
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative: expected 'two-sided', 'greater' or 'less', got {alternative!r}")
    return alternative


def _kendall_s(x: Array, *samples: Array, axis: int) -> Any:
    """Pairs of values that increase with x, less those that decrease; x is in ascending order."""
    y = np.moveaxis(np.concatenate(samples, axis), axis, 0)
    return sum(np.sign(y[j] - y[i]) for i in range(x.size) for j in range(i + 1, x.size) if x[i] < x[j])


def _mean_difference(x: Array, y: Array, axis: int) -> Any:
    return x.mean(axis) - y.mean(axis)
