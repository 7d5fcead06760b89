"""Many images as C·D rows: the same objective for every predictor, and lower bounds that trust neither the rows nor the predictor."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.solvers import fit
from linconv.solvers.problem import Problem
from linconv.solvers.reduction import certify, least_squares, reduce, squared_residual
from tests.test_solvers import labels, natural, normal

# `linconv.solvers.reduction` is reached by name since the package exports the functions only.
reduction = importlib.import_module("linconv.solvers.reduction")

F64 = torch.float64
GRID, CHANNELS, SIZE = (2, 3), 2, 12
KINDS = {
    "natural": lambda n: natural(n, CHANNELS, GRID),
    "centred": lambda n: (lambda x: x - x.mean(dim=(2, 3), keepdim=True))(normal(n, CHANNELS, *GRID)),
    "constant": lambda n: normal(n, CHANNELS, 1, 1).expand(n, CHANNELS, *GRID).contiguous(),
    "zero": lambda n: torch.zeros(n, CHANNELS, *GRID, dtype=F64),
    "decades": lambda n: normal(n, CHANNELS, *GRID) * torch.logspace(0, -9, SIZE, dtype=F64).reshape(CHANNELS, *GRID),
}


def reduced(x, y, decay):
    rows, targets, constant = reduce(x, y)
    return Problem(rows, targets, 2, decay, constant=constant)


def mean_square(x, y, beta):
    """(1/2N) Σ ‖f − y‖² in NumPy."""
    f = x.double().numpy().reshape(len(x), -1) @ beta.numpy().reshape(len(beta), -1).T
    return float(((f - y.double().numpy()) ** 2).sum()) / (2 * len(x))


def weights(problem):
    return torch.full_like(problem.weights, problem.mu)


# --- The rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("chunk", "n"), [(1, 2 * SIZE), (2, SIZE), (2, SIZE + 1), (2, 61), (5, 61)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_same_objective_for_every_predictor(kind, n, chunk, dtype, monkeypatch):
    monkeypatch.setattr(reduction, "CHUNK", chunk)
    x, y = KINDS[kind](n).to(dtype), normal(n, 3).to(dtype)
    problem = reduced(x, y, 0.01)
    assert problem.x.shape == (SIZE, CHANNELS, *GRID)
    assert problem.x.dtype == problem.y.dtype == F64
    assert problem.constant >= 0
    for seed, size in enumerate((0.0, 1e-6, 1.0, 1e6)):
        beta = size * normal(3, CHANNELS, *GRID, seed=seed)
        expected = mean_square(x, y, beta)
        # Rounding of a QR decomposition: ε times the norms of what it decomposes, here below 50 of them.
        scale = float(x.double().square().mean()) * float(beta.square().sum()) * SIZE + float(y.double().square().mean())
        assert abs(problem.data_term(beta) - expected) <= 50 * SIZE * 2.2e-16 * scale
        assert squared_residual(x, y.to(F64), beta) == pytest.approx(expected, rel=1e-12)


def test_rows_of_other_images_have_another_objective():
    x, y, beta = natural(40, CHANNELS, GRID), normal(40, 3), normal(3, CHANNELS, *GRID)
    problem = reduced(x[:-1], y[:-1], 0.01)
    assert problem.data_term(beta) != pytest.approx(mean_square(x, y, beta), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_leaves_a_residual_orthogonal_to_the_images(kind):
    x, y = KINDS[kind](50), normal(50, 3)
    problem = reduced(x, y, 0.01)
    beta = least_squares(problem)
    assert torch.isfinite(beta).all()
    flat = x.flatten(1)
    left = (y - flat @ beta.flatten(1).T).T @ flat
    assert float(left.norm()) <= 1e-9 * float(y.norm()) * max(float(flat.norm()), 1.0)
    assert mean_square(x, y, beta) == pytest.approx(problem.constant, rel=1e-9, abs=1e-9) or kind in ("constant", "zero", "centred")


# --- The certificate ---------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.integers(SIZE, 60),
    size=st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
    decay=st.sampled_from([1e-6, 1e-3, 0.05, 1.0]),
)
def test_certificates_of_arbitrary_predictors_are_at_or_below_the_minimum(kind, n, size, seed, decay):
    x = KINDS[kind](n)
    y = labels(x, 2, seed=seed)
    best = fit(x, y, depth=2, weight_decay=decay, tol=1e-9)
    problem = reduced(x, y, decay)
    beta = best.predictor + size * normal(2, CHANNELS, *GRID, seed=seed)
    bound = certify(x, y, problem, beta, weights(problem))
    assert 0 <= bound <= best.objective * (1 + 1e-13)
    if size == 0 and kind != "decades":  # nine decades in the data and six in the decay leave less than nine digits
        assert bound >= best.objective * (1 - 2e-9)


@pytest.mark.parametrize("wrong", ["predictor", "rows", "targets", "constant"])
def test_a_wrong_reduction_proves_nothing_wrong(wrong):
    x = natural(60, CHANNELS, GRID)
    y = labels(x, 2)
    best = fit(x, y, depth=2, weight_decay=0.02, tol=1e-9)
    problem = reduced(x, y, 0.02)
    rows = 3 * problem.x if wrong == "rows" else problem.x
    targets = -problem.y if wrong == "targets" else problem.y
    constant = 1e3 if wrong == "constant" else problem.constant
    broken = Problem(rows, targets, 2, 0.02, constant=constant)
    beta = least_squares(problem) if wrong == "predictor" else best.predictor
    bound = certify(x, y, broken, beta, weights(broken))
    assert 0 <= bound <= best.objective * (1 + 1e-13)
    if wrong == "constant":
        assert bound >= best.objective * (1 - 1e-8)  # it is not looked at


def test_half_the_weight_bounds_another_problem():
    x = natural(60, CHANNELS, GRID)
    y = labels(x, 2)
    best = fit(x, y, depth=2, weight_decay=0.02, tol=1e-9)
    problem = reduced(x, y, 0.02)
    assert certify(x, y, problem, best.predictor, weights(problem) / 2) < best.objective * (1 - 1e-3)
    other = fit(x, y, depth=2, weight_decay=0.04, tol=1e-9)
    assert certify(x, y, problem, other.predictor, 2 * weights(problem)) > best.objective * (1 + 1e-3)


@pytest.mark.parametrize("decay", [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("kind", ["natural", "centred", "constant"])
@pytest.mark.parametrize("n", [SIZE + 1, 200])
def test_the_gap_is_reached_at_every_weight_decay(n, kind, decay):
    x = KINDS[kind](n)
    y = labels(x, 2)
    solution = fit(x, y, depth=2, weight_decay=decay, tol=1e-12)
    # Outputs are rounded by ε‖x‖‖β‖, the adjoint of the residual by ‖x‖ times that; of the bound this takes its product with ‖β‖.
    rounding = 2.2e-16 * float(x.square().sum()) / n * float(solution.predictor.square().sum()) / solution.objective
    assert -1e-14 <= solution.gap <= 1e-12 + 10 * rounding
    assert rounding < 1e-9
    assert solution.objective == pytest.approx(mean_square(x, y, solution.predictor) + decay * penalty(solution.predictor), rel=1e-12)


def penalty(beta):
    """R_2 in NumPy."""
    blocks = np.moveaxis(np.fft.fftn(beta.numpy(), axes=(2, 3)), (0, 1), (-2, -1))
    return 2 * float(np.linalg.svd(blocks, compute_uv=False).sum()) / (beta.shape[2] * beta.shape[3])


def test_single_precision_images_reach_the_gap_too():
    x = natural(100, CHANNELS, GRID).float()
    y = labels(x.double(), 2).float()
    single = fit(x, y, depth=2, weight_decay=0.01, tol=1e-11)
    double = fit(x.double(), y.double(), depth=2, weight_decay=0.01, tol=1e-11)
    assert single.gap <= 1.1e-11
    assert single.objective == pytest.approx(double.objective, rel=3e-11)
    assert single.predictor.dtype == torch.float32


def test_weak_directions_do_not_spoil_the_certificate():
    x = KINDS["decades"](60)  # least squares has coefficients of 1e9 here, and its residual few digits
    assert fit(x, labels(x, 2), depth=2, weight_decay=0.05, tol=1e-9).gap <= 1.1e-9
