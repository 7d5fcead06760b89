"""The search itself: every verdict, its scope, its budget, what it shows and writes, and the parts that it is made of."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Len, Lt, MultipleOf, Predicate
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from linconv import strategies
from linconv.claims import (
    Check,
    NotApplicable,
    Note,
    UsageError,
    agree,
    at_most,
    attains,
    check,
    control,
    falsify,
    main,
    predicted_failure,
    proved_at_most,
)
from linconv.claims.arguments import changed, read, rebuilt, restore, snapshot, source, tensors_of, written
from linconv.claims.ascent import ascend
from linconv.claims.budgets import Budget, read_budget
from linconv.claims.checks import DrawingError
from linconv.claims.compass import climb
from linconv.claims.drawing import Violated, explore, first_examples, space_of
from linconv.claims.output import to_json
from linconv.claims.ranges import at_random, boundary, ends, simpler
from linconv.claims.runner import arguments_of
from linconv.claims.shrinking import shrunk
from linconv.claims.signatures import parameters_of
from linconv.claims.structured import structured
from linconv.claims.subject import subject_of
from linconv.network import LinearCNN, circular_convolution
from linconv.spectrum import FrequencyBlocks, conv_singular_values

Count = Annotated[int, Interval(ge=0, le=99)]
Kernel = Annotated[Tensor, strategies.predictors(grid=(3,), max_outputs=2, max_channels=2), "a kernel"]
CAUGHT = control("caught", agree("", 1, 2))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Witnesses are replayed here: a fresh process, which takes seconds to start, is tested once, below."""
    monkeypatch.setattr("linconv.claims.runner.replayable", lambda *_: False)


# Verdicts


def holds(*, n: Count = 3) -> Iterator[Check]:
    """True."""
    yield agree("n", n + 1, n + 1)
    yield CAUGHT


def never_decided(*, n: Count = 3) -> Iterator[Check]:
    yield agree("nan", 1.0 if n == 3 else math.nan, 1.0)
    yield CAUGHT


def throws(*, n: Count = 3) -> Iterator[Check]:
    yield agree("ratio", 1 / (n - 50) if n == 50 else 1, 1)
    yield CAUGHT


def vacuous(*, n: Count = 3) -> Iterator[Check]:
    yield agree("n", 1.0 if n == 3 else 0.0, 1.0 if n == 3 else 0.0)
    yield CAUGHT


def outside(*, n: Count = 3) -> Iterator[Check]:
    if n != 3:
        raise NotApplicable("n = 3")
    yield agree("n", n, 3)
    yield CAUGHT


def refuses(*, n: Count = 3) -> Iterator[Check]:
    if n != 3:
        raise UsageError("only 3")
    yield agree("n", n, 3)
    yield CAUGHT


def silent(*, n: Count = 3) -> Iterator[Check]:
    yield from ()


def powerless(*, n: Count = 3) -> Iterator[Check]:
    yield agree("n", 1 + (n == 99), 1)
    yield control("passes where it should fail", agree("", 1 + (n == 99), 2))


def mutates(*, w: Kernel) -> Iterator[Check]:
    w += 1
    yield agree("w", w, w)
    yield CAUGHT


def flaky(*, n: Count = 3) -> Iterator[Check]:
    TIMES.append(n)
    yield agree("first time", 1 + (len(TIMES) == 7), 1)
    yield CAUGHT


TIMES: list[int] = []


@pytest.mark.parametrize(
    ("claim", "verdict", "words"),
    [
        (holds, "HOLDS", "no counterexample: 40 examples ("),
        (never_decided, "INCONCLUSIVE", " of 40 examples undecided; first check “nan”: NaN, at linconv.claims.check(never_decided, n=0)"),
        (throws, "INVALID", "the claim's body raised ZeroDivisionError: division by zero"),
        (vacuous, "INVALID", "nothing was tested: none of"),
        (outside, "INVALID", "nothing was tested: none of"),
        (refuses, "INVALID", "nothing was tested: none of"),
        (silent, "INVALID", "nothing was tested: the claim yielded no required check"),
        (powerless, "INVALID", "survived"),
        (mutates, "INVALID", "the claim changed its argument w in place; let it work on a copy"),
    ],
)
def test_every_claim_gets_its_verdict(claim: Callable[..., Iterator[Check]], verdict: str, words: str) -> None:
    found = falsify(claim, budget=40 if claim is not throws else 400)
    assert (found.verdict, words in found.reason) == (verdict, True), found.reason
    assert "\n" not in found.reason


def test_a_failure_that_does_not_repeat_is_open() -> None:
    TIMES.clear()
    found = falsify(flaky, budget=40)
    assert found.verdict == "INCONCLUSIVE"
    assert "did not fail again" in found.reason


