"""The claim on energy profiles: the networks it trains, and what it says of parameters and data that do not fit."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import linconv as lc
from linconv.claims import UsageError
from verification import energy_profile
from verification._pooled_networks import chi_spread, descend, descend_pooled, load, pooled_patches, shuffled_tiles

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


def _small():
    natural, _, labels = load("photos", 100, 9, 3, torch.Generator().manual_seed(0))
    return natural, labels
