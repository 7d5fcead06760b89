"""Losses other than squared error at depth 1 and 2: Newton's method against NumPy and cvxpy, gaps, edge cases, accuracy on request."""

import importlib

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.losses import loss_of
from linconv.solvers import fit, fit_path
from linconv.solvers.problem import Problem
from linconv.solvers.smooth import smooth
from linconv.witnesses import dense_convolution

# `linconv.solvers.smooth` is a function of the package that hides the module of the same name.
smooth_module = importlib.import_module("linconv.solvers.smooth")
F64 = torch.float64
CLARABEL = 1e-7  # with exponential cones beside semidefinite ones it stalls before 1e-8
LOSSES = ["cross-entropy", "logistic"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def natural(n, channels, grid, seed=0):
    """Images whose spectrum falls as 1/|u|², so that their second moment has a condition number of thousands."""
    squares = sum(
        (torch.fft.fftfreq(m, 1 / m, dtype=F64) ** 2).reshape([-1 if d == dim else 1 for d in range(len(grid))])
        for dim, m in enumerate(grid)
    )
    dims = tuple(range(2, 2 + len(grid)))
    return torch.fft.ifftn(torch.fft.fftn(normal(n, channels, *grid, seed=seed), dim=dims) / (1 + squares), dim=dims).real


def labels(x, loss, outputs=3, seed=0, noise=1.0):
    """Certain labels of a noisy linear teacher: for cross-entropy its largest output, for the logistic loss the signs of all."""
    scores = x.flatten(1) @ normal(x[0].numel(), outputs, seed=seed + 1) + noise * normal(len(x), outputs, seed=seed + 2)
    return torch.nn.functional.one_hot(scores.argmax(1), outputs).to(F64) if loss == "cross-entropy" else (scores > 0).to(F64)


def numpy_objective(beta, x, y, decay, loss):
    """F and its gradient at depth 1, in NumPy."""
    n, f = len(x), x @ beta
    if loss == "cross-entropy":
        m = f.max(1, keepdims=True)
        value = (m[:, 0] + np.log(np.exp(f - m).sum(1))).sum() - (y * f).sum()
        q = np.exp(f - m) / np.exp(f - m).sum(1, keepdims=True)
    else:
        value = np.logaddexp(0, f).sum() - (y * f).sum()
        q = 1 / (1 + np.exp(-f))
    return value / n + decay * (beta**2).sum(), x.T @ (q - y) / n + 2 * decay * beta, q


def numpy_newton(x, y, decay, loss):
    """The minimiser of F at depth 1 by plain Newton steps on the dense Hessian, halved while they do not lower F."""
    n, size, outputs = *x.shape, y.shape[1]
    beta = np.zeros((size, outputs))
    for _ in range(100):
        value, slope, q = numpy_objective(beta, x, y, decay, loss)
        bent = np.einsum("nk,kl->nkl", q if loss == "cross-entropy" else q * (1 - q), np.eye(outputs))
        if loss == "cross-entropy":
            bent = bent - np.einsum("nk,nl->nkl", q, q)
        hessian = np.einsum("ni,nkl,nj->ikjl", x, bent, x).reshape(size * outputs, -1) / n + 2 * decay * np.eye(size * outputs)
        step = np.linalg.solve(hessian, slope.ravel()).reshape(beta.shape)
        length = 1.0
        while length > 1e-10 and numpy_objective(beta - length * step, x, y, decay, loss)[0] > value:
            length /= 2
        if length <= 1e-10:
            break
        beta = beta - length * step
    return beta, value


def relative_gradient(solution, x, y, decay, loss):
    """‖∇F‖ at the solution relative to that at 0."""

    def slope(beta):
        return numpy_objective(beta, x.flatten(1).numpy(), y.numpy(), decay, loss)[1]

    at = slope(solution.predictor.flatten(1).T.numpy())
    return np.linalg.norm(at) / np.linalg.norm(slope(np.zeros_like(at)))


def programme(x, y, decay, loss, depth):
    """The minimum at depth 1 or 2 by cvxpy with Clarabel."""
    n, outputs, grid = len(x), y.shape[1], tuple(x.shape[2:])
    size, sites = x[0].numel(), int(np.prod(grid))
    beta = cvxpy.Variable((outputs, size))
    f = x.flatten(1).numpy() @ beta.T
    data = cvxpy.sum(cvxpy.log_sum_exp(f, axis=1)) if loss == "cross-entropy" else cvxpy.sum(cvxpy.logistic(f))
    data = (data - cvxpy.sum(cvxpy.multiply(y.numpy(), f))) / n
    if depth == 1:
        penalty = cvxpy.sum_squares(beta)
    else:
        units = np.eye(outputs * size).reshape(-1, outputs, *x.shape[1:])
        unit = np.stack([dense_convolution(e, grid).ravel() for e in units], 1)
        matrix = cvxpy.reshape(unit @ cvxpy.vec(beta, order="C"), (outputs * sites, size), order="C")
        penalty = 2 / sites * cvxpy.normNuc(matrix)
    problem = cvxpy.Problem(cvxpy.Minimize(data + decay * penalty))
    return float(problem.solve(solver=cvxpy.CLARABEL, **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), CLARABEL)))


