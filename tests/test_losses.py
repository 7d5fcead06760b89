"""Losses: against torch and autograd, Fenchel and Young, smoothness, borders of the domain, extreme outputs, bad input."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linconv.losses import CrossEntropy, Logistic, SquaredError, loss_of
from linconv.solvers import fit
from linconv.training import objective

F64 = torch.float64
EPS = torch.finfo(F64).eps
LOSSES = {"squared": SquaredError(), "cross-entropy": CrossEntropy(), "logistic": Logistic()}
BOUNDED = ["cross-entropy", "logistic"]

seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 5))
scales = st.sampled_from([0.0, 1e-8, 0.1, 1.0, 10.0, 300.0, 1e4])


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def targets(name, n, k, seed=0, kind="soft"):
    """Targets of a loss: numbers, distributions or probabilities, certain ones for `kind` "hard"."""
    generator = torch.Generator().manual_seed(seed)
    if name == "squared":
        return torch.randn(n, k, dtype=F64, generator=generator)
    if name == "logistic":
        uniform = torch.rand(n, k, dtype=F64, generator=generator)
        return uniform if kind == "soft" else uniform.round()
    if kind == "soft":
        return torch.softmax(3 * torch.randn(n, k, dtype=F64, generator=generator), 1)
    return torch.nn.functional.one_hot(torch.randint(k, (n,), generator=generator), k).to(F64)


def in_domain(name, n, k, y, seed):
    """A point of the conjugate's domain that is no gradient in particular."""
    other = targets(name, n, k, seed + 1, "hard" if seed % 2 else "soft")
    return other if name == "squared" else other - y


