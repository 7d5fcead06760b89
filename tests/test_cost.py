"""The representation cost: its laws, an independent witness, attainment, the lower bound, the rank tolerance, wrong formulas refuted."""

import importlib
import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from linconv import cost as cost_module
from linconv.cost import conjugate_svd, minimal_network, mirror_index, representation_cost
from linconv.network import LinearCNN
from linconv.penalties import Schatten
from linconv.spectrum import FrequencyBlocks, conv_blocks, frequency_blocks
from linconv.strategies import grids, predictors
from linconv.witnesses import dense_cost, dense_network

F64 = torch.float64
DEPTHS = st.integers(1, 6)
FEW = grids(max_sites=12)  # in one to three dimensions, odd and even sides: what the laws are about


def value(beta, depth, **options):
    bounds = representation_cost(beta, depth, **options)
    assert bounds.lower == bounds.upper
    return bounds.lower


def squared_norm(net):
    return math.fsum(float(w.detach().double().square().sum()) for w in net.weights)


def well_separated(beta):
    """Whether no singular value is near the rank tolerance, where rounding decides if it counts."""
    sigma = FrequencyBlocks.from_predictor(beta).singular_values()
    ratio = sigma / max(float(sigma.max()), 1e-300)
    return not bool(((ratio > 1e-15) & (ratio < 1e-10)).any())


