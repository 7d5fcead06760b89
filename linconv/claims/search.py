"""The search for a counterexample: structured instances, uphill, Hypothesis with targets, then at random.

Only the last stage draws independently of what came before, so that only it bounds how often the claim can be false: with n draws
and no violation, the rate of violations is at most 1 − 0.05^{1/n} with 95 % confidence (Clopper and Pearson, 1934), about 3/n.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random
from typing import Any

from hypothesis import target

from linconv.claims.ascent import ascend
from linconv.claims.budgets import Budget
from linconv.claims.checks import DrawingError, Note, NothingDrawn, Progress
from linconv.claims.compass import climb, movable
from linconv.claims.drawing import Space, Violated, explore, space_of
from linconv.claims.measure import Number
from linconv.claims.runner import Listener, Run, arguments_of, confirmed, execute, status_of, verdict_of, with_automatic_controls
from linconv.claims.shrinking import shrunk
from linconv.claims.structured import structured
from linconv.claims.subject import Subject
from linconv.claims.trials import Search, Spent, Trial, closeness, outcome_of, signed_margin
from linconv.claims.verdict import NO_CONTROL, REPRODUCE, Status, Verdict, counted, scope_of

SHARE = 0.25  # of the budget, at most, for each stage but the last
MOST = 1000  # examples for each stage but the last: what it has not found by then it seldom finds
STARTS = 20
RISK = 0.05
UNDRAWN = "undrawn"
# Draws that are no evidence.
APART = {"outside": "outside its hypotheses", "vacuous": "compared zero with zero", UNDRAWN: "not made, for filters reject nearly all"}
UNCONFIRMED = 3  # failures that nothing confirms, after which the search gives up
UNREPEATED = "but it did not fail again: the claim is not a function of its arguments (global random state?)"
LABELS = 8  # checks that Hypothesis is asked to drive towards failure


def search(subject: Subject, given: Mapping[str, object], budget: Budget, seed: int, listen: Listener) -> Verdict:
    """Seek a counterexample over all parameters but the given ones; a given `seed` is only where the search begins."""
    started = time.perf_counter()
    beginning = dict(given) if "seed" in subject.parameters else {**given, "seed": seed}
    drawn = any(parameter.domain.strategy is not None for parameter in subject.parameters.values())
    arguments, drawn_with = arguments_of(subject, beginning if drawn or "seed" in subject.parameters else given)
    space = space_of(subject, arguments, {name: value for name, value in given.items() if name != "seed"})
    hunt = Hunt(Search(subject, budget, listen), space, seed)
    try:
        run, ruling = hunt.begin()
        if ruling[0] in ("HOLDS", "INCONCLUSIVE") and space.parameters:
            ruling = hunt.pursue(run, ruling)
    except KeyboardInterrupt:
        run, ruling = hunt.first, ("INCONCLUSIVE", hunt.interrupted())
    except DrawingError as error:
        run, ruling = hunt.first, ("INVALID", str(error))
    if hunt.witness is not None:
        verdict = verdict_of(subject, *hunt.witness, ruling, time.perf_counter() - started)
    else:
        verdict = verdict_of(subject, hunt.space.start, run, ruling, time.perf_counter() - started, drawn_with, hunt.scope(run))
    return _recorded(verdict, f"search with seed {seed}, {budget}", subject.search_command(given, budget, seed))


def _recorded(verdict: Verdict, how: str, command: str) -> Verdict:
    """The verdict with what determined the search in its scope or reason, and without a witness the command that searches again."""
    if verdict.holds:
        return replace(verdict, scope=f"{verdict.scope}; {how}", command=command)
    reason, reproduce, line = verdict.reason.partition(REPRODUCE)
    return replace(verdict, reason=f"{reason}; {how}{reproduce}{line}", command=command if verdict.witness is None else verdict.command)


@dataclass
class Hunt:
    """A search in progress: its space, the run that it began with, and the witness that ended it, if one did."""

    search: Search
    space: Space
    seed: int
    first: Run = field(default_factory=Run)
    witness: tuple[dict[str, Any], Run] | None = None
    unconfirmed: list[str] = field(default_factory=list)

    def begin(self) -> tuple[Run, tuple[Status, str]]:
        """The claim's own instance, with its controls; a failure there is a counterexample already.

        One that was drawn and tests nothing, outside the hypotheses or zero against zero, gives way to other draws.
        """
        self.search.stages["start"] += 1
        self.first = execute(self.search.subject, self.space.start, self.search.listen)
        with suppress(Spent):
            for number in range(STARTS):
                if not self.space.drawn or outcome_of(self.first)[0] not in ("outside", "vacuous"):
                    break
                self.search.spend()
                self._start_elsewhere(number)
        status, reason = status_of(self.first)
        if isinstance(self.first.raised, KeyboardInterrupt):
            raise self.first.raised
        if reason == NO_CONTROL:
            status, reason = with_automatic_controls(self.first, self.search.listen)
        if status == "REFUTED":
            trial = self.search.found = Trial(self.space.start, self.first, "violated", reason)
            return self.first, self._settled(trial) or ("INCONCLUSIVE", self.unconfirmed[0])
        return self.first, (status, reason)

    def _start_elsewhere(self, number: int) -> None:
        """Another draw of what has a strategy in the place of the first; flags stay as they are."""
        other = self.space.draw(Random(f"{self.seed} start {number}"))
        if other is not None:
            self.space = replace(self.space, start=self.space.start | {p.name: other[p.name] for p in self.space.drawn})
            self.first = execute(self.search.subject, self.space.start, self.search.listen)

    def pursue(self, run: Run, ruling: tuple[Status, str]) -> tuple[Status, str]:
        """All stages in turn, and the ruling that they come to."""
        for stage, share, items, action in self._stages():
            self.search.begin(stage, share, MOST if share < 1 else math.inf)
            try:
                for item in items:
                    settled = self._tried(action, item)
                    if settled is not None:
                        return settled
            except (Spent, NothingDrawn):  # with another seed there may be something to draw
                pass
        return self._ruling(ruling)

    def _stages(self) -> Iterable[tuple[str, Number, Iterable[Any], Callable[[Any], object]]]:
        """Name, share of the budget, what it looks at in turn, and how."""
        yield "structured", SHARE, structured(self.space, Random(f"{self.seed} structured")), self.search.attempt
        if self.space.drawn or movable(self.space):
            yield "uphill", SHARE, range(STARTS), self._uphill
        yield "targeted", SHARE, (0,), self._targeted
        yield "random", 1.0, count(), self._at_random

    def _tried(self, action: Callable[[Any], object], item: Any) -> tuple[Status, str] | None:
        """The ruling if the item led to a counterexample that is confirmed, or to too many that are not."""
        with suppress(Violated):
            action(item)
        trial = self.search.found
        if trial is None:
            return None
        settled = self._settled(trial, item)
        if settled is None and len(self.unconfirmed) >= UNCONFIRMED:
            return "INCONCLUSIVE", self.unconfirmed[0]
        self.search.found = None
        return settled

    def _uphill(self, start: int) -> None:
        instance = self.space.draw(Random(f"{self.seed} uphill {start}"))
        if instance is None:
            self.search.spend()
            return
        ascend(self.space, instance, self.search.checks, self.search.attempt, start)
        climb(self.space, instance, lambda candidate: closeness(self.search.attempt(candidate))[0])

    def _targeted(self, _: int) -> None:
        examples = self.search.budget.examples
        most = MOST if examples is None else min(MOST, max(1, int(examples * SHARE)))
        explore(self.space.strategy(), self._visit, seed=Random(f"{self.seed} targeted").randrange(2**32), examples=most, shrink=True)

    def _visit(self, values: dict[str, Any]) -> None:
        """One example of Hypothesis; once one has failed, the simpler ones that it then proposes are outside the budget."""
        found = self.search.found
        if found is not None:
            trial = self.search.judged(self.space.start | values)
            if trial.outcome == "violated" and trial.failing & found.failing:
                self.search.found = trial
                raise Violated
            return
        trial = self.search.attempt(self.space.start | values)
        required = [check for check in trial.run.checks if check.required and math.isfinite(signed_margin(check))]
        for check in required[:LABELS]:
            target(signed_margin(check), label=check.name)

    def _at_random(self, number: int) -> None:
        instance = self.space.draw(self._rng(number))
        if instance is None:
            self.search.spend()
            self.search.independent[UNDRAWN] += 1
            return
        trial = self.search.attempt(instance)
        self.search.independent[trial.outcome] += 1

    def _rng(self, number: int) -> Random:
        return Random(f"{self.seed} random {number}")

    def _settled(self, trial: Trial, item: Any = 0) -> tuple[Status, str] | None:
        """Shrink and confirm; None, with the reason kept, where nothing confirms it."""
        where = {"start": "at its own parameters"}.get(self.search.stage, f"by the {self.search.stage} stage")
        how = f"found {where} after {counted(self.search.examples, 'example')}"
        self.search.listen(Progress("shrinking the counterexample"))
        if self.search.stage == "random" and self.space.drawn:
            self.space.draw_again(self._rng(item), partial(self._visit_again, trial))
        found = self.search.found or trial
        small = shrunk(self.space, found.arguments, lambda candidate: self._fails_alike(candidate, trial))
        for arguments in (small, trial.arguments):
            again = self.search.judged(arguments)
            if again.outcome != "violated":
                ruling = "INCONCLUSIVE", f"{trial.reason}; {how}; {UNREPEATED}"
                continue
            self.search.listen(Progress("confirming the counterexample"))
            ruling = confirmed(self.search.subject, arguments, again.run, f"{again.reason}; {how}")
            if ruling[0] == "REFUTED":
                self.witness = (arguments, again.run)
                self._show(arguments, again.run)
                return ruling
        self.unconfirmed.append(ruling[1])
        return None

    def _visit_again(self, trial: Trial, values: dict[str, Any]) -> None:
        if self._fails_alike(trial.arguments | values, trial):
            self.search.found = self.search.judged(trial.arguments | values)
            raise Violated

    def _fails_alike(self, arguments: dict[str, Any], trial: Trial) -> bool:
        other = self.search.judged(arguments)
        return other.outcome == "violated" and bool(other.failing & trial.failing)

    def _show(self, arguments: dict[str, Any], run: Run) -> None:
        self.search.listen(Note(f"counterexample: {self.search.subject.instance(arguments)}"))
        for check in run.checks:
            self.search.listen(check)

    def _ruling(self, ruling: tuple[Status, str]) -> tuple[Status, str]:
        """What the search says where it found no counterexample: the first trouble that it met, or that the claim holds."""
        first = self.search.first
        for outcome in ("broken", "powerless"):
            if outcome in first:
                return "INVALID", f"{first[outcome].reason}, at {self._instance(first[outcome])}"
        if self.unconfirmed:
            return "INCONCLUSIVE", self.unconfirmed[0]
        if "open" in first or ruling[0] == "INCONCLUSIVE":
            trial = first.get("open")
            undecided = f"{self.search.outcomes['open']} of {counted(self.search.examples, 'example')} undecided; " if trial else ""
            return "INCONCLUSIVE", undecided + (f"first {trial.reason}, at {self._instance(trial)}" if trial else ruling[1])
        independent = self.search.independent
        if not independent["held"]:
            if not independent:
                return "INCONCLUSIVE", f"no counterexample; the budget of {self.search.budget} was spent before any independent draw"
            if independent.keys() == {UNDRAWN}:
                return (
                    "INCONCLUSIVE",
                    f"no counterexample; {self._apart('independent ')}: state the claim on a strategy that yields what it needs",
                )
            reasons = "; ".join(dict.fromkeys(first[name].reason for name in APART if independent[name] and name in first))
            return "INVALID", f"nothing was tested: none of {counted(independent.total(), 'draw')} counts, {self._apart('')} ({reasons})"
        return "HOLDS", f"no counterexample: {self.tally()}"

    def _instance(self, trial: Trial) -> str:
        return self.search.subject.command(trial.arguments)

    def tally(self) -> str:
        """How many examples each stage had, in words."""
        stages = ", ".join(f"{number} {stage}" for stage, number in self.search.stages.items() if number and stage != "start")
        return counted(self.search.examples, "example") + (f" ({stages})" if stages else "")

    def _apart(self, more: str) -> str:
        """How many independent draws are no evidence, and why."""
        independent = self.search.independent
        return ", ".join(f"{counted(independent[name], f'{more}draw')} {why}" for name, why in APART.items() if independent[name])

    def interrupted(self) -> str:
        if self.search.found is not None:
            return f"interrupted before a failure was confirmed: {self.search.found.reason}, at {self._instance(self.search.found)}"
        margin, name = self.search.closest
        best = f"; nearest to failing: “{name}”, error minus tolerance {margin:.3g}" if name else ""
        return f"interrupted, no counterexample in {self.tally()}{best}"

    def scope(self, run: Run) -> str:
        """What HOLDS extends to after a search."""
        held = self.search.independent["held"]
        if not held:
            return ""
        kind, _, rest = scope_of(run.checks, "", run.automatic).partition("; ")
        weakest = kind.partition(",")[0]
        proved = "" if weakest == "sampled" else f", each {weakest}"
        domain = "; ".join(
            f"{p.name}: {p.help or 'drawn'}" if p.domain.kind is None else f"{p.name}: {p.domain.describe()}" for p in self.space.parameters
        )
        kept = {name: value for name, value in self.space.start.items() if name not in {p.name for p in self.space.parameters}}
        others = f" at {self.search.subject.instance(kept)}" if kept else ""
        apart = self._apart("more ")
        dropped = f" ({apart})" if apart else ""
        rate = 1 - RISK ** (1 / held)
        return (
            f"sampled, {counted(held, 'independent draw')}{proved} from {domain}{others}{dropped}; none violates it, so that with "
            f"{100 * (1 - RISK):g} % confidence at most {100 * rate:.2g} % of such draws do (the examples that were chosen do not count)"
            + (f"; {rest}" if rest else "")
        )
