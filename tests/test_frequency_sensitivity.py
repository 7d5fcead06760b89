"""The claim about sensitivities: its statistics on curves that are known, its runs, and parameters that do not fit."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Drawing
from PIL import Image

from linconv import images
from linconv.claims import Check, Figure, Note, UsageError
from linconv.filters import high_pass
from linconv.sensitivity import frequency_sensitivity
from linconv.sgd import augment
from linconv.spectra import power_spectrum, radial_average, standardise
from linconv.statistics import total_variation
from verification import _figure_sensitivity as figures
from verification import _sensitivity_presets as presets
from verification import _sensitivity_runs as runs
from verification import frequency_sensitivity as claim
from verification._sensitivity_presets import IMAGENETTE, PRESETS, PUBLISHED, PUBLISHED_IMAGENETTE, Family, Preset, preset_of, tasks_of
from verification._sensitivity_statistics import (
    OTHER_DISTANCES,
    accuracy_rows,
    approach,
    distances,
    followed,
    following,
    mean_distances,
    pairs,
    series,
)

RADII = torch.tensor([0.0, 1.0, 2**0.5, 2.0, 5**0.5], dtype=torch.float64)


def record(curve, *, high, seed=0, depth=2, decay=1e-5, noise=0.0, family="conv", labels="true"):
    generator = torch.Generator().manual_seed(seed + 100 * high)
    curves = torch.as_tensor(curve, dtype=torch.float64) * (1 + noise * torch.rand(4, len(RADII), dtype=torch.float64, generator=generator))
    parameters = {"high": high, "seed": seed, "depth": depth, "decay": decay, "family": family, "labels": labels}
    flat = [[1.0] * len(RADII)] * 4
    return {"parameters": parameters, "result": {"before": flat, "after": curves.tolist(), "test_accuracy": 0.5}}


NATURAL, HIGH = [8.0, 4.0, 2.0, 1.0, 0.5], [0.0, 0.0, 0.1, 3.0, 4.0]
BOTH = tuple(torch.tensor(curve, dtype=torch.float64) for curve in (NATURAL, HIGH))
APART = total_variation(*BOTH, RADII)
SPECTRA = dict(zip((0.0, 0.5), BOTH, strict=True))


def generator():
    return torch.Generator().manual_seed(0)


def test_networks_that_follow_their_data_are_told_from_those_that_do_not():
    own = [record(NATURAL if not high else HIGH, high=high, seed=s, noise=0.1) for s in range(4) for high in (False, True)]
    other = [record(HIGH if not high else NATURAL, high=high, seed=s, noise=0.1) for s in range(4) for high in (False, True)]
    follow = following(pairs(own, 0.5), "after", BOTH, RADII)
    against = following(pairs(other, 0.5), "after", BOTH, RADII)
    assert APART - 0.05 < follow.low < follow.high
    assert follow.estimate == pytest.approx(APART, abs=0.05)
    assert against.estimate == pytest.approx(-APART, abs=0.05)
    flat = following(pairs(own, 0.5), "before", BOTH, RADII)
    assert (flat.low, flat.estimate, flat.high) == pytest.approx((0, 0, 0), abs=1e-12)  # one curve cannot be nearer to both
    exactly = [(followed(a, BOTH[0]), followed(b, BOTH[1])) for a, b in pairs(other, 0.5)]
    assert following(exactly, "after", BOTH, RADII).estimate == pytest.approx(APART, abs=1e-12)


@pytest.mark.parametrize("what", sorted(OTHER_DISTANCES))
def test_the_other_distances_tell_them_apart_too(what):
    positive = (BOTH[0], BOTH[1] + 0.01)
    own = [record(positive[high], high=bool(high), seed=s, noise=0.05) for s in range(3) for high in (0, 1)]
    found = following(pairs(own, 0.5), "after", positive, RADII, OTHER_DISTANCES[what])
    assert 0 < found.low < found.high
    swapped = following(pairs(own, 0.5), "after", positive[::-1], RADII, OTHER_DISTANCES[what])
    assert swapped.estimate == pytest.approx(-found.estimate, rel=1e-12)


def test_the_approach_to_a_spectrum_is_the_distance_that_training_took_away():
    """From a flat curve to the spectrum itself all of it; to the other spectrum the difference, which may be negative."""
    to_own, to_other = (total_variation(torch.ones(len(RADII)).double(), spectrum, RADII) for spectrum in BOTH)
    records = [record(NATURAL, high=False, seed=s) for s in range(3)]
    found = approach(records, BOTH[0], RADII)
    assert (found.low, found.estimate, found.high) == pytest.approx((to_own,) * 3, abs=1e-9)
    away = approach(records, BOTH[1], RADII)
    assert away.estimate == pytest.approx(to_other - APART, abs=1e-9)
    assert away.estimate < 0


def test_pairs_differ_in_the_images_alone():
    records = [record(NATURAL, high=high, seed=s, depth=d) for high in (False, True) for s in range(2) for d in (1, 2)]
    found = pairs(records[:-1], 0.5)
    assert len(found) == 3
    for natural, high in found:
        assert not natural["parameters"]["high"]
        assert high["parameters"] == natural["parameters"] | {"high": True}


def outcome(records, name, first="conv"):
    checks = claim.trend_checks(records, SPECTRA, RADII, first, generator())
    return {c.name: c.outcome for c in checks if isinstance(c, Check)}[name]


def mixtures(weights, seeds=4, **fixed):
    """Pairs of networks whose curves are nearer to the spectra of their data, the smaller the weight of a flat one."""
    return [
        record((1 - w) * BOTH[high] + w * BOTH[high].mean(), high=bool(high), seed=s, noise=0.02, **parameters, **fixed)
        for parameters, w in weights
        for s in range(seeds)
        for high in (0, 1)
    ]


def test_trends_pass_fail_and_stay_open():
    falling = mixtures([({"depth": 1}, 0.9), ({"depth": 2}, 0.5), ({"depth": 4}, 0.1)])
    rising = mixtures([({"depth": 1}, 0.1), ({"depth": 2}, 0.5), ({"depth": 4}, 0.9)])
    level = mixtures([({"depth": depth}, 0.5) for depth in (1, 2, 4)])
    name = "(b) 2: conv networks are nearer with depth: fall of d with each doubling"
    assert [outcome(records, name) for records in (falling, rising, level)] == ["pass", "fail", "inconclusive"]
    for records in (falling, rising, level):
        assert outcome(records, "(b) 2: conv networks are nearer with depth: a rise by 1 planted") == "fail"
    decays = mixtures([({"decay": 1e-5}, 0.9), ({"decay": 1e-3}, 0.1)])
    assert outcome(decays, "(b) 3: conv networks are nearer with weight decay: fall of d with each factor of 10") == "pass"


def test_too_few_runs_decide_nothing_whatever_they_show():
    """Two at each of two levels fall in order by chance once in six times."""
    steep = mixtures([({"depth": 1}, 0.9), ({"depth": 2}, 0.1)], seeds=2)
    assert outcome(steep, "(b) 2: conv networks are nearer with depth") == "inconclusive"
    alone = [r for r in mixtures([({"depth": d}, w) for d, w in ((1, 0.9), (2, 0.5), (4, 0.1))]) if not r["parameters"]["high"]]
    assert outcome(alone, "(b) 2: conv networks are nearer with depth") == "inconclusive"  # none was trained on both kinds of images
    told = [n.text for n in claim.trend_checks(alone, SPECTRA, RADII, "conv", generator()) if isinstance(n, Note)]
    assert [text.split(":")[0] for text in told] == ["conv networks on natural images alone"]


def test_kinds_of_images_do_not_blur_a_trend():
    """d of natural and of high-pass images is apart by more than the levels are: it is their mean that falls."""
    records = mixtures([({"depth": 1}, 0.30), ({"depth": 2}, 0.25), ({"depth": 4}, 0.20)])
    by_kind = [distances([r for r in records if r["parameters"]["high"] == high], SPECTRA, RADII) for high in (False, True)]
    assert float((by_kind[0].mean() - by_kind[1].mean()).abs()) > 1.5 * float(by_kind[0].max() - by_kind[0].min())
    means = mean_distances(records, SPECTRA, RADII)
    assert torch.allclose(means, (by_kind[0] + by_kind[1]) / 2)
    assert outcome(records, "(b) 2: conv networks are nearer with depth: fall of d with each doubling") == "pass"


def test_runs_that_diverged_are_left_out():
    alive, dead = record(NATURAL, high=False), record(NATURAL, high=False, seed=1)
    dead["result"]["after"] = None
    assert runs.select([alive, dead], family="conv") == [alive]
    assert outcome([dead], "(b) 2: conv networks are nearer with depth") == "inconclusive"


def test_trends_of_other_families_are_shown_and_not_required():
    depths = [({"depth": 11}, 0.9), ({"depth": 19}, 0.1)]
    records = mixtures(depths, family="vgg") + mixtures([({"depth": 1}, 0.5), ({"depth": 2}, 0.5)])
    found = claim.trend_checks(records, SPECTRA, RADII, "conv", generator())
    checks = {c.name: c for c in found if isinstance(c, Check) and not c.control}
    assert {name.split(":")[1]: c.required for name, c in checks.items()} == {
        " conv networks are nearer with depth": True,
        " vgg networks are nearer with depth": False,
        " conv networks are nearer with weight decay": True,
    }
    assert checks["(b) 2: vgg networks are nearer with depth: fall of d with each doubling"].outcome == "pass"
    assert checks["(b) 3: conv networks are nearer with weight decay"].outcome == "inconclusive"


def test_series_are_what_varies_alone():
    grid = [(1, 1e-5), (2, 1e-5), (4, 1e-5), (4, 1e-3), (4, 1e-2)]
    conv = [record(NATURAL, high=False, depth=depth, decay=decay) for depth, decay in grid]
    others = [record(NATURAL, high=False, family="linear"), *(record(NATURAL, high=False, family="myrtle", decay=d) for d in (1e-5, 1e-3))]
    found = series([*others, *conv, record(NATURAL, high=False, labels="shuffled", depth=8)])
    assert {key: list(levels) for key, levels in found.items()} == {
        ("conv", "depth"): [1, 2, 4],
        ("conv", "decay"): [1e-5, 1e-3, 1e-2],
        ("linear", "depth"): [2],
        ("myrtle", "decay"): [1e-5, 1e-3],
    }
    assert found["conv", "decay"][1e-5] == found["conv", "depth"][4] == [conv[2]]


def test_every_half_width_has_its_own_spectrum_and_its_own_pairs():
    low, high = (record(HIGH, high=True) for _ in range(2))
    low["parameters"]["half_width"] = 0.0714
    natural = record(NATURAL, high=False)
    assert [pairs([low, high, natural], width) for width in (0.0714, 0.5)] == [[(natural, low)], [(natural, high)]]
    spectra = SPECTRA | {0.0714: BOTH[0]}
    assert distances([natural, low, high], spectra, RADII).tolist() == pytest.approx([0, APART, 0], abs=1e-12)
    assert mean_distances([natural, low, high], spectra, RADII).tolist() == pytest.approx([APART / 3])
    assert len(mean_distances([natural, high], spectra, RADII)) == 0


def test_accuracies_stand_beside_the_published_ones():
    records = [record(NATURAL, high=high, seed=s, depth=d) for high in (False, True) for s in range(2) for d in (1, 4)]
    records[0]["result"]["test_accuracy"] = 0.7
    rows = {row[0]: row[1:] for row in accuracy_rows(records, {0.5: PUBLISHED})}
    assert rows["ConvActually, depth 1"] == [".600", ".500", "2", ".546", ".373"]
    assert rows["ConvActually, depth 4"] == [".500", ".500", "2", ".633", ".494"]
    decays = [record(NATURAL, high=False, depth=depth, decay=decay) for depth in (2, 4) for decay in (1e-5, 0.1)]
    beside = {row[0]: row[4:] for half in (decays[:2], decays[2:]) for row in accuracy_rows(half, {0.5: PUBLISHED})}
    assert beside["ConvActually, depth 4, weight decay 0.1"] == [".641", ".484"]
    assert beside["ConvActually, depth 2, weight decay 0.1"] == ["", ""]  # published at depth 4 alone
    (alone,) = accuracy_rows([record(NATURAL, high=False, family="myrtle", depth=5)], {0.5: PUBLISHED})
    assert alone[4:] == [".866", ".791"]  # nothing varies: it is the one with the least weight decay
    several = [row[0] for row in accuracy_rows(records, PUBLISHED_IMAGENETTE)]
    assert several[0] == "ConvActually, depth 1, half-width 0.0714"
    assert len(several) == 4


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_network_meets_both_kinds_of_images_with_every_seed(preset):
    p, tasks = PRESETS[preset], tasks_of(PRESETS[preset], "photos", 7)
    assert len({str(task) for task in tasks}) == len(tasks)
    natural, high = ([{k: v for k, v in t.items() if k != "high"} for t in tasks if t["high"] == kind] for kind in (False, True))
    assert sorted(map(str, natural)) == sorted(map(str, high))
    assert {task["seed"] for task in tasks} == set(range(7, 7 + p.seeds))
    for family in p.families:
        chosen = [t for t in tasks if t["family"] == family.name and t["width"] == family.width]
        assert {t["depth"] for t in chosen} == {*family.depths, family.depth}
        assert {t["decay"] for t in chosen} == set(family.decays)


def test_the_names_of_reduced_runs_are_those_that_stores_have():
    """Another parameter, or another spelling of one, would be another run, and hours of training lost."""
    (task,) = [t for t in tasks_of(PRESETS["reduced"], "cifar10", 0) if t["family"] == "resnet" and not t["high"] and t["seed"] == 2]
    assert json.dumps(task, sort_keys=True) == (
        '{"batch_size": 32, "data": "cifar10", "decay": 1e-05, "depth": 20, "epochs": 8, "family": "resnet", "high": false, '
        '"labels": "true", "probes": 32, "samples": 2048, "seed": 2, "side": 32, "width": 8}'
    )


def test_the_paper_preset_is_the_published_table():
    rows = {(f.name, f.width): f for f in PRESETS["paper"].families}
    assert rows["conv", 64] == Family("conv", 64, (1, 2, 4, 8), 4, (1e-05, 0.0002154, 0.004642, 0.1), 1024, 1e-4)
    assert rows["linear", 64] == rows["conv", 64]._replace(name="linear")
    exact = [10 ** (-5 + i / 3) for i in range(10)]
    for key, batch, step in [("myrtle", 512, 0.01), ("vgg", 256, 0.01), ("resnet", 512, 0.1)]:
        family = rows[key, 64]
        assert (family.batch_size, family.step_size) == (batch, step)
        assert family.decays == pytest.approx(exact, rel=3e-4)
    assert rows["vgg", 64].depths == (11, 13, 16, 19)
    assert {f.depths for f in rows.values() if f.name == "resnet"} == {(9,), (20, 56)}
    (nette,) = IMAGENETTE.families
    assert nette == Family("vgg", 64, (11, 13, 16, 19), 11, (1e-05, 0.0003162, 0.01), 256, 1.25e-3)
    kinds = {(t["high"], t.get("half_width")) for t in tasks_of(IMAGENETTE, "folder", 0)}
    assert kinds == {(False, None), (True, 0.0714), (True, None)}
    # Every published accuracy is one of a network that the preset trains.
    for p, published in [(PRESETS["paper"], PUBLISHED), *((IMAGENETTE, known) for known in PUBLISHED_IMAGENETTE.values())]:
        trained = {(t["family"], key, t[key]) for t in tasks_of(p, "cifar10", 0) for key in ("depth", "decay")}
        assert set(published) <= trained


def folder(path, side, count=4):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(256, (side, side + 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
                Image.fromarray(noise.numpy()).save(path / split / name / f"{i}.png")
    return str(path)


def test_folders_are_imagenette_or_what_stands_in_for_it(tmp_path):
    assert preset_of("paper", folder(tmp_path / "large", 80)).side == 224
    assert preset_of("paper", folder(tmp_path / "small", 64)).side == 64
    assert preset_of("reduced", str(tmp_path / "small")) is PRESETS["reduced"]
    assert preset_of("paper", "cifar10") is PRESETS["paper"]


def test_too_few_images_to_test_on_are_a_usage_error_before_any_training(monkeypatch, tmp_path):
    monkeypatch.setitem(presets.PRESETS, "smoke", PRESETS["smoke"]._replace(samples=8))
    monkeypatch.setattr(claim, "LINEAR_SAMPLES", 4)
    monkeypatch.setattr(claim, "train_all", None)
    with pytest.raises(UsageError, match=r"^data: test images: samples: expected at most the 8 images there are, got 100"):
        list(claim.claim(preset="smoke", data=folder(tmp_path / "images", 20)))


@pytest.mark.skipif("LINCONV_DATA" not in os.environ, reason="LINCONV_DATA is unset: the real image sets are not here")
def test_tiny_imagenet_stands_in_for_imagenette():
    assert preset_of("paper", str(Path(os.environ["LINCONV_DATA"], "tiny-imagenet-20"))) == IMAGENETTE._replace(side=64)


@pytest.mark.parametrize(("family", "depth"), sorted({(t["family"], t["depth"]) for t in tasks_of(PRESETS["paper"], "cifar10", 0)}))
def test_every_network_of_the_paper_preset_is_built_and_makes_one_step(family, depth):
    """At a width of 4, on a few small images: the depth, batch size, step size and decay are those of the preset."""
    task = {t["depth"]: t for t in tasks_of(PRESETS["paper"], "photos", 0) if t["family"] == family}[depth]
    result = runs.run(**task | {"side": 32, "samples": 12, "epochs": 1, "width": 4, "probes": 2})
    assert 0 <= result["test_accuracy"] <= 1
    assert result["stop_reason"] == "epochs"
    assert len(result["map"]) == 32
    assert len(result["map"][0]) == 17


@pytest.mark.parametrize("depth", [11, 19])
def test_networks_for_large_images_make_one_step(depth, tmp_path):
    data = folder(tmp_path / "images", 64)
    p = preset_of("paper", data)._replace(epochs=1, seeds=1, probes=2)
    tasks = [t for t in tasks_of(p, data, 0) if t["depth"] == depth and t["decay"] == 1e-5 and t["labels"] == "true"]
    assert [t.get("half_width") for t in tasks if t["high"]] == [0.0714, None]
    for task in tasks:
        assert runs.run(**task | {"width": 1})["stop_reason"] == "epochs"


def test_what_a_run_keeps_is_the_sensitivity_of_its_network(monkeypatch):
    """Untrained, as no step is made: the curves and the map are those of the network at the test images."""
    monkeypatch.setattr(runs, "train_classifier", lambda *_, **__: type("Ended", (), {"stop_reason": "epochs"}))
    task = tasks_of(PRESETS["smoke"], "photos", 3)[0] | {"side": 9, "samples": 40, "width": 2, "depth": 2, "probes": 5}
    result = runs.run(**task)
    assert result["before"] == result["after"]
    x = runs.prepare("photos", 9, 40, 0.0)[1].images[:5]
    net = runs.build("conv", 2, 2, 3, 5, 9, 3)
    expected = frequency_sensitivity(net, x)
    torch.testing.assert_close(torch.tensor(result["map"]), expected.mean(0)[:, :5], rtol=1e-3, atol=0)
    curve = radial_average(expected)[1]
    torch.testing.assert_close(torch.tensor(result["before"]).mean(0), curve, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("side", "half_width"), [(8, 0.5), (9, 0.5), (12, 0.0714)])
def test_high_pass_images_have_no_low_frequencies(side, half_width):
    train, _ = runs.prepare("photos", side, 40, half_width)
    radii, values = radial_average(power_spectrum(train.images.double()))
    assert float(values[radii <= half_width * side / 2].max()) < 1e-4 * float(values.max())
    assert train.images.dtype == torch.float32
    assert train.images.std((0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    loaded = images.load("photos", samples=40, grid=(side, side), dtype=torch.float32, generator=torch.Generator().manual_seed(0)).images
    assert torch.equal(train.images, standardise(high_pass(loaded, half_width * side / 2)))
    assert torch.equal(runs.prepare("photos", side, 40, 0.0)[0].images, standardise(loaded))


@pytest.mark.parametrize(("side", "moves"), [(6, 2), (5, 1), (4, 0)])
def test_met_spectrum_is_the_mean_over_what_training_shows(side, moves):
    """By NumPy, move by move; and by drawing moves as training does."""
    x = torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(side))
    power = np.zeros((2, side, side))
    for image, mirrored, i, j in itertools.product(x.double().numpy(), (False, True), *[range(2 * moves + 1)] * 2):
        shown = np.pad(image[..., ::-1] if mirrored else image, ((0, 0), (moves, moves), (moves, moves)))
        power += abs(np.fft.fft2(shown[:, i : i + side, j : j + side], norm="ortho")) ** 2
    expected = np.sqrt(power / (3 * 2 * (2 * moves + 1) ** 2))
    found = runs.met_spectrum(x, moves)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    drawn = augment(x.repeat(4000, 1, 1, 1), flips=True, translations=moves, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(power_spectrum(drawn.double()), found, rtol=0.03, atol=0)


def test_moves_bring_frequencies_back_that_a_filter_took():
    x = runs.prepare("photos", 16, 40, 0.5)[0].images
    radii, met = radial_average(runs.met_spectrum(x))
    unmoved = radial_average(power_spectrum(x.double()))[1]
    low = radii <= 4
    assert float(met[low].min()) > 1e3 * float(unmoved[low].max())
    assert float(total_variation(met, unmoved, radii)) > 0.1


def test_a_tiny_run_from_images_to_figures(monkeypatch, tmp_path):
    tiny = (Family("conv", 3, (1, 2), 2, (1e-5, 1e-3), 20), Family("linear", 2, (2,), 2, (1e-5,), 20, 1e-4))
    monkeypatch.setitem(presets.PRESETS, "smoke", Preset(8, 60, 1, 2, 4, tiny))
    for module, name, value in ((claim, "LINEAR_SIDE", 4), (claim, "RESAMPLES", 100)):
        monkeypatch.setattr(module, name, value)
    store = tmp_path / "runs.jsonl"
    events = list(claim.claim(preset="smoke", jobs=1, store=str(store)))
    checks = [event for event in events if isinstance(event, Check)]
    linear = [c for c in checks if c.name.startswith("(a)")]
    assert [c.outcome for c in linear if not c.control] == ["pass"] * 4
    assert [c.outcome for c in linear if c.control] == ["fail"] * 8
    assert sum(c.required for c in checks) == 7
    assert len(store.read_text().splitlines()) == 20
    drawn = {event.name.removeprefix("frequency_sensitivity"): event.draw() for event in events if isinstance(event, Figure)}
    assert set(drawn) == {"", "_distances", "_data", "_linear", "_maps", "_accuracy"}
    assert all(isinstance(figure, Drawing) for figure in drawn.values())
    titles = [axes.get_title() for axes in drawn[""].axes if axes.axison]
    assert titles[:3] == ["(a) ConvActually, natural images", "(b) ConvActually, natural images", "(c) its linear twin, natural images"]
    assert len([axes for axes in drawn["_maps"].axes if axes.images]) == 8
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("published for CIFAR-10: .546 and .373" in text for text in notes)
    assert sum("training took d to their own data's spectrum down by" in text for text in notes) == 4  # two families, two kinds of images
    shown_from_the_store(store, [event.name for event in checks], monkeypatch)


def shown_from_the_store(store, names, monkeypatch):
    """The same checks without any training; and what is there where runs are missing."""
    for module in (runs, claim):
        monkeypatch.setattr(module, "train_classifier", None, raising=False)
    monkeypatch.setattr(claim, "linear_checks", lambda *_: iter(()))
    monkeypatch.setattr(figures, "linear_curves", lambda *_: None)
    before = store.read_text()
    again = [e for e in claim.claim(preset="smoke", engine="none", store=str(store)) if isinstance(e, Check)]
    assert [c.name for c in again] == [name for name in names if not name.startswith("(a)")]
    assert store.read_text() == before
    lines = before.splitlines(keepends=True)
    store.write_text("".join(line for line in lines if '"linear"' in line) + '{"id": "torn')
    events = list(claim.claim(preset="smoke", engine="none", store=str(store)))
    (told,) = [e for e in events if isinstance(e, Note) and "not in the store" in e.text]
    assert told.in_scope
    assert told.text.startswith("16 of 20 runs are not in the store: 4 of family conv depth 1 decay 1e-05 labels true; ")
    assert {c.outcome for c in events if isinstance(c, Check) and c.required} == {"inconclusive"}
    assert all(e.draw() or e.name.endswith("linear") for e in events if isinstance(e, Figure))
    with pytest.raises(UsageError, match=r"^store: .* has none of the 20 runs"):
        list(claim.claim(preset="smoke", engine="none", store=str(store), seed=50))


def test_a_store_without_maps_is_still_drawn():
    records = [record(NATURAL, high=high, seed=s) for high in (False, True) for s in range(2)]
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert list(claim.maps_of(records, {0.0: x[0], 0.5: x[0]})) == ["data, natural", "data, high-pass"]


def test_figures_of_runs_that_all_diverged_are_empty():
    for draw in (figures.panels, figures.distances):
        assert not any(axes.axison for axes in draw({}, SPECTRA, RADII, "nothing").axes)
    assert accuracy_rows([], {0.5: PUBLISHED}) == []
    assert figures.accuracy_table([], "CIFAR-10", "nothing").axes
