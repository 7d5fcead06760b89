"""Statements that can fail: checks with reasons, wrong variants that must be caught, and a verdict with an exit code.

A claim is a function whose keyword-only parameters carry their domains (see `linconv.claims.signatures`) and which yields checks;
the docstring of its module is the statement. `check` runs it and returns a `Verdict`; `main` makes it a command. Two constants
of the module are read: `KIND = "empirical"` for an observation that is not a theorem, and `FAST = {…}`, the parameters with which
`python -m verification --fast` runs it. An interrupted run is INCONCLUSIVE. To begin, copy `verification/_template.py`.
"""

from linconv.claims.checks import (
    Check,
    Figure,
    NotApplicable,
    Note,
    Progress,
    UsageError,
    control,
    inconclusive,
    not_applicable,
    predicted_failure,
    proved,
)
from linconv.claims.command import main
from linconv.claims.comparisons import agree, at_most, attains
from linconv.claims.enclosed import proved_at_most
from linconv.claims.intervals import exceeds
from linconv.claims.rates import rate
from linconv.claims.runner import check, falsify
from linconv.claims.verdict import Verdict

__all__ = [
    "Check",
    "Figure",
    "NotApplicable",
    "Note",
    "Progress",
    "UsageError",
    "Verdict",
    "agree",
    "at_most",
    "attains",
    "check",
    "control",
    "exceeds",
    "falsify",
    "inconclusive",
    "main",
    "not_applicable",
    "predicted_failure",
    "proved",
    "proved_at_most",
    "rate",
]
