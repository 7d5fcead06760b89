r"""Rigorous enclosures: intervals that contain the exact singular values, and costs, of the given floating-point weights.

Every term of the radius is derived in `docs/enclosures.md`: the blocks come from roots of unity rounded correctly (integer
arithmetic) and from matrix products, whose rounding has an a-priori bound; singular values come from LAPACK, which is not
trusted: what it returns is checked by its residual and by the orthogonality of its factors; powers are checked by raising
them back.  Assumed: IEEE 754 binary64 rounded to nearest, and matrix products that add up the usual products, in any order,
with or without fused multiply-adds.  Underflow may be gradual or abrupt in matrix products.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact, Int64
from torch import Tensor

from linconv.symbols import one_thread
from linconv.validation import validate_grid, validate_memory, validate_size, validate_tensor

Real = Float[np.ndarray, "..."]
CHUNK_BYTES = 2**21
UNIT = 2.0**-53  # unit roundoff
ROOT_ERROR = UNIT  # distance of a rounded root of unity from the exact one: at most (√2/2) u and 2^−100
# A radius is a sum of non-negative terms of fewer than 2^32 roundings: this factor makes up for them all.
SLACK = 1 + 2.0**-20
# All that underflow can do to a block whose largest weight is between ½ and 1.
UNDERFLOW = 2.0**-400
PI_50_DIGITS = 314159265358979323846264338327950288419716939937510  # ⌊π 10^50⌋
FIXED = 160  # bits after the point in the integer arithmetic for the roots


@dataclass(frozen=True)
class SingularValueBounds:
    """Intervals `[lower, upper]`, one for each singular value in descending order at each frequency; float64."""

    lower: Float[Tensor, "*grid r"]
    upper: Float[Tensor, "*grid r"]


def singular_value_bounds(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> SingularValueBounds:
    r"""Intervals proved to contain all singular values of one circular convolution with exactly these weights.

    The i-th largest singular value at u lies in `[lower[u, i], upper[u, i]]`, tensors `(*grid, min(C_out, C_in))` in float64
    on the weight's device (a float32 weight is a float64 one); the bounds at u and −u are equal, and no gradient flows.  The
    width is of the order of rounding errors of the largest singular value: an interval that begins at 0 leaves the rank open.
    A bound beyond the largest float is `inf` above and the largest float below.

    Raises `ValueError` or `TypeError` for shapes or dtypes that do not fit.  Source: derived in `docs/enclosures.md` from
    Weyl's and Ostrowski's theorems and the rounding analysis in Higham, Accuracy and Stability of Numerical Algorithms.

    >>> bounds = singular_value_bounds(torch.tensor([[[1.0, -1.0]]]), (4,))      # x_i − x_{i−1}: 0, √2, 2, √2
    >>> bool((bounds.lower[1] ** 2 < 2) & (2 < bounds.upper[1] ** 2)), float((bounds.upper - bounds.lower).max()) < 1e-14
    (True, True)
    """
    sites = validate_grid(grid)
    validate_tensor("weight", weight, ndim=(2 + len(sites),), shape=f"(C_out, C_in, {len(sites)} spatial sizes)")
    _validate_sizes("weight", weight, "grid", sites)
    varying = tuple(1 if k == 1 else n for k, n in zip(weight.shape[2:], sites, strict=True))  # one tap: the same block all along
    lower, upper, exponent, place = _scaled_bounds(weight.detach().cpu().to(torch.float64).numpy(), varying)
    bounds = (torch.from_numpy(end[place]).reshape(*varying, -1).expand(*sites, -1) for end in _unscale(lower, upper, exponent))
    return SingularValueBounds(*(end.contiguous().to(weight.device) for end in bounds))


def cost_bounds(predictor: Float[Tensor, "K C *grid"], depth: int) -> tuple[float, float]:
    """Two numbers proved to enclose (L/D) Σ_u Σ_i σ_i(V_u)^{2/L} of exactly this predictor, L = depth, nothing truncated.

    Where a block has a lower rank, its zero singular values are known only to about 1e-14 of the largest, and the power
    2/L < 1 magnifies that: the enclosure of a cost at great depth is then wide, as it must be.  Raises as
    `singular_value_bounds`.  Source: derived in `docs/enclosures.md`.

    >>> lower, upper = cost_bounds(torch.tensor([[[3.0, 0.0, 0.0]]]), 1)      # ‖β‖² = 9
    >>> lower <= 9 <= upper, upper - lower < 1e-12
    (True, True)
    """
    validate_tensor("predictor", predictor, ndim=(3, 4, 5), shape="(K, C, *grid)")
    depth, grid = validate_size("depth", depth), tuple(predictor.shape[2:])
    _validate_sizes("predictor", predictor, "predictor", grid)
    lower, upper, exponent, place = _scaled_bounds(predictor.detach().cpu().to(torch.float64).numpy(), grid)
    # σ^{2/L} = 2^whole (s² 2^shift)^{1/L} for σ = s 2^exponent; whole and shift are integers.
    whole, shift = divmod(2 * exponent, depth)
    counts = np.bincount(place, minlength=len(lower))[:, None]  # 1 or 2: the product is exact
    ends = (_power_bounds(lower, depth, shift)[0], _power_bounds(upper, depth, shift)[1])
    sums = [math.fsum((counts * end).ravel().tolist()) * depth / len(place) for end in ends]  # three roundings
    low, high = _unscale(np.array(sums[0] * (1 - 8 * UNIT)), np.array(sums[1] * (1 + 8 * UNIT)), whole)
    return float(low), float(high)


def _validate_sizes(name: str, weight: Float[Tensor, "K C *kernel"], grid_name: str, grid: tuple[int, ...]) -> None:
    """Raise where `SLACK` would not make up for all roundings, or the partial transform, a table or the result not fit in memory."""
    pairs = math.prod(weight.shape[:2])
    validate_memory(name, weight.numel(), 2**31)
    validate_memory(name, pairs, 2**28)
    validate_memory(grid_name, weight.shape[2] * pairs * math.prod(grid[1:]))
    validate_memory(grid_name, max((n * k for n, k in zip(grid[1:], weight.shape[3:], strict=True)), default=1), 2**28)
    validate_memory(grid_name, min(weight.shape[:2]) * math.prod(grid))


def _scaled_bounds(kernel: Real, grid: tuple[int, ...]) -> tuple[Real, Real, int, Int64[np.ndarray, " D"]]:
    """Bounds `(P, r)` at one frequency of each pair u, −u, in units of 2^exponent; the exponent; each frequency's place among P.

    V_{−u} = conj(V_u) holds exactly for real weights, so that the exact singular values at u and −u are equal.
    """
    distinct, place = _distinct(grid)
    kernel = kernel if len(kernel) >= kernel.shape[1] else kernel.swapaxes(0, 1)  # LAPACK is quicker with tall blocks
    c_out, c_in, *taps = kernel.shape
    exponent = int(np.frexp(np.abs(kernel).max())[1])
    scaled = np.ldexp(kernel, -exponent)  # exact but for underflow
    if not scaled.any():
        zero = np.zeros((len(distinct), min(c_out, c_in)))
        return zero, zero, 0, place
    transform_radius = _transform_error(tuple(taps)) * _norm_bound(np.abs(scaled).sum(axis=tuple(range(2, kernel.ndim))))
    half, plane = grid[0] // 2 + 1, math.prod(grid[1:])
    step = max(1, CHUNK_BYTES // (16 * max(plane * c_out * c_in, taps[0])))

    def bounds(start: int) -> tuple[Real, Real]:
        table = _roots_table(grid[0], taps[0], np.arange(start, min(start + step, half)))
        first = distinct[np.searchsorted(distinct, start * plane) : np.searchsorted(distinct, (start + step) * plane)]
        blocks = _product(table, partial).reshape(-1, c_out, c_in)
        return _block_bounds(blocks if len(first) == len(blocks) else blocks[first - start * plane], transform_radius)

    with one_thread():
        partial = _partial_transform(scaled, grid)
        if step >= half:  # a single chunk is less work than starting a thread
            return *bounds(0), exponent, place
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = list(pool.map(one_thread()(bounds), range(0, half, step)))
    lower, upper = (np.concatenate(bound) for bound in zip(*parts, strict=True))
    return lower, upper, exponent, place


@lru_cache(maxsize=4)
def _distinct(grid: tuple[int, ...]) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " D"]]:
    """The first of each pair u, −u in row-major order, ascending, and each frequency's place among them."""
    index = np.arange(math.prod(grid)).reshape(grid)
    axes = tuple(range(len(grid)))
    distinct, place = np.unique(np.minimum(index, np.roll(np.flip(index, axes), 1, axes)), return_inverse=True)
    place = place.ravel()
    distinct.flags.writeable = place.flags.writeable = False
    return distinct, place


