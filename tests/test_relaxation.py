"""Lower bounds at depth ≥ 3: minima over blocks against search, envelopes, quadratics below the data term, brackets nothing leaves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.losses import CrossEntropy, Logistic
from linconv.solvers import orbits, relaxation
from linconv.solvers.branch import branch_and_bound, descent
from linconv.solvers.cells import Cell, Penalty, envelope, sublevel
from linconv.solvers.monitor import Monitor
from linconv.solvers.orbits import least_squares_point
from linconv.solvers.problem import Problem

F64 = torch.float64
ROUNDING = 1e-12


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def problem_of(n=12, channels=2, outputs=2, grid=(3,), depth=3, decay=0.02, seed=0, **more):
    """Correlated images with noisy linear labels."""
    x = normal(n, channels, *grid, seed=seed)
    x = x + x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    beta = normal(outputs, x[0].numel(), seed=seed + 1) / math.sqrt(x[0].numel())
    return Problem(x, x.flatten(1) @ beta.T + 0.3 * normal(n, outputs, seed=seed + 2), depth, decay, **more)


def value_of(problem, blocks):
    return problem.objective(problem.predictor(problem.symmetric(blocks)))


def reached(problem):
    """F where a descent from a least-squares point ends."""
    own = orbits.orbits_of(problem)
    return value_of(problem, own.predictor_blocks(descent(own, least_squares_point(own), own.metric())))


def cell_of(low, high, zero):
    return Cell(np.array([[low]]), np.array([[high]]), np.array([[zero]]))


positive = st.floats(0.01, 3.0)
penalties = st.builds(
    lambda s, w, depth: Penalty(np.array([[s]]), w, 2 / depth), st.just(0.0) | positive, positive, st.sampled_from([3, 4, 6])
)
intervals = st.tuples(positive, positive).map(sorted)


# --- One singular value ------------------------------------------------------------------------------------------------


@given(penalties, intervals, st.floats(0.0, 6.0), st.booleans())
def test_minima_against_a_search(penalty, ends, z, zero):
    cell = cell_of(*ends, zero)
    t = np.concatenate([np.linspace(*ends, 2001), [0.0] * zero])[None]
    search = (penalty.value(t) - z * t).min()
    found = float(penalty.minima(np.array([[z]]), cell)[0, 0])
    bend = float(penalty.weight * penalty.p * (1 - penalty.p) * ends[0] ** (penalty.p - 2) + penalty.s[0, 0])
    step = (ends[1] - ends[0]) / 2000
    assert found <= search + 1e-12
    assert found >= search - bend * step**2 - 1e-10  # between points of the search a function falls by at most ½ curvature · step²


@given(penalties, intervals, st.booleans())
def test_envelope_is_the_largest_convex_function_below(penalty, ends, zero):
    """Against the lower convex hull of many points: the biconjugate is the largest sum of supporting lines."""
    hull = envelope(penalty, cell_of(*ends, zero))
    t = np.concatenate([[0.0] * zero, np.linspace(*ends, 400)])
    phi = penalty.value(t[None])[0]
    own = hull.value(t[None])[0]
    assert (own <= phi + 1e-9 * phi.max()).all()
    assert (np.diff(np.diff(own[zero:])) >= -1e-9 * phi.max()).all()
    x = np.array([float(hull.knee[0, 0])])[None]
    assert float(hull.value(x)[0, 0]) == pytest.approx(float(penalty.value(x)[0, 0]), rel=1e-9)  # touches at the knee, so that no larger
    start = hull.start  # chord from there to the knee is convex and below
    assert float(hull.value(start)[0, 0]) == pytest.approx(float(penalty.value(start)[0, 0]), rel=1e-9)


@given(penalties, intervals, st.booleans(), st.floats(0, 4), positive)
def test_prox_of_the_envelope_is_a_minimiser(penalty, ends, zero, y, metric):
    hull = envelope(penalty, cell_of(*ends, zero))
    t = float(hull.prox(np.array([[y]]), np.array([[metric]]))[0, 0])

    x = np.append(t, np.linspace(0, ends[1], 500))
    objective = metric * (x - y) ** 2 / 2 + hull.value(x[None])[0]
    assert 0 <= t <= ends[1]
    assert objective[0] <= objective.min() + 1e-7 * (1 + objective[0])


@given(penalties, intervals, st.floats(0, 6), st.floats(-3, 3))
def test_sublevel_sets_keep_all_that_is_below(penalty, ends, z, level):
    low, high = (float(a[0, 0]) for a in sublevel(penalty, np.array([[z]]), cell_of(*ends, False), np.array([[level]])))
    t = np.linspace(*ends, 500)
    below = t[(penalty.value(t[None])[0] - z * t) < level - 1e-12]
    assert all((below >= low * (1 - 1e-12)) & (below <= high * (1 + 1e-12)))
    if low <= high:
        assert ends[0] <= low <= high <= ends[1]
    else:
        assert below.size == 0


def test_order_of_singular_values_narrows_intervals():
    cell = Cell(np.array([[0.1, 0.5]]), np.array([[2.0, 3.0]]), np.array([[True, False]])).ordered()
    assert cell.low.tolist() == [[0.5, 0.5]]
    assert cell.high.tolist() == [[2.0, 2.0]]
    assert not cell.zero.any()
    assert Cell(np.array([[0.1, 2.5]]), np.array([[2.0, 3.0]]), np.array([[True, False]])).ordered() is None
    gone = Cell(np.array([[0.1, 0.5]]), np.array([[0.0, 3.0]]), np.array([[True, True]])).ordered()
    assert gone.high.tolist() == [[0.0, 0.0]]


# --- The data term -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1,), (4,), (5,), (3, 4), (2, 2), (2, 3, 2)])
def test_coordinates_of_orbits(grid):
    problem = problem_of(7, 2, 3, grid)
    own = orbits.orbits_of(problem)
    predictor = normal(3, 2, *grid, seed=5)
    blocks = own.take(problem.blocks(predictor))
    value, gradient, inner, _ = own.linearise(blocks)
    assert value == pytest.approx(problem.data_term(predictor), rel=ROUNDING)
    assert np.abs(gradient - own.take(problem.gradient(problem.blocks(predictor)))).max() < ROUNDING * 10
    assert inner == pytest.approx(float((gradient.conj() * blocks).real.sum((1, 2)) @ own.mult), rel=1e-10)
    assert torch.allclose(problem.predictor(own.predictor_blocks(blocks)), predictor, atol=ROUNDING)
    assert own.mult.sum() == math.prod(grid)
    assert np.linalg.norm(own.coordinates(blocks)) == pytest.approx(float(torch.linalg.norm(predictor)), rel=ROUNDING)
    assert np.abs(own.blocks(own.coordinates(blocks)) - blocks).max() < ROUNDING


@given(st.integers(0, 10**6), st.sampled_from([(4,), (3,), (2, 3)]), st.integers(1, 2))
@settings(max_examples=20)
def test_separable_quadratics_are_below_the_data_term(seed, grid, channels):
    problem = problem_of(30, channels, 1, grid, seed=seed)
    own = orbits.orbits_of(problem)
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(own.mult))
    s = orbits.minorant(own, weights)
    assert (s > 0).all()
    wide = np.repeat(s, 2 * channels)
    real = own.gram.diagonal() > 0
    least = np.linalg.eigvalsh((own.gram - np.diag(wide))[np.ix_(real, real)])[0]
    assert least >= 0
    more = np.linalg.eigvalsh((own.gram - np.diag(1.05 * wide))[np.ix_(real, real)])[0]
    assert more < 0  # and 5 % more is too much


def test_no_quadratic_is_below_singular_data():
    assert not orbits.minorant(orbits.orbits_of(problem_of(3, 2, 1, (4,))), np.ones(3)).any()


def test_curvatures_are_attained_or_above():
    problem = problem_of(9, 2, 2, (4,))
    own = orbits.orbits_of(problem)
    h, rng = own.curvatures(), np.random.default_rng(0)
    for o in range(len(h)):
        for _ in range(30):
            u, v = (rng.normal(size=2) + 1j * (own.mult[o] == 2) * rng.normal(size=2) for _ in range(2))
            blocks = np.zeros(own.shape, dtype=complex)
            blocks[o] = np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
            c = own.coordinates(blocks)
            assert float(np.vdot(c, c @ own.gram)) / own.mult[o] <= h[o]


# --- The bound ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.sampled_from([None, 1]), st.sampled_from([3, 4, 6]))
@settings(max_examples=25)
def test_no_predictor_of_the_cell_is_below_its_bound(seed, channels, outputs, rank, depth):
    """At any B̄ whatever, and any s that is feasible: F at random predictors, which are in the cell if their F is small enough."""
    problem = problem_of(10, channels, outputs, (3,), depth=depth, seed=seed, max_rank=rank)
    own, rng = orbits.orbits_of(problem), np.random.default_rng(seed)
    upper = value_of(problem, torch.zeros_like(problem.cross_moment))
    cell = relaxation.first_cell(own, upper)
    cell = Cell(np.zeros_like(cell.low), cell.high, cell.zero)  # lower ends hold at optima only
    s = rng.uniform(0, 1) * orbits.minorant(own, np.ones(len(own.mult)))
    point = own.take(problem.blocks(normal(outputs, channels, 3, seed=seed + 3))) * rng.uniform(0, 1)
    found, _ = relaxation.bound_at(own, Penalty(s[:, None], problem.mu, problem.p), cell, point)
    best = upper
    for scale in (0.01, 0.1, 0.3, 1.0):
        u, sigma, vh = np.linalg.svd(own.take(problem.blocks(normal(outputs, channels, 3, seed=seed + 4))) * scale, full_matrices=False)
        sigma[:, rank or 2 :] = 0
        best = min(best, value_of(problem, own.predictor_blocks((u * sigma[:, None, :]) @ vh)))
    assert found.value <= best


def test_tightening_keeps_every_better_predictor():
    """Cells are cut at the value of a poor predictor; the optimum, which is better, has to stay."""
    for seed in range(2):
        problem = problem_of(20, 1, 1, (4,), seed=seed, decay=0.01)
        zero = torch.zeros_like(problem.cross_moment)
        best = branch_and_bound(problem, zero, value_of(problem, zero), tol=1e-9, max_nodes=50, monitor=Monitor())
        assert best.gap <= 1e-9
        sigma = np.abs(orbits.orbits_of(problem).take(problem.blocks(best.predictor)))[:, :, 0]
        for slack in (1e-6, 0.05):
            region, lower = relaxation.root_region(problem, best.objective * (1 + slack))
            assert lower <= best.objective * (1 + ROUNDING)
            if region is None:
                assert slack == 1e-6
                continue
            places = {int(index): at for at, index in enumerate(region.orbits.index)}
            for index, value in zip(orbits.orbits_of(problem).index, sigma[:, 0], strict=True):
                if value < 1e-9:
                    assert int(index) not in places or region.cell.zero[places[int(index)], 0]
                else:
                    at = places[int(index)]
                    assert region.cell.low[at, 0] <= value * (1 + 1e-9)
                    assert value <= region.cell.high[at, 0] * (1 + 1e-9)


def test_second_moments_close_the_gap_that_radii_leave(monkeypatch):
    """Wrong variants must be worse: without the quadratic the bound is that of the radii alone."""
    problem = problem_of(60, 1, 1, (3,), decay=0.02)
    value = reached(problem)
    _, own = relaxation.root_bound(problem, value)
    monkeypatch.setattr(relaxation, "minorant", lambda orbits, wanted: np.zeros(len(orbits.mult)))
    _, plain = relaxation.root_bound(problem, value)
    assert problem.constant <= plain < own <= value
    assert value - own < 0.2 * (value - plain)


def test_a_quadratic_that_is_too_large_gives_a_false_bound(monkeypatch):
    """The bound stands and falls with diag(s) ⪯ H."""
    problem = problem_of(60, 1, 1, (4,), decay=0.05, seed=3)
    value = reached(problem)
    own = orbits.orbits_of(problem)
    s = 30 * orbits.minorant(own, np.ones(len(own.mult)))
    cell = relaxation.first_cell(own, value)
    bad = relaxation.bound_at(
        own, Penalty(s[:, None], problem.mu, problem.p), cell, orbits.orbits_of(problem).take(problem.cross_moment) * 3
    )[0]
    good = relaxation.bound_at(own, Penalty(s[:, None] / 30, problem.mu, problem.p), cell, own.take(problem.cross_moment) * 3)[0]
    assert good.value < value < bad.value


@pytest.mark.parametrize("loss", [CrossEntropy(), Logistic()])
def test_other_losses(loss):
    problem = problem_of(20, 1, 2, (3,), decay=0.05)
    y = torch.softmax(problem.y, 1)
    problem = Problem(problem.x, y, 3, 0.05, None, loss)
    nothing = value_of(problem, torch.zeros_like(problem.cross_moment))
    blocks, lower = relaxation.root_bound(problem, nothing)
    assert 0 <= lower <= min(value_of(problem, blocks), nothing)
    for seed in range(5):
        for scale in (0.05, 0.3):
            assert lower <= value_of(problem, problem.blocks(scale * normal(2, 1, 3, seed=seed)))


def test_targets_end_early():
    problem = problem_of(40, 1, 1, (4,))
    value = reached(problem)
    _, lower = relaxation.root_bound(problem, value, 0.5 * value)
    assert 0.5 * value <= lower <= value


def test_constants_are_what_the_page_says():
    """At a jump of the scalar problem, z and φ(z)/z: the chord of the envelope ends there with φ's own slope."""
    penalty = Penalty(np.array([[0.7]]), 0.3, 0.5)
    hull = envelope(penalty, cell_of(1e-6, 50.0, True))
    z = (2 * 0.5 * 0.3 / 0.7) ** (1 / 1.5)
    assert float(hull.knee[0, 0]) == pytest.approx(z, rel=1e-12)
    assert float(hull.slope[0, 0]) == pytest.approx(float(penalty.slope(hull.knee)[0, 0]), rel=1e-12)
