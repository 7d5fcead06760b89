"""False claims of graded difficulty: each is refuted within its budget, by a minimal witness, the same one for the same seed."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Interval
from torch import Tensor

from linconv import strategies
from linconv.claims import Check, agree, at_most, control, falsify
from linconv.cost import representation_cost
from linconv.network import LinearCNN, circular_convolution
from linconv.spectrum import conv_singular_values, frequency_blocks

Seed = Annotated[int, Interval(ge=0, le=10**6)]
Kernel = Annotated[Tensor, strategies.predictors(grid=(4,))]
Claim = Callable[..., Iterator[Check]]
WEIGHT = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LARGEST = conv_singular_values(WEIGHT, (3, 4)).max()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Witnesses are replayed here: a fresh process, which takes seconds to start, is tested once, in test_search."""
    monkeypatch.setattr("linconv.claims.runner.replayable", lambda *_: False)


def blind(measure: float) -> Claim:
    """False on a set of seeds of this measure, and nothing tells how near one is."""

    def claim(*, seed: Seed = 0) -> Iterator[Check]:
        yield agree("count", 1 + (random.Random(seed).random() < measure), 1)

    return claim


def narrow(measure: float) -> Claim:
    """False on an interval of this length, and the distance to it can be felt."""
    centre = math.sqrt(2) - 1

    def claim(*, x: Annotated[float, Interval(ge=0, le=1)] = 0.5) -> Iterator[Check]:
        yield at_most("a parabola", 1 - (x - centre) ** 2, 1 - measure**2 / 4, scale=1.0)

    return claim


