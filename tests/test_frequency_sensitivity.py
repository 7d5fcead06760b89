"""The claim about sensitivities: its statistics on curves that are known, its runs, and parameters that do not fit."""

import pytest
import torch
from matplotlib.figure import Figure as Drawing

from linconv.claims import Check, Figure, UsageError, check
from linconv.statistics import total_variation
from verification import _sensitivity_runs as runs
from verification import frequency_sensitivity as claim

RADII = torch.tensor([0.0, 1.0, 2**0.5, 2.0, 5**0.5], dtype=torch.float64)


def record(curve, *, high, seed=0, depth=2, decay=1e-5, noise=0.0, family="conv", labels="true"):
    generator = torch.Generator().manual_seed(seed + 100 * high)
    curves = torch.as_tensor(curve, dtype=torch.float64) * (1 + noise * torch.rand(4, len(RADII), dtype=torch.float64, generator=generator))
    parameters = {"high": high, "seed": seed, "depth": depth, "decay": decay, "family": family, "labels": labels}
    flat = [[1.0] * len(RADII)] * 4
    return {"parameters": parameters, "result": {"before": flat, "after": curves.tolist(), "test_accuracy": 0.5}}


NATURAL, HIGH = [8.0, 4.0, 2.0, 1.0, 0.5], [0.0, 0.0, 0.1, 3.0, 4.0]
SPECTRA = torch.stack([claim.masses(torch.tensor(curve, dtype=torch.float64), RADII) for curve in (NATURAL, HIGH)])


def generator():
    return torch.Generator().manual_seed(0)


def test_masses_make_the_trapezoidal_rule_a_sum():
    p, q = (torch.tensor(curve, dtype=torch.float64) for curve in (NATURAL, HIGH))
    assert claim.masses(p, RADII).sum() == pytest.approx(1)
    assert float((SPECTRA[0] - SPECTRA[1]).abs().sum() / 2) == pytest.approx(total_variation(p, q, RADII))
    assert torch.allclose(claim.masses(3 * p, RADII), claim.masses(p, RADII))


def test_networks_that_follow_their_data_are_told_from_those_that_do_not():
    own = [record(NATURAL if not high else HIGH, high=high, seed=s, noise=0.1) for s in range(4) for high in (False, True)]
    other = [record(HIGH if not high else NATURAL, high=high, seed=s, noise=0.1) for s in range(4) for high in (False, True)]
    distance = total_variation(*(torch.tensor(curve, dtype=torch.float64) for curve in (NATURAL, HIGH)), RADII)
    follow = claim.following(claim.pairs(own), "after", SPECTRA, RADII, generator())
    against = claim.following(claim.pairs(other), "after", SPECTRA, RADII, generator())
    assert distance - 0.05 < follow.low < follow.high
    assert follow.estimate == pytest.approx(distance, abs=0.05)
    assert against.estimate == pytest.approx(-distance, abs=0.05)
    flat = claim.following(claim.pairs(own), "before", SPECTRA, RADII, generator())
    assert (flat.low, flat.estimate, flat.high) == pytest.approx((0, 0, 0), abs=1e-12)  # one curve cannot be nearer to both


def test_pairs_differ_in_the_images_alone():
    records = [record(NATURAL, high=high, seed=s, depth=d) for high in (False, True) for s in range(2) for d in (1, 2)]
    found = claim.pairs(records[:-1])
    assert len(found) == 3
    for natural, high in found:
        assert not natural["parameters"]["high"]
        assert high["parameters"] == natural["parameters"] | {"high": True}


def outcome(records, name):
    checks = claim.trend_checks(records, SPECTRA, RADII, (1, 2, 4), 2, (1e-5, 1e-3), generator())
    return {c.name: c.outcome for c in checks}[name]


def mixtures(weights, **fixed):
    """Networks whose curve is nearer to the natural spectrum, the smaller the weight of a flat one."""
    natural = torch.tensor(NATURAL, dtype=torch.float64)
    return [
        record((1 - w) * natural + w * natural.mean(), high=False, seed=s, noise=0.02, **parameters, **fixed)
        for parameters, w in weights
        for s in range(4)
    ]


def test_trends_pass_fail_and_stay_open():
    falling = mixtures([({"depth": 1}, 0.9), ({"depth": 2}, 0.5), ({"depth": 4}, 0.1)])
    rising = mixtures([({"depth": 1}, 0.1), ({"depth": 2}, 0.5), ({"depth": 4}, 0.9)])
    level = mixtures([({"depth": depth}, 0.5) for depth in (1, 2, 4)])
    name = "(b) 2: nearer with depth: fall of d a unit"
    assert [outcome(records, name) for records in (falling, rising, level)] == ["pass", "fail", "inconclusive"]
    for records in (falling, rising, level):
        assert outcome(records, "(b) 2: nearer with depth: a rise by 1 a unit planted") == "fail"
    decays = mixtures([({"decay": 1e-5}, 0.9), ({"decay": 1e-3}, 0.1)])
    assert outcome(decays, "(b) 3: nearer with weight decay: fall of d a unit") == "pass"


def test_runs_that_diverged_are_left_out():
    alive, dead = record(NATURAL, high=False), record(NATURAL, high=False, seed=1)
    dead["result"]["after"] = None
    assert runs.select([alive, dead], family="conv") == [alive]
    assert outcome([dead], "(b) 2: nearer with depth") == "inconclusive"


@pytest.mark.parametrize("preset", sorted(runs.PRESETS))
def test_every_network_meets_both_kinds_of_images_with_every_seed(preset):
    p, tasks = runs.PRESETS[preset], runs.tasks_of(preset, "photos", 7)
    assert len({str(task) for task in tasks}) == len(tasks)
    natural, high = ([{k: v for k, v in t.items() if k != "high"} for t in tasks if t["high"] == kind] for kind in (False, True))
    assert natural == high
    assert {task["seed"] for task in tasks} == set(range(7, 7 + p.seeds))
    assert {t["depth"] for t in tasks if t["family"] == "conv"} == {*p.depths, p.depth}
    assert {t["decay"] for t in tasks if t["family"] == "conv"} == set(p.decays)


def test_high_pass_images_have_no_low_frequencies():
    train, _ = runs.prepare("photos", 8, 40, True)
    radii, values = runs.spectrum_curve(train.images)
    assert float(values[radii <= 2].max()) < 1e-4 * float(values.max())
    assert train.images.dtype == torch.float32
    assert train.images.std((0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_a_tiny_run_from_images_to_figure(monkeypatch, tmp_path):
    monkeypatch.setitem(runs.PRESETS, "smoke", runs.Preset(8, 60, 1, 20, 2, 3, (1, 2), 2, (1e-5, 1e-3), (), 4))
    store = tmp_path / "runs.jsonl"
    events = list(claim.claim(preset="smoke", jobs=1, store=str(store)))
    checks = [event for event in events if isinstance(event, Check)]
    linear = [c for c in checks if c.name.startswith("(a)")]
    assert [c.outcome for c in linear if not c.control] == ["pass"] * 4
    assert [c.outcome for c in linear if c.control] == ["fail"] * 8
    assert sum(c.required for c in checks) == 7
    assert len(store.read_text().splitlines()) == 16
    (drawn,) = [event.draw() for event in events if isinstance(event, Figure)]
    assert isinstance(drawn, Drawing)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"data": "no/such/folder"}, "^data: .*no such folder"), ({"store": "/no/such/folder/x.jsonl"}, "^store: ")],
)
def test_bad_parameters_are_usage_errors(parameters, message):
    with pytest.raises(UsageError, match=message):
        check(claim.claim, **parameters)
