"""The command of a claim: flags, output, files and exit codes, and the fresh process in which a failure is replayed."""

import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linconv.claims import check, main
from linconv.claims.command import decide
from linconv.claims.output import Terminal
from linconv.claims.replay import child
from linconv.claims.subject import load, subject_of

HEADER = '''r"""Doubling doubles.

For every n:  $2n = n + n$.   Source: arithmetic.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval
import torch

from linconv.claims import Check, Figure, NotApplicable, Progress, UsageError, agree, at_most, control, main, rate

'''
FOOTER = '\n\nif __name__ == "__main__":\n    main(claim)\n'
DOUBLING = """
def claim(
    *,
    count: Annotated[int, Interval(ge=1, le=8), "how many numbers"] = 3,
    factor: Annotated[float, Interval(ge=0, le=10)] = 2.0,
    grid: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (2, 3),
    widths: tuple[Annotated[int, Ge(1)], ...] | None = None,
    dtype: Literal["float32", "float64"] = "float64",
    very_loud: bool = False,
    nRounds: Annotated[int, Interval(ge=-5, le=5)] = -1,
    shift: tuple[Annotated[int, Ge(-9)], ...] = (-1, 2),
    net: torch.Tensor | None = None,
    seed: Annotated[int, Interval(ge=0, le=10**6)] = 0,
) -> Iterator[Check]:
    numbers = torch.arange(1, count + 1, dtype=getattr(torch, dtype))
    yield Progress("adding", 0.5)
    yield agree("doubled", factor * numbers, numbers + numbers)
    yield control("a factor dropped", agree("", numbers, numbers + numbers))
"""


