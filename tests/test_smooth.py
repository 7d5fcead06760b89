"""Losses other than squared error at depth 1 and 2: Newton's method and splitting against NumPy and cvxpy, gaps, edge cases, early ends."""

import importlib
import time
from dataclasses import replace

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.losses import loss_of
from linconv.solvers import fit, fit_path
from linconv.solvers import monitor as monitor_module
from linconv.solvers.loss_splitting import ACCURACY, LossSplitting, _solve_shifted, proximal
from linconv.solvers.monitor import Monitor
from linconv.solvers.problem import Problem
from linconv.solvers.smooth import smooth
from linconv.solvers.splitting import Frequencies, Splitting, to_real
from linconv.witnesses import dense_convolution

# `linconv.solvers.smooth` is a function of the package that hides the module of the same name.
smooth_module = importlib.import_module("linconv.solvers.smooth")
nuclear = importlib.import_module("linconv.solvers.nuclear")
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


# --- Depth 2: the optimum ----------------------------------------------------------------------------------------------


def least_decay(problem):
    """The least weight decay at which the zero predictor is optimal."""
    return problem.weight_decay * float(torch.linalg.matrix_norm(problem.cross_moment, ord=2).max()) / problem.mu


def solved(problem, tol, **options):
    """Blocks, objective and relative gap."""
    mu = torch.full_like(problem.weights, problem.mu)
    blocks, lower = nuclear.solve_nuclear(problem, mu, tol, **options)
    value = problem.data_term(problem.predictor(blocks)) + nuclear.weighted_norm(problem, blocks, mu)
    return blocks, value, (value - lower) / value


def conditions(beta, x, y, decay, loss):
    """Violation of optimality in NumPy: of ‖G_u‖ ≤ 2·decay, and of Re⟨G_u, V_u⟩ = 2·decay·‖V_u‖_*, relative to 2·decay."""
    images, beta = x.flatten(1).numpy(), beta.numpy()
    _, slope, _ = numpy_objective(beta.reshape(len(beta), -1).T, images, y.numpy(), 0.0, loss)
    axes = range(2, x.ndim)
    v, g = (np.moveaxis(np.conj(np.fft.fftn(a, axes=axes)), (0, 1), (-2, -1)) for a in (beta, -slope.T.reshape(beta.shape)))
    norms = np.linalg.svd(v, compute_uv=False).sum(-1)
    slack = norms - (g * v.conj()).sum((-2, -1)).real / (2 * decay)
    return max(np.linalg.norm(g, 2, axis=(-2, -1)).max() / (2 * decay) - 1, np.abs(slack).max() / norms.max())


@pytest.mark.parametrize("part", [0.3, 0.01])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(7,), (4, 3), (2, 3, 2)])
def test_depth_two_meets_the_optimality_conditions_without_the_fallback(shape, loss, part, monkeypatch):
    monkeypatch.delattr(nuclear, "_by_gradients")
    for n in (6, 50):  # systems of the size of the images, and of the columns
        x = natural(n, 2, shape)
        y = labels(x, loss)
        decay = part * least_decay(Problem(x, y, 2, 1.0, None, loss_of(loss)))
        found = fit(x, y, depth=2, weight_decay=decay, loss=loss, tol=1e-11)
        assert found.gap <= 1e-11
        # G is as far off as the residual: the root of the gap, of the objective and of the images over the decay.
        assert conditions(found.predictor, x, y, decay, loss) < 1e-3
        assert conditions(1.05 * found.predictor, x, y, decay, loss) > 1e-3


@pytest.mark.parametrize("decay", [3e-3, 0.1])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", DATA)
def test_depth_two_reaches_its_gap_on_every_kind_of_data_in_few_steps(name, loss, decay, monkeypatch):
    monkeypatch.delattr(nuclear, "_by_gradients")
    x = DATA[name]()
    problem = Problem(x, labels(x, loss), 2, decay, None, loss_of(loss))
    _, _, gap = solved(problem, 1e-9, max_steps=1000)
    assert -1e-13 <= gap <= 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_what_makes_classification_hard(loss):
    """Separable data and little decay, constant images, one far larger than the others, equal ones of two classes and a third missing."""
    outlier = torch.cat([natural(20, 2, (3, 3)), 100 * natural(1, 2, (3, 3), seed=5)])
    equal = normal(1, 2, 3).expand(6, 2, 3).contiguous()
    alternating = torch.nn.functional.one_hot(torch.arange(6) % 2, 3).to(F64)
    constant = normal(8, 2, 1).expand(8, 2, 4).contiguous()
    separable = normal(10, 2, 8)
    cases = [
        (outlier, labels(outlier, loss), 1e-3),
        (equal, alternating, 1e-3),
        (constant, labels(constant, loss), 1e-3),
        (separable, labels(separable, loss, noise=0.0), 1e-6),
    ]
    for x, y, part in cases:
        problem = Problem(x, y, 2, 1.0, None, loss_of(loss))
        _, value, gap = solved(replace(problem, weight_decay=part * least_decay(problem)), 1e-8, max_steps=1000)
        assert -1e-13 <= gap <= 1e-8
        assert value > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("a", [2.0**-200, 2.0**200])