# --- Values and derivatives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_torch(name, kind, dtype):
    f, y = 3 * normal(7, 4).to(dtype), targets(name, 7, 4, kind=kind).to(dtype)
    functional = torch.nn.functional
    expected = {
        "squared": lambda: functional.mse_loss(f, y, reduction="sum") / 2,
        "cross-entropy": lambda: functional.cross_entropy(f, y, reduction="sum"),
        "logistic": lambda: functional.binary_cross_entropy_with_logits(f, y, reduction="sum"),
    }[name]()
    found = LOSSES[name].value(f, y)
    assert found.dtype == dtype
    # Sums of 28 terms of one sign, each of a few roundings, against the same.
    torch.testing.assert_close(found, expected, rtol=100 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("equal", [False, True], ids=["drawn", "equal outputs"])
def test_gradient_and_curvature_are_those_of_autograd(name, kind, equal):
    """Equal outputs are those of every network of zeros, and where a maximum, or an absolute value, has no derivative."""
    loss, y, d = LOSSES[name], targets(name, 5, 4, kind=kind), normal(5, 4, seed=3)
    f = (torch.zeros(5, 4, dtype=F64) if equal else 2 * normal(5, 4)).requires_grad_()
    (slope,) = torch.autograd.grad(loss.value(f, y), f)
    torch.testing.assert_close(loss.gradient(f, y).detach(), slope, rtol=1e-14, atol=1e-15)
    (bent,) = torch.autograd.grad((loss.gradient(f, y) * d).sum(), f)
    torch.testing.assert_close(loss.curvature(f, y, d).detach(), bent, rtol=1e-13, atol=1e-15)


@given(seeds, sizes, scales)
@pytest.mark.parametrize("name", LOSSES)
def test_smoothness_bounds_the_hessian(name, seed, size, scale):
    loss, (n, k) = LOSSES[name], size
    f, y = scale * normal(n, k, seed=seed), targets(name, n, k, seed)
    columns = [loss.curvature(f, y, unit.expand(n, k)) for unit in torch.eye(k, dtype=F64)]
    values = torch.linalg.eigvalsh(torch.stack(columns, 2))
    # Rows of targets sum to 1 up to k roundings, and the eigenvalues of matrices of norm ≤ 1 have an error of k roundings.
    assert float(values.max()) <= loss.smoothness + 8 * k * EPS
    assert float(values.min()) >= -8 * k * EPS


@pytest.mark.parametrize(("name", "f"), [("cross-entropy", [[0.0, 0.0]]), ("logistic", [[0.0]]), ("squared", [[3.0]])])
def test_smoothness_is_attained(name, f):
    f = torch.tensor(f, dtype=F64)
    y = torch.full_like(f, 1 / f.shape[1])
    if name == "cross-entropy":
        y = y * (1 + 1e-5)  # the largest sum of a row that is let through
    d = torch.tensor([[1.0, -1.0]], dtype=F64)[:, : f.shape[1]]
    torch.testing.assert_close(LOSSES[name].curvature(f, y, d), LOSSES[name].smoothness * d, rtol=1e-15, atol=0)


# --- Conjugates --------------------------------------------------------------------------------------------------------


@given(seeds, sizes, scales, st.sampled_from(["soft", "hard"]))
@pytest.mark.parametrize("name", LOSSES)
def test_fenchel_and_young(name, seed, size, scale, kind):
    """ℓ(f) + ℓ*(z) ≥ ⟨z, f⟩ in the domain, with equality at the gradient."""
    loss, (n, k) = LOSSES[name], size
    f, y = scale * normal(n, k, seed=seed), targets(name, n, k, seed, kind)
    z, slope = in_domain(name, n, k, y, seed), loss.gradient(f, y)
    value = float(loss.value(f, y))

    def excess(z):
        return value + float(loss.conjugate(z, y)) - float((z * f).sum())

    def rounding(z):
        # Entries of z and y are known to ε, which f multiplies; the value and the conjugate are sums of nk such terms.
        return 64 * EPS * (1 + float(f.abs().max())) * (n * k + value + float(z.square().sum()) + float(y.square().sum()))

    assert excess(z) >= -rounding(z)
    assert abs(excess(slope)) <= rounding(slope)
    for s in (0.0, 0.3, 1.0):
        assert math.isfinite(float(loss.conjugate(s * slope, y)))


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", LOSSES)
def test_conjugate_is_the_supremum(name, kind):
    """Against Newton's method on ⟨z, f⟩ − ℓ(f, y), for a z inside the domain."""
    loss, y = LOSSES[name], targets(name, 1, 3, kind=kind)
    aim = normal(1, 3, seed=8)
    z, f = loss.gradient(aim, y), torch.zeros(1, 3, dtype=F64)
    for _ in range(60):
        hessian = torch.stack([loss.curvature(f, y, unit[None])[0] for unit in torch.eye(3, dtype=F64)], 1)
        f = f - (torch.linalg.pinv(hessian, rtol=1e-10) @ (loss.gradient(f, y) - z)[0])[None]
    supremum = float((z * f).sum() - loss.value(f, y))
    assert float(loss.conjugate(z, y)) == pytest.approx(supremum, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_conjugate_at_the_border_of_its_domain(name):
    """0 where q = z + y is certain; for the others the entropy of what is left; infinite outside, but not by rounding."""
    loss, y = LOSSES[name], targets(name, 4, 3)
    certain = targets(name, 4, 3, seed=5, kind="hard")
    assert abs(float(loss.conjugate(certain - y, y))) < 100 * EPS  # q is 0 or 1 up to ε, and q log q there up to 36 ε
    half = torch.tensor([[0.5, 0.5, 0.0]], dtype=F64)
    label = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    expected = -math.log(2) * (1 if name == "cross-entropy" else 2)
    assert float(loss.conjugate(half - label, label)) == pytest.approx(expected, rel=1e-15)
    assert float(loss.conjugate(torch.zeros_like(label), label)) == 0
    outward = torch.tensor([[1.0, -1.0, 0.0]], dtype=F64)
    assert float(loss.conjugate(1e-15 * outward, label)) == pytest.approx(0, abs=1e-13)
    assert float(loss.conjugate(1e-6 * outward, label)) == math.inf


def test_conjugate_of_cross_entropy_is_infinite_off_the_simplex():
    y = targets("cross-entropy", 3, 4)
    z = torch.full_like(y, 0.1)
    assert float(CrossEntropy().conjugate(z, y)) == math.inf


@pytest.mark.parametrize("off", [0.0, 1e-16, -1e-16, 3e-16, -1e-6, 1e-6])
def test_rows_that_sum_to_one_up_to_rounding(off):
    """Labels in single precision, and thirds, sum to 1 only nearly: equality in Fenchel and Young must survive it."""
    loss, f = CrossEntropy(), normal(5, 3)
    y = torch.full((5, 3), 1 / 3, dtype=F64) + off
    loss.validate(y)
    z = loss.gradient(f, y)
    excess = float(loss.value(f, y) + loss.conjugate(z, y) - (z * f).sum())
    assert abs(excess) < 200 * EPS
    single = y.to(torch.float32).to(F64)
    assert math.isfinite(float(loss.conjugate(loss.gradient(f, single), single)))


@pytest.mark.parametrize("name", LOSSES)
def test_multiple_of_a_gradient_does_not_lower_the_dual_value(name):
    loss, y = LOSSES[name], targets(name, 6, 3)
    z = loss.gradient(torch.zeros(6, 3, dtype=F64), y)
    s = loss.multiple(z, y)
    values = [-float(loss.conjugate(t * z, y)) for t in (0.0, 0.2 * s, 0.7 * s, s)]
    assert values == sorted(values)
    assert loss.multiple(torch.zeros_like(z), y) >= 0


# --- Extreme outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [80.0, 100.0, 720.0, 800.0, 999.0, 1e4])
@pytest.mark.parametrize("name", BOUNDED)
def test_extreme_outputs_stay_finite(name, size, dtype):
    """e^89 overflows in single and e^710 in double precision, where softplus of either is near its argument."""
    loss = LOSSES[name]
    f = torch.tensor([[size, -size], [-size, size], [0.0, size]], dtype=dtype)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]], dtype=dtype)
    z = loss.gradient(f, y)
    values = [loss.value(f, y), loss.conjugate(z, y), z, loss.curvature(f, y, z)]
    assert all(bool(torch.isfinite(v).all()) for v in values)
    half = size / 2 + (0 if name == "cross-entropy" else math.log(2))
    assert float(values[0]) == pytest.approx(2 * size + half, rel=10 * torch.finfo(dtype).eps)
    (slope,) = torch.autograd.grad(loss.value(f.requires_grad_(), y), f)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("size", [5.0, 20.0, 40.0, 100.0, 300.0])