def write(folder: Path, body: str, name: str = "doubling") -> Path:
    file = folder / f"{name}.py"
    file.write_text(HEADER + textwrap.dedent(body) + FOOTER, encoding="utf-8")
    return file


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the `main` of a claim file in this process: exit code, standard output, standard error."""

    def command(body: str, *argv: str, name: str = "doubling") -> tuple[int, str, str]:
        file = write(tmp_path, body, name)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(module.claim, list(argv))
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return command


def fresh(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_true_claim_on_a_pipe(tmp_path: Path) -> None:
    file = write(tmp_path, DOUBLING)
    ended = fresh(str(file), "--count", "4", "--json", "verdict.json", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines()[2:])) <= 80
    for words in (
        "Doubling doubles.",
        "  pass  doubled",
        "caught  wrong variant: a factor dropped",
        "HOLDS  sampled, 1 draw at count=4",
        "exit code 0",
    ):
        assert words in ended.stdout
    assert "\x1b" not in ended.stdout
    document = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert document["claim"] == "doubling"
    assert document["statement"].startswith("Doubling doubles.\n\nFor every n:  $2n")
    assert document["parameters"]["grid"] == [2, 3]
    assert sorted(os.listdir(tmp_path)) == ["doubling.py", "verdict.json"]


def test_a_false_claim_is_refuted_with_a_command_that_reproduces_it(tmp_path: Path) -> None:
    file = write(tmp_path, DOUBLING)
    ended = fresh(str(file), "--factor=2.0000001", "--widths", "1", "2", "--json=v.json", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert ended.returncode == 1
    document = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert document["verdict"] == "REFUTED"
    assert "the error stays in float32" in document["reason"]
    assert "replayed in a fresh process" in document["reason"]
    assert document["witness"]["factor"] == 2.0000001
    command = document["reason"].partition("reproduce with: ")[2]
    assert command in ended.stdout.splitlines()
    program, *arguments = shlex.split(command)
    assert program == "python"
    assert arguments[0] == str(file)
    assert {"--widths", "1", "2", "--no-very-loud", "--nRounds=-1", "--shift", "-1", "--factor=2.0000001"} <= set(arguments)
    assert fresh(*arguments, cwd=tmp_path, LINCONV_CLAIM_REPLAY="1").returncode == 1


def test_a_claim_of_an_imported_module_is_replayed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "conjectures"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    write(package, DOUBLING)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("conjectures.doubling")
    try:
        found = check(module.claim, factor=3, net=None)
    finally:
        del sys.modules["conjectures"], sys.modules["conjectures.doubling"]
    assert found.verdict == "REFUTED"
    assert "replayed in a fresh process" in found.reason
    assert found.command.startswith(
        "python -m conjectures.doubling --count=3 --factor=3.0 --grid 2 3 --dtype=float64 --no-very-loud --nRounds=-1 --shift -1 2"
    )


def test_the_fresh_process_runs_the_claim_that_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, DOUBLING, "told")
    asked = {
        "module": "",
        "file": str(file),
        "function": "claim",
        "arguments": {"factor": 3.0, "grid": [1, 1]},
        "answer": str(tmp_path / "answer"),
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    child()
    monkeypatch.delitem(sys.modules, "told")
    assert json.loads((tmp_path / "answer").read_text(encoding="utf-8")) == {"doubled": "fail"}
    monkeypatch.syspath_prepend(str(tmp_path))
    asked |= {"module": "told", "file": "", "arguments": {}}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    child()
    monkeypatch.delitem(sys.modules, "told")
    assert json.loads((tmp_path / "answer").read_text(encoding="utf-8")) == {"doubled": "pass"}
    with pytest.raises(ImportError, match="not a Python file"):
        load("", str(tmp_path / "answer"))


def test_a_file_that_runs_itself_on_import_is_not_replayed_for_ever(run: Run) -> None:
    body = DOUBLING + "\n\nif __name__ != '__main__' and __import__('os').environ.get('LINCONV_CLAIM_REPLAY'):\n    main(claim, [])\n"
    code, out, _ = run(body, "--factor=3")
    assert code == 3
    assert "did not fail again in a fresh process" in " ".join(out.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "0"], "count must be an integer ≥ 1 and ≤ 8, got 0; choose a value in that range"),
        (["--count", "2.5"], "Invalid value for --count: must be an integer ≥ 1 and ≤ 8, got '2.5'; --help lists the parameters"),
        (["--count"], "--count requires an argument"),
        (["--bogus", "1"], "--bogus"),
        (["stray"], "stray"),
        (["--net", "x"], "--net"),
        (["--grid", "0", "3"], "grid[0] must be an integer ≥ 1, got 0"),
        (["--dtype", "half"], "dtype must be one of float32, float64, got 'half'"),
        (["--seed=-1"], "seed must be"),
        (["--factor=nan"], "factor must be finite"),
        (["--very-loud=maybe"], "very-loud"),
        (["--json", "."], ". is a folder; name a file in it"),
        (["--json", "absent/verdict.json"], "cannot be written: No such file"),
        (["--plot", "taken"], "taken is no folder and cannot be made one"),
    ],
)
def test_usage_errors_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file", encoding="utf-8")
    code, out, err = run(DOUBLING, *argv)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == ["doubling.py", "taken"]


def test_help_tells_the_statement_and_the_parameters(run: Run) -> None:
    code, out, err = run(DOUBLING, "--help")
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    for words in (
        "Doubling doubles.",
        "$2n = n + n$",
        "--count INT",
        "How many numbers: an integer ≥ 1 and ≤ 8",
        "[default: 3]",
        "--json",
        "--plot",
        "Exit codes: 0 HOLDS",
    ):
        assert words in flat
    assert "--net" not in out
    assert "[choices: float32, float64]" in flat


BODIES = [
    (["yield agree('nan', float('nan'), 1.0)"], 3, "INCONCLUSIVE  check “nan”: NaN"),
    (["raise NotApplicable('full kernels')", "yield"], 4, "NOT APPLICABLE  hypothesis: full kernels"),
    (["yield agree('zero', 0.0, 0.0)"], 5, "INVALID  nothing was tested: zero against zero"),
    (["yield agree('one', 1.0, 1.0)", "yield control('one', agree('', 1.0, 1.0))"], 5, "MISSED  wrong variant: one"),
    (["yield control('nan', agree('', float('nan'), 1.0))"], 5, "could not be decided: NaN"),
    (["yield agree('[red]', [1.0], 1.0)"], 5, "BROKEN  [red]"),
    (["yield agree('one', 1.0, 1.0)", "yield control('near', agree('', 1.0, 1 + 1e-13))"], 0, "3.52 times the tolerance (by a hair)"),
    (["yield agree('i', 1 + 1j, 1 + 1j, required=False)", "yield agree('x', 1.0, 1.0)"], 0, "observed 1+1i, predicted 1+1i"),
    (["yield agree('l', [1.0, 2.0], [1.0, 2.0])"], 0, "observed [1, 2], predicted [1, 2]"),
    (["yield agree('e', [[*range(9)]] * 2, [[*range(9)]] * 2)"], 0, "observed 2×9 array, predicted 2×9 array"),
    (["yield agree('c', 2, 2)", "yield control('d', agree('', 2, 3))"], 0, "error 3.33e-01, where the tolerance is 0.00e+00"),
    (
        ["yield agree('one', 1.0, 1.0)", "raise OSError('disk [gone]')"],
        5,
        "INVALID  the claim's body raised OSError: disk [gone] (doubling.py",
    ),
]


@pytest.mark.parametrize(("lines", "code", "words"), BODIES)
def test_every_verdict_has_its_exit_code_and_its_json(run: Run, tmp_path: Path, lines: list[str], code: int, words: str) -> None:
    body = "\n    ".join(["def claim() -> Iterator[Check]:", *lines])
    found, out, err = run(body, "--json", str(tmp_path / "v.json"))
    assert (found, err) == (code, "")
    assert " ".join(words.split()) in " ".join(out.split())
    document = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert {"HOLDS": 0, "REFUTED": 1, "INCONCLUSIVE": 3, "NOT APPLICABLE": 4, "INVALID": 5}[document["verdict"]] == code


def test_a_signature_that_says_too_little_is_invalid(run: Run, tmp_path: Path) -> None:
    body = "def claim(*, depth: int = 2) -> Iterator[Check]:\n    yield agree('', depth, depth)\n"
    for form in (["--json", str(tmp_path / "v.json")], [f"--json={tmp_path / 'v.json'}"], ["--json", str(tmp_path)], []):
        code, out, err = run(body, *form)
        assert (code, out) == (5, "")
        assert err.startswith("INVALID: parameter depth of the claim has no domain; write depth: Annotated[int")
        assert err.count("\n") == 1
    assert json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))["verdict"] == "INVALID"


def test_what_only_the_claim_can_refuse_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    body = """
    def claim(*, data: Annotated[str, "a folder"] = "photos") -> Iterator[Check]:
        if data != "photos":
            raise UsageError(f"no folder {data}: download the set\\nand unpack it there")
        yield agree("one", 1.0, 1.0)
    """
    code, _, err = run(body, "--data", "absent", "--json", str(tmp_path / "v.json"))
    assert (code, err) == (2, "no folder absent: download the set and unpack it there\n")
    assert not (tmp_path / "v.json").exists()
    assert run(body)[0] == 0


FIGURES = """
def draw():
    from matplotlib.figure import Figure as Drawing
    drawing = Drawing()
    drawing.subplots().plot([1, 2, 3])
    return drawing