def test_units_of_the_images_change_nothing(loss, a):
    x = natural(20, 2, (3, 4))
    y = labels(x, loss)
    plain = fit(x, y, depth=2, weight_decay=0.01, loss=loss, tol=1e-10)
    scaled = fit(a * x, y, depth=2, weight_decay=a * 0.01, loss=loss, tol=1e-10)
    assert max(plain.gap, scaled.gap) <= 1e-10
    assert scaled.objective == pytest.approx(plain.objective, rel=2e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_starts_far_from_the_optimum_cost_no_accuracy_and_the_optimum_itself_no_step(loss, monkeypatch):
    x = natural(30, 2, (3, 4))
    problem = Problem(x, labels(x, loss), 2, 0.01, None, loss_of(loss))
    blocks, value, _ = solved(problem, 1e-10)
    for size in (1.0, 1e2, 1e6):
        _, again, gap = solved(problem, 1e-10, start=size * problem.blocks(normal(3, 2, 3, 4)), max_steps=1000)
        assert gap <= 1e-10
        assert again == pytest.approx(value, rel=2e-10)
    monkeypatch.delattr(LossSplitting, "advance")
    monkeypatch.delattr(Splitting, "advance")
    assert solved(problem, 1e-9, start=blocks)[0] is blocks


@pytest.mark.parametrize("steps", [0, 1, 13])
def test_steps_are_counted_and_the_bracket_holds(steps, monkeypatch):
    made, advance = [], LossSplitting.advance
    monkeypatch.setattr(LossSplitting, "advance", lambda self, count: (made.append(count), advance(self, count))[1])
    x = natural(40, 2, (4, 4))
    problem = Problem(x, labels(x, "cross-entropy"), 2, 1e-4, None, loss_of("cross-entropy"))
    _, value, gap = solved(problem, 1e-15, max_steps=steps)
    assert sum(made) == steps
    _, minimum, _ = solved(problem, 1e-11)
    assert value * (1 - gap) <= minimum * (1 + 1e-11) <= value * (1 + 2e-11)
    assert gap > 1e-3


# --- Depth 2: the parts of the iteration -------------------------------------------------------------------------------


def split(n, loss, decay=0.02, shape=(3, 4)):
    """The iteration on all frequencies, from 0."""
    x = natural(n, 2, shape)
    problem = Problem(x, labels(x, loss), 2, decay, None, loss_of(loss))
    frequencies = Frequencies(problem, torch.full_like(problem.weights, problem.mu))
    pulled = frequencies.gather(problem.cross_moment)
    columns = frequencies.columns(torch.arange(len(pulled)))
    return LossSplitting(problem.loss, columns, problem.y, frequencies.mu, torch.zeros_like(pulled), pulled)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 5), st.integers(2, 4)),
    logs=st.floats(-9, 4),
    size=st.sampled_from([0.0, 0.1, 10.0, 1e4]),
    far=st.sampled_from([0.0, 3.0, 10.0]),
    certain=st.booleans(),
)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_proximal_map_solves_its_equation(loss, seed, shape, logs, size, far, certain):
    n, k = shape
    ell, s = loss_of(loss), 10.0 ** (logs + normal(n, 1, seed=seed + 2))
    v, start, other = size * normal(n, k, seed=seed), far * normal(n, k, seed=seed + 1), normal(n, k, seed=seed + 3)
    y = torch.softmax(normal(n, k, seed=seed + 4), 1)
    y = torch.nn.functional.one_hot(y.argmax(1), k).to(F64) if certain else y
    f, slope = proximal(ell, v, y, s, start)
    assert torch.equal(slope, ell.gradient(f, y))
    terms = torch.cat([slope, s * f, s * v], 1).norm(dim=1)
    # Beside its accuracy the rounding of its terms: of targets, of probabilities, and of outputs times their curvature.
    rounding = 64 * 2.0**-52 * (1 + f.abs().amax(1))
    assert bool(((slope + s * (f - v)).norm(dim=1) <= ACCURACY * terms + rounding).all())
    # Proximal maps are firmly nonexpansive; in the norm of s each is off by its equation, of which the inverse is at most 1/s.
    g, _ = proximal(ell, v + other, y, s, start)
    slack = 4 * (ACCURACY * (terms + (s * other).norm(dim=1)) + rounding + 64 * 2.0**-52 * g.abs().amax(1)) / s[:, 0]
    assert bool(((g - f).norm(dim=1) <= other.norm(dim=1) * (1 + 1e-12) + slack).all())


