"""Deformations: fields and their exact moments, warping against SciPy and its own laws, folds, published formulas, bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.stats import chi2

from linconv.deformation import (
    displacement_covariance,
    displacement_variance,
    fold_fraction,
    folds,
    least_determinants,
    sample_displacements,
    temperature_range,
    typical_displacement,
    typical_temperature,
    warp,
)

F64 = torch.float64
GRIDS = [(4, 4), (5, 5), (7, 7), (6, 9), (9, 5), (8, 16), (1, 6), (5, 1), (1, 1), (32, 32)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def sampled(n, grid, temperature, cutoff, seed=0):
    """Fields, whatever the temperature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sample_displacements(n, grid, temperature=temperature, cutoff=cutoff, generator=seeded(seed))


def by_scipy(images, tau, order, mode):
    """`map_coordinates` of every channel of every image at p − τ(p)."""
    x, rows, columns = images.numpy(), *np.meshgrid(*map(np.arange, images.shape[2:]), indexing="ij")
    moved = np.empty_like(x)
    for n, (down, right) in enumerate(tau.numpy()):
        for c in range(x.shape[1]):
            map_coordinates(x[n, c], (rows - down, columns - right), order=order, mode=mode, output=moved[n, c])
    return torch.from_numpy(moved)


# Published formulas


@pytest.mark.parametrize(("n", "cutoff"), [(32, 3), (28, 2), (224, 15), (32, 5)])
def test_published_formulas(n, cutoff):
    least, most = temperature_range(n, cutoff)
    assert typical_displacement(least, n, cutoff) == pytest.approx(0.5, rel=1e-14)
    assert most * math.pi**3 * cutoff**2 * math.log(cutoff) == pytest.approx(4, rel=1e-14)
    # T_max does not know n, and δ is linear in n and in √T.
    assert temperature_range(2 * n, cutoff)[1] == most
    assert typical_displacement(4 * least, 3 * n, cutoff) == pytest.approx(3.0, rel=1e-14)
    assert typical_displacement(typical_temperature(1.7, n, cutoff), n, cutoff) == pytest.approx(1.7, rel=1e-14)


def test_the_true_displacement_is_less_than_the_published_one():
    # The theory page: .816 pixels where the formula says 1, at n = 32 and c = 3; the formula is right for large cutoffs.
    def true(n, cutoff):
        return math.sqrt(2 * float(displacement_variance((n, n), temperature=typical_temperature(1.0, n, cutoff), cutoff=cutoff).mean()))

    assert round(true(32, 3), 3) == 0.816
    assert true(129, 30) < true(257, 100) < 1


# Fields


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cutoff", [1, 2, 3, 7])
def test_moments_are_those_of_the_sum_over_sines(grid, cutoff):
    # Written out by loops over modes: σ² = T n² Σ sin² sin² / (i² + j²), ρ likewise, n the pixels of the axis that the component is along.
    y, x = (np.linspace(0, 1, n) for n in grid)
    variance, covariance = np.zeros(grid), np.zeros(grid + grid)
    for i in range(1, cutoff + 1):
        for j in range(1, cutoff + 1):
            if math.sqrt(i * i + j * j) < cutoff + 0.5:
                mode = np.outer(np.sin(i * math.pi * y), np.sin(j * math.pi * x))
                variance += 0.01 * mode**2 / (i * i + j * j)
                covariance += 0.01 * np.multiply.outer(mode, mode) / (i * i + j * j)
    for axis, n in enumerate(grid):
        found = displacement_variance(grid, temperature=0.01, cutoff=cutoff, axis=axis)
        np.testing.assert_allclose(found, n**2 * variance, rtol=1e-12, atol=1e-16)
        if math.prod(grid) < 200:
            found = displacement_covariance(grid, temperature=0.01, cutoff=cutoff, axis=axis)
            np.testing.assert_allclose(found, n**2 * covariance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("grid", "cutoff"), [((8, 8), 3), ((6, 9), 2), ((7, 5), 1), ((9, 9), 6)])
