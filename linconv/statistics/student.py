"""Student's intervals, for few samples: of a mean, and of a statistic of runs that were all measured at the same images.

A bootstrap of few samples is too narrow, since it knows no more of their spread than they show: of normal samples 3, 4 and 12 at a time,
nominal 95 % intervals of the mean cover 67, 79 and 89 % (measured, BCa).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from linconv.statistics.resampling import Array, Interval, as_array, as_interval, checked_level
from linconv.validation import validate_tensor


def mean_interval(samples: Float[Tensor, " n"], *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent samples: exact for normal ones.

    Samples that are all alike give a point.  Raises `ValueError` for fewer than two samples, or NaN.

    >>> interval = mean_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
    (-0.484, 2.0, 4.484)
    """
    values, confidence = as_array("samples", samples, ndim=(1,)), checked_level(level)
    if len(values) < 2:
        raise ValueError(f"samples: expected at least two, got {len(values)}; one says nothing of the spread")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half = student_quantile(confidence, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half, confidence)


def jackknife_interval(estimate: float, left_out: Float[Tensor, " n"], *, level: float = 0.95) -> Interval:
    r"""Student's interval of a statistic of n independent samples, from its values with each of them left out.

    The ends are `estimate` ± t s with the jackknife variance $s^2 = \frac{n-1}{n} \sum_i (\theta_i - \bar\theta)^2$ and Student's
    quantile at n − 1 degrees of freedom; of a mean this is `mean_interval`.  The statistic has to change smoothly with every sample.
    Raises `ValueError` for fewer than two samples, or NaN.  Source: Efron and Stein (1981): the variance is not too small on average.

    >>> x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    >>> interval = jackknife_interval(float(x.mean()), (x.sum() - x) / 2)
    >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
    (-0.484, 2.0, 4.484)
    """
    values, confidence = as_array("left_out", left_out, ndim=(1,)), checked_level(level)
    if len(values) < 2:
        raise ValueError(f"left_out: expected the values of two samples or more, got {len(values)}; one says nothing of the spread")
    half = float(np.sqrt(_square(values, confidence)))
    return Interval(float(estimate), float(estimate) - half, float(estimate) + half, confidence)


def crossed_interval(
    values: Float[Tensor, "runs images *shape"], statistic: Callable[[Tensor], Tensor] | None = None, *, level: float = 0.95
) -> Interval:
    r"""Interval of a statistic of runs and images, both of them samples: it is about other runs at other images.

    All runs are measured at the same images: an image that is unlike others is so for every run, and more runs do not average that away.
    `statistic` maps a tensor `(runs, images, *shape)` to a number or a tensor of any shape; it has to change smoothly with every run and
    image, as means and distances of mean curves do, and medians do not.  The default is the mean over both.

    The ends are the estimate ± $(t_1^2 s_1^2 + t_2^2 s_2^2)^{1/2}$, with the jackknife variances $s_1^2$ of leaving out a run and $s_2^2$
    of leaving out an image everywhere, and Student's quantiles t at as many degrees of freedom as there are runs, or images, less one.  A
    single image is taken for the only one there is.  The mean of normal effects of runs, of images and of both is covered with the level at
    least, by two runs too, also where every run has images of its own (docs/frequency-sensitivity.md); skewed ones with few runs are
    covered less, as by any interval of few.

    Raises `ValueError` for fewer than two runs, and for a statistic that is not finite.  Sources: Banerjee (1960), Sankhyā 22, for the sum
    of squares; Efron and Stein (1981) for the jackknife, whose variance is not too small on average; putting them together is ours.

    >>> values = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> interval = crossed_interval(values)
    >>> interval.low < 0 < interval.high
    True
    """
    validate_tensor("values", values)
    if values.ndim < 2 or values.shape[0] < 2:
        raise ValueError(f"values: expected (runs, images, *shape) with two runs or more, got {tuple(values.shape)}")
    confidence, x = checked_level(level), values.detach().to(torch.float64)

    def of(sample: Tensor) -> Array:
        found = sample.mean((0, 1)) if statistic is None else statistic(sample)
        return torch.as_tensor(found, dtype=torch.float64).cpu().numpy()

    estimate, square = of(x), np.zeros(())
    for dim, count in enumerate(x.shape[:2]):
        left_out = np.stack([of(_without(x, dim, i)) for i in range(count)]) if count > 1 else estimate[None]
        if not (np.isfinite(estimate).all() and np.isfinite(left_out).all()):
            what = ("runs", "images")[dim]
            raise ValueError(f"statistic: not finite on the values, or without one of the {what}; leave out what it is not defined on")
        if count > 1:
            square = square + _square(left_out, confidence)
    low, high = (np.asarray(estimate + sign * np.sqrt(square)) for sign in (-1, 1))
    return as_interval(estimate, low, high, confidence, values.device)


def _square(left_out: Array, level: float) -> Array:
    """t² s² with the jackknife variance s² of these values, along the first axis."""
    count = len(left_out)
    variance = (count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0)
    return np.asarray(student_quantile(level, count - 1) ** 2 * variance)


def _without(x: Tensor, dim: int, i: int) -> Tensor:
    return torch.cat([x.narrow(dim, 0, i), x.narrow(dim, i + 1, x.shape[dim] - i - 1)], dim)


def student_quantile(level: float, freedom: int) -> float:
    """t such that Student's variable with so many degrees of freedom lies between −t and t with this probability."""
    return float(special.stdtrit(freedom, (1 + level) / 2))
