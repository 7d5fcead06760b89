"""The Schatten penalty: thresholds against a witness in many digits, global minimality of the proximal map, stationarity."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from linconv import shrinkage, spectral_shrinkage
from linconv.penalties import Schatten, rank_tolerance, shrink, truncate
from linconv.spectrum import FrequencyBlocks, conv_blocks
from linconv.strategies import predictors
from linconv.witnesses import shrink_mpmath

F64 = torch.float64
POWERS = st.sampled_from([1.0, 2 / 3, 0.5, 0.4, 1 / 3, 0.1, 2.0]) | st.floats(0.02, 1)
BELOW_ONE = st.sampled_from([2 / 3, 0.5, 1 / 3, 0.125]) | st.floats(0.02, 0.98)


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def threshold(p: float) -> float:
    """Where the minimiser of ½(x − y)² + x^p leaves 0, by bisection on which of the two minima is lower."""
    if p >= 1:
        return 1.0 if p == 1 else 0.0
    jump = (2 * (1 - p)) ** (1 / (2 - p))
    return jump + p * jump ** (p - 1)


def random_blocks(generator, *shape, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=generator)


def objective(x, blocks, step, p):
    """½‖X − B‖² + Σ_u step_u Σσ^p, rounding dust of low rank left out."""
    sigma = torch.linalg.svdvals(x)
    powers = torch.where(sigma > 1e-13 * sigma.max(), sigma**p, 0.0).sum(-1)
    return float((x - blocks).abs().square().sum() / 2 + (torch.as_tensor(step, dtype=F64) * powers).sum())


# --- Scalar threshold --------------------------------------------------------------------------------------------------


def law_shrink(y, step, p, tolerance=1e-12):
    found, expected = float(shrink(tensor(y), tensor(step), p)), shrink_mpmath(y, step, p)
    assert found == pytest.approx(expected, rel=tolerance, abs=1e-300)


@given(st.floats(0, 8), POWERS)
def test_shrink_agrees_with_the_witness(y, p):
    assume(p == 2 or abs(y - threshold(p)) > 1e-9)
    law_shrink(y, 1.0, p)


@given(st.floats(-20, 20), st.floats(0.01, 30), BELOW_ONE)
def test_shrink_over_forty_orders_of_magnitude(exponent, ratio, p):
    """With y = r λ^{1/(2−p)} the problem scales: x = λ^{1/(2−p)} shrink(r, 1)."""
    assume(abs(ratio / threshold(p) - 1) > 1e-9)
    step = 10.0**exponent
    unit = step ** (1 / (2 - p))
    law_shrink(ratio * unit, step, p)
    assert float(shrink(tensor(ratio * unit), tensor(step), p)) == pytest.approx(
        unit * float(shrink(tensor(ratio), tensor(1.0), p)), rel=1e-10
    )


@given(st.floats(-20, 20), st.floats(-20, 20), BELOW_ONE)
def test_shrink_of_unrelated_scales(y, step, p):
    y, step = 10.0**y, 10.0**step
    assume(abs(y / (threshold(p) * step ** (1 / (2 - p))) - 1) > 1e-9)
    law_shrink(y, step, p)


@given(st.floats(0, 6), st.floats(0.01, 3), POWERS)
def test_shrink_is_the_global_minimiser(y, step, p):
    x = float(shrink(tensor(y), tensor(step), p))
    grid = np.linspace(0, y + 1e-3, 20001)
    values = (grid - y) ** 2 / 2 + step * grid**p
    assert (x - y) ** 2 / 2 + step * x**p <= values.min() + 1e-12
    assert 0 <= x <= y


@given(BELOW_ONE, st.floats(1e-3, 1e3))
def test_shrink_jumps_at_the_threshold(p, step):
    unit = step ** (1 / (2 - p))
    border, jump = threshold(p) * unit, (2 * (1 - p)) ** (1 / (2 - p)) * unit
    below, above = shrink(tensor(border * (1 - 1e-9), border * (1 + 1e-9)), tensor(step), p).tolist()
    assert below == 0
    assert above == pytest.approx(jump, rel=1e-6)
    assert float(shrink(tensor(0.0), tensor(step), p)) == 0


@pytest.mark.parametrize("p", [1.0, 0.99, 2 / 3, 0.5, 0.25, 0.1, 2.0])
def test_shrink_with_step_zero_is_the_identity(p, dtype):
    y = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e15], dtype=dtype)
    assert torch.equal(shrink(y, torch.zeros((), dtype=dtype), p), y)
    mixed = shrink(y, torch.tensor([0.0, 0, 0, 0, 1.0], dtype=dtype), p)
    assert torch.equal(mixed[:4], y[:4])


def test_shrink_at_p_one_and_two_in_closed_form():
    y = tensor(0.0, 0.5, 1.0, 3.0)
    assert shrink(y, tensor(1.0), 1.0).tolist() == [0, 0, 0, 2]
    assert shrink(y, tensor(1.0), 2.0).tolist() == pytest.approx([0, 1 / 6, 1 / 3, 1])
    assert shrink(y, tensor(1.0), 1 - 1e-9).tolist() == pytest.approx([0, 0, 0, 2], abs=1e-6)


def test_shrink_in_single_precision_and_large_batches(generator):
    y = torch.rand(1000, generator=generator) * 5
    for p in (0.1, 0.5, 2 / 3):
        away = (y - threshold(p)).abs() > 1e-3
        exact = shrink(y.double(), torch.ones((), dtype=F64), p)
        found = shrink(y, torch.ones(()), p)
        assert found.dtype == torch.float32
        assert float((found - exact)[away].abs().max()) < 1e-5


DEPTHS = st.sampled_from([*range(1, 21), 64])


def exact_threshold(step: float, p: float) -> mpmath.mpf:
    with mpmath.workdps(50):
        weight, power = mpmath.mpf(step), mpmath.mpf(p)
        if p >= 1:
            return weight if p == 1 else mpmath.mpf(0)
        jump = (2 * (1 - power) * weight) ** (1 / (2 - power))
        return jump / 2 + weight * jump ** (power - 1)


def law_four_ulp(y, step, p, dtype=F64):
    """Within 4 units in the last place of the exact value, or y within 4 of the threshold, where 0 and the jump are both right."""
    y, step = (float(torch.tensor(v, dtype=dtype)) for v in (y, step))  # as the function sees them
    found = float(shrink(torch.tensor(y, dtype=dtype), torch.tensor(step, dtype=dtype), p))
    expected = shrink_mpmath(y, step, p, digits=50)
    real = np.float64 if dtype == F64 else np.float32
    close = abs(mpmath.mpf(y) - exact_threshold(step, p)) <= 4 * float(np.spacing(real(y)))
    if p < 1 and close and (found == 0 or expected == 0):
        largest = max(found, expected)
        jump = (2 * (1 - p) * step) ** (1 / (2 - p))
        assert largest == 0 or largest == pytest.approx(jump, rel=1e-6)
    else:
        assert abs(found - expected) <= 4 * float(np.spacing(real(expected)))


@settings(max_examples=100)
@given(DEPTHS, st.floats(-20, 20), st.floats(-16, 20))
def test_shrink_is_within_four_ulp_over_forty_orders_of_magnitude(depth, exponent, beyond):
    """y from one rounding above the threshold to 10^20 times it."""
    p, step = 2 / depth, 10.0**exponent
    border = float(exact_threshold(step, p)) or step
    law_four_ulp(border * (1 + 10.0**beyond), step, p)


@settings(max_examples=60)
@given(DEPTHS, st.floats(-20, 20), st.integers(-12, 12))
def test_shrink_takes_the_right_side_of_the_jump(depth, exponent, ulps):
    p, step = 2 / depth, 10.0**exponent
    border = float(exact_threshold(step, p))
    law_four_ulp(max(0.0, border + ulps * float(np.spacing(border))), step, p)  # at p ≥ 1 the border is 0, and no y lies below


@settings(max_examples=40)
@given(DEPTHS, st.floats(-10, 10), st.floats(-7, 10))
def test_shrink_is_within_four_ulp_in_single_precision(depth, exponent, beyond):
    p, step = 2 / depth, 10.0**exponent
    border = float(exact_threshold(step, p)) or step
    law_four_ulp(border * (1 + 10.0**beyond), step, p, torch.float32)


def test_the_law_of_four_ulp_refutes_an_error_of_five(monkeypatch):
    monkeypatch.setitem(globals(), "shrink", lambda y, step, p: shrinkage.shrink(y, step, p) * (1 + 10 * torch.finfo(y.dtype).eps))
    with pytest.raises(AssertionError):
        law_four_ulp(3.0, 1.0, 0.5)


@pytest.mark.parametrize("p", [1.0, 2 / 3, 0.5, 0.1, 1 / 32])
def test_shrink_at_the_ends_of_the_range_of_floats(p):
    y = tensor(0.0, 5e-324, 1e-300, 1.0, 1e300, 1e300, 1e300, 3e-160)
    step = tensor(5e-324, 1.0, 1e-300, 0.0, 5e-324, 1e300, 1e-300, 5e-324)
    found = shrink(y, step, p)
    for value, number, weight in zip(found.tolist(), y.tolist(), step.tolist(), strict=True):
        assert value == pytest.approx(shrink_mpmath(number, weight, p), rel=1e-15, abs=0)


@given(st.floats(-3, 3), POWERS)
def test_shrink_in_torch_and_in_numpy_is_the_same_function(exponent, p):
    """torch's powers may differ from NumPy's in the last place."""
    assume(p < 1)
    y, step = torch.linspace(0, 8, 81, dtype=F64)[:, None], tensor(10.0**exponent, 1.0, 0.0)
    assume(all(float((y - threshold(p) * s ** (1 / (2 - p))).abs().min()) > 1e-12 for s in step.tolist() if s))
    (here, border), (there, other) = shrinkage.minimiser(torch, y, step, p), shrinkage.minimiser(np, y.numpy(), step.numpy(), p)
    assert np.allclose(here.numpy(), there, rtol=1e-14 / (1 - p), atol=0)
    assert np.allclose(border.numpy(), other, rtol=1e-14 / (1 - p), atol=0)


@pytest.mark.parametrize("p", [2.0, 1.0, 0.9, 2 / 3, 0.5, 0.1])
def test_shrink_has_the_right_first_and_second_derivatives(p):
    y = tensor(0.2, 1.9, 2.5, 9.0).repeat(2, 1).requires_grad_()
    step = tensor(1.0, 0.3)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: shrink(a, b, p), (y, step))
    assert torch.autograd.gradgradcheck(lambda a, b: shrink(a, b, p), (y, step))


def test_shrink_has_finite_gradients_at_zero_and_without_a_step():
    y, step = tensor(0.0, 3.0, 0.0, 3.0).requires_grad_(), tensor(0.0, 0.0, 1.0, 1.0).requires_grad_()
    by_y, by_step = torch.autograd.grad(shrink(y, step, 0.5).sum(), (y, step))
    assert by_y[:3].tolist() == [1, 1, 0]
    assert by_step[1].item() == pytest.approx(-0.5 * 3**-0.5)
    assert bool(torch.isfinite(torch.cat([by_y, by_step])).all())


# --- Value and rank cut ------------------------------------------------------------------------------------------------


@given(predictors(), POWERS)
def test_value_is_the_sum_of_powers(beta, p):
    blocks = FrequencyBlocks.from_predictor(beta)
    sigma = np.linalg.svd(blocks.values.numpy(), compute_uv=False)
    expected = (sigma[sigma > 1e-13 * max(sigma.max(), 1e-300)] ** p).sum()
    assume(not ((sigma > 1e-15 * sigma.max()) & (sigma < 1e-12 * sigma.max())).any())
    assert float(Schatten(p).value(blocks)) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(Schatten(p).value(blocks), Schatten(p).value(blocks.values))


def test_value_of_known_matrices(dtype):
    matrix = torch.diag(torch.tensor([4.0, 9.0, 0.0], dtype=dtype))[:, :2]
    assert Schatten(0.5).value(matrix).item() == 5
    assert Schatten(2.0).value(torch.stack([matrix, matrix])).item() == pytest.approx(194)
    assert Schatten(0.5).value(matrix).dtype == dtype
    assert Schatten(0.5).value(torch.zeros(2, 3, dtype=dtype)).item() == 0


def test_rank_cut_is_relative_to_the_largest_of_all_blocks(dtype):
    cut = rank_tolerance(dtype)
    assert cut == 100 * torch.finfo(dtype).eps
    sigma = torch.tensor([[1.0, 2 * cut, 0.5 * cut], [1e-3, 0.5 * cut, 0.0]], dtype=dtype)
    assert (truncate(sigma) > 0).tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(truncate(sigma)[truncate(sigma) > 0], sigma[truncate(sigma) > 0])
    assert not truncate(torch.zeros(2, dtype=dtype)).any()


def test_value_has_the_right_gradient(generator):
    blocks = random_blocks(generator, 3, 2, 3).requires_grad_()
    for p in (0.4, 1.0, 2.0):
        assert torch.autograd.gradcheck(lambda b, p=p: Schatten(p).value(b), blocks)


def test_value_of_low_rank_has_a_finite_gradient():
    blocks = torch.diag(tensor(2.0, 0.0)).requires_grad_()
    (gradient,) = torch.autograd.grad(Schatten(0.5).value(blocks), blocks)
    assert gradient.tolist() == [[pytest.approx(0.5 * 2**-0.5), 0], [0, 0]]


# --- Proximal map ------------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(1, 1), (2, 2), (3, 2), (2, 3), (4, 2, 3), (2, 3, 3, 3)])


@settings(max_examples=40)
@given(st.integers(0, 2**31), SHAPES, POWERS, st.booleans(), st.floats(0.01, 3))
def test_prox_is_a_global_minimiser(seed, shape, p, complex_, step):
    generator = torch.Generator().manual_seed(seed)
    blocks = random_blocks(generator, *shape, dtype=torch.complex128 if complex_ else F64)
    found = Schatten(p).prox(blocks, step)
    best = objective(found, blocks, step, p)
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    competitors = [torch.zeros_like(blocks), blocks]
    for _ in range(20):
        competitors.append(
            found + 10.0 ** float(torch.empty(()).uniform_(-4, 0.5, generator=generator)) * torch.randn_like(blocks, generator=generator)
        )
        mask = torch.rand(sigma.shape, generator=generator) < 0.5
        scales = (sigma * torch.rand(sigma.shape, generator=generator, dtype=F64) * mask).to(blocks.dtype)
        competitors.append((u * scales[..., None, :]) @ vh)
    assert all(best <= objective(x, blocks, step, p) + 1e-9 * (1 + best) for x in competitors)


@settings(max_examples=40)
@given(st.integers(0, 2**31), SHAPES, POWERS, st.floats(0.01, 3))
def test_prox_points_are_stationary_and_others_are_not(seed, shape, p, step):
    generator = torch.Generator().manual_seed(seed)
    blocks = random_blocks(generator, *shape)
    found = Schatten(p).prox(blocks, step)
    gradient = (found - blocks) / step
    scale = 1 + float(gradient.norm()) + float(Schatten(p).value(found))
    assert float(Schatten(p).stationarity(found, gradient)) <= 1e-8 * scale
    if found.abs().max() > 0:
        wrong = found * 1.1
        assert float(Schatten(p).stationarity(wrong, (wrong - blocks) / step)) > 1e-3
        sigma = truncate(torch.linalg.svdvals(found))
        slopes = p * sigma[sigma > 0] ** (p - 1)
        assert float(Schatten(p).stationarity(found, gradient * 1.1)) >= 0.0999 * float(slopes.norm())


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([(2, 2), (3, 2), (2, 3)]), POWERS)
def test_prox_and_stationarity_and_value_are_unitarily_equivariant(seed, shape, p):
    generator = torch.Generator().manual_seed(seed)
    blocks, gradient = random_blocks(generator, 4, *shape), random_blocks(generator, 4, *shape)
    left = torch.linalg.qr(random_blocks(generator, 4, shape[0], shape[0]))[0]
    right = torch.linalg.qr(random_blocks(generator, 4, shape[1], shape[1]))[0]
    penalty, turned = Schatten(p), left @ blocks @ right
    sigma = torch.linalg.svdvals(blocks)
    assume(p in (1, 2) or float((sigma - threshold(p) * 0.3 ** (1 / (2 - p))).abs().min()) > 1e-6)
    assert torch.allclose(penalty.prox(turned, 0.3), left @ penalty.prox(blocks, 0.3) @ right, atol=1e-10)
    assert float(penalty.value(turned)) == pytest.approx(float(penalty.value(blocks)))
    assert float(penalty.stationarity(turned, left @ gradient @ right)) == pytest.approx(float(penalty.stationarity(blocks, gradient)))


def test_prox_with_a_step_for_each_block(generator):
    blocks = random_blocks(generator, 2, 3, 4, 2)
    steps = torch.rand(2, 3, dtype=F64, generator=generator)
    steps[0, 0] = 0
    for p in (0.5, 1.0, 2.0):
        together = Schatten(p).prox(blocks, steps)
        for i in range(2):
            for j in range(3):
                assert torch.allclose(together[i, j], Schatten(p).prox(blocks[i, j], float(steps[i, j])), atol=1e-12)
        assert torch.allclose(together[0, 0], blocks[0, 0])
        assert not torch.allclose(together[1, 1], blocks[1, 1])


def test_prox_keeps_the_type_the_precision_and_realness(dtype, generator):
    blocks = conv_blocks(torch.randn(3, 2, 4, dtype=dtype, generator=generator), (4,))
    found = Schatten(0.5).prox(blocks, 0.1)
    assert isinstance(found, FrequencyBlocks)
    assert (found.kind, found.values.dtype) == ("equivariant", blocks.values.dtype)
    readout = Schatten(0.5).prox(FrequencyBlocks.from_predictor(torch.randn(3, 2, 5, dtype=dtype, generator=generator)), 0.2)
    assert readout.predictor().dtype == dtype  # still conjugate at u and −u
    assert not Schatten(0.5).prox(blocks, 1e6).values.any()
    assert torch.allclose(Schatten(2.0).prox(blocks.values, 0.5), blocks.values / 2)


def prox_mpmath(block, steps_and_powers):
    """For each step and p all points that are right to rounding, in 45 digits: a σ within 50 ε‖B‖ of the jump goes to either side."""
    eps, (rows, columns) = torch.finfo(block.dtype).eps, block.shape
    with mpmath.workdps(45):
        b = mpmath.matrix(block.tolist())
        g, v = mpmath.eighe(b.H * b)
        sigma = [mpmath.sqrt(value) if value > mpmath.mpf(10) ** -36 * max(g) else mpmath.mpf(0) for value in g]
        for step, p in steps_and_powers:
            border, jump = exact_threshold(step, p), (2 * (1 - mpmath.mpf(p)) * step) ** (1 / (2 - mpmath.mpf(p)))
            sides = []
            for value in sigma:
                either = p < 1 and abs(value - border) <= 50 * eps * max(sigma)
                x = [mpmath.mpf(0), jump] if either else [mpmath.mpf(shrink_mpmath(float(value), step, p))]
                sides.append([xi / value if value else value for xi in x])
            points = [b * v * mpmath.diag(list(h)) * v.H for h in itertools.product(*sides)]
            yield [torch.tensor([[complex(m[i, j]) for j in range(columns)] for i in range(rows)], dtype=torch.complex128) for m in points]


def law_prox(block, *steps_and_powers):
    eps, norm = torch.finfo(block.dtype).eps, float(torch.linalg.matrix_norm(block, ord=2))
    rounded = [(float(torch.tensor(step, dtype=block.real.dtype)), p) for step, p in steps_and_powers]
    for (step, p), exact in zip(rounded, prox_mpmath(block, rounded), strict=True):
        found = Schatten(p).prox(block, step).to(torch.complex128)
        assert min(float(torch.linalg.matrix_norm(found - x, ord=2)) for x in exact) <= 50 * eps * norm


def block_of(kind, rows, columns, dtype, generator):
    rank = min(rows, columns)
    complex_ = torch.complex128 if dtype.is_complex else F64
    u = torch.linalg.qr(random_blocks(generator, rows, rank, dtype=complex_))[0]
    v = torch.linalg.qr(random_blocks(generator, columns, rank, dtype=complex_))[0]
    sigma = {
        "random": torch.rand(rank, dtype=F64, generator=generator) + 0.1,
        "rank deficient": torch.tensor([1.0, *[0.0] * (rank - 1)], dtype=F64),
        "repeated": torch.full((rank,), 0.7, dtype=F64),
        "two repeated": torch.tensor([0.9, 0.3, 0.3, 0.3][:rank], dtype=F64),
        "almost repeated": 1 - 1e-9 * torch.arange(rank, dtype=F64),
        "graded": 10.0 ** torch.linspace(0, -14, rank, dtype=F64),
        "zero": torch.zeros(rank, dtype=F64),
    }[kind]
    return (u * sigma.to(complex_) @ v.mH).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("kind", ["random", "rank deficient", "repeated", "two repeated", "almost repeated", "graded", "zero"])
def test_prox_is_accurate_to_fifty_roundings_of_the_norm(kind, dtype, generator):
    for rows, columns in ((1, 4), (4, 1), (2, 2), (5, 3), (3, 4), (4, 4)):
        block = block_of(kind, rows, columns, dtype, generator)
        law_prox(block, (1e-9, 1.0), (0.15, 1.0), (0.15, 2 / 3), (1e-9, 0.1), (0.15, 0.1))


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(2, 2), (4, 2), (3, 3), (5, 3)]),
    st.sampled_from([1.0, 2 / 3, 0.5]),
    st.floats(-16, -1),
    st.booleans(),
)
def test_prox_is_accurate_with_a_singular_value_next_to_the_threshold(seed, shape, p, distance, above):
    generator = torch.Generator().manual_seed(seed)
    block = random_blocks(generator, *shape)
    sigma = torch.linalg.svdvals(block)
    border = float(sigma[int(torch.randint(len(sigma), (), generator=generator))]) * (1 + (1 if above else -1) * 10.0**distance)
    law_prox(block, ((border / threshold(p)) ** (2 - p), p))


@pytest.mark.parametrize("factor", [1 + 1e-12, 1 - 1e-12])
def test_the_law_of_fifty_roundings_refutes_a_wrong_threshold(factor, monkeypatch, generator):
    right = shrinkage.minimiser
    monkeypatch.setattr(spectral_shrinkage, "minimiser", lambda xp, y, step, p: right(xp, y, step * factor, p))
    with pytest.raises(AssertionError):
        law_prox(random_blocks(generator, 4, 3), (0.1, 2 / 3))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(5, 1), (2, 5), (6, 3), (3, 3), (3, 8)]), POWERS, st.booleans(), st.floats(-3, 1))
def test_gram_matrices_and_decompositions_give_the_same(seed, shape, p, complex_, exponent):
    """Blocks that require a gradient are decomposed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = random_blocks(generator, 30, *shape, dtype=torch.complex128 if complex_ else F64)
    step = 10.0**exponent
    sigma = torch.linalg.svdvals(blocks)
    assume(p >= 1 or float((sigma - threshold(p) * step ** (1 / (2 - p))).abs().min()) > 1e-12)
    decomposed = Schatten(p).prox(blocks.clone().requires_grad_(), step).detach()
    errors = torch.linalg.matrix_norm(Schatten(p).prox(blocks, step) - decomposed, ord=2)
    assert bool((errors <= (100 + 200 * max(0, p < 1) * p / max(1 - p, 1e-3)) * 2.0**-52 * sigma[:, 0]).all())