def test_simulated_moments_lie_in_their_intervals(grid, cutoff):
    # A variance of n normal numbers over the true one is χ²_n / n; all sites of both components at level 10⁻⁶ together.
    n = 4000
    tau = sampled(n, grid, 0.002, cutoff)
    assert tau.shape == (n, 2, *grid)
    inside = (slice(1, -1), slice(1, -1))
    low, high = chi2.ppf([1e-9, 1 - 1e-9], n) / n
    for axis in (0, 1):
        ratio = tau[:, axis].square().mean(0)[inside] / displacement_variance(grid, temperature=0.002, cutoff=cutoff, axis=axis)[inside]
        assert low < float(ratio.min()) <= float(ratio.max()) < high
    # The two components, each in units of its deviation, are independent: a mean of products of normal numbers is within 6/√n of 0.
    centre = tau[:, :, grid[0] // 2 - 1, grid[1] // 2 - 1]
    assert abs(float((centre / centre.std(0)).prod(1).mean())) < 6 / math.sqrt(n)
    # Covariances between sites: each product has a variance of at most 2 σ²σ'².
    flat = tau[:, 0].flatten(1)
    rho = displacement_covariance(grid, temperature=0.002, cutoff=cutoff, axis=0).reshape(flat.shape[1], -1)
    bound = 6 * (2 * torch.outer(rho.diagonal(), rho.diagonal())).clamp_min(0).sqrt() / math.sqrt(n)
    assert bool(((flat.T @ flat / n - rho).abs() <= bound + 1e-12).all())


def test_wrong_moments_are_told_apart():
    # What the test above must not pass: n for both axes, the published δ² for the variance, the cutoff's corner left in.
    n, grid = 4000, (6, 9)
    tau = sampled(n, grid, 0.002, 2)
    low, high = chi2.ppf([1e-9, 1 - 1e-9], n) / n
    ratio = tau[:, 1].square().mean(0)[2, 4] / displacement_variance(grid, temperature=0.002, cutoff=2, axis=0)[2, 4]
    assert not low < float(ratio) < high
    square = sampled(n, (9, 9), 0.002, 2)
    ratio = square.square().sum(1).mean(0).mean() / typical_displacement(0.002, 9, 2) ** 2
    assert not low < float(ratio) < high


@given(st.integers(0, 10**6), st.sampled_from(GRIDS), st.integers(1, 5), st.floats(0, 1e-2))
@settings(max_examples=30)
def test_fields_vanish_at_the_border_and_scale_with_the_root_of_the_temperature(seed, grid, cutoff, temperature):
    tau, once = sampled(2, grid, 4 * temperature, cutoff, seed), sampled(2, grid, temperature, cutoff, seed)
    torch.testing.assert_close(tau, 2 * once, rtol=1e-13, atol=1e-15)
    border = torch.cat([tau[..., [0, -1], :].flatten(), tau[..., [0, -1]].flatten()])
    # sin(iπ) is i·1.2e-16 in floating point, and a sum of c² of them by n √T.
    assert float(border.abs().max()) <= 1e-14 * cutoff**3 * max(grid)


def test_one_seed_gives_the_same_fields_in_either_precision():
    single, double = (
        sample_displacements(3, (8, 9), temperature=1e-3, cutoff=3, generator=seeded(5), dtype=dtype) for dtype in (torch.float32, F64)
    )
    assert single.dtype == torch.float32
    assert torch.equal(single, double.float())
    assert not torch.equal(double[0], double[1])
    assert not torch.equal(double[:, 0], double[:, 1])


# Warping against SciPy


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
@pytest.mark.parametrize(("boundary", "mode"), [("clamp", "nearest"), ("periodic", "grid-wrap")])
def test_it_is_map_coordinates(grid, interpolation, order, boundary, mode, dtype):
    x, tau = normal(3, 2, *grid, dtype=dtype), 2 * normal(3, 2, *grid, seed=1, dtype=dtype)
    found = warp(x, tau, interpolation=interpolation, boundary=boundary)
    assert found.dtype == dtype
    # A position of size n is known to n ε, and the image changes by at most its range from site to site.
    n = 2 * max(grid) + 10
    error = (found - by_scipy(x, tau, order, mode)).abs()
    bound = 4 * n * torch.finfo(dtype).eps * float(x.max() - x.min())
    assert float(error.max()) <= bound


@pytest.mark.parametrize("boundary", ["clamp", "periodic"])
@pytest.mark.parametrize("grid", [(7, 7), (6, 9), (1, 6), (12, 3)])
def test_the_gaussian_window_is_the_sum_over_all_sites(grid, boundary):
    # All sites of the image, or of seven periods each way, one site of the result at a time: no tap is left out.
    x, tau = normal(2, 2, *grid), 1.5 * normal(2, 2, *grid, seed=1)
    shifts = [0] if boundary == "clamp" else range(-7, 8)
    rows, columns = (np.array([[i, i + s * n] for s in shifts for i in range(n)]) for n in grid)
    expected = torch.empty_like(x)
    for n, i, j in np.ndindex(2, *grid):
        p, q = i - float(tau[n, 0, i, j]), j - float(tau[n, 1, i, j])
        if boundary == "clamp":
            p, q = min(max(p, 0), grid[0] - 1), min(max(q, 0), grid[1] - 1)
        a, b = (np.exp(-((at - sites[:, 1]) ** 2) / (2 * 0.4715**2)) for at, sites in ((p, rows), (q, columns)))
        window = torch.from_numpy(np.outer(a / a.sum(), b / b.sum()))
        expected[n, :, i, j] = (x[n][:, rows[:, 0]][:, :, columns[:, 0]] * window).sum((1, 2))
    torch.testing.assert_close(warp(x, tau, interpolation="gaussian", boundary=boundary), expected, rtol=1e-13, atol=1e-13)


# Laws of warping


@pytest.mark.parametrize("boundary", ["clamp", "periodic"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@given(st.sampled_from(GRIDS), st.integers(0, 10**6), st.booleans())
@settings(max_examples=20)
def test_zero_temperature_is_the_identity_bit_by_bit(boundary, interpolation, grid, seed, single):
    x = normal(2, 3, *grid, seed=seed, dtype=torch.float32 if single else F64)
    still = sample_displacements(2, grid, temperature=0.0, cutoff=3, generator=seeded())
    assert torch.equal(warp(x, still, interpolation=interpolation, boundary=boundary), x)


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "gaussian"])
@given(st.sampled_from(GRIDS), st.integers(-40, 40), st.integers(-40, 40), st.booleans())
@settings(max_examples=20)
def test_a_periodic_warp_by_whole_pixels_is_a_roll(interpolation, grid, down, right, single):
    x = normal(2, 2, *grid, dtype=torch.float32 if single else F64)
    tau = torch.tensor([down, right], dtype=x.dtype)[:, None, None].expand(2, 2, *grid)
    moved = warp(x, tau, interpolation=interpolation, boundary="periodic")
    if interpolation == "gaussian":
        x = warp(x, torch.zeros_like(tau), interpolation="gaussian", boundary="periodic")
    assert torch.equal(moved, x.roll((down, right), (2, 3)))


@given(
    st.sampled_from(GRIDS), st.sampled_from(["linear", "nearest", "gaussian"]), st.sampled_from(["clamp", "periodic"]), st.integers(0, 99)
)
@settings(max_examples=40)
def test_linear_in_the_image_and_constants_stay(grid, interpolation, boundary, seed):
    a, b, tau = normal(2, 1, *grid, seed=seed), normal(2, 1, *grid, seed=seed + 1), 3 * normal(2, 2, *grid, seed=seed + 2)

    def moved(x):
        return warp(x, tau, interpolation=interpolation, boundary=boundary)

    # Weights are at least 0 and of sum 1.
    torch.testing.assert_close(moved(2 * a - 3 * b), 2 * moved(a) - 3 * moved(b), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved(torch.full_like(a, 0.7)), torch.full_like(a, 0.7), rtol=1e-14, atol=0)
    assert float(moved(a).max()) <= float(a.max()) + 1e-12


@given(st.sampled_from(GRIDS), st.sampled_from(["linear", "gaussian"]), st.sampled_from(["clamp", "periodic"]), st.integers(0, 99))
@settings(max_examples=40)
def test_transposing_and_mirroring_images_and_fields(grid, interpolation, boundary, seed):
    x, tau = normal(2, 2, *grid, seed=seed), 2 * normal(2, 2, *grid, seed=seed + 1)
    moved = warp(x, tau, interpolation=interpolation, boundary=boundary)
    transposed = warp(x.mT, tau.mT.flip(1), interpolation=interpolation, boundary=boundary)
    torch.testing.assert_close(transposed.mT, moved, rtol=1e-12, atol=1e-12)
    mirrored = warp(
        x.flip(3), tau.flip(3) * torch.tensor([1.0, -1.0], dtype=F64)[:, None, None], interpolation=interpolation, boundary=boundary
    )
    torch.testing.assert_close(mirrored.flip(3), moved, rtol=1e-12, atol=1e-12)


def test_the_sign_and_the_axes():
    # A single bright pixel moved by (+1, −2) goes down one row and left two columns.
    x = torch.zeros(1, 1, 6, 7)
    x[0, 0, 2, 4] = 1
    tau = torch.tensor([1.0, -2.0])[:, None, None].expand(1, 2, 6, 7)
    assert warp(x, tau)[0, 0].nonzero().tolist() == [[3, 2]]


@pytest.mark.parametrize("boundary", ["clamp", "periodic"])
def test_every_image_is_moved_by_its_own_field(boundary):
    x, tau = normal(4, 3, 6, 5), normal(4, 2, 6, 5, seed=1)
    together = warp(x, tau, boundary=boundary)
    alone = torch.cat([warp(x[n : n + 1], tau[n : n + 1], boundary=boundary) for n in range(4)])
    assert torch.equal(together, alone)
    assert not torch.allclose(warp(x, tau[:1].expand_as(tau), boundary=boundary), together)


def test_fields_far_beyond_the_image():
    x = normal(1, 1, 5, 6)
    far = torch.full((1, 2, 5, 6), 1e30, dtype=F64)
    for interpolation in ("linear", "nearest"):
        assert torch.equal(warp(x, far, interpolation=interpolation), x[:, :, :1, :1].expand_as(x))
        assert torch.equal(warp(x, -far, interpolation=interpolation), x[:, :, -1:, -1:].expand_as(x))
        assert bool(warp(x, far, interpolation=interpolation, boundary="periodic").isfinite().all())
    assert bool(warp(x, far, interpolation="gaussian").isfinite().all())


@pytest.mark.parametrize("boundary", ["clamp", "periodic"])
@pytest.mark.parametrize("interpolation", ["linear", "gaussian"])
@pytest.mark.parametrize("grid", [(2, 4), (3, 3)])
def test_gradients_in_images_and_displacements(grid, boundary, interpolation):
    # Away from whole pixels, where linear interpolation has a kink.
    x, whole = normal(1, 2, *grid), torch.randint(-3, 4, (1, 2, *grid), generator=seeded(1))
    tau = whole + 0.1 + 0.8 * torch.rand(1, 2, *grid, dtype=F64, generator=seeded(2))
    tau.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: warp(a, b, interpolation=interpolation, boundary=boundary), (x.requires_grad_(), tau))


