"""Parameters: one annotation is validated in the library call and at the command line."""

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf, doc
from hypothesis import given
from hypothesis import strategies as st

from linconv.claims import Check, agree, check, control
from linconv.claims.signatures import DomainError, parameters_of, validated
from linconv.claims.subject import flags_of

Side = Annotated[int, Ge(2), Lt(9)]


def claim(
    *,
    depth: Annotated[int, Interval(ge=1, le=8), "number of layers"] = 2,
    even: Annotated[int, Ge(0), MultipleOf(2), doc("an even number")] = 4,
    decay: Annotated[float, Gt(0), Le(10)] = 0.5,
    grid: tuple[Side, Side] = (3, 4),
    widths: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1), MaxLen(3)] | None = None,
    pair: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(2, 2)] = (1, 1),
    dtype: Literal["float32", "float64"] = "float64",
    level: Literal[1, 2] = 1,
    whiten: bool = True,
    data: str = "photos",
    folder: Path | None = None,
    net: torch.Tensor | None = None,
    mixed: int | str | None = None,
) -> Iterator[Check]:
    yield agree("depth", depth, depth)
    yield control("off by one", agree("", depth, depth + 1))


PARAMETERS = parameters_of(claim)


def test_good_values_arrive_in_their_type() -> None:
    given_values = {
        "depth": np.int64(3),
        "decay": 1,
        "grid": [2, 8],
        "widths": (1, 2, 3),
        "folder": "here",
        "net": torch.ones(1),
        "mixed": "a",
    }
    read = validated(PARAMETERS, given_values)
    assert read["depth"] == 3
    assert type(read["depth"]) is int
    assert type(read["decay"]) is float
    assert read["grid"] == (2, 8)
    assert read["folder"] == Path("here")
    assert read["whiten"] is True
    assert validated(PARAMETERS, {"widths": None})["widths"] is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 0, r"depth must be an integer ≥ 1 and ≤ 8, got 0; choose"),
        ("depth", 9, r"depth must be"),
        ("depth", 10**30, r"depth must be"),
        ("even", 3, r"≥ 0 and a multiple of 2, got 3"),
        ("decay", 0.0, r"decay must be a number > 0 and ≤ 10"),
        ("decay", math.nan, r"decay must be finite"),
        ("decay", math.inf, r"decay must be finite"),
        ("grid", (3, 9), r"grid\[1\] must be an integer ≥ 2 and < 9, got 9"),
        ("grid", (3,), r"got 1 values; give 2"),
        ("widths", (), r"at least 1 entries, got 0"),
        ("widths", (1, 1, 1, 1), r"at most 3 entries, got 4"),
        ("pair", (1,), r"at least 2 entries"),
        ("dtype", "float16", r"dtype must be one of float32, float64, got 'float16'"),
        ("level", True, r"level must be one of 1, 2, got True"),
    ],
)
def test_values_outside_the_domain_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(claim, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 2.0),
        ("depth", "2"),
        ("depth", True),
        ("depth", None),
        ("decay", "1"),
        ("decay", [1]),
        ("grid", 3),
        ("grid", (3, 2.5)),
        ("whiten", 1),
        ("data", 3),
        ("folder", 3),
        ("net", [1.0]),
        ("mixed", 1.5),
    ],
)
def test_values_of_another_type_are_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{name}(\[1\])? must be .*got "):
        check(claim, **{name: value})


def test_unknown_and_missing_parameters() -> None:
    def needs(*, depth: Annotated[int, Ge(1)]) -> Iterator[Check]:
        yield agree("depth", depth, depth)

    with pytest.raises(TypeError, match=r"no parameter 'deep'; it has depth, even"):
        check(claim, deep=1)
    with pytest.raises(TypeError, match=r"needs depth: an integer ≥ 1; give it by name"):
        check(needs)
    assert check(needs, depth=2).holds


