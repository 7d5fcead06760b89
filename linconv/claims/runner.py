"""Running a claim: collect its checks, confirm a failure, and say what it amounts to."""

import importlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from linconv.claims.arguments import changed, restore, snapshot
from linconv.claims.budgets import read_budget
from linconv.claims.checks import Check, Figure, NotApplicable, Note, Progress, UsageError, not_applicable
from linconv.claims.precision import CONDITIONING, NOT_REACHED, precision_ladder
from linconv.claims.replay import REPLAYING, replay, replayable
from linconv.claims.signatures import validated
from linconv.claims.snippets import snippet
from linconv.claims.subject import Claim, Subject, subject_of, versions
from linconv.claims.verdict import NO_CONTROL, REPRODUCE, Status, Verdict, judge, null_model, scope_of

Event: TypeAlias = Check | Figure | Note | Progress
Listener: TypeAlias = Callable[[Event], None]

TRACEBACK_FRAMES = 3
DRAWN_SEED = 0


@dataclass
class Run:
    """What one pass through a claim's body gave. `raised` is what ended it early, `mutated` an argument that it changed, if any did."""

    checks: list[Check] = field(default_factory=list)
    controls: list[Check] = field(default_factory=list)
    raised: BaseException | None = None
    mutated: str = ""
    automatic: bool = False
    names: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)

    def failing(self) -> list[Check]:
        return [check for check in self.checks if check.required and check.outcome == "fail"]


def check(claim: Claim | str, /, **parameters: object) -> Verdict:
    """Run a claim and return its verdict.

    `claim` is a function that yields checks, or the name of a module under `verification`, as in
    `check("theorem410", depth=3)`; `parameters` are the claim's own. A parameter outside its domain is a `ValueError`, one of
    another type, missing or unknown a `TypeError`, each naming it. `ImportError` where `verification` cannot be imported: it
    is not installed with the library, so run from a checkout.
    """
    if not isinstance(claim, str) and not callable(claim):
        raise TypeError(f"claim: expected a function that yields checks or the name of one in verification, got {claim!r}")
    return decide(subject_of(_named(claim) if isinstance(claim, str) else claim), parameters)


def falsify(claim: Claim | str, /, *, budget: int | str, seed: int = 0, **fixed: object) -> Verdict:
    """Seek a counterexample to a claim over the domains of its parameters, and return the verdict.

    `claim` is as in `check`.  `budget` is a number of examples, `50`, or of seconds, `"50s"`; shrinking and confirming what is found
    are outside it.  `seed` determines the search, a budget of seconds aside.  `fixed` holds parameters that are not searched.

    Searched are the flags with numbers, truth values or choices, and the parameters with a strategy.  In turn: structured instances;
    uphill, along the gradient of the checks' errors in tensors and networks and by compass search in numbers; Hypothesis with
    `target()`; independent draws.  REFUTED has the smallest instance found in `witness` and a program that repeats it in `snippet`.
    HOLDS says how many independent draws there were and how often the claim can still fail.  A claim that raises, changes its
    arguments or tests nothing is INVALID, one whose checks were undecided somewhere INCONCLUSIVE, and so is an interrupted search.

    `ValueError` or `TypeError` for a budget, seed or parameter that is none; `ImportError` as in `check`.

    >>> from collections.abc import Iterator
    >>> from typing import Annotated
    >>> from annotated_types import Interval
    >>> from linconv.claims import Check, agree
    >>> def claim(*, n: Annotated[int, Interval(ge=1, le=99)] = 1) -> Iterator[Check]:
    ...     number = n * n + n + 41
    ...     yield agree("number of divisors of n² + n + 41", sum(number % k == 0 for k in range(1, number + 1)), 2)
    >>> falsify(claim, budget=200).witness
    {'n': 40}
    """
    if not isinstance(claim, str) and not callable(claim):
        raise TypeError(f"claim: expected a function that yields checks or the name of one in verification, got {claim!r}")
    from linconv.claims.search import search

    return search(subject_of(_named(claim) if isinstance(claim, str) else claim), fixed, read_budget(budget), checked_seed(seed), ignore)


def checked_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed!r}; choose a value in that range")
    return seed