# Folds


def test_determinants_of_linear_maps():
    # p − τ(p) = A p has determinant det A everywhere.
    rows, columns = torch.meshgrid(torch.arange(5.0, dtype=F64), torch.arange(6.0, dtype=F64), indexing="ij")
    for seed in range(20):
        a = normal(2, 2, seed=seed)
        tau = torch.stack([rows, columns]) - torch.einsum("ij,jyx->iyx", a, torch.stack([rows, columns]))
        found = least_determinants(tau[None])
        assert float(found[0]) == pytest.approx(float(torch.linalg.det(a)), rel=1e-12, abs=1e-12)
        assert bool(folds(tau[None])[0]) == bool(torch.linalg.det(a) <= 0)


def test_the_least_determinant_is_that_of_the_interpolated_map():
    # Finite differences of the bilinear map on a fine grid inside each cell never fall below it, and come near.
    tau = 0.6 * normal(1, 2, 5, 6)
    least = float(least_determinants(tau)[0])
    t = torch.linspace(0, 1, 41, dtype=F64)
    found = math.inf
    for i in range(4):
        for j in range(5):
            corners = tau[0, :, i : i + 2, j : j + 2]
            field = torch.einsum("ay,bx,kab->kyx", torch.stack([1 - t, t]), torch.stack([1 - t, t]), corners)
            down, right = (field.diff(dim=d) / (t[1] - t[0]) for d in (1, 2))
            down, right = down[:, :, :-1], right[:, :-1]
            found = min(found, float(((1 - down[0]) * (1 - right[1]) - down[1] * right[0]).min()))
    assert least <= found + 1e-9
    # Affine in the cell: the fine grid ends 1/40 of a cell before two of the sides, where the determinant is of order one.
    assert found - least < 0.25


