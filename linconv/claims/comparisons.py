"""Numerical comparisons: `agree`, `at_most` and `attains`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from linconv.claims.checks import Check, Scope, Witness, automatic, broken
from linconv.claims.gradients import signed_error
from linconv.claims.measure import Array, Number, Values, as_values, distance, excess, permuted, relative, rounding, summary

DETECTABLE = 1e-3


def agree(
    name: str,
    observed: object,
    predicted: object,
    *,
    tolerance: Number | None = None,
    reason: str | None = None,
    scale: object = None,
    size: int | None = None,
    required: bool = True,
    scope: Scope = "sampled",
    draws: int = 1,
    p_value: Number | None = None,
    witness: Witness | None = None,
) -> Check:
    """Observed equals predicted: max |observed − predicted| / scale ≤ tolerance.

    Tensors, arrays, nested lists and numbers (real, complex, integers, fractions) of the same shape. `scale` is by default
    the largest |predicted|; where that is zero and the observation is not, it must be given, since no error is relative to
    nothing. The default tolerance is rounding, 32·ε·√n: ε of the coarser dtype, n the number of entries or `size` (the terms
    in the longest sum behind an entry), taken between 16 and 4096; integers and fractions must be equal. A tolerance above
    that is reported with the verdict. Shapes that differ make the check invalid and not false, because unlike things were
    compared and broadcasting would hide it. NaN makes it inconclusive.

    >>> agree("a half", 0.5, 0.5).outcome, agree("a third", 0.3333, 1 / 3).outcome
    ('pass', 'fail')
    """

    def again(observed: object, predicted: object) -> Check:
        return agree(name, observed, predicted, tolerance=tolerance, reason=reason, scale=scale, size=size, required=required)

    left, right = as_values(observed, "observed"), as_values(predicted, "predicted")
    allowed, why, loosened = _tolerance(left, right, size, tolerance, reason)
    base = Check(
        name,
        "invalid",
        summary(left),
        summary(right),
        math.nan,
        allowed,
        why,
        required=required,
        scope=scope,
        draws=_positive(draws, "draws"),
        loosened=loosened,
        p_value=p_value,
        ascent=signed_error(observed, predicted, scale, two_sided=True),
    )
    if left.array.shape != right.array.shape:
        return broken(base, f"shapes differ: observed {left.array.shape}, predicted {right.array.shape}")
    base = replace(base, variants=lambda: _wrong_predictions(again, observed, right))
    if witness is not None:
        base = replace(base, confirm=lambda: again(witness(), predicted))
    return _judge(base, distance(left, right), left, right, scale)


def at_most(
    name: str,
    observed: object,
    bound: object,
    *,
    tolerance: Number | None = None,
    reason: str | None = None,
    scale: object = None,
    size: int | None = None,
    required: bool = True,
    scope: Scope = "sampled",
    draws: int = 1,
    p_value: Number | None = None,
    witness: Witness | None = None,
) -> Check:
    """Observed does not exceed the bound: max (observed − bound) / scale ≤ tolerance, entry by entry.

    The bound has the shape of the observation, or is one number. Scale, tolerance, NaN and shapes are as in `agree`; a bound
    that is infinite everywhere tests nothing. A lower bound is the same with the sides exchanged. `TypeError` for complex
    numbers.

    >>> at_most("a probability", 0.25, 1.0).error
    -0.75
    """

    def again(observed: object, bound: object) -> Check:
        return at_most(name, observed, bound, tolerance=tolerance, reason=reason, scale=scale, size=size, required=required)

    left, right = as_values(observed, "observed"), as_values(bound, "bound")
    allowed, why, loosened = _tolerance(left, right, size, tolerance, reason)
    base = Check(
        name,
        "invalid",
        summary(left),
        summary(right),
        math.nan,
        allowed,
        why,
        required=required,
        scope=scope,
        draws=_positive(draws, "draws"),
        loosened=loosened,
        p_value=p_value,
        side="bound",
        ascent=signed_error(observed, bound, scale),
    )
    if right.array.ndim and left.array.shape != right.array.shape:
        return broken(base, f"shapes differ: observed {left.array.shape}, bound {right.array.shape}")
    base = replace(base, variants=lambda: _wrong_bounds(again, observed, left, right))
    if witness is not None:
        base = replace(base, confirm=lambda: again(witness(), bound))
    gaps = excess(left, right)
    if gaps.size and bool(np.isneginf(gaps).all()):
        return replace(base, outcome="pass", error=-math.inf, vacuous=True, note="infinitely far from the bound: nothing was tested")
    return _judge(base, gaps, left, right, scale)


def attains(
    name: str,
    observed: object,
    minimum: object,
    *,
    tolerance: Number,
    reason: str | None = None,
    lower: object = None,
    size: int | None = None,
    required: bool = True,
    scope: Scope = "sampled",
    witness: Witness | None = None,
) -> Check:
    """A minimisation reached a claimed minimum: the direction of a difference decides what it means.

    Within `tolerance` (relative) above the minimum: pass. Further above: inconclusive, for the minimisation may have stopped
    early. Below it by more than rounding: fail, since a minimum that is undercut is none. Where the minimum is known only as
    an interval, `lower` is its proved lower end and only what lies below that end refutes; an interval wider than the
    tolerance is inconclusive, and one whose ends cross is invalid. As it cannot fail from above, a control for it must
    undercut, or use `agree`.

    >>> [attains("loss", value, 2.0, tolerance=1e-3).outcome for value in (2.0005, 2.1, 1.99)]
    ['pass', 'inconclusive', 'fail']
    """

    def again(observed: object) -> Check:
        return attains(name, observed, minimum, tolerance=tolerance, reason=reason, lower=lower, size=size, required=required)

    def raised() -> Check:
        wrong = attains(name, observed, claimed.floating() + DETECTABLE * scale, tolerance=tolerance, size=size)
        return automatic("minimum raised by 10⁻³", wrong)

    allowed, why = checked_tolerance(tolerance), reason or "stated by the claim, without a reason"
    found, claimed = as_values(observed, "observed"), as_values(minimum, "minimum")
    floor = as_values(minimum if lower is None else lower, "lower")
    if any(values.array.ndim for values in (found, claimed, floor)):
        raise TypeError("attains compares single numbers: a minimisation's objective and the claimed minimum; reduce arrays first")
    scale = claimed.magnitude()
    exactness, formula = rounding(found, claimed, size)
    above, below = relative(float(excess(found, claimed)), scale), relative(float(excess(floor, found)), scale)
    width = relative(float(excess(claimed, floor)), scale)
    why = f"above: {why}; below: {formula}; relative to |minimum| = {scale:.3g}"
    base = Check(
        name,
        "invalid",
        summary(found),
        summary(claimed),
        above,
        allowed,
        why,
        required=required,
        scope=scope,
        loosened=True,
        side="minimum",
    )
    if witness is not None:
        base = replace(base, confirm=lambda: again(witness()))
    base = replace(base, variants=lambda: iter([raised()]), ascent=signed_error(minimum if lower is None else lower, observed, minimum))
    if math.isnan(above) or math.isnan(below):
        return replace(base, outcome="inconclusive", note="NaN")
    if -width > exactness:
        return broken(base, f"the ends of the interval of the minimum cross by {-width:.2e}")
    if below > exactness:
        return replace(base, outcome="fail", error=below, tolerance=exactness, note="below the claimed minimum")
    if width > allowed:
        return replace(base, outcome="inconclusive", note=f"the minimum is known only to within {width:.2e}: bounds too far apart")
    if above > allowed:
        return replace(base, outcome="inconclusive", note="stopped above the minimum: not converged")
    return replace(base, outcome="pass", vacuous=scale == 0 and above == 0)


def _positive(count: int, what: str) -> int:
    if count < 1:
        raise ValueError(f"{what} must be at least 1, got {count}")
    return count


def checked_tolerance(tolerance: Number) -> float:
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number of at least 0, got {tolerance}; fix it before the run")
    return float(tolerance)


def _tolerance(left: Values, right: Values, size: int | None, tolerance: Number | None, reason: str | None) -> tuple[float, str, bool]:
    rounded, formula = rounding(left, right, None if size is None else _positive(size, "size"))
    if tolerance is None:
        return rounded, formula if reason is None else f"{reason} ({formula})", False
    stated = float(checked_tolerance(tolerance))  # a NumPy scalar would make a NumPy truth value
    return stated, reason or "stated by the claim, without a reason", stated > rounded


def _judge(check: Check, gaps: Array, left: Values, right: Values, scale: object) -> Check:
    if left.has_nan() or right.has_nan():
        return replace(check, outcome="inconclusive", error=math.nan, note="NaN")
    if gaps.size == 0:
        return replace(check, outcome="pass", vacuous=True, note="empty: nothing was compared")
    gap = float(gaps.max())
    unit, origin = (right.magnitude(), "the largest |predicted|") if scale is None else (as_values(scale, "scale").magnitude(), "the scale")
    if scale is None and unit == 0:
        if gap > 0 and math.isfinite(gap) and not (left.exact and right.exact):
            return broken(check, f"observed {gap:.2e} against a prediction of zero: give scale=, the size of what should cancel")
        unit, origin = left.magnitude(), "the largest |observed|"
    error = relative(gap, unit)
    vacuous = unit == 0 and gap == 0 and not np.isinf(right.floating()).any()
    reason = f"{check.reason}; relative to {origin} = {unit:.3g}"
    note = "zero against zero" if vacuous else check.note
    return replace(check, outcome="pass" if error <= check.tolerance else "fail", error=error, reason=reason, vacuous=vacuous, note=note)


def _wrong_predictions(again: Callable[[object, object], Check], observed: object, predicted: Values) -> Iterator[Check]:
    array = predicted.floating()
    yield automatic("prediction scaled by 1 + 10⁻³", again(observed, array * (1 + DETECTABLE)))
    shuffled = permuted(array)
    if shuffled is not None:
        yield automatic("prediction permuted", again(observed, shuffled))
    yield automatic("prediction NaN", again(observed, np.full_like(array, np.nan)))


def _wrong_bounds(again: Callable[[object, object], Check], observed: object, left: Values, right: Values) -> Iterator[Check]:
    array = left.floating()
    unit = max(left.magnitude(), right.magnitude())
    yield automatic("bound 10⁻³ below the observation", again(observed, array - DETECTABLE * unit))
    yield automatic("bound NaN", again(observed, np.full_like(array, np.nan)))
