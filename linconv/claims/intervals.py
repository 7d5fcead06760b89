"""Statistics with intervals: `exceeds`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, SupportsFloat, runtime_checkable

from linconv.claims.checks import Check, Scope, automatic, broken
from linconv.claims.measure import Number


@runtime_checkable
class Estimated(Protocol):
    """An estimate with a confidence interval, such as `linconv.statistics.Interval`."""

    @property
    def estimate(self) -> SupportsFloat: ...
    @property
    def low(self) -> SupportsFloat: ...
    @property
    def high(self) -> SupportsFloat: ...
    @property
    def level(self) -> float: ...


def exceeds(
    name: str,
    interval: Estimated,
    bound: Number,
    *,
    required: bool = True,
    scope: Scope = "sampled",
    draws: int = 1,
    p_value: Number | None = None,
) -> Check:
    """A statistic lies above the bound: the interval decides, not the estimate.

    Passes where the whole interval does, fails where all of it lies below, and is inconclusive where it straddles the bound or has an end
    that is NaN.  The error is bound − estimate, absolute (negative: slack); its tolerance is the upper half of the interval.  That a
    statistic lies below a bound is the same with both signs changed.  Ends that are not in order make the check invalid.

    >>> from types import SimpleNamespace
    >>> interval = SimpleNamespace(estimate=0.9, low=0.85, high=0.93, level=0.95)
    >>> [exceeds("correlation", interval, bound).outcome for bound in (0.8, 0.87, 0.95)]
    ['pass', 'inconclusive', 'fail']
    """
    low, estimate, high = float(interval.low), float(interval.estimate), float(interval.high)
    reason = f"sampling error: {100 * interval.level:g} % interval {low:.3g} to {high:.3g}"
    base = Check(
        name,
        "invalid",
        estimate,
        float(bound),
        bound - estimate,
        max(high - estimate, 0.0),
        reason,
        required=required,
        scope=scope,
        draws=draws,
    )
    base = replace(base, p_value=p_value, loosened=True, side="bound")
    if math.isnan(low) or math.isnan(high) or math.isnan(bound) or math.isnan(estimate):
        return replace(base, outcome="inconclusive", error=math.nan, note="NaN")
    if low > high:
        return broken(base, f"the ends of the interval, {low:.3g} and {high:.3g}, are not in order")
    base = replace(base, variants=lambda: _wrong_bounds(name, interval))
    if low > bound:
        return replace(base, outcome="pass")
    if high < bound:
        return replace(base, outcome="fail")
    return replace(base, outcome="inconclusive", note=f"the interval, {low:.3g} to {high:.3g}, straddles the bound")


def _wrong_bounds(name: str, interval: Estimated) -> Iterator[Check]:
    high = float(interval.high)
    yield automatic("bound above the interval", exceeds(name, interval, high + abs(high) + 1))
    yield automatic("bound NaN", exceeds(name, interval, math.nan))