def test_folds_around_a_period():
    tau = torch.zeros(1, 2, 4, 5)
    tau[0, 1, :, -1] = 3  # the last column jumps over the first
    assert not bool(folds(tau * 0.0)[0])
    assert float(least_determinants(-tau * 0.5, boundary="clamp")) == pytest.approx(1.0)
    assert float(least_determinants(-tau * 0.5, boundary="periodic")) == pytest.approx(-0.5)


@pytest.mark.parametrize(("cutoff", "least", "most"), [(2, 0.5, 0.7), (3, 0.3, 0.46), (5, 0.3, 0.46), (15, 0.01, 0.09)])
def test_many_fields_fold_at_the_published_maximum_and_few_at_a_quarter_of_it(cutoff, least, most):
    # 400 fields: a share of p is known to ±5 √(p(1−p)/400); the theory page has 41 to 95 % free of folds at T_max.
    t = temperature_range(32, cutoff)[1]
    assert least < fold_fraction(sampled(400, (32, 32), t, cutoff)) < most
    assert fold_fraction(sampled(400, (32, 32), t / 4, cutoff)) < 0.08


def test_a_deformation_of_a_rectangle_folds_where_that_of_the_square_does():
    # det(I − ∇τ) does not know the sides, but for the differences between neighbours that stand for derivatives.
    square, wide = (least_determinants(sampled(200, grid, 0.02, 2)) for grid in ((65, 65), (65, 257)))
    torch.testing.assert_close(square, wide, rtol=0.1, atol=0.1)