def parseval_by_half_the_spectrum(*, side: Annotated[int, Interval(ge=2, le=16)] = 4, seed: Seed = 0) -> Iterator[Check]:
    """The last frequency of the half spectrum counts once: true of even grids only."""
    signal = torch.randn(side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    power = torch.fft.rfft(signal).abs().square()
    yield agree("energy", 2 * power.sum() - power[0] - power[-1], side * signal.square().sum())
    yield control("all frequencies once", agree("energy", power.sum(), side * signal.square().sum()))


def blocks_have_full_rank(*, beta: Kernel) -> Iterator[Check]:
    """False where some block is singular, which random numbers never are."""
    values = frequency_blocks(LinearCNN.from_weights([beta], (4,))).singular_values()
    yield agree("rank", int((values > 1e-9 * values.max()).sum()), values.numel())
    yield control("one more", agree("rank", int((values > 1e-9 * values.max()).sum()), values.numel() + 1))


def powers_stop_at_four(*, depth: Annotated[int, Interval(ge=1, le=8)] = 2, seed: Seed = 0) -> Iterator[Check]:
    """False for depths of five and more."""
    x = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    yield agree("powers", x**depth, x ** min(depth, 4))


def a_convolution_loses_a_thousandth(*, x: Annotated[Tensor, strategies.images(channels=2, grid=(3, 4), max_images=1)]) -> Iterator[Check]:
    """‖w ⋆ x‖ ≤ 0.999 σ₁ ‖x‖ for one fixed w: false only close to one singular vector."""
    yield at_most("norm", circular_convolution(x, WEIGHT).norm(), 0.999 * LARGEST * x.norm())
    yield control("a hundredth", at_most("norm", 100 * x.norm(), x.norm()))


def only_in_one_mode(*, mode: Literal["a", "b"] = "a", wide: bool = False, seed: Seed = 0) -> Iterator[Check]:
    yield agree("count", 1 + (mode == "b" and wide), 1)


def rectangles(*, grid: tuple[Annotated[int, Interval(ge=1, le=6)], Annotated[int, Interval(ge=1, le=6)]] = (3, 3)) -> Iterator[Check]:
    """Height and width exchanged: true of squares only."""
    yield agree("sites", [grid[0] ** 2 * grid[1]], [grid[1] ** 2 * grid[0]])


def networks_are_shallow(*, net: Annotated[LinearCNN, strategies.linear_cnns(max_depth=6, max_channels=2, grid=(2,))]) -> Iterator[Check]:
    yield at_most("depth", net.depth, 4)


def the_cost_of_two_layers_is_that_of_the_weights(*, beta: Annotated[Tensor, strategies.predictors(grid=(3,))]) -> Iterator[Check]:
    """2 ‖β‖ is the cost of depth 2 only where all singular values are alike up to one."""
    if not bool(beta.any()):
        yield agree("nothing", 0.0, 0.0)
        return
    yield agree("cost", representation_cost(beta, 2).lower, 2 * beta.norm())


ONE_SEED = ("measure 1e-3", "measure 1e-4", "ratio 0.999")  # they take seconds each

CASES: list[tuple[str, Claim, int, Callable[[dict[str, Any]], bool]]] = [
    ("measure 1e-1", blind(1e-1), 150, lambda w: True),
    ("measure 1e-2", blind(1e-2), 1_500, lambda w: True),
    ("measure 1e-3", blind(1e-3), 12_000, lambda w: True),
    ("measure 1e-4", blind(1e-4), 60_000, lambda w: True),
    ("interval 1e-1", narrow(1e-1), 100, lambda w: len(repr(w["x"])) <= 4),
    ("interval 1e-2", narrow(1e-2), 400, lambda w: len(repr(w["x"])) <= 5),
    ("interval 1e-3", narrow(1e-3), 400, lambda w: len(repr(w["x"])) <= 6),
    ("interval 1e-4", narrow(1e-4), 400, lambda w: len(repr(w["x"])) <= 7),
    ("odd grids", parseval_by_half_the_spectrum, 50, lambda w: w == {"side": 3, "seed": 0}),
    ("rank deficiency", blocks_have_full_rank, 50, lambda w: not w["beta"].any() and w["beta"].numel() == 4),
    ("depth 5", powers_stop_at_four, 50, lambda w: w == {"depth": 5, "seed": 0}),
    ("ratio 0.999", a_convolution_loses_a_thousandth, 200, lambda w: w["x"].shape == (1, 2, 3, 4)),
    ("one mode", only_in_one_mode, 50, lambda w: w == {"mode": "b", "wide": True, "seed": 0}),
    ("rectangles", rectangles, 50, lambda w: sorted(w["grid"]) == [1, 2]),
    ("deep networks", networks_are_shallow, 60, lambda w: w["net"].depth == 5 and all(p.numel() <= 2 for p in w["net"].weights)),
    ("cost", the_cost_of_two_layers_is_that_of_the_weights, 50, lambda w: w["beta"].numel() <= 3),
]


@pytest.mark.parametrize(("name", "claim", "budget", "is_minimal"), CASES, ids=[case[0] for case in CASES])
def test_planted_claims_are_refuted_within_their_budget(
    name: str, claim: Claim, budget: int, is_minimal: Callable[[dict[str, Any]], bool]
) -> None:
    for seed in (0,) if name in ONE_SEED else (0, 1):
        verdict = falsify(claim, budget=budget, seed=seed)
        assert verdict.verdict == "REFUTED", verdict.reason + verdict.scope
        assert verdict.witness is not None
        assert is_minimal(verdict.witness), verdict.witness


@pytest.mark.parametrize("claim", [blind(1e-2), narrow(1e-2), the_cost_of_two_layers_is_that_of_the_weights])
def test_a_search_is_determined_by_its_seed(claim: Claim) -> None:
    first, second = (falsify(claim, budget=1500, seed=3) for _ in range(2))
    assert (first.verdict, first.reason) == (second.verdict, second.reason)


def test_what_is_not_there_is_not_found() -> None:
    """The same claims with nothing planted."""
    for claim in (blind(0.0), narrow(0.0)):
        assert falsify(claim, budget=300).verdict == "HOLDS"
