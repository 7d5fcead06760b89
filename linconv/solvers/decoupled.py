r"""Data whose second moment has no cross-frequency terms: the problem falls apart into one small problem a frequency.

    min_B  ½ tr(B S_u B†) − Re tr(B G_u†) + μ‖B‖_{S_p}^p

Solved globally where S_u = s_u·I (von Neumann's trace inequality aligns the singular vectors of B with those of G_u; each
singular value is a scalar problem) and where there is one output (stationary points lie on a curve in one parameter).
The optimum is exact; how far the data are from decoupled, which is rounding for whitened data, is measured and paid for
in the lower bound.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.penalties import shrink
from linconv.solvers.problem import ROWS, Problem, Solution

MAX_DIMENSION = 4096
MAX_DEVIATION = 1e-6


def deviation(problem: Problem, blocks: Complex[Tensor, "F C C"]) -> float:
    r"""ε with (1 − ε)S ⪯ H ⪯ (1 + ε)S for the second moment H of the data and the block-diagonal S; `inf` if none is found.

    ε = ‖S^{-1/2} H S^{-1/2} − I‖ in the Frobenius norm, computed from whitened images in the space domain.
    """
    values, vectors = torch.linalg.eigh(blocks)
    size = problem.x[0].numel()
    if size > min(MAX_DIMENSION, len(problem.x)) or bool((values[:, 0] <= 1e-12 * values[:, -1]).any()):
        return math.inf
    inverse_root = (vectors * values.rsqrt()[:, None, :]) @ vectors.mH
    moment = torch.zeros(size, size, dtype=problem.x.dtype, device=problem.x.device)
    for rows in problem.x.split(ROWS):
        # A predictor with blocks conj(x̂) is the image x itself.
        white = problem.predictor(problem.blocks(rows) @ inverse_root).flatten(1)
        moment += white.T @ white / len(problem.x)
    return float(torch.linalg.matrix_norm(moment - torch.eye(size, dtype=moment.dtype, device=moment.device)))


def decoupled(problem: Problem) -> Solution | None:
    """The global optimum where the data decouple in a solvable way, None where they do not."""
    moments = problem.second_moments
    channels = moments.shape[-1]
    mean = moments.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    isotropic = mean[:, None, None] * torch.eye(channels, dtype=moments.dtype, device=moments.device)
    # The cheap test of the blocks first; only data that pass it pay for the whole second moment.
    spread = float((torch.linalg.matrix_norm(moments - isotropic) - MAX_DEVIATION * mean).max())
    if spread <= 0:
        error = deviation(problem, isotropic)
        if error <= MAX_DEVIATION:
            blocks, _ = isotropic_minimum(problem, mean)
            lower = isotropic_minimum(problem, (1 - error) * mean)[1]
            return _solution(problem, blocks, lower, "decoupled, scalar thresholding")
    if problem.y.shape[1] == 1 and problem.p < 1:
        error = deviation(problem, moments)
        if error <= MAX_DEVIATION:
            blocks, _ = one_output_minimum(problem, moments)
            lower = one_output_minimum(problem, (1 - error) * moments)[1]
            return _solution(problem, blocks, lower, "decoupled, one output")
    return None


def _solution(problem: Problem, blocks: Tensor, lower: float, method: str) -> Solution:
    beta = problem.predictor(blocks)
    return Solution(beta, problem.objective(beta), lower, method)


def isotropic_minimum(problem: Problem, s: Float[Tensor, " F"]) -> tuple[Complex[Tensor, "F K C"], float]:
    """Minimiser and minimum for S_u = s_u·I; of each block the `max_rank` largest components are kept."""
    u, g, vh = torch.linalg.svd(problem.cross_moment, full_matrices=False)
    present = (s > 0)[:, None]
    scale = torch.where(s > 0, s, 1.0)[:, None]
    t = torch.where(present, shrink(g / scale, problem.mu / scale, problem.p), 0.0)
    if problem.max_rank is not None:
        t[:, problem.max_rank :] = 0
    blocks = (u * t[:, None, :]) @ vh
    gain = (scale * t.square() / 2 - g * t + problem.mu * t**problem.p).sum(-1)
    return blocks, _constant(problem) + float(problem.weights @ gain)


def _constant(problem: Problem) -> float:
    return float(problem.y.square().sum()) / (2 * len(problem.y))


def one_output_minimum(problem: Problem, moments: Complex[Tensor, "F C C"]) -> tuple[Complex[Tensor, "F 1 C"], float]:
    r"""Minimiser and minimum for one output and any S_u: of all stationary points and 0, the best at each frequency.

    Stationary v ≠ 0 satisfy (S + νI)v = g with ν = μp‖v‖^{p−2} > 0: one equation in ν, all of whose roots are isolated.
    """
    values, vectors = torch.linalg.eigh(moments)
    rotated = (problem.cross_moment @ vectors).squeeze(1)
    solution = torch.zeros_like(rotated)
    total = _constant(problem)
    for f in range(len(values)):
        s, g = values[f], rotated[f]
        best = 0.0
        for nu in stationary_shifts(s, g.abs().square(), problem.mu * problem.p, problem.p):
            v = g / (s + nu)
            norm = float(torch.linalg.vector_norm(v))
            value = float((s * v.abs().square() / 2 - (g.conj() * v).real).sum()) + problem.mu * norm**problem.p
            if value < best:
                best, solution[f] = value, v
        total += float(problem.weights[f]) * best
    return (solution[:, None, :] @ vectors.mH), total


def stationary_shifts(s: Float[Tensor, " C"], power: Float[Tensor, " C"], weight: float, p: float) -> list[float]:
    r"""All ν > 0 with ν‖v(ν)‖^{2−p} = weight, ‖v(ν)‖² = Σ_i power_i/(s_i + ν)².

    In t = log ν the logarithm of the equation, φ(t) = t + (2 − p) log‖v‖ − log weight, has |φ′| ≤ 1 and |φ″| ≤ 1, so that
    an interval of half-width h around m has no root if |φ(m)| > h and at most one if |φ′(m)| > h: bisection until every
    interval is one or the other finds all of them.  Intervals below 1e-13 are a double root, taken as it is.
    """
    if float(power.sum()) == 0:
        return []

    def phi(t: float) -> tuple[float, float]:
        nu = math.exp(t)
        terms = power / (s + nu) ** 2
        total = float(terms.sum())
        ratio = float((terms * nu / (s + nu)).sum()) / total
        return t + (1 - p / 2) * math.log(total) - math.log(weight), 1 - (2 - p) * ratio

    # ‖v(ν)‖ ≤ ‖g‖/ν bounds ν above for p < 1, and ‖v(ν)‖ ≤ ‖g‖/s_min below.
    norm = math.sqrt(float(power.sum()))
    upper = ((2 - p) * math.log(norm) - math.log(weight)) / (1 - p) + 1
    lower = math.log(weight) - (2 - p) * math.log(norm / float(s.min())) - 1
    return [math.exp(t) for t in _roots(phi, lower, upper)]


def _roots(phi: Callable[[float], tuple[float, float]], low: float, high: float) -> Iterator[float]:
    middle, half = (low + high) / 2, (high - low) / 2
    if half <= 0:
        return
    value, slope = phi(middle)
    if abs(value) > half:
        return
    if abs(slope) > half:
        left, right = phi(low)[0], phi(high)[0]
        if left * right > 0:
            return
        for _ in range(200):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            value = phi(middle)[0]
            low, high, left = (middle, high, value) if value * left > 0 else (low, middle, left)
        yield middle
    elif half < 1e-13:
        yield middle
    else:
        yield from _roots(phi, low, middle)
        yield from _roots(phi, middle, high)
