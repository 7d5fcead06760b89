"""What the claim on lazy and feature learning makes of its runs: Geary's C, total variations above certified minima, planted draws."""

import math

import pytest
import torch

from linconv.claims import Check
from linconv.sphere import ShallowNetwork, descend, min_total_variation, sphere_data
from verification._lazy_feature_runs import contrast, excess, shuffled_contrast
from verification.lazy_feature import change_checks

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("smooth", [False, True])
def test_gearys_c_is_neighbours_over_any_two_pixels(smooth):
    w = torch.randn(6, 2, 3, 4, generator=seeded(), dtype=F64)
    w = w.cumsum(3) if smooth else w
    places = [(i, j) for i in range(3) for j in range(4)]
    squares = {near: [] for near in (True, False)}
    for a in places:
        for b in places:
            near = abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1
            if a != b:
                squares[near].append(float((w[..., a[0], a[1]] - w[..., b[0], b[1]]).square().sum()))
    every = squares[True] + squares[False]
    expected = sum(squares[True]) / len(squares[True]) / (sum(every) / len(every))
    assert math.isclose(contrast(w), expected, rel_tol=1e-12)
    # Neither the means of the filters nor their size count.
    assert math.isclose(contrast(3 * w - 7), expected, rel_tol=1e-12)
    assert (expected < 0.8) == smooth


def test_shuffled_pixels_do_not_know_their_neighbours():
    smooth = torch.randn(200, 1, 6, 6, generator=seeded(), dtype=F64).cumsum(2).cumsum(3)
    found = torch.tensor([shuffled_contrast(smooth, seeded(seed)) for seed in range(4)])
    assert abs(float(found.mean()) - 1) < 5 * float(found.std()) / math.sqrt(len(found))
    assert contrast(smooth) < 0.5


def test_total_variation_is_above_its_certified_minimum_and_weight_decay_brings_it_down():
    x, y = sphere_data(6, 2, generator=seeded()), torch.ones(6, 1, dtype=F64)
    least = min_total_variation(x, y[:, 0], generator=seeded(), tol=1e-6)
    found = []
    for decay in (0.0, 3e-3):
        net = ShallowNetwork(2, 100, scale=1e-2, generator=seeded(1))
        descend(net, x, y, tol=1e-9, max_steps=1500, weight_decay=decay, momentum=0.95)
        found.append(excess(net, least, x))
    assert 0 <= found[1] < found[0]


def planted(feature, lazy, shuffled=1.0):
    """Whether the check, and whether its control, pass on four draws of these values of Geary's C."""
    draws = 1 + 0.01 * torch.arange(4, dtype=F64)
    values = {"feature contrast of the change": feature, "lazy contrast of the change": lazy}
    values |= {"feature contrast, pixels shuffled": shuffled, "lazy contrast, pixels shuffled": 1.0}
    columns = {key: value * (draws if "feature" in key else draws.flip(0) ** 0.5) for key, value in values.items()}
    return {check.control: check.passed for check in change_checks(columns.__getitem__, 4) if isinstance(check, Check)}


def test_planted_draws_are_judged():
    assert planted(0.5, 0.3) == {False: True, True: False}
    assert planted(0.3, 0.5) == {False: False, True: False}
    assert planted(0.3, 0.295) == {False: False, True: False}  # two per cent are none
    assert planted(0.5, 0.3, shuffled=1.5)[True]  # a control that survives is seen
