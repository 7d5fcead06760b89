"""Every claim of the folder `verification`, found by itself and run small: a new claim needs no line here."""

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import linconv as lc
from linconv.claims.output import to_json
from linconv.claims.signatures import validated
from linconv.claims.subject import subject_of
from linconv.claims.verdict import Verdict

ROOT = Path(__file__).parents[1]
CLAIMS = sorted(path.stem for path in (ROOT / "verification").glob("*.py") if not path.name.startswith("_"))


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"verification.{name}")


@cache
def verdict_of(name: str) -> Verdict:
    """One small run of a claim, shared by the tests of this process."""
    module = module_of(name)
    return lc.check(module.claim, **module.FAST)


# One group a claim: with pytest-xdist's --dist=loadgroup its tests share one run.
every_claim = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CLAIMS])


def test_there_are_claims():
    assert CLAIMS


@every_claim
def test_its_docstring_is_a_statement_and_a_source(name):
    subject = subject_of(module_of(name).claim)
    first, *rest = subject.statement.split("\n\n")
    assert subject.name == name
    assert len(first) > 20
    assert first.endswith(".")
    assert any("$" in part for part in rest), "the statement has no formula"
    assert "Source:" in subject.statement


@every_claim
def test_its_small_parameters_lie_in_the_domain(name):
    module = module_of(name)
    parameters = subject_of(module.claim).parameters
    assert module.FAST, "FAST must make the run smaller"
    read = validated(parameters, module.FAST)
    assert read == {key: parameter.default for key, parameter in parameters.items()} | module.FAST


@every_claim
def test_every_parameter_has_a_default_and_a_help_line(name):
    for parameter in subject_of(module_of(name).claim).parameters.values():
        assert parameter.has_default or not parameter.domain.is_flag
        assert parameter.help, f"{parameter.name} has no help"


@every_claim
def test_it_holds_at_small_size(name):
    kind = subject_of(module_of(name).claim).kind
    verdict = verdict_of(name)
    allowed = {"HOLDS"} if kind == "theorem" else {"HOLDS", "REFUTED", "INCONCLUSIVE", "NOT APPLICABLE"}
    assert verdict.verdict in allowed, f"{verdict}\n{verdict.traceback}"
    assert verdict.scope or verdict.verdict != "HOLDS"


@every_claim
def test_its_own_wrong_variants_are_refuted(name):
    verdict = verdict_of(name)
    own = [check for check in verdict.controls if not check.name.startswith("automatic")]
    assert own, "the claim yields no control of its own"
    assert len(own) == len(verdict.controls)
    for check in own:
        assert check.outcome == "fail", f"{check.name} survived: {check.note}"
        assert check.violation > 1, f"{check.name} reports no violation"


@every_claim
def test_every_required_check_has_a_reason_for_its_tolerance(name):
    required = [check for check in verdict_of(name).checks if check.required]
    assert required
    for check in required:
        assert check.reason or check.note, f"{check.name} has no reason"
        assert "without a reason" not in check.reason, f"{check.name} has no reason"


@every_claim
def test_its_verdict_is_strict_json(name):
    text = json.dumps(to_json(verdict_of(name)), allow_nan=False)
    document = json.loads(text)
    assert document["claim"] == name
    assert document["checks"]
    assert {entry["verdict"] for entry in document["controls"]} == {"refuted"}


@every_claim
def test_its_module_is_a_command(name):
    command = [sys.executable, "-m", f"verification.{name}", "--no-such-flag"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert len(process.stderr.splitlines()) == 1
