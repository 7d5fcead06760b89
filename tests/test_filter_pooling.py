"""The claim on filter pooling: the least D against enumeration in fractions and trained networks, the runs, and what judges them."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

import linconv as lc
from linconv.claims import Check, Note, UsageError, control, exceeds
from linconv.pooling import pooling_solution
from linconv.pooling_stability import constant_filter_deformation_stability, two_pixel_deformation_stability
from linconv.statistics import Interval
from verification import _stable_filters, filter_pooling
from verification._figure_filter_pooling import figure
from verification._filter_pooling_presets import PRESETS, image_tasks, pixel_tasks
from verification._filter_pooling_runs import (
    Rings,
    inputs,
    pixel_stabilities,
    run_images,
    run_pixels,
    shuffled_stabilities,
    solution_filters,
)
from verification._filter_pooling_runs import descend as descend_rings
from verification._plane_runs import plane_tasks, run_plane
from verification._stable_filters import (
    FARTHEST,
    MOVES,
    PATTERNS,
    basis,
    changes_and_spread,
    composed,
    descend,
    integer_network,
    is_lower_bound,
    least_checks,
    least_stability,
    linear_stability,
    pair_images,
    positive_definite,
    quadratic_forms,
    three_tap_factors,
)
from verification.filter_pooling import FAST, approach, channel_gains, decided, halves, judged, smoothing, untrained

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def circular(taps):
    layer = nn.utils.skip_init(nn.Conv1d, 1, 1, len(taps), padding=len(taps) // 2, padding_mode="circular", bias=False, dtype=F64)
    layer.weight.data.copy_(torch.tensor(taps, dtype=F64))
    return layer.requires_grad_(False)


# (a) The least D.


@given(taps=st.lists(st.integers(-5, 5), min_size=1, max_size=7).filter(lambda taps: len(taps) % 2 == 1 and any(taps)))
@settings(max_examples=8)
def test_the_forms_give_d_of_every_filter_exactly(taps):
    """Against enumeration of all 496 pairs and 9 moves in integers, by code that knows no windows."""
    forms = quadratic_forms(len(taps))
    values = [sum(taps[site] for site in pattern) for pattern in forms.sites]
    numerator, denominator = (
        sum(int(m[i, j]) * values[i] * values[j] for i in range(len(values)) for j in range(len(values)))
        for m in (forms.numerator, forms.denominator)
    )
    exact = Fraction(numerator, len(MOVES) * PATTERNS) / Fraction(denominator, PATTERNS**2)
    assert exact == two_pixel_deformation_stability(circular(taps))[-1]
    assert math.isclose(linear_stability(np.array(taps, dtype=float)), exact, rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["low-frequency", "high-frequency"])
def test_sums_over_distances_are_enumeration_of_all_pairs(kind):
    """In a network with ReLU, biases and three channels: each layer and the output."""
    net = pooling_solution(kind, 7)
    still, moved = pair_images()
    a, b, found = still, moved.flatten(0, 1), []
    for layer in net:
        a, b = layer(a), layer(b)
        if not isinstance(layer, nn.Conv1d):
            changed, spread = changes_and_spread(a, b.unflatten(0, (len(MOVES), FARTHEST)))
            found.append(float(changed / spread))
    expected = [float(value) for value in two_pixel_deformation_stability(net)[1:]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_network_is_more_stable_than_the_bound(depth):
    """Random widths, weights and biases with ReLU and with a square; a bound 1/4 higher is undercut by the best linear filter."""
    least, _ = least_stability(depth, "any")
    still, moved = pair_images()
    for seed in range(30):
        generator = seeded(seed)
        x, channels = torch.cat([still, moved.flatten(0, 1)]), 1
        for _ in range(depth):
            width = int(torch.randint(1, 4, (1,), generator=generator))
            weight = torch.randn(width, channels, 3, dtype=F64, generator=generator) + 1
            bias = torch.randn(width, dtype=F64, generator=generator)
            x, channels = nn.functional.conv1d(nn.functional.pad(x, (1, 1), mode="circular"), weight, bias), width
            x = x.relu() if seed % 2 else x.square()
        changed, spread = changes_and_spread(x[:FARTHEST], x[FARTHEST:].unflatten(0, (len(MOVES), FARTHEST)))
        assert float(changed) >= least * float(spread) * (1 - 1e-12)
    assert least_stability(depth, "linear")[0] < 1.25 * least


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_least_is_below_ones_and_nearly_that_of_any_network(depth):
    (linear, taps), (least, _) = least_stability(depth, "linear"), least_stability(depth, "any")
    assert least <= linear < 0.9 * float(constant_filter_deformation_stability(depth))
    assert linear < 1.006 * least
    assert math.isclose(linear_stability(taps), linear, rel_tol=1e-9)
    factors = three_tap_factors(taps)
    np.testing.assert_allclose(composed(factors), taps, rtol=1e-7, atol=1e-9 * np.abs(taps).max())
    # ReLU without bias is never at work: all that is composed so far is of one sign.
    assert all((composed(factors[: k + 1]) * np.sign(taps[0]) > 0).all() for k in range(depth))


@given(taps=st.lists(st.floats(-3, 3), min_size=3, max_size=7).filter(lambda taps: len(taps) % 2 == 1 and min(map(abs, taps)) > 0.1))
def test_every_odd_filter_is_a_composition_of_three_taps(taps):
    factors = three_tap_factors(np.array(taps))
    assert {len(factor) for factor in factors} == {3}
    # Roots of a multiple root are known to ε^{1/m} only, m ≤ 6.
    np.testing.assert_allclose(composed(factors), taps, atol=1e-2 * max(map(abs, taps)) / min(map(abs, taps)))


def test_filters_of_less_than_full_length_are_refused():
    with pytest.raises(ValueError, match="taps: expected a first tap that is not zero"):
        three_tap_factors(np.array([0.0, 1.0, 1.0]))
    for width in (0, 32):
        with pytest.raises(ValueError, match="width: expected a window of 1 to 31 sites"):
            quadratic_forms(width)


def test_bounds_are_decided_in_integers():
    value, _ = least_stability(2, "any")
    below, above = math.floor(value * 10**9), math.floor(value * 10**9) + 1
    assert is_lower_bound(2, "any", below, 10**9)
    assert not is_lower_bound(2, "any", above, 10**9)
    assert is_lower_bound(2, "linear", above, 10**9)


@given(seed=st.integers(0, 999), size=st.integers(1, 5), shift=st.integers(-3, 12))
def test_positive_definite_agrees_with_eigenvalues(seed, size, shift):
    matrix = torch.randint(-3, 4, (size, size), generator=seeded(seed)).numpy()
    matrix = matrix + matrix.T + shift * np.eye(size, dtype=np.int64)
    least = np.linalg.eigvalsh(matrix)[0]
    if abs(least) > 1e-9:
        assert positive_definite(matrix.tolist()) == (least > 0)
    assert not positive_definite([[1, 1], [1, 1]])


def test_a_basis_of_linear_functions_counts_a_site_lit_twice_as_two():
    values = basis(3, "linear")
    assert values[quadratic_forms(3).sites.index((1, 1))].tolist() == [0, 2, 0]
    assert values[quadratic_forms(3).sites.index((0, 2))].tolist() == [1, 0, 1]


def test_integer_networks_have_exact_d_below_ones_up_to_their_layer():
    _, taps = least_stability(3, "linear")
    exact = two_pixel_deformation_stability(integer_network(three_tap_factors(taps / taps[0]), 20))
    assert len(exact) == 5
    assert exact[3] == exact[4] < constant_filter_deformation_stability(3)


def test_descent_finds_the_linear_least():
    linear, least = least_stability(1, "linear")[0], least_stability(1, "any")[0]
    found = descend(1, 2, 60, seeded())
    assert least <= found < 1.01 * linear


def test_wrong_forms_are_caught(monkeypatch):
    """Collisions ignored: pixels that meet count once, as a clipped image would have it."""
    right = _stable_filters.linear_stability
    monkeypatch.setattr(_stable_filters, "linear_stability", lambda taps: 1.001 * right(taps))
    checks = [entry for entry in least_checks(1, 0) if isinstance(entry, Check) and not entry.control]
    assert [check.name for check in checks if not check.passed] == ["(a) layer 1: D of [1, 1, 1] by the forms, and in closed form"]


# The runs.


@pytest.mark.parametrize("xi", [5, 7, 9, 11, 13])
def test_inputs_are_one_image_a_distance_and_distances_are_held_out(xi):
    x, y, x_test, y_test = inputs(xi)
    found = []
    for images, labels in ((x, y), (x_test, y_test)):
        lit = [image[0].nonzero().flatten().tolist() for image in images]
        distances = [min(b - a, 32 - (b - a)) for a, b in lit]
        assert labels.tolist() == [int(d < xi) for d in distances]
        found.append(set(distances))
    assert not found[0] & found[1]
    assert sorted(y_test.tolist()) == [0, 1]
    assert len(x) == len(found[0]) == 12


def test_networks_trained_together_are_those_trained_alone():
    x, y, _, _ = inputs(7)
    together, alone = Rings(3, 4, 3, seed=0), Rings(1, 4, 3, seed=2)
    for nets in (together, alone):
        times, seen = descend_rings(nets, x, y.expand(len(nets.readout), -1), 20, 1e-3)
    assert times == [0, 1, 2, 3, 6, 11, 20]
    assert len(seen) == len(times)
    # Single precision: a step of 20 loses a few ε.
    for one, other in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one[2], other[0], rtol=1e-4, atol=1e-5)


def test_single_networks_compute_the_same():
    nets = Rings(3, 4, 2, seed=5)
    x = torch.randn(6, 1, 32, generator=seeded())
    for i in range(3):
        torch.testing.assert_close(nets.single(i)(x.double()).float(), nets(x)[i].detach(), rtol=1e-4, atol=1e-5)


def test_templates_are_the_filters_of_the_solutions():
    filters = solution_filters(7)
    torch.testing.assert_close(filters["low"].abs(), torch.ones(1, 3, dtype=F64) / math.sqrt(3))
    assert sorted(map(tuple, filters["high"].tolist())) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_shuffling_hits_the_high_frequency_solution_and_not_the_low():
    """One channel has nothing to shuffle; in the other, shifts to the left meet filters made for shifts to the right."""
    low, high = (nn.Sequential(*list(pooling_solution(kind, 7))[:-1]) for kind in ("low-frequency", "high-frequency"))
    assert all(value == 0 for value in shuffled_stabilities(low, 3, 0)["shuffled_D"])
    d, _ = pixel_stabilities(high)
    assert any(abs(value) > 0.05 for value in shuffled_stabilities(high, 6, 0)["shuffled_D"][1:])
    np.testing.assert_allclose(d, [float(v) for v in two_pixel_deformation_stability(high)[1:-1]], rtol=1e-12)


def test_runs_are_json_and_tasks_differ():
    for preset in PRESETS:
        tasks = [json.dumps(task) for task in [*pixel_tasks(preset, 3), *image_tasks(preset, "photos", 3)]]
        assert len(set(tasks)) == len(tasks)
        assert pixel_tasks(preset, 3)[0]["labels"] == "true"
        assert pixel_tasks(preset, 3)[-1]["labels"] == "shuffled"


# What judges them.


def record(**result):
    return {"parameters": {"xi": 7, "width": 2, "decay": 0.0, "labels": "true", "seeds": 3}, "result": result}


def test_planted_growth_is_read_off():
    energies = torch.ones(2, 3, 4, 3, dtype=F64)
    energies[1, :, :, 0] = math.e**2
    energies[1, :, :, 1] = 77
    energies[1, :, :, 2] = math.e
    torch.testing.assert_close(smoothing(record(energies=energies.tolist())), torch.ones(3, 4, dtype=F64))


def test_planted_overlaps_are_read_off():
    before, half, full = ([[value] * 2] * 3 for value in (0.5, 0.75, 1.0))
    found = approach(record(overlaps={"low": {"before": before, "after": full}, "high": {"before": before, "after": half}}))
    torch.testing.assert_close(found, torch.full((3, 2), 0.5, dtype=F64))


def test_halves_and_gains_of_layers():
    first, second = halves(torch.tensor([[1.0, 3.0, 5.0, 5.0]], dtype=F64))
    assert (float(first), float(second)) == (2.0, 5.0)
    own, shuffled = [0.0, -1.0, -2.0, -3.0], [[0.0, -1.0, -1.0, -1.0], [0.0, -1.0, -1.0, 0.0]]
    early, late = channel_gains([record(log_R_after=own, shuffled_log_R_after=shuffled)], "after")
    assert (float(early), float(late)) == (0.0, 2.5)


def test_seeds_without_a_number_are_left_out():
    values = torch.tensor([1.0, math.nan, 1.1, math.inf, 1.05], dtype=F64)
    check = decided("", values, 0.5)
    assert check.passed
    assert check.observed == pytest.approx(1.05)
    assert decided("", values[:2], 0.5).outcome == "inconclusive"
    assert decided("", values, 2.0).outcome == "fail"


def test_networks_that_did_not_learn_decide_nothing():
    assert untrained(record(train_accuracy=[1.0, 0.98]), 0.95) == ""
    why = untrained(record(train_accuracy=0.3), 0.95)
    assert "did not learn: accuracy 0.30" in why
    assert "accuracy 0.00" in untrained(record(diverged=True), 0.5)
    entries = [exceeds("growth", Interval(1.0, 0.9, 1.1, 0.95), 2.0), Note("a note")]
    entries.append(control("planted", entries[0]))
    first, note, planted = judged(iter(entries), why)
    assert (first.outcome, first.note, first.required) == ("inconclusive", why, True)
    assert (note, planted.outcome) == (entries[1], "fail")
    assert list(judged(iter(entries), "")) == entries


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return lc.check("filter_pooling", **FAST, store=str(tmp_path_factory.mktemp("runs") / "runs.jsonl"))


def test_the_small_run_is_open_and_says_why(tiny):
    assert tiny.verdict == "INCONCLUSIVE"
    assert all(check.passed for check in tiny.checks if check.name.startswith("(a)"))
    assert {check.outcome for check in tiny.checks if check.name.startswith("(b) ξ")} == {"inconclusive"}
    assert len(tiny.controls) >= 10


def test_data_that_there_are_not_are_a_usage_error():
    with pytest.raises(UsageError, match="data:"):
        list(itertools.islice(filter_pooling.claim(data="no-such-set", preset="tiny"), 3))


def test_the_figure_is_drawn_without_pyplot():
    pixels = [{"parameters": task, "result": run_pixels(**task)} for task in pixel_tasks("tiny", 0)]
    pictures = [{"parameters": task, "result": run_images(**task)} for task in image_tasks("tiny", "photos", 0)[:1]]
    planes = [{"parameters": task, "result": run_plane(**task)} for task in plane_tasks("tiny", 0)]
    drawing = figure(pixels, pictures, planes, "A title")
    FigureCanvasAgg(drawing).draw()
    assert [len(axes.lines) > 2 for axes in drawing.axes] == [True] * 8


def test_the_first_record_is_the_base_in_whichever_order_they_come(monkeypatch):
    """Sorted by their parameters as text, runs on shuffled labels once came first and were judged as the base."""
    seen = {}

    def trained(job, tasks, store, jobs, engine, scheduler, records):
        records += [{"parameters": task, "result": {"kept": [0, 1]}} for task in reversed(tasks)]
        yield from ()

    monkeypatch.setattr(filter_pooling, "train_all", trained)
    monkeypatch.setattr(filter_pooling, "least_checks", lambda *_: iter(()))
    monkeypatch.setattr(filter_pooling, "image_checks", lambda *_: iter(()))
    monkeypatch.setattr(filter_pooling, "plane_checks", lambda *_: iter(()))
    monkeypatch.setattr(filter_pooling, "untrained", lambda *_: "")
    monkeypatch.setattr(filter_pooling, "first_layer_check", lambda base: seen.update(base["parameters"]) or iter(()))
    monkeypatch.setattr(filter_pooling, "pixel_checks", lambda *_: iter(()))
    list(filter_pooling.claim(preset="tiny"))
    assert seen == pixel_tasks("tiny", 0)[0]
    assert seen["labels"] == "true"
