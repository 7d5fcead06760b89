"""theorem410 on a library with a planted error must not say HOLDS; and what its verdict is at the edges of its hypotheses."""

import dataclasses
import math
import sys

import pytest
import torch

import linconv as lc
from linconv import cost, penalties, spectrum
from linconv.claims import UsageError
from linconv.claims.replay import REPLAYING
from linconv.solvers.problem import Problem
from verification._setting import contested_decay, prepare
from verification.theorem410 import FAST

pytestmark = pytest.mark.xdist_group("theorem410")


def verdict(**parameters):
    return lc.check("theorem410", **{**FAST, **parameters})


def without_sites(monkeypatch):
    right = cost._schatten_cost
    monkeypatch.setattr(cost, "_schatten_cost", lambda sigma, depth: right(sigma, depth) * math.prod(sigma.shape[:-1]))


def unbalanced(monkeypatch):
    right = cost.conjugate_svd

    def wrong(blocks):
        left, sigma, values = right(blocks)
        return 2 * left, sigma, values / 2

    monkeypatch.setattr(cost, "conjugate_svd", wrong)


def depth_factor_dropped(monkeypatch):
    monkeypatch.setattr(Problem, "mu", property(lambda self: self.weight_decay * self.depth))


def local_minimum_for_global(monkeypatch):
    right = penalties.shrink

    def wrong(y, step, p):  # keeps components as long as they have a nonzero branch: the threshold m_loc in the place of m*
        lowest = (step * p * (1 - p)) ** (1 / (2 - p))
        root = lowest + step * p * lowest ** (p - 1)
        return torch.where(y > root, torch.maximum(right(y, step, p), lowest.expand_as(y)), 0.0)

    # The package's attribute of this name is the function, not the module.
    monkeypatch.setattr(sys.modules["linconv.solvers.decoupled"], "shrink", wrong)


def readout_not_conjugated(monkeypatch):
    right = spectrum.FrequencyBlocks.predictor
    monkeypatch.setattr(
        spectrum.FrequencyBlocks, "predictor", lambda self: right(dataclasses.replace(self, values=self.values.conj().resolve_conj()))
    )


def transposed_kernels(monkeypatch):
    right = lc.LinearCNN.forward
    monkeypatch.setattr(lc.LinearCNN, "forward", lambda self, x: right(self, x.flip(tuple(range(2, x.ndim)))))


@pytest.mark.parametrize(
    "plant",
    [without_sites, unbalanced, depth_factor_dropped, local_minimum_for_global, readout_not_conjugated, transposed_kernels],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_error_does_not_pass(plant, monkeypatch):
    monkeypatch.setenv(REPLAYING, "1")  # a fresh process would not have the error
    plant(monkeypatch)
    assert verdict().verdict in ("REFUTED", "INVALID")


def test_defaults_have_the_power_that_the_rules_ask_for():
    found = verdict()
    assert found.holds
    assert len(found.controls) >= 12
    assert min(control.violation for control in found.controls) > 100
    letters = {check.name[:3] for check in found.checks if check.required}
    assert letters == {"(a)", "(b)", "(c)", "(d)", "(e)", "(f)"}
    assert any(check.scope == "certified" for check in found.checks)


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_networks_on_photographs_as_they_are(depth):
    assert verdict(depth=depth).holds


def test_one_dimension_and_three():
    assert verdict(data="designed", grid=(7,), depth=4).holds
    assert verdict(data="designed", grid=(2, 3, 2), channels=2, outputs=2).holds


def test_a_hidden_layer_that_is_too_narrow_has_the_rank_limited_optimum():
    assert verdict(hidden=1).holds


@pytest.mark.parametrize(("grid", "seed"), [((3, 4), 0), ((2, 3), 1)])
def test_what_cannot_be_certified_is_said_so(grid, seed):
    found = verdict(whiten=False, grid=grid, seed=seed)
    assert found.verdict == "INCONCLUSIVE"
    assert "bounds too far apart" in found.reason


@pytest.mark.parametrize("weight_decay", [10.0, 1e-12])
def test_a_weight_decay_that_leaves_nothing_to_test_is_not_applicable(weight_decay):
    assert verdict(weight_decay=weight_decay).verdict == "NOT APPLICABLE"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"samples": 20}, "N ≥ C·D"),
        ({"channels": 2}, "channels: photos has 3"),
        ({"outputs": 6}, "outputs: photos has 5"),
        ({"data": "no-such-folder"}, "no-such-folder"),
        ({"grid": (4,)}, "grid"),
    ],
)
def test_data_that_do_not_fit_are_a_usage_error(parameters, message):
    with pytest.raises(UsageError, match=message):
        verdict(**parameters)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_chosen_weight_decay_keeps_some_components_and_drops_others(depth):
    setting = prepare(
        "designed",
        grid=(3, 4),
        samples=100,
        channels=2,
        outputs=3,
        depth=depth,
        hidden=3,
        weight_decay=None,
        whiten=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert setting.weight_decay == contested_decay(setting.x, setting.y, depth)
    best = lc.fit(setting.x, setting.y, depth=depth, weight_decay=setting.weight_decay)
    sigma = lc.FrequencyBlocks.from_predictor(best.predictor).singular_values()
    alive = float((sigma > 1e-9).to(torch.float64).mean())
    assert alive == 1 if depth == 1 else 0.25 < alive < 0.75
