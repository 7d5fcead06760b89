"""Mutation score of the tests of cost, solvers and claims: `python -m benchmarks.mutation` (`make mutate`).

Cosmic Ray's operators change one place of one module; the mutant is killed where a test then fails, or does not end.  A mutant meets the
tests of its part that run its statement (a first run records them by coverage), quickest first, up to --seconds of them, and none that
takes more than 3 s: what lives longer counts as survived, so a score can only be too low.  Left out is what would die, or live, without a
test of what is computed: replacements that floats and tensors refuse (shifts, bits) or that style forbids (`is` for `==`), annotations,
the bare `*` of a signature, which is no product, and zip's `strict`, which is an assertion.

The sample is drawn within each part with --seed; intervals are Clopper and Pearson's.  Exit code 1 where a score is below .8.
Each mutant is written into a copy of the checkout and met in a fork of this process, which has imported everything: the changed function
gets its new code there, and what runs on import is imported anew.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import io
import os
import random
import shutil
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from scipy.stats import binomtest

from benchmarks.recording import BROKEN, QUIET, Record, forked, record_tests, statement, tests_of

ROOT = Path(__file__).resolve().parents[1]
COPIED = ["linconv", "verification", "tests", "docs", "pyproject.toml", "README.md"]
LEAST = 0.8
PARTS = {"cost": "linconv/cost.py", "solvers": "linconv/solvers/*.py", "claims": "linconv/claims/*.py"}
TESTS = {
    "cost": "cost enclosures restricted",
    "solvers": "cost solvers nuclear smooth monitor paths portfolio reduction relaxation restricted branch",
    "claims": "claims claims_all claims_checks claims_command claims_domains claims_intervals own_network planted search",
}
SLOW = 3.0  # seconds on a core, under coverage, of a test that no mutant waits for
REFUSED = {"RShift", "LShift", "BitOr", "BitAnd", "BitXor", "Mod", "Is", "IsNot", "Invert", "UAdd"}
KEPT = ("Is_IsNot", "IsNot_Is", "BitAnd_BitOr", "BitOr_BitAnd")


@cache
def text(path: str) -> str:
    """A source as it was first read: what is edited meanwhile does not count."""
    return (ROOT / path).read_text()


@dataclass(frozen=True)
class Mutant:
    path: str
    operator: str
    occurrence: int
    line: int

    def code(self) -> str:
        return mutate_code(text(self.path), get_operator(self.operator)(), self.occurrence)

    def diff(self) -> str:
        before, after = text(self.path).splitlines(), self.code().splitlines()
        return "\n".join(list(difflib.unified_diff(before, after, n=0, lineterm=""))[3:])

    def compiles(self) -> bool:
        """Whether Python takes it: what is no program needs no test."""
        try:
            compile(self.code(), self.path, "exec")
        except (SyntaxError, SyntaxWarning):
            return False
        return True


def operators() -> list[str]:
    names = [name for name in operator_names() if not get_operator(name).arguments()]
    return [name for name in names if name.endswith(KEPT) or not REFUSED & set(name.split("_"))]


def mutants(path: str) -> Iterator[Mutant]:
    source = text(path)
    rows, tree, nodes = source.splitlines(), ast.parse(source), list(ast_nodes(get_ast(source)))
    notes = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    spans = [((a.lineno, a.col_offset), (a.end_lineno, a.end_col_offset)) for a in notes if isinstance(a, ast.expr)]
    for name in operators():
        operator = get_operator(name)()
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(places):
            before, after = rows[start[0] - 1][: start[1]], rows[start[0] - 1][start[1] :]
            if not before.endswith("strict=") and not after.startswith("*,") and not any(first <= start < last for first, last in spans):
                yield Mutant(path, name, occurrence, start[0])


def function_at(tree: ast.AST, line: int, prefix: str = "") -> str | None:
    """Qualified name of the outermost function whose body has this line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= (node.end_lineno or 0):
            return prefix + node.name
        if isinstance(node, ast.ClassDef) and (found := function_at(node, line, f"{prefix}{node.name}.")):
            return found
    return None


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def install(mutant: Mutant, target: Path, source: str) -> None:
    """In a fork: new code for the changed function and for those defined in it; where it is in none, nothing of the project is imported."""
    name = function_at(ast.parse(text(mutant.path)), mutant.line)
    new = {code.co_qualname: code for code in codes(compile(source, str(target), "exec")) if "<lambda>" not in code.co_qualname}
    changed = [
        thing
        for thing in gc.get_objects()
        if type(thing) is types.FunctionType  # isinstance would ask lazy modules for their class
        and thing.__code__.co_filename == str(target)
        and thing.__code__.co_qualname in new
        and f"{thing.__code__.co_qualname}.".startswith(f"{name}.")
    ]
    if all(thing.__code__.co_qualname != name for thing in changed):
        for module in [module for module in sys.modules if module.split(".")[0] in COPIED]:
            del sys.modules[module]
        return
    for thing in changed:
        with contextlib.suppress(ValueError):  # a function defined in it, on import, that has other free variables now
            thing.__code__ = new[thing.__code__.co_qualname]