def accepted(blocks, step, p):
    out = np.empty_like(blocks.numpy())
    return spectral_shrinkage._through_gram(blocks.numpy(), np.full(len(blocks), step), p, out)


def test_gram_matrices_serve_blocks_of_ordinary_data_and_no_others(generator):
    ordinary = random_blocks(generator, 544, 10, 3)
    for p in (1.0, 2 / 3, 0.5):
        assert accepted(ordinary, 1.0, p).mean() > 0.98
    graded = torch.stack([block_of("graded", 4, 3, torch.complex128, generator) for _ in range(4)])
    deficient = torch.stack([block_of("rank deficient", 4, 3, torch.complex128, generator) for _ in range(4)])
    for p in (1.0, 2 / 3):
        assert not accepted(graded, 1e-12, p).any()
        assert not accepted(deficient * math.nan, 1.0, p).any()
        assert accepted(deficient, 0.1, p).all()
        assert not accepted(1e-200 * ordinary, 1e-300, p).any()
        assert not accepted(1e200 * ordinary, 1.0, p).any()
    sigma = torch.linalg.svdvals(ordinary)[:, 1].numpy()
    step = torch.from_numpy((sigma / threshold(0.5)) ** 1.5)
    assert not spectral_shrinkage._through_gram(ordinary.numpy(), step.numpy(), 0.5, np.empty_like(ordinary.numpy())).any()