def test_flags_and_library_arguments() -> None:
    assert {name for name, parameter in PARAMETERS.items() if not parameter.domain.is_flag} == {"net", "mixed"}
    assert PARAMETERS["depth"].help == "number of layers"
    assert PARAMETERS["even"].help == "an even number"
    assert PARAMETERS["widths"].domain.describe() == "1 to 3 values, each an integer ≥ 1 or none"
    assert PARAMETERS["grid"].domain.describe() == "2 values: an integer ≥ 2 and < 9"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "depth": st.integers(1, 8),
            "decay": st.floats(0, 10, exclude_min=True),
            "grid": st.tuples(st.integers(2, 8), st.integers(2, 8)),
            "widths": st.none() | st.lists(st.integers(1), min_size=1, max_size=3).map(tuple),
            "dtype": st.sampled_from(["float32", "float64"]),
            "level": st.sampled_from([1, 2]),
            "data": st.text(),
        },
    )
)
def test_flags_say_what_parameters_hold(values: dict[str, Any]) -> None:
    """A printed command reproduces the run: its tokens are read back as the same values."""
    for name, value in validated(PARAMETERS, values).items():
        parameter = PARAMETERS[name]
        tokens = flags_of(parameter, value)
        if value is None:
            assert tokens == []
        elif isinstance(value, bool):
            assert tokens == [f"--{name}"]
        else:
            texts = tokens[1:] if isinstance(value, tuple) else [tokens[0].partition("=")[2]]
            assert parameter.domain.parse(texts) == value


def test_a_none_that_is_no_default_can_be_written() -> None:
    def other(*, folder: Path | None = Path("here"), quiet: bool = True) -> Iterator[Check]:
        yield agree("", 1.0, 1.0)

    parameters = parameters_of(other)
    assert flags_of(parameters["folder"], None) == ["--folder=none"]
    assert parameters["folder"].domain.parse(["none"]) is None
    assert flags_of(parameters["quiet"], False) == ["--no-quiet"]


@pytest.mark.parametrize("text", ["2.5", "x", "", "1e2"])
def test_an_integer_is_never_rounded(text: str) -> None:
    with pytest.raises(ValueError, match="must be an integer"):
        PARAMETERS["depth"].domain.parse([text])


def bare_number(*, depth: int = 2) -> Iterator[Check]:
    yield agree("", depth, depth)


def bare_items(*, grid: tuple[int, int] = (2, 2)) -> Iterator[Check]:
    yield agree("", grid, grid)


def no_annotation(*, depth=2):  # type: ignore[no-untyped-def]
    yield agree("", depth, depth)


def positional_only(depth: Annotated[int, Ge(1)] = 1, /) -> Iterator[Check]:
    yield agree("", depth, depth)


def any_arguments(**arguments: Annotated[int, Ge(1)]) -> Iterator[Check]:
    yield agree("", 1, 1)


def bad_default(*, depth: Annotated[int, Ge(1)] = 0) -> Iterator[Check]:
    yield agree("", depth, depth)


def output_flag(*, json: bool = True) -> Iterator[Check]:
    yield agree("", 1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (bare_number, "depth of the claim has no domain; write depth: Annotated"),
        (bare_items, "grid of the claim has no domain"),
        (no_annotation, "depth of the claim has no annotation"),
        (positional_only, "cannot be passed by name"),
        (any_arguments, "cannot be passed by name"),
        (bad_default, "outside its own domain: depth must be"),
        (output_flag, "output flag"),
    ],
)
def test_a_signature_that_says_too_little(wrong: Callable[..., Any], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        check(wrong)


def test_a_parameter_without_default_knows_it() -> None:
    def needs(*, depth: Annotated[int, Ge(1)]) -> Iterator[Check]:
        yield agree("", depth, depth)

    parameter = parameters_of(needs)["depth"]
    assert parameter.default is inspect.Parameter.empty
    assert not parameter.has_default
