r"""Spherical data: what a one-hidden-layer ReLU network learns of them in its lazy and its feature limit, and how rotations change it.

x uniform on the sphere $S^{d-1}$, targets 1 or a Gaussian field.  The two limits and what lies between them are re-exported here:
`kernel_regression` with `tangent_kernel` (lazy), `min_total_variation` (feature), and `ShallowNetwork` with `descend` at finite width.
The model is that of Petrini, Cagnetta, Vanden-Eijnden and Wyart, arXiv 2206.12314; docs/lazy-feature.md has what is derived here.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.kernels import (
    Kernel,
    KernelRegression,
    arc_cosine_kernel,
    even,
    expected_kernel_error,
    kernel_regression,
    laplace_kernel,
    tangent_kernel,
)
from linconv.minimal_variation import MinimalVariation, constant_variation, min_total_variation
from linconv.shallow import Descent, ShallowNetwork, descend
from linconv.statistics import Interval, bootstrap_interval, mean_interval
from linconv.validation import validate_generator, validate_memory, validate_size, validate_tensor

__all__ = [
    "Descent",
    "Kernel",
    "KernelRegression",
    "MinimalVariation",
    "ShallowNetwork",
    "arc_cosine_kernel",
    "constant_variation",
    "descend",
    "even",
    "expected_kernel_error",
    "gaussian_field",
    "kernel_regression",
    "laplace_kernel",
    "learning_exponent",
    "min_total_variation",
    "rotated",
    "rotation_stability",
    "sphere_data",
    "tangent_kernel",
]

NEGATIVE = 1e-10  # of the largest eigenvalue: below −this a covariance is none


def sphere_data(n: int, dim: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Float[Tensor, "n d"]:
    """n points, uniform and independent on the sphere S^{dim−1} of norm 1.

    Drawn in float64, so that float32 points are the same ones rounded.

    >>> x = sphere_data(4, 3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, bool((x.norm(dim=1) - 1).abs().max() < 1e-15)
    (torch.Size([4, 3]), True)
    """
    count, d = validate_size("n", n), validate_size("dim", dim)
    validate_memory("n", count * d)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    source = validate_generator(generator)
    drawn = torch.randn(count, d, dtype=torch.float64, generator=source, device=source.device)
    sizes = torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    unit: Tensor = (drawn / sizes).to(dtype)
    return unit


def gaussian_field(x: Float[Tensor, "n d"], covariance: Kernel, *, generator: torch.Generator, draws: int = 1) -> Float[Tensor, "n draws"]:
    """`draws` independent Gaussian fields of mean 0 and the given covariance, at the points `x`; training and test points together.

    By the eigenvectors of the covariance matrix.  Raises `ValueError` where that matrix has a negative eigenvalue beyond rounding.

    >>> x = sphere_data(5, 3, generator=torch.Generator().manual_seed(0))
    >>> gaussian_field(x, even(laplace_kernel), generator=torch.Generator().manual_seed(1), draws=2).shape
    torch.Size([5, 2])
    """
    points = validate_tensor("x", x, ndim=(2,), shape="points (n, d)")
    count, source = validate_size("draws", draws), validate_generator(generator)
    matrix = covariance(points.to(torch.float64), points.to(torch.float64))
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if float(values[0]) < -NEGATIVE * float(values[-1]):
        raise ValueError(f"covariance: expected no negative eigenvalue at these points, got {float(values[0]):.2g}; it is no covariance")
    noise = torch.randn(len(points), count, dtype=torch.float64, generator=source, device=source.device).to(points.device)
    field: Tensor = vectors @ (values.clamp_min(0).sqrt()[:, None] * noise)
    return field.to(x.dtype)


def rotated(x: Float[Tensor, "n d"], angle: float, *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Each point turned by `angle` (radians) in a plane of its own, uniform among all planes through the origin; d ≥ 2.

    >>> x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    >>> turned = rotated(x, math.pi / 2, generator=torch.Generator().manual_seed(0))      # one plane, two senses
    >>> turned.abs().round(decimals=12).tolist()
    [[4.0, 3.0]]
    """
    points = validate_tensor("x", x, ndim=(2,), shape="points (n, d)")
    source, theta = validate_generator(generator), _angle(angle)
    if points.shape[1] < 2:
        raise ValueError(f"x: expected points of two dimensions or more, got {tuple(points.shape)}; a line has no rotations")
    drawn = torch.randn(*points.shape, 2, dtype=torch.float64, generator=source, device=source.device).to(points.device)
    plane = torch.linalg.qr(drawn).Q
    # QR has one sense of rotation where d = 2: with a random sign both are as likely.
    coins = torch.randint(2, (len(points), 1), generator=source, device=source.device)
    sense = 1 - 2 * coins.to(points.device, torch.float64)
    first, second = plane.unbind(2)
    a, b = ((points.to(torch.float64) * axis).sum(1, keepdim=True) for axis in (first, second))
    turn, rise = math.cos(theta) - 1, math.sin(theta) * sense
    moved: Tensor = points + turn * (a * first + b * second) + rise * (a * second - b * first)
    return moved.to(x.dtype)


def rotation_stability(
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n d"],
    angle: float,
    *,
    generator: torch.Generator,
    draws: int = 4,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    r"""$S = \langle \|f(x) - f(R_\theta x)\|^2 \rangle$ over points and over rotations by θ = `angle` in random planes, with an interval.

    `f` maps `(n, d)` to `(n,)` or `(n, K)`; `draws` rotations a point.  The bootstrap interval is over points.  Not relative: an f that is
    scaled by a has a² times the stability.  Raises `ValueError` for fewer than two points and for an f of another shape.

    >>> x = sphere_data(1000, 3, generator=torch.Generator().manual_seed(0))
    >>> s = rotation_stability(lambda x: x[:, 0], x, 0.1, generator=torch.Generator().manual_seed(1))
    >>> s.low < 4 * math.sin(0.05) ** 2 * 2 / 9 < s.high            # 4 sin²(θ/2) · 2|β|²/d² for f = β·x
    True
    """
    points = validate_tensor("x", x, ndim=(2,), shape="points (n, d)")
    count = validate_size("draws", draws)
    with torch.no_grad():
        here = f(points)
        if not isinstance(here, Tensor) or here.ndim not in (1, 2) or len(here) != len(points):
            got = getattr(here, "shape", type(here).__name__)
            raise ValueError(f"f: expected a function to (n,) or (n, K), got {got} from {len(points)} points")
        moves = [(here - f(rotated(points, angle, generator=generator))).square().reshape(len(points), -1).sum(1) for _ in range(count)]
    squares = torch.stack(moves).mean(0)
    return bootstrap_interval(squares, generator=generator, level=level, resamples=resamples)


def learning_exponent(sizes: Float[Tensor, " m"], errors: Float[Tensor, "runs m"], *, level: float = 0.95) -> Interval:
    r"""β of errors ∝ P^{−β}: least squares of log error against log P in each run, and Student's interval of its mean over runs.

    `sizes` `(m,)` are the numbers P of training points, `errors` `(runs, m)` those of independent runs.  The interval is that of the
    sampling of runs; a curve that bends in this range has no one exponent.  Raises `ValueError` for fewer than two sizes or runs, and for
    errors that are not positive.

    >>> sizes = torch.tensor([10.0, 20.0, 40.0])
    >>> beta = learning_exponent(sizes, torch.stack([sizes**-2, 3 * sizes**-2]))
    >>> round(beta.estimate, 5), round(beta.high - beta.low, 5)
    (2.0, 0.0)
    """
    p = validate_tensor("sizes", sizes, ndim=(1,), shape="numbers of points (m,)").to(torch.float64)
    values = validate_tensor("errors", errors, ndim=(2,), shape="errors (runs, m)").to(torch.float64)
    if values.shape[1] != len(p) or len(p.unique()) < 2 or not bool((p > 0).all()) or not bool((values > 0).all()):
        raise ValueError(
            f"sizes, errors: expected two sizes or more and a positive error at each, got {p.tolist()} and errors of shape "
            f"{tuple(values.shape)}, least {float(values.min()):.3g}"
        )
    logs = p.log() - p.log().mean()
    slopes = -(values.log() @ logs) / logs.square().sum()
    return mean_interval(slopes, level=level)


def _angle(angle: object) -> float:
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not math.isfinite(angle):
        raise ValueError(f"angle: expected a finite number of radians, got {angle!r}")
    return float(angle)
