"""The claim on energy profiles: the networks it trains, and what it says of parameters and data that do not fit."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import linconv as lc
from linconv.claims import UsageError
from verification import _profile_limits as limits
from verification import energy_profile
from verification._pooled_networks import (
    chi_spread,
    condensed,
    descend,
    descend_by_doubling,
    descend_outputs,
    descend_pooled,
    load,
    pooled_patches,
    shuffled_tiles,
    stable_step,
)

F64 = torch.float64


@pytest.fixture
def loaded(generator):
    return load("photos", 100, 9, 3, generator)


def test_tiles_are_moved_and_nothing_else(generator):
    x = torch.rand(7, 2, 8, 11, dtype=F64, generator=generator)
    mixed = shuffled_tiles(x, 3, generator)
    assert mixed.shape == (7, 2, 6, 9)

    def tiles(images):
        cut = images[:, :, :6, :9].unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5)
        rows = cut.reshape(-1, 18).tolist()
        return sorted(rows)

    assert tiles(mixed) == tiles(x)
    assert not torch.equal(mixed, x[:, :, :6, :9])


def test_shuffling_decorrelates_the_patches_of_an_image(loaded):
    natural, tiles, labels = loaded
    assert float(natural.spread().max() / natural.spread().min()) > 20
    # N images estimate J·A_ii/λ_i² to √(2/N), here 0.14.
    assert float((tiles.spread() - 1).abs().max()) < 5 * math.sqrt(2 / 100)
    assert float(labels.mean()) == pytest.approx(0, abs=1e-14)
    assert float(labels.square().mean()) == pytest.approx(1)


def test_both_ratios_of_rates_are_those_of_numpy(loaded):
    """Eigenvalues of A by rank are what descent has as rates; the diagonal along the components is bounded by them and is another."""
    natural = loaded[0]
    rows, lambdas, per_image = pooled_patches(natural).numpy(), natural.spectrum.lambdas.numpy(), natural.spectrum.patches_per_image
    alpha = np.linalg.svd(rows, compute_uv=False) ** 2 / len(rows)
    np.testing.assert_allclose(natural.rate_ratios().numpy(), per_image * alpha / lambdas**2, rtol=1e-5)
    along = rows @ natural.spectrum.components.numpy().T
    np.testing.assert_allclose(natural.spread().numpy(), per_image * (along**2).mean(0) / lambdas**2, rtol=1e-8)
    assert float(natural.rate_ratios().min()) < float(natural.spread().min()) / 3


def test_the_trained_convolution_sees_the_pooled_patches(loaded, generator):
    """torch's convolution and pooling, and torch's unfolding with a matrix: one network, trained twice."""
    for data in loaded[:2]:
        rows = pooled_patches(data)
        filters = torch.randn(4, *data.spectrum.patch_shape, dtype=F64, generator=generator)
        head, targets = torch.randn(2, 4, dtype=F64, generator=generator), torch.randn(100, 2, dtype=F64, generator=generator)
        conv = descend(data, data.x, targets, filters, head, 0.05, 5)
        kept, matrix = descend_pooled(rows, targets, filters.flatten(1), head, 0.05, 5, both=False)
        torch.testing.assert_close(conv.flatten(1), matrix, rtol=0, atol=1e-12)
        assert torch.equal(kept, head)
        moved, _ = descend_pooled(rows, targets, filters.flatten(1), head, 0.05, 5, both=True)
        assert not torch.equal(moved, head)


def test_pooled_patches_do_not_depend_on_how_many_are_cut_at_once(loaded):
    natural = loaded[0]
    many = natural._replace(x=natural.x.repeat(11, 1, 1, 1))  # more than are cut at once
    torch.testing.assert_close(pooled_patches(many), pooled_patches(natural).repeat(11, 1), rtol=0, atol=1e-14)


def test_filters_of_their_own_are_those_under_an_identity(loaded, generator):
    rows = pooled_patches(loaded[1])
    targets = torch.randn(len(rows), 3, dtype=F64, generator=generator)
    _, expected = descend_pooled(rows, targets, torch.zeros(3, rows.shape[1], dtype=F64), torch.eye(3, dtype=F64), 0.05, 16, both=False)
    torch.testing.assert_close(descend_outputs(rows, targets, 0.05, 16), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(descend_by_doubling(rows, targets, 0.05, 4), expected, rtol=0, atol=1e-14)
    assert not torch.allclose(descend_by_doubling(rows, targets, 0.05, 3), expected, rtol=0, atol=1e-6)


def test_both_layers_train_alike_on_few_rotated_patches(loaded, generator):
    rows = pooled_patches(loaded[1])
    targets = torch.randn(len(rows), 40, dtype=F64, generator=generator)
    few, labels = condensed(rows, targets)
    assert few.shape == (27, 27)
    assert labels.shape == (27, 27)
    torch.testing.assert_close(few.T @ few / 27, rows.T @ rows / len(rows))
    # The rotation O of the outputs, from the least-squares maps of both: 40×27, its columns orthonormal.
    one, other = (torch.linalg.lstsq(p, y).solution.T for p, y in ((rows, targets), (few, labels)))
    turn = torch.linalg.lstsq(other.T, one.T).solution.T
    torch.testing.assert_close(turn.T @ turn, torch.eye(27, dtype=F64), rtol=0, atol=1e-8)
    head, filters = torch.randn(27, 5, dtype=F64, generator=generator), torch.randn(5, 27, dtype=F64, generator=generator)
    eta = 0.02 * stable_step(rows)
    v, w = descend_pooled(few, labels, filters, head, eta, 10, both=True)
    wide, same = descend_pooled(rows, targets, filters, turn @ head, eta, 10, both=True)
    assert float((w - filters).abs().max()) > 0.01
    torch.testing.assert_close(same, w, rtol=0, atol=1e-8)
    torch.testing.assert_close(wide, turn @ v, rtol=0, atol=1e-8)


@pytest.mark.parametrize("degrees", [1, 2, 7, 500])
def test_the_spread_of_a_root_of_chi_squared(degrees):
    law = stats.chi(degrees)
    assert chi_spread(degrees) == pytest.approx(law.std() / law.mean(), rel=1e-9)
    assert chi_spread(1) == pytest.approx(math.sqrt(np.pi / 2 - 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": 6, "kernel": 4}, "side must be at least 8, twice the kernel"),
        ({"data": "no/such/folder"}, "no such folder of images"),
        ({"side": 240, "samples": 100_000}, "patches"),
    ],
)
def test_parameters_that_do_not_fit_are_usage_errors(wrong, message):
    with pytest.raises(UsageError, match=message):
        lc.check(energy_profile.claim, **wrong)


def test_a_wrong_law_is_refuted(monkeypatch):
    """The claim can fail: with a rate of ηKα, half of what it is, in the library, it does."""
    right = energy_profile.exact_dynamics

    def halved(*arguments, step_size, **options):
        return right(*arguments, step_size=step_size / 2, **options)

    monkeypatch.setattr(energy_profile, "exact_dynamics", halved)
    checks = [c for c in energy_profile.exact_checks(*_small(), 4, 10, torch.Generator().manual_seed(0)) if hasattr(c, "outcome")]
    assert checks[0].outcome == "fail"
    assert checks[2].outcome == "pass"  # what is conserved does not depend on the rate


def outcomes(events):
    return {event.name: event.outcome for event in events if hasattr(event, "outcome") and not event.control}


def test_limits_are_seen_in_what_torch_trains_and_not_in_a_law(monkeypatch):
    """(d), (e) and (f) fail if torch trains otherwise than it says: half as far, by the root of the start, not to the end."""
    natural, labels = _small()
    seeded = torch.Generator().manual_seed(0)
    right = limits.descend_outputs
    monkeypatch.setattr(limits, "descend_outputs", lambda rows, y, *rest: right(rows, y, *rest) / 2)
    assert set(outcomes(limits.label_checks(natural, seeded)).values()) == {"fail", "pass"}  # of the energies; the spread is relative
    monkeypatch.setattr(limits, "descend_pooled", lambda rows, y, w, v, eta, t, both: (v, w.abs().sqrt() + eta))
    assert "pass" not in outcomes(limits.limit_checks(natural, labels, 3, seeded)).values()
    late, together = limits.descend_by_doubling, limits.trained_jointly
    monkeypatch.setattr(limits, "descend_by_doubling", lambda rows, y, eta, n: late(rows, y, eta, 4))
    monkeypatch.setattr(limits, "trained_jointly", lambda *given: together(*given) @ torch.diag(torch.logspace(0, 1, 27, dtype=F64)))
    tiles = load("photos", 100, 9, 3, torch.Generator().manual_seed(0))[1]
    assert "pass" not in outcomes(limits.exponent_checks(natural, tiles, 20, seeded)).values()


def _small():
    natural, _, labels = load("photos", 100, 9, 3, torch.Generator().manual_seed(0))
    return natural, labels
