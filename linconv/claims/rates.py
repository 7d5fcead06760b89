"""Fitted exponents: `rate`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from linconv.claims.checks import Check, Scope, Witness, automatic, broken
from linconv.claims.comparisons import checked_tolerance
from linconv.claims.measure import Array, Number, as_values, summary

RESOLUTION = 0.25


def rate(
    name: str,
    scales: object,
    values: object,
    exponent: Number,
    *,
    tolerance: Number | None = None,
    reason: str | None = None,
    confidence: float = 0.999,
    required: bool = True,
    scope: Scope = "sampled",
    draws: int = 1,
    witness: Witness | None = None,
) -> Check:
    """values ∝ scales^exponent: the slope of log |values| against log scales, fitted by least squares, with its interval.

    `scales` and `values` are positive and of one length, with at least three different scales. The half-width h of the
    Student-t interval at `confidence` is the sampling error. Without `tolerance` the exponent must lie in that interval, and
    h ≤ 1/4; with one (for a limit, where curvature and not noise is the error) slope and exponent may differ by it. Inconclusive:
    h exceeds what is allowed, or the interval straddles the edge; an interval that lies outside altogether fails.
    The error is |slope − exponent|, absolute. The p-value is that of the same fit where the values do not depend on the scale.
    `witness` recomputes the values. `ValueError` for a confidence outside (0, 1) or a tolerance that is none.

    >>> rate("area", [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0], 2.0).outcome
    'pass'
    """

    def again(values: object, exponent: Number) -> Check:
        return rate(name, scales, values, exponent, tolerance=tolerance, reason=reason, confidence=confidence, required=required)

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.999 is usual")
    allowed = None if tolerance is None else checked_tolerance(tolerance)
    x, y = as_values(scales, "scales").floating(), as_values(values, "values").floating()
    base = Check(
        name, "invalid", summary(as_values(values, "values")), exponent, math.nan, math.nan, required=required, scope=scope, draws=draws
    )
    if math.isnan(exponent) or np.isnan(x).any() or np.isnan(y).any():
        return replace(base, outcome="inconclusive", note="NaN")
    problem = _problem(x, y)
    if problem:
        return broken(base, problem)
    slope, half, p_value = _fit(np.log(x), np.log(y), confidence)
    limit = RESOLUTION if allowed is None else allowed
    floor = 1e-9 * max(1.0, abs(exponent))
    permitted = max(half, floor) if allowed is None else allowed
    error = abs(slope - exponent)
    text = (
        f"{100 * confidence:g} % interval of the slope: {slope:.4g} ± {half:.2g}"
        if reason is None
        else f"{reason}; slope {slope:.4g} ± {half:.2g}"
    )
    base = replace(base, observed=slope, error=error, tolerance=permitted, reason=text, p_value=p_value, loosened=allowed is not None)
    base = replace(base, variants=lambda: _wrong_exponents(again, values, exponent))
    if witness is not None:
        base = replace(base, confirm=lambda: again(witness(), exponent))
    if (error > permitted) if allowed is None else (error - half > allowed):
        return replace(base, outcome="fail")
    if half > limit:
        return replace(base, outcome="inconclusive", note=f"the slope is known only to ± {half:.2g}, more than {limit:.2g}")
    if error > permitted:
        return replace(base, outcome="inconclusive", note="the interval of the slope straddles the tolerance")
    return replace(base, outcome="pass")


def _problem(x: Array, y: Array) -> str:
    if x.ndim != 1 or x.shape != y.shape:
        return f"scales and values must be one-dimensional and of one length, got {x.shape} and {y.shape}"
    if np.unique(x).size < 3:
        return f"a slope with an interval needs three different scales, got {np.unique(x).size}"
    usable = bool(np.isfinite(x).all() and np.isfinite(y).all()) and not (np.iscomplexobj(x) or np.iscomplexobj(y))
    return "" if usable and (x > 0).all() and (y > 0).all() else "a log-log slope needs positive finite scales and values"


def _fit(x: Array, y: Array, confidence: float) -> tuple[float, float, float]:
    """Slope, half-width of its interval, and the p-value of no slope."""
    from scipy import stats

    if np.ptp(y) == 0:
        return 0.0, 0.0, 1.0
    fit = stats.linregress(x, y)
    width = stats.t.ppf((1 + confidence) / 2, x.size - 2)
    return float(fit.slope), float(fit.stderr * width), float(fit.pvalue)


def _wrong_exponents(again: Callable[[object, Number], Check], values: object, exponent: Number) -> Iterator[Check]:
    yield automatic("exponent off by 1", again(values, exponent + 1))
    yield automatic("exponent NaN", again(values, math.nan))