def claim(*, wrong: bool = False) -> Iterator[Check]:
    yield Figure("line", (lambda: 3) if wrong else draw)
    yield agree("one", 1.0, 1.0)
"""


def test_figures_are_saved_as_pdf_and_png(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    code, out, _ = run(FIGURES, "--plot", str(folder))
    assert code == 0
    assert sorted(os.listdir(folder)) == ["line.pdf", "line.png"]
    assert (folder / "line.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "line.png").read_bytes().startswith(b"\x89PNG")
    assert "figure  " in out
    code, out, _ = run(FIGURES, "--plot", str(folder), "--wrong")
    assert code == 5
    assert "must return a matplotlib Figure, got int" in " ".join(out.split())
    assert run(FIGURES, "--wrong")[0] == 0


def test_a_file_that_cannot_be_replaced_is_left_whole(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "v.json"
    target.write_text("old", encoding="utf-8")

    def full(source: object, destination: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("linconv.claims.output.os.replace", full)
    code, _, err = run(DOUBLING, "--json", str(target))
    assert code == 5
    assert err.endswith("the claims engine failed; this says nothing about the claim\n")
    assert target.read_text(encoding="utf-8") == "old"
    assert sorted(os.listdir(tmp_path)) == ["doubling.py", "v.json"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 3), (RuntimeError, 5), (TypeError, 5)])
def test_a_fault_of_the_engine_is_no_refutation(run: Run, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int) -> None:
    def fault(*arguments: object) -> None:
        raise error

    assert callable(decide)
    monkeypatch.setattr("linconv.claims.command.decide", fault)
    assert run(DOUBLING)[0] == code


def test_an_interrupt_leaves_a_verdict(tmp_path: Path) -> None:
    body = """
    def claim() -> Iterator[Check]:
        import signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
        yield agree("one", 1.0, 1.0)
        Path("started").touch()
        time.sleep(60)
        yield agree("two", 1.0, 1.0)
    """
    file = write(tmp_path, body)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(file), "--json", "v.json"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    document = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert process.returncode == 3
    assert (document["verdict"], document["reason"]) == ("INCONCLUSIVE", "interrupted")
    assert [made["name"] for made in document["checks"]] == ["one"]


def test_a_reader_that_goes_away_does_not_change_the_verdict(tmp_path: Path) -> None:
    body = """
    def claim() -> Iterator[Check]:
        for k in range(900):
            yield agree(f"check number {k} " + "x" * 60, 1.0, 1.0)
        yield control("off", agree("", 1.0, 2.0))
    """
    file = write(tmp_path, body)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(file)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (0, b"")


PIPED = """
from linconv.claims import check
def claim() -> Iterator[Check]:
    yield agree("one", 1.0, 2.0)
