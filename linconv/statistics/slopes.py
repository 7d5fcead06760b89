"""Sen's interval of a slope, exact for few values: from how many pairs of runs rise, of which the distribution is known."""

import itertools
import math

import numpy as np

from linconv.statistics.resampling import Array, Interval


def sen_slope(levels: Array, values: Array, level: float) -> Interval:
    r"""The median of the slopes between values at different levels, and the interval of Sen (1968), its counts by enumeration.

    `levels` and `values` have one entry a run.  If values are β · level and independent errors of one continuous distribution, then how
    many of the slopes exceed β is distributed as `rising_pairs` says, and the interval, between two of the ordered slopes, covers β
    with probability `level` at least.  Where there are too few runs for that, as of two at each of two levels, its ends are infinite.
    """
    i, j = np.nonzero(levels[:, None] < levels)
    slopes = np.sort((values[j] - values[i]) / (levels[j] - levels[i]))
    ways = rising_pairs(np.unique(levels, return_counts=True)[1].tolist())
    below, total = list(itertools.accumulate(ways)), sum(ways)
    # The number of slopes that may lie beyond either end; −1 where even none is likelier than it may be.
    spare = sum(count <= (1 - level) / 2 * total for count in below) - 1
    low, high = (-math.inf, math.inf) if spare < 0 else (float(slopes[spare]), float(slopes[-1 - spare]))
    return Interval(float(np.median(slopes)), low, high, level)


def rising_pairs(counts: list[int]) -> list[int]:
    """In how many orders of the values, groups of so many, 0, 1, 2, … pairs rise from a group to a later one: a q-multinomial coefficient.

    >>> rising_pairs([2, 2]), rising_pairs([1, 1, 1])
    ([1, 1, 2, 1, 1], [1, 2, 2, 1])
    """
    ways, before = [1], 0
    for count in counts:
        for k in range(1, count + 1):  # times (1 − q^(before + k)), over 1 − q^k: exact in integers
            step = before + k
            ways = [*ways, *[0] * step]
            for n in range(len(ways) - 1, step - 1, -1):
                ways[n] -= ways[n - step]
            for n in range(k, len(ways)):
                ways[n] += ways[n - k]
            del ways[len(ways) - k :]
        before += count
    return ways
