"""The catalogue of neighbouring theorems: planted errors, other sizes, and statements that are known to be false."""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Annotated

import numpy as np
import pytest
import sympy
import torch
from annotated_types import Interval
from hypothesis import given, settings
from hypothesis import strategies as st

import linconv as lc
from linconv.claims import Check, UsageError, agree, at_most, control
from linconv.network import circular_convolution
from verification import (
    balancedness,
    factorisability,
    fully_connected_cost,
    group_schatten,
    kernel_size,
    rank_limit,
    separable_bias,
    stagewise,
    wrapped_singular_values,
)

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- Statements that are known to be false, as a user would write them ---


def strictly_monotone(*, seed: Annotated[int, Interval(ge=0, le=100), "seed of the predictor"] = 0) -> Iterator[Check]:
    beta = random(1, 1, 5, seed=seed)
    costs = [lc.representation_cost(beta, 2, kernel_size=k).upper for k in (3, 4, 5)]
    strict = [cost * (1 - 1e-6) for cost in costs[:-1]]
    yield at_most("every further tap lowers the cost", costs[1:], strict, tolerance=0, reason="strictly")
    yield control("cost grows", at_most("", [2 * cost for cost in costs[1:]], strict, tolerance=0, reason="strictly"))


def balanced_at_each_frequency(*, seed: Annotated[int, Interval(ge=0, le=100), "seed of the network"] = 0) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(seed)
    net = lc.LinearCNN(2, [3, 3], 2, (3, 4), kernel_size=2, generator=generator)
    problem = balancedness.Problem(random(6, 2, 3, 4, seed=seed), random(6, 2, seed=seed + 1), "squared", 0.0)
    rates, terms = balancedness.derivative(net, problem.gradients(net), True, 0.0)
    yield agree("dΔ/dt = 0 at each frequency", rates, torch.zeros_like(rates), scale=terms)
    yield control("Δ itself is 0", agree("", balancedness.difference(net, True), torch.zeros_like(rates), scale=terms))


def orthonormal_without_its_factor(*, depth: Annotated[int, Interval(ge=2, le=6), "depth L"] = 3) -> Iterator[Check]:
    beta = random(3, 2, 3, 4)
    blocks = torch.fft.fftn(beta, dim=(2, 3), norm="ortho").permute(2, 3, 0, 1)
    claimed = depth * float((torch.linalg.svdvals(blocks) ** (2 / depth)).sum())
    cost = lc.representation_cost(beta, depth).lower
    yield agree("R_L = L Σ ‖B_u‖_{S_{2/L}}^{2/L} with the orthonormal transform", cost, claimed)
    yield control("twice as much", agree("", cost, 2 * claimed))


def channels_do_not_matter_in_two_dimensions(*, starts: Annotated[int, Interval(ge=1, le=20), "starts"] = 6) -> Iterator[Check]:
    beta = torch.zeros(1, 1, 3, 4, dtype=F64)
    for tap in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        beta[(0, 0, *tap)] = 4.0 if tap == (0, 0) else 1.0
    found = kernel_size.least_cost(beta, (2, 2), 1, starts, torch.Generator().manual_seed(0))
    yield agree("one hidden channel costs what two do", found, 8.0, tolerance=1e-4, reason="far above the search's accuracy")
    yield control("it costs a half", agree("", found, 4.0, tolerance=1e-4, reason="far above the search's accuracy"))


@pytest.mark.parametrize(
    "statement", [strictly_monotone, balanced_at_each_frequency, orthonormal_without_its_factor, channels_do_not_matter_in_two_dimensions]
)
def test_a_known_false_statement_is_refuted(statement):
    verdict = lc.check(statement)
    assert verdict.verdict == "REFUTED", f"{verdict}\n{verdict.traceback}"


# --- Planted errors: a claim that does not notice them tests nothing ---


PLANTED = [
    (fully_connected_cost, "bridge"),
    (rank_limit, "block_logarithms"),
    (wrapped_singular_values, "dense_values"),
    (kernel_size, "schatten"),
    (group_schatten, "formula"),
    (balancedness, "difference"),
    (stagewise, "half_time"),
    (separable_bias, "transforms"),
]


def first_that_does_not_pass(module):
    """A claim's first required check that does not pass, in its small run."""
    checks = (event for event in module.claim(**module.FAST) if isinstance(event, Check) and event.required)
    return next((check for check in checks if not check.passed), None)


@pytest.mark.parametrize(("module", "name"), PLANTED, ids=[name for _, name in PLANTED])
def test_a_quantity_wrong_by_five_percent_is_noticed(module, name, monkeypatch):
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments, **options: 1.05 * right(*arguments, **options))
    assert first_that_does_not_pass(module) is not None