def judge(mutant: Mutant, tests: list[str], total: float, folder: Path) -> str:
    """survived, killed, or slow (killed by its time on a core, or by hanging)."""
    target, source = folder / mutant.path, mutant.code()
    untouched = target.stat()
    target.write_text(source)

    def run() -> int:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        install(mutant, target, source)
        return pytest.main([*QUIET, "-x", *tests])

    code = forked(folder, run, cpu=20 + 2 * total, wall=20 * (20 + 2 * total))
    target.write_text(text(mutant.path))
    os.utime(target, ns=(untouched.st_atime_ns, untouched.st_mtime_ns))
    if code == BROKEN:
        sys.exit(f"{mutant}:\n{(folder / 'log').read_text()}")
    return "survived" if code == 0 else "killed" if code > 0 else "slow"


def paths(part: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(PARTS[part]))


def measure(part: str, sample: int | None, seed: int, seconds: float, folder: Path, record: Record) -> bool:
    every = [mutant for path in paths(part) for mutant in mutants(path)]
    random.Random(seed).shuffle(every)
    outcomes = []
    for mutant in islice(filter(Mutant.compiles, every), sample):
        lines = statement(ast.parse(text(mutant.path)), mutant.line)
        outcomes.append(judge(mutant, *tests_of(mutant.path, lines, record, seconds), folder))
        print(f"{outcomes[-1]:8s} {mutant.path}:{mutant.line}  {mutant.operator.removeprefix('core/')} {mutant.occurrence}", flush=True)
        if outcomes[-1] == "survived":
            print(mutant.diff(), flush=True)
    counts = Counter(outcomes)
    killed = counts["killed"] + counts["slow"]
    test = binomtest(killed, len(outcomes))
    low, high = test.proportion_ci()
    print(
        f"{part}: {len(outcomes)} of {len(every)} mutants, {killed} killed ({counts['slow']} by their time), {counts['survived']} survived"
    )
    print(f"{part}: score {test.statistic:.3f}, 95 % interval {low:.3f} to {high:.3f}", flush=True)
    return bool(test.statistic >= LEAST)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sample", type=int, default=100, help="mutants of each part (default 100)")
    parser.add_argument("--all", action="store_true", help="every mutant: a day or more")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests that a mutant meets (default 30)")
    options = parser.parse_args()
    warnings.simplefilter("error", SyntaxWarning)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        for name in COPIED:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)
        files = [f"tests/test_{name}.py" for name in dict.fromkeys(name for part in options.parts for name in TESTS[part].split())]
        record = record_tests(files, [path for part in PARTS for path in paths(part)], SLOW, folder, ROOT / "build" / "mutation.json")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = pytest.main([*QUIET, "--collect-only", *files])
        if code:
            sys.exit(output.getvalue())
        sample = None if options.all else options.sample
        reached = [measure(part, sample, options.seed, options.seconds, folder, record) for part in options.parts]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
