"""One instance of a claim tried: what it amounts to, and what a search has spent and seen so far."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from linconv.claims.budgets import Budget
from linconv.claims.checks import Check, Figure, Note, Progress, UsageError, not_applicable
from linconv.claims.drawing import Violated
from linconv.claims.measure import Number
from linconv.claims.runner import Listener, Run, execute, status_of
from linconv.claims.subject import Subject
from linconv.claims.verdict import judge

Outcome: TypeAlias = Literal["held", "violated", "powerless", "open", "vacuous", "outside", "broken"]


class Spent(BaseException):
    """A budget, or a stage's share of it, is used up. Not an `Exception`: it must pass through the claim's body and Hypothesis."""


@dataclass(frozen=True)
class Trial:
    """An instance and what its checks said.  "powerless": a check fails, but a wrong variant survives there as well."""

    arguments: dict[str, Any]
    run: Run
    outcome: Outcome
    reason: str

    @property
    def failing(self) -> frozenset[str]:
        return frozenset(check.name for check in self.run.failing())


def outcome_of(run: Run) -> tuple[Outcome, str]:
    """What one run amounts to in a search: as for a verdict, but controls need not have power at every instance."""
    status, reason = status_of(run)
    required = [check for check in run.checks if check.required]
    if run.raised is not None or run.mutated:
        return "broken", reason
    status, reason = judge(run.checks, ())
    if status == "REFUTED":
        caught, why = judge(run.checks, run.controls)
        return ("violated", reason) if caught == "REFUTED" else ("powerless", why)
    if status == "NOT APPLICABLE":
        return "outside", reason
    if any(check.outcome == "invalid" for check in required):
        return "broken", reason
    if status == "INCONCLUSIVE":
        return "open", reason
    return ("vacuous", reason) if all(check.vacuous for check in required) else ("held", "")


@dataclass
class Search:
    """What a search has spent and seen. `begin` gives the next stage a share of the budget, `attempt` tries an instance."""

    subject: Subject
    budget: Budget
    listen: Listener
    started: float = field(default_factory=time.monotonic)
    stage: str = "start"
    stages: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    independent: Counter[str] = field(default_factory=Counter)
    first: dict[str, Trial] = field(default_factory=dict)
    found: Trial | None = None
    closest: tuple[Number, str] = (-math.inf, "")
    limit: tuple[Number, Number] = (math.inf, math.inf)

    @property
    def examples(self) -> int:
        return sum(self.stages.values())

    def begin(self, stage: str, share: Number, most: Number) -> None:
        """Start a stage that may use this share of the whole budget, and so many examples at most."""
        self.stage = stage
        examples = most if self.budget.examples is None else min(most, max(1, int(self.budget.examples * share)))
        seconds = math.inf if self.budget.seconds is None else self.budget.seconds * share
        self.limit = (self.examples + examples, time.monotonic() + seconds)

    def spend(self) -> None:
        """Count one run of the claim; raises `Spent` where there is no budget for it."""
        most = math.inf if self.budget.examples is None else self.budget.examples
        if self.examples >= min(self.limit[0], most) or time.monotonic() >= min(self.limit[1], self._deadline()):
            raise Spent
        self.stages[self.stage] += 1
        self.listen(Progress(f"searching, {self.stage}: {self.examples} examples", self._fraction()))

    def _deadline(self) -> Number:
        return math.inf if self.budget.seconds is None else self.started + self.budget.seconds

    def _fraction(self) -> Number:
        if self.budget.examples is not None:
            return min(1.0, self.examples / self.budget.examples)
        return min(1.0, (time.monotonic() - self.started) / (self.budget.seconds or 1.0))

    def _watch(self, event: Check | Figure | Note | Progress) -> None:
        """Between the checks of a long run the time may be up; an unfinished run counts for nothing."""
        if time.monotonic() >= self._deadline():
            self.stages[self.stage] -= 1
            raise Spent

    def attempt(self, arguments: dict[str, Any]) -> Trial:
        """Try one instance. Raises `Violated` at a counterexample, which is then `found`, and `Spent` at the end of the budget."""
        self.spend()
        trial = self.judged(arguments)
        self.outcomes[trial.outcome] += 1
        self.first.setdefault(trial.outcome, trial)
        self.closest = max(self.closest, closeness(trial))
        if trial.outcome == "violated":
            self.found = trial
            raise Violated
        return trial

    def checks(self, arguments: dict[str, Any]) -> Sequence[Check]:
        """The checks of one run that only shows where to go next; counted, and never judged."""
        self.spend()
        return self._execute(arguments).checks

    def judged(self, arguments: dict[str, Any]) -> Trial:
        """One instance, outside the budget."""
        run = self._execute(arguments)
        return Trial(arguments, run, *outcome_of(run))

    def _execute(self, arguments: dict[str, Any]) -> Run:
        try:
            run = execute(self.subject, arguments, self._watch if self.found is None else _silent)
        except UsageError as error:  # parameters that only the claim can refuse lie outside its domain
            return Run(checks=[not_applicable("parameters", str(error))])
        if isinstance(run.raised, KeyboardInterrupt):
            raise run.raised
        return run


def _silent(event: object) -> None:
    """After the counterexample is found no budget counts."""


def closeness(trial: Trial) -> tuple[Number, str]:
    """How far the worst check is from failing (error − tolerance), and its name."""
    margins = [(signed_margin(check), check.name) for check in trial.run.checks if check.required]
    return max((entry for entry in margins if math.isfinite(entry[0])), default=(-math.inf, ""))


def signed_margin(check: Check) -> Number:
    return check.error - check.tolerance