@pytest.mark.parametrize("s", [1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_shifted_systems_against_dense_ones(loss, s):
    f, y, right = 3 * normal(6, 4), torch.softmax(normal(6, 4, seed=1), 1), normal(6, 4, seed=2)
    ell = loss_of(loss)
    found = _solve_shifted(ell, ell.gradient(f, y), y, torch.full((6, 1), s, dtype=F64), right)
    hessians = torch.stack([ell.curvature(f, y, unit.expand(6, 4)) for unit in torch.eye(4, dtype=F64)], 2)
    residual = (hessians @ found[:, :, None])[:, :, 0] + s * found - right
    # A backward stable solution leaves ε times the sizes, which for the dense product are those of the solution.
    assert float(residual.norm()) <= 1e-14 * (float(found.norm()) + float(right.norm()))


@pytest.mark.parametrize("n", [5, 60])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_projection_is_orthogonal_and_ends_in_the_graph(loss, n):
    splitting = split(n, loss)
    assert splitting.tall == (n == 60)
    size = splitting.columns.shape[1]
    point, other = normal(size + n, 3), normal(size, 3, seed=1)
    near = splitting._projected(point)
    assert torch.allclose(splitting.columns @ near[:size], near[size:], rtol=0, atol=1e-12)
    along = torch.cat([other, splitting.columns @ other])
    assert abs(float(((point - near) * along).sum())) <= 1e-12 * float(point.norm() * along.norm())


@pytest.mark.parametrize("n", [5, 60])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_is_a_fixed_point(loss, n):
    """And a point that moved is none: with the metric in use the change is small only where both optimality conditions hold."""
    splitting = split(n, loss)
    first = splitting.point.clone()
    splitting.advance(1)
    moved = float((splitting.point - first).norm())
    splitting.run(0.0, 0.0, 400, lambda: True)
    before = splitting.point.clone()
    splitting.advance(1)
    assert float((splitting.point - before).norm()) <= 1e-8 * moved
    fitted = splitting.x @ to_real(splitting.blocks)
    assert torch.allclose(fitted, splitting.outputs, rtol=0, atol=1e-7 * float(fitted.abs().max()))
    assert min(splitting.gaps()) <= 1e-10


# --- Depth 1: starts and early ends ------------------------------------------------------------------------------------


def counting(monkeypatch, loss):
    """A list that grows by one with every product with the Hessian."""
    calls, kind = [], type(loss_of(loss))
    right = kind.curvature
    monkeypatch.setattr(kind, "curvature", lambda *a: (calls.append(0), right(*a))[1])
    return calls


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [10, 80])
def test_any_start_ends_at_the_same_optimum_and_the_optimum_costs_nothing(loss, n, monkeypatch):
    x = natural(n, 2, (4, 5))
    problem = Problem(x, labels(x, loss), 1, 1e-3, None, loss_of(loss))
    cold = smooth(problem, 1e-10)
    for size in (0.1, 10.0, 1e5):
        warm = smooth(problem, 1e-10, size * normal(3, 2, 4, 5))
        assert -1e-13 <= warm.gap <= 1e-10
        assert warm.objective == pytest.approx(cold.objective, rel=2e-10)
    calls = counting(monkeypatch, loss)
    again = smooth(problem, 1e-9, cold.predictor)
    assert not calls
    assert again.objective == pytest.approx(cold.objective, rel=1e-13)


def test_a_path_starts_from_the_solution_before(monkeypatch):
    x = natural(60, 2, (5, 5))
    y = labels(x, "cross-entropy")
    decays = [1e-2, 9e-3, 8e-3, 7e-3]
    calls = counting(monkeypatch, "cross-entropy")
    warm = fit_path(x, y, depth=1, weight_decays=decays, loss="cross-entropy")
    along = len(calls)
    cold = [fit(x, y, depth=1, weight_decay=decay, loss="cross-entropy") for decay in decays]
    assert along < 0.8 * (len(calls) - along)
    for one, other in zip(warm, cold, strict=True):
        assert one.gap <= 1e-8
        assert one.objective == pytest.approx(other.objective, rel=2e-8)


class Clock:
    """Moves on by one second every time it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("limit", [0.5, 2.5, 6.5, 12.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_depth_one_ends_at_a_time_limit_with_a_true_bracket(loss, limit, monkeypatch):
    """The clock is read between Newton steps and between conjugate gradients: every reading allows one product with the Hessian at most."""
    x = natural(60, 2, (5, 5))
    y = labels(x, loss)
    best = fit(x, y, depth=1, weight_decay=1e-6, loss=loss, tol=1e-12)
    calls = counting(monkeypatch, loss)
    monkeypatch.setattr(monitor_module, "time", Clock())
    early = fit(x, y, depth=1, weight_decay=1e-6, loss=loss, tol=1e-12, time_limit=limit)
    assert len(calls) <= limit + 1 + 3 * (limit + 1)  # besides those, one for each of the three outputs at every Newton step
    assert early.gap > 1e-6
    assert early.lower_bound <= best.objective * (1 + 1e-12)
    assert early.objective >= best.lower_bound * (1 - 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_depth_one_reports_and_obeys(loss, monkeypatch):
    x = natural(60, 2, (5, 5))
    y = labels(x, loss)
    alone = fit(x, y, depth=1, weight_decay=1e-5, loss=loss)
    seen = []
    watched = fit(x, y, depth=1, weight_decay=1e-5, loss=loss, time_limit=1e6, on_progress=lambda found: seen.append(found))
    assert torch.equal(alone.predictor, watched.predictor)
    assert (alone.objective, alone.lower_bound) == (watched.objective, watched.lower_bound)
    assert len(seen) > 2
    objectives = [found.objective for found in seen]
    assert objectives == sorted(objectives, reverse=True)
    assert all(found.lower_bound <= alone.objective * (1 + 1e-12) for found in seen)
    stopped = fit(x, y, depth=1, weight_decay=1e-5, loss=loss, on_progress=lambda found: found.objective > objectives[2])
    assert stopped.objective == objectives[2]

    def forbidden():
        raise AssertionError("the clock was read without a time limit")

    monkeypatch.setattr(time, "monotonic", forbidden)
    assert fit(x, y, depth=1, weight_decay=1e-5, loss=loss).objective == alone.objective


def test_a_solver_without_a_monitor_has_nobody_to_ask():
    x = natural(20, 2, (3, 3))
    problem = Problem(x, labels(x, "logistic"), 1, 1e-3, None, loss_of("logistic"))
    assert torch.equal(smooth(problem, 1e-8).predictor, smooth(problem, 1e-8, None, Monitor()).predictor)


# --- Rounding of the bracket -------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([(2, 3), (1, 4, 4), (3, 1)]), st.integers(1, 40), st.sampled_from([1e-2, 0.1, 1.0]))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lower_bound_is_at_or_below_its_objective(loss, depth, seed, shape, n, decay):
    """Where the gap is closed to rounding, as Newton's method and optima at 0 do, rounding alone decides which of the two is larger."""
    x = normal(n, *shape, seed=seed)
    found = fit(x, labels(x, loss, seed=seed), depth=depth, weight_decay=decay, loss=loss, tol=1e-12 if depth == 1 else 1e-10)
    assert 0 < found.lower_bound <= found.objective


@pytest.mark.parametrize("loss", ["squared", *LOSSES])
def test_only_rounding_is_taken_from_a_lower_bound(loss):
    x = natural(50, 2, (4, 5))
    problem = Problem(x, labels(x, "cross-entropy"), 2, 1e-3, None, loss_of(loss))
    beta = problem.predictor(solved(problem, 1e-9)[0])
    value = problem.objective(beta)
    for lower in (0.0, value / 2, np.nextafter(value, 0.0), value):
        assert nuclear.below(problem, beta, value, float(lower)) == lower
    assert nuclear.below(problem, beta, value, float(np.nextafter(value, 1e9))) == value
    for excess in (1e-9, 1e-3):  # no rounding of sums of 100 terms: the bound is wrong, and must look wrong
        assert nuclear.below(problem, beta, value, value * (1 + excess)) > value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("count", [40, 6])
def test_the_lower_bound_at_depth_one_is_positive_at_every_decay_and_whenever_it_ends(loss, certain, count):
    """Where the gradient itself proves nothing, a multiple of it does; y is certain, or a distribution."""
    x = normal(count, 2, 2, 3)
    y = labels(x, loss) if certain else torch.softmax(normal(count, 3, seed=5), 1)
    for decay in (1e200, 1e-10, 1e-60):
        least = fit(x, y, depth=1, weight_decay=decay, loss=loss)
        stopped = fit(x, y, depth=1, weight_decay=decay, loss=loss, on_progress=lambda found: False)
        for found in (least, stopped):
            assert 0 < found.lower_bound <= min(least.objective, stopped.objective)
    assert fit(x, y, depth=1, weight_decay=1e-20, loss=loss, on_progress=lambda found: False).objective > least.objective