@pytest.mark.parametrize("power", [-600, -300, 300, 600])
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_prox_of_huge_and_tiny_blocks(p, power, generator):
    """prox(aB, a^{2−p}λ) = a prox(B, λ), exactly so for powers of two: their squares overflow or vanish, the answer does not."""
    blocks, a = random_blocks(generator, 20, 4, 3), 2.0**power
    scaled = Schatten(p).prox(a * blocks, 2.0 ** (power * (2 - p)) * 0.5) / a
    assert torch.allclose(scaled, Schatten(p).prox(blocks, 0.5), rtol=0, atol=1e-13)


def test_prox_of_many_blocks_is_that_of_each(generator):
    blocks = random_blocks(generator, 2, spectral_shrinkage.CHUNK - 3, 3, 2, dtype=torch.complex64)
    steps = torch.rand(blocks.shape[:2], generator=generator)
    together = Schatten(2 / 3).prox(blocks, steps)
    for i, j in ((0, 0), (1, 2), (1, 3), (1, 4), (1, spectral_shrinkage.CHUNK - 4)):
        assert torch.allclose(together[i, j], Schatten(2 / 3).prox(blocks[i, j], steps[i, j]), rtol=1e-5, atol=1e-5)
    assert torch.equal(Schatten(1.0).prox(blocks.conj(), 0.3), Schatten(1.0).prox(blocks, 0.3).conj())  # lazily conjugate
    assert torch.equal(Schatten(1.0).prox(blocks.mT, 0.3), Schatten(1.0).prox(blocks, 0.3).mT)


