r"""Maxima over the sphere of $g(w) = \sum_i \lambda_i \sigma(w\cdot x_i)$, σ the ReLU: ascent along great circles, and enumeration.

g is linear on each region of the arrangement of the hyperplanes $w\cdot x_i = 0$.  A local maximum on the sphere lies in the relative
interior of one face F of the arrangement, and there it is $v_F/|v_F|$: the direction of the linear function, projected on the span of F.
On a great circle faces are arcs and their ends, so that maxima have a closed form.
"""

import math
from itertools import combinations, product

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

WORK = 1e9  # multiplications that an enumeration may take: some seconds
ON = 1e-9  # |w·x_i| of unit vectors below which w lies on the hyperplane
CHUNK = 2**14  # vertices at a time


def local_maxima(
    points: Float[Tensor, "P d"], dual: Float[Tensor, " P"], starts: Float[Tensor, "n d"], *, generator: torch.Generator, rounds: int = 24
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Neurons of norm 1 at local maxima of g, and g there: in d = 2 all of them, else where `rounds` rounds of ascent from `starts` end.

    A round follows a great circle from each neuron to the first maximum on it, in closed form: along the gradient within the hyperplanes on
    which the neuron lies, in a random direction within them, in any random direction.  g never falls.  `points` `(P, d)` have norm 1.
    """
    if points.shape[1] == 2:
        return _circle_maxima(points, dual)
    w = starts
    for round_ in range(rounds):
        on = (w @ points.T).abs() <= ON
        along = ((w @ points.T > ON) * dual) @ points if round_ % 3 == 0 else torch.randn(w.shape, dtype=w.dtype, generator=generator)
        w = _climb(points, dual, w, _tangent(points, w, along, on if round_ % 3 < 2 else torch.zeros_like(on)), on)
    return w, torch.relu(w @ points.T) @ dual


def exact_maximum(points: Float[Tensor, "P d"], dual: Float[Tensor, " P"]) -> tuple[float, Float[Tensor, " d"]] | None:
    """max |g| over the whole sphere and a neuron there, from all faces; None where these are too many or the points degenerate.

    Every face has a vertex, a direction orthogonal to d − 1 of the points.  For each such direction and each choice, for each of these
    points, of w·x > 0, w·x < 0 or w·x = 0, the critical direction of that face is computed and g *evaluated* there.  A candidate that
    does not lie in its face is a neuron all the same, so that the largest value is the maximum, without a test of membership.
    2·3^{d−1} candidates a subset of d − 1 points.  The points must be in general position (no vertex on d hyperplanes), but for d = 2.

    >>> x = torch.eye(3, dtype=torch.float64)
    >>> value, neuron = exact_maximum(x, torch.ones(3, dtype=torch.float64))
    >>> round(value, 12), neuron.round(decimals=4).tolist()
    (1.732050807569, [0.5774, 0.5774, 0.5774])
    """
    n, dim = points.shape
    if dim == 2:
        return _highest(points, dual, torch.cat([_circle_maxima(points, sign * dual)[0] for sign in (1.0, -1.0)]))
    if n < dim - 1 or math.comb(n, dim - 1) * 2 * 3 ** (dim - 1) * n * dim > WORK:
        return None
    subsets = torch.tensor(list(combinations(range(n), dim - 1)))
    best = _highest(points, dual, points)
    for some in subsets.split(CHUNK):
        vertices = _vertices(points[some])
        if vertices is None or bool((((vertices @ points.T).abs() <= ON).sum(1) != dim - 1).any()):
            return None
        for side in (vertices, -vertices):
            best = _highest_at(points, dual, some, side, best)
    return best


def _highest(points: Float[Tensor, "P d"], dual: Float[Tensor, " P"], w: Float[Tensor, "n d"]) -> tuple[float, Float[Tensor, " d"]]:
    """The largest |g| among neurons, and where."""
    value, place = (torch.relu(w @ points.T) @ dual).abs().max(0)
    return float(value), w[place]


def _vertices(spanning: Float[Tensor, "n k d"]) -> Float[Tensor, "n d"] | None:
    """Unit vectors orthogonal to k = d − 1 points each, by cofactors; None where some of them do not determine one."""
    dim = spanning.shape[2]
    others = [[j for j in range(dim) if j != i] for i in range(dim)]
    cofactors = torch.stack([(-1.0) ** i * torch.linalg.det(spanning[:, :, columns]) for i, columns in enumerate(others)], 1)
    sizes = torch.linalg.vector_norm(cofactors, dim=1, keepdim=True)
    return cofactors / sizes if bool((sizes > ON).all()) else None


def _highest_at(
    points: Float[Tensor, "P d"],
    dual: Float[Tensor, " P"],
    subsets: Int64[Tensor, "n k"],
    vertices: Float[Tensor, "n d"],
    best: tuple[float, Float[Tensor, " d"]],
) -> tuple[float, Float[Tensor, " d"]]:
    """The higher of `best` and the largest |g| over the critical directions of all faces at the given vertices."""
    responses = (vertices @ points.T).scatter(1, subsets, 0.0)
    outside = ((responses > 0) * dual) @ points
    own, weights = points[subsets], dual[subsets]
    best = max(best, _highest(points, dual, vertices), key=lambda found: found[0])
    for kept in product((False, True), repeat=subsets.shape[1]):
        on, off = ([i for i, keep in enumerate(kept) if keep is wanted] for wanted in (True, False))
        basis = torch.linalg.qr(own[:, on].mT).Q
        for active in product((0.0, 1.0), repeat=len(off)):
            v = outside + (own[:, off] * (weights[:, off] * outside.new_tensor(active))[:, :, None]).sum(1)
            v = v - (basis @ (basis.mT @ v[:, :, None]))[:, :, 0]
            sizes = torch.linalg.vector_norm(v, dim=1)
            high = sizes > best[0]  # in its face a critical direction has |g| = |v|: no other can be the maximum there
            if bool(high.any()):
                w = v[high] / sizes[high, None]
                best = max(best, _highest(points, dual, torch.cat([w, -w])), key=lambda found: found[0])
    return best


def _arcs(a: Float[Tensor, "n P"], b: Float[Tensor, "n P"], dual: Float[Tensor, " P"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g(φ) = Σ λ_i σ(a_i cos φ + b_i sin φ) as p cos φ + q sin φ on 2P arcs: their ends, ascending, and p, q, each `(n, 2P)`."""
    towards = torch.atan2(b, a)
    on, off = torch.remainder(towards - math.pi / 2, 2 * math.pi), torch.remainder(towards + math.pi / 2, 2 * math.pi)
    begin, order = torch.cat([on, off], 1).sort(1)
    end = torch.cat([begin[:, 1:], begin[:, :1] + 2 * math.pi], 1)
    sums = []
    for part in (dual * a, dual * b):
        jumps = torch.cat([part, -part], 1).gather(1, order).cumsum(1)
        # On the last arc, around φ = 0, those are active that begin after they end.
        sums.append(jumps - jumps[:, -1:] + (part * (on > off)).sum(1, keepdim=True))
    return begin, end, sums[0], sums[1]


def _maxima_on_arcs(begin: Tensor, end: Tensor, p: Tensor, q: Tensor) -> tuple[Float[Tensor, "n m"], Bool[Tensor, "n m"]]:
    """Angles of interior critical points of the arcs and of their ends, and which of them are local maxima."""
    inside = torch.remainder(torch.atan2(q, p) - begin, 2 * math.pi) + begin
    before, after = q * end.cos() - p * end.sin(), q.roll(-1, 1) * end.cos() - p.roll(-1, 1) * end.sin()
    return torch.cat([inside, end], 1), torch.cat([inside < end, (before >= 0) & (after <= 0)], 1)


def _circle_maxima(points: Float[Tensor, "P 2"], dual: Float[Tensor, " P"]) -> tuple[Float[Tensor, "m 2"], Float[Tensor, " m"]]:
    """All local maxima of g on the circle of neurons, and its highest arc end, so that none is missed to rounding."""
    begin, end, p, q = _arcs(points[None, :, 0], points[None, :, 1], dual)
    angles, maxima = _maxima_on_arcs(begin, end, p, q)
    maxima[:, angles.shape[1] // 2 :] = True
    phi = angles[maxima]
    w = torch.stack([phi.cos(), phi.sin()], 1)
    return w, torch.relu(w @ points.T) @ dual


def _tangent(
    points: Float[Tensor, "P d"], w: Float[Tensor, "n d"], along: Float[Tensor, "n d"], on: Bool[Tensor, "n P"]
) -> Float[Tensor, "n d"]:
    """`along` projected on what is orthogonal to w and to the points with w·x = 0, at length 1; zero where nothing is left."""
    spanned = torch.einsum("np,pi,pj->nij", on.to(w.dtype), points, points) + w[:, :, None] * w[:, None, :]
    values, vectors = torch.linalg.eigh(spanned)
    free = vectors * (values < ON)[:, None, :]
    tangent = (free @ (vectors.mT @ along[:, :, None]))[:, :, 0]
    size = torch.linalg.vector_norm(tangent, dim=1, keepdim=True)
    return torch.where(size > ON, tangent / size.clamp_min(ON), 0.0)


def _climb(
    points: Float[Tensor, "P d"], dual: Float[Tensor, " P"], w: Float[Tensor, "n d"], u: Float[Tensor, "n d"], on: Bool[Tensor, "n P"]
) -> Float[Tensor, "n d"]:
    """From each w the first local maximum along ±u, the side on which g rises; w itself where it rises on none."""
    a, b = w @ points.T, u @ points.T
    a = torch.where(on, 0.0, a)
    rises = [((a > 0) * dual * side * b).sum(1) + torch.relu(side * b * on) @ dual for side in (1, -1)]
    side = torch.where(rises[0] >= rises[1], 1.0, -1.0)[:, None]
    begin, end, p, q = _arcs(a, side * b, dual)
    angles, maxima = _maxima_on_arcs(begin, end, p, q)
    first = torch.where(maxima & (torch.remainder(angles, 2 * math.pi) > ON), torch.remainder(angles, 2 * math.pi), math.inf).min(1).values
    moved = torch.isfinite(first) & (torch.maximum(*rises) > 0)
    phi = torch.where(moved, first, 0.0)[:, None]
    reached = phi.cos() * w + phi.sin() * side * u
    reached = reached / torch.linalg.vector_norm(reached, dim=1, keepdim=True)
    better = torch.relu(reached @ points.T) @ dual > torch.relu(w @ points.T) @ dual
    return torch.where(better[:, None], reached, w)
