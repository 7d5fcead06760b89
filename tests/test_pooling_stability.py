"""Stability of two pixels: enumeration with fractions in plain Python, closed forms against it, rectified Gaussians by quadrature."""

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import multivariate_normal, norm
from torch import nn

from linconv.pooling import SITES, SumOverSites, allowed_scales, pooling_solution
from linconv.pooling_noise import (
    bivariate_normal,
    constant_filter_noise_stability,
    rectified_covariance,
    rectified_mean,
    simulated_noise_stability,
    two_pixel_noise_stability,
)
from linconv.pooling_stability import (
    constant_filter_deformation_stability,
    deformation_stability_limit,
    displacement_spectrum,
    layer_spreads,
    mean_square_displacement,
    two_pixel_deformation_stability,
)

F64 = torch.float64
KINDS = ["low-frequency", "high-frequency"]
STEPS = {"stay": (-1, 0, 1), "step": (-1, 1)}


# A witness in plain Python: lists of integers, fractions, no torch.


def boxed(x):
    return [x[i - 1] + x[i] + x[(i + 1) % len(x)] for i in range(len(x))]


def shifted(x, by):
    return [x[(i - by) % len(x)] for i in range(len(x))]


def plain_layers(kind, k, x):
    """Input, layers and output of a solution, lists of integers."""
    found, left, right, both = [x], x, x, x
    for layer in range(1, k + 1):
        if kind == "low-frequency":
            both = boxed(both)
        else:
            left, right = shifted(left, -1), shifted(right, 1)
            both = [a + b + c for a, b, c in zip(left, right, both, strict=True)]
        if layer == k:
            both = [max(v - 1, 0) for v in both]
        found.append(both if kind == "low-frequency" or layer == k else left + right + both)
    return [*found, [sum(both)]]


def lit(sites, i, j):
    return [(s == i % sites) + (s == j % sites) for s in range(sites)]


