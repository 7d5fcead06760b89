"""Paths over weight decays: the same as `fit` for each, in any order, from one decomposition; and a weight decay of 0."""

import importlib

import numpy as np
import pytest
import torch

from linconv.solvers import fit, fit_path

pytestmark = pytest.mark.usefixtures("hasty")
F64 = torch.float64
package = importlib.import_module("linconv.solvers")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def natural(n, channels, grid, exponent=1.0, seed=0):
    """Images with a spectrum that falls as |u|^−2·exponent, as that of photographs does."""
    squares = sum(
        (torch.fft.fftfreq(m, 1 / m, dtype=F64) ** 2).reshape([-1 if d == dim else 1 for d in range(len(grid))])
        for dim, m in enumerate(grid)
    )
    dims = tuple(range(2, 2 + len(grid)))
    return torch.fft.ifftn(torch.fft.fftn(normal(n, channels, *grid, seed=seed), dim=dims) / (1 + squares) ** exponent, dim=dims).real


def targets(x, loss):
    scores = x.flatten(1) @ normal(x[0].numel(), 3, seed=1) + normal(len(x), 3, seed=2)
    return {
        "squared": scores,
        "cross-entropy": torch.nn.functional.one_hot(scores.argmax(1), 3).to(F64),
        "logistic": (scores > 0).to(F64),
    }[loss]


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", "logistic"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [10, 40])
def test_a_path_is_fit_for_each_decay_in_the_order_given(n, depth, loss):
    x = natural(n, 2, (3, 3))
    y, decays = targets(x, loss), [0.1, 1.0, 0.05, 0.1]
    found = fit_path(x, y, depth=depth, weight_decays=decays, loss=loss)
    assert len(found) == len(decays)
    for decay, solution in zip(decays, found, strict=True):
        alone = fit(x, y, depth=depth, weight_decay=decay, loss=loss)
        assert -1e-12 <= solution.gap <= 1e-8
        assert solution.method == alone.method
        assert solution.objective == pytest.approx(alone.objective, rel=2e-8)  # each within its gap of the minimum
    assert found[0].objective == pytest.approx(found[3].objective, rel=1e-8)
    increasing = [found[i].objective for i in (2, 0, 1)]
    assert increasing == sorted(increasing)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_a_path_at_depth_three_has_a_valid_bracket_at_every_decay(loss):
    x = natural(12, 2, (2, 2))
    y, decays = targets(x, loss), [0.02, 0.2] if loss == "squared" else [0.2]
    for decay, solution in zip(decays, fit_path(x, y, depth=3, weight_decays=decays, loss=loss), strict=True):
        alone = fit(x, y, depth=3, weight_decay=decay, loss=loss)
        assert max(alone.lower_bound, solution.lower_bound) <= min(alone.objective, solution.objective) * (1 + 1e-12)


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("decays", [[1.0, 0.1, 0.3], [1e-13, 1e-3, 1.0, 0.0]])
def test_ridge_needs_one_decomposition(n, decays, monkeypatch):
    """One `eigh` of the smaller Gram matrix or, where a decay is lost to rounding in it, one decomposition of the images."""
    calls = []

    def counted(name):
        right = getattr(torch.linalg, name)
        return lambda *args, **kwargs: (calls.append(name), right(*args, **kwargs))[1]

    x = natural(n, 2, (3, 3))
    y = targets(x, "squared")
    with monkeypatch.context() as patch:
        for name in ("eigh", "svd", "cholesky"):
            patch.setattr(torch.linalg, name, counted(name))
        fit_path(x, y, depth=1, weight_decays=decays)
    assert calls == (["svd"] if 0.0 in decays else ["eigh"])


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_the_data_are_reduced_and_checked_once(loss, monkeypatch):
    calls = []
    right = package.reduce
    monkeypatch.setattr(package, "reduce", lambda *args: (calls.append(0), right(*args))[1])
    x = natural(40, 2, (3, 3))
    fit_path(x, targets(x, loss), depth=2, weight_decays=[1.0, 0.5, 0.3], loss=loss)
    assert len(calls) == (loss == "squared")


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_relative_gradient_of_ridge_on_spectra_of_photographs(n, exponent):
    """‖∇F‖ ≤ 1e-12 of its value at 0, alone and on a path, in the primal and in the kernel form."""
    x = natural(n, 3, (4, 4), exponent)
    y = targets(x, "squared")
    flat, labels = x.flatten(1).numpy(), y.numpy()
    decays = [1e-6, 1e-3, 1.0]
    for decay, path in zip(decays, fit_path(x, y, depth=1, weight_decays=decays), strict=True):
        for found in (path, fit(x, y, depth=1, weight_decay=decay)):
            beta = found.predictor.flatten(1).T.numpy()
            slope = flat.T @ (flat @ beta - labels) / n + 2 * decay * beta
            assert np.linalg.norm(slope) <= 1e-12 * np.linalg.norm(flat.T @ labels / n)
            assert abs(found.gap) <= 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n", [10, 40])
def test_without_decay_squared_error_gives_least_squares_of_least_norm(depth, n):
    x = natural(n, 2, (3, 3))
    y = targets(x, "squared")
    found = fit(x, y, depth=depth, weight_decay=0.0)
    expected = np.linalg.lstsq(x.flatten(1).numpy(), y.numpy(), rcond=None)[0]
    torch.testing.assert_close(found.predictor.flatten(1).T, torch.from_numpy(expected), rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    assert found.lower_bound <= found.objective
    on_path = fit_path(x, y, depth=depth, weight_decays=[0.1, 0.0])[1] if depth < 3 else found
    assert on_path.objective == pytest.approx(found.objective, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "cross-entropy", "depth": 1}, "separable data have none"),
        ({"loss": "logistic", "depth": 2}, "separable data have none"),
        ({"hidden_channels": 1, "depth": 2}, "blocks of limited rank may have none"),
    ],
)
def test_without_decay_where_there_may_be_no_minimum(options, message):
    x = natural(10, 2, (3,))
    y = targets(x, options.get("loss", "squared"))
    with pytest.raises(ValueError, match=f"^weight_decay: expected a number > 0, got 0: .*{message}"):
        fit(x, y, weight_decay=0.0, **options)
    with pytest.raises(ValueError, match=f"^weight_decay: .*{message}"):
        fit_path(x, y, weight_decays=[1.0, 0.0], **options)


@pytest.mark.parametrize(
    ("decays", "error"), [([], ValueError), ([0.1, -1.0], ValueError), ([float("nan")], ValueError), (["1"], TypeError)]
)
def test_bad_decays_are_named(decays, error, unchecked):
    x = natural(10, 2, (3,))
    with pytest.raises(error, match=r"^weight_decays: expected "):
        fit_path(x, targets(x, "squared"), depth=1, weight_decays=decays)
