r"""The programme of `linconv.solvers.central_path` for hundreds of rows, by a method of multipliers in a factor of P.

Φ_u* P Φ_u is the discrete Fourier transform of the sums of P along lags t − s (C×C each), and Γ is constant along lags up to
√(m_s m_t): either costs n² operations and one FFT of the grid, whatever the number of frequencies.  What is left is the
product WᵀW, where Newton's method has a Hessian with n⁴ entries.

With roots a_u = V_u at L = 2, |V_u|^{2/L} at C = 1, dual points are Λ_u, and Γ = (1/D) Σ_u Re Φ_u |Λ_u|^L Φ_u*.  From Λ the method
minimises over the square W, for P = WᵀW,

    (L−1) ‖W‖² + Σ_u ω_u tr (a_u + εΛ_u)^L (P̂_u + εI)^{1−L},   which leads to   Λ⁺_u = (a_u + εΛ_u)(P̂_u + εI)^{−1}.

Its dual is that of the programme less ε times a distance of the new dual point from Λ: ‖Λ⁺ − Λ‖² at L = 2, the proximal
point method, and a Bregman distance otherwise.  So a minimum never lowers the dual value, Λ⁺ = Λ only at the optimum, and ε need
not vanish.  Without Λ it must: the minima are then of condition 1/ε, and where P̂_u is singular at the optimum, Λ_u is a limit
0/0 of V_u P̂_u^{−1}.  Square W have no local minima besides the global one.

Source: derived here; the factor is Burer and Monteiro's (Math. Program. 95, 2003), proximal multipliers are Rockafellar's
(Math. Oper. Res. 1, 1976).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.linalg import eigvalsh
from scipy.optimize import minimize
from scipy.sparse import csr_array

from linconv.solvers.central_path import adjoint

WIDTH = 1e-7  # relative width of the bracket at which the method ends
EVALUATIONS = 6000  # of the whole method
STEPS_BETWEEN_BOUNDS = 10  # bounds cost an eigenvalue of Γ and an energy for each floor, about as much as two steps
MEMORY = 30  # steps that L-BFGS remembers
PROXIMITY, SHORTER, CLOSEST = 0.3, 0.5, 1e-7  # ε as a part of the mean of P̂: at first, from one Λ to the next, at last
INEXACT = 0.5  # gap of a minimisation, as a part of the bracket's width, with which Λ changes
FLOORS = tuple(10.0**-e for e in range(4, 11))  # δ of P + δI, as a part of tr P over n: P may be singular, the upper bound may not


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


@dataclass
class _Bracket:
    """A programme, and the best point on either side of its minimum that was seen; `evaluations` counts gradients."""

    roots: Complex[np.ndarray, "half K C"]
    lags: Lags
    weights: Float[np.ndarray, " half"]
    depth: int
    gram: Float[np.ndarray, "n n"]
    dual: Complex[np.ndarray, "half K C"]
    lower: float = 0.0
    upper: float = math.inf
    evaluations: int = 0

    @property
    def width(self) -> float:
        return self.upper / self.lower - 1 if self.lower else math.inf

    def update(self, gram: Float[np.ndarray, "n n"], dual: Complex[np.ndarray, "half K C"], largest: float) -> None:
        """Bounds of P, made regular by the best of the floors, and of Λ with λ_max(Γ) = largest."""
        value = float(self.weights @ (self.roots.conj() * dual ** (self.depth - 1)).real.sum((1, 2)))
        lower = self.depth * value * largest ** (1 / self.depth - 1)
        for floor in FLOORS:
            regular = gram + floor * np.trace(gram) / len(gram) * np.eye(len(gram))
            try:
                energy = _evaluate(regular, self.roots, self.lags, self.weights, self.depth)[0]
            except np.linalg.LinAlgError:  # lost in rounding, as lower floors are
                break
            cost = self.depth * float(np.trace(regular)) ** (1 - 1 / self.depth) * energy ** (1 / self.depth)  # of the best multiple
            if cost < self.upper:
                self.upper, self.gram = cost, regular
        if lower > self.lower:
            self.lower, self.dual = lower, dual


def factored_descent(
    roots: Complex[np.ndarray, "half K C"], lags: Lags, weights: Float[np.ndarray, " half"], depth: int
) -> tuple[Float[np.ndarray, "n n"], Complex[np.ndarray, "half K C"]]:
    """W with P = WᵀW near the minimum of (L−1) tr P + Σ_u weights_u tr V_u P̂_u^{1−L} V_u*, P̂ = Φ*PΦ, and Λ near the dual maximum.

    For L = 2 with roots V_u, or for C = 1 and any L with nonnegative roots |V_u|^{2/L}.  The minimum lies between
    L Σ_u weights_u Re⟨a_u, Λ_u^{L−1}⟩ λ_max(Γ)^{−(L−1)/L} and L (tr P)^{(L−1)/L} (Σ_u weights_u tr V_u P̂_u^{1−L} V_u*)^{1/L},
    whatever W and Λ are; those returned have the best bounds seen, after at most about `EVALUATIONS` evaluations of a gradient.
    """
    eye = np.eye(lags.taps * roots.shape[2])
    bracket = _Bracket(roots, lags, weights, depth, eye, roots)
    multiple = (_evaluate(eye, roots, lags, weights, depth)[0] / len(eye)) ** (1 / depth)  # the best one of the identity
    factor, dual, proximity = math.sqrt(multiple) * eye, np.zeros_like(roots), PROXIMITY
    while bracket.width > WIDTH and bracket.evaluations < EVALUATIONS:
        shift = proximity * lags.taps * float((factor**2).sum()) / len(eye)
        factor, dual = _descend(bracket, factor, roots + shift * dual, shift)
        proximity = max(SHORTER * proximity, CLOSEST)
    return np.linalg.cholesky(bracket.gram).T, bracket.dual


def _descend(
    bracket: _Bracket, factor: Float[np.ndarray, "n n"], roots: Complex[np.ndarray, "half K C"], shift: float
) -> tuple[Float[np.ndarray, "n n"], Complex[np.ndarray, "half K C"]]:
    """W after L-BFGS on (L−1)‖W‖² + Σ ω tr a_u^L (P̂_u + shift·I)^{1−L} for the given roots a, and its Λ.

    It ends when the gap to its own dual value, that of Λ scaled to Γ ⪯ I, is small beside the width of the bracket.
    """
    shape, depth, lags, weights = factor.shape, bracket.depth, bracket.lags, bracket.weights
    dual, taken = roots, 0

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        bracket.evaluations += 1
        w = x.reshape(shape)
        try:
            energy, point = _evaluate(w.T @ w, roots, lags, weights, depth, shift)
        except np.linalg.LinAlgError:  # a trial so long that ε is lost in rounding: there tr P alone is far above the last value
            return (depth - 1) * float(x @ x), 2 * (depth - 1) * x
        return (depth - 1) * float(x @ x) + energy, 2 * (depth - 1) * (x - (w @ _gamma(point, lags, depth)).ravel())

    def look(x: np.ndarray) -> bool:
        nonlocal dual
        gram = x.reshape(shape).T @ x.reshape(shape)
        energy, dual = _evaluate(gram, roots, lags, weights, depth, shift)
        largest = float(eigvalsh(_gamma(dual, lags, depth), subset_by_index=[len(gram) - 1, len(gram) - 1])[0])
        bracket.update(gram, dual, largest)
        scale = min(1.0, largest ** (-1 / depth))
        mass = float(weights @ (np.abs(dual) ** depth).sum((1, 2)))
        value = (depth - 1) * float(x @ x) + energy
        bound = depth * scale ** (depth - 1) * energy - (depth - 1) * shift * scale**depth * mass
        return bracket.width <= WIDTH or value - bound <= INEXACT * bracket.width * value

    def step(xk: np.ndarray) -> None:
        nonlocal taken
        taken += 1
        if taken % STEPS_BETWEEN_BOUNDS == 0 and look(xk):
            raise StopIteration

    left = max(EVALUATIONS - bracket.evaluations, 1)
    options: Any = {"maxiter": left, "maxfun": left, "maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0}
    x = minimize(objective, factor.ravel(), method="L-BFGS-B", jac=True, callback=step, options=options).x
    look(x)
    return x.reshape(shape), dual


def _evaluate(
    gram: Float[np.ndarray, "n n"],
    roots: Complex[np.ndarray, "half K C"],
    lags: Lags,
    weights: Float[np.ndarray, " half"],
    depth: int,
    shift: float = 0.0,
) -> tuple[float, Complex[np.ndarray, "half K C"]]:
    """Σ_u weights_u Re⟨a_u, Λ_u^{L−1}⟩ and Λ_u = a_u (P̂_u + shift·I)^{−1}; the gradient in P is −(L−1) Γ."""
    inverse = np.linalg.inv(np.linalg.cholesky(lags.spectrum(gram) + shift * np.eye(roots.shape[2])))
    dual = roots @ adjoint(inverse) @ inverse
    return float(weights @ (roots.conj() * dual ** (depth - 1)).real.sum((1, 2))), dual


def _gamma(dual: Complex[np.ndarray, "half K C"], lags: Lags, depth: int) -> Float[np.ndarray, "n n"]:
    """Γ = (1/D) Σ_u Re Φ_u |Λ_u|^L Φ_u*; where L ≠ 2, Λ_u is a nonnegative number."""
    half = dual ** (depth / 2)
    return lags.gram(adjoint(half) @ half)
