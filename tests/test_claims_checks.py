"""The comparisons: what passes, what fails, and what must never pass."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from linconv.claims import Check, Figure, agree, at_most, attains, control, inconclusive, not_applicable, predicted_failure, proved, rate
from linconv.claims.measure import as_values, permuted, summary

EPS = float(np.finfo(np.float64).eps)
NUMBERS = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)
ARRAYS = arrays.arrays(np.float64, arrays.array_shapes(max_dims=3, max_side=4), elements=NUMBERS)


def nonzero(array: np.ndarray) -> np.ndarray:
    assume(np.abs(array).max() > 0)
    return array


@given(ARRAYS)
def test_a_thing_agrees_with_itself(array: np.ndarray) -> None:
    check = agree("itself", array, array.copy())
    assert check.passed
    assert check.error == 0
    assert check.vacuous == (not array.any())


@given(ARRAYS.map(nonzero), st.floats(1e-10, 1e3), st.sampled_from([0.25, 4.0]))
def test_the_tolerance_is_the_border(array: np.ndarray, tolerance: float, times: float) -> None:
    scale = np.abs(array).max()
    observed = array.copy()
    observed.flat[0] += times * tolerance * scale
    check = agree("border", observed, array, tolerance=tolerance)
    assert check.outcome == ("pass" if times < 1 else "fail")
    assert check.violation == pytest.approx(times, rel=1e-4)


@given(ARRAYS.map(nonzero), st.integers(-200, 200), st.floats(0, 1e-12))
def test_agreement_does_not_depend_on_units(array: np.ndarray, exponent: int, noise: float) -> None:
    observed = array * (1 + noise)
    units = 2.0**exponent
    assert agree("", observed, array).error == agree("", observed * units, array * units).error


@given(ARRAYS.map(nonzero), st.data())
def test_a_nan_anywhere_never_passes(array: np.ndarray, data: st.DataObject) -> None:
    spoiled = array.copy()
    spoiled.flat[data.draw(st.integers(0, array.size - 1))] = math.nan
    for check in (agree("", spoiled, array), agree("", array, spoiled), at_most("", spoiled, array), at_most("", array, spoiled)):
        assert check.outcome == "inconclusive"
        assert math.isnan(check.error)


@given(ARRAYS, ARRAYS)
def test_unlike_shapes_are_broken_and_never_broadcast(left: np.ndarray, right: np.ndarray) -> None:
    assume(left.shape != right.shape)
    assert agree("", left, right).outcome == "invalid"
    assert at_most("", left, right).outcome == "invalid"
    assert "shapes differ" in agree("", left, right).note


@pytest.mark.parametrize("predicted", [np.ones((1,)), np.ones((1, 1)), [1.0]])
def test_a_number_is_no_array_of_one_entry(predicted: Any) -> None:
    assert agree("", 1.0, predicted).outcome == "invalid"


@given(ARRAYS.map(nonzero), st.data())
def test_at_most_is_the_order(right: np.ndarray, data: st.DataObject) -> None:
    left = data.draw(arrays.arrays(np.float64, right.shape, elements=NUMBERS))
    exceeds = float((left - right).max()) / np.abs(right).max()
    check = at_most("", left, right)
    assert check.error == pytest.approx(exceeds, rel=1e-12)
    assert check.passed == (exceeds <= check.tolerance)


def test_at_most_takes_one_bound_for_an_array_and_shows_slack() -> None:
    check = at_most("", np.array([1.0, 3.0]), 4.0)
    assert check.passed
    assert check.error == -0.25
    assert check.violation < 0
    assert at_most("", np.array([1.0, 4.1]), 4.0).outcome == "fail"
    assert at_most("", -1.0, 0.0).passed
    assert at_most("", 1, 2).passed
    assert at_most("", 3, 2).violation == math.inf


def test_an_infinite_bound_tests_nothing() -> None:
    assert at_most("", 3.0, math.inf).vacuous
    assert at_most("", np.array([-math.inf, -math.inf]), np.array([1.0, 2.0])).vacuous
    assert not at_most("", np.array([3.0, 4.0]), np.array([math.inf, 5.0])).vacuous


def test_complex_numbers_have_no_order() -> None:
    with pytest.raises(TypeError, match="no order"):
        at_most("", 1j, 2.0)


def test_the_default_tolerance_follows_dtype_and_size() -> None:
    single, double = torch.ones(100, dtype=torch.float32), torch.ones(100, dtype=torch.float64)
    assert agree("", double, double).tolerance == pytest.approx(32 * EPS * 10)
    assert agree("", single, single).tolerance == pytest.approx(32 * 2**29 * EPS * 10)
    assert agree("", double, single).tolerance == agree("", single, double).tolerance == agree("", single, single).tolerance
    assert agree("", double, double, size=10_000).tolerance == agree("", double, double, size=4096).tolerance
    assert agree("", double, double, size=1).tolerance == pytest.approx(32 * EPS * 4)
    assert "float32" in agree("", double, single).reason
    assert "√100" in agree("", double, double).reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_the_default_tolerance_sees_a_thousandth(dtype: torch.dtype, size: int) -> None:
    predicted = torch.ones(size, dtype=dtype)
    assert agree("", predicted * 1.001, predicted).outcome == "fail"


def test_the_default_tolerance_forgives_reordered_sums(generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.float64):
        matrix = torch.randn(300, 300, generator=generator, dtype=dtype)
        left = (matrix @ matrix) @ matrix
        assert agree("", matrix @ (matrix @ matrix), left).passed
        assert agree("", torch.fft.ifft2(torch.fft.fft2(matrix)).real, matrix).passed


def test_integers_and_fractions_are_compared_exactly() -> None:
    assert agree("", 2**53 + 1, 2**53 + 1).tolerance == 0
    assert agree("", 2**53 + 1, 2**53).violation == math.inf
    assert agree("", torch.tensor([2**62 + 1]), torch.tensor([2**62])).outcome == "fail"
    assert agree("", [Fraction(1, 3)], [Fraction(1, 3)]).passed
    assert agree("", Fraction(1, 3), Fraction(10**20, 3 * 10**20 + 1)).outcome == "fail"
    assert agree("", sympy.Rational(1, 3), Fraction(1, 3)).passed
    assert agree("", torch.tensor([True, False]), [1, 0]).passed
    assert agree("", np.array([True]), [0]).outcome == "fail"
    assert agree("", 1, 0).outcome == "fail"


@pytest.mark.parametrize(
    "value",
    [
        mpmath.mpf("0.25"),
        sympy.Float("0.25"),
        np.float32(0.25),
        np.longdouble(0.25),
        torch.tensor(0.25, requires_grad=True),
        torch.tensor(0.25, dtype=torch.bfloat16),
        torch.tensor(0.25 + 0j),
        0.25 + 0j,
    ],
)
def test_many_kinds_of_number(value: Any) -> None:
    assert agree("", value, 0.25).passed
    assert agree("", value, 0.28).outcome == "fail"


def test_complex_numbers_are_compared_as_such() -> None:
    values = torch.tensor([1 + 2j, 3 - 1j])
    assert agree("", values.conj(), torch.tensor([1 - 2j, 3 + 1j])).passed
    assert agree("", values.conj(), values).outcome == "fail"
    assert agree("", [mpmath.mpc(1, 2)], [1 + 2j]).passed


@pytest.mark.parametrize("value", ["text", object(), None, [[1], ["x"]], {"a": 1}])
def test_what_is_no_number_is_named(value: object) -> None:
    with pytest.raises(TypeError, match="observed must"):
        agree("", value, 1.0)


def test_infinities() -> None:
    assert agree("", math.inf, math.inf).passed
    assert not agree("", math.inf, math.inf).vacuous
    assert agree("", math.inf, -math.inf).outcome == "fail"
    assert agree("", math.inf, 1.0).error == math.inf
    assert agree("", 1.0, math.inf).outcome == "fail"
    assert agree("", np.array([1.0, math.inf]), np.array([1.0, math.inf])).error == 0


def test_zero_needs_a_scale() -> None:
    assert agree("", 0.0, 0.0).vacuous
    assert agree("", 0.0, 0.0).note == "zero against zero"
    assert agree("", 1e-17, 0.0).outcome == "invalid"
    assert "scale=" in agree("", 1e-17, 0.0).note
    assert agree("", 1e-17, 0.0, scale=1.0).passed
    assert agree("", 1e-10, 0.0, scale=1.0).outcome == "fail"
    assert agree("", 1.0, 1.0 + 1e-10, scale=torch.tensor([1e6])).passed
    assert not agree("", 0.0, 0.0, scale=3.0).vacuous
    assert agree("", 0.0, 0.0, scale=0.0).vacuous
    assert agree("", 1e-17, 0.0, scale=0.0).error == math.inf


def test_nothing_against_nothing_is_vacuous() -> None:
    check = agree("", torch.ones(0, 3), torch.ones(0, 3))
    assert check.passed
    assert check.vacuous
    assert "empty" in check.note


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_must_be_one(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be a finite number"):
        agree("", 1.0, 1.0, tolerance=tolerance)


@pytest.mark.parametrize(("keyword", "value"), [("size", 0), ("draws", 0)])
def test_counts_must_be_positive(keyword: str, value: int) -> None:
    options: dict[str, Any] = {keyword: value}
    with pytest.raises(ValueError, match=f"{keyword} must be at least 1"):
        agree("", 1.0, 1.0, **options)


def test_a_reason_is_shown_and_a_loosening_marked() -> None:
    assert agree("", 1.0, 1.0, tolerance=1e-3, reason="sampling error").reason.startswith("sampling error; relative to")
    assert agree("", 1.0, 1.0, tolerance=1e-3).loosened
    assert not agree("", 1.0, 1.0, tolerance=1e-16).loosened
    assert not agree("", 1.0, 1.0).loosened
    assert "the claim's own words (rounding" in agree("", 1.0, 1.0, reason="the claim's own words").reason


def test_attains_has_a_direction() -> None:
    def outcome(observed: object, **options: Any) -> str:
        return attains("", observed, 2.0, tolerance=1e-3, **options).outcome

    assert outcome(2.0) == outcome(2.001) == outcome(torch.tensor(2.0005, dtype=torch.float64)) == "pass"
    assert outcome(2.1) == "inconclusive"
    assert outcome(1.9999) == "fail"
    assert outcome(2 - 1e-15) == "pass"
    assert outcome(math.nan) == outcome(math.inf) == "inconclusive"
    assert outcome(1.9999, lower=1.999) == "pass"
    assert outcome(1.998, lower=1.999) == "fail"
    assert outcome(2.0, lower=1.9) == outcome(2.0, lower=-math.inf) == "inconclusive"
    assert outcome(2.0, lower=2.1) == "invalid"
    assert attains("", 1.0, math.inf, tolerance=1e-3).outcome == "fail"
    assert attains("", -1.9999, -2.0, tolerance=1e-3).outcome == "pass"
    assert attains("", 0.0, 0.0, tolerance=1e-3).vacuous
    with pytest.raises(TypeError, match="single numbers"):
        attains("", [1.0], 1.0, tolerance=1e-3)


@given(st.floats(0.5, 4), st.floats(-6, 6), st.integers(3, 12))
def test_rate_finds_a_power(base: float, exponent: float, count: int) -> None:
    scales = [base * (k + 1) for k in range(count)]
    values = [scale**exponent for scale in scales]
    assert rate("", scales, values, exponent).passed
    assert rate("", scales, values, exponent + 0.01).outcome == "fail"
    assert rate("", scales, values, exponent + 0.01, tolerance=0.02).passed


def test_rate_says_when_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    scales = np.arange(1.0, 9.0)
    noisy = scales**2 * np.exp(rng.normal(size=8))
    assert rate("", scales, noisy, 2).outcome == "inconclusive"
    assert "known only to" in rate("", scales, noisy, 2).note
    assert rate("", scales, noisy, -9).outcome == "fail"
    bent = scales**2 * (1 + 0.2 / scales)
    check = rate("", scales, bent, 2, tolerance=0.1)
    assert check.loosened
    assert check.outcome == "pass"
    edge = rate("", scales, scales**2.06 * np.exp(0.01 * rng.normal(size=8)), 2, tolerance=0.05)
    assert edge.outcome == "inconclusive"
    assert "straddles" in edge.note
    assert rate("", scales, [1.0, *[math.nan] * 7], 2).outcome == "inconclusive"
    assert rate("", scales, scales**2, math.nan).outcome == "inconclusive"


def test_rate_compares_with_a_null_model() -> None:
    scales = np.arange(1.0, 9.0)
    assert rate("", scales, scales**3, 3).p_value == pytest.approx(0, abs=1e-12)
    assert rate("", scales, np.ones(8), 0).p_value == 1
    assert rate("", scales, np.ones(8), 0).passed


@pytest.mark.parametrize(
    ("scales", "values"),
    [
        ([1, 2], [1, 2]),
        ([1, 1, 1], [1, 2, 3]),
        ([1, 2, 3], [1, 2]),
        ([1, 2, 3], [1, 0, 3]),
        ([0, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [1, 2, math.inf]),
        ([1, 2, 3], [1, 2, 1j]),
    ],
)
def test_rate_refuses_what_has_no_slope(scales: list[Any], values: list[Any]) -> None:
    assert rate("", scales, values, 1).outcome == "invalid"


def test_rate_checks_its_confidence() -> None:
    with pytest.raises(ValueError, match="confidence must lie"):
        rate("", [1, 2, 3], [1, 2, 3], 1, confidence=1.0)


def test_exact_decisions_are_counted() -> None:
    assert proved("", cases=4).scope == "exact"
    assert proved("", cases=4, failures=1).outcome == "fail"
    assert proved("", cases=4, failures=1).violation == math.inf
    assert proved("", cases=0).vacuous
    with pytest.raises(ValueError, match="failures must lie"):
        proved("", cases=4, failures=5)


def test_controls_and_predicted_failures() -> None:
    wrong, right = agree("inner", 1.0, 2.0), agree("inner", 2.0, 2.0)
    assert control("outer", wrong).name == "outer"
    assert control("outer", wrong).outcome == "fail"
    assert not control("outer", wrong).required
    assert predicted_failure("outer", wrong).passed
    assert predicted_failure("outer", right).outcome == "fail"
    assert predicted_failure("outer", agree("", math.nan, 1.0)).outcome == "inconclusive"
    assert inconclusive("training", "budget spent").note == "budget spent"
    assert not_applicable("kernel", "full kernels").outcome == "not applicable"
    bad: Any = 3
    for wrap in (control, predicted_failure):
        with pytest.raises(TypeError):
            wrap("outer", bad)


def automatic(check: Check) -> dict[str, str]:
    assert check.variants is not None
    return {variant.name: variant.outcome for variant in check.variants()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_automatic_wrong_variants_are_refuted(dtype: torch.dtype) -> None:
    values = torch.arange(1, 9).to(dtype)
    outcomes = automatic(agree("", values, values.clone()))
    assert len(outcomes) == 3
    assert set(outcomes.values()) == {"fail"}


def test_automatic_wrong_variants_of_the_other_checks() -> None:
    assert set(automatic(at_most("", np.array([1.0, 2.0]), 5.0)).values()) == {"fail"}
    assert set(automatic(attains("", 2.0005, 2.0, tolerance=1e-3)).values()) == {"fail"}
    assert set(automatic(rate("", [1, 2, 3], [1, 4, 9], 2)).values()) == {"fail"}
    assert len(automatic(agree("", 1.0, 1.0))) == 2
    assert "pass" in automatic(agree("", 1.0, 1.0, tolerance=0.1)).values()


@given(ARRAYS)
def test_a_permutation_moves_something_and_keeps_the_entries(array: np.ndarray) -> None:
    other = permuted(array)
    if other is None:
        assert np.unique(array).size == 1
    else:
        assert (other != array).any()
        assert sorted(other.ravel()) == sorted(array.ravel())


def test_witnesses_are_asked_only_on_demand() -> None:
    asked: list[int] = []

    def witness() -> float:
        asked.append(1)
        return 2.0

    checks: list[Callable[[], Check]] = [
        lambda: agree("", 1.0, 2.0, witness=witness),
        lambda: at_most("", 3.0, 2.0, witness=witness),
        lambda: attains("", 1.0, 2.0, tolerance=1e-3, witness=witness),
        lambda: rate("", [1, 2, 3], [1, 2, 3], 2, witness=lambda: [1, 4, 9]),
    ]
    for make in checks:
        check = make()
        assert check.outcome == "fail"
        assert not asked
        assert check.confirm is not None
        assert check.confirm().passed
        asked.clear()


def test_summaries_are_small_and_plain() -> None:
    assert summary(as_values([1, Fraction(1, 2)], "x")) == [1, "1/2"]
    assert summary(as_values(1 + 2j, "x")) == {"re": 1.0, "im": 2.0}
    assert summary(as_values(torch.ones(10, 10), "x")) == {
        "shape": [10, 10],
        "precision": "float32",
        "norm": 10.0,
        "smallest absolute value": 1.0,
        "largest absolute value": 1.0,
    }


@pytest.mark.parametrize("name", ["", "../escape", "a/b", ".hidden"])
def test_a_figure_has_a_file_name(name: str) -> None:
    def draw() -> Iterator[Any]:
        raise AssertionError("not drawn")

    with pytest.raises(ValueError, match="file name"):
        Figure(name, draw)


def test_automatic_variants_are_what_their_names_say() -> None:
    made = agree("x", 2.0, 2.0).variants
    assert made is not None
    scaled, missing = made()
    assert scaled.predicted == pytest.approx(2.002, rel=1e-12)
    assert math.isnan(missing.predicted)
    bounded = at_most("x", 2.0, 5.0).variants
    assert bounded is not None
    lowered, missing = bounded()
    assert lowered.predicted == pytest.approx(1.995, rel=1e-12)
    assert math.isnan(missing.predicted)
    undercut = attains("x", 2.0, 2.0, tolerance=1e-6).variants
    assert undercut is not None
    (raised,) = undercut()
    assert raised.predicted == pytest.approx(2.002, rel=1e-12)
    assert raised.outcome == "fail"


def test_a_difference_on_a_scale_of_zero_is_not_vacuous() -> None:
    found = agree("x", 1.0, 2.0, scale=0.0)
    assert (found.outcome, found.vacuous) == ("fail", False)