def test_a_failure_that_does_not_repeat_is_told_with_its_error() -> None:
    TIMES.clear()
    found = falsify(flaky, budget=40)
    assert found.reason.startswith("check “first time” fails: error ")
    assert "; found by the structured stage after 7 examples; but it did not fail again: the claim is not a function" in found.reason


def half_vacuous(*, n: Annotated[int, Interval(ge=0, le=2)] = 2) -> Iterator[Check]:
    if n == 0:
        raise NotApplicable("n is 0")
    yield agree("n", n - 1.0, n - 1.0)
    yield CAUGHT


def test_draws_outside_the_hypotheses_and_of_zero_against_zero_are_told_apart() -> None:
    scope = falsify(half_vacuous, budget=60).scope
    told = re.search(r" \((\d+) more draws outside its hypotheses, (\d+) more draws compared zero with zero\); none violates", scope)
    assert told, scope
    reason = falsify(vacuous, budget=40).reason
    assert re.search(r"none of (\d+) draws counts, \1 draws compared zero with zero \(", reason), reason
    reason = falsify(outside, budget=40).reason
    assert re.search(r"none of (\d+) draws counts, \1 draws outside its hypotheses \(.*n = 3", reason), reason


def test_a_search_is_on_record_with_its_seed_budget_and_command() -> None:
    found = falsify(holds, budget=40, seed=7)
    assert found.scope.endswith("; search with seed 7, 40 examples")
    assert found.command == "linconv.claims.falsify(holds, budget=40, seed=7)"
    found = falsify(never_decided, budget="1", seed=2)
    assert found.reason.endswith("; search with seed 2, 1 example")
    assert falsify(holds, budget="0.2s", n=4).command == "linconv.claims.falsify(holds, budget='0.2s', n=4)"
    assert "; search with seed 0, 0.2 seconds" in str(falsify(holds, budget="0.2s"))
    found = falsify(drawn, budget=60, scale=1.0)
    assert "; search with seed 0, 60 examples; reproduce with: " in found.reason
    assert found.command.startswith("linconv.claims.check(drawn, ")


def test_the_command_of_a_search_has_the_seed_where_it_was_given() -> None:
    def claim(*, n: Count = 3) -> Iterator[Check]:
        yield agree("n", n, n)

    subject = replace(subject_of(claim), file="c3.py")
    assert subject.search_command({"n": 4}, Budget(60), 5) == "python c3.py --n=4 --falsify=60 --seed=5"
    assert subject.search_command({}, Budget(None, 120.0), 0) == "python c3.py --falsify=120s"
    assert subject.search_command({"seed": 0}, Budget(None, 0.25), 0) == "python c3.py --falsify=0.25s --seed=0"


def test_a_changed_argument_is_reported_as_it_was() -> None:
    for found in (check(mutates, w=torch.zeros(1, 1, 3)), falsify(mutates, budget=5, w=torch.zeros(1, 1, 3))):
        assert found.verdict == "INVALID"
        assert found.parameters["w"].tolist() == [[[0.0, 0.0, 0.0]]]


def met_by_half(*, w: Kernel) -> Iterator[Check]:
    if float(w.sum()) <= 0:
        raise NotApplicable("kernels of positive sum")
    yield agree("sum", w.sum(), w.sum())
    yield CAUGHT


@pytest.mark.parametrize("seed", range(8))
def test_a_start_outside_the_hypotheses_gives_way_to_another(seed: int) -> None:
    found = falsify(met_by_half, budget=60, seed=seed)
    assert found.verdict == "HOLDS", found.reason
    assert "more draws outside its hypotheses" in found.scope


def test_where_no_draw_meets_the_hypotheses_the_search_says_so() -> None:
    def met_by_none(*, w: Kernel) -> Iterator[Check]:
        raise NotApplicable("kernels that do not exist")
        yield CAUGHT

    assert falsify(met_by_none, budget=60).verdict == "NOT APPLICABLE"


def test_the_scope_is_a_bound_from_the_independent_draws_alone() -> None:
    found = falsify(holds, budget=400, seed=1)
    independent = int(found.scope.removeprefix("sampled, ").split()[0])
    assert f"{independent} random" in found.reason
    assert 150 <= independent < 400
    bound = 1 - 0.05 ** (1 / independent)
    assert f"at most {100 * bound:.2g} % of such draws" in found.scope
    # The exact law: with this rate of violations, none in so many draws has probability 0.05.
    assert math.isclose((1 - bound) ** independent, 0.05, rel_tol=1e-12)
    assert "n: an integer ≥ 0 and ≤ 99" in found.scope


