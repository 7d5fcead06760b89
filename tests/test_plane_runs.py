"""Networks on two pixels of 28×28 sites: what they are trained on, how their stability is measured, and what judges them."""

import copy
import math

import pytest
import torch
from torch import nn

from linconv.claims import Check
from linconv.filter_energies import laplacian_energies
from linconv.pooling import MOVES, move_pixels
from verification import _plane_runs
from verification._plane_runs import DRAWS, network, plane_tasks, run_plane
from verification._plane_runs import data as plane_data
from verification._plane_runs import stabilities as plane_stabilities
from verification._sweeping import untrained
from verification.filter_pooling import joint, plane_checks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_runs_on_the_plane_hold_out_distances_and_repeat():
    (x, y), (x_test, y_test) = plane_data(200, 100, seed=1)
    assert (len(x), len(x_test)) == (200, 100)
    seen = []
    for images, classes in ((x, y), (x_test, y_test)):
        places = images.nonzero()[:, 2:].view(-1, 2, 2).double()
        distances = (places[:, 0] - places[:, 1]).norm(dim=1)
        assert torch.equal(classes, (distances < 14).long())
        seen.append({round(float(d) ** 2) for d in distances})
    assert not seen[0] & seen[1]
    task = plane_tasks("tiny", 0)[0]
    first = run_plane(**task)
    assert first == run_plane(**task)
    weights = (layer.weight.detach().double() for layer in network(task["width"], task["seed"]) if isinstance(layer, nn.Conv2d))
    assert first["energies"][0] == [laplacian_energies(weight)[1].tolist() for weight in weights]
    assert first["energies"][1] != first["energies"][0]


def test_a_run_that_diverged_says_so(monkeypatch):
    monkeypatch.setattr(_plane_runs, "STEP_SIZE", 1e9)
    result = run_plane(**plane_tasks("tiny", 0)[0])
    assert result["diverged"]
    assert "after" not in result
    assert "test_accuracy" not in result


@pytest.mark.parametrize("moves", MOVES)
def test_stability_on_the_plane_is_that_of_its_definition(moves):
    """D of a linear network by all pairs of images; G of the input's copy is D, as noise is as large as moves."""
    (x, _), _ = plane_data(30, 10, seed=0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten())
    net[0].weight.data.copy_(torch.randn(2, 1, 3, 3, generator=seeded()))
    found = plane_stabilities(net, x, moves, 1, 0)
    generator = seeded(0)
    moved = torch.cat([move_pixels(x, moves=moves, generator=generator) for _ in range(DRAWS)]).double()
    f = copy.deepcopy(net).double()
    here, there = f(x.double()).detach(), f(moved).detach()
    spread = torch.stack([(a - b).square().sum() for a in here for b in here]).sum() / (len(x) * (len(x) - 1))
    d = math.log(float((there - here.repeat(DRAWS, 1)).square().sum(1).mean() / spread))
    assert math.isclose(found["D"][0], d, rel_tol=1e-4, abs_tol=1e-4)
    assert found["D"][0] == found["D"][1]
    assert found["R"][0] == pytest.approx(found["D"][0] - found["G"][0])


def test_noise_is_as_large_as_moves():
    (x, _), _ = plane_data(30, 10, seed=0)
    still = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten())  # a ReLU that noise meets: not the identity
    still[0].weight.data.fill_(1.0)
    linear = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten())
    linear[0].weight.data.fill_(1.0)
    # Five standard errors of the noise's norm, 2·2·30·784 squares.
    assert abs(plane_stabilities(linear, x, "step", 1, 0)["R"][0]) < 5 * math.sqrt(2 / (DRAWS * 30 * 784))
    assert plane_stabilities(still, x, "step", 1, 0)["R"][0] > math.log(1.5)


def test_shuffled_copies_are_compared_with_the_network(monkeypatch):
    """The other network given in the place of a shuffled copy: the same moves and the same noise meet both."""
    (x, _), _ = plane_data(20, 10, seed=0)
    own, other = (network(2, seed) for seed in (0, 1))
    a, b = (plane_stabilities(net, x, "stay", 1, 0) for net in (own, other))
    monkeypatch.setattr(_plane_runs, "shuffle_channels", lambda *_: other)
    found = plane_stabilities(own, x, "stay", 2, 0)
    for name in "DR":
        expected = [there - here for here, there in zip(a[name], b[name], strict=True)]
        assert found[f"shuffled_{name}"] == pytest.approx(expected, abs=1e-9)
        assert all(abs(value) > 1e-3 for value in expected)


def plane_record(seed, change, error, shuffled=0.0):
    zeros = [0.0, 0.01 * seed, 0.0]
    layers = dict.fromkeys(("D", "G", "R", "shuffled_D", "shuffled_R"), zeros)
    after = (
        layers
        | {"shuffled_D": [0.0, shuffled + 0.01 * seed, 0.0]}
        | {"R": [0.0, 0.0, 0.01 * seed - change], "G": [0.0, 0.0, change - 0.01 * seed]}
    )
    energies = [[[1.0, 1.0]] * 2, [[math.e + 0.01 * seed, 1.0]] * 2]
    result = {"before": {"stay": layers, "step": layers}, "after": {"stay": after, "step": after}, "energies": energies}
    result |= {"diverged": False, "train_accuracy": 1.0, "test_accuracy": 1 - error}
    return {"parameters": {"samples": 64, "probes": 100}, "result": result}


def test_planted_plane_runs_are_judged():
    falling = [plane_record(seed, 3.0 - seed, 0.1 + 0.1 * seed) for seed in range(6)]
    alike = [plane_record(seed, 3.0, 0.1 + 0.05 * seed) for seed in range(6)]
    found = {check.name: check for check in plane_checks(alike) if isinstance(check, Check)}
    assert all(check.passed for check in found.values() if check.required and not check.control)
    assert not any(check.passed for check in found.values() if check.control)
    correlated = [check for check in plane_checks(falling) if isinstance(check, Check) and "correlation" in check.name]
    assert [check.outcome for check in correlated] == ["pass", "pass"]
    none = [plane_record(seed, 0.0, 0.1 + 0.1 * seed) for seed in range(6)]
    lowers = [check for check in plane_checks(none) if isinstance(check, Check) and check.required and "lowers" in check.name]
    assert [check.outcome for check in lowers] == ["fail", "fail"]
    for shuffled, outcome in ((1.0, "fail"), (-1.0, "pass")):
        kept = plane_checks([plane_record(seed, 3.0, 0.1 + 0.05 * seed, shuffled) for seed in range(6)])
        raises = [check for check in kept if isinstance(check, Check) and "raise D of hidden" in check.name]
        assert [check.outcome for check in raises] == [outcome, outcome]
    diverged = [{"parameters": {}, "result": {"diverged": True}}] * 4
    assert [check.outcome for check in plane_checks(diverged)] == ["inconclusive"]
    assert "did not learn" in untrained(joint(diverged), 0.8)