GRADIENT_SIGMAS = {
    "distinct": [3.0, 1.7, 0.1],
    "repeated": [2.5, 2.5, 2.5],
    "two repeated": [3.0, 2.0, 2.0],
    "zero": [3.0, 0.0, 0.0],
    "null": [0.0] * 3,
}


@pytest.mark.parametrize("p", [2.0, 1.0, 2 / 3, 0.5])
@pytest.mark.parametrize("sigmas", GRADIENT_SIGMAS)
@pytest.mark.parametrize(("kind", "shape"), [(F64, (4, 3)), (torch.complex128, (4, 3)), (torch.complex128, (3, 4))], ids=str)
def test_prox_has_the_right_gradient(kind, shape, sigmas, p, generator):
    """Repeated and zero singular values included, where the derivative of a decomposition does not exist."""
    u = torch.linalg.qr(random_blocks(generator, 2, shape[0], 3, dtype=kind))[0]
    v = torch.linalg.qr(random_blocks(generator, 2, shape[1], 3, dtype=kind))[0]
    blocks = (u * tensor(*GRADIENT_SIGMAS[sigmas]).to(kind)) @ v.mH
    steps = tensor(0.5, 0.7)
    assert torch.autograd.gradcheck(lambda b, s: Schatten(p).prox(b, s), (blocks.requires_grad_(), steps.requires_grad_()))
    assert torch.autograd.gradcheck(lambda s: Schatten(p).prox(blocks.detach(), s), tensor(0.6)[0].requires_grad_())