def test_a_budget_without_independent_draws_decides_nothing() -> None:
    found = falsify(holds, budget=1)
    assert found.verdict == "INCONCLUSIVE"
    assert "before any independent draw" in found.reason
    assert falsify(holds, budget="0.3s").verdict in ("HOLDS", "INCONCLUSIVE")


def test_fixed_parameters_are_not_searched() -> None:
    def claim(*, n: Count = 3, m: Count = 0) -> Iterator[Check]:
        yield at_most("n", n, 50)
        yield at_most("m", m, 0)

    assert falsify(claim, budget=100, m=0).witness == {"n": 51, "m": 0}
    assert falsify(claim, budget=100, n=3).witness == {"n": 3, "m": 1}
    assert falsify(claim, budget=100, n=3, m=0).verdict == "HOLDS"
    with pytest.raises(TypeError, match="no parameter 'k'"):
        falsify(claim, budget=10, k=1)


def test_an_interrupt_ends_with_the_best_so_far() -> None:
    def claim(*, n: Count = 3) -> Iterator[Check]:
        if n == 99:
            raise KeyboardInterrupt
        yield at_most("n", n, 1000)

    found = falsify(claim, budget=400)
    assert found.verdict == "INCONCLUSIVE"
    assert found.reason.startswith("interrupted, no counterexample in ")
    assert "nearest to failing: “n”, error minus tolerance -0.9" in found.reason


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("budget", ["", "s", "-1", "5m", "0", "0s", 0, -3, "1e3", "5 0"])
def test_a_budget_that_is_none(budget: int | str) -> None:
    with pytest.raises(ValueError, match="budget must be a number of examples"):
        falsify(holds, budget=budget)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"budget must be .* got 2\.5"):
        falsify(holds, budget=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be an integer ≥ 0, got -1"):
        falsify(holds, budget=5, seed=-1)
    with pytest.raises(TypeError, match="claim: expected a function"):
        falsify(3, budget=5)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="no claim 'absent'"):
        falsify("absent", budget=5)

    def undeclared(*, n: int = 3) -> Iterator[Check]:
        yield agree("n", n, n)

    with pytest.raises(TypeError, match="parameter n of the claim has no domain"):
        falsify(undeclared, budget=5)


def test_budgets_are_examples_or_seconds() -> None:
    assert read_budget("50") == read_budget(50) == Budget(50)
    assert read_budget(" 2.5s") == Budget(None, 2.5)
    assert [str(read_budget(text)) for text in ("50", "50s")] == ["50 examples", "50 seconds"]


# Drawn parameters


def drawn(*, w: Kernel, scale: Annotated[float, Interval(ge=0, le=2)] = 1.0) -> Iterator[Check]:
    """The entries of a kernel add up to less than five."""
    yield at_most("sum", scale * w.abs().sum(), 5.0)


def test_what_is_not_given_is_drawn_with_the_seed() -> None:
    subject = subject_of(drawn)
    first, again, other = (arguments_of(subject, {"seed": seed}) for seed in (0, 0, 1))
    assert first[1] == 0
    assert torch.equal(first[0]["w"], again[0]["w"])
    assert first[0]["w"].shape != other[0]["w"].shape or not torch.equal(first[0]["w"], other[0]["w"])
    given_kernel = torch.ones(1, 1, 3, dtype=torch.float64)
    assert arguments_of(subject, {"w": given_kernel}) == ({"w": given_kernel, "scale": 1.0}, None)
    assert check(drawn, w=given_kernel).holds


def test_a_witness_is_small_in_shape_and_entries_and_stays_in_the_domain() -> None:
    found = falsify(drawn, budget=60, scale=1.0)
    assert found.verdict == "REFUTED"
    assert found.witness is not None
    assert found.witness["w"].shape[2:] == (3,)  # the strategy has one grid
    assert found.witness["w"].numel() <= 6
    assert found.witness["w"].abs().sum() <= 8
    assert all(entry == round(entry) for entry in found.witness["w"].flatten().tolist())


def test_a_strategy_that_cannot_tell_is_left_to_hypothesis() -> None:
    zero_sum = strategies.predictors(grid=(3,), max_outputs=1, max_channels=1).map(lambda w: w - w.mean())

    def claim(*, w: Annotated[Tensor, zero_sum]) -> Iterator[Check]:
        yield at_most("norm", w.norm(), 2.0)

    found = falsify(claim, budget=60)
    assert found.verdict == "REFUTED"
    assert found.witness is not None
    assert abs(float(found.witness["w"].sum())) < 1e-12