def random_beta(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def back(values):
    """The real kernel whose unnormalised transform the blocks are."""
    kernel = torch.fft.ifftn(values, dim=tuple(range(values.ndim - 2)))
    assert float(kernel.imag.abs().max()) <= 1e-9 * (1 + float(kernel.abs().max()))
    return kernel.real.movedim((-2, -1), (0, 1)).contiguous()


def predictor_with_blocks(values):
    return FrequencyBlocks(values).predictor()


# --- Laws, as functions so that wrong formulas can be held against them ------------------------------------------------


def law_witness(beta, depth):
    """The formula is the one on the singular values of the dense block-circulant matrix."""
    assert value(beta, depth) == pytest.approx(dense_cost(beta.numpy(), depth), rel=1e-8, abs=1e-12)


def law_attained(beta, depth, tolerance=1e-9):
    """The minimal network computes β, with real weights, balanced layers and exactly the cost."""
    net = minimal_network(beta, depth)
    assert net.depth == depth
    matrix = torch.from_numpy(dense_network([w.detach().numpy() for w in net.weights], net.grid))
    scale = float(beta.abs().max()) + 1e-30
    assert float((matrix.reshape(beta.shape) - beta).abs().max()) <= tolerance * scale
    assert squared_norm(net) == pytest.approx(value(beta, depth), rel=tolerance, abs=1e-12)
    norms = [float(w.detach().norm()) for w in net.weights]
    assert norms == pytest.approx([norms[0]] * depth, rel=1e-7, abs=1e-12)
    return net


def law_lower_bound(weights, grid):
    """No network costs less than its predictor's cost."""
    net = LinearCNN.from_weights(weights, grid)
    beta = frequency_blocks(net).predictor().detach()
    assert squared_norm(net) >= value(beta, net.depth) * (1 - 1e-10)
    return squared_norm(net) / value(beta, net.depth)


# --- Formula -----------------------------------------------------------------------------------------------------------


@given(predictors(grid=FEW), DEPTHS)
def test_formula_against_the_dense_witness(beta, depth):
    assume(well_separated(beta))
    law_witness(beta, depth)


@given(predictors(grid=FEW), DEPTHS)
def test_formula_is_the_schatten_value(beta, depth):
    sites = math.prod(beta.shape[2:])
    expected = (
        depth / sites * float(Schatten(2 / depth).value(FrequencyBlocks.from_predictor(beta))) if depth > 1 else float(beta.square().sum())
    )
    assert value(beta, depth) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@given(predictors(grid=FEW))
def test_depth_one_is_the_squared_norm(beta):
    assert value(beta, 1) == pytest.approx(float(beta.square().sum()), rel=1e-12)


@pytest.mark.parametrize("grid", [(1,), (7,), (5, 6), (2, 3, 4)])
@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_delta_costs_the_depth_whatever_the_grid(grid, depth):
    """Every block of a delta is 1: R = (L/D) Σ 1 = L.  Without the factor 1/D, or with D^{−1/2}, this fails on every grid but (1,)."""
    beta = torch.zeros(1, 1, *grid, dtype=F64)
    beta[(0, 0, *(n // 2 for n in grid))] = 1
    assert value(beta, depth) == pytest.approx(depth, rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_depth_dependent_factor_with_orthonormal_blocks(depth):
    """With orthonormal blocks the factor is L D^{−(L−1)/L}: without D^{(L−1)/L} the cost is 5.5 times too large at L = 2, 17 at L = 6."""
    beta, sites = random_beta(2, 3, 5, 6), 30
    sigma = FrequencyBlocks.from_predictor(beta).singular_values() / math.sqrt(sites)
    orthonormal = depth * float((sigma ** (2 / depth)).sum())
    assert value(beta, depth) == pytest.approx(sites ** (-(depth - 1) / depth) * orthonormal, rel=1e-10)
    assert orthonormal / value(beta, depth) == pytest.approx({1: 1, 2: 5.477, 3: 9.655, 6: 17.02}[depth], rel=1e-3)


def test_depth_dependent_factor_in_the_weights():
    """The same without any formula: the balanced network of a constant image is known by hand, w¹ = … = w^L = c·1 with c^L D^{L−1} = 1."""
    for depth in (2, 3, 6):
        sites, beta = 12, torch.ones(1, 1, 3, 4, dtype=F64)
        c = sites ** (-(depth - 1) / depth)
        net = LinearCNN.from_weights([torch.full_like(beta, c)] * depth, (3, 4))
        assert torch.allclose(frequency_blocks(net).predictor(), beta)
        assert squared_norm(net) == pytest.approx(value(beta, depth))
        assert squared_norm(net) == pytest.approx(depth * sites * c**2)


# --- Laws of the cost --------------------------------------------------------------------------------------------------


@given(predictors(grid=FEW), DEPTHS, st.floats(-6, 6))
def test_cost_scales_with_a_power_of_the_predictor(beta, depth, exponent):
    assume(well_separated(beta))
    factor = 10.0**exponent
    assert value(factor * beta, depth) == pytest.approx(factor ** (2 / depth) * value(beta, depth), rel=1e-9, abs=1e-300)
    assert value(-beta, depth) == pytest.approx(value(beta, depth), rel=1e-9)


@given(predictors(grid=FEW), DEPTHS, st.data())
def test_cost_does_not_see_shifts_and_reflections(beta, depth, data):
    assume(well_separated(beta))
    spatial = tuple(range(2, beta.ndim))
    shifted = beta.roll(tuple(data.draw(st.integers(0, 5)) for _ in spatial), spatial)
    for other in (shifted, beta.flip(spatial), beta.flip(0, 1), beta.transpose(0, 1)):
        assert value(other, depth) == pytest.approx(value(beta, depth), rel=1e-8)


@given(st.integers(0, 2**31), FEW, DEPTHS)
def test_cost_is_unitarily_invariant_at_each_frequency(seed, grid, depth):
    """Multiply every block by its own unitary matrices, conjugate at u and −u so that the predictor stays real."""
    beta = random_beta(2, 3, *grid, seed=seed)
    left = conjugate_svd(FrequencyBlocks.from_predictor(random_beta(2, 2, *grid, seed=seed + 1)))
    right = conjugate_svd(FrequencyBlocks.from_predictor(random_beta(3, 3, *grid, seed=seed + 2)))
    turned = predictor_with_blocks(left[0] @ left[2] @ FrequencyBlocks.from_predictor(beta).values @ right[0] @ right[2])
    assume(well_separated(beta))
    assert value(turned, depth) == pytest.approx(value(beta, depth), rel=1e-8)
    if math.prod(grid) > 2:
        assert not torch.allclose(turned, beta, atol=1e-3)


@given(st.data(), DEPTHS)
def test_more_outputs_or_channels_never_cost_less(data, depth):
    beta = data.draw(predictors(grid=FEW))
    assume(well_separated(beta) and well_separated(beta[:1]) and well_separated(beta[:, :1]))
    assert value(beta[:1], depth) <= value(beta, depth) * (1 + 1e-9)
    assert value(beta[:, :1], depth) <= value(beta, depth) * (1 + 1e-9)
    padded = torch.nn.functional.pad(beta, (0, 0) * (beta.ndim - 2) + (0, 1, 0, 2))
    assert value(padded, depth) == pytest.approx(value(beta, depth), rel=1e-9)


def test_unrelated_channels_add_up():
    a, b = random_beta(1, 1, 3, 4), random_beta(1, 1, 3, 4, seed=1)
    both = torch.cat([torch.cat([a, torch.zeros_like(b)], 1), torch.cat([torch.zeros_like(a), b], 1)])
    for depth in (1, 2, 5):
        assert value(both, depth) == pytest.approx(value(a, depth) + value(b, depth))


def test_zero_costs_nothing():
    for depth in (1, 2, 5):
        assert value(torch.zeros(2, 2, 3, dtype=F64), depth) == 0
        assert not any(w.any() for w in minimal_network(torch.zeros(2, 2, 3, dtype=F64), depth).weights)


# --- Attainment and lower bound ----------------------------------------------------------------------------------------


@given(predictors(grid=FEW), DEPTHS)
def test_minimal_network_attains_the_cost(beta, depth):
    assume(well_separated(beta))
    law_attained(beta, depth)


@pytest.mark.parametrize("depth", [2, 3, 8])
def test_minimal_network_in_single_precision(depth):
    beta = random_beta(3, 2, 4, 5, dtype=torch.float32)
    net = minimal_network(beta, depth)
    assert all(w.dtype == torch.float32 for w in net.weights)
    assert torch.allclose(frequency_blocks(net).predictor(), beta, atol=1e-4)
    assert squared_norm(net) == pytest.approx(value(beta, depth), rel=1e-5)
    assert value(beta, depth) == pytest.approx(value(beta.double(), depth), rel=1e-5)


@pytest.mark.parametrize("hidden", [2, 5, (4, 2), (7, 3)])
def test_minimal_network_with_wider_layers_costs_the_same(hidden):
    beta = random_beta(2, 3, 4, 3)
    net = minimal_network(beta, 3, hidden_channels=hidden)
    widths = (hidden,) * 2 if isinstance(hidden, int) else hidden
    assert tuple(len(w) for w in net.weights[:-1]) == widths
    assert torch.allclose(frequency_blocks(net).predictor(), beta)
    assert squared_norm(net) == pytest.approx(value(beta, 3))


@given(st.integers(0, 2**31), FEW, st.integers(2, 4), st.floats(-3, 0.5))
def test_no_gauge_goes_below_the_cost(seed, grid, depth, size):
    """Insert G_u and its inverse between two layers, G_u the blocks of a real kernel near the identity or far from it."""
    beta = random_beta(2, 3, *grid, seed=seed)
    net = minimal_network(beta, depth, hidden_channels=3)
    weights = [w.detach() for w in net.weights]
    for layer in range(depth - 1):
        gauge = 10.0**size * random_beta(3, 3, *grid, seed=seed + layer + 1)
        gauge[(range(3), range(3), *(0,) * len(grid))] += 1
        g = conv_blocks(gauge, grid).values
        assume(float(torch.linalg.cond(g).max()) < 1e4)
        before, after = (conv_blocks(w, grid).values for w in weights[layer : layer + 2])
        inverse = torch.linalg.inv(g.conj() if layer == depth - 2 else g)  # the readout acts conjugated
        weights[layer], weights[layer + 1] = back(g @ before), back(after @ inverse)
    changed = LinearCNN.from_weights(weights, grid)
    assert torch.allclose(frequency_blocks(changed).predictor(), beta, atol=1e-6)
    assert squared_norm(changed) >= value(beta, depth) * (1 - 1e-10)


@given(st.integers(0, 2**31), FEW, st.lists(st.integers(1, 4), max_size=4))
def test_no_random_network_costs_less_than_its_predictor(seed, grid, hidden):
    net = LinearCNN(2, hidden, 3, grid, generator=torch.Generator().manual_seed(seed), scale=2.0)
    ratio = law_lower_bound([w.detach() for w in net.weights], grid)
    if not hidden:
        assert ratio == pytest.approx(1)


# --- Widths ------------------------------------------------------------------------------------------------------------


def test_too_narrow_networks_cannot_compute_the_predictor():
    beta = random_beta(3, 4, 2, 3)
    for hidden in (1, 2, (3, 2), (1, 9)):
        bounds = representation_cost(beta, 3, hidden_channels=hidden)
        assert bounds.lower == bounds.upper == math.inf
        with pytest.raises(ValueError, match="hidden_channels: expected at least 3"):
            minimal_network(beta, 3, hidden_channels=hidden)
    assert value(beta, 3, hidden_channels=3) == value(beta, 3) == value(beta, 3, hidden_channels=(3, 50))
    assert value(beta, 1, hidden_channels=()) == value(beta, 1)


def test_one_block_of_high_rank_is_enough_to_need_width():
    values = torch.zeros(5, 2, 2, dtype=torch.complex128)
    values[0] = torch.eye(2)
    values[1, 0, 0] = values[4, 0, 0] = 3
    beta = predictor_with_blocks(values)
    assert representation_cost(beta, 2, hidden_channels=1).lower == math.inf
    values[0, 1, 1] = 0
    assert value(predictor_with_blocks(values), 2, hidden_channels=1) == pytest.approx(2 / 5 * 7)


@pytest.mark.parametrize("depth", [2, 3])
def test_kernels_of_the_size_of_the_grid_change_nothing(depth):
    beta = random_beta(2, 2, 3, 4)
    assert value(beta, depth, kernel_size=(3, 4)) == value(beta, depth)
    assert value(beta, 1, kernel_size=2) == value(beta, 1)


# --- Rank tolerance ----------------------------------------------------------------------------------------------------


def rank_one(dtype):
    """β[k, c, i] = a_k b_c h_i with small integers, and its cost at depth 16 in many digits: σ_u = |ĥ_u| ‖a‖ ‖b‖."""
    rng = np.random.default_rng(0)
    a, b, h = rng.integers(1, 8, 64), rng.integers(1, 8, 64), np.array([[3, 1, 0], [0, -2, 1]])
    with mpmath.workdps(40):
        norm = mpmath.sqrt(int(a @ a) * int(b @ b))
        total = mpmath.mpf(0)
        for u, v in np.ndindex(2, 3):
            turns = {(i, j): mpmath.mpf(int(u * i)) / 2 + mpmath.mpf(int(v * j)) / 3 for i, j in np.ndindex(2, 3)}
            symbol = sum(int(h[site]) * mpmath.expjpi(-2 * turn) for site, turn in turns.items())
            total += (abs(symbol) * norm) ** (mpmath.mpf(2) / 16)
        exact = float(16 * total / 6)
    beta = torch.from_numpy(np.einsum("k,c,ij->kcij", a, b, h)).to(dtype)
    return beta, exact


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_rank_one_64_by_64_blocks_at_depth_16(dtype, tolerance):
    beta, exact = rank_one(dtype)
    bounds = representation_cost(beta, 16)
    assert bounds.lower == pytest.approx(exact, rel=tolerance)
    assert bounds.truncated > 10 * tolerance * exact  # what a formula without the cut would have added
    net = minimal_network(beta, 16)
    assert squared_norm(net) == pytest.approx(exact, rel=tolerance)
    assert torch.allclose(
        frequency_blocks(net).predictor(), beta, rtol=0, atol=float(beta.abs().max()) * (1e-3 if dtype == torch.float32 else 1e-10)
    )
    assert representation_cost(beta, 16, hidden_channels=1).lower == bounds.lower


def test_cut_is_relative_to_all_frequencies(dtype):
    """A block that is only dust of another one counts as zero; a small one does not."""
    values = torch.zeros(4, 1, 1, dtype=torch.complex64 if dtype == torch.float32 else torch.complex128)
    eps = torch.finfo(dtype).eps
    values[0] = 1
    values[2] = 20 * eps
    assert value(predictor_with_blocks(values), 4) == pytest.approx(1, rel=1e-5)
    values[2] = 1e4 * eps
    assert value(predictor_with_blocks(values), 4) == pytest.approx(1 + math.sqrt(1e4 * eps), rel=1e-2)


# --- Real decompositions -----------------------------------------------------------------------------------------------


@given(predictors(grid=FEW))
def test_conjugate_svd_is_a_conjugate_svd(beta):
    blocks = FrequencyBlocks.from_predictor(beta)
    left, sigma, right = conjugate_svd(blocks)
    scale = 1e-11 * (1 + float(blocks.values.abs().max()))
    assert torch.allclose((left * sigma[..., None, :]) @ right, blocks.values, atol=scale)
    for factor in (left, right):
        back(factor)
    rank = sigma.shape[-1]
    identity = torch.eye(rank, dtype=left.dtype).expand(*beta.shape[2:], rank, rank)
    assert torch.allclose(left.mH @ left, identity, atol=1e-10)
    assert torch.allclose(right @ right.mH, identity, atol=1e-10)
    assert bool((sigma[..., :-1] >= sigma[..., 1:]).all())


def test_self_conjugate_blocks_have_real_factors_in_spite_of_rounding():
    """Equal singular values and imaginary dust: a complex decomposition turns the vectors by arbitrary unitary matrices."""
    values = torch.eye(3, dtype=torch.complex128).repeat(4, 1, 1)
    values += 1e-17j * random_beta(4, 3, 3)
    left, sigma, right = conjugate_svd(FrequencyBlocks(values))
    for u in (0, 2):
        assert not left[u].imag.any()
        assert not right[u].imag.any()
    assert torch.allclose((left * sigma[..., None, :]) @ right, values)


@given(grids())
def test_mirror_index_negates_frequencies(grid):
    index = mirror_index(grid)
    assert torch.equal(index[index], torch.arange(math.prod(grid)))
    for flat, mirrored in enumerate(index.tolist()):
        pairs = zip(np.unravel_index(flat, grid), np.unravel_index(mirrored, grid), grid, strict=True)
        assert all((a + b) % n == 0 for a, b, n in pairs)


def test_cost_leaves_its_input_and_gradients_alone():
    beta = random_beta(2, 2, 3).requires_grad_()
    before = beta.detach().clone()
    assert isinstance(representation_cost(beta, 3).lower, float)
    assert torch.equal(minimal_network(beta, 1).weights[0], before)
    minimal_network(beta, 3).weights[0].data.zero_()
    assert torch.equal(beta.detach(), before)


# --- Mutants -----------------------------------------------------------------------------------------------------------


def without(kind):
    """A wrong cost formula of singular values `(*grid, r)`."""

    def formula(sigma, depth):
        sites, p = math.prod(sigma.shape[:-1]), 2 / depth
        kept = sigma[sigma > 0].double()
        half = sigma[..., : sigma.shape[-2] // 2 + 1, :].double()
        return {
            "right": depth / sites * float((kept**p).sum()),
            "no factor 1/D": depth * float((kept**p).sum()),
            "no depth-dependent factor": depth * float(((kept / math.sqrt(sites)) ** p).sum()),
            "no factor L": float((kept**p).sum()) / sites,
            "exponent 2/(L+1)": depth / sites * float((kept ** (2 / (depth + 1))).sum()),
            "exponent 1/L": depth / sites * float((kept ** (1 / depth)).sum()),
            "nuclear norm": depth / sites * float(kept.sum()),
            "half spectrum without pair weights": depth / sites * float((half[half > 0] ** p).sum()),
            "norm of norms": depth / sites * float((sigma.double().square().sum(-1).sqrt() ** p).sum()),
            "largest singular value": depth / sites * float((sigma[..., 0].double() ** p).sum()),
        }[kind]

    return formula


WRONG = [
    "no factor 1/D",
    "no depth-dependent factor",
    "no factor L",
    "exponent 2/(L+1)",
    "exponent 1/L",
    "nuclear norm",
    "half spectrum without pair weights",
    "norm of norms",
    "largest singular value",
]


@pytest.mark.parametrize("kind", ["right", *WRONG])
@pytest.mark.parametrize("law", [law_witness, law_attained])
def test_wrong_formulas_are_refuted(kind, law, monkeypatch):
    beta = random_beta(2, 3, 3, 4)
    monkeypatch.setattr(cost_module, "_schatten_cost", without(kind))
    if kind == "right":
        law(beta, 3)
    else:
        with pytest.raises(AssertionError):
            law(beta, 3)


@pytest.mark.parametrize("kind", ["no factor 1/D", "no depth-dependent factor", "nuclear norm"])
def test_formulas_that_are_too_large_break_the_lower_bound(kind, monkeypatch):
    beta = random_beta(2, 3, 3, 4)
    weights = [w.detach() for w in minimal_network(beta, 3).weights]
    law_lower_bound(weights, (3, 4))
    monkeypatch.setattr(cost_module, "_schatten_cost", without(kind))
    with pytest.raises(AssertionError):
        law_lower_bound(weights, (3, 4))


def test_transposed_blocks_cost_the_same_but_are_another_map(monkeypatch):
    beta = random_beta(3, 3, 3, 4)
    values = FrequencyBlocks.from_predictor(beta).values
    transposed = predictor_with_blocks(values.mT.contiguous())
    assert value(transposed, 3) == pytest.approx(value(beta, 3))
    assert not torch.allclose(transposed, beta, atol=0.1)
    right = conjugate_svd
    monkeypatch.setattr(cost_module, "conjugate_svd", lambda blocks: right(FrequencyBlocks(blocks.values.mT.contiguous())))
    with pytest.raises(AssertionError):
        law_attained(beta, 3)


@pytest.mark.parametrize("kind", ["plain", "unconjugated"])
def test_decompositions_that_are_not_conjugate_give_another_map(kind, monkeypatch):
    def plain(blocks):
        left, sigma, right = torch.linalg.svd(blocks.values, full_matrices=False)
        return (left * 1j, sigma, right) if kind == "plain" else (left.conj(), sigma, right.conj())

    monkeypatch.setattr(cost_module, "conjugate_svd", plain)
    with pytest.raises(AssertionError):
        law_attained(random_beta(2, 3, 3, 4), 3)


def test_without_the_rank_cut_deep_low_rank_costs_are_wrong(monkeypatch):
    beta, exact = rank_one(F64)
    monkeypatch.setattr(cost_module, "truncate", lambda sigma: sigma)
    assert representation_cost(beta, 16).lower != pytest.approx(exact, rel=1e-2)


# --- Bad input ---------------------------------------------------------------------------------------------------------

BETA = torch.ones(1, 2, 3, dtype=F64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [representation_cost, minimal_network])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.ones((1, 1, 3)), 2), {}, TypeError, "predictor: .*ndarray"),
        ((torch.ones(3, 3), 2), {}, ValueError, r"predictor: .*\(3, 3\)"),
        ((torch.ones(1, 1, 1, 1, 1, 1), 2), {}, ValueError, "predictor: "),
        ((BETA * math.nan, 2), {}, ValueError, "predictor: .*NaN"),
        ((BETA.long(), 2), {}, TypeError, "predictor: .*int64"),
        ((BETA.half(), 2), {}, TypeError, "predictor: .*float16"),
        ((BETA[:0], 2), {}, ValueError, "predictor: .*empty"),
        ((BETA, 0), {}, ValueError, "depth: .*0"),
        ((BETA, -3), {}, ValueError, "depth: .*-3"),
        ((BETA, 2.0), {}, TypeError, r"depth: .*2\.0"),
        ((BETA, True), {}, TypeError, "depth: .*True"),
        ((BETA, 2**40), {}, ValueError, "depth: .*2\\^31"),
        ((BETA, 3), {"hidden_channels": (2,)}, ValueError, "hidden_channels: expected 2"),
        ((BETA, 3), {"hidden_channels": 0}, ValueError, "hidden_channels: .*0"),
        ((BETA, 3), {"hidden_channels": "22"}, TypeError, "hidden_channels: .*'22'"),
        ((BETA, 3), {"hidden_channels": (2, 1.5)}, TypeError, r"hidden_channels: .*1\.5"),
    ],
)
def test_bad_input_names_the_argument(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


@pytest.mark.usefixtures("unchecked")
def test_bad_kernel_sizes_are_named():
    for kernel_size, error in ((0, ValueError), ((2, 2), ValueError), ("a", TypeError), (1.5, TypeError), ((None,), TypeError)):
        with pytest.raises(error, match="kernel_size: "):
            representation_cost(BETA, 2, kernel_size=kernel_size)


def test_a_cost_does_not_change():
    cost = representation_cost(BETA, 2)
    with pytest.raises(FrozenInstanceError):
        cost.lower = 0.0


def test_weights_of_restricted_kernels_fit_in_memory(monkeypatch):
    """Up to 2^27 entries, taps times C², are passed on: here to a stand-in, for they would take a GiB."""
    restricted = importlib.import_module("linconv.solvers.restricted")
    monkeypatch.setattr(restricted, "restricted_cost", lambda *_: SimpleNamespace(lower=1.0, upper=2.0))
    beta = random_beta(1, 4, 6)
    bounds = representation_cost(beta, 2, kernel_size=2**23)
    assert (bounds.lower, bounds.upper) == (1, 2)
    with pytest.raises(ValueError, match="kernel_size: expected sizes whose arrays fit in memory"):
        representation_cost(beta, 2, kernel_size=2**23 + 1)


@settings(max_examples=10)
@given(predictors(dtype=torch.float32, grid=FEW))
def test_single_precision_costs_are_close(beta):
    sigma = FrequencyBlocks.from_predictor(beta.double()).singular_values()
    assume(not bool(((sigma > 0) & (sigma < 1e-3 * sigma.max())).any()))
    assert value(beta, 3) == pytest.approx(value(beta.double(), 3), rel=1e-3)


@pytest.mark.parametrize("size", [1e155, 1e-165])
def test_squares_that_leave_double_precision_are_refused_and_roots_are_not(size: float) -> None:
    beta = size * torch.ones(2, 2, 4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"predictor: expected numbers whose squares .* rescale"):
        representation_cost(beta, 1)
    unit = representation_cost(beta / size, 3)
    assert math.isclose(representation_cost(beta, 3).lower, unit.lower * size ** (2 / 3), rel_tol=1e-12)
