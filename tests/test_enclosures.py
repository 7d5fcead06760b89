"""Enclosures: Arb's balls lie in the intervals, whatever LAPACK and libm return; exact cases, laws, floats at the edge, wrong variants."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import linconv as lc
from linconv import enclosures
from linconv.enclosures import SingularValueBounds, _power_bounds, _roots_of_unity, cost_bounds, singular_value_bounds
from linconv.strategies import grids, predictors

U = 2.0**-53
F64 = torch.float64
LARGEST = torch.finfo(F64).max


def random_weight(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def delta(*shape):
    weight = torch.zeros(*shape, dtype=F64)
    weight.flatten(2)[..., 0] = torch.eye(*shape[:2], dtype=F64)
    return weight


def graded(*shape):
    """Weights from 1e-100 to 1e100 in one kernel."""
    powers = torch.linspace(-100, 100, math.prod(shape), dtype=F64).reshape(shape)
    return 10**powers * random_weight(*shape, seed=1)


# --- The witness: exact blocks in ball arithmetic, eigenvalues counted by Sylvester's law of inertia ----------------------


def arb_grams(weight, grid, bits=2048):
    """For each frequency the smaller of V V* and V* V with all its digits, as rows of balls."""
    flint = pytest.importorskip("flint", reason="Arb, in python-flint, is the witness (extra 'rigorous')")
    flint.ctx.prec = bits
    kernel = weight.detach().double().numpy()
    outputs, inputs, *taps = kernel.shape
    found = {}
    for u in itertools.product(*map(range, grid)):
        entries = [flint.acb(0)] * (outputs * inputs)
        for m in itertools.product(*map(range, taps)):
            turns = sum((Fraction(a * b, n) for a, b, n in zip(u, m, grid, strict=True)), Fraction(0)) % 1
            root = flint.acb(flint.arb(flint.fmpq(-2 * turns.numerator, turns.denominator))).exp_pi_i()
            taps_here = kernel[(slice(None), slice(None), *m)].ravel()
            entries = [total + root * flint.arb(float(w)) for total, w in zip(entries, taps_here, strict=True)]
        block = flint.acb_mat(outputs, inputs, entries)
        adjoint = block.transpose().conjugate()
        found[u] = (block * adjoint if outputs <= inputs else adjoint * block).table()
    return found


def count_above(gram, square):
    """How many eigenvalues of a Hermitian matrix exceed a number: the positive pivots of the difference, none of which may be in doubt."""
    rows = [[z - square if i == j else z for j, z in enumerate(row)] for i, row in enumerate(gram)]
    positive = 0
    for k, pivot_row in enumerate(rows):
        pivot = pivot_row[k].real
        assert pivot > 0 or pivot < 0, "a pivot is 0 to all digits: take another case"
        positive += bool(pivot > 0)
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            rows[i] = [a - factor * b for a, b in zip(rows[i], pivot_row, strict=True)]
    return positive


def contains(bounds, witness):
    """Whether the i-th largest singular value lies in the i-th interval: no more than i above it, and i + 1 not below it."""
    from flint import arb

    hair = arb(2) ** -1000  # so that no pivot is exactly 0 where an end is an exact value
    for u, gram in witness.items():
        for i in range(len(gram)):
            lower, upper = float(bounds.lower[(*u, i)]), float(bounds.upper[(*u, i)])
            if not 0 <= lower <= upper or (lower > 0 and count_above(gram, arb(lower) ** 2 * (1 - hair)) < i + 1):
                return False
            if upper == 0 and any(not (z.real == 0 and z.imag == 0) for row in gram for z in row):
                return False
            if 0 < upper < math.inf and count_above(gram, arb(upper) ** 2 * (1 + hair)) > i:
                return False
    return True


def overlap(a, b):
    """Two enclosures of the same numbers have a common point."""
    return bool(((a.lower <= b.upper) & (b.lower <= a.upper)).all())


def law_contains(weight, grid):
    assert contains(singular_value_bounds(weight, grid), arb_grams(weight, grid))


CASES = {
    "1-D odd": (random_weight(3, 2, 5), (5,)),
    "1-D even": (random_weight(2, 3, 4), (8,)),
    "2-D": (random_weight(3, 3, 3, 3), (4, 5)),
    "2-D, one row": (random_weight(2, 2, 1, 3), (1, 6)),
    "3-D": (random_weight(2, 1, 2, 3, 2), (3, 2, 4)),
    "one channel": (random_weight(1, 1, 7), (7,)),
    "tall": (random_weight(10, 3, 3, 3), (3, 4)),
    "wide": (random_weight(1, 4, 3), (5,)),
    "one tap": (random_weight(2, 3, 1, 1), (2, 3)),
    "one tap in one dimension": (random_weight(2, 3, 1, 4), (3, 5)),
    "one site": (random_weight(3, 2, 1), (1,)),
    "wider than the grid": (random_weight(2, 2, 9, 7), (2, 3)),
    "wider than the grid, 1-D": (random_weight(2, 2, 11), (4,)),
    "float32": (random_weight(3, 2, 5, dtype=torch.float32), (5,)),
    "delta: all singular values 1": (delta(3, 3, 4), (4,)),
    "rank one": (torch.einsum("a,b,m->abm", *(random_weight(n, 1, 1)[:, 0, 0] for n in (3, 4, 5))), (5,)),
    "constant": (torch.full((2, 2, 7), 0.1, dtype=F64), (7,)),
    "constant plane": (torch.full((2, 3, 3, 5), 0.1, dtype=F64), (3, 5)),
    "Nyquist": (torch.tensor([0.1, -0.1] * 3, dtype=F64).expand(2, 1, 6), (6,)),
    "repeated and zero": (torch.diag(torch.tensor([0.1, 0.1, 0.0], dtype=F64))[:, :, None].expand(3, 3, 3), (3,)),
    "graded": (graded(2, 2, 3), (4,)),
    "tiny": (random_weight(2, 2, 3) * 1e-305, (4,)),
    "huge": (random_weight(2, 2, 3) * 1e300, (4,)),
    "denormal": (torch.tensor([[[5e-324, 5e-324, 1.5e-323]]], dtype=F64), (4,)),
    "denormal channels": (random_weight(2, 3, 3) * 1e-320, (3,)),
    "zero": (torch.zeros(2, 2, 3, dtype=F64), (3,)),
    "zero channel": (torch.stack([torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64)]), (3,)),
}


@pytest.mark.parametrize("name", CASES)
def test_contains_the_exact_singular_values(name):
    law_contains(*CASES[name])


@st.composite
def kernels(draw):
    grid = draw(grids(max_sites=6))
    taps = tuple(draw(st.integers(1, 2 * n)) for n in grid)
    return draw(predictors(grid=taps, max_channels=3)), grid


@given(kernels(), st.sampled_from([0, 1000, -1000, -1040]))
def test_contains_the_exact_singular_values_of_any_kernel(case, exponent):
    weight, grid = case
    law_contains(torch.ldexp(weight, torch.tensor(exponent)), grid)


def test_contains_at_any_chunk_and_thread_count(monkeypatch):
    weight, grid = random_weight(2, 2, 3, 2), (7, 4)
    whole, witness = singular_value_bounds(weight, grid), arb_grams(weight, grid)
    monkeypatch.setattr(enclosures, "CHUNK_BYTES", 1)
    pieces = singular_value_bounds(weight, grid)
    assert contains(pieces, witness)
    assert overlap(pieces, whole)


# --- LAPACK is not trusted ---------------------------------------------------------------------------------------------

SVD = torch.linalg.svd


def swapped(left, values, right):
    return left.flip(-1), values.flip(-1), right.flip(-2)


DISHONEST = {
    "scaled factors": lambda u, s, v: (u * (1 + 1e-9), s / (1 + 1e-9) ** 2, v * (1 + 1e-9)),
    "one scaled column": lambda u, s, v: (torch.cat([u[..., :1] * 1.01, u[..., 1:]], -1), s, v),
    "wrong values": lambda u, s, v: (u, s * (1 + 1e-9), v),
    "ascending": swapped,
    "negative": lambda u, s, v: (-u, -s, v),
    "no vectors": lambda u, s, v: (0 * u, s, 0 * v),
    "repeated vectors": lambda u, s, v: (u[..., :1].expand_as(u), s, v),
    "enormous": lambda u, s, v: (u * 1e200, s, v * 1e200),
    "not a number": lambda u, s, v: (u * math.nan, s, v),
    "no values": lambda u, s, v: (u, s * math.nan, v),
}


@pytest.mark.parametrize("name", DISHONEST)
def test_contains_whatever_the_decomposition_says(name, monkeypatch):
    weight, grid = random_weight(3, 2, 3), (5,)
    monkeypatch.setattr(enclosures.torch.linalg, "svd", lambda a, full_matrices: DISHONEST[name](*SVD(a, full_matrices=full_matrices)))
    bounds = singular_value_bounds(weight, grid)
    monkeypatch.undo()
    assert contains(bounds, arb_grams(weight, grid))


# --- Wrong variants are caught -----------------------------------------------------------------------------------------


def missing(monkeypatch, case, **changes):
    """Whether the enclosure with something of it replaced misses an exact value."""
    witness = arb_grams(*case)
    assert contains(singular_value_bounds(*case), witness)
    for name, value in changes.items():
        monkeypatch.setattr(enclosures, name, value)
    return not contains(singular_value_bounds(*case), witness)


def test_without_the_rounding_of_the_transform_it_misses(monkeypatch):
    assert missing(monkeypatch, CASES["constant"], _transform_error=lambda taps: 0.0)


def test_with_single_precision_roots_it_misses(monkeypatch):
    assert missing(monkeypatch, CASES["1-D odd"], _roots_of_unity=lambda n: np.exp(-2j * np.pi * np.arange(n) / n).astype(np.complex64))


def test_without_the_orthogonality_it_misses(monkeypatch):
    svd = DISHONEST["scaled factors"]
    monkeypatch.setattr(enclosures.torch.linalg, "svd", lambda a, full_matrices: svd(*SVD(a, full_matrices=full_matrices)))
    assert missing(monkeypatch, CASES["1-D odd"], _orthogonality_defect=lambda rows: np.zeros(len(rows)))


def test_without_the_residual_it_misses(monkeypatch):
    svd = DISHONEST["wrong values"]
    monkeypatch.setattr(enclosures.torch.linalg, "svd", lambda a, full_matrices: svd(*SVD(a, full_matrices=full_matrices)))
    defect = enclosures._frobenius
    assert missing(monkeypatch, CASES["1-D odd"], _frobenius=lambda m: defect(m) if m.shape[-1] == m.shape[-2] else np.zeros(len(m)))


def test_intervals_of_no_width_miss():
    weight, grid = CASES["2-D"]
    values = lc.conv_singular_values(weight, grid)
    assert not contains(SingularValueBounds(values, values), arb_grams(weight, grid))


@pytest.mark.parametrize("change", ["no lower end below a zero", "truncated", "transposed grid"])
def test_other_mistakes_are_seen_by_the_witness(change):
    weight, grid = {"no lower end below a zero": CASES["zero channel"], "truncated": CASES["wider than the grid, 1-D"]}.get(
        change, CASES["2-D"]
    )
    bounds, witness = singular_value_bounds(weight, grid), arb_grams(weight, grid)
    if change == "truncated":
        bounds = singular_value_bounds(weight[..., : grid[0]], grid)
    elif change == "transposed grid":
        bounds = singular_value_bounds(weight.transpose(2, 3), grid)
    else:
        bounds = SingularValueBounds(bounds.upper, bounds.upper)
    assert not contains(bounds, witness)


# --- Roots of unity ----------------------------------------------------------------------------------------------------


def worst_root(roots):
    """The largest error of a part, in units of u."""
    n = len(roots)
    with mpmath.workdps(60):
        exact = [mpmath.expjpi(-2 * mpmath.mpf(j) / n) for j in range(n)]
        errors = [
            max(abs(mpmath.mpf(z.real) - w.real), abs(mpmath.mpf(z.imag) - w.imag)) for z, w in zip(roots.tolist(), exact, strict=True)
        ]
        return float(max(errors) / U)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 12, 31, 64, 97, 224, 1001])
def test_roots_are_rounded_correctly(n):
    assert worst_root(_roots_of_unity(n)) <= 0.5 + 2.0**-40


def test_roots_from_rounded_angles_are_not():
    assert worst_root(np.exp(-2j * np.pi * np.arange(97) / 97)) > 0.5 + 2.0**-40


# --- Powers ------------------------------------------------------------------------------------------------------------


def contained_powers(x, depth, shift, low, high):
    with mpmath.workdps(60):
        exact = [mpmath.mpf(a) ** (mpmath.mpf(2) / depth) * mpmath.mpf(2) ** (mpmath.mpf(shift) / depth) for a in x.tolist()]
        return all(mpmath.mpf(a) <= e <= mpmath.mpf(b) for a, e, b in zip(low.tolist(), exact, high.tolist(), strict=True))


SIZES = np.concatenate([10.0 ** np.linspace(-135, 20, 120), [0.5, 1.0, 2.0, 3.0, 1 - U, 1 + 2 * U]])


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7, 16, 31, 1000, 2**31 - 1])
def test_powers_are_enclosed_in_a_few_units(depth):
    for shift in {0, depth // 3, depth - 1}:
        low, high = _power_bounds(SIZES, depth, shift)
        assert contained_powers(SIZES, depth, shift, low, high)
        # 2γ_{L+1}/L + 16u + what is left of the guess, twice its error squared times L
        assert float(((high - low) / low).max()) <= 32 * U


@given(st.lists(st.floats(2.0**-460, 2.0**100), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 39))
@example([1.0], 1, 0)
def test_powers_are_enclosed(x, depth, shift):
    x = np.array(x)
    assert contained_powers(x, depth, shift % depth, *_power_bounds(x, depth, shift % depth))


@pytest.mark.parametrize("factor", [0.0, 1e-300, 1e-3, 0.7, 1 - 1e-9, 1 + 1e-9, 1.2, 1e3, 1e200])
def test_powers_are_enclosed_whatever_libm_returns(factor, monkeypatch):
    power = np.power
    monkeypatch.setattr(enclosures.np, "power", lambda x, p: power(x, p) * factor)
    low, high = _power_bounds(SIZES[SIZES > 1e-10], 3, 1)
    monkeypatch.undo()
    assert contained_powers(SIZES[SIZES > 1e-10], 3, 1, low, high)


def test_power_of_zero_is_zero():
    assert [float(end[0]) for end in _power_bounds(np.zeros(1), 5, 3)] == [0.0, 0.0]


# --- Laws --------------------------------------------------------------------------------------------------------------


@given(kernels())
def test_plain_values_are_in_the_interval_or_near(case):
    """Their own rounding is not bounded: they may miss the interval by as much as it is wide."""
    weight, grid = case
    bounds, values = singular_value_bounds(weight.double(), grid), lc.conv_singular_values(weight.double(), grid)
    width = bounds.upper - bounds.lower
    assert bounds.lower.shape == bounds.upper.shape == values.shape
    assert bool(((bounds.lower - width <= values) & (values <= bounds.upper + width)).all())


@given(kernels())
def test_transpose_and_shift_have_the_same_values(case):
    weight, grid = case
    bounds = singular_value_bounds(weight, grid)
    assert overlap(bounds, singular_value_bounds(weight.transpose(0, 1), grid))
    shifted = torch.nn.functional.pad(weight, (2, 0))  # by two sites along the last dimension
    assert overlap(bounds, singular_value_bounds(shifted, grid))


@given(kernels(), st.integers(-200, 200))
def test_powers_of_two_scale_exactly(case, exponent):
    weight, grid = case
    factor = 2.0**exponent
    bounds, scaled = singular_value_bounds(weight.double(), grid), singular_value_bounds(weight.double() * factor, grid)
    if float(weight.abs().max()) > 2.0**-800:
        assert torch.equal(scaled.lower, bounds.lower * factor)
        assert torch.equal(scaled.upper, bounds.upper * factor)


@given(kernels())
def test_opposite_frequencies_have_equal_bounds_in_descending_order(case):
    weight, grid = case
    bounds = singular_value_bounds(weight, grid)
    axes = tuple(range(len(grid)))
    for end in (bounds.lower, bounds.upper):
        assert torch.equal(end, end.flip(axes).roll((1,) * len(grid), axes))
        assert bool((end.diff(dim=-1) <= 0).all())


def test_float32_is_exact_in_float64(dtype):
    weight = random_weight(3, 2, 5, dtype=dtype)
    a, b = singular_value_bounds(weight, (6,)), singular_value_bounds(weight.double(), (6,))
    assert a.lower.dtype == a.upper.dtype == F64
    assert torch.equal(a.lower, b.lower)
    assert torch.equal(a.upper, b.upper)


def test_width_on_ten_by_three_blocks():
    """Dominated by the transform, (9 + 24)u Σ|w|, here 11 times a typical singular value, on both sides: 8e-14, and 3e-14 of the SVD."""
    bounds = singular_value_bounds(random_weight(10, 3, 8, 8), (8, 8))
    assert float(((bounds.upper - bounds.lower) / bounds.upper).median()) <= 1.3e-13


def test_no_gradient_and_frozen():
    bounds = singular_value_bounds(random_weight(2, 2, 3).requires_grad_(), (4,))
    assert not bounds.lower.requires_grad
    with pytest.raises(AttributeError):
        bounds.lower = bounds.upper


# --- Floats at the edge ------------------------------------------------------------------------------------------------


def test_bounds_beyond_the_largest_float():
    bounds = singular_value_bounds(torch.full((1, 1, 3), LARGEST, dtype=F64), (3,))
    assert float(bounds.lower[0]) == LARGEST
    assert float(bounds.upper[0]) == math.inf
    assert float(bounds.lower[1]) == 0
    assert float(bounds.upper[1]) <= LARGEST * 1e-14


def test_bounds_between_denormals():
    """√2 times the smallest float lies between it and the next one."""
    tiny = 5e-324
    bounds = singular_value_bounds(torch.full((1, 1, 2), tiny, dtype=F64), (4,))
    assert (float(bounds.lower[1]), float(bounds.upper[1])) == (tiny, 2 * tiny)


def test_zero_is_zero():
    bounds = singular_value_bounds(torch.zeros(2, 3, 4, dtype=F64), (4,))
    assert float(bounds.upper.max()) == 0
    assert cost_bounds(torch.zeros(2, 3, 4, dtype=F64), 3) == (0.0, 0.0)


# --- Cost --------------------------------------------------------------------------------------------------------------


def exact_cost(beta, depth):
    """The cost to about fifty digits, from the eigenvalues of V*V to a hundred: eigenvalues of zero come out as 1e-100."""
    grid, kernel = tuple(beta.shape[2:]), beta.double().numpy()
    with mpmath.workdps(100):
        total = mpmath.mpf(0)
        for u in itertools.product(*map(range, grid)):
            block = mpmath.zeros(*kernel.shape[:2])
            for m in itertools.product(*map(range, grid)):
                root = mpmath.expjpi(-2 * sum((mpmath.mpf(a * b) / n for a, b, n in zip(u, m, grid, strict=True)), mpmath.mpf(0)))
                block += root * mpmath.matrix(kernel[(slice(None), slice(None), *m)].tolist())
            gram = block * block.H if block.rows <= block.cols else block.H * block
            total += sum(max(e, mpmath.mpf(0)) ** (mpmath.mpf(1) / depth) for e in mpmath.eigh(gram, eigvals_only=True))
        return total * depth / math.prod(grid)


@pytest.mark.parametrize("name", ["1-D odd", "2-D", "3-D", "wide", "one channel", "float32", "delta: all singular values 1", "one site"])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_cost_contains_the_exact_cost(name, depth):
    weight = CASES[name][0]
    cost = lc.representation_cost(weight, depth, enclose=True)
    assert cost.lower <= exact_cost(weight, depth) <= cost.upper
    assert 0 < cost.upper - cost.lower <= 1e-12 * cost.upper
    assert cost.truncated == 0


@given(predictors(grid=grids(max_sites=12)), st.integers(1, 8))
def test_cost_contains_the_plain_cost_and_depth_one_the_squared_norm(beta, depth):
    lower, upper = cost_bounds(beta, depth)
    plain = lc.representation_cost(beta.double(), depth)
    assert lower <= (plain.lower + plain.truncated) * (1 + 1e-9)
    assert plain.lower <= upper * (1 + 1e-9)
    squares = sum(Fraction(float(b)) ** 2 for b in beta.flatten())
    low, high = cost_bounds(beta, 1)
    assert Fraction(low) <= squares
    assert high == math.inf or squares <= Fraction(high)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 16])
def test_cost_of_low_rank_is_contained(depth):
    """A constant kernel: one block of rank one, all others zero: (L/D) (0.1·n·√6)^{2/L} to sixty digits."""
    lower, upper = cost_bounds(torch.full((2, 3, 7), 0.1, dtype=F64), depth)
    with mpmath.workdps(60):
        exact = (mpmath.mpf(0.1) * 7 * mpmath.sqrt(6)) ** (mpmath.mpf(2) / depth) * depth / 7
        assert mpmath.mpf(lower) <= exact <= mpmath.mpf(upper)
    assert upper <= lower * (1 + 20 * (1e-14) ** (2 / depth) + 1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("exponent", [-1070, -300, -7, 0, 5, 300, 900])
def test_cost_scales(depth, exponent):
    """The cost of 2^e times a delta is L 4^{e/L}, also where that is no float."""
    beta = delta(1, 1, 5) * 2.0**exponent
    lower, upper = cost_bounds(beta, depth)
    with mpmath.workdps(60):
        exact = depth * mpmath.mpf(4) ** (mpmath.mpf(exponent) / depth)
        assert mpmath.mpf(lower) <= exact <= mpmath.mpf(upper)
    if 2.0**-1000 < exact < 2.0**1000:
        assert upper <= lower * (1 + 1e-13)
    if exact > LARGEST:
        assert (lower, upper) == (LARGEST, math.inf)


def test_wrong_costs_are_refuted():
    beta, depth = CASES["2-D"][0], 3
    lower, upper = cost_bounds(beta, depth)
    sites, value = 9, lc.representation_cost(beta, depth).lower
    assert lower <= value <= upper
    for wrong in (value * sites, value * sites ** (2 / 3), value * (1 + 1e-12), value * (1 - 1e-12)):
        assert not lower <= wrong <= upper


# --- Through the public functions, and bad input -----------------------------------------------------------------------


def test_enclose_in_conv_singular_values():
    weight, grid = CASES["2-D"]
    bounds, direct = lc.conv_singular_values(weight, grid, enclose=True), singular_value_bounds(weight, grid)
    assert isinstance(bounds, SingularValueBounds)
    assert torch.equal(bounds.lower, direct.lower)
    assert torch.equal(bounds.upper, direct.upper)
    assert torch.equal(lc.conv_singular_values(weight, grid, enclose=False), lc.conv_singular_values(weight, grid))


def test_enclose_in_representation_cost():
    beta = random_weight(3, 2, 4, 5)
    cost = lc.representation_cost(beta, 3, enclose=True)
    assert (cost.lower, cost.upper, cost.truncated) == (*cost_bounds(beta, 3), 0)
    same = [{"kernel_size": (4, 5)}, {"hidden_channels": 2}, {"hidden_channels": (2, 5), "kernel_size": (4, 5)}]
    assert all(lc.representation_cost(beta, 3, enclose=True, **options) == cost for options in same)
    assert lc.representation_cost(beta, 1, enclose=True, kernel_size=2).lower <= float(beta.square().sum())


@pytest.mark.parametrize(
    ("depth", "grid", "options", "message"),
    [
        (3, (4, 5), {"kernel_size": 3}, r"enclose: expected kernels as large as the grid \(4, 5\), got kernel_size \(3, 3\)"),
        (2, (4, 5), {"kernel_size": 3}, "enclose: expected kernels"),
        (3, (4, 5), {"kernel_size": 1}, "enclose: expected kernels"),
        (3, (4, 5), {"kernel_size": 6}, "enclose: expected kernels"),
        (3, (4, 5), {"hidden_channels": (2, 1)}, r"enclose: expected hidden_channels of at least 2 = min\(K, C\), got 1"),
        (3, (1, 5), {"hidden_channels": 1}, r"enclose: expected hidden_channels of at least 2 = min\(K, C\), got 1"),
    ],
)
def test_costs_that_cannot_be_enclosed(depth, grid, options, message):
    with pytest.raises(ValueError, match=message):
        lc.representation_cost(random_weight(3, 2, *grid), depth, enclose=True, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("weight", "grid", "error", "message"),
    [
        (np.ones((1, 1, 3)), (3,), TypeError, "weight: expected a torch tensor"),
        (torch.ones(1, 1, 3, dtype=torch.int64), (3,), TypeError, "weight: expected dtype"),
        (torch.ones(1, 1, 3), (3, 3), ValueError, "weight: expected"),
        (torch.ones(1, 0, 3), (3,), ValueError, "weight: expected data"),
        (torch.tensor([[[math.nan]]]), (3,), ValueError, "weight: expected finite"),
        (torch.tensor([[[math.inf]]]), (3,), ValueError, "weight: expected finite"),
        (torch.ones(1, 1, 3), (0,), ValueError, "grid: expected"),
        (torch.ones(1, 1, 3), "3", TypeError, "grid: expected"),
        (torch.ones(1, 1, 3, 3), (2**20, 2**20), ValueError, "grid: expected sizes"),
        (torch.ones(1, 1, 1, 2**15), (1, 2**15), ValueError, "grid: expected sizes"),
    ],
)
def test_bad_input(weight, grid, error, message):
    with pytest.raises(error, match=message):
        singular_value_bounds(weight, grid)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_to_the_cost():
    with pytest.raises(ValueError, match="predictor: expected"):
        cost_bounds(torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="depth: expected"):
        cost_bounds(torch.ones(2, 2, 2), 0)
    with pytest.raises(ValueError, match="predictor: expected sizes"):
        cost_bounds(torch.ones(1, 1, 1, 1).expand(1, 1, 1, 2**15), 2)