def test_a_wrong_root_count_is_noticed(monkeypatch):
    monkeypatch.setattr(factorisability, "enough", lambda real_roots, degrees: real_roots >= len(degrees))
    assert first_that_does_not_pass(factorisability).name.startswith("the roots can be shared out")


def test_layers_multiplied_in_the_wrong_order_are_noticed(monkeypatch):
    """Every cost stays the same: only the map can tell."""
    right = fully_connected_cost.product
    monkeypatch.setattr(fully_connected_cost, "product", lambda net: right(net)[::-1])
    assert "product of the explicit factors" in first_that_does_not_pass(fully_connected_cost).name


# --- The parts that the claims are made of ---


@given(roots=st.lists(st.integers(-4, 4), max_size=4), pairs=st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 3)), max_size=3))
def test_real_roots_are_counted_with_multiplicity(roots, pairs):
    z = sympy.Symbol("z")
    polynomial = sympy.Poly(sympy.prod([z - r for r in roots] + [(z - a) ** 2 + b**2 for a, b in pairs]), z)
    if polynomial.degree() > 0:
        assert factorisability.real_roots([int(c) for c in reversed(polynomial.all_coeffs())]) == len(roots)


@given(degrees=st.lists(st.integers(1, 5), min_size=2, max_size=4), data=st.data())
def test_a_product_of_real_filters_has_enough_real_roots(degrees, data):
    """The direction of the theorem that needs no construction, on filters as they come; leading taps are not 0."""
    taps = st.integers(-5, 5)
    filters = [[data.draw(taps) for _ in range(d)] + [data.draw(taps.filter(bool))] for d in degrees]
    composed = reduce(np.convolve, [np.array(taps, dtype=object) for taps in filters])
    assert factorisability.enough(factorisability.real_roots([int(c) for c in composed]), tuple(degrees))


@pytest.mark.parametrize("group", [group_schatten.symmetric(3), group_schatten.square()], ids=["S3", "D4"])
def test_a_group_has_inverses_and_all_its_representations(group):
    n = group.order
    assert (group.table[np.arange(n), group.inverse] == 0).all()
    assert sum(rho.shape[1] ** 2 for rho in group.irreducible) == n
    assert not (group.table == group.table.T).all(), "the group commutes: it tests nothing new"


@given(seed=st.integers(0, 1000), depth=st.integers(1, 6))
@settings(max_examples=15)
def test_the_cost_over_a_group_is_that_of_the_translated_predictor(seed, depth):
    """β(g₀ g) is another function of the same cost: every β̂_ρ is multiplied by an orthogonal matrix."""
    group = group_schatten.symmetric(3)
    beta = random(6, 2, 3, seed=seed).numpy()
    moved = beta[group.table[seed % 6]]
    assert group_schatten.formula(moved, group, depth) == pytest.approx(group_schatten.formula(beta, group, depth), rel=1e-12)


def test_four_sites_tell_a_truncated_kernel_from_a_wrapped_one():
    kernel = np.arange(1, 21).reshape(2, 2, 5)
    assert wrapped_singular_values.exactly_equal(kernel)
    assert not wrapped_singular_values.exactly_equal(kernel, taps=4)


@pytest.mark.parametrize("taps", [(2,), (3,), (2, 2), (2, 3)])
def test_the_search_over_kernels_computes_with_circular_convolutions(taps):
    grid = (3, 4)[: len(taps)] if len(taps) == 2 else (5,)
    kernel = random(1, 1, *taps)
    moves = kernel_size.shifts(taps, grid)
    matrix = (kernel.reshape(1, -1) @ moves.flatten(1)).reshape(math.prod(grid), -1)
    x = random(2, 1, *grid)
    assert torch.allclose(circular_convolution(x, kernel).flatten(1), x.flatten(1) @ matrix.T)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_component_is_half_learned_at_its_half_time(depth):
    time = stagewise.half_time(depth, 0.7, 2.0, 1e-3)
    sizes = stagewise.sizes_at(np.array([0.0, time]), depth, 0.7, 2.0, 1e-3)
    assert sizes == pytest.approx([1e-3, 1.0], rel=1e-8)


