"""Checks: named comparisons of something observed with something predicted, each with a tolerance that has a reason.

A claim yields them. Every constructor takes `required=True` (a check that is not required is shown and does not count) and,
where it makes sense, `scope` ("sampled", "certified" or "exact": what passing it proves), `draws` (how many independent
instances it compares), `p_value` (of the same fit on a null model), `witness` (a function without arguments that
recomputes the observed values on an independent path; it is called only to confirm a failure).
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor

from linconv.claims.measure import Number

Outcome: TypeAlias = Literal["pass", "fail", "inconclusive", "not applicable", "invalid"]
Scope: TypeAlias = Literal["exact", "certified", "sampled"]
Witness: TypeAlias = Callable[[], object]


class NotApplicable(Exception):
    """Raised by a claim: the named hypothesis is not met by the given network or data. The verdict is NOT APPLICABLE."""


class UsageError(ValueError):
    """Raised by a claim for a parameter that only it can judge (a missing data folder): exit code 2 and one line."""


class DrawingError(ValueError):
    """A claim's strategy yields nothing, or it or a predicate beside it raises."""


class NothingDrawn(DrawingError):
    """Filters rejected all that Hypothesis tried with one seed."""


@dataclass(frozen=True)
class Check:
    """The result of one comparison.

    `error` is relative to the scale that `reason` states and is compared with `tolerance`; it is signed for bounds (negative:
    slack). `note` says why an outcome other than pass or fail came about. `vacuous` marks zero compared with zero, or nothing
    with nothing. `side` is the word for what the observation is compared with.
    `variants` makes wrong versions of the check, `confirm` the same check on its witness's path, and `ascent`, where a side is
    a tensor that requires a gradient, the error as a tensor that has one: counterexamples are sought uphill.
    """

    name: str
    outcome: Outcome
    observed: Any = None
    predicted: Any = None
    error: float = 0.0
    tolerance: float = 0.0
    reason: str = ""
    note: str = ""
    required: bool = True
    control: bool = False
    scope: Scope = "sampled"
    draws: int = 1
    vacuous: bool = False
    loosened: bool = False
    p_value: Number | None = None
    side: str = "predicted"
    confirm: "Callable[[], Check] | None" = field(default=None, repr=False, compare=False)
    variants: "Callable[[], Iterator[Check]] | None" = field(default=None, repr=False, compare=False)
    ascent: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def violation(self) -> float:
        """error / tolerance: above 1 the check fails, and a control should be far above 1."""
        if self.tolerance == 0:
            return self.error if math.isnan(self.error) or self.error <= 0 else math.inf
        return self.error / self.tolerance

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"


def proved(name: str, *, cases: int, failures: int = 0, reason: str = "symbolic identity", required: bool = True) -> Check:
    """`cases` statements were decided exactly (by symbolic algebra, say), of which `failures` came out false.

    >>> proved("roots of unity", cases=16).scope
    'exact'
    """
    if not 0 <= failures <= cases:
        raise ValueError(f"failures must lie between 0 and cases = {cases}, got {failures}; count the false cases among all")
    outcome: Outcome = "fail" if failures else "pass"
    observed, predicted = f"{cases - failures} of {cases} true", f"{cases} of {cases} true"
    base = Check(name, outcome, observed, predicted, float(failures), 0.0, f"exact: {reason}", required=required, scope="exact")
    return replace(base, vacuous=cases == 0)


def inconclusive(name: str, why: str, *, required: bool = True) -> Check:
    """What could not be decided, and why: not converged, bounds too far apart, budget spent."""
    return Check(name, "inconclusive", error=math.nan, tolerance=math.nan, note=why, required=required)


def not_applicable(name: str, hypothesis: str) -> Check:
    """A hypothesis that the given network or data does not meet. It ends the run with the verdict NOT APPLICABLE."""
    return Check(name, "not applicable", error=math.nan, tolerance=math.nan, note=hypothesis)


def control(name: str, check: Check) -> Check:
    """A deliberately wrong variant: its check must fail, or the verdict is INVALID. Its violation is reported.

    >>> from linconv.claims import agree
    >>> control("a wrong third", agree("", 0.3333, 1 / 3)).control
    True
    """
    return replace(_a_check(check), name=name, control=True, required=False)


def predicted_failure(name: str, check: Check) -> Check:
    """A check that the theory says must fail (a formula outside its assumptions): passes where `check` fails, and the reverse.

    >>> from linconv.claims import agree
    >>> predicted_failure("the formula needs full kernels", agree("cost", 1.7, 1.5)).outcome
    'pass'
    """
    flipped: dict[Outcome, Outcome] = {"fail": "pass", "pass": "fail"}
    outcome = flipped.get(_a_check(check).outcome, check.outcome)
    note = check.note or ("differs, as predicted" if outcome == "pass" else "agrees, and was predicted to differ")
    return replace(check, name=name, outcome=outcome, note=note, variants=None, confirm=None, ascent=None, vacuous=False)


def automatic(name: str, check: Check) -> Check:
    """A control that the engine makes where a claim yields none. Not passing is all that is asked of a NaN prediction."""
    if name.endswith("NaN"):
        check = replace(check, outcome="pass" if check.passed else "fail", error=math.inf, tolerance=0.0, note="NaN does not pass")
    return control(f"automatic: {name}", check)


def broken(check: Check, note: str) -> Check:
    return replace(check, outcome="invalid", error=math.nan, note=note, variants=None, confirm=None)


@dataclass(frozen=True)
class Progress:
    """What a long claim is doing, yielded between checks: a name, and the fraction done where it is known."""

    name: str
    fraction: Number | None = None


@dataclass(frozen=True)
class Note:
    """A fact that a reader needs beside the checks: shown, and part of the verdict's scope if it says what was decided about."""

    text: str
    in_scope: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure for `--plot DIR`: `draw()` returns a matplotlib `Figure`, saved as DIR/name.pdf and DIR/name.png.

    It is called only when figures are asked for, and must not touch pyplot's global state: build it with
    `matplotlib.figure.Figure()`.
    """

    name: str
    draw: Callable[[], Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"a figure's name becomes a file name and may hold letters, digits, dots, - and _, got {self.name!r}")


def _a_check(check: object) -> Check:
    if not isinstance(check, Check):
        raise TypeError(f"a check was expected, got {type(check).__name__}; wrap agree(…), at_most(…) or another check")
    return check
