"""The portfolio at depth ≥ 3: never above ten trainings, stationary, no component too many, every member reported, decoupled optima."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der

from linconv.cost import minimal_network
from linconv.losses import loss_of
from linconv.network import LinearCNN
from linconv.penalties import Schatten
from linconv.solvers import descents, networks
from linconv.solvers.decoupled import decoupled
from linconv.solvers.descents import Frequencies
from linconv.solvers.exchange import additions, drops, exchange
from linconv.solvers.monitor import Monitor
from linconv.solvers.networks import balanced, blocks_of, descend_networks, network_objective, newton, stationarity
from linconv.solvers.portfolio import METHOD, portfolio
from linconv.solvers.problem import Problem
from linconv.solvers.quasi_newton import lbfgs
from linconv.spectrum import FrequencyBlocks
from linconv.training import train
from linconv.witnesses import dense_network

F64 = torch.float64
FAMILIES = {
    "proximal gradient",
    "continuation",
    "reweighting",
    "networks, spectral starts",
    "networks, random starts",
    "exchange",
    "Newton",
}
GRIDS = [(5,), (4,), (1,), (3, 4), (2, 2), (2, 3, 2)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def natural(n, channels, grid, seed=0):
    """Images with a spectrum that falls as 1/|u|."""
    axes = torch.meshgrid(*[torch.fft.fftfreq(size, dtype=F64) * size for size in grid], indexing="ij")
    radii = torch.stack(axes).square().sum(0).sqrt()
    spatial = tuple(range(2, 2 + len(grid)))
    return torch.fft.ifftn(torch.fft.fftn(normal(n, channels, *grid, seed=seed), dim=spatial) / (1 + radii), dim=spatial).real


def labels(x, outputs, seed=0, noise=0.3):
    beta = normal(outputs, x[0].numel(), seed=seed + 300) / math.sqrt(x[0].numel())
    return x.flatten(1) @ beta.T + noise * normal(len(x), outputs, seed=seed + 400)


def space_objective(weights, x, y, decay):
    """F of a network, from dense matrices of its layers in NumPy."""
    arrays = [w.detach().numpy() for w in weights]
    outputs = x.flatten(1).numpy() @ dense_network(arrays, tuple(x.shape[2:])).T
    return float(((outputs - y.numpy()) ** 2).sum() / (2 * len(x)) + decay * sum((w**2).sum() for w in arrays))


def residual(beta, problem):
    """Distance to stationarity relative to the gradient of the data term at 0, from blocks V_u of the whole spectrum, in NumPy but for
    the subdifferential."""
    x, y = problem.x.flatten(1), problem.y

    def gradient(at):
        slope = (problem.loss.gradient(x @ at.flatten(1).T, y).T @ x / len(x)).reshape(at.shape).numpy()
        blocks = np.moveaxis(np.conj(np.fft.fftn(slope, axes=range(2, at.ndim))), (0, 1), (-2, -1))
        return blocks / (problem.weight_decay * problem.depth)

    distance = Schatten(problem.p).stationarity(FrequencyBlocks.from_predictor(beta).values, torch.from_numpy(gradient(beta)))
    return float(distance) / np.linalg.norm(gradient(torch.zeros_like(beta)))


# --- Against training ---------------------------------------------------------------------------------------------------


def drawn(kind, outputs, channels, grid, n, depth, decay, seed):
    x = natural(n, channels, grid, seed) if kind == "natural" else normal(n, channels, *grid, seed=seed)
    y = normal(n, outputs, seed=seed + 5000) if kind == "noise" else labels(x, outputs, seed)
    return Problem(x, y, depth, decay)


# Those of normal data in which trainings once ended below the best local solution, and underdetermined ones with many minima.
TRAINED = [
    ("normal", 2, 1, (2, 2), 20, 3, 0.05, 1),
    ("noise", 3, 3, (2, 2), 10, 3, 0.0139, 21),
    ("natural", 2, 2, (2, 2, 2), 10, 3, 0.0021, 24),
    ("natural", 1, 2, (4,), 5, 4, 0.01, 14),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", TRAINED)
def test_never_above_the_best_of_ten_trainings(case):
    problem = drawn(*case)
    found = portfolio(problem)
    x, y, decay = problem.x, problem.y, problem.weight_decay
    channels, outputs = x.shape[1], y.shape[1]
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        net = LinearCNN(channels, [max(channels, outputs)] * (problem.depth - 1), outputs, problem.grid, generator=generator)
        train(net, x, y, weight_decay=decay, steps=3)
        assert space_objective(net.weights, x, y, decay) >= found.objective * (1 - 1e-9)
    assert found.objective == pytest.approx(
        space_objective(minimal_network(found.predictor, problem.depth).weights, x, y, decay), rel=1e-10
    )


# --- The solution -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("grid", "depth", "width", "loss"),
    [
        ((5,), 3, None, "squared"),
        ((3, 2), 3, 1, "squared"),
        ((2, 2), 6, None, "squared"),
        ((2, 1, 3), 4, None, "logistic"),
        ((3,), 3, None, "cross-entropy"),
        ((4,), 4, 1, "cross-entropy"),
    ],
)
def test_the_solution_is_stationary_and_the_best_of_its_members(grid, depth, width, loss):
    x = normal(12, 2, *grid)
    y = torch.softmax(2 * normal(12, 3, seed=1), 1)
    problem = Problem(x, y, depth, 0.02, width, loss_of(loss), constant=0.5)
    found = portfolio(problem)
    assert found.method == METHOD
    assert found.lower_bound == -math.inf
    assert set(found.members) == FAMILIES
    assert found.predictor.shape == (3, 2, *grid)
    assert found.objective == problem.objective(found.predictor)
    assert found.objective <= min(found.members.values()) * (1 + 1e-12)
    assert found.members["Newton"] == pytest.approx(found.objective, rel=1e-12)
    assert residual(found.predictor, problem) <= 1e-9
    ranks = (FrequencyBlocks.from_predictor(found.predictor).singular_values() > 1e-12).sum(-1)
    assert int(ranks.max()) <= (width or 2)
    assert int(ranks.max()) > 0


@pytest.mark.usefixtures("unchecked")
def test_no_component_is_better_dropped():
    problem = drawn("natural", 2, 2, (3, 2), 30, 3, 0.01, 3)
    found = portfolio(problem)
    blocks = problem.blocks(found.predictor)
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    space = Frequencies(problem)
    tried = 0
    for f in space.kept.tolist():
        for i in range(2):
            if sigma[f, i] > 1e-9:
                without = space.restrict(blocks).clone()
                place = space.kept.tolist().index(f)
                without[place] -= sigma[f, i] * torch.outer(u[f, :, i], vh[f, i])
                assert problem.objective(problem.predictor(space.extend(without))) > found.objective
                again = descend_networks(space, without[None], 100)
                assert float(space.objective(again)[0]) >= found.objective * (1 - 1e-9)
                tried += 1
    assert tried >= 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("depth", [3, 6])
def test_optimum_of_decoupled_data_without_the_shortcut(depth):
    basis, _ = torch.linalg.qr(normal(20, 12))
    x = (basis * math.sqrt(20)).reshape(20, 2, 2, 3)
    problem = Problem(x, labels(x, 2), depth, 0.02)
    exact = decoupled(problem)
    found = portfolio(problem)
    assert exact is not None
    assert found.objective == pytest.approx(exact.objective, rel=1e-12)
    assert torch.allclose(found.predictor, exact.predictor, atol=1e-7)
    # The proximal map of whitened data is the solution, whatever other members do.
    assert found.members["proximal gradient"] == pytest.approx(exact.objective, rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_a_given_start_is_used_and_nothing_depends_on_global_state():
    problem = drawn("noise", 2, 1, (4,), 10, 3, 0.02, 7)
    before = torch.get_rng_state()
    first, again = portfolio(problem), portfolio(problem)
    assert torch.equal(first.predictor, again.predictor)
    assert first.members == again.members
    assert torch.equal(before, torch.get_rng_state())
    started = portfolio(problem, starts=[first.predictor])
    assert started.objective <= first.objective * (1 + 1e-12)
    assert started.members["networks, spectral starts"] == pytest.approx(first.objective, rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_the_end_comes_when_the_monitor_says_so():
    problem = drawn("normal", 1, 2, (3,), 10, 3, 0.02, 7)
    whole = portfolio(problem)
    seen = []
    portfolio(problem, Monitor(on_progress=lambda solution: seen.append(solution)))
    assert [set(s.members) for s in seen] == sorted((set(s.members) for s in seen), key=len)
    assert all(later.objective <= earlier.objective * (1 + 1e-12) for earlier, later in pairwise(seen))
    assert seen[-1].objective == whole.objective
    early = portfolio(problem, Monitor(on_progress=lambda solution: not solution.members))
    assert set(early.members) == {"proximal gradient"}
    assert early.objective == problem.objective(early.predictor) == seen[1].objective
    late = portfolio(problem, Monitor(time_limit=1e-9))
    assert not late.members
    assert not late.predictor.any()
    assert late.objective >= whole.objective


def test_where_zero_is_the_optimum():
    problem = drawn("normal", 2, 2, (3,), 10, 4, 50.0, 7)
    found = portfolio(problem)
    assert not bool(found.predictor.any())
    assert found.objective == pytest.approx(float(problem.y.square().sum()) / 20, rel=1e-15)


# --- Coordinates and networks -------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.sampled_from(GRIDS), st.integers(1, 3), st.integers(1, 3), st.integers(3, 6), st.integers(0, 10**6))
def test_coordinates_and_gradients_are_those_of_the_problem(grid, outputs, channels, depth, seed):
    problem = Problem(normal(4, channels, *grid, seed=seed), normal(4, outputs, seed=seed + 1), depth, 0.1, constant=0.25)
    space, beta = Frequencies(problem), normal(outputs, channels, *grid, seed=seed + 2)
    half = problem.blocks(beta)
    blocks = space.restrict(half)
    torch.testing.assert_close(space.extend(blocks), half)
    both = torch.stack([blocks, 2 * blocks])
    values, slopes = space.data_term(both)
    for k, factor in enumerate((1, 2)):
        assert float(values[k]) == pytest.approx(problem.data_term(factor * beta), rel=1e-12)
        torch.testing.assert_close(space.extend(slopes[k]), problem.gradient(factor * half), rtol=1e-10, atol=1e-12)
        assert float(space.objective(both)[k]) == pytest.approx(problem.objective(factor * beta), rel=1e-11)
    net = balanced(space, both)
    torch.testing.assert_close(blocks_of(space, net), both)
    values, slope = network_objective(space, net)
    assert values.tolist() == pytest.approx(space.objective(both).tolist(), rel=1e-11)  # balanced networks attain the penalty
    direction = balanced(space, torch.stack([space.restrict(problem.blocks(normal(*beta.shape, seed=seed + k))) for k in (3, 4)]))
    along = ((slope.conj() * direction).real * space.weights[:, None, None]).sum((1, 2, 3))
    step = 1e-6
    difference = (network_objective(space, net + step * direction)[0] - network_objective(space, net - step * direction)[0]) / (2 * step)
    scale = float((slope.abs() * direction.abs()).sum()) + float(values.sum())
    assert torch.allclose(along, difference, rtol=0, atol=1e-7 * scale)


@settings(max_examples=20)
@given(st.integers(3, 7), st.integers(1, 4), st.integers(0, 10**6))
def test_networks_cost_at_least_the_penalty(depth, outputs, seed):
    """Rotfel'd's inequality: components that are not orthogonal only cost more."""
    problem = Problem(normal(3, 3, 4, seed=seed), normal(3, outputs, seed=seed), depth, 0.3)
    space = Frequencies(problem)
    net = networks.random_networks(space, 3, torch.Generator().manual_seed(seed))
    assert bool((network_objective(space, net)[0] >= space.objective(blocks_of(space, net)) * (1 - 1e-12)).all())


def test_newton_reaches_a_stationary_point_in_few_steps():
    problem = drawn("natural", 3, 2, (3, 4), 40, 3, 0.01, 0)
    space = Frequencies(problem)
    start = space.restrict(problem.cross_moment)
    rough = descend_networks(space, start[None], 400, 1e-4)[0]
    exact = newton(space, rough)
    assert 1e-11 < stationarity(space, rough) < 1e-1
    assert stationarity(space, exact) <= 1e-11
    beta = problem.predictor(space.extend(exact))
    assert residual(beta, problem) <= 1e-10
    zero = torch.zeros_like(rough)
    assert torch.equal(newton(space, zero), zero)


def test_moves_change_one_component_and_exchanges_only_improve():
    problem = drawn("natural", 3, 2, (3, 3), 40, 3, 0.03, 0)
    space = Frequencies(problem)
    blocks = descend_networks(space, space.restrict(problem.cross_moment)[None], 100)[0]
    count = int((torch.linalg.svdvals(blocks) > 1e-9).sum())
    for moves, change in ((drops(space, blocks), -1), (additions(space, blocks), 1)):
        assert len(moves) > 0
        assert all(int((torch.linalg.svdvals(moved) > 1e-9).sum()) == count + change for moved in moves)
        assert bool((torch.linalg.matrix_norm(moves - blocks) > 1e-9).sum(1).eq(1).all())
    value = float(space.objective(blocks[None])[0])
    better, reached = exchange(space, blocks, 3)
    assert reached == pytest.approx(float(space.objective(better[None])[0]), rel=1e-14)
    assert reached <= value
    same, unchanged = exchange(space, blocks, 3, [value])
    assert torch.equal(same, blocks)
    assert unchanged == value


@pytest.mark.parametrize("family", [descents.continuation, descents.reweighting])
def test_members_descend_to_stationary_points(family):
    problem = drawn("normal", 2, 2, (4,), 40, 3, 0.02, 0)
    space = Frequencies(problem)
    convex = space.restrict(problem.cross_moment)[None]
    found = family(space, convex, 200)[0]
    assert stationarity(space, found) <= 1e-6
    assert float(space.objective(found[None])[0]) < float(space.objective(torch.zeros_like(convex))[0])


# --- L-BFGS -------------------------------------------------------------------------------------------------------------


def rosenbrock(x):
    x = x.detach().requires_grad_()
    values = (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)
    return values.detach(), torch.autograd.grad(values.sum(), x)[0]


def test_rows_of_lbfgs_end_at_minima_and_do_not_depend_on_one_another():
    start = normal(5, 8)
    points, values = lbfgs(rosenbrock, start, 400, 1e-10)
    assert torch.allclose(rosenbrock(points)[0], values)
    assert float(rosenbrock(points)[1].norm(dim=1).max()) <= 1e-5
    for row, point, value in zip(start, points, values, strict=True):
        alone, least = lbfgs(rosenbrock, row[None], 400, 1e-10)
        assert torch.allclose(alone[0], point, atol=1e-6)
        assert float(least[0]) == pytest.approx(float(value), abs=1e-10)
        expected = minimize(rosen, row.numpy(), jac=rosen_der, method="BFGS").fun
        assert min(abs(float(value) - expected), abs(float(value)), abs(float(value) - 3.98)) <= 1e-2


def test_lbfgs_takes_no_more_than_its_steps_and_never_climbs():
    start = normal(3, 8)
    previous = rosenbrock(start)[0]
    for steps in (1, 3, 9, 27):
        _, values = lbfgs(rosenbrock, start, steps, 0.0)
        assert bool((values <= previous).all())
        previous = values