def square(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def plain_stability(kind, k, sites, moves, *, collisions=True, replacement=True):
    """D by its definition, every pair against every pair; wrong variants by the two flags."""
    pairs = list(itertools.combinations(range(sites), 2))
    layers = [plain_layers(kind, k, lit(sites, i, j)) for i, j in pairs]
    change = [Fraction(0)] * (k + 2)
    for (i, j), here in zip(pairs, layers, strict=True):
        for a, b in itertools.product(STEPS[moves], repeat=2):
            moved = lit(sites, i + a, j + b)
            there = plain_layers(kind, k, moved if collisions else [min(v, 1) for v in moved])
            for n in range(k + 2):
                change[n] += Fraction(square(here[n], there[n]), len(pairs) * len(STEPS[moves]) ** 2)
    others = len(pairs) ** 2 if replacement else len(pairs) * (len(pairs) - 1)
    spread = [Fraction(sum(square(a[n], b[n]) for a in layers for b in layers), others) for n in range(k + 2)]
    return tuple(c / s for c, s in zip(change, spread, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sites", "xi", "moves"), [(6, 3, "stay"), (7, 3, "step"), (10, 5, "stay"), (11, 5, "step"), (14, 7, "stay")])
def test_enumeration_is_the_definition(kind, sites, xi, moves):
    found = two_pixel_deformation_stability(pooling_solution(kind, xi, sites=sites), moves=moves, sites=sites)
    assert found == plain_stability(kind, (xi - 1) // 2, sites, moves)
    assert all(isinstance(d, Fraction) for d in found)


@pytest.mark.parametrize("wrong", [{"collisions": False}, {"replacement": False}])
def test_wrong_definitions_differ_in_every_layer(wrong):
    found = two_pixel_deformation_stability(pooling_solution("low-frequency", 5, sites=10), sites=10)
    assert all(a != b for a, b in zip(found, plain_stability("low-frequency", 2, 10, "stay", **wrong), strict=True))


def test_exact_values_on_32_sites():
    low, high = (two_pixel_deformation_stability(pooling_solution(kind, 7)) for kind in KINDS)
    assert low[0] == high[0] == Fraction(976, 1395)
    assert low[-1] == high[-1]
    assert [round(float(d), 4) for d in low] == [0.6996, 0.2507, 0.1248, 0.1103, 0.0640]
    assert [round(float(d), 4) for d in high] == [0.6996, 0.4375, 0.3309, 0.2044, 0.0640]


@pytest.mark.parametrize("moves", STEPS)
@pytest.mark.parametrize("xi", [3, 7, 15])
def test_both_solutions_have_the_stability_of_their_output(xi, moves):
    # f is ReLU(ξ − d) up to a constant, so D needs the distances alone; at 0 the pixels have met.
    def f(i, j):
        d = abs(i - j) % SITES
        return max(xi - min(d, SITES - d), 0)

    values = [f(0, d) for d in range(1, SITES)]
    changes = [(f(a, d + b) - f(0, d)) ** 2 for d in range(1, SITES) for a, b in itertools.product(STEPS[moves], repeat=2)]
    mean = Fraction(sum(values), len(values))
    expected = Fraction(sum(changes), len(changes)) / (2 * (Fraction(sum(v * v for v in values), len(values)) - mean**2))
    for kind in KINDS:
        assert two_pixel_deformation_stability(pooling_solution(kind, xi), moves=moves)[-1] == expected


def test_the_low_frequency_solution_is_more_stable_in_every_layer_before_the_output():
    for moves, xi in itertools.product(STEPS, allowed_scales()[1:]):
        low, high = (two_pixel_deformation_stability(pooling_solution(kind, xi), moves=moves) for kind in KINDS)
        assert all(a < b for a, b in zip(low[1:-1], high[1:-1], strict=True))


@given(st.sampled_from(KINDS), st.integers(1, 4), st.sampled_from(list(STEPS)), st.sampled_from([5, 7]))
@settings(max_examples=8)
def test_scale_and_precision_of_a_layer_do_not_matter(kind, factor, moves, xi):
    solution = pooling_solution(kind, xi, sites=14, dtype=torch.float32)
    expected = two_pixel_deformation_stability(pooling_solution(kind, xi, sites=14), moves=moves, sites=14)
    solution.conv1.weight.mul_(factor)
    solution[-3].bias.mul_(factor)
    assert two_pixel_deformation_stability(solution, moves=moves, sites=14) == expected
    spreads, scaled = layer_spreads(pooling_solution(kind, xi, sites=14), sites=14), layer_spreads(solution, sites=14)
    assert all(b == a * factor**2 for a, b in zip(spreads[1:], scaled[1:], strict=True))


def test_any_module_with_integer_weights():
    # Edges: more stable than neither; the layers of a module that is not a sequence are found by their ReLU.
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rectifier = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.rectifier(self.rectifier(x.roll(1, 2) - x) + x).sum(2)

    found = two_pixel_deformation_stability(Net(), sites=8)
    assert len(found) == 4
    assert found[0] == two_pixel_deformation_stability(pooling_solution("low-frequency", 3, sites=8), sites=8)[0]


def test_the_module_is_left_as_it_was():
    solution = pooling_solution("high-frequency", 5, dtype=torch.float32).train()
    two_pixel_deformation_stability(solution)
    simulated_noise_stability(solution, draws=200, generator=torch.Generator().manual_seed(0))
    assert solution.training
    assert solution.conv1.weight.dtype == torch.float32
    assert not any(module._forward_hooks for module in solution.modules())


# Planes


def plane_network(depth, mode, bias=-1.0):
    """Filters of ones, 3×3, a bias in the last layer, a sum over sites."""
    layers = []
    for k in range(1, depth + 1):
        layer = nn.utils.skip_init(nn.Conv2d, 1, 1, 3, padding=1, padding_mode=mode, dtype=F64)
        layer.weight.data.fill_(1)
        layer.bias.data.fill_(bias if k == depth else 0)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, SumOverSites()).requires_grad_(False)


def plain_plane_layers(x, height, width, depth, periodic):
    """The same on a dictionary of brightness by site."""
    found = [dict(x)]
    for k in range(1, depth + 1):
        x = found[-1]
        new = {}
        for r, c in itertools.product(range(height), range(width)):
            near = [(r + i, c + j) for i, j in itertools.product((-1, 0, 1), repeat=2)]
            total = sum(x[i % height, j % width] if periodic else x.get((i, j), 0) for i, j in near)
            new[r, c] = max(total - (k == depth), 0)
        found.append(new)
    return [list(layer.values()) for layer in found] + [[sum(found[-1].values())]]


def plain_plane_stability(height, width, depth, moves, periodic, *, diagonal=False):
    """D by its definition; both coordinates of a pixel in one draw for the wrong variant."""

    def layers(a, b):
        x = dict.fromkeys(itertools.product(range(height), range(width)), 0)
        for site in (a, b):
            x[site] += 1
        return plain_plane_layers(x, height, width, depth, periodic)

    def there(site, step):
        r, c = site[0] + step[0], site[1] + step[1]
        return (r % height, c % width) if periodic else (min(max(r, 0), height - 1), min(max(c, 0), width - 1))

    steps = [(a, a) for a in STEPS[moves]] if diagonal else list(itertools.product(STEPS[moves], repeat=2))
    pairs = list(itertools.combinations(itertools.product(range(height), range(width)), 2))
    still = [layers(a, b) for a, b in pairs]
    change, known = [0] * (depth + 2), {}
    for (a, b), here in zip(pairs, still, strict=True):
        for s, t in itertools.product(steps, repeat=2):
            key = tuple(sorted((there(a, s), there(b, t))))
            known[key] = known.get(key) or layers(*key)
            change = [total + square(p, q) for total, p, q in zip(change, here, known[key], strict=True)]
    spread = [Fraction(sum(square(a[n], b[n]) for a in still for b in still), len(pairs) ** 2) for n in range(depth + 2)]
    return tuple(Fraction(c, len(pairs) * len(steps) ** 2) / s for c, s in zip(change, spread, strict=True))


@pytest.mark.parametrize(("grid", "moves", "periodic"), [((3, 4), "stay", False), ((4, 3), "step", False), ((4, 4), "stay", True)])
def test_enumeration_on_a_plane_is_the_definition(grid, moves, periodic):
    net = plane_network(1, "circular" if periodic else "zeros")
    found = two_pixel_deformation_stability(net, moves=moves, sites=grid, periodic=periodic)
    assert found == plain_plane_stability(*grid, 1, moves, periodic)
    others = plain_plane_stability(*grid, 1, moves, not periodic), plain_plane_stability(*grid, 1, moves, periodic, diagonal=True)
    assert all(a != b for wrong in others for a, b in zip(found[:-1], wrong[:-1], strict=True))


def test_a_plane_of_one_row_is_a_ring_and_the_border_is_the_default():
    # A row that moves across itself goes nowhere.
    net = pooling_solution("high-frequency", 5, sites=10)
    ring = two_pixel_deformation_stability(net, sites=10)
    row = nn.Sequential(nn.Flatten(2, 3), net)
    assert two_pixel_deformation_stability(row, sites=(1, 10), periodic=True) == ring
    assert (
        two_pixel_deformation_stability(row, sites=(1, 10)) == two_pixel_deformation_stability(row, sites=(1, 10), periodic=False) != ring
    )


@pytest.mark.parametrize("moves", STEPS)
def test_the_depth_law_of_a_periodic_plane(moves):
    """Constant filters in frequency space: φ and ŵ are products, and 1/(N − 1) is that of all N sites."""
    height, width, depth = 5, 6, 3
    net = plane_network(depth, "circular", bias=0.0)[:-1]  # its sum over sites is the same for all images
    found = two_pixel_deformation_stability(net, moves=moves, sites=(height, width), periodic=True)
    p, q = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in (height, width)), indexing="ij")
    away = 1 - np.prod([np.mean([np.cos(step * f) for step in STEPS[moves]], axis=0) for f in (p, q)], axis=0)
    moved, signal = 4 * away - 2 * away**2 / (height * width - 1), 2 - 2 / (height * width - 1)
    for k in range(depth + 1):
        gains = ((1 + 2 * np.cos(p)) * (1 + 2 * np.cos(q))) ** (2 * k)
        assert math.isclose(found[k], (gains * moved).sum() / (2 * signal * gains.flatten()[1:].sum()), rel_tol=1e-11)


@pytest.mark.parametrize("sites", [(16, 17), (1, 2), (4,), (2, 2, 2), (4, 0)])
def test_planes_that_cannot_be_enumerated_are_refused(sites):
    with pytest.raises((ValueError, TypeError), match="sites: expected"):
        two_pixel_deformation_stability(nn.ReLU(), sites=sites)


# Closed forms of D


@pytest.mark.parametrize("moves", STEPS)
@pytest.mark.parametrize("sites", [6, 7, 13, SITES])
def test_the_depth_law_is_exact(sites, moves):
    for kind, xi in (("low-frequency", xi) for xi in allowed_scales(sites)):
        found = two_pixel_deformation_stability(pooling_solution(kind, xi, sites=sites), moves=moves, sites=sites)
        for k in range((xi - 1) // 2):
            assert found[k] == constant_filter_deformation_stability(k, moves=moves, sites=sites)


@pytest.mark.parametrize(("moves", "p"), [("stay", Fraction(2, 3)), ("step", Fraction(1))])
@pytest.mark.parametrize("sites", [14, 15, SITES])
def test_the_depth_law_of_shifts_and_fields(sites, moves, p):
    # Two channels are the input, shifted; the third is a field of m sites, whose two edges move.
    xi = allowed_scales(sites)[-1]
    found = two_pixel_deformation_stability(pooling_solution("high-frequency", xi, sites=sites), moves=moves, sites=sites)
    signal = 2 * Fraction(2 * sites - 4, sites - 1)
    for k in range(1, (xi - 1) // 2):
        m = 2 * k + 1
        assert found[k] == (12 * p - 8 * p**2 / (sites - 1)) / (signal * (2 + m - Fraction(2 + m * m, sites)))


@given(st.integers(4, 40), st.integers(0, 25), st.sampled_from(list(STEPS)))
@settings(max_examples=20)
def test_the_depth_law_in_frequency_space(sites, layers, moves):
    q = 2 * np.pi * np.arange(sites) / sites
    gains = ((1 + 2 * np.cos(q)) / 3) ** (2 * layers)
    away = 1 - np.mean([np.cos(q * step) for step in STEPS[moves]], axis=0)
    moved, signal = 4 * away - 2 * away**2 / (sites - 1), 2 - 2 / (sites - 1)
    expected = (gains * moved).sum() / (2 * signal * gains[1:].sum())
    # Sums of at most 60 positive numbers of order one, and a power 2·25, over a sum that may be as small as the lowest frequency's.
    assert math.isclose(constant_filter_deformation_stability(layers, moves=moves, sites=sites), expected, rel_tol=1e-11)


@pytest.mark.parametrize("moves", STEPS)
@pytest.mark.parametrize("sites", [5, 8, 15, SITES])
def test_the_mean_square_displacement(moves, sites):
    assert mean_square_displacement(moves=moves, sites=sites) == displacement_spectrum(moves, sites)[0]
    by_distance = [mean_square_displacement(moves=moves, sites=sites, distance=d) for d in range(1, sites // 2 + 1)]
    counts = [sites // 2 if 2 * d == sites else sites for d in range(1, sites // 2 + 1)]
    total = sum(c * m for c, m in zip(counts, by_distance, strict=True)) / sum(counts)
    assert total == mean_square_displacement(moves=moves, sites=sites)


@pytest.mark.parametrize(
    ("moves", "expected"),
    [("stay", [Fraction(16, 9), Fraction(26, 9)] + 14 * [Fraction(8, 3)]), ("step", [Fraction(2), Fraction(9, 2)] + 14 * [Fraction(4)])],
)
def test_pixels_that_cannot_meet_move_by_a_constant(moves, expected):
    assert [mean_square_displacement(moves=moves, distance=d) for d in range(1, 17)] == expected


@pytest.mark.parametrize(("moves", "leading"), [("stay", 0.25), ("step", 0.375)])
def test_leading_order_and_limit(moves, leading):
    large = 2000
    for k in (4, 16):
        # Next orders: √(8πk/3)/l from frequency 0, and 1/k from the shape of the filter.
        found = float(constant_filter_deformation_stability(k, moves=moves, sites=large)) * k / leading
        assert abs(found - 1) < math.sqrt(8 * math.pi * k / 3) / large + 0.5 / k
    limit = deformation_stability_limit(moves=moves)
    values = [float(constant_filter_deformation_stability(k, moves=moves)) for k in (0, 1, 5, 20, 100, 400)]
    assert all(a > b for a, b in itertools.pairwise([*values, limit]))
    # What is left is the next frequency, damped by (|ŵ(4π/l)|/|ŵ(2π/l)|)^{2k}.
    damped = ((1 + 2 * math.cos(4 * math.pi / SITES)) / (1 + 2 * math.cos(2 * math.pi / SITES))) ** 800
    assert values[-1] / limit - 1 < 10 * damped


# Noise


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-0.97, 0.97))
@settings(max_examples=20)
def test_bivariate_normal_probabilities(h, k, r):
    expected = multivariate_normal.cdf([h, k], cov=[[1, r], [r, 1]], abseps=1e-12, releps=1e-12)
    assert abs(float(bivariate_normal(np.array(h), np.array(k), r)) - expected) < 1e-9  # SciPy's quadrature


@pytest.mark.parametrize(
    ("h", "k"), [(0.0, 0.0), (0.0, 1.3), (0.0, -1.3), (-0.0, 1.3), (2.0, 0.0), (-2.0, 0.0), (40.0, -40.0), (1.0, 60.0)]
)
def test_bivariate_normal_at_its_edges(h, k):
    for r in (-0.5, 0.0, 0.8):
        found = float(bivariate_normal(np.array(h), np.array(k), r))
        assert abs(found - multivariate_normal.cdf([h, k], cov=[[1, r], [r, 1]], abseps=1e-12, releps=1e-12)) < 1e-9
    assert abs(float(bivariate_normal(np.array(h), np.array(k), 0.0)) - norm.cdf(h) * norm.cdf(k)) < 1e-14


def integrated_covariance(m1, m2, s1, s2, r):
    """By quadrature over the first variable, with the conditional mean of the second."""

    def mean(m, s):
        return m * norm.cdf(m / s) + s * norm.pdf(m / s)

    def integrand(z):
        return max(m1 + s1 * z, 0) * mean(m2 + s2 * r * z, s2 * math.sqrt(1 - r * r)) * norm.pdf(z)

    kink = min(max(-m1 / s1, -9), 9)
    product = sum(integrate.quad(integrand, *ends, epsabs=1e-13, epsrel=1e-12)[0] for ends in ((-10, kink), (kink, 10)))
    return product - mean(m1, s1) * mean(m2, s2)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.3, 2), st.floats(0.3, 2), st.floats(-0.9, 0.9))
@settings(max_examples=15)
def test_covariances_of_rectified_gaussians(m1, m2, s1, s2, r):
    found = float(rectified_covariance(np.array(m1), np.array(m2), s1, s2, r))
    assert abs(found - integrated_covariance(m1, m2, s1, s2, r)) < 1e-9


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.3, 2), st.floats(0.3, 2))
@settings(max_examples=15)
def test_the_covariance_is_continuous_at_one_variable(m1, m2, s1, s2):
    one, nearly = (float(rectified_covariance(np.array(m1), np.array(m2), s1, s2, r)) for r in (1.0, 1 - 1e-8))
    assert abs(one - nearly) < 10 * s1 * s2 * 1e-8 + 1e-10  # its derivative in r is s1 s2 P(both positive) ≤ s1 s2


