"""theorem410 on a library with a planted error must not say HOLDS; and what its verdict is at the edges of its hypotheses."""

import dataclasses
import math
import sys

import pytest
import torch

import linconv as lc
from linconv import cost, penalties, spectrum, training
from linconv.claims import UsageError
from linconv.claims.replay import REPLAYING
from linconv.losses import CrossEntropy, Logistic, loss_of
from linconv.solvers.problem import Problem
from verification._networks import network
from verification._setting import contested_decay, prepare
from verification.theorem410 import FAST, gradient_distance

SMALL = {"grid": (2, 3), "samples": 60}


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
    size = {} if plant is local_minimum_for_global else SMALL  # where the two minima do not differ
    assert verdict(**size).verdict in ("REFUTED", "INVALID")


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
        ({"data": "no-such-folder"}, "^data: .*no-such-folder"),
        ({"outputs": 1, "loss": "cross-entropy"}, "^outputs: cross-entropy .* got 1"),
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


# --- Other losses ------------------------------------------------------------------------------------------------------

KINDS = {"cross-entropy": CrossEntropy, "logistic": Logistic}


def setting_of(data, loss, depth=2, outputs=None):
    generator = torch.Generator().manual_seed(0)
    options = {"grid": (3, 4), "samples": 100, "channels": None, "outputs": outputs, "depth": depth, "hidden": 3, "weight_decay": None}
    return prepare(data, **options, whiten=False, generator=generator, loss=loss)


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_networks_with_other_losses(depth, loss):
    found = verdict(depth=depth, loss=loss, **SMALL)
    assert found.holds
    letters = {"(a)", "(b)", "(c)", "(d)"} | ({"(e)", "(f)"} if depth == 2 else set())
    assert {check.name[:3] for check in found.checks if check.required} == letters
    assert any(check.scope == "certified" for check in found.checks)
    assert min(control.violation for control in found.controls) > 100
    assert any("squared error" in control.name for control in found.controls)


def test_deep_networks_with_cross_entropy_are_inconclusive_with_the_interval():
    found = verdict(depth=3, loss="cross-entropy", grid=(2, 2), samples=40)
    assert found.verdict == "INCONCLUSIVE"
    assert "bounds too far apart" in found.reason
    assert not [check for check in found.checks if check.outcome in ("fail", "invalid")]


def penalty_of_another_depth(monkeypatch, kind):
    monkeypatch.setattr(Problem, "mu", property(lambda self: self.weight_decay * self.depth))


def conjugate_too_low(monkeypatch, kind):
    right = kind.conjugate
    monkeypatch.setattr(kind, "conjugate", lambda self, z, y: right(self, z, y) - 0.01 * len(z))


def trained_on_the_mean_over_outputs(monkeypatch, kind):
    class Mean(kind):
        def value(self, f, y):
            return super().value(f, y) / f.shape[1]

    monkeypatch.setattr(training, "loss_of", lambda name: Mean())


@pytest.mark.parametrize(
    ("plant", "loss"),
    [
        (penalty_of_another_depth, "cross-entropy"),
        (conjugate_too_low, "cross-entropy"),
        (trained_on_the_mean_over_outputs, "cross-entropy"),
        (trained_on_the_mean_over_outputs, "logistic"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_error_planted_in_another_loss_does_not_hold(plant, loss, monkeypatch):
    monkeypatch.setenv(REPLAYING, "1")
    plant(monkeypatch, KINDS[loss])
    found = verdict(depth=2, loss=loss, **SMALL).verdict
    assert found in ("REFUTED", "INVALID")


@pytest.mark.parametrize("data", ["photos", "designed"])
def test_targets_of_cross_entropy_are_distributions(data):
    for outputs in (None, 2, 3):
        setting = setting_of(data, "cross-entropy", outputs=outputs)
        assert not setting.decoupled
        assert torch.equal(setting.y.sum(1), torch.ones(100, dtype=torch.float64))
        assert set(setting.y.unique().tolist()) == {0, 1}
        assert (setting.y.sum(0) > 0).all()
        assert outputs is None or setting.y.shape[1] == outputs


def test_the_last_output_of_cross_entropy_stands_for_all_other_classes():
    every, merged = setting_of("photos", "cross-entropy").y, setting_of("photos", "cross-entropy", outputs=3).y
    assert torch.equal(merged, torch.cat([every[:, :2], every[:, 2:].sum(1, keepdim=True)], 1))
    logistic = setting_of("photos", "logistic", outputs=3).y
    assert torch.equal(logistic, every[:, :3])


def test_one_class_of_cross_entropy_is_a_usage_error():
    with pytest.raises(UsageError, match="at least 2 classes"):
        verdict(loss="cross-entropy", outputs=1)


@pytest.mark.parametrize("loss", KINDS)
def test_the_chosen_weight_decay_of_another_loss_leaves_half_of_the_components(loss):
    setting = setting_of("photos", loss)
    best = lc.fit(setting.x, setting.y, depth=2, weight_decay=setting.weight_decay, loss=loss)
    sigma = lc.FrequencyBlocks.from_predictor(best.predictor).singular_values()
    assert 0.25 < float((sigma > 1e-9).to(torch.float64).mean()) < 0.75


@pytest.mark.parametrize("loss", ["squared", *KINDS])
def test_the_default_curvature_of_the_chosen_decay_is_that_of_the_loss(loss):
    """Halving the images multiplies their second moment by a quarter, as the curvature of the logistic loss does."""
    setting = setting_of("photos", loss, depth=1)
    curvature = {"squared": 1.0, "cross-entropy": 1 / 5, "logistic": 0.25}[loss]
    assert setting.weight_decay == pytest.approx(curvature * contested_decay(setting.x, setting.y, 1), rel=1e-12)
    d = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    zero, y = torch.zeros_like(d), setting.y[:1]
    torch.testing.assert_close(loss_of(loss).curvature(zero, y, d), curvature * d, rtol=1e-15, atol=0)


@pytest.mark.parametrize("loss", ["squared", *KINDS])
def test_distance_of_gradients_is_within_the_gap(loss):
    """(d): F − F* is at least the distance to the optimum, for any predictor; for squared error of outputs, with equality of form."""
    setting = setting_of("photos", loss)
    best = lc.fit(setting.x, setting.y, depth=2, weight_decay=setting.weight_decay, loss=loss)
    for scale in (0.3, 1.0):
        net = network(setting, torch.Generator().manual_seed(1), scale=scale)
        beta = lc.frequency_blocks(net).predictor().detach()
        value = float(training.objective(net, setting.x, setting.y, setting.weight_decay, loss).detach())
        distance = gradient_distance(setting, beta, best.predictor)
        assert 0 < distance**0.5 <= (value - best.lower_bound) ** 0.5 + (best.objective - best.lower_bound) ** 0.5
    if loss == "squared":
        outputs = setting.x.flatten(1) @ (beta - best.predictor).flatten(1).T
        assert distance == pytest.approx(float(outputs.square().sum()) / 200, rel=1e-12)
