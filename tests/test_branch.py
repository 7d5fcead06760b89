"""Branch and bound: exhaustive search on tiny problems, brackets that nothing leaves, early ends, checkpoints."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.solvers import Solution
from linconv.solvers.bisection import split
from linconv.solvers.branch import Tree, branch_and_bound, descent, load, save
from linconv.solvers.monitor import Monitor
from linconv.solvers.orbits import least_squares_point, orbits_of
from linconv.solvers.problem import Problem
from linconv.solvers.relaxation import root_region

F64 = torch.float64
ROUNDING = 1e-12


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def problem_of(n, channels, outputs, grid, depth=3, decay=0.02, seed=0, **more):
    x = normal(n, channels, *grid, seed=seed)
    beta = normal(outputs, x[0].numel(), seed=seed + 1) / math.sqrt(x[0].numel())
    return Problem(x, x.flatten(1) @ beta.T + 0.3 * normal(n, outputs, seed=seed + 2), depth, decay, **more)


def value_of(problem, blocks):
    return problem.objective(problem.predictor(blocks))


def start_of(problem):
    """The zero predictor: branch and bound must find the optimum itself."""
    zero = torch.zeros_like(problem.cross_moment)
    return zero, value_of(problem, zero)


def solve(problem, tol=1e-8, max_nodes=400, monitor=None, checkpoint=None):
    return branch_and_bound(problem, *start_of(problem), tol=tol, max_nodes=max_nodes, monitor=monitor or Monitor(), checkpoint=checkpoint)


def searched(problem, points=13, rounds=60):
    """The least F on ever finer grids around the best point of each orthant and face: all 4 unknowns of a 2×2 image, K = C = 1.

    In NumPy alone: the frequencies of a 2×2 grid are all real, the Hadamard transform.
    """
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    x, y = problem.x.flatten(1).numpy() @ hadamard, problem.y.numpy()[:, 0]
    weight = problem.weight_decay * problem.depth * 4 ** (1 / problem.depth - 1)
    h, g, constant = x.T @ x / len(y), y @ x / len(y), y @ y / (2 * len(y))

    def objective(b):
        return constant - b @ g + ((b @ h) * b).sum(-1) / 2 + weight * (np.abs(b) ** (2 / problem.depth)).sum(-1)

    radius = (constant / weight) ** (problem.depth / 2)
    best = constant
    for support in itertools.product((False, True), repeat=4):
        active = np.flatnonzero(support)
        for signs in itertools.product((-1, 1), repeat=len(active)):
            centre, half = np.array(signs) * min(radius, 2.0) / 2, min(radius, 2.0) / 2
            for _ in range(rounds):
                axes = [np.linspace(c - half, c + half, 5 if len(active) > 2 else points) for c in centre]
                b = np.zeros((math.prod(len(a) for a in axes), 4))
                for at, mesh in zip(active, np.meshgrid(*axes, indexing="ij"), strict=True):
                    b[:, at] = mesh.ravel()
                values = objective(b)
                centre, half = b[values.argmin(), active], 0.7 * half
                best = min(best, float(values.min()))
    return best


@pytest.mark.parametrize(("n", "seed", "depth"), [(10, 0, 3), (3, 1, 3), (2, 2, 4), (6, 3, 6)])
def test_two_by_two_images_against_exhaustive_search(n, seed, depth):
    """Both find the minimum, fewer images than unknowns included; neither is below the other's bound."""
    problem = problem_of(n, 1, 1, (2, 2), depth, seed=seed)
    found, witness = solve(problem, tol=1e-9), searched(problem)
    assert found.gap <= 1e-9
    assert found.lower_bound <= witness * (1 + ROUNDING)
    assert found.objective == pytest.approx(witness, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "channels", "outputs", "grid", "seed"),
    [(6, 2, 1, (3,), 0), (12, 1, 2, (4,), 1), (20, 2, 2, (3,), 0), (8, 1, 1, (1, 2, 2), 0)],
)
def test_small_general_problems_are_certified(n, channels, outputs, grid, seed):
    found = solve(problem_of(n, channels, outputs, grid, seed=seed), tol=1e-6)
    assert 0 <= found.gap <= 1e-6
    assert found.method == "branch and bound"


