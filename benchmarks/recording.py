"""Which tests run which lines, and how long they take: what `benchmarks.mutation` chooses tests by; and the forks that both work in."""

import ast
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import coverage
import pytest

QUIET = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
BROKEN = 70  # exit code of a fork whose error is ours
MEMORY = 12 * 2**30  # of addresses; an endless list must not take the machine with it

Record = dict[str, dict[str, Any]]  # by test file: a key, seconds by test, and lines by test (or "", on import) and path


def forked(folder: Path, work: Callable[[], int], *, cpu: float, wall: float) -> int:
    """Exit code of the work in a process of its own, which writes into a log in the folder; -signal where it was ended."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = BROKEN
        try:
            code = int(work())
        except SystemExit:
            code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + wall
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.killpg(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1])


class Recorder:
    """A plugin of pytest: which lines of the sources each test runs, and its seconds on a core; beyond `most` it is ended and left out."""

    def __init__(self, sources: Iterable[str], most: float) -> None:
        self.most = most
        self.coverage = coverage.Coverage(data_file=None, include=list(sources), config_file=False)
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = sum(os.times()[:4])
        self.coverage.switch_context(item.nodeid)
        signal.signal(signal.SIGPROF, self.end)
        signal.setitimer(signal.ITIMER_PROF, self.most)
        result = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.coverage.switch_context("")
        self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return result

    def end(self, *_: object) -> None:
        pytest.fail(f"more than {self.most:g} s")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= {report.nodeid} if report.failed else set()

    def record(self, file: str, out: Path) -> int:
        self.coverage.start()
        code = pytest.main([*QUIET, file], plugins=[self])
        self.coverage.stop()
        data = self.coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = {}
        for path in data.measured_files():
            for line, tests in data.contexts_by_lineno(path).items():
                for test in set(tests) - self.failed:
                    lines.setdefault(test, {}).setdefault(os.path.relpath(path), []).append(line)
        out.write_text(json.dumps({"seconds": self.seconds, "lines": lines, "failed": sorted(self.failed)}))
        return code


def record_tests(files: Iterable[str], sources: list[str], most: float, folder: Path, kept: Path) -> Record:
    """The record of test files in the folder, a copy of the project; kept, and made anew where the sources or the file have changed."""
    for name in ("torch", "sympy", "cvxpy", "scipy.stats"):
        importlib.import_module(name)  # once, and not in every fork
    known = json.loads(kept.read_text()) if kept.exists() else {}
    record = {}
    for file in files:
        key = hashlib.sha256(b"".join((folder / path).read_bytes() for path in [*sources, file]) + str(most).encode()).hexdigest()
        if known.get(file, {}).get("key") != key:
            print(f"recording {file}", flush=True)
            code = forked(folder, partial(Recorder(sources, most).record, file, folder / "record"), cpu=3600, wall=36000)
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                sys.exit(f"{file}: expected tests that run, got exit code {code}:\n{(folder / 'log').read_text()[-2000:]}")
            known[file] = {"key": key} | json.loads((folder / "record").read_text())
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(known))
        record[file] = known[file]
        for test in record[file]["failed"]:
            print(f"left out, for it takes too long, or fails before anything is changed: {test}", flush=True)
    return record


def statement(tree: ast.AST, line: int) -> range:
    """Lines of the innermost statement at a line; of one with a body, those of its head."""
    found = range(line, line + 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or line):
            body = getattr(node, "body", [])
            inner = body and body[0].lineno > line
            found = range(node.lineno, max(node.lineno + 1, body[0].lineno) if inner else (node.end_lineno or line) + 1)
    return found


def tests_of(path: str, lines: range, record: Record, seconds: float) -> tuple[list[str], float]:
    """The tests that run one of these lines, quickest first, up to so many seconds, and their time together.

    Those of the whole module for lines that run on import or, it seems, in no test: they may in a process that a test starts.
    """
    near: list[tuple[float, str]] = []
    there: list[tuple[float, str]] = []
    imported = False
    for file in record.values():
        for test, ran in file["lines"].items():
            runs = any(line in lines for line in ran.get(path, []))
            imported |= runs and not test
            if test and path in ran:
                near.append((file["seconds"][test], test))
                there += near[-1:] if runs else []
    chosen: list[str] = []
    total = 0.0
    for cost, test in sorted(near if imported or not there else there):
        if chosen and total + cost > seconds:
            break
        chosen.append(test)
        total += cost
    return chosen, total