def _partial_transform(kernel: Real, grid: tuple[int, ...]) -> Float[np.ndarray, "taps rest"] | Complex[np.ndarray, "taps rest"]:
    """The transform along all axes of space but the first, flattened behind it: frequencies first, then channel pairs."""
    partial = np.moveaxis(kernel, (0, 1), (-2, -1)).reshape(*kernel.shape[2:], -1)
    for axis in reversed(range(1, len(grid))):
        table = _roots_table(grid[axis], kernel.shape[2 + axis], np.arange(grid[axis]))
        ahead = np.moveaxis(partial, axis, 0)
        partial = np.moveaxis(_product(table, ahead.reshape(len(ahead), -1)).reshape(-1, *ahead.shape[1:]), 0, axis)
    return np.ascontiguousarray(partial).reshape(kernel.shape[2], -1)


def _product(left: Inexact[np.ndarray, "*batch m k"], right: Inexact[np.ndarray, "*batch k n"]) -> Complex[np.ndarray, "*batch m n"]:
    """Matrix products by torch, for whose libraries `one_thread` sets the threads of the caller alone."""
    a, b = (torch.from_numpy(np.asarray(factor, np.complex128)) for factor in (left, right))
    return (a @ b).numpy()


def _block_bounds(blocks: Complex[np.ndarray, "B K C"], transform_radius: float) -> tuple[Real, Real]:
    """Intervals `(B, r)` for the singular values of every matrix within `transform_radius` of a block, in the spectral norm.

    With t = ‖Ũ*Ũ − I‖ + ‖ṼṼ* − I‖ the i-th singular value of Ũ diag(σ̃) Ṽ lies within σ̃_i (t + t²)/2 of σ̃_i, and Weyl's
    theorem adds the norm of the residual.  This holds for any factors whatever, good ones make it narrow.
    """
    left, values, right = (t.numpy() for t in torch.linalg.svd(torch.from_numpy(blocks), full_matrices=False))
    sigma = -np.sort(-np.abs(values), axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):  # useless factors make useless intervals, not errors
        defect = _orthogonality_defect(left.swapaxes(-2, -1)) + _orthogonality_defect(right)
        residual = _frobenius(blocks - _product(left * values[:, None, :], right))
        rounding = math.sqrt(2) * _gamma(2 * sigma.shape[-1] + 1) * sigma.sum(-1) * (1 + defect / 2)
        common = (residual + rounding + transform_radius)[:, None] + UNDERFLOW
        radius = (common + sigma * ((defect + defect**2) / 2)[:, None]) * SLACK + 2 * UNIT * sigma
        upper = sigma + radius
        return np.fmax(sigma - radius, 0.0), np.where(upper >= 0, upper, math.inf)  # NaN too becomes inf


