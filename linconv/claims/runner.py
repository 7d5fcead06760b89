"""Running a claim: collect its checks, confirm a failure, and say what it amounts to."""

import importlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from linconv.claims.checks import Check, Figure, NotApplicable, Note, Progress, UsageError, not_applicable
from linconv.claims.domains import validated
from linconv.claims.replay import REPLAYING, replay, replayable
from linconv.claims.subject import Claim, Subject, subject_of, versions
from linconv.claims.verdict import NO_CONTROL, REPRODUCE, Status, Verdict, judge, null_model, scope_of

Event: TypeAlias = Check | Figure | Note | Progress
Listener: TypeAlias = Callable[[Event], None]

# The rounding units of float32 and float64 differ by 2²⁹. An error that is rounding shrinks by about that, one that is not by
# nothing; the line is drawn half-way between on a logarithmic scale.
SHRINKAGE = 2.0**14.5
TRACEBACK_FRAMES = 3
CONDITIONING, NOT_REACHED = "conditioning, not falsehood: the error is", "undecided: the check was not reached in"


@dataclass
class Run:
    """What one pass through a claim's body gave. `raised` is what ended it early, if anything did."""

    checks: list[Check] = field(default_factory=list)
    controls: list[Check] = field(default_factory=list)
    raised: BaseException | None = None
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


def _ignore(event: Event) -> None:
    """The listener of a library call: nothing is shown."""


def decide(subject: Subject, parameters: Mapping[str, object], listen: Listener = _ignore) -> Verdict:
    """The verdict of a claim on given parameters, each event passed to `listen` as it happens."""
    arguments = validated(subject.parameters, parameters)
    started = time.perf_counter()
    run = execute(subject, arguments, listen)
    status, reason = _status(run)
    try:
        if reason == NO_CONTROL:
            status, reason = _with_automatic_controls(run, listen)
        if status == "REFUTED" and REPLAYING not in os.environ:
            listen(Progress("confirming the failure"))
            status, reason = _confirmed(subject, arguments, run, reason)
    except KeyboardInterrupt:
        status, reason = "INCONCLUSIVE", f"interrupted before it was confirmed: {reason}"
    return _verdict(subject, arguments, run, status, reason, time.perf_counter() - started)


def execute(subject: Subject, arguments: Mapping[str, Any], listen: Listener = _ignore) -> Run:
    """One pass through the claim's body. What it raises ends the run and is recorded, except a `UsageError` before any check."""
    run = Run()
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


def _status(run: Run) -> tuple[Status, str]:
    if isinstance(run.raised, KeyboardInterrupt):
        return "INCONCLUSIVE", "interrupted"
    if run.raised is not None:
        return "INVALID", f"the claim's body raised {_one_line(run.raised)}"
    return judge(run.checks, run.controls)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return type(error).__name__ + (f": {text}" if text else "") + place


def _with_automatic_controls(run: Run, listen: Listener) -> tuple[Status, str]:
    run.automatic = True
    for made in [check for check in run.checks if check.required and not check.vacuous]:
        for variant in made.variants() if made.variants else ():
            listen(_recorded(run, replace(variant, name=f"{variant.name} ({made.name})")))
    return judge(run.checks, run.controls)


def _confirmed(subject: Subject, arguments: dict[str, Any], run: Run, reason: str) -> tuple[Status, str]:
    """REFUTED only if no better precision, no witness and no fresh process takes the failure back."""
    ladder = _precision_ladder(subject, arguments, run.failing())
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
        return "INVALID", f"{reason}; but its witness raised {_one_line(error)}"
    if not agreeing:
        return "INVALID", f"{reason}; but the witness of the check does not fail: the fault is in what the claim observed"
    witnessed = any(check.confirm is not None and check.name in agreeing for check in repeated)
    steps = [ladder, f"replayed {where}", "confirmed by its independent witness" if witnessed else ""]
    return "REFUTED", "; ".join([reason, *filter(None, steps)]) + REPRODUCE + subject.command(arguments)


def _again(subject: Subject, arguments: dict[str, Any]) -> Run:
    """Another pass, in silence. One that the claim refuses gives no checks; an interrupt goes on."""
    try:
        run = execute(subject, arguments)
    except UsageError:
        return Run()
    if isinstance(run.raised, KeyboardInterrupt):
        raise run.raised
    return run


def _precision_ladder(subject: Subject, arguments: dict[str, Any], failing: list[Check]) -> str:
    """What the other precision says about the failures, in words; empty where the claim declares no `dtype`."""
    declared = subject.parameters.get("dtype")
    given = arguments.get("dtype")
    if declared is None or not {"float32", "float64", given} <= set(declared.domain.choices) or given not in ("float32", "float64"):
        return ""
    other = "float64" if given == "float32" else "float32"
    again = {check.name: check for check in _again(subject, arguments | {"dtype": other}).checks}
    lasting = [check for check in failing if check.name in again and not _shrinks(check, again[check.name], other == "float64")]
    if not lasting:
        seen = [f"{again[check.name].error:.3g}" for check in failing if check.name in again]
        return f"{CONDITIONING} {failing[0].error:.3g} in {given}, {seen[0]} in {other}" if seen else f"{NOT_REACHED} {other}"
    return f"the error stays in {other} ({again[lasting[0].name].error:.3g})"


def _shrinks(here: Check, there: Check, there_is_finer: bool) -> bool:
    """Whether the error falls with the rounding unit. An error that cannot be compared counts as one that does."""
    if there_is_finer and there.outcome != "fail":
        return True
    if here.error == there.error:
        return False
    coarse, fine = (here.error, there.error) if there_is_finer else (there.error, here.error)
    if math.isnan(coarse) or math.isnan(fine):
        return True
    saturated = coarse >= 0.1 and coarse >= 100 * fine
    return fine * SHRINKAGE <= coarse or saturated


def _verdict(subject: Subject, arguments: dict[str, Any], run: Run, status: Status, reason: str, seconds: float) -> Verdict:
    instance = subject.instance(arguments)
    seed = arguments.get("seed")
    return Verdict(
        claim=subject.name,
        statement=subject.statement,
        parameters=arguments,
        versions=versions(),
        seed=seed if isinstance(seed, int) else None,
        checks=tuple(replace(check, confirm=None, variants=None) for check in run.checks),
        controls=tuple(replace(check, confirm=None, variants=None) for check in run.controls),
        verdict=status,
        scope=scope_of(run.checks, instance, run.automatic, run.notes) if status == "HOLDS" else "",
        reason=reason,
        witness=dict(arguments) if status == "REFUTED" else None,
        null_model=null_model(run.checks),
        notes=tuple(run.notes),
        seconds=seconds,
        command=subject.command(arguments),
        traceback=_brief(run.raised) if status == "INVALID" and run.raised is not None else "",
    )


def _brief(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-TRACEBACK_FRAMES, chain=False)
    return "".join(lines).rstrip()
