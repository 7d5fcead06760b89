r"""The lazy limit of one-hidden-layer ReLU networks: kernel regression with the neural tangent kernel, in closed form.

For $f(x) = \frac1{\sqrt H} \sum_h c_h \sigma(w_h \cdot x)$ without biases, $w_h \sim N(0, I)$ and $c_h \sim N(0, 1)$, *both layers
trained*, the tangent kernel of an infinitely wide network is

$$\Theta(x, z) = E\,\sigma(w\cdot x)\,\sigma(w\cdot z) + x\cdot z\; E\,\sigma'(w\cdot x)\,\sigma'(w\cdot z) .$$

The expectations are the arc-cosine kernels (docs/lazy-feature.md derives them).  As σ(t) − σ(−t) = t, the odd part of every function of
these networks is linear, and on more than d pairs of opposite points Θ is singular.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.validation import validate_number, validate_tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
EPSILON = torch.finfo(torch.float64).eps
TWINS = 1e-7  # angle below which two directions are one: kernels with a kink there have lost half the digits


def arc_cosine_kernel(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"], order: int) -> Float[Tensor, "n m"]:
    r"""$E\,\sigma_k(w\cdot x)\,\sigma_k(w\cdot z)$ over $w \sim N(0, I_d)$, with $\sigma_1$ the ReLU and $\sigma_0$ its derivative.

    With θ the angle between x and z: order 0 is $(\pi-\theta)/2\pi$, order 1 is $|x||z|\,(\sin\theta + (\pi-\theta)\cos\theta)/2\pi$.
    θ comes from |x̂ − ẑ| and |x̂ + ẑ|, so that small angles keep their digits.  Raises `ValueError` for another order, points of other
    dimensions, and at order 0 for a point at the origin, which has no direction.  Source: Cho and Saul (NIPS 2009).

    >>> e = torch.eye(2, dtype=torch.float64)
    >>> [(2 * math.pi * arc_cosine_kernel(e[:1], e, k)).round(decimals=6).tolist() for k in (0, 1)]
    [[[3.141593, 1.570796]], [[3.141593, 1.0]]]
    """
    if order not in (0, 1):
        raise ValueError(f"order: expected 0 (step) or 1 (ReLU), got {order!r}")
    angle, sizes = _angles(x, z)
    if order == 0:
        if not bool((sizes > 0).all()):
            raise ValueError("x, z: expected points away from the origin, got one there; a step has no value at a point without direction")
        return (math.pi - angle) / (2 * math.pi)
    return sizes * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)


def tangent_kernel(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""The neural tangent kernel Θ of an infinitely wide one-hidden-layer ReLU network without biases, both layers trained.

    $\Theta = |x||z|\,(\sin\theta + 2(\pi-\theta)\cos\theta)/2\pi$, which is |x|² on the diagonal.  Errors as in `arc_cosine_kernel`.

    >>> x = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    >>> tangent_kernel(x, torch.cat([x, -x])).abs().round(decimals=6).tolist()
    [[1.0, 0.0]]
    """
    angle, sizes = _angles(x, z)
    return sizes * (angle.sin() + 2 * (math.pi - angle) * angle.cos()) / (2 * math.pi)


