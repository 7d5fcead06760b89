"""Restricted kernels: bounds against an independent convex programme, closed forms and laws; weights in the space domain."""

import dataclasses
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import linconv.solvers.factored_descent as factored_descent
import linconv.solvers.restricted as restricted
from linconv.network import LinearCNN
from linconv.solvers.central_path import central_path, dual_bound
from linconv.solvers.factored_descent import Lags, _Bracket, _descend, _evaluate, _gamma
from linconv.solvers.restricted import RestrictedBounds, _Problem, restricted_cost
from linconv.spectrum import FrequencyBlocks, frequency_blocks
from linconv.strategies import predictors
from linconv.witnesses import dense_cost, dense_network, restricted_cost_programme

# (grid, kernel, K, C): one to three dimensions, odd and even, K below, at and above C, kernels narrower and wider than the grid.
CASES = [
    ((5,), (1,), 2, 2),
    ((5,), (2,), 2, 2),
    ((6,), (3,), 1, 1),
    ((6,), (4,), 1, 3),
    ((4,), (7,), 2, 2),
    ((3, 4), (2, 2), 2, 1),
    ((4, 3), (3, 2), 1, 2),
    ((2, 3), (3, 2), 2, 2),
    ((2, 2, 2), (2, 1, 2), 2, 2),
]
# Bounds are recomputed with a relative rounding allowance of 1e-12 and end at a relative gap of 1e-9 or better; Clarabel's value is
# good to 1e-7 to 1e-6 on problems with a degenerate optimum.
WITNESS = 3e-6
BRACKET = 1e-8
PROMISE = 1e-6  # relative width of the bracket at depth 2, also beyond the reach of Newton's method


