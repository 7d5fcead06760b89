r"""Descents of deep networks in frequency space, many at once, and Newton's method at the end of one.

A network whose hidden layers are diagonal in suitable bases has blocks B = Σ_i c_i^{L−2} a_i b_i†, and

    Σ_i (‖a_i‖² + ‖b_i‖² + (L−2) c_i²) / L  ≥  Σ_i ‖c_i^{L−2} a_i b_i†‖^{2/L}  ≥  ‖B‖_{S_p}^p,    p = 2/L

(means; then subadditivity of ‖·‖_{S_p}^p, Rotfel'd), with equality at the singular value decomposition with equal factors.  The
minimum of the smooth left side over networks is therefore that of the penalised problem, with fewer weights than full layers have.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.descents import Frequencies
from linconv.solvers.quasi_newton import Late, lbfgs, never

DUST = 1e-13  # components below this multiple of the largest one are rounding
RANK = 1e-6  # components below this multiple of the largest one are on their way to 0
NEWTON_STEPS, CONJUGATE_STEPS = 12, 200
CONJUGATE_TOL = 1e-3
DIFFERENCE = 1e-7  # of gradients along a direction, relative to the weights
STATIONARY = 1e-13  # relative distance to stationarity at which Newton's method has nothing left to do


def balanced(space: Frequencies, blocks: Complex[Tensor, "S I K C"]) -> Complex[Tensor, "S I r w"]:
    """Weights (a_i, b_i, c_i) side by side, w = K + C + 1, of networks with these blocks and the least sum of squares."""
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    rank = space.problem.max_rank
    size = torch.where(sigma > DUST * sigma.amax((1, 2), keepdim=True), sigma, 0.0) ** (1 / space.problem.depth)
    net = torch.cat([size[..., None] * u.mT, size[..., None] * vh.conj(), size[..., None].to(u.dtype)], -1)
    return net if rank is None else net[:, :, :rank]


def random_networks(space: Frequencies, number: int, generator: torch.Generator) -> Complex[Tensor, "S I r w"]:
    """Networks with normal weights, in turn as they are here and balanced from products of L full layers.

    The weights have variance 1 at every frequency of the unnormalised transform, in full layers 4/3 over their inputs: twice the
    standard deviation of torch's default.  The singular values of a product differ by more, and so do the optima that are found.
    """
    problem = space.problem
    outputs, channels, depth = problem.y.shape[1], problem.x.shape[1], problem.depth
    rank = min(outputs, channels) if problem.max_rank is None else problem.max_rank
    # L layers multiply to V = √D B.
    scale = math.prod(problem.grid) ** (-1 / (2 * depth))
    net = _normal(space, number - number // 2, rank, outputs + channels + 1, generator)
    net[..., -1] = net[..., -1].abs().to(net.dtype)
    blocks = _normal(space, number // 2, max(outputs, channels), channels, generator)
    blocks = blocks * scale * math.sqrt(4 / (3 * channels))
    for rows in [max(outputs, channels)] * (depth - 2) + [outputs]:
        layer = _normal(space, number // 2, rows, max(outputs, channels), generator)
        blocks = layer @ blocks * (scale * math.sqrt(4 / (3 * max(outputs, channels))))
    return torch.cat([net * scale, balanced(space, blocks)])


def _normal(space: Frequencies, number: int, rows: int, columns: int, generator: torch.Generator) -> Complex[Tensor, "S I m n"]:
    """Standard normal matrices, real where u = −u."""
    normal = torch.randn(number, len(space.kept), rows, columns, 2, dtype=torch.float64, generator=generator)
    matrices = torch.view_as_complex(normal).to(space.weights.device) / math.sqrt(2)
    matrices[:, space.own] = math.sqrt(2) * matrices[:, space.own].real.to(matrices.dtype)
    return matrices


def blocks_of(space: Frequencies, net: Complex[Tensor, "S I r w"]) -> Complex[Tensor, "S I K C"]:
    """B = Σ_i c_i^{L−2} a_i b_i†."""
    outputs = space.problem.y.shape[1]
    a, b, c = net[..., :outputs], net[..., outputs:-1], net[..., -1:].real
    return (a * c ** (space.problem.depth - 2)).mT @ b.conj()


def network_objective(space: Frequencies, net: Complex[Tensor, "S I r w"]) -> tuple[Float[Tensor, " S"], Complex[Tensor, "S I r w"]]:
    """Data term + (μ/L) Σ_u w_u Σ_i ‖a_i‖² + ‖b_i‖² + (L−2)c_i², and its gradient in the inner product weighted by w."""
    problem = space.problem
    outputs, depth = problem.y.shape[1], problem.depth
    a, b, c = net[..., :outputs], net[..., outputs:-1], net[..., -1:].real
    lower = c ** (depth - 3)
    power = lower * c
    scaled = a * power
    values, slope = space.data_term(scaled.mT @ b.conj())
    left = b @ slope.mT  # rows (G b_i)ᵀ
    inner = (torch.view_as_real(left) * torch.view_as_real(a)).sum((-2, -1))[..., None] * lower * (depth - 2)
    slopes = torch.cat([left * power, scaled @ slope.conj(), inner.to(net.dtype)], -1)
    parts = torch.view_as_real(net)
    decayed = torch.cat([parts[..., :-1, :], (depth - 2) * parts[..., -1:, :]], -2) * (problem.mu / depth)
    penalty = (decayed * parts).sum((2, 3, 4)) @ space.weights
    return values + penalty, torch.view_as_complex(torch.view_as_real(slopes) + 2 * decayed)


def train_networks(
    space: Frequencies, start: Complex[Tensor, "S I r w"], steps: int, tol: float = 1e-7, late: Late = never
) -> Complex[Tensor, "S I r w"]:
    """L-BFGS from every network at once, in coordinates in which the inner product is plain."""
    shape = start.shape
    # Real and imaginary parts; the latter are 0 where u = −u, and stay so.
    scale = space.weights.sqrt()[:, None, None, None]
    real = torch.stack([torch.ones_like(scale), (~space.own)[:, None, None, None].to(scale)], -1)[..., 0, :] * scale

    def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
        net = torch.view_as_complex(flat.reshape(-1, *shape[1:], 2) / scale)
        values, gradient = network_objective(space, net)
        return values, (torch.view_as_real(gradient) * real).flatten(1)

    flat = (torch.view_as_real(start.resolve_conj()) * real).flatten(1)
    points, _ = lbfgs(evaluate, flat, steps, tol, late)
    return torch.view_as_complex(points.reshape(-1, *shape[1:], 2) / scale)


def prune(blocks: Complex[Tensor, "*batch K C"], tolerance: float = RANK) -> Complex[Tensor, "*batch K C"]:
    """The blocks without components below `tolerance` times the largest of all."""
    u, sigma, vh = torch.linalg.svd(blocks, full_matrices=False)
    largest = sigma.amax((-2, -1), keepdim=True)
    return (u * torch.where(sigma > tolerance * largest, sigma, 0.0)[..., None, :]) @ vh


def descend_networks(
    space: Frequencies, blocks: Complex[Tensor, "S I K C"], steps: int, tol: float = 1e-7, late: Late = never
) -> Complex[Tensor, "S I K C"]:
    """L-BFGS from balanced networks with these blocks; components at 0 stay there, and cost nothing.  Where it is late, the blocks."""
    if late():
        return blocks
    net, chosen, rank = _alive(balanced(space, blocks))
    ended = torch.zeros_like(blocks)
    if rank:
        part = space.part(chosen)
        ended[:, chosen] = prune(blocks_of(part, train_networks(part, net, steps, tol, late)))
    return ended


def _alive(net: Complex[Tensor, "S I r w"]) -> tuple[Complex[Tensor, "S J k w"], Int64[Tensor, " J"], int]:
    """The networks without the frequencies and the components that are 0 in all of them, those frequencies, and k."""
    alive = (net[..., -1].real > 0).any(0)
    chosen, rank = alive.any(1).nonzero()[:, 0], int(alive.sum(1).max())
    return net[:, chosen, :rank], chosen, rank


def newton(space: Frequencies, blocks: Complex[Tensor, "I K C"], late: Late = never) -> Complex[Tensor, "I K C"]:
    """The stationary point near the blocks, of the same ranks: Newton's method with conjugate gradients, as long as the gradient falls.

    Bases of a component may turn by a phase, along which the Hessian is 0 and the gradient has no part: conjugate gradients do not care.
    """
    net, chosen, rank = _alive(balanced(space, blocks[None]))
    if not rank:
        return blocks
    space = space.part(chosen)
    weights, own = space.weights[:, None, None, None], space.own[:, None, None, None]
    real = torch.cat([torch.ones_like(weights), (~own).to(weights)], -1)

    def gradient(flat: Tensor) -> Tensor:
        slope = network_objective(space, torch.view_as_complex(flat))[1]
        return torch.view_as_real(slope) * real * weights

    flat, diagonal = torch.view_as_real(net.resolve_conj()).contiguous(), _curvatures(space, net)[..., None] * weights
    slope = gradient(flat)
    size, norm = (float((diagonal * flat.square()).sum().sqrt()), float((slope.square() / diagonal).sum().sqrt()))
    for _ in range(NEWTON_STEPS):

        def curve(direction: Tensor, at: Tensor = flat, base: Tensor = slope) -> Tensor:
            # A difference of gradients, right to 1e-7 of the Hessian: each step then gains as many digits as conjugate gradients give.
            epsilon = DIFFERENCE * float(at.norm()) / max(float(direction.norm()), 1e-300)
            return (gradient(at + epsilon * direction) - base) / epsilon

        trial = flat + _conjugate_gradients(curve, -slope, diagonal, late)
        turned = gradient(trial)
        reached = float((turned.square() / diagonal).sum().sqrt())
        if not reached < norm:
            break
        gained, flat, slope, norm = norm / reached if reached else torch.inf, trial, turned, reached
        if norm <= STATIONARY * size or gained < 2 or late():
            break
    ended = torch.zeros_like(blocks)
    ended[chosen] = blocks_of(space, torch.view_as_complex(flat))[0]
    return ended


def _curvatures(space: Frequencies, net: Complex[Tensor, "S I r w"]) -> Float[Tensor, "S I r w"]:
    """About the diagonal of the Hessian: what scales conjugate gradients."""
    outputs, depth = space.problem.y.shape[1], space.problem.depth
    moments = space.problem.second_moments[space.kept]
    h = space.problem.loss.smoothness * torch.linalg.matrix_norm(moments, ord=2)[:, None, None]
    a, b = (net[..., part].abs().square().sum(-1, keepdim=True) for part in (slice(outputs), slice(outputs, -1)))
    c = net[..., -1:].abs()
    parts = [c ** (2 * depth - 4) * b, c ** (2 * depth - 4) * a, (depth - 2) ** 2 * c ** (2 * depth - 6) * a * b]
    widths = (outputs, net.shape[-1] - outputs - 1, 1)
    scale = torch.cat([part.expand(*part.shape[:-1], width) for part, width in zip(parts, widths, strict=True)], -1)
    return h * scale + 2 * space.problem.mu / depth


def _conjugate_gradients(curve: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, late: Late) -> Tensor:
    """An x with Hessian x ≈ right, stopped where curvature is negative or it is late."""
    x, residual = torch.zeros_like(right), right
    scaled = residual / diagonal
    direction, inner = scaled, float((residual * scaled).sum())
    goal = CONJUGATE_TOL**2 * inner
    for _ in range(CONJUGATE_STEPS):
        image = curve(direction)
        bend = float((direction * image).sum())
        if bend <= 0 or inner <= goal or late():
            break
        x, residual = x + inner / bend * direction, residual - inner / bend * image
        scaled = residual / diagonal
        before, inner = inner, float((residual * scaled).sum())
        direction = scaled + inner / before * direction
    return x


def stationarity(space: Frequencies, blocks: Complex[Tensor, "I K C"]) -> float:
    """Distance of the blocks to stationarity relative to the gradient of the data term at 0, over the stored frequencies."""
    both = space.data_term(torch.stack([blocks, torch.zeros_like(blocks)]))[1]
    residual = Schatten(space.problem.p).stationarity(blocks, both[0] / space.problem.mu)
    return float(residual * space.problem.mu / torch.linalg.vector_norm(both[1]))
