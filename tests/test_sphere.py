"""Spherical data and the two limits: kernels by quadrature, the feature limit by a convex programme of another form, laws, certificates."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from linconv.dual_maxima import exact_maximum, local_maxima
from linconv.minimal_variation import ROUNDING
from linconv.sphere import (
    ShallowNetwork,
    arc_cosine_kernel,
    constant_variation,
    descend,
    even,
    expected_kernel_error,
    gaussian_field,
    kernel_regression,
    laplace_kernel,
    learning_exponent,
    min_total_variation,
    rotated,
    rotation_stability,
    sphere_data,
    tangent_kernel,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps
seeds = st.integers(0, 10**6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sphere(n, dim, seed=0, dtype=F64):
    return sphere_data(n, dim, generator=seeded(seed), dtype=dtype)


def ones(n, dtype=F64):
    return torch.ones(n, dtype=dtype)


# --- Data and rotations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_points_have_norm_one_and_the_moments_of_the_uniform_measure(dim, dtype):
    x = sphere(4000, dim, dtype=dtype)
    assert x.dtype == dtype
    assert (x.norm(dim=1) - 1).abs().max() < 8 * torch.finfo(dtype).eps
    # Entries of the second moment have variance at most 1/N: five standard deviations over d² of them.
    assert (x.T @ x / 4000 - torch.eye(dim, dtype=dtype) / dim).abs().max() < 5 / math.sqrt(4000)


def test_points_of_a_seed_are_the_same_in_single_precision():
    assert torch.equal(sphere(5, 3).float(), sphere(5, 3, dtype=torch.float32))
    assert not torch.equal(sphere(5, 3), sphere(5, 3, seed=1))


@given(dim=st.integers(2, 7), angle=st.floats(-7, 7), seed=seeds)
@settings(max_examples=30)
def test_a_rotation_keeps_norms_and_turns_by_at_most_its_angle(dim, angle, seed):
    x = sphere(20, dim, seed)
    turned = rotated(x, angle, generator=seeded(seed + 1))
    assert torch.allclose(turned.norm(dim=1), ones(20), atol=1e-13)
    chord = (turned - x).norm(dim=1)
    assert bool((chord <= 2 * abs(math.sin(angle / 2)) + 1e-13).all())
    if dim == 2:
        assert torch.allclose(chord, 2 * abs(math.sin(angle / 2)) * ones(20), atol=1e-13)


def test_rotations_by_nothing_and_by_a_whole_turn_are_the_identity():
    x = sphere(50, 4)
    assert torch.equal(rotated(x, 0.0, generator=seeded()), x)
    assert torch.allclose(rotated(x, 2 * math.pi, generator=seeded()), x, atol=1e-14)


def test_both_senses_of_rotation_in_the_plane_are_drawn():
    x = torch.tensor([[1.0, 0.0]], dtype=F64).expand(400, 2).contiguous()
    ups = int((rotated(x, 0.3, generator=seeded())[:, 1] > 0).sum())
    assert 150 < ups < 250  # five standard deviations of 400 fair coins


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_rotation_stability_of_a_linear_function_is_its_closed_form(dim):
    """f = β·x: S = 4 sin²(θ/2)·(2/d)·|β|²/d, as a plane holds 2/d of β and x has second moment I/d; twice f has four times S."""
    beta = torch.arange(1.0, dim + 1, dtype=F64)
    predicted = 4 * math.sin(0.35) ** 2 * 2 / dim**2 * float(beta.square().sum())
    found = rotation_stability(lambda x: x @ beta, sphere(3000, dim), 0.7, generator=seeded(1), level=0.999)
    assert found.low < predicted < found.high
    assert not found.low < predicted / 2 < found.high
    double = rotation_stability(lambda x: 2 * x @ beta, sphere(3000, dim), 0.7, generator=seeded(1))
    assert math.isclose(double.estimate, 4 * found.estimate, rel_tol=1e-12)


def test_rotation_stability_adds_over_outputs_and_is_zero_for_what_is_symmetric():
    x = sphere(200, 3)
    f, g = (lambda x: x[:, :1]), (lambda x: x[:, 1:2])
    parts = [rotation_stability(h, x, 0.2, generator=seeded()).estimate for h in (f, g)]
    both = rotation_stability(lambda x: torch.cat([f(x), g(x)], 1), x, 0.2, generator=seeded())
    assert math.isclose(both.estimate, sum(parts), rel_tol=1e-12)
    assert rotation_stability(lambda x: x.square().sum(1), x, 0.2, generator=seeded()).high < 1e-28


# --- Kernels --------------------------------------------------------------------------------------------------------------


def by_quadrature(angle, order):
    """E σ_k(w·x)σ_k(w·z) for unit x, z at an angle: w in their plane is r(cos φ, sin φ), with E r² = 2."""
    steps = {0: lambda t: float(t > 0), 1: lambda t: max(t, 0.0)}[order]
    low, high = angle - math.pi / 2, math.pi / 2  # both are positive in between
    value = quad(lambda phi: steps(math.cos(phi)) * steps(math.cos(phi - angle)), low, high)[0] / (2 * math.pi)
    return value * (2 if order else 1)


@given(angle=st.floats(0.0, math.pi), a=st.floats(0.1, 5), b=st.floats(0.1, 5), order=st.sampled_from([0, 1]))
def test_arc_cosine_kernels_are_their_integrals(angle, a, b, order):
    x = torch.tensor([[a, 0.0]], dtype=F64)
    z = b * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=F64)
    expected = by_quadrature(angle, order) * ((a * b) if order else 1)
    assert math.isclose(float(arc_cosine_kernel(x, z, order)), expected, rel_tol=1e-9, abs_tol=1e-12)


@given(dim=st.integers(1, 6), seed=seeds)
@settings(max_examples=20)
def test_the_tangent_kernel_is_made_of_its_two_layers(dim, seed):
    x, z = (torch.randn(n, dim, dtype=F64, generator=seeded(seed + n)) for n in (4, 5))
    layers = arc_cosine_kernel(x, z, 1) + (x @ z.T) * arc_cosine_kernel(x, z, 0)
    assert torch.allclose(tangent_kernel(x, z), layers, atol=1e-12)
    assert torch.allclose(tangent_kernel(x, z), tangent_kernel(z, x).T)
    assert torch.allclose(tangent_kernel(x, x).diagonal(), x.square().sum(1))
    assert torch.allclose(tangent_kernel(3 * x, z), 3 * tangent_kernel(x, z))
    odd = tangent_kernel(x, z) - tangent_kernel(-x, z)
    assert torch.allclose(odd, x @ z.T, atol=1e-12)  # the odd part is linear: exactly x·z


def test_the_kernel_keeps_its_digits_at_small_angles():
    """1 − Θ = θ·(1/π)(1 + O(θ)): with the arccosine of the product, an angle of 1e-9 would be lost."""
    x = torch.tensor([[1.0, 0.0]], dtype=F64)
    for angle in (1e-3, 1e-6, 1e-9):
        z = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=F64)
        assert math.isclose(1 - float(arc_cosine_kernel(x, z, 0)) * 2, angle / math.pi, rel_tol=1e-6)


def test_a_wide_network_has_the_kernel_at_the_start_to_sampling_error():
    """Entries are means over H neurons of terms with fourth moments: standard deviation below 6/√H on unit vectors."""
    x, z = sphere(5, 3), sphere(4, 3, seed=1)
    errors = {}
    for width in (10_000, 160_000):
        net = ShallowNetwork(3, width, scale=7.0, generator=seeded(2))
        errors[width] = float((net.tangent_kernel(x, z) - tangent_kernel(x, z)).abs().max())
        assert errors[width] < 5 * 6 / math.sqrt(width)
    wrong = arc_cosine_kernel(x, z, 1)  # the first layer forgotten
    assert float((net.tangent_kernel(x, z) - wrong).abs().max()) > 20 * errors[160_000]


def test_the_tangent_kernel_of_a_network_is_that_of_autograd():
    net = ShallowNetwork(3, 20, scale=0.5, generator=seeded())
    x = sphere(4, 3)

    def gradient(point):
        net.zero_grad()
        net(point[None]).sum().backward()
        return torch.cat([w.grad.flatten() for w in net.parameters()])

    rows = torch.stack([gradient(point) for point in x])
    assert torch.allclose(net.tangent_kernel(x, x), rows @ rows.T * 20 / 0.5, atol=1e-13)


@given(dim=st.integers(2, 5), n=st.integers(2, 12), seed=seeds)
@settings(max_examples=20)
def test_kernel_regression_interpolates_with_the_least_norm(dim, n, seed):
    x = sphere(n, dim, seed)
    y = torch.randn(n, dtype=F64, generator=seeded(seed + 1))
    f = kernel_regression(x, y)
    assert torch.allclose(f(x), y, atol=1e-12 * f.condition + 1e-12)
    # f is orthogonal to every function of the space that vanishes on the points; adding one makes the norm larger.
    more = kernel_regression(torch.cat([x, sphere(1, dim, seed + 2)]), torch.cat([y, f(sphere(1, dim, seed + 2)) + 0.5]))
    assert more.norm > f.norm


def test_kernel_regression_with_a_ridge_is_stationary_and_many_targets_are_many_fits():
    x, y = sphere(10, 3), torch.randn(10, 2, dtype=F64, generator=seeded(3))
    f = kernel_regression(x, y, ridge=0.1)
    assert torch.allclose(0.1 * f.coefficients, y - f(x), atol=1e-13)  # ρ a = y − K a
    for k in range(2):
        assert torch.allclose(kernel_regression(x, y[:, k], ridge=0.1)(x), f(x)[:, k], atol=1e-13)


def test_opposite_points_of_one_linear_function_are_fitted_and_others_refused():
    x = sphere(6, 2)
    points = torch.cat([x, -x])
    beta = torch.tensor([0.3, -2.0], dtype=F64)
    f = kernel_regression(points, points @ beta)
    z = sphere(30, 2, seed=4)
    assert torch.allclose(f(z), z @ beta, atol=1e-8)
    assert f.rank < 12
    with pytest.raises(ValueError, match="odd part of a function is linear"):
        kernel_regression(points, torch.randn(12, dtype=F64, generator=seeded()))
    kernel_regression(points, torch.randn(12, dtype=F64, generator=seeded()), ridge=0.1)


def test_the_expected_error_is_the_mean_over_drawn_fields():
    x, test = sphere(12, 3), sphere(40, 3, seed=1)
    covariance = even(laplace_kernel)
    fields = gaussian_field(torch.cat([x, test]), covariance, generator=seeded(2), draws=4000)
    f = kernel_regression(x, fields[:12])
    squares = (f(test) - fields[12:]).square()
    predicted = expected_kernel_error(x, test, covariance=covariance)
    # Squares of Gaussians have standard deviation √2 times their mean: five of them over 4000 draws and 40 points.
    assert ((squares.mean(1) - predicted).abs() / predicted).max() < 5 * math.sqrt(2 / 4000)
    best = expected_kernel_error(x, test, covariance=covariance, kernel=covariance)
    assert bool((best <= predicted + 1e-12).all())  # the field's own kernel is the best predictor


def test_a_field_has_its_covariance():
    x = sphere(6, 3)
    fields = gaussian_field(x, laplace_kernel, generator=seeded(), draws=20_000)
    assert (fields @ fields.T / 20_000 - laplace_kernel(x, x)).abs().max() < 5 * math.sqrt(2 / 20_000)
    with pytest.raises(ValueError, match="covariance: expected no negative eigenvalue"):
        gaussian_field(x, lambda a, b: -laplace_kernel(a, b), generator=seeded())


# --- The feature limit ----------------------------------------------------------------------------------------------------


def convex_programme(x, y, patterns):
    """The least total variation as a second-order cone programme over activation patterns: Pilanci and Ergen, arXiv 2002.10553.

    In the cone of a pattern D the network is linear, so that one vector u of length |u| stands for all neurons of a sign there.
    """
    value, total = 0, 0
    constraints = []
    for pattern in patterns:
        for sign in (1, -1):
            u = cp.Variable(x.shape[1])
            constraints.append(cp.multiply(2 * pattern - 1, x @ u) >= 0)
            value = value + sign * cp.multiply(pattern, x @ u)
            total = total + cp.norm2(u)
    problem = cp.Problem(cp.Minimize(total), [*constraints, value == y])
    return float(problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9))


def patterns_of(x):
    """All activation patterns: every region has a vertex, a direction orthogonal to d − 1 points, and is on some side of these there."""
    dim = x.shape[1]
    neurons = []
    for some in itertools.combinations(range(len(x)), dim - 1):
        vertex = torch.linalg.svd(x[list(some)])[2][-1]
        for signs in itertools.product((-1.0, 1.0), repeat=dim - 1):
            # Dual vectors: a small step that has the wanted sign on each of these points.
            step = torch.linalg.pinv(x[list(some)]) @ torch.tensor(signs, dtype=F64)
            neurons += [vertex + 1e-7 * step, -vertex + 1e-7 * step]
    return np.unique((torch.stack(neurons) @ x.T > 0).numpy(), axis=0).astype(float)


@pytest.mark.parametrize(("dim", "n"), [(2, 5), (2, 8), (3, 5)])
@pytest.mark.parametrize("constant", [True, False])
def test_the_least_total_variation_is_that_of_the_convex_programme(dim, n, constant):
    x = sphere(n, dim, seed=n)
    y = ones(n) if constant else torch.randn(n, dtype=F64, generator=seeded(7))
    f = min_total_variation(x, y, generator=seeded(), tol=1e-4, starts=16)
    patterns = patterns_of(x)
    regions = 2 * n if dim == 2 else n * (n - 1) + 2
    assert len(patterns) == regions
    witness = convex_programme(x.numpy(), y.numpy(), patterns)
    assert f.proved
    assert f.gap <= 1e-4
    assert f.lower_bound <= witness * (1 + 1e-7)
    assert witness * (1 - 1e-7) <= f.total_variation <= witness * (1 + 1.1e-4)


@given(dim=st.integers(2, 4), n=st.integers(1, 6), seed=seeds)
@settings(max_examples=6)
def test_it_interpolates_by_at_most_as_many_atoms_as_points_between_its_bounds(dim, n, seed):
    x = sphere(n, dim, seed)
    f = min_total_variation(x, ones(n), generator=seeded(seed), tol=1e-3, starts=32)
    assert (f(x) - 1).abs().max() < 1e-10
    assert len(f.weights) <= n
    assert torch.allclose(f.neurons.norm(dim=1), ones(len(f.neurons)))
    assert math.isclose(float(f.weights.abs().sum()), f.total_variation, rel_tol=1e-12)
    assert f.bound_found <= f.total_variation
    assert f.total_variation <= constant_variation(dim) * (1 + 2e-3)
    w = sphere(2000, dim, seed + 1)
    assert float((torch.relu(w @ x.T) @ f.dual).abs().max()) <= f.dual_maximum * (1 + 1e-9) or not f.proved


def test_points_between_which_no_random_neuron_switches_are_interpolated():
    """Four points within 10⁻³: on random neurons alone the first programme has no solution, and was said to have none at all."""
    angles = torch.cat([torch.tensor([0.0, 1e-4, 4e-4, 1e-3], dtype=F64), torch.linspace(1.0, 6.0, 6, dtype=F64)])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    f = min_total_variation(x, ones(10), generator=seeded(), tol=1e-2, starts=32)
    assert (f(x) - 1).abs().max() < 1e-8
    assert f.total_variation <= constant_variation(2) * 1.02


def test_one_neuron_fits_points_at_right_angles_and_the_minimum_is_the_root_of_their_number():
    for dim in (2, 3):  # the dual point is not unique here: columns that were dropped would let it cycle
        f = min_total_variation(torch.eye(dim, dtype=F64), ones(dim), generator=seeded(), tol=1e-3, starts=16)
        assert math.isclose(f.total_variation, math.sqrt(dim), rel_tol=1e-3)
        assert f.lower_bound <= math.sqrt(dim) * (1 + 1e-12)
        assert f.proved


def test_more_points_need_no_less_and_scaled_targets_scale():
    x = sphere(12, 2)
    bounds = [min_total_variation(x[:n], ones(n), generator=seeded(), tol=1e-6) for n in (3, 6, 12)]
    for few, many in itertools.pairwise(bounds):
        assert few.lower_bound <= many.total_variation
    f, g = (min_total_variation(x, s * ones(12), generator=seeded(), tol=1e-6) for s in (1, -1000))
    assert math.isclose(g.total_variation, 1000 * f.total_variation, rel_tol=1e-5)
    # A point that is scaled with its target is the same condition.
    longer = min_total_variation(5 * x, 5 * ones(12), generator=seeded(), tol=1e-6)
    assert math.isclose(longer.total_variation, f.total_variation, rel_tol=1e-5)
    assert math.isclose(float(longer.dual @ (5 * ones(12))), float(f.dual @ ones(12)), rel_tol=1e-5)


def test_a_constant_has_the_total_variation_of_the_uniform_density():
    for dim in (2, 3, 5):
        # relu(w·x) has a mean with standard deviation below 1/√N over N neurons.
        mean = float(torch.relu(sphere(200_000, dim)[:, 0]).mean())
        assert abs(1 / constant_variation(dim) - mean) < 5 / math.sqrt(200_000)


def test_a_target_of_zero_needs_nothing():
    f = min_total_variation(sphere(4, 2), torch.zeros(4, dtype=F64), generator=seeded())
    assert f.total_variation == f.lower_bound == f.gap == 0
    assert float(f(sphere(3, 2)).abs().max()) == 0


def test_where_faces_are_too_many_nothing_is_proved():
    f = min_total_variation(sphere(30, 6), ones(30), generator=seeded(), tol=0.2, starts=8)
    assert not f.proved
    assert f.lower_bound == -math.inf
    assert f.gap <= 0.2


# --- Maxima of the dual function ------------------------------------------------------------------------------------------


def response(points, dual, w):
    return torch.relu(w @ points.T) @ dual


@given(dim=st.integers(2, 4), n=st.integers(3, 9), seed=seeds)
@settings(max_examples=25)
def test_the_enumerated_maximum_is_attained_and_never_exceeded(dim, n, seed):
    points = sphere(max(n, dim), dim, seed)
    dual = torch.randn(len(points), dtype=F64, generator=seeded(seed + 1))
    value, neuron = exact_maximum(points, dual)
    assert math.isclose(float(neuron.norm()), 1.0, rel_tol=1e-12)
    assert math.isclose(float(response(points, dual, neuron[None]).abs()), value, rel_tol=1e-12)
    probes = torch.cat([sphere(5000, dim, seed + 2), local_maxima(points, dual, sphere(20, dim, seed), generator=seeded())[0]])
    assert float(response(points, dual, probes).abs().max()) <= value * (1 + ROUNDING)


@given(dim=st.integers(3, 6), n=st.integers(4, 20), seed=seeds)
@settings(max_examples=15)
def test_ascent_never_falls_and_ends_where_no_small_step_rises(dim, n, seed):
    points, starts = sphere(n, dim, seed), sphere(10, dim, seed + 1)
    dual = torch.randn(n, dtype=F64, generator=seeded(seed + 2))
    ends, values = local_maxima(points, dual, starts, generator=seeded(seed), rounds=60)
    assert bool((values >= response(points, dual, starts) - 1e-12).all())
    steps = ends[:, None] + 1e-4 * torch.randn(10, 200, dim, dtype=F64, generator=seeded(seed + 3))
    around = response(points, dual, (steps / steps.norm(dim=2, keepdim=True)).flatten(0, 1)).reshape(10, 200)
    # What is left to climb by steps of 1e-4 is of second order where the ascent has ended.
    assert float((around.max(1).values - values).median()) <= 1e-6 * float(dual.abs().sum())


def test_every_local_maximum_on_the_circle_is_found():
    points, dual = sphere(9, 2), torch.randn(9, dtype=F64, generator=seeded(1))
    phi = torch.arange(0, 2 * math.pi, 1e-5, dtype=F64)
    g = response(points, dual, torch.stack([phi.cos(), phi.sin()], 1))
    peaks = (g > g.roll(1)) & (g >= g.roll(-1))
    found, _ = local_maxima(points, dual, points[:1], generator=seeded())
    angles = torch.atan2(found[:, 1], found[:, 0]).remainder(2 * math.pi)
    apart = (phi[peaks][:, None] - angles).abs()
    assert torch.minimum(apart, 2 * math.pi - apart).min(1).values.max() < 2e-5


def test_degenerate_points_are_not_enumerated():
    plane = torch.cat([sphere(5, 2), torch.zeros(5, 1, dtype=F64)], 1)  # five points of a plane in three dimensions
    assert exact_maximum(plane, ones(5)) is None
    assert exact_maximum(torch.cat([sphere(4, 2), -sphere(4, 2)]), ones(8)) is not None  # on the circle opposite points do not matter


# --- Finite width ---------------------------------------------------------------------------------------------------------


def test_one_step_of_descent_is_the_gradient_of_the_objective_by_autograd():
    x, y = sphere(6, 3), torch.randn(6, 2, dtype=F64, generator=seeded(1))
    net, twin = (ShallowNetwork(3, 7, 2, scale=0.8, generator=seeded(2)) for _ in range(2))
    decay = 0.05
    objective = (twin(x) - y).square().sum() / 12 + decay / 14 * (twin.inner.square().sum() + twin.outer.square().sum())
    objective.backward()
    run = descend(net, x, y, max_steps=1, weight_decay=decay)
    assert run.steps == 1
    moved = [after - before for after, before in zip(net.parameters(), twin.parameters(), strict=True)]
    ratios = torch.cat([(m / w.grad).flatten() for m, w in zip(moved, twin.parameters(), strict=True)]).detach()
    assert float(ratios.max()) < 0
    assert torch.allclose(ratios, ratios.mean() * torch.ones_like(ratios), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_descent_never_rises_and_converges_at_every_scale(scale, dtype):
    x, y = sphere(6, 3, dtype=dtype), ones(6, dtype)[:, None]
    net = ShallowNetwork(3, 100, scale=scale, generator=seeded(), dtype=dtype)
    losses = [float((net(x).detach() - y).square().sum()) / 12]
    for _ in range(20):
        descend(net, x, y, max_steps=10, tol=1e-30)
        losses.append(float((net(x).detach() - y).square().sum()) / 12)
    assert all(later <= earlier * (1 + 1e-3) for earlier, later in itertools.pairwise(losses))
    end = descend(net, x, y, tol=1e-3)
    assert end.stop_reason == "converged"
    assert end.loss <= 1e-3 * end.first_loss


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_wide_network_of_large_scale_is_kernel_regression_with_its_own_kernel_and_not_with_another(momentum):
    x, z, y = sphere(8, 3), sphere(200, 3, seed=1), ones(8)
    net = ShallowNetwork(3, 300, scale=1e5, generator=seeded(2))
    lazy = kernel_regression(x, y, kernel=net.tangent_kernel)
    assert descend(net, x, y[:, None], tol=1e-14, momentum=momentum).stop_reason == "converged"
    trained = net(z)[:, 0].detach()
    # Neurons move by about 1/s of their size: an error of some 1/√(sH), here 2e-4, times the condition that remains.
    assert float((trained - lazy(z)).square().mean().sqrt()) < 5e-3
    forgotten = kernel_regression(x, y, kernel=lambda a, b: arc_cosine_kernel(a, b, 1))
    assert float((trained - forgotten(z)).square().mean().sqrt()) > 2e-2


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_no_trained_network_has_less_total_variation_than_the_certified_minimum(decay):
    x, y = sphere(8, 2), ones(8)
    least = min_total_variation(x, y, generator=seeded(), tol=1e-6)
    net = ShallowNetwork(2, 200, scale=1e-2, generator=seeded(1))
    descend(net, x, y[:, None], tol=1e-9, max_steps=3000, weight_decay=decay)
    outputs = (net(x)[:, 0]).detach() + (torch.relu(x @ net.first_inner.T) @ net.first_outer)[:, 0] / 200
    # λ with |g_λ| ≤ 1 for all neurons: Σ|c||w|/H ≥ λ·f(x), whatever f(x) is.
    assert net.total_variation() >= float(least.dual @ outputs) / least.dual_maximum - 1e-9
    with pytest.raises(AssertionError):
        assert net.total_variation() * 0.5 >= float(least.dual @ outputs) / least.dual_maximum


# --- Learning curves ------------------------------------------------------------------------------------------------------


@given(beta=st.floats(-1, 5), noise=st.floats(0, 0.2), seed=seeds)
@settings(max_examples=20)
def test_an_exponent_is_recovered(beta, noise, seed):
    sizes = torch.tensor([8.0, 16.0, 32.0, 64.0], dtype=F64)
    errors = sizes**-beta * torch.exp(noise * torch.randn(6, 4, dtype=F64, generator=seeded(seed)))
    found = learning_exponent(sizes, errors)
    # Slopes have standard deviation noise/√(Σ(log P − mean)²) = noise/1.55, their mean over 6 runs 1/√6 of that.
    assert abs(found.estimate - beta) < 5.5 * noise / 1.55 / math.sqrt(6) + 1e-9
    assert found.low <= found.estimate <= found.high


# --- Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, g: sphere_data(0, 3, generator=g), ValueError, "n: expected a positive integer"),
        (lambda x, g: sphere_data(3, 3, generator=None), TypeError, "generator: expected a torch.Generator"),
        (lambda x, g: sphere_data(3, 3, generator=g, dtype=torch.int64), TypeError, "dtype: expected torch.float32"),
        (lambda x, g: rotated(x[:, :1], 0.1, generator=g), ValueError, "x: expected points of two dimensions"),
        (lambda x, g: rotated(x, math.nan, generator=g), ValueError, "angle: expected a finite number"),
        (lambda x, g: rotation_stability(lambda x: 1.0, x, 0.1, generator=g), ValueError, "f: expected a function"),
        (lambda x, g: arc_cosine_kernel(x, x, 2), ValueError, "order: expected 0"),
        (lambda x, g: arc_cosine_kernel(0 * x, x, 0), ValueError, "away from the origin"),
        (lambda x, g: tangent_kernel(x, x[:, :2]), ValueError, "z: expected points of 3 dimensions"),
        (lambda x, g: kernel_regression(x[[0, 1, 1]], ones(3)), ValueError, "x: expected points of different directions, got 1 and 2"),
        (lambda x, g: kernel_regression(0 * x, ones(4)), ValueError, "x: expected points away from the origin"),
        (lambda x, g: kernel_regression(x, ones(3)), ValueError, "y: expected 4 targets"),
        (lambda x, g: kernel_regression(x, ones(4), ridge=-1.0), ValueError, "ridge: expected a finite number ≥ 0"),
        (lambda x, g: kernel_regression(x, math.nan * ones(4)), ValueError, "y: expected finite numbers"),
        (lambda x, g: min_total_variation(torch.cat([x, 2 * x[:1]]), ones(5), generator=g), ValueError, "different directions"),
        (lambda x, g: min_total_variation(x, ones(4)[:, None], generator=g), ValueError, "one target each"),
        (lambda x, g: min_total_variation(x, ones(4), generator=g, tol=0.0), ValueError, "tol: expected a finite number > 0"),
        (
            lambda x, g: min_total_variation(torch.cat([x, -x]), torch.arange(8.0, dtype=F64).square(), generator=g),
            ValueError,
            "odd part of a function is linear",
        ),
        (lambda x, g: ShallowNetwork(3, 10, scale=0.0, generator=g), ValueError, "scale: expected a finite number > 0"),
        (lambda x, g: descend(torch.nn.Linear(3, 1), x, ones(4)[:, None]), TypeError, "net: expected a ShallowNetwork"),
        (lambda x, g: descend(ShallowNetwork(2, 5, scale=1.0, generator=g), x, ones(4)[:, None]), ValueError, "x, y: expected"),
        (lambda x, g: descend(ShallowNetwork(3, 5, scale=1.0, generator=g), x.float(), ones(4)[:, None]), TypeError, "x: expected"),
        (
            lambda x, g: descend(ShallowNetwork(3, 5, scale=1.0, generator=g), x, ones(4)[:, None], momentum=1.0),
            ValueError,
            "momentum: expected a number from 0 to below 1",
        ),
        (lambda x, g: learning_exponent(ones(3), torch.ones(2, 3)), ValueError, "sizes, errors"),
        (lambda x, g: learning_exponent(torch.arange(1.0, 4), torch.zeros(2, 3)), ValueError, "positive error"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call(sphere(4, 3), seeded())
