"""Intervals, trends, tests by permutation, and distances between curves: what claims about runs, images and spectra are judged by.

SciPy does most of the work; what is added is what experiments need: intervals that keep their word with three or four runs, runs measured
at common images, an answer for degenerate samples, randomness from a `torch.Generator`, and no warnings.
"""

from linconv.statistics.correlations import correlation, correlation_interval
from linconv.statistics.curves import cosine_distance, first_moment, kl_divergence, total_variation
from linconv.statistics.permutations import Difference, Trend, permutation_test, trend
from linconv.statistics.resampling import Interval, bootstrap_interval
from linconv.statistics.student import crossed_interval, jackknife_interval, mean_interval

__all__ = [
    "Difference",
    "Interval",
    "Trend",
    "bootstrap_interval",
    "correlation",
    "correlation_interval",
    "cosine_distance",
    "crossed_interval",
    "first_moment",
    "jackknife_interval",
    "kl_divergence",
    "mean_interval",
    "permutation_test",
    "total_variation",
    "trend",
]
