r"""Maximum-entropy deformations of images: displacement fields, their exact second moments, warping, folds.

A field on the unit square is $u(y, x) = \sqrt T \sum_{ij} C_{ij} \sin(i\pi y) \sin(j\pi x)$ over $i, j \le c$ with
$\sqrt{i^2+j^2} < c + \frac12$, with independent $C_{ij} \sim N(0, 1/(i^2+j^2))$: the distribution of greatest entropy at a given mean of
$\int |\nabla u|^2$.  A displacement τ has two independent fields, for rows and for columns, in pixels: H·u and W·v at y, x on
`linspace(0, 1, ·)`.  It acts as **out(p) = x(p − τ(p))**: a positive τ moves what is in the image downwards and to the right.

For square images these are the fields of Petrini et al., arXiv 2105.02468, whose temperatures and typical displacement are
`temperature_range` and `typical_displacement`.  Where H ≠ W each axis has its own number of pixels, so that det(I − ∇τ), and with it the
temperature at which fields fold, is that of the square.
"""

import math
import warnings
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from linconv.interpolation import Boundary, Interpolation, gaussian, linear
from linconv.validation import (
    validate_device,
    validate_generator,
    validate_memory,
    validate_number,
    validate_size,
    validate_sizes,
    validate_tensor,
)


def temperature_range(n: int, cutoff: int) -> tuple[float, float]:
    r"""The published (min, max) of temperatures for n×n images: $1/(\pi n^2 \ln c)$ and $4/(\pi^3 c^2 \ln c)$.

    At the least the typical displacement is half a pixel; at the greatest fields begin to fold, which holds for fields on average only:
    measure it with `fold_fraction`.  Raises `ValueError` for a cutoff below 2, at which ln c = 0.  Source: arXiv 2105.02468.

    >>> [round(t, 8) for t in temperature_range(32, 3)]
    [0.00028295, 0.01304738]
    """
    size, c = _side(n), _with_logarithm(cutoff)
    return 1 / (math.pi * size**2 * math.log(c)), 4 / (math.pi**3 * c**2 * math.log(c))


def typical_displacement(temperature: float, n: int, cutoff: int) -> float:
    r"""The published typical displacement $\delta = \frac n2 \sqrt{\pi T \ln c}$ in pixels of n×n images.

    It is the asymptotic form at large cutoff of the root mean square of |τ(p)| over sites; that of the fields themselves, 0.816 where
    δ = 1, n = 32 and c = 3, follows from `displacement_variance`.  Raises `ValueError` for a cutoff below 2.  Source: arXiv 2105.02468.

    >>> round(typical_displacement(temperature_range(32, 3)[0], 32, 3), 12)
    0.5
    """
    t, size, c = validate_number("temperature", temperature), _side(n), _with_logarithm(cutoff)
    return size / 2 * math.sqrt(math.pi * t * math.log(c))


def typical_temperature(displacement: float, n: int, cutoff: int) -> float:
    """The temperature whose `typical_displacement` is this one, in pixels of n×n images; errors as there.

    >>> round(typical_displacement(typical_temperature(1.0, 32, 3), 32, 3), 12)
    1.0
    """
    d, size, c = validate_number("displacement", displacement), _side(n), _with_logarithm(cutoff)
    return 4 * d**2 / (math.pi * size**2 * math.log(c))


