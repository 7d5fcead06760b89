r"""The programme of `linconv.solvers.central_path` for hundreds of rows, by descent in a factor of P.

Φ_u* P Φ_u is the discrete Fourier transform of the sums of P along lags t − s (C×C each), and Γ is constant along lags up to
√(m_s m_t): either costs n² operations and one FFT of the grid, whatever the number of frequencies.  What is left is the
product WᵀW, where Newton's method has a Hessian with n⁴ entries.

The descent minimises over the square W with P = WᵀW + δI: over P ⪰ δI, that is.  Its minimum has Γ ⪯ I and (P − δI)(I − Γ) = 0,
so that Γ proves a lower bound at most (L−1) δ tr (I − Γ) ≤ (L−1) δn below it.  δ > 0 keeps Φ_u* P Φ_u regular, δ → 0 in steps.
W(I − Γ) = 0 where the rank of P is smaller than n does no harm: rows of W that vanish have curvature I − Γ, which is none of 1/δ.

Source: derived here; descent in a square factor is Burer and Monteiro's (Math. Program. 95, 2003).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.linalg import eigvalsh
from scipy.optimize import minimize
from scipy.sparse import csr_array

from linconv.solvers.central_path import adjoint

FLOORS = tuple(10.0**-e for e in range(2, 9))  # δ, as a part of tr P over n
WIDTH = 1e-7  # relative width of the bracket at which the descent ends
STEPS = 2000  # of the whole descent
STEPS_BETWEEN_BOUNDS = 10  # a bound costs an eigenvalue of Γ, about as much as a step
MEMORY = 30  # steps that L-BFGS remembers

Evaluation = Callable[[np.ndarray], tuple[float, np.ndarray]]  # P ↦ tr PΓ and Γ


@dataclass(frozen=True)
class Lags:
    """The maps P ↦ Φ_u* P Φ_u and X_u ↦ (1/D) Σ_u Re Φ_u X_u Φ_u*, for n = T·C rows in the order (s, c)."""

    grid: tuple[int, ...]
    sums: csr_array  # (D, T²): Σ over (s, t) of one lag t − s, with √(m_s m_t)

    @classmethod
    def of(cls, grid: tuple[int, ...], sites: tuple[int, ...], copies: Int[np.ndarray, " T"]) -> "Lags":
        """Taps at the T positions of the box `sites`, of which s stands for copies[s] taps."""
        positions = np.indices(sites).reshape(len(grid), -1)
        lag = np.ravel_multi_index([(p - p[:, None]) % n for p, n in zip(positions, grid, strict=True)], grid).ravel()
        factors = np.sqrt(np.outer(copies, copies)).ravel()
        return cls(grid, csr_array((factors, (lag, np.arange(lag.size))), shape=(math.prod(grid), lag.size)))

    @property
    def taps(self) -> int:
        return math.isqrt(self.sums.shape[1])

    def spectrum(self, gram: Float[np.ndarray, "n n"]) -> Complex[np.ndarray, "half C C"]:
        """P̂_u = Φ_u* P Φ_u over half the spectrum."""
        channels = len(gram) // self.taps
        pairs = gram.reshape(self.taps, channels, self.taps, channels).swapaxes(1, 2).reshape(self.taps**2, -1)
        lags = (self.sums @ pairs).reshape(*self.grid, channels, channels)
        return np.fft.rfftn(lags, axes=tuple(range(len(self.grid)))).reshape(-1, channels, channels)

    def gram(self, spectrum: Complex[np.ndarray, "half C C"]) -> Float[np.ndarray, "n n"]:
        """(1/D) Σ_u Re Φ_u X_u Φ_u*, from half the spectrum."""
        channels, dims = spectrum.shape[-1], len(self.grid)
        half = (*self.grid[:-1], self.grid[-1] // 2 + 1)
        lags = np.fft.irfftn(spectrum.reshape(*half, channels, channels), self.grid, axes=tuple(range(dims)))
        pairs = (self.sums.T @ lags.reshape(-1, channels**2)).reshape(self.taps, self.taps, channels, channels)
        return pairs.swapaxes(1, 2).reshape(self.taps * channels, -1)


def factored_descent(
    blocks: Complex[np.ndarray, "half K C"], lags: Lags, weights: Float[np.ndarray, " half"], depth: int
) -> Float[np.ndarray, "n n"]:
    """W with P = WᵀW near the minimum of (L−1) tr P + Σ_u weights_u tr V_u P̂_u^{1−L} V_u*, P̂ = Φ*PΦ, for L = 2 or C = 1.

    With λ = λ_max(Γ) multiples of P and of the dual point bracket the minimum, with quotient (λ tr P / tr PΓ)^{(L−1)/L}.
    Returns the best of the points where that was computed, after at most `STEPS` steps.
    """
    evaluate = partial(_evaluate, blocks=blocks, lags=lags, weights=weights, depth=depth)
    eye = np.eye(lags.taps * blocks.shape[2])
    multiple = (evaluate(eye)[0] / len(eye)) ** (1 / depth)  # the best multiple of the identity
    factor, best, least, steps = math.sqrt(multiple) * eye, multiple * eye, math.inf, STEPS
    for floor in FLOORS:
        factor, (quotient, gram), taken = _descend(evaluate, factor, floor * float(np.trace(best)) / len(eye), depth, steps)
        if quotient < least:
            best, least = gram, quotient
        steps -= taken
        if least <= 1 + WIDTH or steps <= 0:
            break
    return np.linalg.cholesky(best).T


def _descend(
    evaluate: Evaluation, factor: Float[np.ndarray, "n n"], shift: float, depth: int, steps: int
) -> tuple[Float[np.ndarray, "n n"], tuple[float, Float[np.ndarray, "n n"]], int]:
    """W after L-BFGS at P = WᵀW + shift·I, the least quotient of the bounds with its P, and the number of steps taken.

    It ends at twice the quotient that the minimum over P ⪰ shift·I can have.
    """
    shape, eye = factor.shape, np.eye(len(factor))
    best, taken = (math.inf, eye), 0

    def gram(x: np.ndarray) -> np.ndarray:
        return x.reshape(shape).T @ x.reshape(shape) + shift * eye

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            energy, gamma = evaluate(gram(x))
        except np.linalg.LinAlgError:  # a trial so long that δ is lost in rounding: there tr P alone is far above the last value
            energy, gamma = 0.0, np.zeros(shape)
        return (depth - 1) * float(x @ x) + energy, 2 * (depth - 1) * (x - (x.reshape(shape) @ gamma).ravel())

    def look(x: np.ndarray) -> float:
        nonlocal best
        point = gram(x)
        energy, gamma = evaluate(point)
        largest = eigvalsh(gamma, subset_by_index=[len(eye) - 1, len(eye) - 1])[0]
        quotient = float((largest * np.trace(point) / energy) ** (1 - 1 / depth))
        if quotient < best[0]:
            best = quotient, point
        return quotient - 2 * shift * len(eye) / float(np.trace(point))

    def step(xk: np.ndarray) -> None:
        nonlocal taken
        taken += 1
        if taken % STEPS_BETWEEN_BOUNDS == 0 and look(xk) <= 1 + WIDTH / 2:
            raise StopIteration

    options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0}
    factor = minimize(objective, factor.ravel(), method="L-BFGS-B", jac=True, callback=step, options=options).x
    look(factor)
    return factor.reshape(shape), best, taken


def _evaluate(
    gram: Float[np.ndarray, "n n"], blocks: Complex[np.ndarray, "half K C"], lags: Lags, weights: Float[np.ndarray, " half"], depth: int
) -> tuple[float, Float[np.ndarray, "n n"]]:
    """tr PΓ = Σ_u weights_u tr V_u P̂_u^{1−L} V_u*, and Γ, minus its gradient over L − 1: that of Λ_u = V_u P̂_u^{−L/2}."""
    inverse = np.linalg.inv(np.linalg.cholesky(lags.spectrum(gram)))
    energy = blocks @ np.linalg.matrix_power(adjoint(inverse), depth - 1)
    dual = energy @ inverse
    return float(weights @ (np.abs(energy) ** 2).sum((1, 2))), lags.gram(adjoint(dual) @ dual)
