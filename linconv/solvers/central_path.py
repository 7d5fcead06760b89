r"""The convex programme behind restricted kernels, by a barrier method whose iterates carry their own dual certificate.

    minimise over P ⪰ 0:   (L−1) tr P + Σ_u ω_u tr V_u P̂_u^{1−L} V_u*,   P̂_u = Φ_u* P Φ_u  (C×C),  for L = 2 or C = 1.

P is small (taps times channels) however large K and the grid are; semidefinite solvers spend their time on cones that a
matrix function replaces here.  Derivation and bounds: `linconv.solvers.restricted`.
"""

import math
from functools import partial

import numpy as np
from jaxtyping import Complex, Float

BARRIER_GAP = 1e-10  # relative duality gap at the end of the path
NEWTON_STEPS = 50
SHORTEST_STEP = 1e-8  # of the backtracking; at the centre whole steps are taken


def central_path(
    roots: Complex[np.ndarray, "half K C"], frames: Complex[np.ndarray, "half rows C"], weights: Float[np.ndarray, " half"], depth: int
) -> tuple[Float[np.ndarray, "rows rows"], Complex[np.ndarray, "half K C"]]:
    """W with P = WᵀW near the minimum of (L−1) tr P + Σ_u weights_u tr V_u P̂_u^{1−L} V_u*, P̂ = Φ*PΦ, and Λ near the dual maximum.

    For L = 2 with roots V_u, or for C = 1 and any L with nonnegative roots |V_u|^{2/L}.  Newton's method on that minus
    μ log det P, while μ → 0.  At the end of the path Λ_u = a_u P̂_u^{−1} has I − Γ = μP^{−1}/(L−1), so that it is feasible, with a
    gap of μ times the number of rows.
    """
    blocks, size = roots ** (depth / 2), frames.shape[1]
    evaluate = partial(_evaluate, blocks=blocks, frames=frames, weights=weights, depth=depth)

    def centre(factor: np.ndarray, mu: float, enough: float) -> np.ndarray:
        """Newton's method with backtracking at one μ, in the coordinate Δ of P = Wᵀ(I + Δ)W."""
        value, ortho, energy = evaluate(factor)
        for _ in range(NEWTON_STEPS):
            step, decrement = _newton_step(factor, ortho, energy, weights, mu, depth)
            if decrement <= enough:
                return factor
            eigenvalues, vectors = np.linalg.eigh(step)
            length = min(1.0, -0.9 / min(eigenvalues[0], -0.1))
            while length > SHORTEST_STEP:
                growth = 1 + length * eigenvalues
                trial = (vectors * np.sqrt(growth)) @ vectors.T @ factor
                found, ortho, energy = evaluate(trial)
                # Differences below the rounding of the value cannot be told from progress.
                if found - value - mu * np.log(growth).sum() <= 1e-14 * value - 0.1 * length * decrement:
                    break
                length /= 2
            else:
                return factor  # rounding hides further progress; bounds are recomputed from whatever point this is
            factor, value = trial, found
        return factor

    factor = np.eye(size)  # times the best multiple
    factor *= ((evaluate(factor)[0] - (depth - 1) * size) / size) ** (1 / (2 * depth))
    value = evaluate(factor)[0]
    mu = value / size
    while mu * size > BARRIER_GAP * value:
        factor, mu = centre(factor, mu, 0.1 * mu), 0.1 * mu
        value = evaluate(factor)[0]
    factor = centre(factor, mu, 1e-22 * value)
    inverse = np.linalg.inv(np.linalg.qr(factor @ frames, mode="r"))
    return factor, roots @ inverse @ adjoint(inverse)


def dual_bound(
    roots: Complex[np.ndarray, "half K C"],
    dual: Complex[np.ndarray, "half K C"],
    frames: Complex[np.ndarray, "half rows C"],
    weights: Float[np.ndarray, " half"],
    depth: int,
) -> float:
    """The lower bound L Σ_u weights_u Re⟨a_u, Λ_u^{L−1}⟩ / λ_max(Γ)^{(L−1)/L} of any Λ, roots a as in `central_path`.

    Γ = Σ_u weights_u Re Φ_u |Λ_u|^L Φ_u* is computed from the frames; where L ≠ 2, Λ_u is a nonnegative number.
    """
    spread = (np.sqrt(weights)[:, None, None] * dual ** (depth / 2) @ adjoint(frames)).reshape(-1, frames.shape[1])
    gamma = spread.real.T @ spread.real + spread.imag.T @ spread.imag
    value = weights @ (roots.conj() * dual ** (depth - 1)).real.sum((1, 2))
    return float(depth * value * np.linalg.eigvalsh(gamma)[-1] ** (1 / depth - 1))


def _evaluate(
    factor: Float[np.ndarray, "n n"],
    blocks: Complex[np.ndarray, "half K C"],
    frames: Complex[np.ndarray, "half n C"],
    weights: Float[np.ndarray, " half"],
    depth: int,
) -> tuple[float, Complex[np.ndarray, "half n C"], Complex[np.ndarray, "half K n"]]:
    """The value, and with WΦ_u = O_u R_u the orthonormal O_u and E_u = √(L−1) V_u R_u^{1−L} O_u*, the readout at L = 2."""
    ortho, upper = np.linalg.qr(factor @ frames)
    energy = math.sqrt(depth - 1) * blocks @ np.linalg.matrix_power(np.linalg.inv(upper), depth - 1) @ adjoint(ortho)
    value = (depth - 1) * (factor**2).sum() + weights @ (np.abs(energy) ** 2).sum((1, 2)) / (depth - 1)
    return float(value), ortho, energy


def _newton_step(
    factor: Float[np.ndarray, "n n"],
    ortho: Complex[np.ndarray, "half n C"],
    energy: Complex[np.ndarray, "half K n"],
    weights: Float[np.ndarray, " half"],
    mu: float,
    depth: int,
) -> tuple[Float[np.ndarray, "n n"], float]:
    """Minus the inverse Hessian Δ ↦ L Σ Re E*E Δ OO* + μΔ times the gradient (L−1)WWᵀ − Σ Re E*E − μI, and the squared decrement."""
    size = len(factor)
    pull, projector = adjoint(energy) @ energy, ortho @ adjoint(ortho)
    gradient = (depth - 1) * factor @ factor.T - np.tensordot(weights, pull.real, 1) - mu * np.eye(size)
    left, right = (weights[:, None] * pull.reshape(-1, size**2), projector.reshape(-1, size**2))
    product = (left.real.T @ right.real - left.imag.T @ right.imag).reshape([size] * 4)  # tr E*E Δ OO* Δ' = Σ (E*E)_ab Δ_bc (OO*)_cd Δ'_da
    hessian = depth * product.transpose(1, 2, 3, 0).reshape(size**2, size**2)
    i, j = np.triu_indices(size)
    ij, ji, norm = i * size + j, j * size + i, np.where(i == j, 0.5, math.sqrt(0.5))  # orthonormal basis of symmetric matrices
    hessian = (hessian[ij] + hessian[ji]) * norm[:, None]
    hessian = (hessian[:, ij] + hessian[:, ji]) * norm
    slope = 2 * norm * gradient[i, j]
    solution = -np.linalg.solve((hessian + hessian.T) / 2 + mu * np.eye(len(i)), slope)
    step = np.zeros((size, size))
    step[i, j] = norm * solution
    return step + step.T, float(-slope @ solution)


def adjoint(matrices: Complex[np.ndarray, "*batch a b"]) -> Complex[np.ndarray, "*batch b a"]:
    return matrices.conj().swapaxes(-1, -2)