def draw(grid: tuple[int, ...], outputs: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, channels, *grid, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def delta(grid: tuple[int, ...], block: Tensor, site: tuple[int, ...]) -> Tensor:
    beta = torch.zeros(*block.shape, *grid, dtype=torch.float64)
    beta[(slice(None), slice(None), *site)] = block
    return beta


def problem(beta: Tensor, depth: int, kernel: tuple[int, ...]) -> _Problem:
    return _Problem.of(FrequencyBlocks.from_predictor(beta), depth, kernel, 2e-14)


def residual(weights: list[Tensor], beta: Tensor) -> float:
    """Relative error of the map that the weights compute, by dense matrices of circular convolutions."""
    computed = dense_network([w.numpy() for w in weights], tuple(beta.shape[2:]))
    return float(np.linalg.norm(computed - beta.flatten(1).numpy()) / np.linalg.norm(beta.numpy()))


def check_weights(bounds: RestrictedBounds, beta: Tensor, kernel: tuple[int, ...]) -> None:
    assert bounds.weights is not None
    *hidden, readout = bounds.weights
    assert all(tuple(w.shape[2:]) == kernel for w in hidden)
    assert tuple(readout.shape[2:]) == tuple(beta.shape[2:])
    assert residual(bounds.weights, beta) <= 1e-10
    norms = [float((w**2).sum()) for w in bounds.weights]
    assert sum(norms) == pytest.approx(bounds.upper, rel=1e-10)
    assert max(norms) == pytest.approx(min(norms), rel=1e-8)


@st.composite
def small_cases(draw):
    beta = draw(predictors(max_outputs=2, max_channels=2).filter(lambda b: math.prod(b.shape[2:]) <= 12 and bool(b.any())))
    kernel = tuple(draw(st.integers(1, n + 1)) for n in beta.shape[2:])
    if math.prod(kernel) * beta.shape[1] > 12:
        kernel = tuple(min(k, 2) for k in kernel)
    return beta, kernel


# --- Depth 2 against the independent programme --------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "kernel", "outputs", "channels"), CASES)
def test_depth_two_agrees_with_the_programme_over_products(grid, kernel, outputs, channels):
    beta = draw(grid, outputs, channels)
    bounds = restricted_cost(beta, 2, kernel, None)
    expected = restricted_cost_programme(beta.numpy(), kernel)
    assert bounds.lower <= bounds.upper <= bounds.lower * (1 + BRACKET)
    assert bounds.upper == pytest.approx(expected, rel=WITNESS)
    check_weights(bounds, beta, kernel)


def test_the_witness_distinguishes_wrong_programmes():
    """Without pair weights, without √m, and with the transposed blocks the bound is off by far more than the tolerance."""
    beta = draw((4,), 2, 2)
    expected = restricted_cost_programme(beta.numpy(), (7,))
    right = problem(beta, 2, (7,))
    even = dataclasses.replace(right, weights=np.full_like(right.weights, right.weights.mean()))
    unfolded = dataclasses.replace(right, phases=right.phases / np.sqrt(right.copies))
    assert right.gram_bound()[0] == pytest.approx(expected, rel=WITNESS)
    for wrong in (even, unfolded):
        assert abs(wrong.gram_bound()[0] / expected - 1) > 1e-2
    narrow = problem(beta, 2, (2,))
    transposed = dataclasses.replace(narrow, blocks=narrow.blocks.swapaxes(1, 2).copy())
    assert abs(transposed.gram_bound()[0] / narrow.gram_bound()[0] - 1) > 1e-3


def test_shifting_the_other_way_costs_the_same_and_computes_another_map():
    beta = draw((3, 4), 2, 2)
    kernel = (2, 2)
    mirrored = beta.flip(2, 3).roll((1, 1), (2, 3))  # β[−q], for which tap s of the programme would be q − s
    assert restricted_cost(mirrored, 2, kernel, None).upper == pytest.approx(restricted_cost(beta, 2, kernel, None).upper, rel=BRACKET)
    weights = restricted_cost(mirrored, 2, kernel, None).weights
    assert residual(weights, mirrored) <= 1e-10
    assert residual(weights, beta) > 0.1
    problem_ = problem(beta, 2, kernel)
    conjugated = dataclasses.replace(problem_, phases=problem_.phases.conj())
    cost, weights = conjugated.network(next(conjugated.candidates(conjugated.gram_bound()[1], math.inf)))
    assert (cost, weights) == (math.inf, None)  # the library's own check of the map refuses it


# --- Hundreds of rows: descent in a factor of P -------------------------------------------------------------------------


def lags_of(beta: Tensor, kernel: tuple[int, ...]) -> tuple[_Problem, Lags]:
    general = problem(beta, 2, kernel)
    sites = tuple(min(k, n) for k, n in zip(kernel, general.grid, strict=True))
    return general, Lags.of(general.grid, sites, general.copies)


def unreduced_frames(general: _Problem) -> np.ndarray:
    return np.stack([np.kron(phase[:, None], np.eye(general.blocks.shape[2])) for phase in general.phases])


@pytest.mark.parametrize(("grid", "kernel", "outputs", "channels"), CASES)
def test_sums_along_lags_are_the_products_with_frames(grid, kernel, outputs, channels):
    general, lags = lags_of(draw(grid, outputs, channels), kernel)
    frames, noise = unreduced_frames(general), np.random.default_rng(0)
    factor = noise.standard_normal((frames.shape[1], frames.shape[1]))
    gram = factor.T @ factor
    expected = np.einsum("uic,ij,ujd->ucd", frames.conj(), gram, frames)
    assert np.abs(lags.spectrum(gram) - expected).max() <= 1e-13 * np.abs(expected).max()
    full = FrequencyBlocks.from_predictor(draw(grid, channels, channels, seed=1)).values.numpy()  # blocks of a real predictor
    half = full[..., : grid[-1] // 2 + 1, :, :].reshape(-1, channels, channels)
    half = half.conj().swapaxes(1, 2) @ half
    expected = np.einsum("u,uic,ucd,ujd->ij", general.weights, frames, half, frames.conj()).real
    assert np.abs(lags.gram(half) - expected).max() <= 1e-13 * np.abs(expected).max()
    # Adjoint: Σ weights tr X P̂ = tr Γ P.
    pairing = general.weights @ np.einsum("ucd,udc->u", half, lags.spectrum(gram)).real
    assert pairing == pytest.approx(float((lags.gram(half) * gram).sum()), rel=1e-12)


def test_lags_in_the_other_direction_are_another_programme():
    general, lags = lags_of(draw((5,), 2, 2), (3,))
    frames = unreduced_frames(general)
    factor = np.random.default_rng(0).standard_normal((6, 6))
    gram = factor.T @ factor
    mirrored = np.einsum("uic,ij,ujd->ucd", frames, gram, frames.conj())
    assert np.abs(lags.spectrum(gram) - mirrored).max() > 0.1


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize(("depth", "channels"), [(2, 1), (2, 2), (3, 1), (5, 1)])
def test_gamma_is_minus_the_gradient_of_the_energy(depth, channels, shift):
    """Central differences with step h: the error is h² times the third derivative, and ε/h of rounding."""
    general, lags = lags_of(draw((5,), channels, channels), (3,))
    noise = np.random.default_rng(0)
    size, step = 3 * channels, 1e-4
    factor, direction = noise.standard_normal((2, size, size))
    gram, direction = factor.T @ factor + np.eye(size), (direction + direction.T) / size
    roots = general.blocks if depth == 2 else np.abs(general.blocks).astype(complex)
    arguments = (roots, lags, general.weights, depth, shift)
    up, down = (_evaluate(gram + sign * step * direction, *arguments)[0] for sign in (1, -1))
    energy, dual = _evaluate(gram, *arguments)
    gamma = _gamma(dual, lags, depth)
    mass = general.weights @ (np.abs(dual) ** depth).sum((1, 2))
    assert float((gamma * gram).sum()) + shift * mass == pytest.approx(energy, rel=1e-12)
    assert (up - down) / (2 * step) == pytest.approx(-(depth - 1) * float((gamma * direction).sum()), rel=1e-6, abs=1e-6 * energy)


@given(small_cases())
@settings(max_examples=15)
def test_descent_agrees_with_newton_and_with_cvxpy(case):
    beta, kernel = case
    newton = restricted_cost(beta, 2, kernel, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restricted, "NEWTON_ROWS", 0)
        descent = restricted_cost(beta, 2, kernel, None)
    assert newton.lower <= descent.upper * (1 + 1e-12)
    assert descent.lower <= newton.upper * (1 + 1e-12)
    assert descent.upper <= descent.lower * (1 + PROMISE)
    check_weights(descent, beta, kernel)
    expected = restricted_cost_programme(beta.numpy(), kernel)
    assert descent.lower * (1 - WITNESS) <= expected <= descent.upper * (1 + WITNESS)


@pytest.mark.parametrize("depth", [3, 5])
def test_descent_finds_the_bound_of_deeper_networks(depth, monkeypatch):
    beta = draw((3, 4), 2, 2)
    newton = problem(beta, depth, (2, 3)).filter_bound()[0]
    monkeypatch.setattr(restricted, "NEWTON_ROWS", 0)
    descent = problem(beta, depth, (2, 3)).filter_bound()[0]
    assert newton * (1 - PROMISE) <= descent <= newton * (1 + 1e-9)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("parts", [(0.0, 0.0), (0.3, 0.0), (0.3, 0.4)])
def test_a_minimum_from_any_multiplier_bounds_its_own_programme_and_leaves_the_optimal_one_in_place(depth, parts, monkeypatch):
    """ε and Λ change where a minimisation ends, not what its dual point proves; from the optimal Λ it ends at Λ again."""
    beta = draw((6,), 2, 2 if depth == 2 else 1)
    general, lags = lags_of(beta, (4,))
    roots = general.blocks if depth == 2 else (np.linalg.norm(general.blocks, axis=(1, 2), keepdims=True) ** (2 / depth)).astype(complex)
    frames = np.einsum("us,cd->uscd", general.phases, np.eye(roots.shape[2])).reshape(len(roots), -1, roots.shape[2])
    factor, optimal = central_path(roots, frames, general.weights, depth)
    exact = dual_bound(roots, optimal, frames, general.weights, depth)
    shift, start = parts[0], parts[1] * optimal
    bracket = _Bracket(roots, lags, general.weights, depth, np.eye(len(factor)), roots)
    monkeypatch.setattr(factored_descent, "WIDTH", 0.0)
    _descend(bracket, factor, roots + shift * start, shift)
    assert dual_bound(roots, bracket.dual, frames, general.weights, depth) == pytest.approx(bracket.lower, rel=1e-12)
    assert bracket.lower <= exact * (1 + BRACKET)
    assert exact * (1 - BRACKET) <= bracket.upper
    _, again = _evaluate(factor.T @ factor, roots + shift * optimal, lags, general.weights, depth, shift)
    assert np.abs(again - optimal).max() <= 1e-6 * np.abs(optimal).max()


def in_frequency(grid: tuple[int, ...], values: Tensor) -> Tensor:
    return torch.fft.ifftn(values, dim=tuple(range(2, 2 + len(grid)))).real


def spectrum_of(grid: tuple[int, ...], outputs: int, channels: int, seed: int = 0) -> Tensor:
    return torch.fft.fftn(draw(grid, outputs, channels, seed), dim=tuple(range(2, 2 + len(grid))))


def radius(grid: tuple[int, ...]) -> Tensor:
    axes = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in grid], indexing="ij")
    return torch.stack([a**2 for a in axes]).sum(0).sqrt()