@pytest.mark.parametrize("power", [1, 2])
def test_the_residual_vanishes_at_the_separator_of_least_norm_and_not_beside_it(power, generator):
    z = separable_bias.separable(3, (3, 4), generator)
    spectra = separable_bias.transforms(z)

    def residual(beta):
        margins = (z.flatten(1).numpy() @ beta).ravel()
        at = separable_bias.Point(margins, separable_bias.witnesses.dense_fourier((3, 4)) @ beta, 1.0)
        return separable_bias.residual(at, spectra, power)

    beta = separable_bias.least_norm(z, power)
    assert residual(beta) < 1e-3  # the conic solver's 1e-9, under a square root where a component is 0
    assert residual(beta + 0.1 * np.abs(beta).max() * random(12).numpy()) > 1e-2


@pytest.mark.parametrize("images", [3, 6])
def test_as_many_images_as_sites_are_a_usage_error(images):
    with pytest.raises(UsageError, match=f"images: expected fewer than the 3 sites of the grid, got {images}; take fewer"):
        next(separable_bias.claim(images=images, grid=(3,)))


@pytest.mark.parametrize("grid", [(3,), (4,), (3, 4)])
def test_an_image_whose_frequencies_are_alike_decides_nothing_about_exponents(grid):
    delta = torch.zeros(1, 1, *grid, dtype=F64)
    delta.view(-1)[0] = 1
    (only,) = separable_bias.exponent_checks(delta)
    assert only.outcome == "inconclusive"
    assert "another seed or a larger grid" in only.note


def test_one_slower_frequency_is_enough_for_its_exponent():
    """δ + 1/10 on three sites: |x̂| is 1.3 at frequency 0, and 1 at the two others."""
    *rates, last = separable_bias.exponent_checks(torch.tensor([1.1, 0.1, 0.1], dtype=F64).reshape(1, 1, 3))
    assert {check.outcome for check in (*rates, last) if not check.control} == {"pass"}
    assert [check.outcome for check in (*rates, last) if check.control] == ["fail"]


class HalfDecay(balancedness.Problem):
    """Descent with half the weight decay that the problem states: Δ shrinks as e^{−2λt}."""

    def descend(self, net, step_size, steps):
        return balancedness.Problem(self.x, self.y, "squared", self.weight_decay / 2).descend(net, step_size, steps)


@pytest.mark.parametrize("kernel", [None, 2])
def test_the_extrapolated_difference_is_judged_by_the_size_of_the_initial_one(kernel, generator):
    net = lc.LinearCNN(2, [2], 2, (3, 4), kernel_size=kernel, generator=generator, scale=0.8)
    data = random(6, 2, 3, 4), random(6, 2, seed=1), "squared", 0.1

    def extrapolated(problem):
        return [check for check in balancedness.descent_checks("net", net, problem, 10) if "extrapolated" in check.name]

    right, wrong = extrapolated(balancedness.Problem(*data))
    size = float(balancedness.difference(net, kernel is None).abs().max())
    assert right.passed
    assert f"the change from step/6 to step/8; relative to the scale = {size:.3g}" in right.reason
    assert (wrong.control, wrong.outcome) == (True, "fail")
    planted, survivor = extrapolated(HalfDecay(*data))
    assert (planted.outcome, survivor.outcome) == ("fail", "pass")


def extrapolation(logarithms, depth):
    """The errors at infinite depth of the parabola and of the line through mean σ^{2/L} at depths `depth`, twice and four times it."""
    first, second, third = (np.exp(2 * logarithms / (depth * times)).mean() for times in (1, 2, 4))
    return abs((8 * third - 6 * second + first) / 3 - 1), abs(2 * third - second - 1)


@given(logarithms=st.lists(st.floats(-5, 5), min_size=1, max_size=6).map(np.array), depth=st.integers(8, 4096))
def test_the_error_of_the_extrapolated_rank_keeps_its_bound(logarithms, depth):
    bound = rank_limit.extrapolation_bound(logarithms, len(logarithms), depth)
    error, _ = extrapolation(logarithms, depth)
    rounding = rank_limit.ROUNDING * math.exp(10 / depth)
    assert error <= bound + rounding


@pytest.mark.parametrize("logarithm", [-2.0, 1.0, 3.0])
def test_the_bound_of_the_extrapolated_rank_is_sharp_and_below_the_error_of_a_line(logarithm):
    """At depth 256 the singular value's third derivative changes by a factor of σ^{2/256} between depth 256 and infinity."""
    logarithms = np.array([logarithm])
    bound = rank_limit.extrapolation_bound(logarithms, 1, 256)
    error, line = extrapolation(logarithms, 256)
    assert math.exp(-2 * abs(logarithm) / 256) * bound - rank_limit.ROUNDING <= error <= bound + rank_limit.ROUNDING
    assert line > 50 * bound
