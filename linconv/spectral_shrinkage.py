r"""The proximal map of λ Σσ_i^p on matrices: singular vectors stay, singular values are shrunk one by one.

That this is the minimiser follows from von Neumann's trace inequality.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Inexact
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from linconv.shrinkage import derivatives, minimiser, shrink

Array = NDArray[Any]
Function = Callable[[Array], Array]
CHUNK = 1024  # blocks at a time through `_through_gram`: a few hundred kB, which stay in a cache
AMPLIFICATION = 32.0
UNDERFLOW = 1e-280
ROUNDING = 64 * 2.0**-52  # more than the rounding of a Gram matrix and of its eigenvalues, relative to its trace


def shrink_singular_values(blocks: Inexact[Tensor, "*batch K C"], steps: Tensor, p: float) -> Inexact[Tensor, "*batch K C"]:
    r"""The minimiser X of ½‖X − B‖² + λ Σσ_i(X)^p for every block B, λ = steps `(*batch,)` or `()`, in the precision of the blocks.

    The error is at most 50 ε ‖B‖ (spectral norm, ε of the dtype), except that for p < 1 a singular value within that of the
    threshold τ of `shrink` may go to either side of the jump.  Gradients with respect to blocks and steps are finite for repeated
    and for zero singular values too, and right away from τ.

    On the CPU and where no gradient is required, m×n blocks with n ≤ 3 (or their transposes) go through their Gram matrices, all
    in a few array operations.  X = B h(B*B) with h(σ²) = x(σ)/σ, and the closed form of `_gram_3` gives h(B*B + E) with
    ‖E‖ ≤ c ε ‖B‖²_F.  For eigenvectors u of G and v of G + E, u*(h(G) − h(G + E))v = −h[g, g'] u*Ev with the divided difference of h
    at their eigenvalues, so that up to the rounding of the product with B

        ‖X − exact‖ ≤ c ε ‖B‖²_F max_{i,j} σ_i |h[g_i, g_j']|.

    Beyond τ, h is concave in σ and dh/dσ = (2−p)(1−h)/(σ(1 − (1−p)(1−h)/h)) ≤ 2(1−h)/σ.  With s the least singular value above τ
    and t the largest below, the maximum is at most S = max(2(1−h(s))/s, s/(s²−t²)) for p < 1, and S = λ/max(σ_min, τ)² for p = 1, where
    h is continuous.  A block is accepted where S‖B‖²_F ≤ 32 σ₁ (less for m > 100), where no σ² that counts is near rounding and, for p < 1,
    none near τ²; its error is then at most 32c ε ‖B‖ and that of the product.  The others are decomposed.

    c is at most a small multiple of m.  As rounding errors go up and down it was below 1.2, and the error of accepted blocks below
    27 ε ‖B‖, on 6·10⁶ random, graded, clustered and nearly critical blocks with m ≤ 100 and p = 1, 2/3, 1/2, 1/10 (in float32 against
    float64, for the same arithmetic).  Source: derived here.
    """
    if p == 2:
        return blocks / (1 + 2 * steps)[..., None, None]
    differentiable = torch.is_grad_enabled() and (blocks.requires_grad or steps.requires_grad)
    if differentiable or blocks.device.type != "cpu" or min(blocks.shape[-2:]) > 3:
        return _ShrinkSingularValues.apply(blocks, steps, p)
    flat = blocks.detach().resolve_conj().resolve_neg().reshape(-1, *blocks.shape[-2:])
    weights = np.broadcast_to(steps.detach().numpy(), blocks.shape[:-2]).reshape(-1).astype(np.float64)
    shrunk = torch.empty_like(flat)
    accurate = np.empty(len(flat), dtype=np.bool_)
    for start in range(0, len(flat), CHUNK):
        part = slice(start, start + CHUNK)
        accurate[part] = _through_gram(flat.numpy()[part], weights[part], p, shrunk.numpy()[part])
    if not accurate.all():
        rest = torch.from_numpy(~accurate)
        shrunk[rest] = _ShrinkSingularValues.apply(flat[rest], torch.from_numpy(weights)[rest].to(steps.dtype), p)
    return shrunk.reshape(blocks.shape)


class _ShrinkSingularValues(torch.autograd.Function):
    """By a singular value decomposition, with the derivative of the map instead of that of the decomposition, which may not exist."""

    @staticmethod
    def forward(ctx: FunctionCtx, blocks: Tensor, steps: Tensor, p: float) -> Tensor:
        u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
        x = shrink(sigma, steps[..., None], p)
        ctx.save_for_backward(u, sigma, vh, x, steps)
        ctx.p = p  # type: ignore[attr-defined]
        return (u * x[..., None, :]) @ vh

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        u, sigma, vh, x, steps = ctx.saved_tensors  # type: ignore[attr-defined]
        _, pull = derivatives(x, steps[..., None], ctx.p)  # type: ignore[attr-defined]
        left, right = u.mH @ gradient, gradient @ vh.mH
        core = left @ vh.mH
        symmetric, antisymmetric, quotient = _divided_differences(sigma, x, steps[..., None], ctx.p)  # type: ignore[attr-defined]
        inner = symmetric * (core + core.mH) / 2 + antisymmetric * (core - core.mH) / 2
        inside = inner - quotient[..., None] * core - core * quotient[..., None, :]
        # dX = U·inner·V* + U·h·(U*dB)(I − VV*) + (I − UU*)(dB·V)·h·V*, which is its own adjoint.
        by_blocks = u @ (inside @ vh + quotient[..., None] * left) + (right * quotient[..., None, :]) @ vh
        by_steps = (core.diagonal(dim1=-2, dim2=-1).real * pull).sum(-1)
        return by_blocks, by_steps.sum_to_size(steps.shape), None


def _divided_differences(sigma: Tensor, x: Tensor, steps: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""(x_i − x_j)/(σ_i − σ_j), (x_i + x_j)/(σ_i + σ_j) and x_i/σ_i, continued to equal and to zero singular values.

    Subtracting σ = x + λp x^{p−1} at i and j gives (σ_i − σ_j)/(x_i − x_j) = 1 + λp x_j^{p−2} ψ(ln(x_i/x_j)) with
    ψ(t) = (e^{(p−1)t} − 1)/(e^t − 1): no cancellation, however close the two are.
    """
    identity = (steps == 0).to(sigma.dtype)
    alive = x > 0
    safe = torch.where(alive, x, 1.0)
    # Singular values descend, so that rows (j) below the diagonal have the smaller ones; the matrix is symmetric.
    large, small = torch.maximum(safe[..., :, None], safe[..., None, :]), torch.minimum(safe[..., :, None], safe[..., None, :])
    t = (large / small).log()
    psi = torch.where(t > 0, torch.expm1((p - 1) * t) / torch.expm1(torch.where(t > 0, t, 1.0)), p - 1)
    both = 1 / (1 + steps[..., None] * p * small ** (p - 1) / small * psi)
    gap = (sigma[..., :, None] - sigma[..., None, :]).abs()
    one = (x[..., :, None] - x[..., None, :]).abs() / torch.where(gap > 0, gap, 1.0)
    pair = alive[..., :, None] & alive[..., None, :]
    symmetric = torch.where(pair, both, torch.where(gap > 0, one, identity[..., None]))
    quotient = torch.where(sigma > 0, x / torch.where(sigma > 0, sigma, 1.0), identity)
    total = sigma[..., :, None] + sigma[..., None, :]
    mean = (x[..., :, None] + x[..., None, :]) / torch.where(total > 0, total, 1.0)
    return symmetric, torch.where(total > 0, mean, identity[..., None]), quotient


# --- Through Gram matrices ---------------------------------------------------------------------------------------------


def _through_gram(blocks: Array, steps: Array, p: float, out: Array) -> NDArray[np.bool_]:
    """Write the minimisers for blocks `(N, K, C)`, min(K, C) ≤ 3, into `out`; True for those that `shrink_singular_values` accepts."""
    tall = blocks.shape[1] >= blocks.shape[2]
    # Columns first and blocks last: each entry of the Gram matrices, and all that follows, is one operation on long arrays.
    order = (2, 1, 0) if tall else (1, 2, 0)
    columns = np.ascontiguousarray(blocks.transpose(order), dtype=np.result_type(blocks.dtype, np.float64))
    n, m = columns.shape[:2]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such blocks are not accepted
        g, function = (_gram_1, _gram_2, _gram_3)[n - 1](columns)
        sigma = np.sqrt(np.maximum(g, 0.0))
        x, border = (np.maximum(sigma - steps, 0.0), steps) if p == 1 else minimiser(np, sigma, steps, p)
        h = np.where(sigma > 0, x / sigma, 0.0)
        factor, shrunk = function(h), out.transpose(order)
        for j in range(n):
            column = columns[0] * factor[0, j]
            for i in range(1, n):
                column += columns[i] * factor[i, j]
            shrunk[j] = column
        limit = AMPLIFICATION * min(1.0, 10 / np.sqrt(m)) * np.finfo(out.dtype).eps / np.finfo(np.float64).eps
        return _is_accurate(g, h, border, p, limit)


def _is_accurate(g: Array, h: Array, border: Array, p: float, limit: float) -> NDArray[np.bool_]:
    """The acceptance of `shrink_singular_values` for eigenvalues g `(n, N)` of Gram matrices, h = x/σ and thresholds τ."""
    trace, square = g.sum(0), border**2
    noise = ROUNDING * trace + UNDERFLOW
    if p == 1:
        least = np.maximum(g.min(0), square)
        clear, slope = least >= 16 * noise, border / least
    else:
        alive = h > 0
        above, below = np.where(alive, g, np.inf).min(0), np.where(alive, -np.inf, g).max(0)
        s = np.sqrt(above)
        clear = (above >= 16 * noise) & (np.abs(g - square).min(0) >= 4 * noise)
        slope = np.maximum(2 * (1 - np.where(alive, h, 1.0).min(0)) / s, s / (above - below))
        slope = np.where(alive.any(0), slope, 0.0)
    accepted: NDArray[np.bool_] = clear & (slope * trace <= limit * np.sqrt(g.max(0)))
    return accepted


def _gram_1(columns: Array) -> tuple[Array, Function]:
    """The eigenvalue of 1×1 Gram matrices `(1, N)`, and h ↦ h(G) `(1, 1, N)`; the same below for n = 2, 3."""
    return _squares(columns), lambda h: h[None]


def _gram_2(columns: Array) -> tuple[Array, Function]:
    """G = q(1 + E) with eigenvalues q(1 ± d), d² = ‖E‖²_F/2 without cancellation, has h(G) = mean of h + (half difference of h)/d · E."""
    diagonal, off = _squares(columns), (columns[0].conj() * columns[1]).sum(0)
    q, k, off = _relative(diagonal, off)
    k = (k[0] - k[1]) / 2
    d = np.sqrt(k * k + _square(off))

    def function(h: Array) -> Array:
        mean, slope = (h[0] + h[1]) / 2, _slope(h[0] - h[1], d)
        return np.array([[mean + slope * k, slope * off], [slope * off.conj(), mean - slope * k]])

    return np.stack([q + q * d, q - q * d]), function


def _gram_3(columns: Array) -> tuple[Array, Function]:
    r"""In units of qs about its mean q, G is K with trace 0 and ‖K‖²_F = 6, and its eigenvalues solve l³ − 3l = det K.

    The one farther from the other two, l = ±2cos(arccos(|det K|/2)/3), is a smooth function of K, and adj(K − l)/(3l² − 3) projects
    on its eigenvector v.  E = K + (l/2)(1 − 3vv*) is 0 on v and has the eigenvalues ±d on the other two directions; like all
    entries, d² = ‖E‖²_F/2 is accurate to rounding, equal eigenvalues or not.  With h₁ at l, h₂, h₃ at −l/2 ± d and
    m = (h₂ + h₃)/2, h(G) = m + (h₁ − m)vv* + (h₂ − h₃)/(2d)·E.

    A Hermitian H is kept as its diagonal and H_{12}, H_{20}, H_{01}, both `(3, N)`, so that formulas are the same for all indices.
    """
    diagonal = _squares(columns)
    off = np.stack([(columns[j].conj() * columns[k]).sum(0) for j, k in ((1, 2), (2, 0), (0, 1))])
    q, k, off = _relative(diagonal, off)
    s = np.sqrt(_frobenius(k, off) / 6)
    unit = 1 / np.where(s > 0, s, 1.0)
    k, off = k * unit, off * unit
    lone, v = _lone_eigenvector(k, off)
    following, last = _others(v)
    weight, mixed = _square(v), following * last.conj()
    turn = 1.5 * lone
    e, f = _project(k + lone / 2 - turn * weight, off - turn * mixed, v)
    d = np.sqrt(_frobenius(e, f) / 2)

    def function(h: Array) -> Array:
        mean = (h[1] + h[2]) / 2
        rise, slope = h[0] - mean, _slope(h[1] - h[2], d)
        return _hermitian(mean + rise * weight + slope * e, rise * mixed + slope * f)

    return np.stack([q + q * s * lone, q - q * s * (lone / 2 - d), q - q * s * (lone / 2 + d)]), function


def _relative(diagonal: Array, off: Array) -> tuple[Array, Array, Array]:
    """The mean q of the eigenvalues, and G/q − 1 as its diagonal and the rest, of which squares neither over- nor underflow."""
    q = diagonal.mean(0)
    unit = 1 / np.where(q > 0, q, 1.0)
    return q, diagonal * unit - 1, off * unit


def _lone_eigenvector(k: Array, off: Array) -> tuple[Array, Array]:
    """The eigenvalue farthest from the others, `(N,)`, and its unit eigenvector, `(3, N)`, of matrices with trace 0 and norm √6."""
    squares, others = _square(off), np.multiply(*_others(off))
    determinant = k.prod(0) + 2 * (off[0] * others[0]).real - (k * squares).sum(0)
    lone = np.copysign(2 * np.cos(np.arccos(np.minimum(np.abs(determinant) / 2, 1.0)) / 3), determinant)
    shifted = k - lone
    minors = np.multiply(*_others(shifted)) - squares
    adjugate = _hermitian(minors, others.conj() - shifted * off)
    v = adjugate[:, np.abs(minors).argmax(0), np.arange(len(lone))]  # of a matrix of rank one, the largest column
    return lone, v / np.sqrt(_square(v).sum(0))


def _project(e: Array, f: Array, v: Array) -> tuple[Array, Array]:
    """(1 − vv*)E(1 − vv*): what rounding left of E on v would be multiplied by the largest singular value and the slope at the least."""
    (v_j, v_k), (f_j, f_k), conjugate = _others(v), _others(f), v.conj()
    w = e * v + f_k * v_j + f_j.conj() * v_k
    u = w - (conjugate * w).real.sum(0) / 2 * v
    u_j, u_k = _others(u)
    return e - 2 * (u * conjugate).real, f - u_j * v_k.conj() - v_j * u_k.conj()


def _others(a: Array) -> tuple[Array, Array]:
    """Rows j = i + 1 and k = i + 2 modulo 3 in the place of row i."""
    cycle = a[[1, 2, 0, 1]]
    return cycle[:3], cycle[1:]


def _hermitian(diagonal: Array, off: Array) -> Array:
    """The full matrices `(3, 3, N)`."""
    full = np.empty((3, *off.shape), off.dtype)
    conjugate = off.conj()
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        full[i, i], full[j, k], full[k, j] = diagonal[i], off[i], conjugate[i]
    return full


def _slope(difference: Array, d: Array) -> Array:
    """difference/(2d), or 0 at d = 0, where it stands before a matrix of norm d."""
    slope: Array = np.where(d > 0, difference / (2 * d), 0.0)
    return slope


def _frobenius(diagonal: Array, off: Array) -> Array:
    """Squared norms of Hermitian matrices."""
    norms: Array = (diagonal * diagonal + 2 * _square(off)).sum(0)
    return norms


def _squares(columns: Array) -> Array:
    """Squared norms `(n, N)` of columns `(n, m, N)`."""
    parts = columns.view(np.float64)  # of complex numbers, real and imaginary parts in turn
    sums = np.einsum("imn,imn->in", parts, parts)
    return sums[:, ::2] + sums[:, 1::2] if np.iscomplexobj(columns) else sums


def _square(z: Array) -> Array:
    """|z|² of real or complex numbers."""
    squared: Array = z.real**2 + z.imag**2 if np.iscomplexobj(z) else z**2
    return squared