@given(st.integers(0, 10**6), st.sampled_from([(3,), (2, 2), (4,)]), st.integers(1, 2), st.integers(1, 2), st.sampled_from([None, 1]))
@settings(max_examples=5)
def test_no_descent_leaves_the_bracket(seed, grid, channels, outputs, rank):
    """From any start, of any rank: nothing is found below the bound, at whatever node the search ended."""
    problem = problem_of(5 + seed % 20, channels, outputs, grid, seed=seed, max_rank=rank)
    found = solve(problem, max_nodes=2)
    assert found.lower_bound <= found.objective
    assert found.objective == pytest.approx(problem.objective(found.predictor), rel=ROUNDING)
    own = orbits_of(problem)
    metric, rng = own.metric(), np.random.default_rng(seed)
    for scale in (0.3, 1.0, 3.0):
        start = scale * own.take(problem.blocks(torch.from_numpy(rng.normal(size=(outputs, channels, *grid)))))
        assert value_of(problem, own.predictor_blocks(descent(own, start, metric))) >= found.lower_bound


def test_splitting_loses_no_point_of_the_cell():
    """Every block whose singular values the cell allows is in one of the parts, boxes included."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        problem = problem_of(4, 2, 1, (2, 2), seed=seed)
        region, _ = root_region(problem, start_of(problem)[1])
        assert region is not None
        for _ in range(12):
            parts = split(region)
            for _ in range(20):
                sigma = rng.uniform(region.cell.low, region.cell.high) * (1 - region.cell.zero * rng.integers(0, 2, region.cell.zero.shape))
                blocks = rng.normal(size=region.orbits.shape).astype(complex)
                blocks *= (sigma / np.linalg.norm(blocks, axis=(1, 2))[:, None])[:, :, None]
                if holds(region.cell, blocks, sigma):
                    assert any(holds(part, blocks, sigma) for part in parts)
            region = type(region)(region.orbits, parts[rng.integers(len(parts))], region.s, region.bound)


def holds(cell, blocks, sigma):
    inside = ((sigma >= cell.low * (1 - 1e-9)) & (sigma <= cell.high * (1 + 1e-9))) | (cell.zero & (sigma == 0))
    if cell.box is None:
        return inside.all()
    return inside.all() and (blocks.real >= cell.box.near.real - 1e-9).all() and (blocks.real <= cell.box.far.real + 1e-9).all()


# --- Early ends --------------------------------------------------------------------------------------------------------

HARD = {"n": 2, "channels": 2, "outputs": 1, "grid": (2,)}


@functools.cache
def whole():
    """Four nodes that nothing disturbed: what the disturbed searches are compared with."""
    return solve(problem_of(**HARD), max_nodes=4)


def test_brackets_narrow_and_each_is_true():
    problem, seen = problem_of(**HARD), []
    final = solve(problem, max_nodes=6, monitor=Monitor(None, seen.append))
    assert len(seen) == final.nodes == 6
    assert final.lower_bound > seen[0].lower_bound
    for earlier, later in itertools.pairwise(seen):
        assert earlier.lower_bound <= later.lower_bound * (1 + ROUNDING)
        assert earlier.objective >= later.objective
    assert all(seen_one.lower_bound <= final.objective for seen_one in seen)


def test_callback_and_time_limit_return_the_bracket_so_far():
    problem = problem_of(**HARD)
    stopped = solve(problem, monitor=Monitor(None, lambda solution: solution.nodes < 2))
    late = solve(problem, monitor=Monitor(1e-9))
    for early in (stopped, late):
        assert isinstance(early, Solution)
        assert early.lower_bound <= whole().objective <= early.objective
        assert early.lower_bound <= whole().lower_bound
    assert (stopped.nodes, late.nodes) == (2, 0)


def test_results_do_not_depend_on_time():
    again = solve(problem_of(**HARD), max_nodes=4)
    assert (again.objective, again.lower_bound, again.nodes) == (whole().objective, whole().lower_bound, whole().nodes)


# --- Checkpoints -------------------------------------------------------------------------------------------------------


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    problem, file = problem_of(**HARD), tmp_path / "tree.npz"

    def interrupt(solution):
        if solution.nodes == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(problem, max_nodes=4, monitor=Monitor(None, interrupt), checkpoint=file)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npz"]
    resumed = solve(problem, max_nodes=4, checkpoint=file)
    assert (resumed.objective, resumed.lower_bound, resumed.nodes) == (whole().objective, whole().lower_bound, whole().nodes)
    assert torch.equal(resumed.predictor, whole().predictor)


def test_a_node_that_fails_stays_open(tmp_path, monkeypatch):
    """A tree saved without it would prove what nobody has shown."""
    problem, file = problem_of(**HARD), tmp_path / "tree.npz"

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("linconv.solvers.branch.solve", fail)
        with pytest.raises(MemoryError):
            solve(problem, max_nodes=4, checkpoint=file)
    resumed = solve(problem, max_nodes=4, checkpoint=file)
    assert (resumed.objective, resumed.lower_bound, resumed.nodes) == (whole().objective, whole().lower_bound, whole().nodes)


def test_an_empty_file_is_no_checkpoint(tmp_path):
    (tmp_path / "tree.npz").touch()
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file that branch and bound has written"):
        solve(problem_of(**HARD), max_nodes=1, checkpoint=tmp_path / "tree.npz")


def test_a_tree_is_read_as_it_was_written(tmp_path):
    problem = problem_of(**HARD)
    tree = Tree(problem, *start_of(problem), 1e-8)
    tree.plant()
    for _ in range(6):
        tree.grow()
    save(tree, tmp_path / "tree")
    again = Tree(problem, *start_of(problem), 1e-8)
    load(again, tmp_path / "tree")
    assert (again.value, again.closed, again.nodes, again.count) == (tree.value, tree.closed, tree.nodes, tree.count)
    assert [entry[:2] for entry in sorted(again.open)] == [entry[:2] for entry in sorted(tree.open)]
    pairs = zip(sorted(again.open), sorted(tree.open), strict=True)
    for (_, _, mine), (_, _, theirs) in pairs:
        for name in ("low", "high", "zero"):
            assert np.array_equal(getattr(mine.cell, name), getattr(theirs.cell, name))
        assert (mine.cell.box is None) == (theirs.cell.box is None)
        if mine.cell.box is not None:
            assert np.array_equal(mine.cell.box.near, theirs.cell.box.near)
            assert np.array_equal(mine.cell.box.far, theirs.cell.box.far)
        assert np.array_equal(mine.blocks, theirs.blocks)
        assert np.array_equal(mine.s, theirs.s)


@pytest.mark.parametrize("change", [{"decay": 0.03}, {"depth": 4}, {"seed": 1}, {"max_rank": 1, "outputs": 2}])
def test_checkpoints_of_other_problems_are_refused(tmp_path, change):
    file = tmp_path / "tree"
    solve(problem_of(**HARD), max_nodes=1, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another problem"):
        solve(problem_of(**{**HARD, **change}), max_nodes=1, checkpoint=file)
    assert file.read_bytes() == before


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    pickled, text, foreign = tmp_path / "a.npz", tmp_path / "b", tmp_path / "c.npz"
    np.savez(pickled, header=np.array([{}], dtype=object))
    text.write_text("no tree")
    np.savez(foreign, header=np.frombuffer(json.dumps({"format": -1}).encode(), dtype=np.uint8))
    for file in (pickled, text, foreign):
        with pytest.raises(ValueError, match="checkpoint"):
            solve(problem_of(**HARD), max_nodes=1, checkpoint=file)


def test_descent_goes_down_to_a_stationary_point():
    problem = problem_of(20, 2, 2, (4,), max_rank=1)
    own = orbits_of(problem)
    found = descent(own, least_squares_point(own), own.metric())
    assert np.linalg.matrix_rank(found, tol=1e-9).max() <= 1
    assert math.isfinite(value_of(problem, own.predictor_blocks(found)))
    again = descent(own, found, own.metric())
    assert value_of(problem, own.predictor_blocks(again)) <= value_of(problem, own.predictor_blocks(found)) * (1 + 1e-9)
