"""`python -m verification` on a planted folder of claims: every verdict, the table, and which exit code comes first."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from linconv.claims.subject import subject_of

ROOT = Path(__file__).parents[1]
CLAIM = '''"""A planted claim."""
from collections.abc import Iterator
from typing import Annotated

from annotated_types import Interval

from linconv.claims import Check, agree, control, inconclusive, main

{constants}

def claim(*, offset: Annotated[float, Interval(ge=0, le=1)] = {offset}, seed: Annotated[int, Interval(ge=0, le=9)] = 0) -> Iterator[Check]:
    yield agree("value", 1.0 + offset, 1.0)
    {extra}
    yield control("wrong", agree("", 1.0, 2.0))


if __name__ == "__main__":
    main(claim)
'''


def plant(folder: Path, **claims: str) -> Path:
    verification = folder / "verification"
    verification.mkdir(exist_ok=True)
    (verification / "__init__.py").write_text("", encoding="utf-8")
    (verification / "_template.py").write_text("raise SystemExit('a template is not run')\n", encoding="utf-8")
    shutil.copy(ROOT / "verification" / "__main__.py", verification / "__main__.py")
    for name, text in claims.items():
        (verification / f"{name}.py").write_text(text, encoding="utf-8")
    return verification


def text(offset: float = 0.0, extra: str = "", constants: str = "") -> str:
    return CLAIM.format(offset=offset, extra=extra, constants=constants)


TRUE, FALSE, OPEN = text(), text(0.5), text(extra='yield inconclusive("solver", "budget spent")')
EMPIRICAL = 'KIND = "empirical"'


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The planted package's `__main__` as a module of this process."""
    plant(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "verification"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    spec: Any = importlib.util.find_spec("verification.__main__")
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "verification.__main__", module)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "verification":
            del sys.modules[name]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"good": TRUE}, 0),
        ({"good": TRUE, "undecided": OPEN}, 3),
        ({"good": TRUE, "undecided": OPEN, "wrong": FALSE}, 1),
        ({"wrong": FALSE, "broken": "import absent_package\n"}, 5),
        ({"good": TRUE, "undecided": text(extra='yield inconclusive("solver", "")', constants=EMPIRICAL)}, 0),
        ({"good": TRUE, "wrong": text(0.5, constants=EMPIRICAL)}, 0),
        ({"good": TRUE, "raising": text(extra="1 / 0", constants=EMPIRICAL)}, 5),
        ({"small": text(0.5, constants='FAST = {"offset": 0.0}')}, 0),
        ({"small": text(constants='FAST = {"absent": 0.0}')}, 5),
        ({"empty": "x = 1\n"}, 5),
        ({"exits": "raise SystemExit(0)\n"}, 5),
        ({"outside": text(extra='raise __import__("linconv.claims", fromlist=["x"]).NotApplicable("h")')}, 0),
        ({}, 5),
    ],
)
def test_fast_ends_with_the_worst(
    engine: ModuleType, tmp_path: Path, claims: dict[str, str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path, **claims)
    importlib.invalidate_caches()
    assert engine.run(fast=True, json=tmp_path / "all.json", seed=5) == code
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert document["exit_code"] == code
    assert [made["claim"] for made in document["claims"]] == sorted(claims)
    for made in document["claims"]:
        assert made["claim"] in out
        assert made["verdict"] in out
        if "good" in made["claim"]:
            assert made["seed"] == 5
    assert ("(smoke)" in out) == any(EMPIRICAL in claim for claim in claims.values())


def test_each_claim_in_a_fresh_process(tmp_path: Path) -> None:
    observation = text(constants=EMPIRICAL, extra='yield inconclusive("trend", "too few seeds")')
    plant(tmp_path, alpha=text(0.5, extra="print('[noise]')"), beta=observation, gamma="import absent_package\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "verification", "--json", "all.json", "--seed", "3"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 5
    assert ended.stderr == "gamma cannot be run: ModuleNotFoundError: No module named 'absent_package'\n"
    claims = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["claims"]
    assert [(made["claim"], made["kind"], made["verdict"]) for made in claims] == [
        ("alpha", "theorem", "REFUTED"),
        ("beta", "empirical", "INCONCLUSIVE"),
        ("gamma", "theorem", "INVALID"),
    ]
    assert claims[0]["seed"] == 3
    assert "python -m verification.alpha --offset=0.5 --seed=3" in claims[0]["reason"]
    assert "replayed in a fresh process" in claims[0]["reason"]
    assert "INCONCLUSIVE" in ended.stdout
    assert "(empirical)" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_a_process_that_gives_no_verdict_is_invalid(engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def processed(name: str) -> str:
        subject = subject_of(importlib.import_module(f"verification.{name}").claim)
        with pytest.raises(RuntimeError) as raised:
            engine._in_a_process(subject, {})
        return str(raised.value)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plant(tmp_path, silent=TRUE.partition("if __name__")[0], complaining=TRUE.replace("main(claim)", "raise SystemExit('out of memory')"))
    importlib.invalidate_caches()
    assert processed("silent") == "exit code 0 without a verdict"
    assert processed("complaining") == "out of memory"


@pytest.mark.parametrize("argv", [["--bogus"], ["--seed", "x"], ["stray"], ["--json", "."], ["--seed=-1"]])
def test_usage_errors_are_one_line(engine: ModuleType, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert engine.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_help(engine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--fast", "--json", "--seed"):
        assert flag in out


def test_the_table_shows_brackets_as_they_are(engine: ModuleType) -> None:
    document = {"verdict": "INVALID", "scope": "", "reason": "grid[1] is [red]", "seconds": 0.0}
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as captured:
        console.print(engine.table([engine.Row("planted", "theorem", False, document)]))
    assert "grid[1] is [red]" in captured.get()