def test_a_predicate_is_a_hypothesis_of_the_claim() -> None:
    def claim(*, w: Annotated[Tensor, strategies.predictors(grid=(2,)), Predicate(lambda w: bool(w.any()))]) -> Iterator[Check]:
        yield at_most("norm", -w.norm(), 0.0, scale=1.0)
        yield control("raised", at_most("", 1.0, 0.0, scale=1.0))

    with pytest.raises(ValueError, match="w does not meet the claim's hypothesis"):
        check(claim, w=torch.zeros(1, 1, 2))
    instances = structured(space_of(subject_of(claim), {"w": torch.ones(1, 1, 2)}, {}), Random(0))
    assert all(instance["w"].any() for instance in instances)


SMALL_SUM = Annotated[Tensor, strategies.images(channels=1, grid=(4,)), Predicate(lambda x: bool(x.sum() <= 3))]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_drawn_that_does_not_meet_the_hypothesis(seed: int) -> None:
    """The conclusion is the hypothesis, so that every instance outside it would refute a true claim."""

    def claim(*, x: SMALL_SUM) -> Iterator[Check]:
        yield at_most("sum", x.sum(), 3.0, scale=1.0)
        yield control("one more", at_most("", x.sum(), x.sum() - 1, scale=1.0))

    found = falsify(claim, budget=40, seed=seed)
    assert found.verdict == "HOLDS", found.reason
    found = check(claim, seed=seed)
    assert found.verdict == "HOLDS", found.reason


def test_a_hypothesis_leaves_structure_and_shrinking_as_they_are() -> None:
    """Without `admits` of the strategy below the predicate the witness would keep the numbers that were drawn."""

    def claim(*, x: SMALL_SUM) -> Iterator[Check]:
        yield at_most("norm", x.norm(), 2.5)

    found = falsify(claim, budget=40)
    assert found.verdict == "REFUTED"
    assert found.witness is not None
    assert found.witness["x"].sum() <= 3
    assert all(entry == round(entry) for entry in found.witness["x"].flatten().tolist())
    with pytest.raises(ValueError, match="x does not meet the claim's hypothesis"):
        check(claim, x=torch.ones(1, 1, 4))


@st.composite
def seldom(draw: Any) -> Tensor:
    """Eight zeros are all that is ever accepted, and Hypothesis tries them first."""
    assume(draw(st.binary(min_size=8, max_size=8)) == bytes(8))
    return torch.zeros(1)


