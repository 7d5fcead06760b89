"""The claim on shrinkage: its law against independent witnesses, planted errors, other data, and parameters that do not fit."""

import itertools
import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import linconv as lc
from linconv import images, penalties
from linconv.claims import Check, UsageError
from linconv.claims.replay import REPLAYING
from linconv.filters import high_pass
from linconv.solvers.problem import Problem
from linconv.witnesses import shrink_mpmath
from verification import _shrinkage_law, _shrinkage_sparsity, shrinkage
from verification._shrinkage_figure import figure
from verification._shrinkage_law import (
    critical,
    decoupled,
    law,
    measured,
    minimum,
    needed,
    survivors,
    transform,
    unit,
)
from verification.shrinkage import FAST, load

F64 = torch.float64
positive = st.floats(1e-3, 1e3)


def verdict(**parameters):
    return lc.check("shrinkage", **{**FAST, **parameters})


@pytest.fixture(scope="module")
def loaded():
    return load("photos", 4, 120, torch.Generator().manual_seed(0))


# --- The law ---


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@given(m=positive, s=positive, fraction=st.sampled_from([0.01, 0.5, 0.99, 1.01, 3.0]))
def test_the_law_minimises_its_scalar_problem(depth, m, s, fraction):
    """Against bisection in 40 digits; 1e-12 since Newton's residual, of a few ε·m, is divided by a slope of at least 1 − 1/L."""
    edge = critical(np.array([[m]]), np.array([[s]]), depth).item()
    decay = fraction * (s if depth == 1 else edge)
    found = law(np.array([[m]]), np.array([s]), decay, depth).item()
    assert found == pytest.approx(shrink_mpmath(m, decay * depth / s, 2 / depth), rel=1e-12, abs=1e-12 * m)
    assert (found > 0) == (depth == 1 or fraction < 1)