DATA = {
    "more images than numbers": lambda: natural(60, 2, (3, 3)),
    "fewer images than numbers": lambda: natural(8, 2, (3, 4)),
    "as many": lambda: natural(12, 2, (6,)),
    "one image": lambda: normal(1, 2, 4),
    "one site": lambda: normal(20, 3, 1),
    "three dimensions": lambda: natural(30, 1, (2, 3, 2)),
    "a channel of zeros": lambda: torch.cat([natural(20, 1, (3, 2)), torch.zeros(20, 1, 3, 2, dtype=F64)], 1),
    "equal images": lambda: normal(1, 2, 3).expand(6, 2, 3).contiguous(),
}


# --- Depth 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", DATA)
def test_depth_one_against_newtons_method_in_numpy(name, loss, decay):
    x = DATA[name]()
    y = labels(x, loss)
    beta, value = numpy_newton(x.flatten(1).numpy(), y.numpy(), decay, loss)
    found = fit(x, y, depth=1, weight_decay=decay, loss=loss, tol=1e-12)
    assert found.method in ("Newton", "zero")
    assert -1e-14 <= found.gap <= 1e-12
    assert found.objective == pytest.approx(value, rel=2e-12)
    # F exceeds its minimum by λ times the squared distance from the minimiser at least, in both computations.
    distance = float((found.predictor.flatten(1).T - torch.from_numpy(beta)).square().sum())
    assert decay * distance <= 1e-11 * value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-12])
def test_depth_one_reaches_the_gap_asked_for(loss, tol):
    x = natural(50, 2, (4, 4))
    y = labels(x, loss)
    for decay in (1e-8, 1e-4, 1.0):
        assert -1e-13 <= fit(x, y, depth=1, weight_decay=decay, loss=loss, tol=tol).gap <= tol


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("decay", [1e-6, 1e-3, 1.0])
def test_depth_one_reaches_the_gradient_that_rounding_allows(loss, n, decay):
    """The gap is ‖∇F‖²/4λ: asked for 1e-28 of it, Newton's method goes to the end."""
    x = natural(n, 2, (4, 5))
    y = labels(x, loss)
    found = fit(x, y, depth=1, weight_decay=decay, loss=loss, tol=1e-28)
    assert relative_gradient(found, x, y, decay, loss) <= 1e-12
    assert abs(found.gap) <= 1e-13


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("decay", [1e-14, 1e-9, 1e-4])
def test_separable_data(loss, decay):
    """Without decay there is no minimum, with little the loss is nearly 0: the gap stays relative to what is left."""
    x = normal(10, 2, 8)
    y = labels(x, loss, noise=0.0)
    found = fit(x, y, depth=1, weight_decay=decay, loss=loss, tol=1e-10)
    assert -1e-12 <= found.gap <= 1e-10
    assert 0 < found.lower_bound <= found.objective
    f = x.flatten(1) @ found.predictor.flatten(1).T
    assert torch.equal((f > 0).to(F64), y) if loss == "logistic" else torch.equal(f.argmax(1), y.argmax(1))
    with pytest.raises(ValueError, match="separable data have none"):
        fit(x, y, depth=1, weight_decay=0.0, loss=loss)


def test_a_huge_decay_leaves_the_gradient_at_zero():
    """β = −∇/(2λ) to first order, ∇ the gradient of the data term at 0."""
    x = natural(30, 2, (3, 3))
    for loss in LOSSES:
        y = labels(x, loss)
        slope = loss_of(loss).gradient(torch.zeros_like(y), y).T @ x.flatten(1) / len(x)
        found = fit(x, y, depth=1, weight_decay=1e8, loss=loss, tol=1e-28)
        torch.testing.assert_close(found.predictor.flatten(1), -slope / 2e8, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [1, 2])