def test_a_draw_that_filters_did_not_allow_is_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hypothesis finds no other example it is left with the simplest one, which was once counted as a draw."""
    monkeypatch.setattr("linconv.claims.drawing.RUNS", 1)

    def claim(*, x: Annotated[Tensor, seldom()]) -> Iterator[Check]:
        yield at_most("x", x.max(), 255.0)
        yield control("negative", at_most("", x.max() + 1, -1.0))

    space = space_of(subject_of(claim), {"x": torch.zeros(1)}, {})
    assert space.draw(Random(0)) is None
    found = falsify(claim, budget=8)
    assert found.verdict == "INCONCLUSIVE"
    assert "not made, for filters reject nearly all" in found.reason


def test_independent_draws_leave_nothing_out() -> None:
    """Hypothesis never makes the first choice of its second example as it made that of the first."""
    small = st.integers(1, 3)

    def claim(*, x: Annotated[tuple[int, ...], st.tuples(small, small)]) -> Iterator[Check]:
        yield agree("x", x[0], x[0])

    space = space_of(subject_of(claim), {"x": (1, 1)}, {})
    drawn = [found["x"] for seed in range(60) if (found := space.draw(Random(seed))) is not None]
    assert {*drawn} == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}


def test_a_strategy_of_one_value_has_independent_draws() -> None:
    def claim(*, x: Annotated[Tensor, st.just(torch.ones(2))], n: Annotated[int, Interval(ge=1, le=50)] = 1) -> Iterator[Check]:
        yield agree("x", n * x, torch.full((2,), float(n)))
        yield control("doubled", agree("", 2 * x, x))

    assert "independent draws" in falsify(claim, budget=20).scope


def test_none_beside_a_strategy_is_drawn_and_the_strategy_stays() -> None:
    kernels = strategies.predictors(grid=(2,))
    nonzero = Predicate(lambda w: bool(w.any()))

    def claim(
        *,
        w: Annotated[Tensor, kernels, nonzero, "a kernel"] | None = None,
        v: Annotated[Tensor | None, kernels] = None,
        u: Annotated[Annotated[Tensor, kernels] | None, nonzero] = None,
    ) -> Iterator[Check]:
        assert all(x is None or bool(x.any()) for x in (w, u))
        yield at_most("‖w‖", 0.0 if w is None else w.norm(), 2.5, scale=1.0)
        yield control("raised", at_most("", 1.0, 0.0, scale=1.0))

    space = space_of(subject_of(claim), {"w": None, "v": None, "u": None}, {})
    drawn = [space.draw(Random(seed)) for seed in range(15)]
    kinds = {name: {instance[name] is None for instance in drawn if instance} for name in ("w", "u")}
    assert kinds == {"w": {True, False}, "u": {True, False}}
    assert check(claim).holds
    assert check(claim, w=torch.ones(1, 1, 2)).holds
    with pytest.raises(ValueError, match="w does not meet"):
        check(claim, w=torch.zeros(1, 1, 2))
    with pytest.raises(TypeError, match=r"w must be .*Tensor \| None with Predicate.*, got 3"):
        check(claim, w=3)
    found = falsify(claim, budget=80)
    assert found.verdict == "REFUTED"
    assert found.witness is not None
    assert found.witness["w"].shape == (1, 1, 2)
    assert found.witness["u"] is None


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, ValueError])
def test_a_predicate_that_raises_says_nothing(error: type[Exception]) -> None:
    def raising(value: object) -> bool:
        raise error("no\nsuch thing")

    def claim(*, x: Annotated[Tensor, strategies.images(channels=1, grid=(4,)), Predicate(raising)]) -> Iterator[Check]:
        yield agree("x", x, x)

    words = f"^the predicate Predicate.* raised {error.__name__}: no such thing; let it return true or false"
    for call in (lambda: check(claim), lambda: check(claim, x=torch.ones(1, 1, 4)), lambda: falsify(claim, budget=5)):
        with pytest.raises(DrawingError, match=words):
            call()


def test_complex_arguments_are_drawn() -> None:
    def claim(*, z: Annotated[Tensor, st.integers(0, 9).map(lambda n: torch.tensor([1 + n * 1j, 2]).conj())]) -> Iterator[Check]:
        yield agree("norm", z.norm(), z.abs().square().sum().sqrt())
        yield control("doubled", agree("", 2 * z.norm(), z.norm()))

    assert check(claim).verdict == "HOLDS"
    assert falsify(claim, budget=20).verdict == "HOLDS"


def test_the_climb_goes_on_in_the_other_numbers_where_one_is_none() -> None:
    def claim(
        *, n: Annotated[int, Interval(ge=1, le=50)] | None = None, x: Annotated[float, Interval(ge=0, le=1)] = 0.5
    ) -> Iterator[Check]:
        yield at_most("x", x, 1)

    heights: list[float] = []

    def height(instance: dict[str, Any]) -> float:
        assert instance["n"] is None
        heights.append(instance["x"])
        return heights[-1]

    start = {"n": None, "x": 0.5}
    climb(space_of(subject_of(claim), start, {}), start, height)
    assert max(heights) == 1.0


def test_a_strategy_that_yields_nothing_or_raises() -> None:
    def empty(*, w: Annotated[Tensor, st.just(torch.ones(1)).filter(lambda w: False)]) -> Iterator[Check]:
        yield agree("w", w, w)

    def raising(*, w: Annotated[Tensor, st.just(torch.ones(1)).map(lambda w: w.absent)]) -> Iterator[Check]:
        yield agree("w", w, w)

    with pytest.raises(DrawingError, match="their filters reject everything"):
        falsify(empty, budget=5)
    with pytest.raises(DrawingError, match="raised AttributeError"):
        check(raising)


# Parts


def test_the_error_has_a_gradient_where_a_side_has_one() -> None:
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    below = at_most("x", x, torch.tensor([2.0, 2.0]))
    assert below.ascent is not None
    assert below.ascent().item() == below.error
    assert torch.autograd.grad(below.ascent(), x)[0].tolist() == [0.0, 0.5]
    equal = agree("x", x, [2.0, 2.0], scale=4.0)
    assert equal.ascent is not None
    assert equal.ascent().item() == equal.error == 0.25
    reached = attains("x", x.sum(), 5.0, tolerance=0.1)
    assert reached.ascent is not None
    assert torch.autograd.grad(reached.ascent(), x)[0].tolist() == pytest.approx([-0.2, -0.2])  # lower refutes
    assert agree("x", x.detach(), [2.0, 2.0]).ascent is None
    assert predicted_failure("x", equal).ascent is None
    assert check(lambda: iter([equal])).checks[0].ascent is None


def test_ascent_reaches_a_ratio_of_one_in_few_steps() -> None:
    """‖w ⋆ x‖ ≤ 0.999 σ₁ ‖x‖ fails near one singular vector; random images are far from it."""
    weight = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    largest = conv_singular_values(weight, (3, 4)).max()

    def claim(*, x: Annotated[Tensor, strategies.images(channels=2, grid=(3, 4), max_images=1)]) -> Iterator[Check]:
        yield at_most("norm", circular_convolution(x, weight).norm(), 0.999 * largest * x.norm())

    subject = subject_of(claim)
    steps = []
    for seed in range(5):
        start = {"x": torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}
        space, runs = space_of(subject, start, {}), 0

        def evaluate(arguments: dict[str, Any]) -> list[Check]:
            nonlocal runs
            runs += 1
            return list(claim(**arguments))

        def stop(arguments: dict[str, Any]) -> None:
            raise Violated

        with pytest.raises(Violated):
            ascend(space, start, evaluate, stop, 0)
        steps.append(runs)
    assert max(steps) <= 33


def test_structure_comes_first_and_stays_in_the_domain() -> None:
    subject = subject_of(drawn)
    instances = list(structured(space_of(subject, arguments_of(subject, {})[0], {}), Random(0)))
    kernels = [instance["w"] for instance in instances]
    assert all(w.shape[2:] == (3,) and w.shape[0] <= 2 and w.shape[1] <= 2 for w in kernels)
    assert any(not w.any() for w in kernels)
    assert any(bool((w == 1).all()) and w.numel() > 3 for w in kernels)
    assert any(w.count_nonzero() == 1 and w.numel() > 3 for w in kernels)
    two = [w for w in kernels if w.shape == (2, 2, 3)]
    assert any(torch.allclose(conv_singular_values(w, (3,)), torch.ones(3, 2, dtype=torch.float64)) for w in two if w.any())
    assert {instance["scale"] for instance in instances} >= {0.0, 1.0, 2.0}


class Signature:
    """Domains of every kind, by name."""

    def __call__(
        self,
        *,
        depth: Annotated[int, Interval(ge=1, le=8)] = 2,
        even: Annotated[int, Ge(0), MultipleOf(2)] = 4,
        decay: Annotated[float, Gt(0), Lt(1)] = 0.5,
        grid: tuple[Annotated[int, Ge(2), Lt(5)], Annotated[int, Ge(2), Lt(5)]] = (3, 4),
        widths: Annotated[tuple[Annotated[int, Interval(ge=1, le=3)], ...], Len(1, 3)] | None = None,
        mode: Literal["a", "b"] = "a",
        flag: bool = False,
    ) -> Iterator[Check]:
        yield agree("depth", depth, depth)


DOMAINS = {name: parameter.domain for name, parameter in parameters_of(Signature().__call__).items()}


@pytest.mark.parametrize("name", DOMAINS)
@given(seed=st.integers(0, 10**6))
def test_random_boundary_and_simpler_values_lie_in_the_domain(name: str, seed: int) -> None:
    domain = DOMAINS[name]
    value = at_random(domain, Random(seed))
    assert domain.holds(value)
    assert all(domain.holds(other) and other != value for other in simpler(domain, value))
    assert all(domain.holds(other) for other in boundary(domain))


def test_boundaries_are_the_ends_and_their_neighbours() -> None:
    assert list(boundary(DOMAINS["depth"])) == [1, 2, 7, 8]
    assert ends(DOMAINS["decay"]) == (math.nextafter(0, 1), math.nextafter(1, 0))
    assert {(2, 2), (2, 3), (4, 4)} <= set(boundary(DOMAINS["grid"]))
    assert None in list(boundary(DOMAINS["widths"]))
    assert list(simpler(DOMAINS["depth"], 5)) == [1, 2, 3, 4]
    assert {at_random(DOMAINS["mode"], Random(seed)) for seed in range(20)} == {"a", "b"}


def test_hypothesis_runs_are_repeatable_and_stop_at_a_failure() -> None:
    def fails_beyond_ten(value: int) -> None:
        seen.append(value)
        if value > 10:
            raise Violated

    seen: list[int] = []
    assert first_examples(st.integers(), 5, 4) == first_examples(st.integers(), 5, 4)
    assert explore(st.integers(), fails_beyond_ten, seed=1, examples=200, shrink=True)
    assert seen[-1] == 11
    assert not explore(st.integers(0, 5), fails_beyond_ten, seed=1, examples=20)


def test_shrinking_removes_layers_channels_sites_and_digits() -> None:
    def claim(*, net: Annotated[LinearCNN, strategies.linear_cnns(max_depth=5)]) -> Iterator[Check]:
        yield agree("net", net.depth, net.depth)

    net = LinearCNN(3, (2, 3, 2), 3, (3, 4), kernel_size=2, generator=torch.Generator().manual_seed(0))
    space = space_of(subject_of(claim), {"net": net}, {})
    small = shrunk(space, {"net": net}, lambda instance: instance["net"].depth >= 2 and bool((instance["net"].weights[-1] > 0.01).any()))[
        "net"
    ]
    assert [tuple(w.shape) for w in small.weights] == [(1, 1, 1), (1, 1, 1)]
    assert small.weights[0].item() == 0.0
    assert small.weights[-1].item() == 1.0


BLOCKS = FrequencyBlocks.from_predictor(torch.arange(6, dtype=torch.float64).reshape(1, 2, 3))
ARGUMENTS = [
    None,
    3,
    0.1,
    (1, (2.0, "a")),
    [True, None],
    Path("a/b"),
    torch.tensor([[1 / 3, math.nan], [math.inf, -0.0]], dtype=torch.float64),
    torch.tensor([0.1], dtype=torch.float32),
    torch.zeros(2, 0, 3),
    torch.tensor([1 + 2j]),
    torch.tensor([True, False]),
    LinearCNN(2, (3,), 1, (2, 2), kernel_size=1, dtype=torch.float32),
    BLOCKS,
    (torch.ones(2), LinearCNN(1, (), 1, (2,))),
]


@pytest.mark.parametrize("value", ARGUMENTS, ids=lambda value: type(value).__name__)
def test_arguments_survive_writing_and_reading(value: Any) -> None:
    again = read(json.loads(json.dumps(written(value))))
    modules: set[str] = set()
    evaluated = eval(source(value, modules), {"__builtins__": __builtins__, **{name: __import__(name) for name in modules}})
    for other in (again, evaluated):
        assert isinstance(other, type(value)) or isinstance(value, Path)
        assert len(tensors_of(other)) == len(tensors_of(value))
        for left, right in zip(tensors_of(other), tensors_of(value), strict=True):
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            assert torch.equal(torch.nan_to_num(left.detach()), torch.nan_to_num(right.detach()))
        assert bool(tensors_of(value)) or other == value or str(value) == other


def test_arguments_are_taken_apart_and_watched() -> None:
    net = LinearCNN(1, (2,), 1, (2,))
    doubled = rebuilt((net, BLOCKS), [2 * tensor.detach() for tensor in tensors_of((net, BLOCKS))])
    assert torch.equal(doubled[0].weights[0], 2 * net.weights[0])
    assert torch.equal(doubled[1].values, 2 * BLOCKS.values)
    arguments: dict[str, Any] = {"net": net, "x": np.zeros(2), "layer": nn.BatchNorm1d(2), "nan": torch.tensor(math.nan), "n": 3}
    before = snapshot(arguments)
    assert changed(arguments, before) == ""
    arguments["layer"].running_mean += 1
    assert changed(arguments, before) == "layer"
    with pytest.raises(TypeError, match="cannot be made from weights"):
        rebuilt(nn.Flatten(), [])
    with pytest.raises(TypeError, match="a BatchNorm1d cannot be written down"):
        written(arguments["layer"])


def test_changed_arguments_get_their_numbers_back() -> None:
    def resize(arguments: dict[str, Any]) -> None:
        arguments["resized"].data = torch.zeros(5, dtype=torch.float64)

    def expand(arguments: dict[str, Any]) -> None:
        arguments["base"] += 1

    def array(arguments: dict[str, Any]) -> None:
        arguments["array"] += 1

    def weights(arguments: dict[str, Any]) -> None:
        arguments["net"].weights[0].data *= 3

    def buffer(arguments: dict[str, Any]) -> None:
        arguments["layer"].running_mean += 1

    def shorter(arguments: dict[str, Any]) -> None:
        arguments["list"].pop()

    for change, name in ((resize, "resized"), (expand, "expanded"), (array, "array"), (weights, "net"), (buffer, "layer")):
        base = torch.zeros(1)
        arguments: dict[str, Any] = {"resized": torch.ones(2), "expanded": base.expand(3), "array": np.zeros(2), "layer": nn.BatchNorm1d(2)}
        arguments |= {"net": LinearCNN(1, (2,), 1, (2,))}
        before = snapshot(arguments)
        change(arguments | {"base": base})
        assert changed(arguments, before) == name
        restore(arguments, before)
        assert changed(arguments, before) == ""
    tensors = {"list": [torch.ones(2), torch.ones(3)]}
    before = snapshot(tensors)
    shorter(tensors)
    restore(tensors, before)
    assert changed(tensors, before) == "list"


# Proofs by enclosure


def test_enclosures_prove_or_refute_an_inequality() -> None:
    values = conv_singular_values(torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), (4,), enclose=True)
    passed = proved_at_most("σ", values, Fraction(2001, 1000))
    assert (passed.outcome, passed.scope) == ("pass", "exact")
    assert check(lambda: iter([passed])).scope.startswith("exact")
    assert proved_at_most("σ", values, 2).outcome == "inconclusive"
    failed = proved_at_most("σ", values, 1.999)
    assert failed.outcome == "fail"
    assert failed.error > 0
    assert proved_at_most("σ", [-1.0] * 4, conv_singular_values(torch.ones(1, 1, 1), (4,), enclose=True)).outcome == "invalid"  # shapes
    assert proved_at_most("thirds", Fraction(1, 3), Fraction(1, 3)).outcome == "inconclusive"  # no double is a third
    assert proved_at_most("thirds", Fraction(1, 3), Fraction(334, 1000)).outcome == "pass"
    assert proved_at_most("counts", 2**60, 2**60 + 2**9).outcome == "pass"
    assert proved_at_most("nan", math.nan, 1.0).outcome == "inconclusive"
    assert proved_at_most("shape", [1.0, 2.0], [3.0]).outcome == "invalid"
    assert proved_at_most("empty", [], 3.0).vacuous


# The command line

PROGRAM = '''"""A kernel and a network, planted and false.