@pytest.mark.parametrize("depth", [3, 4, 7])
@given(m=positive, s=positive)
def test_at_its_critical_decay_a_component_jumps_from_l_minus_2_over_l_minus_1(depth, m, s):
    edge = critical(np.array([[m]]), np.array([[s]]), depth).item()
    found = law(np.array([[m]]), np.array([s]), edge * (1 - 1e-12), depth).item()
    assert found / m == pytest.approx((depth - 2) / (depth - 1), rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@given(s=st.lists(positive, min_size=4, max_size=4), m=st.lists(positive, min_size=4, max_size=4))
def test_components_fall_with_the_decay(depth, s, m):
    curves = [law(np.array(m)[:, None], np.array(s), decay, depth) for decay in np.geomspace(1e-4, 1e4, 9)]
    for low, high in itertools.pairwise(curves):
        assert (high <= low * (1 + 1e-12)).all()


@pytest.mark.parametrize("depth", [2, 3, 5])
@given(m=positive, s=positive, ratio=st.floats(1.01, 100))
def test_of_equal_components_the_one_at_the_weaker_frequency_dies_first(depth, m, s, ratio):
    weak, strong = critical(np.array([m, m]), np.array([s, s * ratio]), depth)
    assert weak < strong


@given(m=st.lists(positive, min_size=5, max_size=5), fraction=st.floats(0.01, 0.99))
def test_constant_power_survivors_at_one_fraction_are_nested_in_depth(m, fraction):
    values = np.array(m)
    alive = [critical(values, np.ones(5), L) > fraction * critical(values, np.ones(5), L).max() * (1 + 1e-9) for L in (2, 3, 4, 6, 16)]
    for shallow, deep in itertools.pairwise(alive):
        assert (deep <= shallow).all()


@given(m=positive, threshold=st.floats(0.05, 1))
def test_constant_power_deeper_networks_shrink_survivors_less(m, threshold):
    """The lemma behind the equal error: at one threshold, the residual m − t falls with depth (2e-12 for two roots of 1e-12)."""
    left = []
    for depth in (2, 3, 4, 6, 16):
        decay = critical(np.array([threshold * m]), np.ones(1), depth).item()
        left.append(m - law(np.array([[m]]), np.ones(1), decay * (1 - 1e-12), depth).item())
    assert all(high <= low + 2e-12 * m for low, high in itertools.pairwise(left))


# --- Samples ---


@pytest.mark.parametrize("shape", [(7,), (6,), (4, 5), (3, 4, 5)])
def test_the_high_pass_is_a_projection_that_keeps_images_real_and_removes_the_band(shape, generator):
    x = torch.randn(3, 2, *shape, dtype=F64, generator=generator)
    passed = high_pass(x, 1)
    torch.testing.assert_close(high_pass(passed, 1), passed, rtol=0, atol=1e-14)
    assert float((passed * (x - passed)).sum().abs()) < 1e-12 * float(x.square().sum())
    spectrum = torch.fft.fftn(passed, dim=tuple(range(2, passed.ndim)))
    low = np.stack(np.meshgrid(*[np.abs(np.fft.fftfreq(n, 1 / n)) for n in shape], indexing="ij")).max(0) < 2
    assert low.any()
    assert float(spectrum[..., torch.from_numpy(low)].abs().max()) < 1e-13 * float(spectrum.abs().max())
    kept = torch.from_numpy(~low)
    torch.testing.assert_close(spectrum[..., kept], torch.fft.fftn(x, dim=tuple(range(2, x.ndim)))[..., kept])


def test_the_transform_is_the_orthonormal_dft(generator):
    x = torch.randn(3, 2, 4, 5, dtype=F64, generator=generator)
    expected = torch.fft.fft2(x, norm="ortho").flatten(2).numpy()
    np.testing.assert_allclose(transform(x), expected, rtol=0, atol=1e-13)


def test_decoupled_samples_have_the_spectrum_of_the_images_and_nothing_else(loaded):
    x, filtered, y = loaded
    white = images.whiten(x)
    for like in (x, filtered):
        sample = decoupled("these", white, like, y)
        expected = np.square(np.abs(transform(like))).mean((0, 1))
        np.testing.assert_allclose(sample.s, expected, rtol=0, atol=1e-12 * expected.max())
        spectrum = transform(sample.x).reshape(len(sample.x), -1)
        moment = spectrum.T @ spectrum.conj() / len(spectrum)
        np.testing.assert_allclose(moment, np.diag(np.tile(sample.s, 3)), rtol=0, atol=1e-12 * expected.max())
        assert (sample.s == 0).sum() == (0 if like is x else 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_minimum_is_the_objective_of_the_blocks(loaded, depth):
    x, _, y = loaded
    sample = decoupled("natural", images.whiten(x), x, y)
    decay = 0.01 * unit(sample, depth)
    t = law(sample.m, sample.s, decay, depth)
    values = torch.from_numpy((sample.u * t[:, None]) @ sample.vh).unflatten(0, (4, 4))
    beta = lc.FrequencyBlocks(values).predictor()
    residual = sample.x.flatten(1) @ beta.flatten(1).T - sample.y
    direct = float(residual.square().sum()) / (2 * len(y)) + decay * lc.representation_cost(beta, depth).lower
    assert minimum(sample, t, decay, depth) == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_needed_is_the_least_over_all_decays(loaded, depth):
    x, filtered, y = loaded
    sample = decoupled("high-pass", images.whiten(x), filtered, y)
    energy = sample.s[:, None] * sample.m**2
    found = {share: needed(sample, depth, share) for share in (0.2, 0.6, 0.95)}
    for decay in np.geomspace(1e-5, 1, 300) * unit(sample, depth):
        t = law(sample.m, sample.s, decay, depth)
        explained = 1 - (sample.s[:, None] * (sample.m - t) ** 2).sum() / energy.sum()
        for share, count in found.items():
            assert explained < share or survivors(sample, decay, depth) >= count


# --- The claim ---


def test_it_holds_on_an_odd_grid_and_every_part_is_there():
    """test_verification.py runs it with FAST; here 25 frequencies, none its own mirror but one, and no depth 1."""
    found = verdict(side=5, samples=150, draws=3, depths=(2, 3), decays=(0.01, 0.6), seed=1)
    assert found.holds, f"{found}\n{found.traceback}"
    assert {check.name[:3] for check in found.checks if check.required} == {"(a)", "(b)", "(c)"}
    assert any(check.scope == "certified" for check in found.checks)
    assert found.null_model is not None
    names = " ".join(check.name for check in found.controls)
    for mistake in ("exponent", "without s_u", "2λ", "spectrum of high-pass", "upside down", "pair weights"):
        assert mistake in names


def test_a_folder_of_images(tmp_path, generator):
    """At the decays of this test none but the zero frequency survives depth 2 in some of the checks."""
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for i in range(60):
            noise = torch.randn(10, 10, 3, dtype=F64, generator=generator).cumsum(0).cumsum(1)
            pixels = (128 + 4 * noise + 20 * label).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / str(label) / f"{i}.png")
    found = curve_checks(str(tmp_path), (1, 2), (0.1, 0.6))
    assert all(check.outcome == ("fail" if check.control else "pass") for check in found)


def test_an_interval_that_straddles_zero_is_inconclusive_and_yields_no_control(generator):
    counts = np.array([[5, 4], [4, 5], [5, 4], [4, 5]])
    (only,) = _shrinkage_sparsity.falls("lost", counts, np.array([0.0, 1.0]), generator)
    assert only.outcome == "inconclusive"
    assert only.p_value > 0.05
    fallen, reverse = _shrinkage_sparsity.falls("lost", counts - [0, 4], np.array([0.0, 1.0]), generator)
    assert (fallen.outcome, reverse.outcome, reverse.control) == ("pass", "fail", True)


@pytest.mark.skipif("LINCONV_DATA" not in os.environ, reason="LINCONV_DATA is not set: no Fashion-MNIST")
def test_one_channel():
    """Blocks of rank 1, ten outputs."""
    found = curve_checks("fashion-mnist", (1, 3))
    assert all(check.outcome == ("fail" if check.control else "pass") for check in found)


def curve_checks(data, depths, decays=(0.003, 0.03, 0.6)):
    """Part (a) on one draw of a data set."""
    generator = torch.Generator().manual_seed(0)
    x, filtered, y = load(data, 4, 120, generator)
    pair = [decoupled(kind, images.whiten(x), like, y) for kind, like in (("natural", x), ("high-pass", filtered))]
    return [check for check in shrinkage.curve_checks(*pair, depths, decays, generator, []) if isinstance(check, Check)]


def depth_factor_dropped(monkeypatch):
    monkeypatch.setattr(Problem, "mu", property(lambda self: self.weight_decay * self.depth))


def decay_halved(monkeypatch):
    right = Problem.mu.fget
    monkeypatch.setattr(Problem, "mu", property(lambda self: right(self) / 2))


def threshold_of_local_minima(monkeypatch):
    right = penalties.shrink

    def wrong(y, step, p):
        return (
            torch.where(right(y, step, p) > 0, right(y, step, p), torch.where(y**2 > 2 * step, y / 2, 0.0)) if p < 1 else right(y, step, p)
        )

    monkeypatch.setattr(sys.modules["linconv.solvers.decoupled"], "shrink", wrong)


def trained_with_another_decay(monkeypatch):
    right = _shrinkage_law.run
    monkeypatch.setattr(
        _shrinkage_law, "run", lambda name, net, setting: right(name, net, replace(setting, weight_decay=setting.weight_decay / 2))
    )


@pytest.mark.parametrize(
    "plant",
    [depth_factor_dropped, decay_halved, threshold_of_local_minima, trained_with_another_decay],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_error_does_not_hold(plant, monkeypatch):
    monkeypatch.setenv(REPLAYING, "1")  # a fresh process would not have the error
    plant(monkeypatch)
    assert any(check.outcome == "fail" for check in curve_checks("photos", (3,)) if not check.control)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": (1, 3, 2)}, "^depths must increase, got 1 3 2"),
        ({"depths": (1, 2)}, "^depths must end in two of at least 2, got 1 2"),
        ({"decays": (0.1, 0.1)}, "^decays must increase"),
        ({"samples": 40}, "^samples must exceed C·D = 48, got 40"),
        ({"data": "no/such/folder"}, "^data: .*no/such/folder"),
    ],
)
def test_parameters_that_do_not_fit_are_usage_errors(wrong, message):
    with pytest.raises(UsageError, match=message):
        verdict(**wrong)