def test_one_class_only(loss, depth):
    x = normal(12, 2, 4)
    y = torch.zeros(12, 3, dtype=F64)
    y[:, 0] = 1
    found = fit(x, y, depth=depth, weight_decay=0.01, loss=loss, tol=1e-9)
    assert -1e-12 <= found.gap <= 1e-9
    assert ((x.flatten(1) @ found.predictor.flatten(1).T).mean(0).argmax()) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_learn_is_the_zero_predictor(loss):
    y = torch.full((9, 2), 0.5, dtype=F64)
    found = fit(normal(9, 2, 3), y, depth=1, weight_decay=0.1, loss=loss)
    assert (found.method, found.gap, bool(found.predictor.any())) == ("zero", 0, False)
    assert found.objective == pytest.approx(np.log(2) * (1 if loss == "cross-entropy" else 2), rel=1e-15)


def test_single_precision_and_soft_labels():
    x = natural(20, 2, (3, 3)).to(torch.float32)
    y = torch.softmax(normal(20, 3), 1).to(torch.float32)
    for loss in LOSSES:
        found, double = (fit(a, b, depth=1, weight_decay=0.01, loss=loss) for a, b in ((x, y), (x.to(F64), y.to(F64))))
        assert found.predictor.dtype == torch.float32
        assert found.objective == pytest.approx(double.objective, rel=1e-12)
        assert -1e-12 <= found.gap <= 1e-8


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_preconditioner_costs_steps_and_no_accuracy(loss, monkeypatch):
    """The principal axes serve the speed only: without their moments as many Newton steps end at the same point."""
    x = natural(200, 2, (8, 8))
    problem = Problem(x, labels(x, loss), 1, 1e-4, None, loss_of(loss))
    counts = []
    for flat in (False, True):
        calls = []
        curvature = type(problem.loss).curvature
        with monkeypatch.context() as patch:
            patch.setattr(type(problem.loss), "curvature", lambda *a, calls=calls, right=curvature: (calls.append(0), right(*a))[1])
            if flat:
                patch.setattr(smooth_module, "_mean_curvature", lambda problem, f: 0.0)
            found = smooth(problem, 1e-10)
        assert -1e-13 <= found.gap <= 1e-10
        counts.append(len(calls))
    assert counts[0] < counts[1] / 1.5


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_curvature_is_no_wrong_answer(loss, monkeypatch):
    """Steps of a wrong Hessian descend all the same; what they leave is in the gap."""
    x = natural(30, 2, (3, 3))
    y = labels(x, loss)
    kind = type(loss_of(loss))
    right = fit(x, y, depth=1, weight_decay=0.01, loss=loss).objective
    curvature = kind.curvature
    monkeypatch.setattr(kind, "curvature", lambda self, f, y, d: 3 * curvature(self, f, y, d))
    wrong = fit(x, y, depth=1, weight_decay=0.01, loss=loss)
    assert wrong.lower_bound <= right * (1 + 1e-12)
    assert wrong.objective - right <= max(wrong.gap, 1e-13) * wrong.objective + 1e-8 * right


# --- Against cvxpy, depth 1 and 2 --------------------------------------------------------------------------------------


@settings(max_examples=4)
@given(st.integers(0, 10**6), st.sampled_from([(2, 3), (1, 4), (2, 2, 2), (1, 2, 3)]), st.integers(2, 12), st.sampled_from([0.2, 0.03]))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_against_cvxpy(loss, depth, seed, shape, n, decay):
    x = normal(n, *shape, seed=seed)
    y = labels(x, loss, outputs=2 + seed % 2, seed=seed)
    value = programme(x, y, decay, loss, depth)
    found = fit(x, y, depth=depth, weight_decay=decay, loss=loss, tol=1e-9)
    assert -1e-12 <= found.gap <= 1e-8
    # The value of a programme whose constraints hold to 1e-7 is off by that times the sizes of its multipliers.
    assert found.objective == pytest.approx(value, rel=100 * CLARABEL)


@pytest.mark.parametrize("loss", LOSSES)
def test_depth_two_is_certified_cold_and_warm(loss):
    x = natural(40, 2, (4, 3))
    y = labels(x, loss)
    decays = [0.1, 0.03, 0.01]
    warm = fit_path(x, y, depth=2, weight_decays=decays, loss=loss)
    for decay, found in zip(decays, warm, strict=True):
        cold = fit(x, y, depth=2, weight_decay=decay, loss=loss)
        assert max(cold.gap, found.gap) <= 1e-8
        assert min(cold.gap, found.gap) >= -1e-12
        assert found.objective == pytest.approx(cold.objective, rel=2e-8)