def _orthogonality_defect(rows: Complex[np.ndarray, "B r n"]) -> Float[np.ndarray, " B"]:
    """An upper bound, up to `SLACK`, on ‖XX* − I‖ for each matrix X."""
    gram = _product(rows, rows.conj().swapaxes(-2, -1))
    diagonal = np.einsum("bii->bi", gram)
    trace = diagonal.real.sum(-1)
    diagonal -= 1
    return _frobenius(gram) + math.sqrt(2) * _gamma(2 * rows.shape[-1]) * trace


def _frobenius(matrices: Complex[np.ndarray, "B m n"]) -> Float[np.ndarray, " B"]:
    """Frobenius norms, up to `SLACK`."""
    parts = np.ascontiguousarray(matrices).reshape(len(matrices), -1).view(np.float64)
    return np.sqrt(np.einsum("bi,bi->b", parts, parts))


def _norm_bound(sums: Float[np.ndarray, "K C"]) -> float:
    """An upper bound, up to `SLACK`, on the spectral norm of a non-negative matrix."""
    return min(math.sqrt(sums.sum(0).max() * sums.sum(1).max()), math.sqrt((sums**2).sum()))


def _gamma(n: int) -> float:
    """γ_n = n u / (1 − n u): the relative error of a sum of n products, in any order."""
    return n * UNIT / (1 - n * UNIT)


def _transform_error(taps: tuple[int, ...]) -> float:
    """c with |computed − exact| ≤ c Σ_m |w_m| for an entry of a block: rounded roots and one matrix product for each axis."""
    total = 0.0
    for axis, k in enumerate(reversed(taps)):
        product = _gamma(k) if axis == 0 else math.sqrt(2) * _gamma(2 * k)  # the first one has real data
        step = ROOT_ERROR + product * (1 + ROOT_ERROR)
        total += step + total * step
    return total


