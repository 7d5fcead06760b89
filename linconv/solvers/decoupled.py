r"""Data whose second moment has no cross-frequency terms: the problem falls apart into one small problem a frequency.

    min_B  ½ tr((B − M_u) S_u (B − M_u)†) + μ‖B‖_{S_p}^p,    M_u the least-squares block.

Solved globally where S_u = s_u·I (von Neumann's trace inequality aligns the singular vectors of B with those of M_u; each
singular value is a scalar problem) and where there is one output (stationary points lie on a curve in one parameter).
Frequencies that the data do not have, those that a filter has taken, leave the problem: their blocks are 0 at the optimum, which
is proved from what rounding left there.  The optimum is exact; how far the data are from decoupled, which is rounding for whitened
data, is measured and paid for in the lower bound.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from linconv.penalties import shrink
from linconv.solvers.problem import EPS, ROWS, Problem, Solution

MAX_DIMENSION = 4096
MAX_DEVIATION = 1e-6
SILENT = 1e-26  # power of a frequency, relative to that of the loudest, up to which it is what rounding leaves of a filtered one


def deviation(problem: Problem, blocks: Complex[Tensor, "F C C"], silent: Bool[Tensor, " F"]) -> float:
    r"""ε with (1 − ε)S ⪯ H ⪯ (1 + ε)S for the second moment H of the data and the block-diagonal S; `inf` if none is found.

    ε = ‖S^{-1/2} H S^{-1/2} − I‖ in the Frobenius norm, computed from whitened images in the space domain, on the
    frequencies that are not `silent`.
    """
    values, vectors = torch.linalg.eigh(blocks)
    size = problem.x[0].numel()
    # Of fewer images than numbers at frequencies that are not silent the moment is singular there, and ε ≥ 1.
    heard = size - 2 * int(silent.sum()) * problem.x.shape[1]
    if size > MAX_DIMENSION or heard > len(problem.x) or bool((values[:, 0] <= 1e-12 * values[:, -1]).any()):
        return math.inf
    inverse_root = (vectors * values.rsqrt()[:, None, :]) @ vectors.mH * ~silent[:, None, None]
    identity = torch.eye(size, dtype=problem.x.dtype, device=problem.x.device)
    # The projection on the silent frequencies, where nothing is compared.
    moment = problem.predictor(problem.blocks(identity.unflatten(1, problem.x.shape[1:])) * silent[:, None, None]).flatten(1)
    for rows in problem.x.split(ROWS):
        # A predictor with blocks conj(x̂) is the image x itself.
        white = problem.predictor(problem.blocks(rows) @ inverse_root).flatten(1)
        moment += white.T @ white / len(problem.x)
    return float(torch.linalg.matrix_norm(moment - identity))


def decoupled(problem: Problem) -> Solution | None:
    """The global optimum where the data decouple in a solvable way, None where they do not."""
    moments, power = problem.second_moments, problem.second_moments.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    silent = power <= SILENT * power.max()
    if not stay_zero(problem, power, silent):
        return None
    one = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    # Unit moments and a target of 0 stand for a silent frequency: its block is then 0, and so is its part of the minimum.
    moments, mean = torch.where(silent[:, None, None], one, moments), torch.where(silent, 1.0, power)
    isotropic = mean[:, None, None] * one
    # The cheap test of the blocks first; only data that pass it pay for the whole second moment.
    spread = float((torch.linalg.matrix_norm(moments - isotropic) - MAX_DEVIATION * mean).max())
    if spread <= 0:
        error = deviation(problem, isotropic, silent)
        if error <= MAX_DEVIATION:
            target, least = least_squares(problem, isotropic, silent)
            blocks, _ = isotropic_minimum(problem, mean, target)
            lower = isotropic_minimum(problem, (1 - error) * mean, target)[1]
            return _solution(problem, blocks, least + lower, "decoupled, scalar thresholding")
    if problem.y.shape[1] == 1 and problem.p < 1:
        error = deviation(problem, moments, silent)
        if error <= MAX_DEVIATION:
            target, least = least_squares(problem, moments, silent)
            blocks, _ = one_output_minimum(problem, moments, target)
            lower = one_output_minimum(problem, (1 - error) * moments, target)[1]
            return _solution(problem, blocks, least + lower, "decoupled, one output")
    return None


def stay_zero(problem: Problem, power: Float[Tensor, " F"], silent: Bool[Tensor, " F"]) -> bool:
    r"""Whether the blocks at silent frequencies are proved to be 0 at every minimum; p ≤ 1.

    Where F ≤ F(0) they have b = ‖B‖_F ≤ R = (F(0)/μ)^{1/p}, and change the outputs by at most δ = b‖x_s‖_F, x_s the data at
    those frequencies, rounding included.  Taking that change back adds at most (√(2N F(0)) δ + ½δ²)/N to the data term and saves
    μb^p or more.  The difference is convex in b, 0 at b = 0, and so nowhere positive on [0, R] if it is not at R, where μR^p = F(0).
    """
    n, channels = len(problem.x), problem.x.shape[1]
    if not bool(silent.any()):
        return True
    # What transforms and the reduction of the images have rounded away may be more than what they left: as in `ridge.least_error`.
    rounding = 20 * max(n, problem.x[0].numel()) * problem.x[0].numel() * EPS * float(torch.linalg.vector_norm(problem.x))
    size = math.sqrt(n * channels * float((problem.weights * power)[silent].sum())) + rounding
    zero = float(problem.y.square().sum()) / (2 * n)
    log_change = (math.log(zero) - math.log(problem.mu)) / problem.p + math.log(size)
    change = math.exp(min(log_change, 300.0))
    return (math.sqrt(2 * n * zero) * change + change**2 / 2) / n < zero


def least_squares(
    problem: Problem, moments: Complex[Tensor, "F C C"], silent: Bool[Tensor, " F"]
) -> tuple[Complex[Tensor, "F K C"], float]:
    r"""The least-squares blocks M, 0 at silent frequencies, and their error: S⁻¹ in the place of H⁻¹, corrected twice, leaves ε³.

    The data term is its least value + ½⟨B − M, H(B − M)⟩ ≥ least value + ½(1 − ε)⟨B − M, S(B − M)⟩: a bound without
    cancellation, however small the weight decay.
    """
    inverse = torch.linalg.inv(moments) * ~silent[:, None, None]
    target = problem.cross_moment @ inverse
    for _ in range(2):
        target = target - problem.gradient(target) @ inverse
    return target, problem.data_term(problem.predictor(target)) - problem.constant


def _solution(problem: Problem, blocks: Tensor, lower: float, method: str) -> Solution:
    beta = problem.predictor(problem.symmetric(blocks))
    return Solution(beta, problem.objective(beta), problem.constant + lower, method)


def isotropic_minimum(problem: Problem, s: Float[Tensor, " F"], target: Complex[Tensor, "F K C"]) -> tuple[Complex[Tensor, "F K C"], float]:
    r"""Minimiser and minimum of Σ_u weights_u (½s_u‖B_u − M_u‖² + μ‖B_u‖_{S_p}^p), the `max_rank` largest components of a block kept."""
    u, m, vh = torch.linalg.svd(target, full_matrices=False)
    t = shrink(m, problem.mu / s[:, None], problem.p)
    if problem.max_rank is not None:
        t[:, problem.max_rank :] = 0
    value = (s[:, None] * (t - m).square() / 2 + problem.mu * t**problem.p).sum(-1)
    return (u * t[:, None, :]) @ vh, float(problem.weights @ value)


def one_output_minimum(
    problem: Problem, moments: Complex[Tensor, "F C C"], target: Complex[Tensor, "F 1 C"]
) -> tuple[Complex[Tensor, "F 1 C"], float]:
    r"""The same for one output and any S_u: of all stationary points and 0, the best at each frequency.

    Stationary v ≠ 0 satisfy (S + νI)v = Sm with ν = μp‖v‖^{p−2} > 0: one equation in ν, all of whose roots are isolated.
    """
    values, vectors = torch.linalg.eigh(moments)
    rotated = (target @ vectors).squeeze(1)
    solution = torch.zeros_like(rotated)
    total = 0.0
    for f in range(len(values)):
        s, m = values[f], rotated[f]
        power = m.abs().square()
        best = float((s * power).sum()) / 2
        for nu in stationary_shifts(s, s**2 * power, problem.mu * problem.p, problem.p):
            v = s * m / (s + nu)
            norm = float(torch.linalg.vector_norm(v))
            value = float((s * power * (nu / (s + nu)) ** 2).sum()) / 2 + problem.mu * norm**problem.p
            if value < best:
                best, solution[f] = value, v
        total += float(problem.weights[f]) * best
    return solution[:, None, :] @ vectors.mH, total


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