$0 < 1$. Source: none."""
from collections.abc import Iterator
from typing import Annotated
from torch import Tensor
import linconv as lc
from linconv import strategies
from linconv.claims import Check, at_most, main

Kernel = Annotated[Tensor, strategies.predictors(grid=(2,))]
Network = Annotated[lc.LinearCNN, strategies.linear_cnns(grid=(2,))]


def claim(*, w: Kernel, net: Network) -> Iterator[Check]:
    yield at_most("entries", w.abs().max() + net.depth, 3.0)

if __name__ == "__main__":
    main(claim)
'''


def test_a_witness_of_tensors_is_replayed_in_a_fresh_process_and_as_a_program(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(file), "--falsify=30", "--seed=2", "--json", str(tmp_path / "v.json")]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    document = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert "replayed in a fresh process; search with seed 2, 30 examples; reproduce with: " in document["reason"]
    assert "planted.py --falsify=30 --seed=2\n" in ended.stdout
    assert document["seed"] is None
    assert float(read(document["witness"]["w"]).abs().max()) + read(document["witness"]["net"]).depth > 3
    program = (tmp_path / "v.witness.py").read_text(encoding="utf-8")
    assert program in ended.stdout
    again = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert again.stdout.startswith("planted: REFUTED")


def run(argv: list[str], capsys: pytest.CaptureFixture[str], claim: Callable[..., Iterator[Check]] = holds) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(claim, argv)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_falsify_at_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(["--falsify", "30", "--json", str(tmp_path / "v.json")], capsys)
    assert (code, err) == (0, "")
    assert "linconv.claims.falsify(holds, budget=30)" in out
    assert "no counterexample: 30 examples" in out
    assert os.listdir(tmp_path) == ["v.json"]
    for wrong in (["--falsify", "5m"], ["--falsify=0"], ["--falsify=5", "--seed=-1"], ["--falsify"], ["--falsify=5", "--n=100"]):
        code, out, err = run(wrong, capsys)
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--falsify" in run(["--help"], capsys)[1]


def test_claims_that_cannot_be_searched_at_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def undeclared(*, n: int = 3) -> Iterator[Check]:
        yield agree("n", n, n)

    def empty(*, w: Annotated[Tensor, st.just(torch.ones(1)).filter(lambda w: False)]) -> Iterator[Check]:
        yield agree("w", w, w)

    for claim, words in ((undeclared, "has no domain"), (empty, "their filters reject everything")):
        code, out, err = run(["--falsify=5"], capsys, claim)
        assert (code, out, err.count("\n")) == (5, "", 1)
        assert words in err


def test_the_json_of_a_drawn_run_names_its_tensors() -> None:
    found = check(drawn, seed=3, scale=0.0)
    assert found.seed == 3
    assert to_json(found)["parameters"] == {"w": "<Tensor>", "scale": 0.0}


def test_the_json_has_the_notes() -> None:
    def claim() -> Iterator[Check | Note]:
        yield Note("solved in 3 steps")
        yield agree("one", 1, 1)
        yield Note("for odd grids", in_scope=True)
        yield CAUGHT

    assert to_json(check(claim))["notes"] == ["solved in 3 steps", "for odd grids"]
    assert to_json(check(holds))["notes"] == []