def _roots_table(n: int, taps: int, frequencies: Int64[np.ndarray, " rows"]) -> Complex[np.ndarray, "rows taps"]:
    """exp(−2πi u m/n) at (u, m); taps beyond the grid wrap around because the exponent does."""
    return _roots_of_unity(n)[np.outer(frequencies, np.arange(taps)) % n]


@lru_cache(maxsize=64)
def _roots_of_unity(n: int) -> Complex[np.ndarray, " n"]:
    """exp(−2πi j/n), both parts within u/2 + 2^−100 of the exact ones, for n < 2^31.

    Powers of exp(2πi/n), itself from its series, in integers with 160 bits after the point: at most 2^20 units of error for the
    series and 2^20 + 2 for each factor.  Python rounds the quotient of two integers correctly.

    >>> np.allclose(_roots_of_unity(4), [1, -1j, -1, 1j], rtol=0, atol=1e-40)
    True
    """
    one = 1 << FIXED
    angle = (2 * PI_50_DIGITS * one) // (n * 10**50)
    cosine, sine, term, k = 0, 0, one, 0
    while term:
        sign = 1 - 2 * (k // 2 % 2)
        cosine, sine = (cosine + sign * term, sine) if k % 2 == 0 else (cosine, sine + sign * term)
        k += 1
        term = (term * angle >> FIXED) // k
    roots, x, y = np.empty(n, np.complex128), one, 0
    for j in range(n):
        roots[j] = complex(x / one, -y / one)
        x, y = (x * cosine - y * sine) >> FIXED, (x * sine + y * cosine) >> FIXED
    roots.flags.writeable = False
    return roots


def _unscale(lower: Real, upper: Real, exponent: int) -> tuple[Real, Real]:
    """Bounds times 2^exponent, moved outwards by one float where that is inexact: below the smallest or above the largest."""
    with np.errstate(over="ignore", under="ignore"):
        low, high = np.ldexp(lower, exponent), np.ldexp(upper, exponent)
        low = np.where(np.ldexp(low, -exponent) > lower, np.nextafter(low, 0.0), low)
        return low, np.where(np.ldexp(high, -exponent) < upper, np.nextafter(high, math.inf), high)


def _power_bounds(x: Real, depth: int, shift: int) -> tuple[Real, Real]:
    """Two arrays that enclose (x² 2^shift)^{1/L}, L = depth, for x = 0 and 2^−460 ≤ x ≤ 2^100.

    From any y > 0 and the ratio q = y^L / (x² 2^shift) the exact value is y q^{−1/L}, and by Bernoulli's inequality
    1 − (q − 1)/L ≤ q^{−1/L} ≤ 1 + (1/q − 1)/L.  A good y only makes this narrow.
    """
    positive = np.where(x > 0, x, 1.0)
    guess = np.power(positive, 2 / depth) * 2.0 ** (shift / depth)
    power, twos = _integer_power(guess, depth)
    mantissa, exponent = np.frexp(positive)
    ratio = np.ldexp(power / mantissa**2, np.clip(twos - 2 * exponent.astype(np.int64) - shift, -9, 9).astype(np.int32))
    usable, error = (ratio > 0.5) & (ratio < 2), _gamma(depth + 1)
    ratio = np.where(usable, ratio, 1.0)
    low = guess * (1 - (ratio * (1 + error) - 1) / depth) * (1 - 8 * UNIT)
    high = guess * (1 + (1 / (ratio * (1 - error)) - 1) / depth) * (1 + 8 * UNIT)
    return np.where(usable & (x > 0), low, 0.0), np.where(x > 0, np.where(usable, high, math.inf), 0.0)


def _integer_power(x: Real, n: int) -> tuple[Real, Int64[np.ndarray, "..."]]:
    """Mantissas in [½, 1) and exponents of x^n, within γ_{n−1} of it relative to it: exponents apart, nothing can overflow."""
    result, twos = np.ones_like(x), np.zeros(x.shape, np.int64)
    factor, factor_twos = np.frexp(x)
    factor_twos = factor_twos.astype(np.int64)
    while n:
        if n & 1:
            result, carry = np.frexp(result * factor)
            twos = twos + factor_twos + carry
        factor, carry = np.frexp(factor * factor)
        factor_twos, n = 2 * factor_twos + carry, n >> 1
    return result, twos