@pytest.mark.parametrize("name", BOUNDED)
def test_small_losses_keep_their_digits(name, size):
    """A certain answer that is right: value, gradient and conjugate against 400 digits, all far below the rounding of 1."""
    f = torch.tensor([[size, -size, 1.0 - size]], dtype=F64)
    y = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    loss = LOSSES[name]
    with mpmath.workdps(400):
        powers = [mpmath.exp(v) for v in f[0].tolist()]
        if name == "cross-entropy":
            q = [p / sum(powers) for p in powers]
            value, conjugate = -mpmath.log(q[0]), sum(p * mpmath.log(p) for p in q)
        else:
            q = [p / (1 + p) for p in powers]
            value = -mpmath.log(q[0]) - sum(mpmath.log(1 - p) for p in q[1:])
            conjugate = sum(p * mpmath.log(p) + (1 - p) * mpmath.log(1 - p) for p in q)
        slope = [float(p - t) for p, t in zip(q, y[0].tolist(), strict=True)]
        value, conjugate = float(value), float(conjugate)
    z = loss.gradient(f, y)
    torch.testing.assert_close(z[0], torch.tensor(slope, dtype=F64), rtol=1e-13, atol=0)
    assert float(loss.value(f, y)) == pytest.approx(value, rel=1e-13)
    assert float(loss.conjugate(z, y)) == pytest.approx(conjugate, rel=1e-13)


# --- Wrong variants ----------------------------------------------------------------------------------------------------


def without_labels(self, z, y):
    q = z.clamp(min=0)
    return torch.special.xlogy(q, q).sum()


def too_low(right):
    return lambda self, z, y: 1.1 * right(self, z, y)


@pytest.mark.parametrize("name", LOSSES)
def test_a_wrong_conjugate_breaks_the_bound(name, monkeypatch):
    """The bracket of `fit` is closed by the right conjugate, and crossed or left open by a wrong one."""
    x, y = normal(20, 2, 4), targets(name, 20, 3, kind="hard" if name == "cross-entropy" else "soft")
    for depth in (1, 2):
        right = fit(x, y, depth=depth, weight_decay=0.05, loss=name)
        assert -1e-13 <= right.gap <= 1e-8
    if name == "squared":
        return  # depth 1 has a bound of its own; at depth 2 the conjugate is tested by its multiple
    kind = type(LOSSES[name])
    monkeypatch.setattr(kind, "conjugate", too_low(kind.conjugate))
    assert fit(x, y, depth=1, weight_decay=0.05, loss=name).gap < -1e-3
    monkeypatch.undo()
    monkeypatch.setattr(kind, "conjugate", without_labels)
    assert abs(fit(x, y, depth=1, weight_decay=0.05, loss=name).gap) > 1e-3


# --- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        ("cross-entropy", [[1.0]], "at least 2 classes.*got 1 columns"),
        ("cross-entropy", [[0.6, 0.6]], "sums 1.2 to 1.2"),
        ("cross-entropy", [[1.5, -0.5]], "entries from -0.5"),
        ("cross-entropy", [[0.0, 0.0]], "one_hot"),
        ("logistic", [[1.5]], "from 0 to 1, got 1.5 to 1.5"),
        ("logistic", [[-1.0, 1.0]], "got -1 to 1"),
    ],
)
def test_targets_that_are_none_are_named(name, y, message):
    y = torch.tensor(y, dtype=F64)
    with pytest.raises(ValueError, match=f"^y: .*{message}"):
        LOSSES[name].validate(y)
    with pytest.raises(ValueError, match=f"^y: .*{message}"):
        fit(normal(1, 2, 3), y, depth=1, weight_decay=0.1, loss=name)


@pytest.mark.parametrize("name", LOSSES)
def test_right_targets_are_accepted(name):
    for kind in ("soft", "hard"):
        LOSSES[name].validate(targets(name, 4, 3, kind=kind))
        LOSSES[name].validate(targets(name, 4, 3, kind=kind).to(torch.float32))


def test_names():
    assert [type(loss_of(name)) for name in LOSSES] == [SquaredError, CrossEntropy, Logistic]


def test_an_unknown_loss_is_named(unchecked):
    with pytest.raises(ValueError, match=r"^loss: expected one of 'squared', 'cross-entropy', 'logistic', got 'hinge'"):
        loss_of("hinge")
    with pytest.raises(ValueError, match=r"^loss: expected one of "):
        objective(torch.nn.Identity(), normal(2, 3), normal(2, 3), 0.1, loss="hinge")