def _named(name: str) -> Claim:
    try:
        importlib.import_module("verification")
    except ModuleNotFoundError:
        raise ImportError(
            f"claim {name!r} is a module of `verification`, which is not importable here: "
            "run from a checkout of the project, or pass a function"
        ) from None
    try:
        module = importlib.import_module(f"verification.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"verification.{name}":
            raise
        raise ImportError(f"verification has no claim {name!r}; the claims are the files of the folder `verification`") from None
    claim: Claim = module.claim
    return claim


def ignore(event: Event) -> None:
    """The listener of a library call: nothing is shown."""


def arguments_of(subject: Subject, parameters: Mapping[str, object]) -> tuple[dict[str, Any], int | None]:
    """The arguments of a run, and the seed with which some of them were drawn; None where none was.

    The seed is the claim's own, or where it declares none the one given beside its parameters.
    """
    given, declared = dict(parameters), subject.parameters.get("seed")
    may_draw = any(parameter.domain.strategy is not None for parameter in subject.parameters.values())
    if not may_draw:
        return validated(subject.parameters, given), None
    from linconv.claims.drawing import completed, is_missing

    seed = given.get("seed", declared.default if declared is not None and declared.has_default else DRAWN_SEED)
    seed = checked_seed(seed)
    draws = any(is_missing(parameter, given) for parameter in subject.parameters.values())
    if declared is None:
        given.pop("seed", None)
    return completed(subject, given, seed), seed if draws else None


def decide(subject: Subject, parameters: Mapping[str, object], listen: Listener = ignore) -> Verdict:
    """The verdict of a claim on given parameters, each event passed to `listen` as it happens."""
    arguments, seed = arguments_of(subject, parameters)
    started = time.perf_counter()
    run = execute(subject, arguments, listen)
    status, reason = status_of(run)
    try:
        if reason == NO_CONTROL:
            status, reason = with_automatic_controls(run, listen)
        if status == "REFUTED" and REPLAYING not in os.environ:
            listen(Progress("confirming the failure"))
            status, reason = confirmed(subject, arguments, run, reason, seed)
    except KeyboardInterrupt:
        status, reason = "INCONCLUSIVE", f"interrupted before it was confirmed: {reason}"
    return verdict_of(subject, arguments, run, (status, reason), time.perf_counter() - started, seed)


def execute(subject: Subject, arguments: Mapping[str, Any], listen: Listener = ignore) -> Run:
    """One pass through the claim's body. What it raises ends the run and is recorded, except a `UsageError` before any check.

    Arguments that it changes in place are as before when it has ended.
    """
    run, before = Run(), snapshot(arguments)
    try:
        produced = subject.claim(**arguments)
        if not isinstance(produced, Iterator):
            raise TypeError(f"the claim returned {type(produced).__name__}; it must yield its checks")
        for event in produced:
            event = _recorded(run, event)
            listen(event)
            if isinstance(event, Check) and event.required and event.outcome == "not applicable":
                break
    except NotApplicable as error:
        event = _recorded(run, not_applicable("hypothesis", str(error)))
        listen(event)
    except UsageError as error:
        if not run.names:
            raise
        run.raised = error
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        run.raised = error
    run.mutated = changed(arguments, before)
    if run.mutated:  # what is reported is the instance that the claim was given
        restore(arguments, before)
    return run


def _recorded(run: Run, event: object) -> Event:
    """File an event under checks or controls, with a name of its own."""
    if not isinstance(event, Check):
        if isinstance(event, Note):
            run.notes.append(event)
        elif not isinstance(event, Figure | Progress):
            raise TypeError(f"the claim yielded {type(event).__name__}; it must yield checks: agree(…), at_most(…), control(…)")
        return event
    name, count = event.name, 1
    while name in run.names:
        count += 1
        name = f"{event.name} ({count})"
    run.names.add(name)
    event = replace(event, name=name)
    (run.controls if event.control else run.checks).append(event)
    return event


def status_of(run: Run) -> tuple[Status, str]:
    if isinstance(run.raised, KeyboardInterrupt):
        return "INCONCLUSIVE", "interrupted"
    if run.raised is not None:
        return "INVALID", f"the claim's body raised {one_line(run.raised)}"
    if run.mutated:
        return (
            "INVALID",
            f"the claim changed its argument {run.mutated} in place; let it work on a copy, such as copy.deepcopy({run.mutated})",
        )
    return judge(run.checks, run.controls)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return type(error).__name__ + (f": {text}" if text else "") + place


def with_automatic_controls(run: Run, listen: Listener) -> tuple[Status, str]:
    run.automatic = True
    for made in [check for check in run.checks if check.required and not check.vacuous]:
        for variant in made.variants() if made.variants else ():
            listen(_recorded(run, replace(variant, name=f"{variant.name} ({made.name})")))
    return judge(run.checks, run.controls)


def confirmed(subject: Subject, arguments: dict[str, Any], run: Run, reason: str, seed: int | None = None) -> tuple[Status, str]:
    """REFUTED only if no better precision, no witness and no fresh process takes the failure back."""
    ladder = precision_ladder(subject, arguments, run.failing(), lambda other: _again(subject, other).checks)
    if ladder.startswith((CONDITIONING, NOT_REACHED)):
        return "INCONCLUSIVE", f"{reason}; {ladder}"
    fresh = replayable(subject, arguments)
    outcomes = replay(subject, arguments) if fresh else {check.name: check.outcome for check in _again(subject, arguments).checks}
    where = "in a fresh process" if fresh else "in this process (no fresh one can be given this claim or its arguments)"
    repeated = [check for check in run.failing() if outcomes and outcomes.get(check.name) == "fail"]
    if not repeated:
        return "INCONCLUSIVE", f"{reason}; but it did not fail again {where} with the same parameters"
    try:
        agreeing = [check.name for check in repeated if check.confirm is None or check.confirm().outcome == "fail"]
    except Exception as error:
        return "INVALID", f"{reason}; but its witness raised {one_line(error)}"
    if not agreeing:
        return "INVALID", f"{reason}; but the witness of the check does not fail: the fault is in what the claim observed"
    witnessed = any(check.confirm is not None and check.name in agreeing for check in repeated)
    steps = [ladder, f"replayed {where}", "confirmed by its independent witness" if witnessed else ""]
    return "REFUTED", "; ".join([reason, *filter(None, steps)]) + REPRODUCE + subject.command(arguments, seed)


def _again(subject: Subject, arguments: dict[str, Any]) -> Run:
    """Another pass, in silence. One that the claim refuses gives no checks; an interrupt goes on."""
    try:
        run = execute(subject, arguments)
    except UsageError:
        return Run()
    if isinstance(run.raised, KeyboardInterrupt):
        raise run.raised
    return run


def verdict_of(
    subject: Subject,
    arguments: dict[str, Any],
    run: Run,
    ruling: tuple[Status, str],
    seconds: float,
    seed: int | None = None,
    scope: str = "",
) -> Verdict:
    """The verdict of a run on which a ruling has been given; `seed` is that of drawn arguments, `scope` that of a search."""
    status, reason = ruling
    instance, recorded = subject.instance(arguments), arguments.get("seed", seed)
    return Verdict(
        claim=subject.name,
        statement=subject.statement,
        parameters=arguments,
        versions=versions(),
        seed=recorded if isinstance(recorded, int) else None,
        checks=tuple(replace(check, confirm=None, variants=None, ascent=None) for check in run.checks),
        controls=tuple(replace(check, confirm=None, variants=None, ascent=None) for check in run.controls),
        verdict=status,
        scope=(scope or scope_of(run.checks, instance, run.automatic, run.notes)) if status == "HOLDS" else "",
        reason=reason,
        witness=dict(arguments) if status == "REFUTED" else None,
        null_model=null_model(run.checks),
        notes=tuple(run.notes),
        seconds=seconds,
        command=subject.command(arguments, seed),
        snippet=snippet(subject, arguments) if status == "REFUTED" else "",
        traceback=_brief(run.raised) if status == "INVALID" and run.raised is not None else "",
    )


def _brief(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-TRACEBACK_FRAMES, chain=False)
    return "".join(lines).rstrip()
