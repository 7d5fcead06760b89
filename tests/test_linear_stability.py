"""Relative stability of linear networks in closed form: identities against networks in space, laws, wrong variants, bad input."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.deformation import displacement_covariance, sample_displacements, warp
from linconv.linear_stability import (
    linear_deformation_stability,
    linear_relative_stability,
    readout_relative_stability,
    relative_stability_bounds,
    shuffled_relative_stability,
    spectral_covariance,
)
from linconv.network import LinearCNN, circular_convolution
from linconv.spectrum import FrequencyBlocks, conv_blocks, frequency_blocks
from linconv.stationary_fields import (
    bandlimited_warp,
    difference_covariance,
    first_order_difference_covariance,
    gradient_power,
    maximum_entropy_covariance,
    stationary_displacements,
)
from linconv.strategies import grids
from linconv.witnesses import dense_convolution, dense_fourier

F64 = torch.float64
GRIDS = [(7,), (8,), (4, 5), (4, 6), (3, 2, 4), (1, 5)]
named = pytest.mark.parametrize("grid", GRIDS, ids=str)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def correlated(n, channels, grid, seed=0):
    """Differences whose channels and frequencies are correlated, of unequal power."""
    z = normal(n, channels, *grid, seed=seed).cumsum(2)
    return torch.einsum("cd,nd...->nc...", normal(channels, channels, seed=seed + 1), z) + normal(channels, *grid, seed=seed + 2)


def isotropic(grid, seed=0):
    """A covariance ρ(h) with every frequency in it."""
    power = torch.fft.fftn(normal(*grid, seed=seed)).abs().square() + 0.1
    rho = torch.fft.ifftn(power).real
    return rho / rho.flatten()[0]


def by_definition(weights, y):
    """R of a stack of convolutions by dense matrices: ‖M y‖² over ‖y‖², relative to ‖M‖² over the number of columns."""
    matrix = np.eye(y[0].numel())
    for w in weights:
        matrix = dense_convolution(w.numpy(), tuple(y.shape[2:])) @ matrix
    flat = y.flatten(1).numpy()
    return np.square(flat @ matrix.T).sum() / np.square(flat).sum() * matrix.shape[1] / np.square(matrix).sum()


# --- the closed form ---------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(grid=grids(max_sites=16), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_closed_form_is_the_definition_for_any_differences(grid, channels, seed):
    y = correlated(3, channels, grid, seed)
    weights = [normal(2, channels, *[2] * len(grid), seed=seed), normal(3, 2, *[3] * len(grid), seed=seed + 5)]
    blocks = conv_blocks(weights[1], grid) @ conv_blocks(weights[0], grid)
    assert linear_relative_stability(blocks, spectral_covariance(y)) == pytest.approx(by_definition(weights, y), rel=1e-11)


def test_it_holds_for_the_deformed_images_of_the_experiments():
    x = normal(6, 2, 9, 9).cumsum(2).cumsum(3)
    y = warp(x, sample_displacements(6, (9, 9), temperature=0.005, cutoff=3, generator=seeded())) - x
    weights = [normal(3, 2, 3, 3), normal(2, 3, 3, 3, seed=1)]
    blocks = conv_blocks(weights[1], (9, 9)) @ conv_blocks(weights[0], (9, 9))
    assert linear_relative_stability(blocks, spectral_covariance(y)) == pytest.approx(by_definition(weights, y), rel=1e-11)


def test_wrong_variants_are_told_apart():
    y = correlated(4, 2, (4, 5))
    w = normal(2, 2, 2, 3)
    blocks, s = conv_blocks(w, (4, 5)), spectral_covariance(y)
    truth = by_definition([w], y)
    wrong = [
        (FrequencyBlocks(blocks.values.mT.contiguous(), "equivariant"), s),
        (FrequencyBlocks(blocks.values.conj().resolve_conj(), "equivariant"), s),
        (blocks, s.mT.contiguous()),
        (FrequencyBlocks(blocks.values[:, :3].contiguous(), "equivariant"), s[:, :3]),
    ]
    assert all(abs(linear_relative_stability(v, covariance) / truth - 1) > 1e-4 for v, covariance in wrong)


@named
def test_an_orthogonal_network_is_neutral_and_units_do_not_matter(grid):
    y = correlated(3, 2, grid)
    s = spectral_covariance(y)
    turn = torch.linalg.qr(normal(2, 2))[0].reshape(2, 2, *[1] * len(grid))
    assert linear_relative_stability(conv_blocks(turn, grid), s) == pytest.approx(1, rel=1e-12)
    w = normal(3, 2, *[2] * len(grid))
    found = linear_relative_stability(conv_blocks(w, grid), s)
    for scale in (1e-200, 1e200):
        assert linear_relative_stability(conv_blocks(scale * w, grid), s / scale) == pytest.approx(found, rel=1e-12)


@named
def test_the_bounds_hold_and_are_attained(grid):
    s = spectral_covariance(correlated(9, 2, grid))
    low, high = relative_stability_bounds(s)
    values, vectors = torch.linalg.eigh(s)
    found = []
    for place in (int(values[..., 0].argmin()), int(values[..., -1].argmax())):
        passed = torch.zeros_like(s[..., :1, :]).flatten(0, -3)
        passed[place] = vectors.flatten(0, -3)[place, :, 0 if not found else -1].conj()
        found.append(linear_relative_stability(FrequencyBlocks(passed.reshape(*grid, 1, 2), "equivariant"), s))
    assert found == pytest.approx([low, high], rel=1e-9, abs=1e-12)
    assert low <= linear_relative_stability(conv_blocks(normal(3, 2, *[2] * len(grid)), grid), s) <= high


@named
def test_deformation_stability_is_that_of_all_pairs_of_images(grid):
    x, w = correlated(5, 2, grid), normal(3, 2, *[2] * len(grid))
    moved = x.roll(1, 2) * 0.9 if grid[0] > 1 else x.roll(1, -1) * 0.9
    f = [circular_convolution(images, w).flatten(1) for images in (x, moved)]
    expected = (f[1] - f[0]).square().sum(1).mean() / torch.cdist(f[0], f[0]).square().mean()
    s, s_x = spectral_covariance(moved - x), spectral_covariance(x - x.mean(0))
    blocks = conv_blocks(w, grid)
    assert linear_deformation_stability(blocks, s, s_x) == pytest.approx(float(expected), rel=1e-9)
    assert linear_deformation_stability(blocks, s * 1e8, s_x * 1e-8) == pytest.approx(1e16 * float(expected), rel=1e-9)


@named
def test_a_readout_needs_the_whole_covariance_unless_frequencies_are_uncorrelated(grid):
    net = LinearCNN(2, (3,), 2, grid, kernel_size=2, generator=seeded())
    net.requires_grad_(False)
    blocks, y = frequency_blocks(net), correlated(3, 2, grid)
    noise = float(net(torch.eye(2 * math.prod(grid), dtype=F64).reshape(-1, 2, *grid)).square().sum()) / (2 * math.prod(grid))

    def observed(images):
        return float(net(images).square().sum() / images.square().sum()) / noise

    flat = y.flatten(1)
    assert readout_relative_stability(blocks, flat.T @ flat / 3) == pytest.approx(observed(y), rel=1e-10)
    formula = linear_relative_stability(FrequencyBlocks(blocks.values, "equivariant"), spectral_covariance(y))
    dims = tuple(range(2, 2 + len(grid)))
    everywhere = torch.cat([y.roll(shift, dims) for shift in product(*map(range, grid))])
    assert observed(everywhere) == pytest.approx(formula, rel=1e-10)
    assert abs(observed(y) / formula - 1) > 1e-4


def test_shuffled_channels_have_the_mean_over_all_permutations():
    grid, c = (3, 4), 3
    layers = [normal(c, 2, 2, 2), normal(c, c, 2, 2, seed=1), normal(2, c, 2, 2, seed=2)]
    y = correlated(4, 2, grid)
    both = torch.cat([y, torch.eye(24, dtype=F64).reshape(24, 2, *grid)])
    moved = white = 0.0
    for first, second in product(permutations(range(c)), repeat=2):
        out = both
        for w in (layers[0], layers[1][:, list(first)], layers[2][:, list(second)]):
            out = circular_convolution(out, w)
        powers = out.flatten(1).square().sum(1)
        moved, white = moved + float(powers[:4].sum() / y.square().sum()), white + float(powers[4:].mean())
    blocks = [conv_blocks(w, grid) for w in layers]
    s = spectral_covariance(y)
    assert shuffled_relative_stability(blocks, s) == pytest.approx(moved / white, rel=1e-11)
    assert shuffled_relative_stability(blocks[:1], s) == pytest.approx(linear_relative_stability(blocks[0], s), rel=1e-12)
    assert abs(linear_relative_stability(blocks[2] @ blocks[1] @ blocks[0], s) / (moved / white) - 1) > 1e-4


def test_a_single_channel_between_layers_has_nothing_to_shuffle():
    layers = [conv_blocks(normal(1, 2, 3), (5,)), conv_blocks(normal(2, 1, 3, seed=1), (5,))]
    s = spectral_covariance(correlated(4, 2, (5,)))
    assert shuffled_relative_stability(layers, s) == pytest.approx(linear_relative_stability(layers[1] @ layers[0], s), rel=1e-12)


@named
def test_the_covariance_of_data_is_that_of_a_dense_transform(grid, dtype):
    x = normal(3, 2, *grid, dtype=dtype)
    hats = x.double().flatten(2).numpy() @ dense_fourier(grid).T / math.sqrt(math.prod(grid))
    expected = np.einsum("ncq,ndq->qcd", hats, hats.conj()).reshape(*grid, 2, 2) / 3
    found = spectral_covariance(x)
    assert found.dtype == dtype.to_complex()
    assert np.abs(found.numpy() - expected).max() <= 100 * torch.finfo(dtype).eps * np.abs(expected).max()
    power = torch.diagonal(found, dim1=-2, dim2=-1).real.sum()
    assert float(power) == pytest.approx(float(x.double().square().flatten(1).sum(1).mean()), rel=100 * torch.finfo(dtype).eps)


def test_many_images_are_transformed_in_chunks(monkeypatch):
    x = normal(7, 2, 4, 5)
    whole = spectral_covariance(x)
    monkeypatch.setattr("linconv.linear_stability.CHUNK", 80)
    assert torch.allclose(spectral_covariance(x), whole, rtol=1e-13, atol=1e-15)


def test_single_precision_is_enough_for_either_argument():
    y, w = correlated(4, 2, (4, 5)), normal(3, 2, 2, 2)
    found = linear_relative_stability(conv_blocks(w.float(), (4, 5)), spectral_covariance(y.float()))
    assert found == pytest.approx(linear_relative_stability(conv_blocks(w, (4, 5)), spectral_covariance(y)), rel=1e-5)


# --- fields, warps and spectra -----------------------------------------------------------------------------------------


@named
def test_a_band_limited_warp_is_the_sum_over_waves(grid, dtype):
    x, tau = normal(2, 2, *grid, dtype=dtype), normal(2, len(grid), *grid, seed=1, dtype=dtype)
    sites = np.indices(grid).reshape(len(grid), -1)
    expected = np.zeros((2, 2, math.prod(grid)))
    hats = x.double().flatten(2).numpy() @ dense_fourier(grid).T / math.prod(grid)
    for n in range(2):
        at = sites - tau[n].double().flatten(1).numpy()
        for q, u in enumerate(product(*map(range, grid))):
            wave = np.ones(math.prod(grid), dtype=complex)
            for side, v, position in zip(grid, u, at, strict=True):
                angle = 2 * np.pi * (v - side * (2 * v > side)) / side * position
                wave = wave * (np.cos(angle) if 2 * v == side else np.exp(1j * angle))
            expected[n] += (hats[n, :, q, None] * wave).real
    found = bandlimited_warp(x, tau)
    assert found.dtype == dtype
    # A wave turns by an angle of at most 2π per site and pixel, and errs by as many ε.
    bound = 2 * np.pi * torch.finfo(dtype).eps * (max(grid) + float(tau.abs().max())) * math.prod(grid)
    assert np.abs(found.double().flatten(2).numpy() - expected).max() <= bound * float(x.abs().max())


@named
def test_a_whole_displacement_is_a_roll_and_none_the_identity(grid, dtype):
    x = normal(3, 2, *grid, dtype=dtype)
    shift = torch.arange(1, len(grid) + 1)
    tau = shift.to(dtype).reshape(1, -1, *[1] * len(grid)).expand(3, -1, *grid)
    tolerance = 200 * math.prod(grid) * torch.finfo(dtype).eps
    assert torch.allclose(bandlimited_warp(x, tau), x.roll(tuple(shift.tolist()), tuple(range(2, x.ndim))), atol=tolerance)
    assert torch.allclose(bandlimited_warp(x, torch.zeros_like(tau)), x, atol=tolerance)


def test_a_warp_is_differentiable_in_images_and_fields_and_chunked(monkeypatch):
    x, tau = normal(2, 1, 3, 4).requires_grad_(), normal(2, 2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(bandlimited_warp, (x, tau))
    whole = bandlimited_warp(x, tau)
    monkeypatch.setattr("linconv.stationary_fields.CHUNK", 1)
    assert torch.equal(bandlimited_warp(x, tau), whole)


@named
def test_fields_have_their_covariance(grid):
    rho = isotropic(grid)
    n = 4000
    tau = stationary_displacements(n, rho, generator=seeded())
    flat = tau.flatten(2)
    moved = torch.stack([rho.roll(shift, tuple(range(rho.ndim))).flatten() for shift in product(*map(range, grid))])
    for alpha, beta in product(range(len(grid)), repeat=2):
        expected = moved if alpha == beta else torch.zeros_like(moved)
        found = flat[:, alpha].T @ flat[:, beta] / n
        assert float((found - expected).abs().max()) < 6 * math.sqrt(2 / n)  # variances are 1: an entry errs by at most √(2/n)


@named
def test_a_maximum_entropy_covariance_has_its_spectrum(grid):
    if min(grid) < 3:
        with pytest.raises(ValueError, match="cutoff"):
            maximum_entropy_covariance(grid, variance=1.0, cutoff=1)
        return
    rho = maximum_entropy_covariance(grid, variance=2.5, cutoff=1)
    assert float(rho.flatten()[0]) == pytest.approx(2.5)
    power = torch.fft.fftn(rho).real
    squares = sum(np.meshgrid(*[(np.fft.fftfreq(n, 1 / n)) ** 2 for n in grid], indexing="ij"))
    inside = torch.from_numpy((squares > 0) & (squares < 2.25))
    weighted = (power * torch.from_numpy(squares))[inside]
    assert torch.allclose(weighted, weighted[0].expand_as(weighted), rtol=1e-10)
    assert float(power[~inside].abs().max()) < 1e-12 * float(power.max())


def enumerated(s, matrix, grid):
    """S of the differences by sums over frequencies, pairs of sites and the two waves of each cosine."""
    d, sites = math.prod(grid), np.indices(grid).reshape(len(grid), -1)
    variance = matrix.diagonal()
    covariance = np.zeros((d, d, *s.shape[-2:]), dtype=complex)
    for u, power in zip(product(*map(range, grid)), s.reshape(d, *s.shape[-2:]), strict=True):
        k = np.array([2 * np.pi * (v - n * (2 * v > n)) / n for v, n in zip(u, grid, strict=True)])
        signs = list(product(*[(1, -1) if 2 * v == n else (1,) for v, n in zip(u, grid, strict=True)]))

        def mean(first, second, k=k):
            """E exp(−i first·τ(p) + i second·τ(p′)) at all pairs of sites."""
            total = sum(
                a * a * variance[:, None] + b * b * variance - 2 * a * b * matrix for a, b in zip(first * k, second * k, strict=True)
            )
            return np.exp(-total / 2)

        pair = sum(mean(np.array(a), np.array(b)) for a in signs for b in signs) / len(signs) ** 2
        alone = np.exp(-np.square(k).sum() * variance / 2)
        phase = np.exp(1j * (k @ sites)[:, None] - 1j * (k @ sites))
        covariance += ((pair - alone[:, None] - alone + 1) * phase)[..., None, None] * power / d
    fourier = dense_fourier(grid)
    return np.einsum("qp,qr,prcd->qcd", fourier, fourier.conj(), covariance) / d


def as_matrix(rho):
    grid = tuple(rho.shape)
    return torch.stack([rho.roll(p, tuple(range(rho.ndim))).flatten() for p in product(*map(range, grid))])


@named
@pytest.mark.parametrize("size", [1e-3, 0.5, 30.0])
def test_the_spectrum_of_differences_is_the_sum_over_waves_and_sites(grid, size):
    s = spectral_covariance(correlated(4, 2, grid))
    rho = size**2 * isotropic(grid)
    mixing = normal(math.prod(grid), math.prod(grid)) * size / math.prod(grid) ** 0.5
    uneven = mixing @ mixing.T
    for given_, matrix in ((rho, as_matrix(rho)), (uneven.reshape(*grid, *grid), uneven)):
        expected = enumerated(s.numpy(), matrix.numpy(), grid)
        found = difference_covariance(s, given_).numpy().reshape(expected.shape)
        # At small displacements numbers near 1 cancel in the enumeration to sums of the order size².
        assert np.abs(found - expected).max() <= 1e-13 * (1 + 1 / size**2) * np.abs(expected).max()


def test_a_stationary_field_may_be_given_either_way():
    grid = (4, 5)
    s, rho = spectral_covariance(correlated(4, 2, grid)), isotropic(grid)
    pairs = as_matrix(rho).reshape(*grid, *grid)
    for function in (difference_covariance, first_order_difference_covariance):
        assert torch.allclose(function(s, rho), function(s, pairs), rtol=1e-12, atol=1e-13)


@named
def test_given_images_and_stationary_fields_have_that_spectrum(grid):
    """Images that are correlated in frequency, each with many fields: the sampling error is measured between batches of fields."""
    x, rho, batches = correlated(2, 2, grid), 0.3 * isotropic(grid), 25
    generator, s = seeded(5), []
    for _ in range(batches):
        many = x.repeat(20, 1, *[1] * len(grid))
        s.append(spectral_covariance(bandlimited_warp(many, stationary_displacements(40, rho, generator=generator)) - many))
    expected = difference_covariance(spectral_covariance(x), rho)
    traces = torch.stack([torch.diagonal(part, dim1=-2, dim2=-1).real.sum(-1).flatten() for part in s])
    error = traces.std(0) / batches**0.5
    # 5 standard errors, of at most 24 numbers.
    gap = (traces.mean(0) - torch.diagonal(expected, dim1=-2, dim2=-1).real.sum(-1).flatten()).abs()
    assert bool((gap <= 5 * error + 1e-12 * float(traces.mean())).all())
    first = torch.diagonal(first_order_difference_covariance(spectral_covariance(x), rho), dim1=-2, dim2=-1).real.sum()
    assert abs(float(traces.sum(1).mean() - first)) > 5 * float(traces.sum(1).std()) / batches**0.5


def test_maximum_entropy_fields_on_randomly_shifted_images():
    n, x = 8, correlated(2, 1, (8, 8))
    temperature, generator, totals = 0.01, seeded(1), []
    for _ in range(20):
        many = torch.cat([image.roll((i % n, i // n), (1, 2))[None] for image in x for i in range(n * n)])
        tau = sample_displacements(len(many), (n, n), temperature=temperature, cutoff=3, generator=generator)
        totals.append(spectral_covariance(bandlimited_warp(many, tau) - many)[..., 0, 0].real.flatten())
    pairs = displacement_covariance((n, n), temperature=temperature, cutoff=3)
    expected = difference_covariance(spectral_covariance(x), pairs)[..., 0, 0].real.flatten()
    drawn = torch.stack(totals)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - expected).abs() <= 5 * error).all())


@named
def test_small_displacements_are_the_first_order(grid):
    s, rho = spectral_covariance(correlated(4, 2, grid)), isotropic(grid)
    largest = 3 * math.pi**2
    for size in (1e-4, 1e-8):
        whole, first = difference_covariance(s, size * rho), first_order_difference_covariance(s, size * rho)
        assert float((whole - first).abs().max()) <= (largest**2 * size**2 + 1e-12 * size) * float(s.abs().sum())
    assert torch.allclose(first_order_difference_covariance(s, 4 * rho), 4 * first_order_difference_covariance(s, rho))


@settings(max_examples=15)
@given(grid=grids(max_sites=24), seed=st.integers(0, 99), channels=st.integers(1, 2))
def test_every_network_is_neutral_to_images_of_spectrum_minus_two_but_for_its_weight_where_the_field_is(grid, seed, channels):
    squares = sum(np.meshgrid(*[(2 * np.pi * np.fft.fftfreq(n)) ** 2 for n in grid], indexing="ij"))
    middle = sum(np.meshgrid(*[((2 * np.pi * np.fft.fftfreq(n)) ** 2) * (np.arange(n) * 2 == n) for n in grid], indexing="ij"))
    if not (squares > middle).any():
        return  # every derivative vanishes at the sites: nothing moves to first order
    nu = np.where(squares > 0, middle / np.where(squares > 0, squares, 1), 1)
    power = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), 0)
    rho = isotropic(grid, seed)
    spectrum = torch.fft.fftn(rho).real.numpy() / nu.size
    blocks = conv_blocks(normal(2, channels, *[2] * len(grid), seed=seed), grid)
    w = blocks.values.abs().square().sum((-2, -1)).numpy()
    w = w / w.sum()
    taken = sum(
        w[q] * spectrum[tuple(np.subtract(q, k) % np.array(grid))] * nu[k]
        for q in product(*map(range, grid))
        for k in product(*map(range, grid))
        if nu[k]
    )
    expected = nu.size / (nu.size - nu.sum()) * (1 - taken)
    s = torch.from_numpy(power)[..., None, None] * torch.eye(channels, dtype=F64)
    found = linear_relative_stability(blocks, first_order_difference_covariance(s, rho))
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_low_passes_are_more_stable_below_the_exponent_two_and_less_above():
    grid = (21, 21)
    rho = maximum_entropy_covariance(grid, variance=1e-6, cutoff=1)
    low = conv_blocks(torch.ones(1, 1, 3, 3, dtype=F64), grid)
    high = conv_blocks(torch.outer(*[torch.tensor([1.0, -2.0, 1.0], dtype=F64)] * 2)[None, None], grid)
    squares = gradient_power(grid)
    spectra = [torch.where(squares > 0, squares.clamp_min(1e-9) ** (-a / 2), 0.0)[..., None, None] for a in (1.0, 2.0, 3.0)]
    of_low, of_high = ([linear_relative_stability(v, difference_covariance(s, rho)) for s in spectra] for v in (low, high))
    assert of_low[0] < 0.9 < of_low[1] < 1.1 < of_low[2]
    assert of_high[0] > 1.1 > of_high[1] > 0.9 > of_high[2]
    far = maximum_entropy_covariance(grid, variance=1.0, cutoff=1)
    assert linear_relative_stability(low, difference_covariance(spectra[1], far)) > 1.2


def test_gradients_of_middle_frequencies_vanish():
    assert gradient_power((4,)).tolist() == pytest.approx([0, (math.pi / 2) ** 2, 0, (math.pi / 2) ** 2])
    assert gradient_power((3, 2)).shape == (3, 2)
    assert torch.equal(gradient_power((3, 2))[:, 1], gradient_power((3,)))
    checkerboard = torch.tensor([1.0, -1.0], dtype=F64).repeat(2)[None, None]
    moved = bandlimited_warp(checkerboard, torch.full((1, 1, 4), 1e-4, dtype=F64)) - checkerboard
    assert float(moved.abs().max()) < 1e-7  # (10⁻⁴π)²/2


# --- bad input ---------------------------------------------------------------------------------------------------------


def blocks_and_covariance():
    return conv_blocks(normal(2, 2, 3), (5,)), spectral_covariance(correlated(3, 2, (5,)))


def test_readouts_are_refused_by_name_and_convolutions_where_a_readout_is_meant():
    blocks, s = blocks_and_covariance()
    readout = FrequencyBlocks(blocks.values, "readout")
    for function in (
        linear_relative_stability,
        lambda v, c: linear_deformation_stability(v, c, s),
        lambda v, c: shuffled_relative_stability([v], c),
    ):
        with pytest.raises(ValueError, match=r"'readout'.*readout_relative_stability"):
            function(readout, s)
    with pytest.raises(ValueError, match=r"'equivariant'.*linear_relative_stability"):
        readout_relative_stability(blocks, torch.eye(10, dtype=F64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:4], r"covariance: expected \(5, 2, 2\)"),
        (lambda s: s[..., :1], r"covariance: expected \(\*grid, C, C\)"),
        (lambda s: s[..., :1, :1], r"covariance: expected \(5, 2, 2\)"),
        (lambda s: s + 1j * torch.ones(2, 2), "covariance: expected Hermitian"),
        (lambda s: -s, "covariance: expected variances"),
        (lambda s: 0 * s, "covariance: .* not all zero"),
        (lambda s: s * math.nan, "covariance: expected finite"),
        (lambda s: s[0, 0], "covariance: expected"),
    ],
)
def test_bad_covariances_are_named(change, message):
    blocks, s = blocks_and_covariance()
    with pytest.raises(ValueError, match=message):
        linear_relative_stability(blocks, change(s))


@pytest.mark.usefixtures("unchecked")
def test_bad_networks_and_types_are_named():
    blocks, s = blocks_and_covariance()
    zero = FrequencyBlocks(0 * blocks.values, "equivariant")
    with pytest.raises(ValueError, match=r"blocks: .* not all zero"):
        linear_relative_stability(zero, s)
    with pytest.raises(TypeError, match="blocks: expected FrequencyBlocks, got Tensor"):
        linear_relative_stability(blocks.values, s)
    with pytest.raises(TypeError, match="covariance: expected a torch tensor"):
        linear_relative_stability(blocks, s.numpy())
    with pytest.raises(ValueError, match="layers: expected a sequence"):
        shuffled_relative_stability([], s)
    with pytest.raises(ValueError, match=r"layers: blocks .* cannot follow"):
        shuffled_relative_stability([blocks, conv_blocks(normal(2, 3, 3), (5,))], s)
    difference = conv_blocks(torch.tensor([[[1.0, -1.0], [0, 0]]], dtype=F64), (5,))
    constant = torch.zeros(5, 2, 2)
    constant[0] = torch.eye(2)
    with pytest.raises(ValueError, match="image_covariance: expected images that the network tells apart"):
        linear_deformation_stability(difference, s, constant)
    readout = FrequencyBlocks.from_predictor(normal(2, 2, 5))
    with pytest.raises(ValueError, match=r"covariance: expected \(10, 10\)"):
        readout_relative_stability(readout, torch.eye(9, dtype=F64))
    with pytest.raises(ValueError, match="images: expected"):
        spectral_covariance(normal(4, 5))


@pytest.mark.usefixtures("unchecked")
def test_bad_fields_are_named():
    s = torch.ones(6, 1, 1, dtype=F64)
    for rho in (normal(6), -torch.eye(6, dtype=F64)[0]):
        with pytest.raises(ValueError, match="covariance: expected ρ"):
            stationary_displacements(3, rho, generator=seeded())
        with pytest.raises(ValueError, match="displacement_covariance: expected ρ"):
            difference_covariance(s, rho)
    with pytest.raises(ValueError, match=r"displacement_covariance: expected .* of a stationary field"):
        difference_covariance(s, torch.ones(5, dtype=F64))
    with pytest.raises(ValueError, match="displacement_covariance: expected a symmetric"):
        difference_covariance(s, normal(6, 6))
    for cutoff in (0.4, 3):
        with pytest.raises(ValueError, match="cutoff"):
            maximum_entropy_covariance((6,), variance=1.0, cutoff=cutoff)
    with pytest.raises(TypeError, match="generator"):
        stationary_displacements(3, torch.ones(6, dtype=F64), generator=None)
    x = normal(2, 1, 6)
    with pytest.raises(ValueError, match=r"displacements: expected \(2, 1, 6\)"):
        bandlimited_warp(x, normal(1, 1, 6))
    with pytest.raises(TypeError, match="displacements: expected torch"):
        bandlimited_warp(x, normal(2, 1, 6, dtype=torch.float32))