def test_the_gradient_of_the_identity_is_the_identity(generator):
    blocks = torch.stack([block_of("rank deficient", 3, 2, F64, generator), torch.zeros(3, 2, dtype=F64)]).requires_grad_()
    weights = torch.randn(2, 3, 2, dtype=F64, generator=generator)
    for p in (1.0, 0.5):
        (gradient,) = torch.autograd.grad((Schatten(p).prox(blocks, 0.0) * weights).sum(), blocks)
        assert torch.allclose(gradient, weights, atol=1e-14)


# --- Stationarity ------------------------------------------------------------------------------------------------------


def test_stationarity_of_hand_made_points():
    point = torch.diag(tensor(4.0, 0.0))
    along = torch.diag(tensor(-0.25, 0.0))  # minus p σ^{p−1}
    free = torch.diag(tensor(0.0, 7.0))
    mixed = torch.tensor([[0.0, 3.0], [4.0, 0.0]], dtype=F64)
    half, one, two = Schatten(0.5), Schatten(1.0), Schatten(2.0)
    assert half.stationarity(point, along).item() == pytest.approx(0, abs=1e-12)
    assert half.stationarity(point, along + free).item() == pytest.approx(0, abs=1e-12)
    assert half.stationarity(point, -along).item() == pytest.approx(0.5)
    assert half.stationarity(point, along + mixed).item() == pytest.approx(5)
    assert one.stationarity(point, torch.diag(tensor(-1.0, 0.9))).item() == pytest.approx(0, abs=1e-12)
    assert one.stationarity(point, torch.diag(tensor(-1.0, -3.0))).item() == pytest.approx(2)
    assert two.stationarity(point, torch.diag(tensor(-8.0, 0.0))).item() == pytest.approx(0, abs=1e-12)
    assert two.stationarity(point, torch.diag(tensor(-8.0, 0.5))).item() == pytest.approx(0.5)
    assert half.stationarity(torch.zeros(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64)).item() == 0
    assert one.stationarity(torch.zeros(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64)).item() == pytest.approx(math.sqrt(6) - 1)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (2, 2)])
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_stationarity_sees_rows_and_columns_beyond_the_rank(shape, p, generator):
    """A component between the range and the null space is never in the subdifferential."""
    u = torch.linalg.qr(random_blocks(generator, shape[0], shape[0]))[0]
    v = torch.linalg.qr(random_blocks(generator, shape[1], shape[1]))[0]
    point = 2 * u[:, :1] @ v[:, :1].mH
    right = -p * 2 ** (p - 1) * u[:, :1] @ v[:, :1].mH
    within, across = u[:, 1:2] @ v[:, 1:2].mH / 2, u[:, :1] @ v[:, 1:2].mH / 2 + u[:, -1:] @ v[:, :1].mH / 2
    assert float(Schatten(p).stationarity(point, right + within)) < 1e-12
    assert float(Schatten(p).stationarity(point, right + across)) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_stationarity_is_the_gradient_norm_at_full_rank(p, generator):
    blocks, smooth = random_blocks(generator, 3, 2, 2, dtype=F64).requires_grad_(), random_blocks(generator, 3, 2, 2, dtype=F64)
    (slope,) = torch.autograd.grad(Schatten(p).value(blocks), blocks)
    assert float(Schatten(p).stationarity(blocks.detach(), smooth)) == pytest.approx(float((slope + smooth).norm()))


