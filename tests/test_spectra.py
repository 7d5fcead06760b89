"""Power spectra, radial averages, exponents and filters: definitions by loops and explicit matrices, laws, coverage, wrong variants."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from linconv.filters import band_pass, high_pass, low_pass
from linconv.spectra import frequencies, power_spectrum, published_curve, radial_average, shells, spectral_exponent, standardise
from linconv.statistics import first_moment
from linconv.witnesses import dense_fourier

F64 = torch.float64
EPS = torch.finfo(F64).eps
GRIDS = [(1,), (5,), (6,), (4, 4), (5, 5), (5, 4), (3, 8), (3, 2, 4)]
grids = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 10**6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def signed(index, n):
    """The integer of least modulus that an index of the FFT stands for, by search."""
    return min((k for k in range(-n, n) if (k - index) % n == 0), key=abs)


def fourier(images):
    """The orthonormal DFT by an explicit matrix, (N, C, *grid)."""
    grid = tuple(images.shape[2:])
    matrix = dense_fourier(grid) / math.sqrt(math.prod(grid))
    return torch.from_numpy(images.double().flatten(2).numpy() @ matrix.T).reshape(images.shape)


def close(a, b, scale, dtype=F64):
    """Equal up to 100 ε of a scale: transforms of at most a few hundred numbers."""
    return bool((a.double() - b.double()).abs().max() <= 100 * torch.finfo(dtype).eps * scale)


def power_law(count, grid, alpha, seed, channels=1):
    """Gaussian images with E|x̂_u|² = |u|^{−2α}, and no mean."""
    noise = torch.fft.fftn(normal(count, channels, *grid, seed=seed), dim=tuple(range(2, len(grid) + 2)), norm="ortho")
    squares = sum(np.meshgrid(*[[signed(i, n) ** 2 for i in range(n)] for n in grid], indexing="ij"))
    gain = np.where(squares > 0, np.maximum(squares, 1.0) ** (-alpha / 2), 0.0)
    return torch.fft.ifftn(noise * torch.from_numpy(gain), dim=tuple(range(2, len(grid) + 2)), norm="ortho").real


# Frequencies and radial averages


@pytest.mark.parametrize("n", range(1, 12))
def test_frequencies_are_symmetric_integers(n):
    assert frequencies(n).tolist() == [k if 2 * k != n else -k for k in (signed(i, n) for i in range(n))]
    if n % 2:
        assert sorted(frequencies(n).tolist()) == list(range(-(n // 2), n // 2 + 1))


@given(grids)
def test_shells_are_the_distinct_radii(grid):
    radii, index, counts = shells(grid)
    squares = [sum(signed(i, n) ** 2 for i, n in zip(u, grid, strict=True)) for u in itertools.product(*map(range, grid))]
    distinct = sorted(set(squares))
    assert radii.tolist() == [math.sqrt(s) for s in distinct]
    assert [distinct[i] for i in index] == squares
    assert counts.tolist() == [squares.count(s) for s in distinct]


@given(grids, st.integers(1, 3), seeds)
def test_radial_average_partitions_the_map(grid, channels, seed):
    given_map = normal(channels, *grid, seed=seed)
    radii, values = radial_average(given_map)
    _, _, counts = shells(grid)
    assert int(counts.sum()) == math.prod(grid)
    assert close(channels * (counts * values).sum(), given_map.sum(), float(given_map.abs().sum()))
    by_hand: dict[int, list[float]] = {}
    for u in itertools.product(*map(range, grid)):
        square = sum(signed(i, n) ** 2 for i, n in zip(u, grid, strict=True))
        by_hand.setdefault(square, []).extend(given_map[(slice(None), *u)].tolist())
    assert torch.allclose(values, torch.tensor([math.fsum(by_hand[s]) / len(by_hand[s]) for s in sorted(by_hand)], dtype=F64))
    assert len(radii) == len(by_hand)


@given(grids, seeds)
def test_radial_average_knows_the_radius_alone(grid, seed):
    a, b = normal(2, seed=seed).tolist()
    radius = torch.tensor(
        [math.sqrt(sum(signed(i, n) ** 2 for i, n in zip(u, grid, strict=True))) for u in itertools.product(*map(range, grid))], dtype=F64
    ).reshape(1, *grid)
    radii, values = radial_average(a + b * radius)
    assert close(values, a + b * radii, abs(a) + abs(b) * float(radii.max()))
    mirrored = normal(2, *grid, seed=seed)
    dims = tuple(range(1, len(grid) + 1))
    again = radial_average(mirrored.flip(dims).roll([1] * len(grid), dims))[1]
    assert close(again, radial_average(mirrored)[1], float(mirrored.abs().max()))


def test_the_published_radii_are_others():
    # linspace(−16, 16, 32) puts frequency zero at 0.73, and +1 and −1 at different radii.
    centred = np.linspace(-16, 16, 32)
    radius = np.fft.ifftshift(np.hypot(*np.meshgrid(centred, centred, indexing="ij")))
    radii, values = radial_average(torch.from_numpy(radius)[None])
    assert abs(float(values[0]) - 0.73) < 0.01
    assert abs(radius[1, 0] - radius[-1, 0]) > 0.9
    assert float((values - radii).abs().max()) > 0.1


def test_dtype_of_the_map(dtype):
    radii, values = radial_average(torch.ones(1, 4, 4, dtype=dtype))
    assert (radii.dtype, values.dtype) == (dtype, dtype)
    assert values.tolist() == [1.0] * len(radii)


# Power spectra


@pytest.mark.parametrize("grid", GRIDS)
def test_power_spectrum_is_what_its_definition_says(grid, dtype):
    images = normal(7, 2, *grid, dtype=dtype)
    found = power_spectrum(images)
    assert found.dtype == dtype
    assert close(found, fourier(images).abs().square().mean(0).sqrt(), float(images.abs().max()) * math.sqrt(math.prod(grid)), dtype)


@given(grids, st.integers(1, 5), st.integers(-900, 900), seeds)
def test_laws_of_the_power_spectrum(grid, count, exponent, seed):
    images = normal(count, 2, *grid, seed=seed)
    found, scale = power_spectrum(images), float(images.abs().max()) * math.sqrt(math.prod(grid))
    dims = tuple(range(2, len(grid) + 2))
    assert close(
        found.square().sum(dims[:-1] if len(grid) == 0 else tuple(d - 1 for d in dims)), images.square().sum(dims).mean(0), scale**2
    )
    assert close(power_spectrum(images.roll([2] * len(grid), dims)), found, scale)
    assert close(power_spectrum(images.repeat(2, *[1] * (len(grid) + 1))), found, scale)
    assert torch.equal(power_spectrum(images * 2.0**exponent), found * 2.0**exponent) or abs(exponent) > 200
    scaled = power_spectrum(images * 2.0**exponent) / 2.0**exponent
    assert close(scaled, found, scale)


def test_white_noise_is_flat():
    # |x̂_u|² of unit white noise has mean 1 and variance at most 2: with 4000 images its mean errs by √(2/4000), five times that here.
    found = power_spectrum(normal(4000, 2, 5, 4))
    assert float((found.square() - 1).abs().max()) < 5 * math.sqrt(2 / 4000)
    radii, values = radial_average(power_spectrum(power_law(4000, (5, 4), 1.0, seed=1)))
    assert float((values[1:] * radii[1:] - 1).abs().max()) < 5 * math.sqrt(2 / 4000)


def test_chunks_do_not_matter(monkeypatch):
    images = normal(20, 2, 4, 5)
    whole, alpha = power_spectrum(images), spectral_exponent(images)
    monkeypatch.setattr("linconv.spectra.CHUNK", 3 * 40)
    assert close(power_spectrum(images), whole, 10)
    assert abs(spectral_exponent(images).estimate - alpha.estimate) < 1e-12


@given(grids, st.integers(2, 6), seeds, st.integers(-900, 900))
def test_standardised_images(grid, count, seed, exponent):
    images = normal(count, 3, *grid, seed=seed)
    assume(float(images.std()) > 0.1)
    found, over = standardise(images), (0, *range(2, len(grid) + 2))
    assert close(found.mean(over), torch.zeros(3), 10)
    assert close(found.square().mean(over), torch.ones(3), 10)
    assert close(standardise(images * torch.tensor([1.0, 2.0, -3.0], dtype=F64).reshape(3, *[1] * len(grid)))[:, :2], found[:, :2], 100)
    assert close(standardise(images * 2.0**exponent), found, 100)
    # Affine in each channel.
    slope, level = (
        ((found - found.mean(over, keepdim=True)) * (images - images.mean(over, keepdim=True))).mean(over),
        images.std(over, False),
    )
    assert close(slope, level, 10)


def test_standardising_in_each_precision(dtype):
    found = standardise(100 + normal(50, 2, 4, 4, dtype=dtype))
    assert found.dtype == dtype
    # A mean of 100 leaves 1/100 of the digits of numbers of order one.
    assert close(found.square().mean((0, 2, 3)), torch.ones(2), 100, dtype)


# The exponent


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("grid", [(32,), (9, 12), (6, 6, 7)])
def test_the_exponent_of_images_with_an_exact_power_law(alpha, grid):
    # One delta an image, filtered: |x̂_u| is |u|^−α exactly.
    squares = sum(np.meshgrid(*[[signed(i, n) ** 2 for i in range(n)] for n in grid], indexing="ij"))
    gain = torch.from_numpy(np.maximum(squares, 1.0) ** (-alpha / 2))
    image = torch.fft.ifftn(gain, norm="ortho").real[None, None]
    found = spectral_exponent(torch.cat([image, 2 * image]))
    assert abs(found.estimate - alpha) < 1e-12
    assert abs(found.high - found.low) < 1e-11
    radii, values = radial_average(gain[None])
    assert abs(spectral_exponent(values[1:], radii[1:]).estimate - alpha) < 1e-12
    rows = spectral_exponent(torch.stack([values, 3 * values])[:, 1:], radii[1:])
    assert abs(rows.estimate - alpha) < 1e-12


@pytest.mark.parametrize("grid", [(8, 8), (9, 7), (6, 10), (16,), (4, 5, 6)])
def test_the_exponent_is_fitted_on_whole_circles(grid):
    images = normal(6, 2, *grid)
    power = fourier(images).abs().square().mean((0, 1)).flatten().tolist()
    squares = [sum(signed(i, n) ** 2 for i, n in zip(u, grid, strict=True)) for u in itertools.product(*map(range, grid))]
    fitted = [s for s in sorted(set(squares)) if s > 0 and 4 * s <= min(grid) ** 2]
    values = [np.mean([p for p, s in zip(power, squares, strict=True) if s == square]) for square in fitted]
    line = stats.linregress(np.log(fitted) / 2, np.log(values) / 2)
    assert abs(spectral_exponent(images).estimate + line.slope) < 1e-11


def test_the_interval_of_the_exponent_covers():
    # Of 400 sets of 10 images fewer than the binomial bound would be covered once in 10^4 times, were the true coverage 0.95.
    hits = narrow = 0
    for seed in range(400):
        found = spectral_exponent(power_law(10, (8, 8), 1.0, seed))
        hits += found.low <= 1.0 <= found.high
        narrow += abs(1.0 - found.estimate) <= (found.high - found.estimate) / 2
    least = stats.binom.ppf(1e-4, 400, 0.95)
    assert hits >= least
    assert narrow < least  # an interval half as wide does not pass


@given(seeds, st.integers(-5, 5))
@settings(max_examples=20)
def test_laws_of_the_exponent(seed, exponent):
    images = power_law(12, (7, 8), 1.2, seed, channels=2)
    plain = spectral_exponent(images)
    scaled = spectral_exponent(images * 2.0**exponent + 5.0)  # the mean is not looked at
    assert abs(plain.estimate - scaled.estimate) < 1e-9
    rougher = torch.fft.fftn(images, dim=(2, 3)) * torch.from_numpy(
        np.sqrt(np.hypot(*np.meshgrid([signed(i, 7) for i in range(7)], [signed(i, 8) for i in range(8)], indexing="ij")))
    )
    # Multiplying the spectrum by |u|^½ takes ½ from the exponent.
    less = spectral_exponent(torch.fft.ifftn(rougher, dim=(2, 3)).real)
    assert abs(plain.estimate - 0.5 - less.estimate) < 1e-9
    assert plain.low <= plain.estimate <= plain.high


def test_the_exponent_of_one_curve():
    radii = torch.arange(1.0, 30.0, dtype=F64)
    noisy = radii**-1.3 * (0.1 * normal(29)).exp()
    found = spectral_exponent(noisy, radii)
    line = stats.linregress(radii.log().numpy(), noisy.log().numpy())
    assert abs(found.estimate + line.slope) < 1e-12
    assert found.low < 1.3 < found.high
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 27) * line.stderr)


# The published post-processing


@given(st.integers(2, 20), st.integers(0, 5), seeds)
def test_published_curves(count, neighbours, seed):
    radii = normal(count, seed=seed).abs().cumsum(0)
    assume(float(radii.diff().min()) > 1e-3)
    values = normal(3, count, seed=seed).abs() + 0.1
    plain = published_curve(radii, values, smooth=0, log=False)
    assert close(torch.trapezoid(plain, radii), torch.ones(3), 10)
    assert close(plain * values[:, :1], values * plain[:, :1], float(values.max() * plain.max()))
    smooth = published_curve(radii, values, normalise=False, smooth=neighbours, log=False) if neighbours else values
    by_hand = torch.stack([values[:, max(0, i - neighbours) : i + neighbours + 1].mean(1) for i in range(count)], 1)
    assert close(smooth, by_hand, float(values.max()))
    both = published_curve(radii, values, smooth=neighbours)
    direct = published_curve(radii, plain, normalise=False, smooth=neighbours, log=False).log()
    assert close(both, direct, 10)
    assert close(published_curve(radii, 7 * values), published_curve(radii, values), 100)
    assert close(published_curve(radii, values[1]), published_curve(radii, values)[1], 100)
    assert abs(first_moment(plain[0], radii) - first_moment(values[0], radii)) <= 100 * EPS * float(radii[-1])


# Filters


def masked_by_hand(images, keep):
    """The filter with a mask given frequency by frequency, by explicit matrices in NumPy."""
    grid = tuple(images.shape[2:])
    matrix = dense_fourier(grid) / math.sqrt(math.prod(grid))
    mask = np.array([keep([abs(signed(i, n)) for i, n in zip(u, grid, strict=True)]) for u in itertools.product(*map(range, grid))])
    projection = matrix.conj().T @ (mask[:, None] * matrix)
    assert np.abs(projection.imag).max() < 1e-12  # symmetric masks keep images real
    return torch.from_numpy(images.double().flatten(2).numpy() @ projection.real.T).reshape(images.shape)


@given(grids, st.sampled_from([0, 0.5, 1, 1.5, 2, 3, 10]), st.sampled_from([0, 0.5, 1, 2, 3, 10]), seeds)
def test_filters_by_hand_and_as_projections(grid, a, b, seed):
    x, y = normal(2, 2, *grid, seed=seed), normal(2, 2, *grid, seed=seed + 1)
    inner, outer = sorted((a, b))
    filters = {
        "low": (lambda z: low_pass(z, outer), lambda u: max(u) <= outer),
        "high": (lambda z: high_pass(z, outer), lambda u: max(u) > outer),
        "band": (lambda z: band_pass(z, inner, outer), lambda u: max(u) <= outer and max(u) > inner),
    }
    scale = float(x.abs().max()) * math.sqrt(math.prod(grid))
    for project, keep in filters.values():
        px = project(x)
        assert close(px, masked_by_hand(x, keep), scale)
        assert close(project(px), px, scale)
        assert close((px * y).sum(), (x * project(y)).sum(), float(x.norm() * y.norm()))
        shifts, dims = [2] * len(grid), list(range(2, len(grid) + 2))
        assert close(project(x.roll(shifts, dims)), px.roll(shifts, dims), scale)
    assert close(low_pass(x, inner) + band_pass(x, inner, outer) + high_pass(x, outer), x, scale)
    assert close((low_pass(x, outer) * high_pass(y, outer)).sum(), torch.zeros(()), float(x.norm() * y.norm()))


def test_filters_of_one_width_a_dimension_and_of_both_precisions(dtype):
    x = normal(3, 2, 6, 9, dtype=dtype)
    found = low_pass(x, (1, 3))
    assert found.dtype == dtype
    assert close(found, masked_by_hand(x, lambda u: u[0] <= 1 and u[1] <= 3), 30, dtype)
    assert close(low_pass(x, (3, 4.5)), x, 30, dtype)
    assert close(high_pass(x, 0), x - x.mean((2, 3), keepdim=True), 30, dtype)


def test_the_published_mask_keeps_half_of_an_edge():
    # Bins −8, …, 7 of 32 set to zero, then the real part: frequency 8 keeps half of its gain. Here it is gone, whole.
    wave = torch.cos(2 * math.pi * 8 * torch.arange(32, dtype=F64) / 32)
    image = wave.expand(32, 32)[None, None]
    centred = np.arange(-16, 16)
    removed = (centred >= -8) & (centred <= 7)
    mask = np.fft.ifftshift(~np.logical_and.outer(removed, removed))
    published = torch.fft.ifft2(torch.fft.fft2(image) * torch.from_numpy(mask)).real
    assert close(published, image / 2, 32)
    assert close(high_pass(image, 8), torch.zeros(1, 1, 32, 32), 32)
    assert close(high_pass(image, 7), image, 32)
    assert not close(high_pass(high_pass(image, 7), 7) / 2, published / 2, 32)


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_spectrum(torch.ones(3, 4)), r"images: expected \(N, C, \*grid\)"),
        (lambda: power_spectrum(torch.ones(3, 0, 4)), "images: expected data"),
        (lambda: power_spectrum(torch.full((1, 1, 4), math.inf)), "images: expected finite"),
        (lambda: power_spectrum([1.0]), "images: expected a torch tensor"),
        (lambda: power_spectrum(torch.ones(1, 1, 4, dtype=torch.complex64)), "images: expected dtype"),
        (lambda: radial_average(torch.ones(4)), r"map: expected \(C, \*grid\)"),
        (lambda: radial_average(torch.full((1, 4), math.nan)), "map: expected finite"),
        (lambda: standardise(torch.stack([torch.rand(3, 4), torch.full((3, 4), 0.1)], 1)), "constant channel 1"),
        (lambda: standardise(torch.zeros(2, 1, 4)), "constant channel 0"),
        (lambda: spectral_exponent(torch.rand(1, 1, 8, 8)), "data: expected at least two images"),
        (lambda: spectral_exponent(torch.rand(4, 1, 2, 2)), "data: expected 2 radii or more"),
        (lambda: spectral_exponent(torch.ones(4, 1, 8, 8) * 0), "data: expected positive values"),
        (lambda: spectral_exponent(high_pass(torch.rand(4, 1, 8, 8), 2)), "data: expected positive values"),
        (lambda: spectral_exponent(low_pass(normal(4, 1, 9, 9), 3)), "data: expected positive values"),
        (lambda: spectral_exponent(torch.ones(3), torch.arange(3.0)), "radii: .*leave out radius 0"),
        (lambda: spectral_exponent(torch.ones(4), torch.ones(3)), "radii: expected 4"),
        (lambda: spectral_exponent(torch.ones(2), torch.tensor([1.0, 2.0])), "data: expected 3 radii"),
        (lambda: spectral_exponent(torch.tensor([1.0, 0, 1]), torch.tensor([1.0, 2, 3])), "data: expected positive"),
        (lambda: spectral_exponent(torch.eye(2), torch.tensor([1.0, 2.0])), "data: expected positive values"),
        (lambda: spectral_exponent(torch.rand(4, 1, 8, 8), level=1.0), "level: expected"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), torch.ones(3)), "values: expected numbers ≥ 0, 2 a curve"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), -torch.ones(2)), "values: expected numbers ≥ 0"),
        (lambda: published_curve(torch.tensor([1.0, 0.0]), torch.ones(2)), "radii: expected two or more ascending"),
        (lambda: published_curve(torch.tensor([1.0]), torch.ones(1)), "radii: expected two or more ascending"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), torch.zeros(2)), "values: expected curves of positive integral"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), smooth=0), "values: .*pass log=False"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), torch.ones(2), smooth=-1), "smooth: expected a positive integer"),
        (lambda: published_curve(torch.tensor([0.0, 1.0]), torch.ones(2), smooth=1.5), "smooth: expected a positive integer"),
        (lambda: low_pass(torch.ones(1, 1, 4), -1), "half_width: expected a finite number ≥ 0"),
        (lambda: low_pass(torch.ones(1, 1, 4), math.nan), "half_width: expected a finite number ≥ 0"),
        (lambda: high_pass(torch.ones(1, 1, 4), "8"), "half_width: expected a number"),
        (lambda: high_pass(torch.ones(1, 1, 4, 4), [1]), "half_width: expected one number or 2"),
        (lambda: high_pass(torch.ones(4, 4), 1), r"images: expected \(N, C, \*grid\)"),
        (lambda: band_pass(torch.ones(1, 1, 8), 3, 2), "inner: expected half-widths of at most those of outer, got 3 and 2"),
        (lambda: band_pass(torch.ones(1, 1, 8, 8), (1, 3), 2), "inner: expected half-widths"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
