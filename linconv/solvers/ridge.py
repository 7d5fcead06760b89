"""Depth 1 with squared error: ridge regression, in closed form, for one weight decay or many."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.solvers.problem import Problem, Solution

# Where λ is below this multiple of the largest eigenvalue, forming normal equations loses too many digits.
SAFE_SHIFT = 1e-8
LOOK = 256  # rows
Solver = Callable[[Float[Tensor, "m K"], float], Float[Tensor, "m K"]]  # (right side, shift) -> solution of the shifted system


def ridge(problem: Problem) -> Solution:
    """The minimiser of (1/2N)‖Xβ − y‖² + λ‖β‖²: Cholesky on the smaller of N and C·D, or singular values where λ is too small for that.

    Lower bound: the dual (1/N)(⟨y, θ⟩ − ½‖θ‖²) − ‖Xᵀθ‖²/(4λN²) at the best multiple of θ = y − Xβ, valid at any θ.
    For λ = 0 the least-squares predictor of least norm, and the bound of `least_error`, without the
    constant, which is known up to rounding only.
    """
    small = _smaller_gram(problem)
    shift = 2 * len(problem.x) * problem.weight_decay
    if shift < SAFE_SHIFT * float(torch.linalg.matrix_norm(small)):
        return _by_singular_values(problem, *_singular_values(problem))
    factor = torch.linalg.cholesky(small + shift * torch.eye(len(small), dtype=small.dtype, device=small.device))
    return _by_normal_equations(problem, lambda right, _: torch.cholesky_solve(right, factor))


def ridge_path(problem: Problem, decays: Sequence[float]) -> list[Solution]:
    """The same for each of many weight decays, from one decomposition."""
    small = _smaller_gram(problem)
    if 2 * len(problem.x) * min(decays) < SAFE_SHIFT * float(torch.linalg.matrix_norm(small)):
        svd = _singular_values(problem)
        return [_by_singular_values(replace(problem, weight_decay=decay), *svd) for decay in decays]
    values, vectors = torch.linalg.eigh(small)

    def solve(right: Tensor, shift: float) -> Tensor:
        return vectors @ ((vectors.T @ right) / (values + shift)[:, None])

    return [_by_normal_equations(replace(problem, weight_decay=decay), solve) for decay in decays]


def _smaller_gram(problem: Problem) -> Float[Tensor, "m m"]:
    """XXᵀ or XᵀX, whichever is the smaller."""
    x = problem.x.flatten(1)
    return x @ x.T if len(x) < x.shape[1] else x.T @ x


def _by_normal_equations(problem: Problem, solve: Solver) -> Solution:
    """β = (XᵀX + shift)⁻¹Xᵀy, with one step of refinement, from a solver of the smaller of the two systems."""
    x, y, shift = problem.x.flatten(1), problem.y, 2 * len(problem.x) * problem.weight_decay
    if len(x) < x.shape[1]:
        dual = solve(y, shift)
        beta = _adjoint(x, dual)
        rest = _adjoint(x, y - x @ beta) - shift * beta
        return _solution(problem, beta + (rest - _adjoint(x, solve(x @ rest, shift))) / shift, shift * dual)
    beta = solve(_adjoint(x, y), shift)
    beta = beta + solve(_adjoint(x, y - x @ beta) - shift * beta, shift)
    return _solution(problem, beta, y - x @ beta)


def _adjoint(x: Float[Tensor, "N CD"], right: Float[Tensor, "N K"]) -> Float[Tensor, "CD K"]:
    """Xᵀr, as (rᵀX)ᵀ: with right sides stored by columns, as Cholesky solves leave them, MKL takes fifteen times as long over XᵀR."""
    return (right.T @ x).T


def _singular_values(problem: Problem) -> tuple[Float[Tensor, "N r"], Float[Tensor, " r"], Float[Tensor, "r CD"]]:
    """The decomposition of X without the directions in which it is 0 up to rounding."""
    x = problem.x.flatten(1)
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    kept = sigma > max(x.shape) * torch.finfo(x.dtype).eps * sigma[0]
    return u[:, kept], sigma[kept], vh[kept]


def _by_singular_values(problem: Problem, u: Float[Tensor, "N r"], sigma: Float[Tensor, " r"], vh: Float[Tensor, "r CD"]) -> Solution:
    y, shift = problem.y, 2 * len(problem.x) * problem.weight_decay
    inner = u.T @ y / (sigma**2 + shift)[:, None]
    outside = y - u @ (u.T @ y) if len(sigma) < len(y) else 0.0
    return _solution(problem, vh.T @ (sigma[:, None] * inner), outside + shift * (u @ inner))


def _solution(problem: Problem, solved: Float[Tensor, "CD K"], theta: Float[Tensor, "N K"]) -> Solution:
    """The solution with its bound from the dual point θ."""
    n, decay = len(problem.x), problem.weight_decay
    beta = solved.T.reshape(-1, *problem.x.shape[1:])
    value = problem.objective(beta)
    if decay == 0:
        return Solution(beta, value, min(least_error(problem), value), "least squares")
    linear = float((problem.y * theta).sum()) / n
    square = float(theta.square().sum()) / (2 * n) + float(_adjoint(problem.x.flatten(1), theta).square().sum()) / (4 * decay * n**2)
    lower = linear / square * linear / 4 if square > 0 and linear > 0 else 0.0
    return Solution(beta, value, problem.constant + lower, "ridge")


def least_error(problem: Problem) -> float:
    r"""A number at or below (1/2N)‖Xβ − y‖² for every β, positive where what is exact in X proves that, and else 0.

    Where X loses rank its least-squares value is no continuous function of X: a change in the last digit of one entry restores the
    rank, and for N ≤ C·D makes the value 0.  Singular values that are rounding therefore prove nothing.  Exact are: equal images have
    equal outputs, images of zeros the outputs 0, columns of zeros no effect, and equal or opposite columns the effect of one.  Means of
    equal images are left, m columns and more than m rows X′, y′ if anything is to be proved.  With X′ + E = QR and t = (I − QQᵀ)y′, for
    every β

        ‖y′ − X′β‖ ≥ ‖t‖ − ‖E‖/σ_min(X′) ‖y′‖,

    since the nearest X′β has the norm of y′ at most, and Q misses X′β by ‖Eβ‖ ≤ ‖E‖‖X′β‖/σ_min(X′).  ‖E‖ is taken to be 10 rows·columns·ε
    times ‖X′‖_F (Householder's QR: Higham 2002, theorem 19.4; the constant is generous).  Source: derived here.
    """
    images, place, counts = problem.x.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    means = problem.y.new_zeros(len(images), problem.y.shape[1]).index_add(0, place, problem.y) / counts[:, None]
    means[~images.any(1)] = 0.0
    proved = float((problem.y - means[place]).square().sum())
    kept, weights = images.any(1), counts.to(images.dtype).sqrt()[:, None]
    x, y = distinct_columns((weights * images)[kept]), (weights * means)[kept]
    rows, columns = x.shape
    eps = torch.finfo(x.dtype).eps
    if rows > columns > 0:
        q, r = torch.linalg.qr(x)
        wrong = 10 * rows * columns * eps
        error = wrong * float(torch.linalg.vector_norm(x))  # ‖E‖; and twice, for that in σ_min
        least = float(torch.linalg.svdvals(r)[-1]) - 2 * error
        outside, size = (float(torch.linalg.vector_norm(part)) for part in (y - q @ (q.T @ y), y))
        turned = error / least if least > 0 else math.inf
        proved += max(outside - (turned + wrong) * size, 0.0) ** 2
    wrong = problem.y.numel() * eps
    return max(proved * (1 - 10 * wrong) - wrong**2 * float(problem.y.square().sum()), 0.0) / (2 * len(problem.x))


def distinct_columns(x: Float[Tensor, "N m"]) -> Float[Tensor, "N n"]:
    """Columns with the same products Xβ over all β: those that are not 0, and one of each set of equal or opposite ones.

    >>> distinct_columns(torch.tensor([[1.0, -1.0, 0.0, 2.0, 1.0], [3.0, -3.0, 0.0, 1.0, 4.0]])).shape
    torch.Size([2, 3])
    """
    if not bool(x.any()):
        return x[:, :0]
    for rows in (x[:LOOK], x) if bool(x[:LOOK].any()) else (x,):  # where a few rows tell all columns apart, nothing is copied
        rows = rows[:, rows.any(0)]
        first = (rows != 0).to(torch.uint8).argmax(0)
        found = (rows * rows.gather(0, first[None]).sign()).unique(dim=1)
        if found.shape[1] == x.shape[1]:
            return x
    return found