def graded(grid: tuple[int, ...], size: int) -> Tensor:
    """Singular values of every block over eight decades."""
    left, _, right = torch.linalg.svd(spectrum_of(grid, size, size).movedim((0, 1), (-2, -1)))
    return in_frequency(grid, ((left * torch.logspace(0, -8, size, dtype=torch.float64)) @ right).movedim((-2, -1), (0, 1)))


# Where Λ_u = V_u P̂_u^{−1} is a limit 0/0 or badly scaled: blocks that vanish or are of low rank, eight decades, power laws.
DEGENERATE = {
    "one pair": (in_frequency((5, 4), spectrum_of((5, 4), 2, 3) * (radius((5, 4)) == 2)), (3, 3)),
    "one in four": (in_frequency((4, 4), spectrum_of((4, 4), 1, 3) * (radius((4, 4)) % 2 == 0)), (3, 3)),
    "rank one": (in_frequency((4, 5), spectrum_of((4, 5), 3, 1) * spectrum_of((4, 5), 1, 3, seed=1)), (3, 2)),
    "decades": (graded((4, 4), 3), (3, 3)),
    "falling": (in_frequency((6, 5), spectrum_of((6, 5), 2, 2) * 10 ** (-radius((6, 5)))), (3, 3)),
    "power law": (in_frequency((6, 5), spectrum_of((6, 5), 2, 2) / (1 + radius((6, 5))) ** 3), (3, 3)),
    "delta": (delta((4, 5), draw((1, 1), 2, 3).reshape(2, 3), (1, 1)), (3, 3)),
    "line": (draw((60,), 2, 1), (20,)),
    "sparse line": (in_frequency((61,), spectrum_of((61,), 2, 1) * (radius((61,)) % 13 == 5)), (20,)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_descent_closes_the_bracket_of_degenerate_programmes(name, monkeypatch):
    beta, kernel = DEGENERATE[name]
    newton = restricted_cost(beta, 2, kernel, None)
    monkeypatch.setattr(restricted, "NEWTON_ROWS", 0)
    descent = restricted_cost(beta, 2, kernel, None)
    assert newton.lower <= descent.upper * (1 + 1e-12)
    assert descent.lower <= newton.upper * (1 + 1e-12)
    assert descent.upper <= descent.lower * (1 + PROMISE)
    check_weights(descent, beta, kernel)


def test_blocks_of_very_different_norms_may_leave_a_wider_bracket_but_a_valid_one(monkeypatch):
    beta = in_frequency((6, 5), spectrum_of((6, 5), 2, 2) * 10 ** (-2 * radius((6, 5))))  # over seven decades
    newton = restricted_cost(beta, 2, (3, 3), None)
    monkeypatch.setattr(restricted, "NEWTON_ROWS", 0)
    monkeypatch.setattr(factored_descent, "EVALUATIONS", 500)
    descent = restricted_cost(beta, 2, (3, 3), None)
    assert descent.lower <= newton.upper * (1 + 1e-12)
    assert newton.lower <= descent.upper < 1.001 * newton.upper
    check_weights(descent, beta, (3, 3))


@pytest.mark.parametrize("depth", [2, 5])
def test_long_filters_are_solved_at_every_depth(depth):
    beta = draw((200,), 2, 1)
    bounds = restricted_cost(beta, depth, (84,), 1)
    assert bounds.lower <= bounds.upper <= bounds.lower * (1 + PROMISE)
    check_weights(bounds, beta, (84,))


def smooth(grid: tuple[int, int], outputs: int, channels: int) -> Tensor:
    """A predictor whose spectrum falls like that of photographs."""
    first, second = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in grid)
    radius = (first[:, None] ** 2 + second**2).sqrt()
    return torch.fft.ifft2(torch.fft.fft2(draw(grid, outputs, channels)) / (1 + radius) ** 1.5).real


LARGE = {
    "random": (draw((8, 8), 10, 10), (3, 3)),
    "odd": (draw((7, 9), 10, 10), (3, 3)),
    "wide": (draw((12, 12), 10, 2), (7, 7)),
    "folded": (draw((5, 4), 3, 6), (7, 3)),
    "three": (draw((4, 4, 3), 8, 8), (2, 3, 2)),
    "smooth": (smooth((8, 8), 10, 10), (3, 3)),
    "sparse": (torch.fft.ifft2(torch.fft.fft2(draw((8, 8), 6, 4)) * (torch.arange(64).reshape(8, 8) % 9 == 0)).real, (5, 5)),
}


@pytest.mark.parametrize("name", LARGE)
def test_programmes_of_hundreds_of_rows_are_solved_to_one_part_in_a_million(name):
    beta, kernel = LARGE[name]
    bounds = restricted_cost(beta, 2, kernel, None)
    assert math.prod(min(k, n) for k, n in zip(kernel, beta.shape[2:], strict=True)) * beta.shape[1] > restricted.NEWTON_ROWS
    assert bounds.lower <= bounds.upper <= bounds.lower * (1 + PROMISE)
    check_weights(bounds, beta, kernel)


def test_large_programmes_with_a_known_minimum():
    block = draw((1, 1), 10, 16).reshape(10, 16)
    bounds = restricted_cost(delta((8, 8), block, (2, 1)), 2, (3, 3), None)
    expected = 2 * float(torch.linalg.svdvals(block).sum())
    assert bounds.lower == pytest.approx(expected, rel=PROMISE)
    assert bounds.upper == pytest.approx(expected, rel=PROMISE)
    beta = draw((6, 5), 3, 3)
    assert problem(beta, 2, (6, 5)).gram_bound()[0] == pytest.approx(dense_cost(beta.numpy(), 2), rel=PROMISE)


def test_turning_the_input_channels_costs_nothing_and_unused_ones_cost_nothing():
    beta = draw((6, 6), 4, 2)
    turn = torch.linalg.qr(draw((1,), 12, 12, seed=3)[..., 0])[0]
    mixed = torch.einsum("kcij,cd->kdij", beta, turn[:2])  # 108 rows, of which 18 matter
    two, twelve = restricted_cost(beta, 2, (3, 3), None), restricted_cost(mixed, 2, (3, 3), None)
    assert twelve.lower == pytest.approx(two.lower, rel=BRACKET)
    assert twelve.upper == pytest.approx(two.upper, rel=BRACKET)
    check_weights(twelve, mixed, (3, 3))


@pytest.mark.parametrize("call", [2, 5, 12])
def test_a_trial_beyond_rounding_leaves_a_valid_bracket(call, monkeypatch):
    beta, calls = draw((6,), 1, 3), 0
    exact = restricted_cost(beta, 2, (4,), None)

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise np.linalg.LinAlgError("Matrix is not positive definite")
        return _evaluate(*args, **kwargs)

    monkeypatch.setattr(restricted, "NEWTON_ROWS", 0)
    monkeypatch.setattr(factored_descent, "_evaluate", failing)
    bounds = restricted_cost(beta, 2, (4,), None)
    assert calls > call
    assert bounds.lower <= exact.upper
    assert exact.lower <= bounds.upper <= bounds.lower * (1 + PROMISE)


@pytest.mark.parametrize("steps", [1, 5, 25])
def test_a_descent_that_is_cut_short_leaves_a_valid_bracket(steps, monkeypatch):
    beta = draw((6,), 1, 3)
    exact = restricted_cost(beta, 2, (4,), None)
    monkeypatch.setattr(restricted, "NEWTON_ROWS", 0)
    monkeypatch.setattr(factored_descent, "EVALUATIONS", steps)
    short = restricted_cost(beta, 2, (4,), None)
    assert short.lower <= exact.upper
    assert exact.lower <= short.upper < math.inf
    check_weights(short, beta, (4,))


# --- Laws at every depth ----------------------------------------------------------------------------------------------


@given(small_cases(), st.integers(2, 3))
@settings(max_examples=30)
def test_the_weights_compute_the_predictor_within_the_bounds(case, depth):
    beta, kernel = case
    bounds = restricted_cost(beta, depth, kernel, None)
    assert 0 < bounds.lower <= bounds.upper < math.inf
    check_weights(bounds, beta, kernel)
    if depth == 2:
        assert bounds.upper <= bounds.lower * (1 + 1e-6)


@given(st.data(), st.integers(2, 4))
@settings(max_examples=40)
def test_no_network_is_below_the_bound_of_what_it_computes(data, depth):
    """Random networks, balanced: their cost is at least the lower bound of their own predictor."""
    grid = data.draw(st.sampled_from([(5,), (4,), (3, 2)]))
    kernel = tuple(data.draw(st.integers(1, n + 1)) for n in grid)
    widths = [data.draw(st.integers(1, 2)) for _ in range(depth)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    net = LinearCNN(widths[0], widths[1:], 2, grid, kernel_size=kernel, generator=generator)
    cost = depth * math.prod(float((w.detach() ** 2).sum()) for w in net.weights) ** (1 / depth)
    beta = frequency_blocks(net).predictor().detach()
    problem_ = problem(beta, depth, kernel)
    bounds = [problem_.filter_bound()[0]] + ([problem_.gram_bound()[0]] if depth == 2 else [])
    assert max(bounds) <= cost * (1 + 1e-9)


@given(small_cases(), st.data())
@settings(max_examples=15)
def test_more_taps_never_cost_more(case, data):
    beta, kernel = case
    dim = data.draw(st.integers(0, len(kernel) - 1))
    wider = tuple(k + (i == dim) for i, k in enumerate(kernel))
    for depth in (2, 3):
        narrow, wide = problem(beta, depth, kernel).filter_bound()[0], problem(beta, depth, wider).filter_bound()[0]
        assert wide <= narrow * (1 + 1e-8)
    assert restricted_cost(beta, 2, wider, None).lower <= restricted_cost(beta, 2, kernel, None).upper * (1 + 1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(("kernel", "channels"), [((2, 2), 2), ((1, 1), 2), ((3, 8), 2), ((3, 3), 1)])
def test_scaling_the_predictor_by_c_scales_the_cost_by_its_power_2_over_depth(depth, kernel, channels):
    beta = draw((3, 4), 2, channels)
    one, two = restricted_cost(beta, depth, kernel, None), restricted_cost(-1e3 * beta, depth, kernel, None)
    assert two.lower == pytest.approx(1e3 ** (2 / depth) * one.lower, rel=1e-9)
    assert two.weights is not None
    assert residual(two.weights, -1e3 * beta) <= 1e-10


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 2), (2, 2), (3, 3)])
def test_a_delta_costs_the_same_at_every_kernel_size(depth, kernel):
    grid = (3, 4)
    block = draw((1, 1), 2, 3).reshape(2, 3)
    expected = depth * float((torch.linalg.svdvals(block) ** (2 / depth)).sum())
    bounds = restricted_cost(delta(grid, block, (2, 1)), depth, kernel, None)
    assert bounds.lower == pytest.approx(expected, rel=1e-9)
    assert bounds.upper == pytest.approx(expected, rel=1e-9)