def squared_error(m, s):
    """E (ReLU(m + s z) − ReLU(m))², from moments of one truncated normal."""
    a = m / s
    second = (m * m + s * s) * norm.cdf(a) + m * s * norm.pdf(a)
    return second - 2 * max(m, 0) * (m * norm.cdf(a) + s * norm.pdf(a)) + max(m, 0) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("xi", [3, 5])
def test_the_first_layer_site_by_site(kind, xi):
    solution, power = pooling_solution(kind, xi, sites=11), 2.3
    images = torch.zeros(5, 1, 11, dtype=F64)
    images[:, 0, 0] = 1
    images[range(5), 0, range(1, 6)] = 1
    taps = solution.conv1.weight.square().sum((1, 2)).sqrt() * math.sqrt(power / 11)
    total = [[squared_error(float(m), float(s)) for m in image[c]] for image in solution.conv1(images) for c, s in enumerate(taps)]
    expected = sum(map(sum, total)) / 5 / float(layer_spreads(solution, sites=11)[1])
    assert math.isclose(two_pixel_noise_stability(solution, power=power, sites=11)[1], expected, rel_tol=1e-12)


@pytest.mark.parametrize(("kind", "xi"), [("low-frequency", 3), ("high-frequency", 7), ("low-frequency", 9)])
def test_closed_form_and_simulation(kind, xi):
    solution = pooling_solution(kind, xi)
    closed = two_pixel_noise_stability(solution)
    found = simulated_noise_stability(solution, draws=10_000, generator=torch.Generator().manual_seed(xi), level=0.999)
    assert len(closed) == (3 if xi == 3 else (xi - 1) // 2)
    assert len(found) == (xi - 1) // 2 + 2
    for g, interval in zip(closed, found, strict=False):
        assert interval.low < g < interval.high
        assert interval.high - interval.low < 0.2 * interval.estimate
    linear = constant_filter_noise_stability(1, rectified=False)
    assert not found[1].low < float(linear) < found[1].high


def test_constant_filters_are_the_low_frequency_solution():
    closed = two_pixel_noise_stability(pooling_solution("low-frequency", 15))
    torch.testing.assert_close(constant_filter_noise_stability(6), torch.tensor(closed[1:], dtype=F64), rtol=1e-12, atol=0)


@given(st.integers(5, 40), st.integers(1, 20))
@settings(max_examples=15)
def test_linear_noise_by_overlaps(sites, layers):
    # Σ_q |ŵ|^{2k}/l is the middle coefficient of (z⁻¹ + 1 + z)^{2k} on the ring, in integers.
    overlaps = [1] + [0] * (sites - 1)
    for _ in range(2 * layers):
        overlaps = boxed(overlaps)
    signal = 2 * Fraction(2 * sites - 4, sites - 1)
    expected = overlaps[0] / (signal * (overlaps[0] - Fraction(9**layers, sites)))
    found = constant_filter_noise_stability(layers, rectified=False, power=1, sites=sites)[-1]
    assert math.isclose(float(found), float(expected), rel_tol=1e-11)


def test_noise_is_matched_to_the_moves_at_the_input():
    solution = pooling_solution("high-frequency", 5)
    assert math.isclose(two_pixel_noise_stability(solution)[0], two_pixel_deformation_stability(solution)[0], rel_tol=1e-14)
    assert two_pixel_noise_stability(solution, power=8 / 3)[0] > two_pixel_noise_stability(solution)[0]


def test_rectified_noise_grows_with_the_root_of_depth_on_a_long_ring():
    sites, power = 512, 2.0
    found = constant_filter_noise_stability(64, power=power, sites=sites).numpy()
    k = np.arange(1, 65)
    # G = c(√k + b) / (1 − √(8πk/3)/l): the mean of rectified noise, and its fluctuations at empty sites.
    overlap = sum(n * float(rectified_covariance(np.array(0.0), np.array(0.0), 1.0, 1.0, r)) for n, r in ((1, 1.0), (2, 2 / 3), (2, 1 / 3)))
    law = power / (24 * np.pi) * math.sqrt(8 * np.pi / 3) * (np.sqrt(k) + 2 * np.pi * math.sqrt(3 / (8 * np.pi)) * overlap)
    law /= 1 - np.sqrt(8 * np.pi * k / 3) / sites
    # Six of the sites are lit, in a square; the shape of the filter counts as 1/k.
    assert (np.abs(found / law - 1) < 12 / sites + 1 / (8 * k))[3:].all()
    flat = constant_filter_noise_stability(64, rectified=False, power=power, sites=sites).numpy()
    assert flat[-1] / flat[0] < 1.06
    assert found[-1] / found[0] > 3


def test_rectified_mean_far_from_zero():
    means = np.array([-40.0, 0.0, 40.0])
    assert rectified_mean(means, 1.0).tolist() == [0.0, 1 / math.sqrt(2 * math.pi), 40.0]


# Bad input


def scaled(factor):
    solution = pooling_solution("low-frequency", 5)
    solution.conv1.weight.mul_(factor)
    return solution


def deep(layers):
    return nn.Sequential(*[pooling_solution("low-frequency", 3).conv1 for _ in range(layers)], nn.ReLU())


def with_taps(*taps):
    solution = pooling_solution("low-frequency", 5)
    solution.conv1.weight.copy_(torch.tensor(taps, dtype=F64))
    return solution


def circular(**options):
    layer = nn.utils.skip_init(nn.Conv1d, 1, 1, **{"kernel_size": 3, "padding": 1, "padding_mode": "circular", "dtype": F64} | options)
    layer.weight.data.fill_(1)
    layer.bias.data.fill_(0)
    return nn.Sequential(layer, nn.ReLU(), SumOverSites())


RNG = torch.Generator().manual_seed(0)
LOW = pooling_solution("low-frequency", 5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: two_pixel_deformation_stability(scaled(0.5)), ValueError, "solution: expected integer weights and layers"),
        (lambda: two_pixel_deformation_stability(scaled(math.nan)), ValueError, "solution: expected integer weights and layers"),
        (lambda: two_pixel_deformation_stability(scaled(0)), ValueError, "layers that differ between images, .* number 1 after the input"),
        (lambda: two_pixel_deformation_stability(deep(40)), ValueError, "solution: expected sums that are exact"),
        (lambda: two_pixel_deformation_stability(nn.Linear(7, 2)), ValueError, r"solution: expected a module on images \(N, 1, 32\)"),
        (lambda: two_pixel_deformation_stability("low-frequency"), TypeError, "solution: expected a torch module"),
        (lambda: two_pixel_deformation_stability(LOW, moves="jump"), ValueError, "moves: expected 'stay'"),
        (lambda: two_pixel_deformation_stability(LOW, sites=2), ValueError, "sites: expected a ring of 3 to 256, got 2"),
        (lambda: two_pixel_deformation_stability(LOW, sites=1000), ValueError, "sites: expected a ring of 3 to 256"),
        (lambda: mean_square_displacement(distance=17), ValueError, "distance: expected one of 1 to 16 on 32 sites, got 17"),
        (lambda: mean_square_displacement(distance=0), ValueError, "distance: expected a positive integer"),
        (lambda: constant_filter_deformation_stability(-1), ValueError, "layers: expected a positive integer"),
        (lambda: constant_filter_deformation_stability(2.5), TypeError, "layers: expected a positive integer"),
        (lambda: constant_filter_noise_stability(0), ValueError, "layers: expected a positive integer"),
        (lambda: constant_filter_noise_stability(3, sites=4), ValueError, "sites: expected a ring of 5 to 4096, got 4"),
        (lambda: two_pixel_noise_stability(LOW, sites=4), ValueError, "sites: expected a ring of 5 to 256, got 4"),
        (lambda: constant_filter_noise_stability(3, power=0), ValueError, "power: expected a finite number > 0"),
        (lambda: two_pixel_noise_stability(with_taps([[1, -1, 0]])), ValueError, "filters without negative taps"),
        (lambda: two_pixel_noise_stability(with_taps([[0, 0, 0]])), ValueError, "none empty in the first layer"),
        (lambda: two_pixel_noise_stability(nn.Sequential(nn.Flatten())), ValueError, "circular Conv1d and ReLU in turn"),
        (lambda: two_pixel_noise_stability(circular(padding_mode="zeros")), ValueError, "circular Conv1d and ReLU in turn"),
        (lambda: two_pixel_noise_stability(circular(stride=2)), ValueError, "circular Conv1d and ReLU in turn"),
        (lambda: two_pixel_noise_stability(LOW[:-1]), ValueError, "circular Conv1d and ReLU in turn"),
        (lambda: two_pixel_noise_stability(nn.Flatten()), TypeError, "solution: expected an nn.Sequential"),
        (lambda: simulated_noise_stability(LOW, draws=100, generator=RNG), ValueError, "draws: expected at least 200"),
        (lambda: simulated_noise_stability(LOW, generator=None), TypeError, "generator: expected a torch.Generator"),
        (lambda: simulated_noise_stability(LOW, draws=200, generator=RNG, power=-1), ValueError, "power: expected a finite number > 0"),
    ],
)
def test_bad_input_is_refused(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert re.search(says, str(caught.value)), caught.value