def test_a_warning_with_the_measured_fraction_beyond_the_range():
    t = 4 * temperature_range(16, 3)[1]
    with pytest.warns(UserWarning, match=r"temperature: (\d+\.?\d*) % of the fields fold .* published maximum") as caught:
        tau = sample_displacements(50, (16, 16), temperature=t, cutoff=3, generator=seeded())
    share = float(str(caught[0].message).split()[1])
    assert share == pytest.approx(100 * fold_fraction(tau), abs=0.01)
    with pytest.warns(UserWarning, match="cutoff 1;"):
        sample_displacements(50, (16, 16), temperature=1.0, cutoff=1, generator=seeded())
    sample_displacements(50, (16, 16), temperature=1e-4, cutoff=1, generator=seeded())  # no warning


# Bad input


@pytest.mark.parametrize("function", [lambda c: temperature_range(32, c), lambda c: typical_displacement(1e-3, 32, c)])
def test_cutoff_one_is_refused_by_the_formulas_that_divide_by_its_logarithm(function):
    with pytest.raises(ValueError, match=r"cutoff: expected at least 2, got 1: .*log 1"):
        function(1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"grid": (8,)}, ValueError, "grid: expected two sizes"),
        ({"grid": (8, 8, 8)}, ValueError, "grid: expected two sizes"),
        ({"grid": (8, 0)}, ValueError, "grid"),
        ({"grid": 8}, TypeError, "grid"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"cutoff": 0}, ValueError, "cutoff"),
        ({"cutoff": 2.5}, TypeError, "cutoff"),
        ({"cutoff": 10**6}, ValueError, "cutoff"),
        ({"n_images": 0}, ValueError, "n_images"),
        ({"n_images": 10**9}, ValueError, "n_images"),
        ({"generator": 0}, TypeError, "generator"),
        ({"dtype": torch.float16}, TypeError, "dtype"),
        ({"device": "nowhere"}, ValueError, "device"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_samples(change, error, words):
    arguments = {"n_images": 2, "grid": (8, 8), "temperature": 1e-3, "cutoff": 3, "generator": seeded()} | change
    with pytest.raises(error, match=words):
        sample_displacements(**arguments)


@pytest.mark.usefixtures("unchecked")
def test_bad_moments():
    with pytest.raises(ValueError, match="axis: expected 0"):
        displacement_variance((4, 4), temperature=1.0, cutoff=2, axis=2)
    with pytest.raises(ValueError, match="grid: expected sizes whose arrays fit"):
        displacement_covariance((500, 500), temperature=1.0, cutoff=2)
    for moments in (displacement_variance, displacement_covariance):
        with pytest.raises(ValueError, match=r"grid: expected a square one, .* got \(4, 6\); name the axis"):
            moments((4, 6), temperature=1.0, cutoff=2)
    with pytest.raises(ValueError, match="n: expected a positive integer"):
        temperature_range(0, 3)
    for formula in (
        lambda n: temperature_range(n, 3),
        lambda n: typical_displacement(1e-3, n, 3),
        lambda n: typical_temperature(1.0, n, 3),
    ):
        with pytest.raises(TypeError, match=r"n: expected the side of square images, .* got \(32, 48\)"):
            formula((32, 48))


@pytest.mark.parametrize(
    ("images", "tau", "options", "error", "words"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 2, 4, 4), {}, ValueError, "images: expected"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 2, 4, 4), {}, TypeError, "images: expected dtype"),
        (torch.full((2, 3, 4, 4), math.nan), torch.zeros(2, 2, 4, 4), {}, ValueError, "images: expected finite"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), {}, ValueError, "displacements: expected"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), {}, ValueError, r"displacements: expected \(N, 2, H, W\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 4, 4), {}, ValueError, "one field an image.*expand"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 5), {}, ValueError, "one field an image"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 2, 4, 4), math.inf), {}, ValueError, "displacements: expected finite"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 2, 4, 4), 1e300, dtype=F64), {}, ValueError, "displacements: expected finite"),
        (
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 2, 4, 4),
            {"interpolation": "cubic"},
            ValueError,
            "interpolation: expected one of 'linear'",
        ),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4), {"boundary": "zeros"}, ValueError, "boundary: expected one of 'clamp'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_warps(images, tau, options, error, words):
    with pytest.raises(error, match=words):
        warp(images, tau, **options)