@pytest.mark.parametrize("decays", [(0.0, 0.1), (0.1, 1.0), (0.1,)])
def test_decays_outside_their_domain_are_named(decays):
    with pytest.raises(ValueError, match="decays"):
        verdict(decays=decays)


def test_images_that_do_not_span_their_space_are_a_usage_error(tmp_path):
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for i in range(30):
            Image.fromarray(np.full((8, 8), 5 * i + label, np.uint8)).save(tmp_path / str(label) / f"{i}.png")
    with pytest.raises(UsageError, match=r"^side: the images of .* do not span"):
        verdict(data=str(tmp_path), samples=60)


def test_the_figure_is_drawn(loaded, generator):
    x, filtered, y = loaded
    curves = []
    pair = [decoupled(kind, images.whiten(x), like, y) for kind, like in (("natural", x), ("high-pass", filtered))]
    for sample, other in (pair, pair[::-1]):
        list(shrinkage.curve_checks(sample, other, (1, 2), (0.01, 0.1), generator, curves))
    counts = {s.kind: (shrinkage.survivor_table([s], (1, 2), (0.01, 0.1)), shrinkage.needed_table([s], [2])) for s in pair}
    shown = figure(curves, counts, (0.01, 0.1), "title")
    FigureCanvasAgg(shown).draw()
    assert [axes.get_xlabel()[:12] for axes in shown.axes] == ["power of the", "weight decay", "% of the var"] * 2
    assert math.isfinite(shown.axes[0].get_ylim()[1])
    assert measured("whitened", images.whiten(x), y).s == pytest.approx(1)
