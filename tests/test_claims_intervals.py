"""`exceeds` lets the interval decide: pass above, fail below, and nothing between."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linconv.claims import control, exceeds
from linconv.claims.runner import check

NUMBERS = st.floats(-1e6, 1e6)


def interval(low, estimate, high):
    return SimpleNamespace(low=low, estimate=estimate, high=high, level=0.95)


@given(st.lists(NUMBERS, min_size=3, max_size=3), NUMBERS)
def test_the_outcome_is_that_of_the_interval(ends, bound):
    low, estimate, high = sorted(ends)
    found = exceeds("x", interval(low, estimate, high), bound)
    assert found.outcome == ("pass" if low > bound else "fail" if high < bound else "inconclusive")
    assert (found.violation > 1) == (found.outcome == "fail") or high == estimate
    assert found.outcome == "inconclusive" or found.passed == (estimate > bound)


@given(st.lists(NUMBERS, min_size=3, max_size=3), NUMBERS)
def test_below_is_above_with_the_signs_changed(ends, bound):
    low, estimate, high = sorted(ends)
    outcome = exceeds("x", interval(-high, -estimate, -low), -bound).outcome
    assert outcome == ("pass" if high < bound else "fail" if low > bound else "inconclusive")


@pytest.mark.parametrize("ends", [(math.nan, 1.0, 2.0), (0.0, math.nan, 2.0), (0.0, 1.0, math.nan)])
def test_nan_never_passes(ends):
    assert exceeds("x", interval(*ends), -1.0).outcome == "inconclusive"
    assert exceeds("x", interval(0.0, 1.0, 2.0), math.nan).outcome == "inconclusive"


def test_an_interval_that_is_none_is_invalid():
    assert exceeds("x", interval(2.0, 1.0, 0.0), -5.0).outcome == "invalid"


@pytest.mark.parametrize("estimate", [-1.0, 3.0])
def test_a_corrected_interval_need_not_hold_the_estimate(estimate):
    outcomes = [exceeds("x", interval(0.0, estimate, 2.0), bound).outcome for bound in (-0.5, 1.0, 2.5)]
    assert outcomes == ["pass", "inconclusive", "fail"]


def test_what_the_check_reports():
    found = exceeds("x", interval(0.5, 0.625, 0.75), 0.25)
    assert (found.observed, found.predicted, found.error, found.tolerance, found.draws) == (0.625, 0.25, -0.375, 0.125, 1)
    assert found.reason == "sampling error: 95 % interval 0.5 to 0.75"
    assert exceeds("x", interval(0.0, 3.0, 2.0), -0.5).tolerance == 0


@pytest.mark.parametrize("ends", [(0.5, 0.6, 0.7), (2.0, 2.5, 3.0), (-1.0, -0.5, 0.0), (-5.0, -4.0, -3.0)])
def test_wrong_variants_are_caught(ends):
    made = exceeds("x", interval(*ends), ends[0] - 0.1)
    assert [variant.outcome for variant in made.variants()] == ["fail", "fail"]
    assert all(variant.control for variant in made.variants())


def claim_of(*checks):
    def claim():
        yield from checks

    return check(claim).verdict


def test_verdicts():
    good = interval(0.9, 0.95, 0.97)
    caught, missed = (control("wrong", exceeds("", interval(low, low, low + 0.1), 0.8)) for low in (0.2, 0.75))
    assert claim_of(exceeds("a", good, 0.8), caught) == "HOLDS"
    assert claim_of(exceeds("a", good, 0.93), caught) == "INCONCLUSIVE"
    assert claim_of(exceeds("a", good, 0.99), caught) == "REFUTED"
    assert claim_of(exceeds("a", good, 0.8), missed) == "INVALID"
    assert claim_of(exceeds("a", good, 0.93, required=False), exceeds("b", good, 0.8), caught) == "HOLDS"
