"""Argument checks: what they return, what they raise, and that the message names the argument."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linconv.validation import validate_grid, validate_number, validate_size, validate_sizes, validate_tensor

POSITIVE = st.integers(1, 2**31 - 1)


@given(st.lists(POSITIVE))
def test_sizes_are_returned_as_a_tuple_of_integers(sizes):
    for given_as in (sizes, tuple(sizes), iter(sizes), np.array(sizes, dtype=np.int64), torch.Size(sizes)):
        found = validate_sizes("s", given_as)
        assert found == tuple(sizes)
        assert all(type(n) is int for n in found)


@given(POSITIVE, st.integers(0, 4))
def test_one_size_is_repeated(size, dims):
    assert validate_sizes("s", size, dims=dims) == (size,) * dims
    assert validate_size("s", np.int64(size)) == size
    assert type(validate_size("s", np.int64(size))) is int


@given(st.integers().filter(lambda n: not 0 < n < 2**31))
def test_sizes_out_of_range_are_refused_by_name(size):
    for call in (
        lambda: validate_size("width", size),
        lambda: validate_sizes("width", [1, size]),
        lambda: validate_sizes("width", size, dims=2),
    ):
        with pytest.raises(ValueError, match=f"width: expected a positive integer below 2\\^31, got {size}"):
            call()


@pytest.mark.parametrize("size", [1.0, "1", None, True, [1], Fraction(1), math.nan])
def test_things_that_are_no_integers_are_refused_by_name(size):
    with pytest.raises(TypeError, match="width: expected a positive integer, got"):
        validate_size("width", size)
    with pytest.raises(TypeError, match="width: expected a positive integer, got"):
        validate_sizes("width", [1, size])


@pytest.mark.parametrize("sizes", ["33", 3, None, 2.5, True])
def test_things_that_are_no_sequences_are_refused_by_name(sizes):
    with pytest.raises(TypeError, match="widths: expected a sequence of positive integers, got"):
        validate_sizes("widths", sizes)


def test_number_of_sizes_is_checked():
    with pytest.raises(ValueError, match=r"widths: expected 3 positive integers, one a dimension, got \(1, 2\)"):
        validate_sizes("widths", (1, 2), dims=3)
    with pytest.raises(TypeError, match=r"widths: .*True"):
        validate_sizes("widths", True, dims=3)


@given(st.lists(POSITIVE, max_size=6))
def test_grids_have_one_to_three_dimensions(sizes):
    if 1 <= len(sizes) <= 3:
        assert validate_grid(sizes) == tuple(sizes)
    else:
        with pytest.raises(ValueError, match="grid: expected 1, 2 or 3 dimensions"):
            validate_grid(sizes)


@given(st.floats(0, allow_infinity=False) | st.integers(0, 2**60) | st.fractions(0))
def test_numbers_are_returned_as_floats(value):
    found = validate_number("x", value)
    assert type(found) is float
    assert found == float(value)
    if found > 0:
        assert validate_number("x", value, positive=True) == found


@given(st.floats(max_value=0, exclude_max=True) | st.sampled_from([math.nan, math.inf]))
def test_numbers_out_of_range_are_refused_by_name(value):
    for positive, bound in ((False, "≥ 0"), (True, "> 0")):
        with pytest.raises(ValueError, match=f"rate: expected a finite number {bound}, got"):
            validate_number("rate", value, positive=positive)


def test_zero_is_refused_where_a_positive_number_is_asked_for():
    assert validate_number("rate", 0) == 0
    assert validate_number("rate", np.float32(0.5)) == 0.5
    with pytest.raises(ValueError, match=r"rate: expected a finite number > 0, got 0\.0"):
        validate_number("rate", 0, positive=True)


@pytest.mark.parametrize("value", ["1", None, True, [1.0], 1j])
def test_things_that_are_no_numbers_are_refused_by_name(value):
    with pytest.raises(TypeError, match="rate: expected a number, got"):
        validate_number("rate", value)


def test_tensors_pass_unchanged(dtype):
    tensor = torch.ones(2, 3, dtype=dtype)
    assert validate_tensor("t", tensor) is tensor
    assert validate_tensor("t", tensor, ndim=(2, 3), shape="(N, C)") is tensor
    assert validate_tensor("t", tensor * math.nan, finite=False).isnan().all()


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "t: expected a torch tensor, got list; use torch.as_tensor"),
        (np.ones(2), {"shape": "(N, C)"}, TypeError, r"t: expected a torch tensor \(N, C\), got ndarray"),
        (torch.ones(2, dtype=torch.int64), {}, TypeError, "t: expected dtype float32 or float64, got torch.int64"),
        (torch.ones(2, dtype=torch.complex64), {}, TypeError, "t: .*complex64"),
        (torch.ones(2, dtype=torch.bfloat16), {}, TypeError, "t: .*bfloat16"),
        (torch.ones(2, 2), {"ndim": (3,), "shape": "(N, C, n)"}, ValueError, r"t: expected \(N, C, n\), got shape \(2, 2\)"),
        (torch.ones(2, 2), {"ndim": (3,)}, ValueError, r"t: expected \(3,\) dimensions, got shape \(2, 2\)"),
        (torch.ones(0, 2), {}, ValueError, r"t: expected data, got the empty shape \(0, 2\)"),
        (torch.tensor([1.0, math.nan]), {}, ValueError, "t: expected finite numbers, got NaN or infinity"),
        (torch.tensor([1.0, -math.inf]), {}, ValueError, "t: expected finite numbers"),
    ],
)
def test_bad_tensors_are_refused_by_name(value, options, error, message):
    with pytest.raises(error, match=message):
        validate_tensor("t", value, **options)


def test_conversions_that_fail_are_refused_by_name():
    with pytest.raises(ValueError, match="rate: expected a finite number ≥ 0, got inf"):
        validate_number("rate", 10**400)
    for value in (torch.ones(2), np.ones(2)):
        with pytest.raises(TypeError, match="rate: expected a number, got"):
            validate_number("rate", value)
    for size in (torch.tensor(2.5), np.array([2, 3])):
        with pytest.raises(TypeError, match="width: expected a positive integer, got"):
            validate_size("width", size)