# --- Where a formula is known -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize(("grid", "outputs", "channels"), [((5,), 2, 3), ((3, 2), 3, 2), ((2, 2, 2), 1, 2)])
def test_kernels_of_the_grid_cost_the_full_formula(depth, grid, outputs, channels):
    beta = draw(grid, outputs, channels)
    expected = dense_cost(beta.numpy(), depth)
    exact = restricted_cost(beta, depth, grid, None)
    assert (exact.lower, exact.upper) == (pytest.approx(expected, rel=1e-10),) * 2
    check_weights(exact, beta, grid)
    general = problem(beta, depth, grid)  # the same through the programmes
    assert general.filter_bound()[0] == pytest.approx(expected, rel=1e-9)
    if depth == 2:
        assert general.gram_bound()[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(("grid", "times"), [((5,), (2,)), ((3, 2), (2, 2)), ((2, 3), (1, 3)), ((2, 2, 2), (2, 1, 2))])
def test_kernels_of_whole_grids_cost_less_by_a_power_of_their_number(depth, grid, times):
    beta = draw(grid, 2, 2)
    kernel = tuple(t * n for t, n in zip(times, grid, strict=True))
    bounds = restricted_cost(beta, depth, kernel, None)
    expected = math.prod(times) ** (-(depth - 1) / depth) * dense_cost(beta.numpy(), depth)
    assert bounds.lower == bounds.upper == pytest.approx(expected, rel=1e-10)
    check_weights(bounds, beta, kernel)
    assert problem(beta, depth, kernel).filter_bound()[0] == pytest.approx(expected, rel=1e-9)


def test_twice_the_grid_at_depth_two_costs_the_root_of_one_half():
    beta = draw((6,), 2, 2)
    assert restricted_cost(beta, 2, (12,), None).upper / dense_cost(beta.numpy(), 2) == pytest.approx(0.70711, abs=1e-5)


@pytest.mark.parametrize(("outputs", "channels"), [(1, 3), (2, 2), (3, 1)])
def test_one_tap_at_depth_two_agrees_with_the_programme(outputs, channels):
    beta = draw((3, 2), outputs, channels)
    closed = restricted_cost(beta, 2, (1, 1), None)
    assert closed.lower == closed.upper == pytest.approx(problem(beta, 2, (1, 1)).gram_bound()[0], rel=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_one_tap_is_a_fully_connected_network_of_the_predictor_as_a_matrix(depth):
    beta = draw((3, 2), 2, 3)
    bounds = restricted_cost(beta, depth, (1, 1), 3)
    sigma = torch.linalg.svdvals(beta.movedim(1, -1).reshape(-1, 3))
    assert bounds.lower == bounds.upper == pytest.approx(depth * float((sigma ** (2 / depth)).sum()), rel=1e-12)
    check_weights(bounds, beta, (1, 1))
    assert restricted_cost(beta, depth, (1, 1), 2) == RestrictedBounds(math.inf, math.inf, None)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
@pytest.mark.parametrize("outputs", [1, 3])
def test_one_channel_in_one_dimension_is_solved_at_every_depth_by_one_hidden_channel(depth, outputs):
    beta = draw((9,), outputs, 1, seed=depth)
    for taps in (2, 3, 5, 8):
        bounds = restricted_cost(beta, depth, (taps,), 1)
        assert bounds.upper <= bounds.lower * (1 + BRACKET)
        check_weights(bounds, beta, (taps,))
        assert bounds.weights[0].shape[0] == 1


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_bound_at_any_depth_is_the_minimum_of_its_programme(depth):
    """The same convex programme in cvxpy, by cosines instead of complex phases and with power cones."""
    beta, taps, sites = draw((5,), 2, 2), 3, 5
    blocks = np.fft.fft(beta.numpy()).conj().transpose(2, 0, 1)
    norms = (np.linalg.svd(blocks, compute_uv=False) ** (2 / depth)).sum(-1) ** (depth / 2)
    gram = cp.Variable((taps, taps), PSD=True)
    lags = np.subtract.outer(np.arange(taps), np.arange(taps))
    powers = cp.hstack([cp.sum(cp.multiply(np.cos(2 * np.pi * u * lags / sites), gram)) for u in range(sites)])
    value = (depth - 1) * cp.trace(gram) + cp.sum(cp.multiply(norms**2, cp.power(powers, 1 - depth))) / sites
    expected = cp.Problem(cp.Minimize(value)).solve(solver=cp.CLARABEL)
    assert problem(beta, depth, (taps,)).filter_bound()[0] == pytest.approx(expected, rel=WITNESS)


# --- Widths, precision, size --------------------------------------------------------------------------------------------


def test_blocks_of_higher_rank_than_the_width_cannot_be_computed():
    beta = draw((5,), 3, 3)
    for depth in (2, 3):
        for kernel in ((2,), (5,), (10,)):
            assert restricted_cost(beta, depth, kernel, 2) == RestrictedBounds(math.inf, math.inf, None)


def test_narrow_networks_cost_at_least_as_much_and_no_claim_is_made_where_none_is_found():
    beta = draw((4, 4), 4, 3)
    free, narrow = restricted_cost(beta, 2, (2, 2), None), restricted_cost(beta, 2, (2, 2), 3)
    assert free.upper <= free.lower * (1 + BRACKET)
    assert narrow.lower == free.lower
    assert free.lower < narrow.upper < 1.05 * free.upper
    check_weights(narrow, beta, (2, 2))
    assert narrow.weights[0].shape[0] <= 3
    one = restricted_cost(draw((6,), 1, 3), 2, (2,), 1)  # rank one at every frequency, in directions that two taps cannot follow
    assert 0 < one.lower < one.upper == math.inf
    assert one.weights is None


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kernel", [(2,), (4,), (1,), (8,)])
def test_the_zero_predictor_costs_nothing(depth, kernel):
    bounds = restricted_cost(torch.zeros(2, 3, 4), depth, kernel, None)
    assert (bounds.lower, bounds.upper) == (0.0, 0.0)
    assert len(bounds.weights) == depth
    assert not dense_network([w.numpy() for w in bounds.weights], (4,)).any()


@pytest.mark.parametrize("kernel", [(1,), (3,), (6,), (12,)])
def test_float32_predictors_are_computed_in_float64_with_their_own_rank_tolerance(kernel):
    block = draw((1,), 2, 1).reshape(2, 1) @ draw((1,), 1, 2, seed=1).reshape(1, 2)
    beta = (block[:, :, None] * draw((6,), 1, 1, seed=2)).to(torch.float32)  # rank one up to the rounding of float32
    bounds = restricted_cost(beta, 2, kernel, 1)
    assert bounds.upper <= bounds.lower * (1 + BRACKET)
    assert bounds.weights[0].dtype == torch.float64
    assert residual(bounds.weights, beta.to(torch.float64)) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_nearly_degenerate_predictors_end_where_rounding_hides_progress(seed):
    """Whole numbers with noise of 1e-7: the value at the end of the path is noisier than the decrease that is left."""
    beta = torch.tensor([[[0.0, -1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 1.0, -1.0]]], dtype=torch.float64) + 1e-7 * draw((3,), 1, 3, seed)
    bounds = restricted_cost(beta, 2, (2,), None)
    assert bounds.lower <= bounds.upper <= bounds.lower * (1 + BRACKET)
    check_weights(bounds, beta, (2,))


@pytest.mark.parametrize("limit", [0, 4])
def test_programmes_that_are_too_large_leave_valid_bounds(monkeypatch, limit):
    beta = draw((6,), 2, 2)
    exact = restricted_cost(beta, 2, (4,), None)
    monkeypatch.setattr(restricted, "NEWTON_ROWS", limit)
    monkeypatch.setattr(restricted, "DESCENT_ROWS", limit)
    coarse = restricted_cost(beta, 2, (4,), None)
    assert coarse.lower <= exact.upper
    assert exact.lower <= coarse.upper < 1.05 * exact.upper
    check_weights(coarse, beta, (4,))


def test_a_network_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="depth: expected at least 2, got 1"):
        restricted_cost(draw((4,), 1, 1), 1, (2,), None)


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
def test_training_does_not_go_below_the_lower_bound_and_at_depth_two_comes_down_to_it(depth):
    """L-BFGS on the hidden weights in the space domain, the readout the least-norm solution of dense equations."""
    grid, taps, channels, width = (6,), 3, 2, 6
    beta = draw(grid, 2, channels)
    bounds = restricted_cost(beta, depth, (taps,), None)
    generator = torch.Generator().manual_seed(1)
    shapes = [(width, channels, taps), *[(width, width, taps)] * (depth - 2)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64).div_(2).requires_grad_() for s in shapes]
    shifts = torch.stack([torch.eye(6, dtype=torch.float64).roll(m, 0) for m in range(taps)])  # site j to j + m

    def cost() -> Tensor:
        matrix = torch.eye(channels * 6, dtype=torch.float64)
        for w in weights:
            matrix = torch.einsum("oim,mpq->opiq", w, shifts).reshape(w.shape[0] * 6, -1) @ matrix
        readout = torch.linalg.solve(matrix.T @ matrix, beta.flatten(1).T).T @ matrix.T
        return sum((w**2).sum() for w in weights) + (readout**2).sum()

    optimiser = torch.optim.LBFGS(weights, max_iter=800, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = cost()
        value.backward()
        return value

    optimiser.step(closure)
    trained = float(cost().detach())
    assert bounds.lower <= trained
    if depth == 2:
        assert trained == pytest.approx(bounds.lower, rel=1e-6)
