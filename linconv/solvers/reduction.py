r"""Squared error of many images as that of at most C·D rows, in one pass over the images; and certificates from the images themselves.

With [X y] = Q [[R, z], [0, t]], Q of orthonormal columns, ‖Xβ − y‖² = ‖Rβ − z‖² + ‖t‖² for every β: the triangle of a QR
decomposition, updated chunk by chunk, replaces the images without forming XᵀX, which would square their condition number.
A lower bound found for [R z] is not taken on trust: `certify` goes over the images once more.
"""

import math
from collections.abc import Iterator

import scipy.linalg
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.solvers.problem import SPREAD, Problem

CHUNK = 2  # rows taken at a time, in units of C·D: more cost memory, fewer make the triangle count
RANK = 1e-12  # relative size of pivots that are taken for rounding


def chunks(x: Float[Tensor, "N C *grid"], rows: int) -> Iterator[Float[Tensor, "n CD"]]:
    """Flattened images in float64, `rows` at a time: images in single precision need no copy of the whole."""
    for part in x.split(rows):
        yield part.flatten(1).to(torch.float64)


def reduce(x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "CD C *grid"], Float[Tensor, "CD K"], float]:
    """C·D rows and targets, and a constant, with (1/2N)‖Xβ − y‖² = (1/2CD)‖X′β − y′‖² + constant for every predictor; N ≥ C·D."""
    size, outputs = x[0].numel(), y.shape[1]
    triangle = torch.zeros(0, size + outputs, dtype=torch.float64, device=x.device)
    for rows, targets in zip(chunks(x, CHUNK * size), y.split(CHUNK * size), strict=True):
        triangle = torch.linalg.qr(torch.cat([triangle, torch.cat([rows, targets], 1)]), mode="r").R
    constant = float(triangle[size:, size:].square().sum()) / (2 * len(x))
    kept = triangle[:size] * (size / len(x)) ** 0.5
    return kept[:, :size].reshape(size, *x.shape[1:]), kept[:, size:].contiguous(), constant


def least_squares(problem: Problem) -> Float[Tensor, "K C *grid"]:
    """A least-squares predictor of the rows of a reduced problem; of singular data, one of them."""
    triangle = problem.x.flatten(1)
    pivots = triangle.diagonal().abs()
    if float(pivots.min()) > RANK * float(pivots.max()):
        solved = torch.linalg.solve_triangular(triangle, problem.y, upper=True)
    else:
        # Not torch's "gelsy": its results change from call to call where the data are singular.
        found = scipy.linalg.lstsq(triangle.cpu().numpy(), problem.y.cpu().numpy(), cond=RANK, lapack_driver="gelsy")[0]
        solved = torch.from_numpy(found).to(triangle.device)
    return solved.T.reshape(-1, *problem.x.shape[1:])


def squared_residual(x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], predictor: Float[Tensor, "K C *grid"]) -> float:
    """(1/2N) Σ ‖f(x_n) − y_n‖² from the images."""
    size = problem_rows(x)
    weights = predictor.flatten(1).T
    parts = (float((rows @ weights - targets).square().sum()) for rows, targets in zip(chunks(x, size), y.split(size), strict=True))
    return sum(parts) / (2 * len(x))