def laplace_kernel(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """exp(−|x − z|), the covariance of a field that is as rough as Brownian motion along every line."""
    _same_dimension(x, z)
    return torch.exp(-torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist"))


def even(kernel: Kernel) -> Kernel:
    """The covariance (k(x, z) + k(x, −z))/2 of the even part of a field, for k(−x, −z) = k(x, z).

    Networks without biases represent even functions and linear ones, and no others.
    """
    return lambda x, z: (kernel(x, z) + kernel(x, -z)) / 2


@dataclass(frozen=True)
class KernelRegression:
    """f(x) = Σ_i k(x, x_i) a_i, called on points `(n, d)` or images `(n, …)` with d entries: `(n,)`, or `(n, K)` for K targets.

    `condition`: largest over smallest eigenvalue of the kernel matrix (with its ridge) among those that count; `rank`: how many do.
    """

    points: Float[Tensor, "P d"]
    coefficients: Float[Tensor, "P *K"]
    kernel: Kernel
    condition: float
    rank: int

    def __call__(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *K"]:
        seen = x.flatten(1).to(torch.float64)
        return (self.kernel(seen, self.points) @ self.coefficients).to(x.dtype)

    @property
    def norm(self) -> float:
        """The norm of f in the space of the kernel, (Σ_ij a_i k(x_i, x_j) a_j)^{1/2}; of K targets, root of the sum of squares."""
        squares = (self.coefficients * (self.kernel(self.points, self.points) @ self.coefficients)).sum()
        return math.sqrt(max(float(squares), 0.0))


def kernel_regression(
    x: Float[Tensor, "P *shape"], y: Float[Tensor, "P *K"], *, kernel: Kernel = tangent_kernel, ridge: float = 0.0
) -> KernelRegression:
    r"""The interpolant of least norm in the space of a kernel, or with `ridge` ρ > 0 the minimiser of Σ_i (f(x_i) − y_i)² + ρ‖f‖².

    `x`: points `(P, d)`, or images that are flattened; `y`: `(P,)` or `(P, K)`.  The kernel matrix is diagonalised in float64, and
    eigenvalues below P·ε times the largest count as zero: what is left is the pseudo-inverse, hence the least norm.  It is the limit of
    gradient descent from a function that is zero, for a network that stays linear in its weights (Jacot et al., arXiv 1806.07572).
    Raises `ValueError` for repeated points, naming them, and for targets that no function of that space interpolates.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> f = kernel_regression(x, torch.tensor([1.0, -1.0], dtype=torch.float64))
    >>> f(x).round(decimals=9).tolist(), f.rank
    ([1.0, -1.0], 2)
    """
    points, targets = validated_points(x, y)
    rho = validate_number("ridge", ridge)
    if rho == 0:
        refuse_twins(points)
    matrix = kernel(points, points)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values + rho
    kept = values > len(points) * EPSILON * values[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    coefficients = vectors @ (inverse.reshape(-1, *[1] * (targets.ndim - 1)) * (vectors.T @ targets))
    left = float((matrix @ coefficients + rho * coefficients - targets).abs().max())
    if left > 1e-6 * float(targets.abs().max()):
        raise ValueError(
            f"y: expected targets that the kernel can interpolate, got {left:.2g} left over; without biases the odd part of a function is "
            "linear, which opposite points may contradict; remove one of each pair, or pass ridge > 0"
        )
    used = values[kept]
    return KernelRegression(points, coefficients, kernel, float(used.max() / used.min()), int(kept.sum()))


def expected_kernel_error(
    x: Float[Tensor, "P d"], test: Float[Tensor, "n d"], *, covariance: Kernel, kernel: Kernel = tangent_kernel
) -> Float[Tensor, " n"]:
    r"""The squared error of `kernel_regression` on `x` at each point of `test`, in expectation over Gaussian fields of covariance C.

    The predictor is linear in the targets, $f(t) = a^\top y$ with $a = K^{-1} k(t)$, so that
    $E (f - f^*)^2 = C(t, t) - 2 a^\top C(x, t) + a^\top C(x, x)\, a$: exact, no field is drawn.  With C = k it is the variance of a
    Gaussian process given its values at x, the least that any predictor has.
    Errors as in `kernel_regression`.

    >>> x = torch.eye(3, dtype=torch.float64)
    >>> expected_kernel_error(x, x[:1], covariance=laplace_kernel).abs().round(decimals=12).tolist()
    [0.0]
    """
    seen = validate_tensor("test", test, ndim=(2,), shape="points (n, d)").to(torch.float64)
    fit = kernel_regression(x, torch.eye(len(x), dtype=torch.float64, device=x.device), kernel=kernel)
    points, weights = fit.points, fit.coefficients @ kernel(fit.points, seen)
    own = torch.cat([covariance(part, part).diagonal() for part in seen.split(32)])  # less than all pairs, fewer calls than points
    error = own - 2 * (weights * covariance(points, seen)).sum(0) + (weights * (covariance(points, points) @ weights)).sum(0)
    return error.clamp_min(0).to(test.dtype)


def validated_points(x: object, y: object) -> tuple[Float[Tensor, "P d"], Float[Tensor, "P *K"]]:
    """Points, flattened, and targets in float64, else raise naming the argument."""
    points = validate_tensor("x", x)
    targets = validate_tensor("y", y, ndim=(1, 2), shape="(P,) or (P, K)")
    if points.ndim < 2:
        raise ValueError(f"x: expected points (P, d) or images (P, …), got shape {tuple(points.shape)}")
    if len(points) != len(targets):
        raise ValueError(f"y: expected {len(points)} targets, one a point, got {len(targets)}")
    flat = points.detach().flatten(1).to(torch.float64)
    if not bool(flat.abs().sum(1).gt(0).all()):
        raise ValueError("x: expected points away from the origin, where a network without biases is 0, got one there; remove it")
    return flat, targets.detach().to(torch.float64)


def refuse_twins(points: Float[Tensor, "P d"]) -> None:
    """Raise, naming the pair, where two points have one direction: all functions of the network are multiples of each other there."""
    if len(points) < 2:
        return
    unit = points / torch.linalg.vector_norm(points, dim=1, keepdim=True)
    nearest, pair = torch.nn.functional.pdist(unit).min(0)
    if float(nearest) < TWINS:
        i, j = torch.triu_indices(len(points), len(points), 1)[:, int(pair)].tolist()
        raise ValueError(
            f"x: expected points of different directions, got {i} and {j} at an angle of {float(nearest):.1g}; keep one of them"
        )


def _angles(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Angles between points, and products of their norms; an angle with the origin is of no matter where its norm is 0."""
    _same_dimension(x, z)
    norms = [torch.linalg.vector_norm(points, dim=1) for points in (x, z)]
    u, v = (points / size.clamp_min(torch.finfo(x.dtype).tiny)[:, None] for points, size in zip((x, z), norms, strict=True))
    apart, together = (torch.cdist(u, side, compute_mode="donot_use_mm_for_euclid_dist") for side in (v, -v))
    return 2 * torch.atan2(apart, together), norms[0][:, None] * norms[1]


def _same_dimension(x: object, z: object) -> None:
    for name, points in (("x", x), ("z", z)):
        validate_tensor(name, points, ndim=(2,), shape="points (n, d)")
    if isinstance(x, Tensor) and isinstance(z, Tensor) and (x.shape[1] != z.shape[1] or x.dtype != z.dtype):
        raise ValueError(f"z: expected points of {x.shape[1]} dimensions in {x.dtype} as x has, got {z.shape[1]} in {z.dtype}")
