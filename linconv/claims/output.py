"""What a run leaves behind: lines on the terminal, a JSON file, figures."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from linconv.claims.arguments import tensors_of, written
from linconv.claims.checks import Check, Figure, Note
from linconv.claims.checks import Progress as Step
from linconv.claims.subject import Subject
from linconv.claims.verdict import REPRODUCE, Status, Verdict

LABELS = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "inconclusive": ("open", "yellow")}
OTHER_LABELS = {"not applicable": ("n/a", "yellow"), "invalid": ("BROKEN", "bold magenta")}
STYLES: dict[Status, str] = {"HOLDS": "bold green", "REFUTED": "bold red", "INVALID": "bold magenta"}
BY_A_HAIR = 10
DPI = 200
LISTED = 6
IN_PYTHON = "linconv.claims.check("


class PipeConsole(Console):
    """A console that falls silent when the reader of a pipe goes away: the run, its JSON and its exit code go on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Terminal:
    """Shows the events of a run as they happen, with a progress bar where the output is a terminal."""

    def __init__(self, figures: Path | None) -> None:
        self.console = PipeConsole(highlight=False, soft_wrap=False)
        self.figures = figures
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("working", total=None)
        self.heading: list[Text] = []

    def header(self, subject: Subject, command: str) -> None:
        """What stands above the first check. A claim may still refuse its parameters, in one line: nothing is printed before that."""
        title = subject.statement.split("\n\n")[0] or subject.name
        self.heading = [Text(" ".join(title.split()), style="bold"), Text(f"$ {command}\n", style="dim")]

    def show(self, event: Check | Figure | Note | Step) -> None:
        if not isinstance(event, Step):
            self._print_heading()
        if isinstance(event, Step):
            self.bar.update(self.task, description=event.name, completed=event.fraction or 0, total=None if event.fraction is None else 1.0)
            return
        self.bar.update(self.task, description="working", completed=0, total=None)
        if isinstance(event, Note):
            self._line("note", "cyan", event.text, ())
        elif isinstance(event, Figure):
            if self.figures is not None:
                save_figure(event, self.figures)
                self._line("figure", "cyan", f"{self.figures / event.name}.pdf and .png", ())
        elif event.control:
            caught = event.outcome == "fail"
            label, style = ("caught", "green") if caught else ("MISSED", "bold magenta")
            self._line(label, style, f"wrong variant: {event.name}: {_control(event)}", ())
        else:
            label, style = (LABELS | OTHER_LABELS)[event.outcome]
            self._line(label, style, event.name + ("" if event.required else " (not required)"), _details(event))

    def _print_heading(self) -> None:
        while self.heading:
            self.console.print(self.heading.pop(0), soft_wrap=True)  # the command is there to be copied

    def verdict(self, verdict: Verdict) -> None:
        self._print_heading()
        if verdict.traceback:
            self.console.print(Text("\n" + verdict.traceback, style="dim"))
        line = Text("\n").append(verdict.verdict, style=STYLES.get(verdict.verdict, "bold yellow"))
        reason, reproduce, command = verdict.reason.partition(REPRODUCE)
        self.console.print(line.append(f"  {verdict.scope or reason}"))
        if reproduce:
            self.console.print(Text("reproduce with:"))
            self.console.print(Text(verdict.snippet if command.startswith(IN_PYTHON) else command), soft_wrap=True)
        if verdict.scope:
            self.console.print(Text(verdict.reason))
        self.console.print(Text(f"{verdict.seconds:.1f} s, exit code {verdict.exit_code}", style="dim"))

    def _line(self, label: str, style: str, name: str, details: tuple[str, ...]) -> None:
        width = max(self.console.width - 8, 20)
        margin = Text(f"{label:>6}  ", style=style)
        for text, tone in ((name, "default"), *((detail, "dim") for detail in details)):
            for line in Text(text, style=tone).wrap(self.console, width):
                self.console.print(margin.append_text(line))
                margin = Text("        ")


def _control(check: Check) -> str:
    if check.outcome in ("invalid", "inconclusive"):
        return f"could not be decided: {check.note}"
    if check.outcome == "pass":
        return f"error {check.error:.2e} is within the tolerance {check.tolerance:.2e}"
    if math.isinf(check.violation):
        return f"error {check.error:.2e}, where the tolerance is {check.tolerance:.2e}"
    return f"error {check.violation:.3g} times the tolerance" + (" (by a hair)" if check.violation < BY_A_HAIR else "")