def sample_displacements(
    n_images: int,
    grid: tuple[int, int],
    *,
    temperature: float,
    cutoff: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Float[Tensor, "n_images 2 H W"]:
    """One maximum-entropy displacement field an image, in pixels: `[:, 0]` along H (rows, downwards), `[:, 1]` along W (columns).

    `temperature` ≥ 0, `cutoff` ≥ 1 (modes beyond the sites of the grid alias).  They are drawn in double precision on the device of the
    generator, and moved to `device` (default: that of the generator) and `dtype`.  Warns with the fraction of fields that fold, where some
    do and the temperature is above the published range.  Raises `ValueError` or `TypeError` naming the argument.

    >>> tau = sample_displacements(3, (8, 8), temperature=1e-3, cutoff=3, generator=torch.Generator().manual_seed(0))
    >>> tau.shape, bool((tau[..., 0, :].abs() < 1e-12).all())     # nothing moves at the border
    (torch.Size([3, 2, 8, 8]), True)
    """
    count, sizes, t, c = validate_size("n_images", n_images), _validated_grid(grid), _temperature(temperature), validate_cutoff(cutoff)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    validate_memory("n_images", 2 * count * math.prod(sizes))
    home = validate_generator(generator).device if device is None else validate_device(device)
    fields = expand_displacements(draw_coefficients(count, c, generator), sizes, t)
    if beyond_range(t, c):
        warn_of_folds(fold_fraction(fields), t, c)
    return fields.to(home, dtype)


def draw_coefficients(n_images: int, cutoff: int, generator: torch.Generator) -> Float[Tensor, "n_images 2 c c"]:
    """The standard normal numbers behind a sample of fields, on the device of the generator."""
    source = validate_generator(generator)
    return torch.randn(n_images, 2, cutoff, cutoff, dtype=torch.float64, generator=source, device=source.device)


def expand_displacements(coefficients: Float[Tensor, "n 2 c c"], grid: tuple[int, int], temperature: float) -> Float[Tensor, "n 2 H W"]:
    """The fields of these standard normal numbers, in pixels."""
    amplitudes, rows, columns = (x.to(coefficients.device) for x in _modes(grid, coefficients.shape[-1]))
    pixels = torch.tensor(grid, dtype=torch.float64, device=coefficients.device)[:, None, None]
    return math.sqrt(temperature) * pixels * (rows @ (coefficients * amplitudes) @ columns.T)


def displacement_variance(grid: tuple[int, int], *, temperature: float, cutoff: int, axis: int | None = None) -> Float[Tensor, "H W"]:
    r"""The exact variance at each site of one component of `sample_displacements`, in pixels², `(H, W)`.

    $\sigma_p^2 = T n^2 \sum_{ij} \sin^2(i\pi y) \sin^2(j\pi x)/(i^2+j^2)$ with n = H for the component along rows (`axis` 0) and n = W for
    that along columns (1), the same where H = W.  Without `axis` the grid must be square.  Derived here: independent coefficients.

    >>> variance = displacement_variance((32, 32), temperature=typical_temperature(1.0, 32, 3), cutoff=3)
    >>> round(float(2 * variance.mean()) ** 0.5, 3)               # root mean square of |τ|, both components
    0.816
    """
    sizes, t, c, n = _moment_arguments(grid, temperature, cutoff, axis)
    amplitudes, rows, columns = _modes(sizes, c)
    return t * n**2 * (rows.square() @ amplitudes.square() @ columns.square().T)


def displacement_covariance(grid: tuple[int, int], *, temperature: float, cutoff: int, axis: int | None = None) -> Float[Tensor, "H W H W"]:
    r"""The exact covariance between sites of one component of `sample_displacements`, in pixels², `(H, W, H, W)`.

    $\rho(p, p') = T n^2 \sum_{ij} \sin(i\pi y)\sin(j\pi x)\sin(i\pi y')\sin(j\pi x')/(i^2+j^2)$; `axis` as in `displacement_variance`.  The
    two components are independent.  It has (HW)² numbers: 8 MB for 32×32 images.  Derived here.

    >>> covariance = displacement_covariance((4, 4), temperature=1e-3, cutoff=2).reshape(16, 16)
    >>> torch.allclose(covariance.diagonal(), displacement_variance((4, 4), temperature=1e-3, cutoff=2).flatten())
    True
    """
    sizes, t, c, n = _moment_arguments(grid, temperature, cutoff, axis)
    validate_memory("grid", math.prod(sizes) ** 2, limit=2**31)
    amplitudes, rows, columns = _modes(sizes, c)
    factors = torch.einsum("yi,xj,ij->yxij", rows, columns, n * math.sqrt(t) * amplitudes).flatten(2)
    return torch.einsum("yxm,YXm->yxYX", factors, factors)


def warp(
    images: Float[Tensor, "N C H W"],
    displacements: Float[Tensor, "N 2 H W"],
    *,
    interpolation: Interpolation = "linear",
    boundary: Boundary = "clamp",
) -> Float[Tensor, "N C H W"]:
    r"""out(p) = x(p − τ(p)): every image moved by its own field, in pixels; `[:, 0]` of the fields along rows, `[:, 1]` along columns.

    `interpolation`: "linear" between the four sites around p − τ(p); "gaussian", the mean over sites q with weights
    $\exp(-|p - \tau(p) - q|^2/2s^2)$, s = 0.4715, over the eight taps an axis that are not below rounding; "nearest", halves rounded up.
    `boundary`: "clamp" to the border, "periodic" around it.  The Gaussian window is over the sites of the image in the first case, over all
    its periods in the second; it blurs the image even where τ = 0, linear and nearest then return it bit by bit.

    Differentiable in images and displacements, "nearest" in images only.  The result has the dtype of the images, to which the fields are
    converted.  Raises `ValueError` or `TypeError` naming the argument.  Source: arXiv 2105.02468; one field an image, all at once.

    >>> image = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> half = torch.tensor([[[[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]]]])
    >>> warp(image, half).tolist(), warp(image, half, boundary="periodic").tolist()
    ([[[[1.0, 1.5, 3.0]]]], [[[[2.5, 1.5, 3.0]]]])
    """
    _validate_choice("interpolation", interpolation, get_args(Interpolation))
    _validate_choice("boundary", boundary, get_args(Boundary))
    validate_tensor("images", images, ndim=(4,), shape="(N, C, H, W)")
    expected = (len(images), 2, *images.shape[2:])
    if tuple(validate_displacements(displacements).shape) != expected:
        got = tuple(displacements.shape)
        raise ValueError(f"displacements: expected {expected}, one field an image, got {got}; use expand for a common field")
    if displacements.device != images.device:
        raise ValueError(f"displacements: expected them on {images.device} as the images are, got {displacements.device}; use .to(...)")
    tau = displacements.to(images.dtype)
    if tau is not displacements:  # what is finite in double precision may not be in single
        validate_displacements(tau)
    if interpolation == "gaussian":
        return gaussian(images, tau, boundary)
    return linear(images, -(0.5 - tau).floor() if interpolation == "nearest" else tau, boundary)


def least_determinants(displacements: Float[Tensor, "N 2 H W"], *, boundary: Boundary = "clamp") -> Float[Tensor, " N"]:
    r"""The least of det(I − ∇τ) over each image: where it is ≤ 0, p ↦ p − τ(p) folds and is no deformation.

    Between sites the field is the bilinear one, as in `warp`; in a cell its determinant is affine in the position (the term in both
    coordinates is that of a vector with itself), so that the least is at a corner.  "periodic" counts the cells across the border too.
    Derived here.

    >>> still, reflection = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    >>> reflection[0, 1] = 2 * torch.arange(3.0)                  # p − τ(p) runs backwards along the columns
    >>> least_determinants(torch.cat([still, reflection])).tolist()
    [1.0, -1.0]
    """
    _validate_choice("boundary", boundary, get_args(Boundary))
    tau = validate_displacements(displacements)
    if boundary == "periodic":
        tau = F.pad(tau, (0, 1, 0, 1), mode="circular")
    # An axis of one site has no cell: without change along it, the determinant is that of the other axis.
    tau = F.pad(tau, (0, int(tau.shape[3] == 1), 0, int(tau.shape[2] == 1)), mode="replicate")
    down, right = tau.diff(dim=2), tau.diff(dim=3)
    corners = [
        (1 - d[:, 0]) * (1 - r[:, 1]) - d[:, 1] * r[:, 0]
        for d in (down[..., :-1], down[..., 1:])
        for r in (right[:, :, :-1], right[:, :, 1:])
    ]
    return torch.stack(corners).amin((0, 2, 3))


def folds(displacements: Float[Tensor, "N 2 H W"], *, boundary: Boundary = "clamp") -> Bool[Tensor, " N"]:
    """Which fields fold somewhere: `least_determinants` ≤ 0."""
    return least_determinants(displacements, boundary=boundary) <= 0


def fold_fraction(displacements: Float[Tensor, "N 2 H W"], *, boundary: Boundary = "clamp") -> float:
    """The share of fields that fold."""
    return float(folds(displacements, boundary=boundary).double().mean())


def beyond_range(temperature: float, cutoff: int) -> bool:
    """Whether fields are expected to fold: above the published range, and, at cutoff 1, which has none, wherever anything moves."""
    return temperature > (temperature_range(1, cutoff)[1] if cutoff > 1 else 0)


def warn_of_folds(fraction: float, temperature: float, cutoff: int) -> None:
    """A warning with the measured fraction, where it is not 0."""
    if fraction > 0:
        above = f", above the published maximum of {temperature_range(1, cutoff)[1]:.3g}" if cutoff > 1 else ""
        share = f"{100 * fraction:.3g} % of the fields fold"
        warnings.warn(
            f"temperature: {share} at {temperature:.3g}, cutoff {cutoff}{above}; they are no deformations",
            UserWarning,
            stacklevel=3,
        )


def validate_displacements(displacements: object) -> Tensor:
    tau = validate_tensor("displacements", displacements, ndim=(4,), shape="(N, 2, H, W)")
    if tau.shape[1] != 2:
        raise ValueError(f"displacements: expected (N, 2, H, W), along rows and along columns, got {tuple(tau.shape)}")
    return tau


def _modes(grid: tuple[int, int], cutoff: int) -> tuple[Float[Tensor, "c c"], Float[Tensor, "H c"], Float[Tensor, "W c"]]:
    """Standard deviations of the coefficients at T = 1, and sin(iπ·) on the rows and on the columns."""
    k = torch.arange(1, cutoff + 1, dtype=torch.float64)
    radii = torch.hypot(k[:, None], k)
    rows, columns = (torch.sin(math.pi * torch.linspace(0, 1, n, dtype=torch.float64)[:, None] * k) for n in grid)
    return (radii < cutoff + 0.5) / radii, rows, columns


def _validated_grid(grid: object) -> tuple[int, int]:
    sizes = validate_sizes("grid", grid)
    if len(sizes) != 2:
        raise ValueError(f"grid: expected two sizes (H, W), got {sizes}; displacements are those of 2-D images")
    return sizes[0], sizes[1]


def _moment_arguments(grid: object, temperature: object, cutoff: object, axis: object) -> tuple[tuple[int, int], float, int, int]:
    sizes = _validated_grid(grid)
    if axis is None and sizes[0] != sizes[1]:
        raise ValueError(f"grid: expected a square one, on which both components have the same moments, got {sizes}; name the axis")
    if axis not in (None, 0, 1):
        raise ValueError(f"axis: expected 0, along rows, or 1, along columns, got {axis!r}")
    return sizes, _temperature(temperature), validate_cutoff(cutoff), sizes[1 if axis == 1 else 0]


def _temperature(temperature: object) -> float:
    return validate_number("temperature", temperature)


def validate_cutoff(cutoff: object) -> int:
    c = validate_size("cutoff", cutoff)
    validate_memory("cutoff", c**2, limit=2**24)
    return c


def _side(n: object) -> int:
    """n of n×n images: the published formulas are about square ones."""
    if isinstance(n, tuple | list):
        raise TypeError(f"n: expected the side of square images, whose formula this is, got {n!r}; other grids have displacement_variance")
    return validate_size("n", n)


def _with_logarithm(cutoff: object) -> int:
    if validate_cutoff(cutoff) == 1:
        raise ValueError("cutoff: expected at least 2, got 1: the published formula divides by log 1 = 0; use displacement_variance")
    return validate_cutoff(cutoff)


def _validate_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
