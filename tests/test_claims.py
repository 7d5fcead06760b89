"""Verdicts: wrong claims must be refuted, broken ones called broken, and nothing passes by accident."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Interval
from hypothesis import given
from hypothesis import strategies as st

from linconv.claims import (
    Check,
    NotApplicable,
    Progress,
    UsageError,
    Verdict,
    agree,
    at_most,
    attains,
    check,
    control,
    inconclusive,
    not_applicable,
    predicted_failure,
    proved,
    rate,
)
from linconv.claims.output import to_json
from linconv.claims.subject import subject_of

GOOD = agree("good", 1.0, 1.0)
BAD = agree("bad", 1.0, 1.001)
OPEN = inconclusive("open", "budget spent")
CAUGHT = control("caught", BAD)
MISSED = control("missed", GOOD)
ZERO = agree("zero", 0.0, 0.0)
BROKEN = agree("broken", [1.0], 1.0)
OUTSIDE = not_applicable("kernel", "full kernels")
CODES = {"HOLDS": 0, "REFUTED": 1, "INCONCLUSIVE": 3, "NOT APPLICABLE": 4, "INVALID": 5}


def claiming(*events: Any) -> Callable[..., Iterator[Any]]:
    def made() -> Iterator[Any]:
        yield from events

    return made


@pytest.mark.parametrize(
    ("events", "verdict", "reason"),
    [
        ((GOOD, CAUGHT), "HOLDS", "1 required check passed, 1 control refuted"),
        ((GOOD, BAD, CAUGHT), "REFUTED", "“bad” fails: error 0.000999"),
        ((BAD,), "REFUTED", "“bad” fails"),
        ((GOOD, OPEN, CAUGHT), "INCONCLUSIVE", "“open”: budget spent"),
        ((GOOD, OPEN, BAD, CAUGHT), "REFUTED", "bad"),
        ((GOOD, MISSED), "INVALID", "control “missed” survived (0 times its tolerance)"),
        ((BAD, MISSED), "INVALID", "survived"),
        ((GOOD, control("nan", agree("", math.nan, 1.0))), "INVALID", "control “nan” survived (NaN)"),
        ((GOOD, control("shape", BROKEN)), "INVALID", "survived (shapes differ"),
        ((GOOD, BROKEN, CAUGHT), "INVALID", "“broken” is broken: shapes differ"),
        ((GOOD, OUTSIDE), "NOT APPLICABLE", "kernel: full kernels"),
        ((BAD, OUTSIDE, MISSED), "NOT APPLICABLE", "full kernels"),
        ((MISSED, OUTSIDE), "INVALID", "survived"),
        ((ZERO, CAUGHT), "INVALID", "nothing was tested: zero against zero"),
        ((ZERO, GOOD, CAUGHT), "HOLDS", "2 required checks"),
        ((proved("none", cases=0), CAUGHT), "INVALID", "nothing was tested: no cases"),
        ((agree("empty", [], []), CAUGHT), "INVALID", "empty"),
        ((), "INVALID", "nothing was tested: the claim yielded no required check"),
        ((CAUGHT,), "INVALID", "no required check"),
        ((agree("aside", 1.0, 1.0, required=False), CAUGHT), "INVALID", "no required check"),
        ((GOOD, agree("aside", 1.0, 2.0, required=False), CAUGHT), "HOLDS", "1 required check"),
        ((agree("nan", math.nan, 1.0), CAUGHT), "INCONCLUSIVE", "“nan”: NaN"),
        ((GOOD, 3), "INVALID", "yielded int; it must yield checks"),
        ((attains("loss", 3.0, 2.0, tolerance=1e-3), CAUGHT), "INCONCLUSIVE", "not converged"),
        ((attains("loss", 1.0, 2.0, tolerance=1e-3), CAUGHT), "REFUTED", "below the claimed minimum"),
        ((predicted_failure("formula", BAD), CAUGHT), "HOLDS", ""),
        ((predicted_failure("formula", GOOD), CAUGHT), "REFUTED", "was predicted to differ"),
        ((Progress("training", 0.5), GOOD, CAUGHT), "HOLDS", ""),
        ((agree("counts", 2, 3), CAUGHT), "REFUTED", "“counts” fails: error 0.333"),
    ],
)
def test_a_run_amounts_to_a_verdict(events: tuple[Any, ...], verdict: str, reason: str) -> None:
    found = check(claiming(*events))
    assert (found.verdict, found.exit_code) == (verdict, CODES[verdict])
    assert reason in found.reason
    assert found.holds == (verdict == "HOLDS")
    assert bool(found.scope) == found.holds
    assert (found.witness is not None) == (verdict == "REFUTED")


@given(st.lists(st.sampled_from([GOOD, ZERO, BAD, OPEN, BROKEN, CAUGHT, MISSED]), max_size=6))
def test_nothing_passes_by_accident(events: list[Check]) -> None:
    """HOLDS only where a required check compared something, all of them passed, and every wrong variant was caught."""
    found = check(claiming(*events))
    required = [event for event in events if event.required]
    good = any(event is GOOD for event in required) and all(event in (GOOD, ZERO) for event in required) and MISSED not in events
    assert found.holds == good
    assert found.exit_code == CODES[found.verdict]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "HOLDS"), (1 + 1e-15, "HOLDS"), (1 + 1e-12, "REFUTED"), (1.001, "REFUTED"), (math.nan, "INCONCLUSIVE")]
)
def test_a_subtly_wrong_factor_is_refuted(factor: float, verdict: str) -> None:
    values = torch.arange(1.0, 13.0, dtype=torch.float64)
    assert check(claiming(agree("values", factor * values, values), CAUGHT)).verdict == verdict


def test_a_claim_without_controls_gets_automatic_ones() -> None:
    found = check(
        claiming(agree("values", [1.0, 2.0], [1.0, 2.0]), ZERO, at_most("bound", 1.0, 3.0), rate("rate", [1, 2, 4], [1, 2, 4], 1))
    )
    assert found.holds
    assert found.scope.endswith("automatic controls only")
    assert len(found.controls) == 7
    assert all(made.name.startswith("automatic: ") for made in found.controls)
    assert "automatic" not in check(claiming(GOOD, CAUGHT)).scope


def test_automatic_controls_catch_a_check_without_power() -> None:
    loose = check(claiming(agree("loose", 1.0, 1.0, tolerance=0.1)))
    assert loose.verdict == "INVALID"
    assert "scaled by 1 + 10⁻³ (loose)” survived" in loose.reason
    assert "no control: nothing shows" in check(claiming(proved("identity", cases=3))).reason
    assert check(claiming(proved("identity", cases=3), CAUGHT)).scope == "exact"


def test_the_scope_is_the_weakest_and_tells_of_loosening() -> None:
    certified = agree("certified", 1.0, 1.0, scope="certified")
    sampled = agree("sampled", 1.0, 1.0, draws=20)
    assert check(claiming(certified, CAUGHT)).scope == "certified"
    mixed = check(claiming(certified, sampled, proved("proved", cases=1), CAUGHT)).scope
    assert mixed == "sampled, 20 draws; 1 of 3 checks certified; 1 of 3 checks exact"
    loose = [agree(f"l{i}", 1.0, 1.0, tolerance=1e-2) for i in range(4)]
    assert "tolerance above rounding: l0 0.01, l1 0.01, l2 0.01 and 1 more" in check(claiming(*loose, CAUGHT)).scope


def test_names_are_made_unique() -> None:
    found = check(claiming(GOOD, GOOD, GOOD, CAUGHT, CAUGHT))
    assert [made.name for made in found.checks] == ["good", "good (2)", "good (3)"]
    assert [made.name for made in found.controls] == ["caught", "caught (2)"]


def test_what_a_body_raises() -> None:
    def raising(error: BaseException, after: tuple[Check, ...]) -> Verdict:
        def made() -> Iterator[Check]:
            yield from after
            raise error

        return check(made)

    invalid = raising(ZeroDivisionError("by\nnothing"), (GOOD, CAUGHT))
    assert invalid.verdict == "INVALID"
    assert re.search(r"body raised ZeroDivisionError: by nothing \(test_claims.py, line \d+\)", invalid.reason)
    assert "raise error" in invalid.traceback
    assert len(invalid.checks) == 1
    assert raising(SystemExit(0), (GOOD, CAUGHT)).verdict == "INVALID"
    assert raising(KeyboardInterrupt(), (GOOD, CAUGHT)).reason == "interrupted"
    assert raising(KeyboardInterrupt(), (GOOD, CAUGHT)).verdict == "INCONCLUSIVE"
    outside = raising(NotApplicable("circular padding"), (GOOD,))
    assert (outside.verdict, outside.reason) == ("NOT APPLICABLE", "hypothesis: circular padding")
    assert raising(UsageError("no folder"), (GOOD,)).verdict == "INVALID"
    with pytest.raises(UsageError, match="no folder"):
        raising(UsageError("no folder"), ())


def test_a_claim_must_yield() -> None:
    def returns() -> Any:
        return [GOOD]

    def silent() -> None:
        return None

    assert "returned list; it must yield" in check(returns).reason
    assert check(silent).exit_code == 5


def test_an_interrupted_confirmation_is_open() -> None:
    calls: list[int] = []

    def made() -> Iterator[Check]:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        yield BAD

    found = check(made)
    assert found.verdict == "INCONCLUSIVE"
    assert "interrupted before it was confirmed: check “bad” fails" in found.reason


Precision = Literal["float32", "float64"]


def laddered(conditioning: float, falsehood: float) -> Callable[..., Iterator[Check]]:
    """A claim whose error is `conditioning` rounding units plus `falsehood`, in the precision that it is given."""

    def made(*, dtype: Precision = "float64") -> Iterator[Check]:
        error = conditioning * torch.finfo(getattr(torch, dtype)).eps + falsehood
        yield agree("value", 1.0 + error, 1.0, tolerance=32 * float(torch.finfo(getattr(torch, dtype)).eps), reason="rounding")
        yield CAUGHT

    return made


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("conditioning", "falsehood", "verdict"),
    [
        (1, 0, "HOLDS"),
        (1e4, 0, "INCONCLUSIVE"),
        (1e6, 0, "INCONCLUSIVE"),
        (0, 1e-2, "REFUTED"),
        (10, 1e-5, "REFUTED"),
        (1e4, 1e-2, "REFUTED"),
    ],
)
def test_the_precision_ladder(dtype: str, conditioning: float, falsehood: float, verdict: str) -> None:
    found = check(laddered(conditioning, falsehood), dtype=dtype)
    assert found.verdict == verdict
    if verdict == "INCONCLUSIVE":
        assert "conditioning, not falsehood" in found.reason
    if verdict == "REFUTED":
        assert "the error stays in float" in found.reason


def test_passing_in_the_coarser_precision_excuses_nothing() -> None:
    assert check(laddered(0, 1e-6), dtype="float32").holds
    assert check(laddered(0, 1e-6), dtype="float64").verdict == "REFUTED"


def test_the_ladder_where_the_other_precision_says_nothing() -> None:
    def stops(*, dtype: Precision = "float64") -> Iterator[Check]:
        if dtype == "float32":
            raise UsageError("not in float32")
        yield BAD

    def nan(*, dtype: Precision = "float64") -> Iterator[Check]:
        yield agree("value", 1.001 if dtype == "float64" else math.nan, 1.0)

    def one_precision(*, dtype: Literal["float64"] = "float64") -> Iterator[Check]:
        yield BAD

    def infinite(*, dtype: Precision = "float64") -> Iterator[Check]:
        yield agree("cost", math.inf, 1.0)

    assert "not reached in float32" in check(stops).reason
    assert check(nan).verdict == "INCONCLUSIVE"
    assert check(one_precision).verdict == "REFUTED"
    assert check(infinite).verdict == "REFUTED"


def test_what_does_not_fail_again_is_not_refuted() -> None:
    seen: list[int] = []

    def flaky() -> Iterator[Check]:
        seen.append(1)
        yield agree("value", 1.0 + (len(seen) == 1), 1.0)

    found = check(flaky)
    assert found.verdict == "INCONCLUSIVE"
    assert "did not fail again in this process" in found.reason


def test_a_witness_decides_between_theorem_and_code() -> None:
    def with_witness(witness: Callable[[], object]) -> Verdict:
        return check(claiming(agree("value", 1.5, 1.0, witness=witness), CAUGHT))

    def broken() -> float:
        raise OSError("no witness")

    confirmed = with_witness(lambda: 1.5)
    assert confirmed.verdict == "REFUTED"
    assert "replayed in this process" in confirmed.reason
    assert "confirmed by its independent witness" in confirmed.reason
    assert "linconv.claims.check(" in confirmed.reason
    excused = with_witness(lambda: 1.0)
    assert excused.verdict == "INVALID"
    assert "the fault is in what the claim observed" in excused.reason
    assert "its witness raised OSError: no witness" in with_witness(broken).reason


def module_level(*, offset: Annotated[float, Interval(ge=0, le=1)] = 0.5, net: torch.Tensor | None = None) -> Iterator[Check]:
    """A false statement."""
    yield agree("value", 1.0 + offset, 1.0)
    yield CAUGHT


def test_a_library_argument_is_replayed_in_a_fresh_process() -> None:
    found = check(module_level, net=torch.ones(2))
    assert found.verdict == "REFUTED"
    assert "replayed in a fresh process" in found.reason
    assert found.witness == {"offset": 0.5, "net": found.parameters["net"]}
    assert to_json(found)["parameters"] == {"offset": 0.5, "net": "<Tensor>"}
    assert to_json(found)["witness"] == {"offset": 0.5, "net": {"dtype": "float32", "shape": [2], "entries": [1.0, 1.0]}}


def seeded(*, seed: Annotated[int, Ge(0)] = 7) -> Iterator[Check]:
    yield rate("slope", [1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 1)
    yield agree("complex", np.array([1 + 1j]), np.array([1 + 1j]))
    yield agree("infinite", math.inf, math.inf)
    yield agree("large", torch.ones(99), torch.ones(99))
    yield agree("aside", math.nan, 1.0, required=False)
    yield CAUGHT
    yield control("exact", agree("", 1, 2))


def test_json_is_strict_and_complete() -> None:
    document = to_json(check(seeded, seed=3))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(json.dumps(document), parse_constant=refuse)
    assert read == document
    fields = "claim statement parameters versions seed checks controls notes verdict scope reason witness null_model seconds"
    assert list(document) == fields.split()
    assert document["seed"] == 3
    assert document["parameters"] == {"seed": 3}
    assert document["claim"] == "seeded"
    assert document["witness"] is None
    assert document["null_model"]["p_value"] == document["null_model"]["fits"]["slope"]
    assert set(document["versions"]) == {"python", "linconv", "torch", "numpy"}
    by_name = {made["name"]: made for made in document["checks"]}
    assert {"observed", "predicted", "error", "tolerance", "reason", "name", "outcome"} <= set(by_name["large"])
    assert by_name["complex"]["observed"] == [{"re": 1.0, "im": 1.0}]
    assert by_name["infinite"]["observed"] == "Infinity"
    assert by_name["aside"]["error"] == "NaN"
    assert [(made["name"], made["verdict"]) for made in document["controls"]] == [("caught", "refuted"), ("exact", "refuted")]
    assert document["controls"][1]["violation"] == "Infinity"
    assert to_json(check(claiming(GOOD, MISSED)))["controls"][0]["verdict"] == "survived"


def test_a_verdict_reads_as_a_line() -> None:
    assert str(check(seeded)).startswith("seeded: HOLDS (sampled, 1 draw at seed=7")
    assert str(check(claiming())).startswith("made: INVALID (nothing was tested")


def test_a_seed_that_is_no_number_is_not_recorded() -> None:
    def made(*, seed: Literal["a", "b"] = "a") -> Iterator[Check]:
        yield GOOD
        yield CAUGHT

    assert check(made).seed is None


def test_claims_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("verification"), ModuleType("verification.planted")
    package.__path__ = []
    module.claim = claiming(GOOD, CAUGHT)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verification", package)
    monkeypatch.setitem(sys.modules, "verification.planted", module)
    assert check("planted").holds
    with pytest.raises(ImportError, match="no claim 'absent'"):
        check("absent")
    monkeypatch.setitem(sys.modules, "verification", None)
    monkeypatch.delitem(sys.modules, "verification.planted")
    with pytest.raises(ImportError, match="run from a checkout"):
        check("planted")


def test_a_claim_module_whose_own_import_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "needy.py").write_text("import absent_package\n", encoding="utf-8")
    package = ModuleType("verification")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "verification", package)
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        check("needy")


def test_the_kind_is_theorem_or_empirical(monkeypatch: pytest.MonkeyPatch) -> None:
    assert subject_of(module_level).kind == "theorem"
    monkeypatch.setitem(globals(), "KIND", "empirical")
    assert subject_of(module_level).kind == "empirical"
    monkeypatch.setitem(globals(), "KIND", "hunch")
    with pytest.raises(ValueError, match="must be 'theorem' or 'empirical', got 'hunch'"):
        subject_of(module_level)
