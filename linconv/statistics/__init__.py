"""Intervals, trends, tests by permutation, and distances between curves: what claims about runs, images and spectra are judged by.

SciPy does the work; what is added is what experiments need: degenerate samples have an answer, randomness comes from a `torch.Generator`,
and nothing warns.
"""

from linconv.statistics.curves import cosine_distance, first_moment, kl_divergence, total_variation
from linconv.statistics.permutations import Difference, Trend, permutation_test, trend
from linconv.statistics.resampling import (
    Interval,
    bootstrap_interval,
    correlation,
    correlation_interval,
    hierarchical_interval,
    mean_interval,
)

__all__ = [
    "Difference",
    "Interval",
    "Trend",
    "bootstrap_interval",
    "correlation",
    "correlation_interval",
    "cosine_distance",
    "first_moment",
    "hierarchical_interval",
    "kl_divergence",
    "mean_interval",
    "permutation_test",
    "total_variation",
    "trend",
]