print(check(claim))
"""


def test_a_file_beside_a_script_is_not_a_module_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m doubling` finds it in its own folder alone; a program that was piped in has no file at all."""
    file = write(tmp_path, DOUBLING)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path[1:]])
    monkeypatch.delitem(sys.modules, "doubling", raising=False)
    claim = load("", str(file)).claim
    assert subject_of(claim).launcher == ["python", str(file)]
    monkeypatch.chdir(tmp_path)
    assert subject_of(claim).launcher == ["python", "-m", "doubling"]
    piped = subprocess.run(
        [sys.executable, "-"],
        input=HEADER + PIPED,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert "REFUTED" in piped.stdout
    assert "replayed in this process" in piped.stdout


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colour_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from linconv.claims import Progress

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal = Terminal(None)
    with terminal.bar:
        terminal.show(Progress("training [1]", 0.25))
        terminal.bar.refresh()
        terminal.show(Progress("waiting"))
    assert "training [1]" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_the_shortest_claim_needs_no_flag(run: Run) -> None:
    code, out, _ = run('"""Nothing else."""\ndef claim() -> Iterator[Check]:\n    yield agree("one", 1.0, 1.0)\n')
    assert code == 0
    assert "automatic controls only" in " ".join(out.split())


def test_argv_defaults_to_the_process(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(tmp_path, DOUBLING, "by_argv")
    spec: Any = importlib.util.spec_from_file_location("by_argv", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "by_argv", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["by_argv.py", "--count=99"])
    with pytest.raises(SystemExit) as ended:
        main(module.claim)
    assert ended.value.code == 2