def certified_least_error(x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"]) -> float:
    r"""A number at or below (1/2N)‖Xβ − y‖² for every β, near the least where X is well conditioned; N > C·D.

    With P the projection onto the columns of X, ‖Xβ − y‖ ≥ ‖(I − P)y‖ ≥ ⟨y, (I − P)r⟩/‖r‖ for any r, and ‖Pr‖ ≤ ‖Xᵀr‖/σ_min(X).  r is
    the residual of a least-squares predictor, Xᵀr is computed from the images, off by Nε‖X‖_F‖r‖ at most, and σ_min is that of the
    triangle less 20 N·C·D·ε‖X‖_F for its rounding (Householder's QR: Higham 2002, theorem 19.4).  0 where that leaves nothing: then
    a change in the last digits of X may fit y exactly.  Source: derived here.
    """
    count, size, eps = len(x), x[0].numel(), torch.finfo(torch.float64).eps
    rows, targets, _ = reduce(x, y)
    scale = math.sqrt(count / size)
    norm = scale * float(torch.linalg.vector_norm(rows))
    least = scale * float(torch.linalg.svdvals(rows.flatten(1))[-1]) - 20 * count * size * eps * norm
    if least <= 0:
        return 0.0
    weights = least_squares(Problem(rows, targets, 1, 0.0)).flatten(1).T
    pulled, products = torch.zeros_like(weights), torch.zeros(3, dtype=torch.float64, device=x.device)  # ⟨y, r⟩, ‖r‖², ‖y‖²
    step = problem_rows(x)
    for images, wanted in zip(chunks(x, step), y.split(step), strict=True):
        rest = wanted - images @ weights
        pulled += images.T @ rest
        products += torch.stack([(wanted * rest).sum(), rest.square().sum(), wanted.square().sum()])
    linear, left, size_y = float(products[0]), math.sqrt(float(products[1])), math.sqrt(float(products[2]))
    if left == 0:
        return 0.0
    turned = (float(torch.linalg.vector_norm(pulled)) / left + count * eps * norm) / least
    return max(linear / left - size_y * (turned + y.numel() * eps), 0.0) ** 2 / (2 * count)


def problem_rows(x: Float[Tensor, "N C *grid"]) -> int:
    """Images looked at in one go: about 32 MiB in float64."""
    return max(1, 2**22 // x[0].numel())


def certify(
    x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], problem: Problem, predictor: Float[Tensor, "K C *grid"], mu: Float[Tensor, " F"]
) -> float:
    r"""A lower bound on min_B data term + Σ_u μ_u ‖B_u‖_* from the images, near the minimum if the predictor is near a minimiser.

    The dual value (1/N)(⟨y, θ⟩ − ½‖θ‖²) at θ = t(o + s·i), where o + i is the residual and o what least squares leaves of
    y: shrinking o, which no predictor can change, would waste the bound where it is most of the objective.  Valid for any s and t ≥ 0
    with ‖(1/N) Σ_n θ_n x̂_{n,u}†‖ ≤ μ_u, so that nothing about the reduction, or about how the predictor was found, is taken on trust.
    """
    outputs = len(predictor)
    both = torch.cat([predictor.flatten(1), least_squares(problem).flatten(1)]).T
    pulled = torch.zeros(2 * outputs, problem.x[0].numel(), dtype=torch.float64, device=x.device)
    products = torch.zeros(7, dtype=torch.float64, device=x.device)  # ⟨y, i⟩, ⟨y, o⟩, ⟨i, i⟩, ⟨i, o⟩, ⟨o, o⟩, ‖y‖², ‖x‖²
    rows = problem_rows(x)
    for images, targets in zip(chunks(x, rows), y.split(rows), strict=True):
        f, least = (images @ both).split(outputs, 1)
        inside, outside = least - f, targets - least
        pulled += torch.cat([inside, outside], 1).T @ images
        pairs = ((targets, inside), (targets, outside), (inside, inside), (inside, outside), (outside, outside), (targets, targets))
        products += torch.stack([*((a * b).sum() for a, b in pairs), images.square().sum()])
    inner, outer = (problem.blocks(part.reshape(-1, *x.shape[1:])) / len(x) for part in pulled.split(outputs))
    y_in, y_out, in_in, in_out, out_out, y_y, x_x = products.tolist()
    n, pixel = len(x), (x_x / (len(x) * x[0, 0].numel())) ** 0.5
    # What rounding leaves of the adjoint of o takes its room from s: the whole of θ, o included, shrinks only if there is none.
    room = (mu - torch.linalg.matrix_norm(outer, ord=2) - SPREAD * out_out**0.5 / n * pixel).clamp(min=0)
    s = min(max((y_in - in_out) / in_in, 0.0) if in_in else 0.0, _largest_multiple(inner, room, SPREAD * in_in**0.5 / n * pixel))
    bounds = [0.0]
    for part in (s, 1.0):  # 1 is the plain residual, of which rounding in an ill-conditioned o is no part
        linear, square = part * y_in + y_out, part**2 * in_in + 2 * part * in_out + out_out
        # Where the residual is rounding ⟨y, θ⟩ may be negative; a negative t could be as large as it likes.
        rounding = SPREAD * max(square, 0.0) ** 0.5 / n * pixel
        t = max(min(linear / square if square > 0 else 0.0, _largest_multiple(part * inner + outer, mu, rounding)), 0.0)
        bounds.append((t * linear - t**2 * square / 2 - 2 * SPREAD * t * (y_y * max(square, 0.0)) ** 0.5) / n)
    return max(bounds)


def _largest_multiple(blocks: Complex[Tensor, "F K C"], mu: Float[Tensor, " F"], rounding: float) -> float:
    """The largest multiple of the blocks, each `rounding` larger than it looks, with norms of at most μ_u."""
    norms = torch.linalg.matrix_norm(blocks, ord=2) + rounding
    active = norms > 0
    return float((mu[active] / norms[active]).min()) if bool(active.any()) else float("inf")
