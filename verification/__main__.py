"""All claims of this folder: run each, print a table, end with the worst verdict.

Every file whose name does not start with an underscore is a claim; nothing else registers it. Each runs in a process of its
own with its defaults. `--fast` runs them in one process with the parameters in each module's constant `FAST`; empirical claims
are then only a smoke test, whose refutation or open question does not count. `--html DIR` makes one page of everything, DIR/index.html.

The exit code is the first that occurs of 5 (INVALID), 1 (REFUTED) and 3 (INCONCLUSIVE, which does not count for an empirical
claim), else 0.
"""

import importlib
import json as jsonlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
from rich.console import Console
from rich.table import Table

from linconv.claims import Figure
from linconv.claims.output import save_figure, to_json, writable, write_json, write_text
from linconv.claims.runner import Event, decide
from linconv.claims.subject import Subject, subject_of
from linconv.claims.verdict import EXIT_CODES, USAGE_ERROR
from linconv.report import latex as latex_of
from linconv.report import page

FOLDER = Path(__file__).parent
COUNTED = (5, 1, 3)


@dataclass(frozen=True)
class Row:
    """One line of the table; `smoke` marks an empirical claim under `--fast`, `document` is the claim's JSON."""

    claim: str
    kind: str
    smoke: bool
    document: Mapping[str, Any]

    @property
    def counts(self) -> int:
        """The exit code that this claim asks for."""
        code = {str(status): value for status, value in EXIT_CODES.items()}[self.document["verdict"]]
        ignored = (1, 3) if self.smoke else (3,) if self.kind == "empirical" else ()
        return 0 if code in ignored else code


def claims() -> list[str]:
    """The names of the claim files, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.name.startswith("_"))


def run_all(fast: bool, seed: int | None, console: Console, figures: Path | None = None) -> list[Row]:
    """Run every claim; one that cannot be imported or run is INVALID. Figures go into a folder for each below `figures`."""
    rows = []
    names = claims()
    for position, name in enumerate(names, 1):
        console.print(f"{position} of {len(names)}: {name}", style="dim", highlight=False)
        rows.append(_run(name, fast, seed, None if figures is None else figures / name))
    return rows


def _run(name: str, fast: bool, seed: int | None, figures: Path | None) -> Row:
    kind = "theorem"
    try:
        module = importlib.import_module(f"verification.{name}")
        subject = subject_of(module.claim)
        kind = subject.kind
        seeded = {"seed": seed} if seed is not None and "seed" in subject.parameters else {}
        small = {**getattr(module, "FAST", {}), **seeded}
        document = to_json(decide(subject, small, _saving(figures))) if fast else _in_a_process(subject, seeded, figures)
    except (Exception, SystemExit) as error:
        document = _broken(f"{type(error).__name__}: {' '.join(str(error).split())}")
        sys.stderr.write(f"{name} cannot be run: {document['reason']}\n")
    return Row(name, kind, fast and kind == "empirical", document)


def _saving(figures: Path | None) -> Callable[[Event], None]:
    """A listener that saves figures, and shows nothing."""

    def listen(event: Event) -> None:
        if isinstance(event, Figure) and figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            save_figure(event, figures)

    return listen


def _in_a_process(subject: Subject, seeded: Mapping[str, int], figures: Path | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "verdict.json"
        flags = [f"--{name}={value}" for name, value in seeded.items()] + ([] if figures is None else [f"--plot={figures}"])
        command = [sys.executable, "-m", subject.module, f"--json={answer}", *flags]
        process = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
        if not answer.exists():
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode} without a verdict"]
            raise RuntimeError(lines[-1])
        document: dict[str, Any] = jsonlib.loads(answer.read_text(encoding="utf-8"))
        return document


def _broken(reason: str) -> dict[str, Any]:
    return {"verdict": "INVALID", "scope": "", "reason": reason, "seconds": 0.0}


def table(rows: list[Row]) -> Table:
    """Claim, verdict, what HOLDS extends to or why it does not hold, seconds."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("claim", "verdict", "scope or reason"):
        shown.add_column(heading, overflow="fold")
    shown.add_column("seconds", justify="right")
    for row in rows:
        note = " (smoke)" if row.smoke else " (empirical)" if row.kind == "empirical" else ""
        document = row.document
        why = document["scope"] or document["reason"]
        shown.add_row(row.claim, document["verdict"] + note, why.replace("[", "\\["), f"{document['seconds']:.1f}")
    return shown


def run(
    *, fast: bool = False, json: Path | None = None, html: Path | None = None, latex: Path | None = None, seed: int | None = None
) -> int:
    """Run all claims of the folder `verification` and print a table.

    Parameters
    ----------
    fast
        Every claim at small size in one process, in under two minutes.
    json
        Write all verdicts to this file.
    html
        Write one self-contained page with statements, checks, controls and figures to index.html in this folder.
    latex
        Write a table of the verdicts and the statements to this file.
    seed
        Seed of every claim that has one.
    """
    problem = next(filter(None, (_problem(path) for path in (json, latex, html and html / "index.html"))), "")
    if seed is not None and seed < 0:
        problem = f"seed must be an integer ≥ 0, got {seed}"
    if problem:
        sys.stderr.write(f"{problem}\n")
        return USAGE_ERROR
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder)
        rows = run_all(fast, seed, console, figures if html else None)
        codes = [row.counts for row in rows] or [5]
        code = next((code for code in COUNTED if code in codes), 0)
        documents = [{"claim": row.claim, "kind": row.kind, **row.document} for row in rows]
        if html is not None:
            drawn = {row.claim: sorted((figures / row.claim).glob("*.png")) for row in rows}
            write_text(page(documents, exit_code=code, figures=drawn), html / "index.html")
    console.print(table(rows) if rows else f"no claim in {FOLDER}")
    if json is not None:
        write_json({"exit_code": code, "claims": documents}, json)
    if latex is not None:
        write_text(latex_of(documents), latex)
    return code


def _problem(path: Path | None) -> str:
    """Why nothing can be written there, before anything runs; the folder of a page is made."""
    if path is None:
        return ""
    if path.name == "index.html":
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"{path.parent} is no folder and cannot be made one: {error.strerror}"
    return writable(path)


def main(argv: list[str]) -> int:
    """The command `python -m verification`: its exit code."""
    app = cyclopts.App(name="python -m verification", version_flags=[], result_action="return_value")
    app.default(run)
    try:
        result = app(argv, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        sys.stderr.write(f"{' '.join(str(error).split()).rstrip('.')}; --help lists the parameters\n")
        return USAGE_ERROR
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