# --- Mutants -----------------------------------------------------------------------------------------------------------


def wrong_shrink(kind):
    right = shrink

    def mutant(y, step, p):
        if kind == "soft thresholding for every p":
            return (y - step).clamp(min=0)
        if kind == "no jump":  # the stationary point wherever there is one
            x = y.clone()
            for _ in range(60):
                x = (y - step * p * x.clamp(min=1e-12) ** (p - 1)).clamp(min=0)
            return x
        if kind == "one Newton step":
            return torch.where(right(y, step, p) > 0, y - step * p * y ** (p - 1), 0.0)
        return right(y, step * 2, p) if kind == "twice the step" else right(y, step, 2 * p / (1 + p))

    return mutant


@pytest.mark.parametrize("kind", ["soft thresholding for every p", "no jump", "one Newton step", "twice the step", "another exponent"])
def test_wrong_thresholds_are_refuted(kind, monkeypatch):
    mutant = wrong_shrink(kind)

    def law():
        for y in (0.5, 1.2, 1.45, 1.49, 2.0, 3.0):
            law_shrink(y, 1.0, 0.5)

    law()
    monkeypatch.setitem(globals(), "shrink", mutant)
    with pytest.raises(AssertionError):
        law()


def test_a_wrong_prox_is_not_stationary(monkeypatch, generator):
    blocks = 3 * random_blocks(generator, 2, 3, 3)
    monkeypatch.setattr(spectral_shrinkage, "minimiser", lambda xp, y, step, p: (xp.maximum(y - step, 0.0), step))
    wrong = Schatten(0.5).prox(blocks, 0.5)
    assert float(Schatten(0.5).stationarity(wrong, (wrong - blocks) / 0.5)) > 0.1