def _details(check: Check) -> tuple[str, ...]:
    if check.observed is None:
        return (check.note,)
    sides = f"observed {brief(check.observed)}, {check.side} {brief(check.predicted)}"
    relation = "≤" if check.error <= check.tolerance else ">"
    # Formulas and scales are in the JSON; here a line must be read at a glance.
    why = "rounding" if check.reason.startswith("rounding") else check.reason.partition("; relative to")[0].partition("; below: ")[0]
    why = why.removeprefix("above: ")
    error = "" if math.isnan(check.error) else f"; error {check.error:.1e} {relation} {check.tolerance:.1e} ({why})"
    return tuple(filter(None, (sides + error, check.note)))


def brief(value: Any) -> str:
    """A value of a check as a line or a table shows it.

    >>> brief({"shape": [2, 3], "norm": 1.5}), brief([[1.0, 2.0], [3.0, 4.0]]), brief(1 / 3)
    ('2×3 array of norm 1.5', '2×2 array', '0.333333')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and "shape" in value:
        return f"{'×'.join(map(str, value['shape']))} array of norm {value['norm']:.4g}"
    if isinstance(value, dict):
        return f"{value['re']:.6g}{value['im']:+.6g}i"
    if isinstance(value, list):
        shape = _shape(value)
        listed = len(shape) == 1 and shape[0] <= LISTED
        return "[" + ", ".join(map(brief, value)) + "]" if listed else f"{'×'.join(map(str, shape))} array"
    return str(value)


def _shape(nested: Any) -> list[int]:
    return [len(nested), *(_shape(nested[0]) if nested else [])] if isinstance(nested, list) else []


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as strict JSON values. NaN and infinities, which JSON has no numbers for, become strings."""
    fields = ("claim", "statement", "parameters", "versions", "seed")
    document = {name: getattr(verdict, name) for name in fields}
    document["checks"] = [_check(check) for check in verdict.checks]
    document["controls"] = [_controlled(check) for check in verdict.controls]
    document["notes"] = [note.text for note in verdict.notes]
    document |= {name: getattr(verdict, name) for name in ("verdict", "scope", "reason", "witness", "null_model", "seconds")}
    if verdict.witness is not None:
        document["witness"] = {name: _written(value) for name, value in verdict.witness.items()}
    strict: dict[str, Any] = _strict(document)
    return strict


def _written(value: Any) -> Any:
    """A witness is written in full where it can be: tensors with all their entries."""
    if isinstance(value, Path) or not tensors_of(value):
        return value
    try:
        return written(value)
    except TypeError:
        return value


def _check(check: Check) -> dict[str, Any]:
    names = ("name", "outcome", "observed", "predicted", "error", "tolerance", "reason", "note", "required", "scope")
    return {name: getattr(check, name) for name in names}


def _controlled(check: Check) -> dict[str, Any]:
    verdict = "refuted" if check.outcome == "fail" else "survived"
    return {
        "name": check.name,
        "violation": check.violation,
        "verdict": verdict,
        "error": check.error,
        "tolerance": check.tolerance,
        "note": check.note,
    }


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def write_json(document: Any, path: Path) -> None:
    """Write strict JSON so that a reader finds the old file or the new one, never a part."""
    write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    _atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def save_figure(figure: Figure, folder: Path) -> None:
    """Draw once and save as PDF and PNG. `TypeError` where `draw` returns something else than a matplotlib figure."""
    from matplotlib.figure import Figure as Drawing

    drawing = figure.draw()
    if not isinstance(drawing, Drawing):
        raise TypeError(f"draw of figure {figure.name!r} must return a matplotlib Figure, got {type(drawing).__name__}")
    _atomically(folder / f"{figure.name}.pdf", lambda path: drawing.savefig(path, format="pdf", metadata={"CreationDate": None}))
    _atomically(folder / f"{figure.name}.png", lambda path: drawing.savefig(path, format="png", dpi=DPI))


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def writable(path: Path) -> str:
    """Why a file cannot be written there; empty where it can. Asked before a long run, not after it."""
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return ""
