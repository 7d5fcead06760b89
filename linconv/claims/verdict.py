"""Verdicts: what a run of checks and controls amounts to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from linconv.claims.checks import Check, Note, Scope

Status: TypeAlias = Literal["HOLDS", "REFUTED", "INCONCLUSIVE", "NOT APPLICABLE", "INVALID"]

EXIT_CODES: dict[Status, int] = {"HOLDS": 0, "REFUTED": 1, "INCONCLUSIVE": 3, "NOT APPLICABLE": 4, "INVALID": 5}
USAGE_ERROR = 2
REPRODUCE = "; reproduce with: "
NO_CONTROL = "no control: nothing shows that these checks can fail; yield control(name, check) with a wrong variant"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one run of a claim.

    `verdict` is HOLDS, REFUTED, INCONCLUSIVE, NOT APPLICABLE or INVALID; `scope` says what HOLDS extends to, `reason` why it is
    this verdict; `witness` holds the refuting parameters, `command` the line that repeats run or search, `snippet` a program that repeats a
    refutation, `traceback` the end of the traceback where the claim's body raised.
    """

    claim: str
    statement: str
    parameters: dict[str, Any]
    versions: dict[str, str]
    seed: int | None
    checks: tuple[Check, ...]
    controls: tuple[Check, ...]
    verdict: Status
    scope: str
    reason: str
    witness: dict[str, Any] | None = None
    null_model: dict[str, Any] | None = None
    notes: tuple[Note, ...] = ()
    seconds: float = 0.0
    command: str = field(default="", compare=False)
    snippet: str = field(default="", repr=False, compare=False)
    traceback: str = field(default="", repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """0 HOLDS, 1 REFUTED, 3 INCONCLUSIVE, 4 NOT APPLICABLE, 5 INVALID. (2 is a usage error, which has no verdict.)"""
        return EXIT_CODES[self.verdict]

    @property
    def holds(self) -> bool:
        return self.verdict == "HOLDS"

    def __str__(self) -> str:
        return f"{self.claim}: {self.verdict} ({self.scope or self.reason})"


def judge(checks: Sequence[Check], controls: Sequence[Check]) -> tuple[Status, str]:
    """The verdict of a completed run, and its reason: a broken check before a refutation before an open question.

    NOT APPLICABLE comes before the last two, for nothing refutes a theorem outside its hypotheses. A surviving control, no
    required check, or zero against zero throughout is INVALID.
    """
    required = [check for check in checks if check.required]
    for control in controls:
        if control.outcome != "fail":
            return "INVALID", _survival(control)
    for check in required:
        if check.outcome == "invalid":
            return "INVALID", f"check “{check.name}” is broken: {check.note}"
    for check in required:
        if check.outcome == "not applicable":
            return "NOT APPLICABLE", f"{check.name}: {check.note}"
    if not required:
        return "INVALID", "nothing was tested: the claim yielded no required check"
    for check in required:
        if check.outcome == "fail":
            return "REFUTED", f"check “{check.name}” fails: {_failure(check)}"
    for check in required:
        if check.outcome == "inconclusive":
            return "INCONCLUSIVE", f"check “{check.name}”: {check.note}"
    if all(check.vacuous for check in required):
        return "INVALID", "nothing was tested: " + "; ".join(dict.fromkeys(check.note or "no cases" for check in required))
    if not controls:
        return "INVALID", NO_CONTROL
    return "HOLDS", f"{counted(len(required), 'required check')} passed, {counted(len(controls), 'control')} refuted"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _survival(control: Check) -> str:
    why = control.note if control.outcome in ("invalid", "inconclusive") else f"{control.violation:.2g} times its tolerance"
    return f"control “{control.name}” survived ({why}): the check cannot tell it from the truth"


def _failure(check: Check) -> str:
    if math.isinf(check.violation):
        return f"error {check.error:.3g}" + (f", {check.note}" if check.note else "")
    return f"error {check.error:.3g}, {check.violation:.3g} times the tolerance {check.tolerance:.3g}" + (
        f"; {check.note}" if check.note else ""
    )


def scope_of(checks: Sequence[Check], instance: str, automatic: bool, notes: Sequence[Note] = ()) -> str:
    """What HOLDS extends to: the weakest scope among the required checks, the claim's own notes, and every loosening."""
    required = [check for check in checks if check.required]
    counts: dict[Scope, int] = {kind: sum(check.scope == kind for check in required) for kind in ("sampled", "certified", "exact")}
    weakest = next(kind for kind, count in counts.items() if count)
    text: str = weakest
    if weakest == "sampled":
        draws = min(check.draws for check in required if check.scope == "sampled")
        text += f", {counted(draws, 'draw')}"
    text += f" at {instance}" if instance else ""
    text += "".join(f" ({note.text})" for note in notes if note.in_scope)
    stronger = [f"{count} of {len(required)} checks {kind}" for kind, count in counts.items() if count and kind != weakest]
    loosened = [f"{check.name} {check.tolerance:.1g}" for check in required if check.loosened]
    more = f" and {len(loosened) - 3} more" if len(loosened) > 3 else ""
    if loosened:
        stronger.append("tolerance above rounding: " + ", ".join(loosened[:3]) + more)
    if automatic:
        stronger.append("automatic controls only")
    return "; ".join([text, *stronger])


def null_model(checks: Sequence[Check]) -> dict[str, Any] | None:
    """The largest p-value among the fits, and all of them by check; None where nothing was fitted."""
    fits = {check.name: check.p_value for check in checks if check.p_value is not None}
    return {"p_value": max(fits.values()), "fits": fits} if fits else None
