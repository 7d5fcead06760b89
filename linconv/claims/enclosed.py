"""Inequalities proved or refuted for the given numbers by rigorous intervals: `proved_at_most`."""

import math
from collections.abc import Iterator
from fractions import Fraction
from numbers import Rational
from typing import Any, Protocol, runtime_checkable

import numpy as np

from linconv.claims.checks import Check, automatic, broken
from linconv.claims.comparisons import DETECTABLE
from linconv.claims.measure import Array, as_values, relative, summary


@runtime_checkable
class Enclosed(Protocol):
    """Numbers known to lie between two ends, such as `linconv.conv_singular_values(weight, grid, enclose=True)`."""

    @property
    def lower(self) -> Any: ...
    @property
    def upper(self) -> Any: ...


def proved_at_most(name: str, observed: object, bound: object, *, required: bool = True) -> Check:
    """Observed does not exceed the bound, decided by intervals that are proved to contain the exact values: no tolerance.

    Each side is an `Enclosed`, whose ends the caller vouches for, or numbers that are meant exactly as they stand (tensors, arrays,
    integers, fractions, floats).  The bound has the shape of the observation, or is one number.  Passes, with scope "exact", where every
    upper end is at most the lower end of its bound; fails where some lower end exceeds the upper end of its bound; else inconclusive, for
    the intervals overlap.  The error is max (lower end − bound) over the largest |bound|: positive where the failure is proved.
    Shown are the upper ends of the observation and the lower ends of the bound.

    >>> import torch
    >>> from linconv import conv_singular_values
    >>> kernel = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    >>> values = conv_singular_values(kernel, (4,), enclose=True)
    >>> [proved_at_most("σ", values, bound).outcome for bound in (2.001, 2, 1.999)]
    ['pass', 'inconclusive', 'fail']
    """
    low, high = _ends(observed, "observed")
    floor, ceiling = _ends(bound, "bound")
    base = Check(
        name, "invalid", summary(as_values(high, "")), summary(as_values(floor, "")), math.nan, 0.0, required=required, side="bound"
    )
    if floor.ndim and floor.shape != low.shape:
        return broken(base, f"shapes differ: observed {low.shape}, bound {floor.shape}")
    if np.isnan([*low.flat, *high.flat, *floor.flat, *ceiling.flat]).any():
        return Check(name, "inconclusive", base.observed, base.predicted, math.nan, 0.0, note="NaN", required=required, side="bound")
    if (low > high).any() or (floor > ceiling).any():
        return broken(base, "the ends of an interval are not in order")
    if low.size == 0:
        return Check(name, "pass", note="empty: nothing was compared", required=required, scope="exact", vacuous=True)
    unit = float(np.abs(ceiling).max())
    error = relative(float((low - ceiling).max()), unit)
    proof = bool((high <= floor).all())
    outcome, note = (
        ("pass", "")
        if proof
        else ("fail", "proved for these numbers")
        if (low > ceiling).any()
        else ("inconclusive", _overlap(high, floor))
    )
    return Check(
        name,
        outcome,  # type: ignore[arg-type]  # one of three outcomes
        base.observed,
        base.predicted,
        error,
        0.0,
        f"enclosures: proved for these numbers, rounding included; relative to the largest |bound| = {unit:.3g}",
        note,
        required,
        scope="exact",
        side="bound",
        variants=lambda: _wrong_bounds(name, observed, low, unit),
    )


def _ends(value: object, what: str) -> tuple[Array, Array]:
    if isinstance(value, Enclosed):
        return as_values(value.lower, what).floating(), as_values(value.upper, what).floating()
    read = as_values(value, what)
    if not read.exact:
        return read.floating(), read.floating()
    entries = [_between(entry) for entry in read.array.flat]
    low, high = (np.array([pair[end] for pair in entries], dtype=np.float64).reshape(read.array.shape) for end in (0, 1))
    return low, high


def _between(exact: Rational) -> tuple[float, float]:
    """The floating-point numbers next to an integer or a fraction, the same one twice where it is one."""
    near = float(exact)
    below = math.nextafter(near, -math.inf) if Fraction(near) > Fraction(exact) else near
    above = math.nextafter(near, math.inf) if Fraction(near) < Fraction(exact) else near
    return below, above


def _overlap(high: Array, floor: Array) -> str:
    return f"the enclosures overlap: the bound is missed by at most {float((high - floor).max()):.2e}"


def _wrong_bounds(name: str, observed: object, low: Array, unit: float) -> Iterator[Check]:
    scale = max(unit, float(np.abs(low).max()))
    yield automatic("bound 10⁻³ below the observation", proved_at_most(name, observed, low - DETECTABLE * scale))
    yield automatic("bound NaN", proved_at_most(name, observed, np.full_like(low, np.nan)))
