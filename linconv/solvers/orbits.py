r"""The data term in coordinates of one frequency of each pair ±u: what lower bounds are computed with.

A real predictor has conjugate blocks at u and −u, so that one block of each pair tells all; m_u = 2 says that it stands for two,
and m_u = 1 where u = −u.  The real vector of √m_u (Re B_u, Im B_u) has the norm of the predictor.  NumPy: on small arrays its
calls cost a third of torch's, and branch and bound makes millions of them.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from scipy.linalg import LinAlgError, cholesky, eigh
from torch import Tensor

from linconv.solvers.cells import Blocks
from linconv.solvers.problem import Problem
from linconv.spectrum import half_pairs

EPS = float(np.finfo(np.float64).eps)
MAX_DIMENSION = 2048  # up to which second moments are decomposed
MAX_BARRIER = 512  # and up to which a semidefinite programme is solved; beyond, s is a multiple of the diagonal
NEWTON_STEPS = 40


@dataclass(frozen=True)
class Orbits:
    """`index`, positions in the half spectrum; `mult`, m_u; `features`, f(x_n) = ⟨coordinates, features_n⟩; for squared error `cross`
    and, where that is the cheaper way, `gram`: data term = constant − ⟨cross, c⟩ + ½⟨c, gram c⟩ for each output's coordinates c."""

    problem: Problem
    index: Int[np.ndarray, " O"]
    mult: Float[np.ndarray, " O"]
    features: Float[np.ndarray, "N n"]
    cross: Float[np.ndarray, "K n"]
    gram: Float[np.ndarray, "n n"] | None
    constant: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Orbits, outputs, channels."""
        return len(self.index), self.problem.y.shape[1], self.problem.x.shape[1]

    def coordinates(self, blocks: Blocks) -> Float[np.ndarray, "K n"]:
        scaled = np.ascontiguousarray((blocks * np.sqrt(self.mult)[:, None, None]).transpose(1, 0, 2))
        return scaled.view(np.float64).reshape(len(scaled), -1)

    def blocks(self, coordinates: Float[np.ndarray, "K n"]) -> Blocks:
        orbits, outputs, channels = self.shape
        values = np.ascontiguousarray(coordinates).view(np.complex128).reshape(outputs, orbits, channels)
        return values.transpose(1, 0, 2) / np.sqrt(self.mult)[:, None, None]

    def linearise(self, blocks: Blocks) -> tuple[float, Blocks, float, float]:
        """Value and gradient of the data term, ⟨gradient, blocks⟩, and the size of what was added up, for a bound on rounding."""
        c = self.coordinates(blocks)
        if self.problem.quadratic:
            hc = c @ self.gram if self.gram is not None else (c @ self.features.T) @ self.features / len(self.features)
            linear, square = float(np.vdot(self.cross, c)), float(np.vdot(c, hc))
            gradient = hc - self.cross
            value, size = self.constant - linear + square / 2, self.constant + abs(linear) + square
        else:
            y, f = self.problem.y.cpu(), torch.from_numpy(self.features @ c.T)
            value = self.problem.constant + float(self.problem.loss.value(f, y)) / len(f)
            gradient = (self.problem.loss.gradient(f, y).numpy().T @ self.features) / len(f)
            size = abs(value) + float(np.abs(gradient * c).sum())
        return value, self.blocks(gradient), float(np.vdot(gradient, c)), size

    @cached_property
    def sizes(self) -> tuple[float, float]:
        """The roots of the mean squares of the features and of the targets of an image; for other losses slopes are at most 1."""
        y = self.problem.y
        largest = float(y.square().sum()) if self.problem.quadratic else float(y.numel())
        return float(np.linalg.norm(self.features)) / len(self.features) ** 0.5, (largest / len(y)) ** 0.5

    def rounding(self, blocks: Blocks) -> tuple[float, float]:
        """What rounding can hide in the value, and in each block of the gradient, of the data term.

        Features, targets and outputs are sums of up to n numbers, whose errors are taken as 16√n ε times the root mean squares of what is
        multiplied, before anything cancels (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): images may be equal but for their last digit.
        """
        x, y = self.sizes
        reach = x * float(np.linalg.norm(self.coordinates(blocks))) + y
        unit = 16 * sum(self.features.shape) ** 0.5 * EPS
        return unit * reach**2, unit * x * reach

    def restrict(self, kept: Bool[np.ndarray, " O"]) -> "Orbits":
        """The problem with the blocks of all other orbits at 0."""
        wide = np.repeat(kept, 2 * self.shape[2])
        features = self.features[:, wide]
        gram = _gram(features, self.problem) if self.gram is None else np.ascontiguousarray(self.gram[np.ix_(wide, wide)])
        return replace(self, index=self.index[kept], mult=self.mult[kept], features=features, cross=self.cross[:, wide], gram=gram)

    def predictor_blocks(self, blocks: Blocks) -> Complex[Tensor, "F K C"]:
        """Blocks of the half spectrum as solvers store them, 0 at frequencies that are not here."""
        full = torch.zeros_like(self.problem.cross_moment)
        full[torch.from_numpy(self.index)] = torch.from_numpy(np.ascontiguousarray(blocks)).to(full.device)
        return self.problem.symmetric(full)

    def take(self, blocks: Complex[Tensor, "F K C"]) -> Blocks:
        """The blocks of these orbits, the inverse of `predictor_blocks`."""
        return np.ascontiguousarray(blocks.cpu().numpy()[self.index])

    def curvatures(self) -> Float[np.ndarray, " O"]:
        r"""h_u ≥ every second derivative of the data term along t ↦ t·uv* of unit u, v, divided by m_u.

        ‖S_u‖ + ‖P_u‖ for pairs, with P_u = (1/N) Σ x̂_{n,u} x̂_{n,u}ᵀ, the covariance of u and −u; ‖S_u‖ where u = −u.
        """
        orbits, _, channels = self.shape
        pairs = self.features.reshape(len(self.features), orbits, channels, 2) / np.sqrt(self.mult)[None, :, None, None]
        spectra = (pairs[..., 0] - 1j * pairs[..., 1]).transpose(1, 2, 0)
        direct, mirrored = (np.linalg.norm(spectra @ other / len(pairs), 2, axis=(1, 2)) for other in (_dagger(spectra), _turn(spectra)))
        return self.problem.loss.smoothness * (1 + 1e-12) * np.where(self.mult == 2, direct + mirrored, direct)

    def metric(self) -> Float[np.ndarray, " O"]:
        r"""Step denominators M_u with M ⪰ the Hessian of the data term, up to the error of a power iteration."""
        orbits, _, channels = self.shape
        width = 2 * channels
        own = self.features.reshape(-1, orbits, width).transpose(1, 0, 2)
        norms = np.linalg.norm(_turn(own) @ own / len(self.features), 2, axis=(1, 2)) * self.problem.loss.smoothness
        norms = np.maximum(norms, 1e-12 * norms.max() if norms.max() > 0 else 1.0)
        scaled = self.features * np.repeat(norms**-0.5, width)
        vector = np.cos(np.arange(scaled.shape[1]))
        largest = 0.0
        for _ in range(30):
            vector = (scaled.T @ (scaled @ (vector / np.linalg.norm(vector)))) * (self.problem.loss.smoothness / len(scaled))
            largest = float(np.linalg.norm(vector))
        return norms * max(1.0, 1.1 * largest)


def orbits_of(problem: Problem) -> Orbits:
    """All orbits of a problem."""
    _, second, own = (positions.numpy() for positions in half_pairs(problem.grid))
    stored = np.ones(len(problem.cross_moment), dtype=bool)
    stored[second] = False
    mult = np.full(len(stored), 2.0)
    mult[own] = 1.0
    index, mult = np.flatnonzero(stored), mult[stored]
    spectra = problem.blocks(problem.x).cpu().numpy()[index]  # (O, N, C), conjugated: f is the sum of m Re⟨conj(x̂), B⟩
    scaled = np.ascontiguousarray(spectra.transpose(1, 0, 2) * np.sqrt(mult)[:, None])
    features = scaled.view(np.float64).reshape(len(scaled), -1)
    y = problem.y.cpu().numpy()
    constant = problem.constant + float((y**2).sum()) / (2 * len(y))
    return Orbits(problem, index, mult, features, y.T @ features / len(y), _gram(features, problem), constant)


def least_squares_point(orbits: Orbits) -> Blocks | None:
    """Blocks where the data term of squared error is least."""
    if not orbits.problem.quadratic:
        return None
    features, wide = orbits.features, orbits.gram is None
    values, vectors = np.linalg.eigh(features @ features.T if orbits.gram is None else orbits.gram)
    kept = values > 1e-12 * values[-1]
    inverse = np.where(kept, 1 / np.where(kept, values, 1.0), 0.0)
    right = orbits.problem.y.cpu().numpy().T if wide else orbits.cross
    found = (right @ vectors * inverse) @ vectors.T
    return orbits.blocks(found @ features if wide else found)


def minorant(orbits: Orbits, wanted: Float[np.ndarray, " O"]) -> Float[np.ndarray, " O"]:
    r"""s ≥ 0 with Σ_u m_u s_u‖B_u‖² ≤ ⟨B, HB⟩ for all B, near the one of largest ⟨wanted, s⟩; 0 where H is singular, unknown or too large.

    The semidefinite programme max ⟨wanted, s⟩ subject to diag(s) ⪯ H by a barrier and Newton's method.  What it returns is proved
    apart: a Cholesky decomposition of H − diag(s) less what rounding can hide.
    """
    gram, (count, _, channels) = orbits.gram, orbits.shape
    if gram is None or not orbits.problem.quadratic or len(gram) > MAX_DIMENSION or count == 0:
        return np.zeros(count)
    real = (np.arange(len(gram)) % 2 == 0) | np.repeat(orbits.mult == 2, 2 * channels)  # imaginary parts where u = −u are 0
    h = gram[np.ix_(real, real)]
    owner = np.repeat(np.arange(count), 2 * channels)[real]
    hidden = (len(orbits.features) + 10 * len(h)) * EPS * float(np.trace(h))
    root = np.sqrt(np.maximum(np.bincount(owner, h.diagonal()) / np.bincount(owner), hidden))
    scaled = h / root[owner][:, None] / root[owner][None, :]  # unit diagonal: one number for the barrier to compare with
    least = float(eigh(scaled, eigvals_only=True, subset_by_index=[0, 0])[0])
    if least <= 1e-10:
        return np.zeros(count)
    s = root**2 * (_barrier(scaled, owner, np.full(count, least / 2), wanted * root**2) if len(h) <= MAX_BARRIER else 0.99 * least)
    for _ in range(5):
        lowered = np.maximum(s - hidden, 0.0)
        if _is_positive(h - np.diag(lowered[owner] + hidden)):
            return lowered
        s = 0.99 * s
    return np.zeros(count)


def _barrier(h: np.ndarray, owner: np.ndarray, s: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Maximise ⟨wanted, s⟩ + ε(log det(H − diag(s)) + Σ log s) for ε → 0, from a feasible s."""
    count, wanted = len(s), wanted / max(float(wanted @ s), 1e-300)
    member = np.zeros((len(h), count))
    member[np.arange(len(h)), owner] = 1.0
    epsilon = 1.0 / len(h)
    for _ in range(NEWTON_STEPS):
        inverse = np.linalg.inv(h - np.diag(s[owner]))
        gradient = wanted + epsilon * (1 / s - inverse.diagonal() @ member)
        curvature = epsilon * (member.T @ (inverse**2) @ member + np.diag(s**-2.0))
        step, size = np.linalg.solve(curvature, gradient), 1.0
        decrement = float(gradient @ step) / epsilon
        while size > 1e-6 and not ((s + size * step > 0).all() and _is_positive(h - np.diag((s + size * step)[owner]))):
            size /= 2
        s = s + (0.9 * size if size < 1 else 1.0) * step if size > 1e-6 else s
        if decrement < 1.0:
            epsilon /= 4
        if epsilon * len(h) < 1e-3:
            break
    return s


def _is_positive(matrix: np.ndarray) -> bool:
    try:
        cholesky(matrix, check_finite=False)
    except LinAlgError:
        return False
    return True


def _gram(features: np.ndarray, problem: Problem) -> np.ndarray | None:
    if not problem.quadratic or features.shape[1] > max(MAX_DIMENSION, 2 * len(features)):
        return None
    return features.T @ features / len(features)


def _dagger(a: np.ndarray) -> np.ndarray:
    return a.conj().swapaxes(-1, -2)


def _turn(a: np.ndarray) -> np.ndarray:
    return a.swapaxes(-1, -2)