# --- Bad input ---------------------------------------------------------------------------------------------------------

B = torch.ones(2, 3, 3, dtype=F64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Schatten(0), ValueError, "p: .*0"),
        (lambda: Schatten(-0.5), ValueError, "p: .*-0.5"),
        (lambda: Schatten(1.5), ValueError, r"p: .*1\.5.*2/L"),
        (lambda: Schatten(3), ValueError, "p: "),
        (lambda: Schatten(math.nan), ValueError, "p: .*nan"),
        (lambda: Schatten(math.inf), ValueError, "p: .*inf"),
        (lambda: Schatten("half"), TypeError, "p: .*'half'"),
        (lambda: Schatten(True), TypeError, "p: .*True"),
        (lambda: Schatten(0.5).prox(B, -1.0), ValueError, "step: .*-1"),
        (lambda: Schatten(0.5).prox(B, math.nan), ValueError, "step: .*nan"),
        (lambda: Schatten(0.5).prox(B, math.inf), ValueError, "step: .*inf"),
        (lambda: Schatten(0.5).prox(B, torch.tensor([1.0, -1.0])), ValueError, "step: "),
        (lambda: Schatten(0.5).prox(B, torch.ones(3)), ValueError, r"step: .*\(2,\).*\(3,\)"),
        (lambda: Schatten(0.5).prox(B, torch.ones(2, 3)), ValueError, r"step: .*\(2, 3\)"),
        (lambda: Schatten(0.5).prox(B, "big"), TypeError, "step: .*'big'"),
        (lambda: Schatten(0.5).prox([[1.0]], 1.0), TypeError, "blocks: .*list"),
        (lambda: Schatten(0.5).value(np.ones((2, 2))), TypeError, "blocks: .*ndarray"),
        (lambda: Schatten(0.5).value(torch.ones(2, 2, dtype=torch.int64)), TypeError, "blocks: .*int64"),
        (lambda: Schatten(0.5).value(torch.ones(2)), ValueError, r"blocks: .*\(2,\)"),
        (lambda: Schatten(0.5).value(torch.ones(0, 2, 2)), ValueError, "blocks: .*data"),
        (lambda: Schatten(0.5).value(B * math.nan), ValueError, "blocks: .*NaN"),
        (lambda: Schatten(0.5).stationarity(B, B[0]), ValueError, r"gradient: .*\(2, 3, 3\).*\(3, 3\)"),
        (lambda: Schatten(0.5).stationarity(B, B * math.inf), ValueError, "gradient: .*finite"),
        (lambda: Schatten(0.5).stationarity(B, None), TypeError, "gradient: .*NoneType"),
        (lambda: Schatten(0.5).stationarity(None, B), TypeError, "blocks: .*NoneType"),
    ],
)
def test_bad_input_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
