r"""Deformations of periodic images, band-limited and exact: fields that are stationary on the torus, warps, and what they do to spectra.

A periodic image is its trigonometric interpolation, $x(s) = \frac1N \sum_k \hat x_k\, \varphi_k(s)$ at every real position s, with
$\varphi_k(s) = \prod_\alpha e^{i k_\alpha s_\alpha}$, $k_\alpha = 2\pi u_\alpha / n_\alpha$, and $\cos \pi s_\alpha$ at the middle
frequency of an even side: so real images stay real.  The deformed image is x(p − τ(p)) at each site p.  For Gaussian τ its distance from x
has a spectrum in closed form (docs/linear-relative-stability.md).  `linconv.deformation` has the fields and interpolations of the
experiments.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from linconv.linear_stability import Covariance, validate_covariance
from linconv.spectra import CHUNK, frequencies, validate_images
from linconv.spectrum import mirror_index, pair_weights
from linconv.validation import validate_generator, validate_grid, validate_number, validate_size, validate_tensor

CACHED = 2**15  # numbers that are exponentiated at once


def maximum_entropy_covariance(grid: Sequence[int], *, variance: float | int, cutoff: float | int) -> Float[Tensor, "*grid"]:
    r"""The covariance ρ(h) of a component of a stationary field with the spectrum $1/|u|^2$ for 0 < |u| < `cutoff` + ½, ρ(0) = `variance`.

    The periodic counterpart of the maximum-entropy fields: u are integer frequencies, `variance` is in pixels².  Raises `ValueError` for a
    cutoff below ½ (no frequency is left), or one that reaches the middle frequency of a side.

    >>> maximum_entropy_covariance((6,), variance=2.0, cutoff=1).round(decimals=6).tolist()
    [2.0, 1.0, -1.0, -2.0, -1.0, 1.0]
    """
    sites = validate_grid(grid)
    scale, limit = validate_number("variance", variance), validate_number("cutoff", cutoff, positive=True) + 0.5
    squares = _squares(sites, [1.0] * len(sites))
    inside = (squares > 0) & (squares < limit**2)
    if not 1 < limit <= (min(sites) + 1) // 2:
        raise ValueError(f"cutoff: expected 1 ≤ cutoff < {(min(sites) + 1) // 2 - 0.5} on the grid {sites}, got {cutoff}")
    power = torch.where(inside, 1 / squares.clamp_min(1), 0.0)
    return scale * torch.fft.fftn(power / power.sum()).real


def stationary_displacements(
    n_images: int, covariance: Float[Tensor, "*grid"], *, generator: torch.Generator
) -> Float[Tensor, "n_images dims *grid"]:
    """Independent Gaussian displacement fields on the torus, `(n_images, dims, *grid)` in pixels, with E τ_α(p) τ_β(p + h) = δ_αβ ρ(h).

    `covariance` is ρ `(*grid)`, displacement h at index h, in pixels²; component α moves along dimension α.  Drawn on the device of the
    generator, by circulant embedding.  Raises `ValueError` for a ρ that no stationary field has: not even, or with a negative spectrum.

    >>> rho = maximum_entropy_covariance((8, 8), variance=0.25, cutoff=2)
    >>> tau = stationary_displacements(400, rho, generator=torch.Generator().manual_seed(0))
    >>> tau.shape, abs(float(tau.square().mean()) - 0.25) < 0.01
    (torch.Size([400, 2, 8, 8]), True)
    """
    count, source = validate_size("n_images", n_images), validate_generator(generator)
    rho = _stationary(covariance).to(source.device)
    dims = tuple(range(-rho.ndim, 0))
    power = torch.fft.rfftn(rho).real.clamp_min(0)
    white = torch.randn(count, rho.ndim, *rho.shape, dtype=rho.dtype, device=source.device, generator=source)
    return torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) * power.sqrt(), s=rho.shape, dim=dims)


def bandlimited_warp(images: Float[Tensor, "N C *grid"], displacements: Float[Tensor, "N dims *grid"]) -> Float[Tensor, "N C *grid"]:
    """x(p − τ(p)) of the trigonometric interpolation of periodic images, exact up to rounding.

    `displacements` `(N, dims, *grid)` in pixels, one field an image, component α along dimension α.  A whole displacement is a roll.
    Linear interpolation is another operator, which damps high frequencies.  C times the square of the number of sites operations an image.
    Differentiable in both.  Raises `ValueError` or `TypeError` for shapes or dtypes that do not fit.

    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    >>> bandlimited_warp(x, torch.ones(1, 1, 5)).round(decimals=4)
    tensor([[[5., 1., 2., 3., 4.]]])
    """
    validate_images(images)
    grid = tuple(images.shape[2:])
    validate_tensor("displacements", displacements, ndim=(images.ndim,), shape="(N, dims, *grid)")
    expected = (len(images), len(grid), *grid)
    if tuple(displacements.shape) != expected:
        raise ValueError(f"displacements: expected {expected}, one field an image, got {tuple(displacements.shape)}")
    if displacements.dtype != images.dtype:
        raise TypeError(f"displacements: expected {images.dtype} as the images have, got {displacements.dtype}; convert one with .to(...)")
    chunk = max(1, CHUNK // (images[0].numel() * max(images[0, 0].numel() // grid[-1], grid[-1])))
    return torch.cat([_interpolated(x, tau) for x, tau in zip(images.split(chunk), displacements.split(chunk), strict=True)])


def difference_covariance(image_covariance: Covariance, displacement_covariance: Float[Tensor, "..."]) -> Complex[Tensor, "*grid C C"]:
    r"""S(q) of y = τx − x to all orders in the displacement, for Gaussian τ and band-limited images.

    `image_covariance` is S_k = E x̂x̂†/N `(*grid, C, C)` (`spectral_covariance(images)`, not centred).  `displacement_covariance` in pixels²
    is ρ(h) `(*grid)` of a stationary field, or ρ(p, p′) `(*grid, *grid)` of any Gaussian field; the components are independent with one and
    the same covariance, and so are field and image.  With the variances σ² at the sites,

        C(h) = (1/N) Σ_k S_k e^{ikh} ⟨ e^{−|k|²(σ_p² + σ_{p+h}² − 2ρ(p,p+h))/2} − e^{−|k|²σ_p²/2} − e^{−|k|²σ_{p+h}²/2} + 1 ⟩_p

    and S(q) = Σ_h C(h) e^{−iqh}; the first exponential gains the factor (1 + e^{−2π²ρ})/2 for each dimension in which k is the middle
    frequency of an even side.  Exact for every set of images if τ is stationary, and else for images whose frequencies are uncorrelated.
    Raises `ValueError` for shapes that do not fit or covariances that are none.  Source: derived here.

    >>> S = torch.ones(5, 1, 1, dtype=torch.float64)
    >>> far = difference_covariance(S, 1e6 * torch.eye(5, dtype=torch.float64)[0])       # each site takes the value of any other
    >>> far.real.flatten().round(decimals=9).tolist()
    [0.8, 1.8, 1.8, 1.8, 1.8]
    """
    s, pair, variance = _moments(image_covariance, displacement_covariance)
    grid = tuple(s.shape[:-2])
    dims = tuple(range(len(grid)))
    classes, index = _classes(grid, s.device)
    total = torch.zeros_like(s)
    for i, factor in enumerate(_distance_factors(classes, grid, pair, variance)):
        members = (index == i).reshape(*grid, 1, 1)
        total += factor.reshape(*grid, 1, 1) * torch.fft.ifftn(s * members, dim=dims)
    return torch.fft.fftn(total, dim=dims)


def first_order_difference_covariance(
    image_covariance: Covariance, displacement_covariance: Float[Tensor, "..."]
) -> Complex[Tensor, "*grid C C"]:
    r"""S(q) of y = τx − x to first order in |k|²σ²: S(q) = Σ_k P(q − k) |k|² S_k, with P(q) the DFT of ρ over N.

    y = −τ·∇x, of any τ with independent components of one covariance, Gaussian or not.  Of ρ(p, p′) only its mean over sites enters.  The
    derivative of a middle frequency of an even side vanishes at the sites: that dimension is left out of |k|².  Arguments and errors as in
    `difference_covariance`.  Source: derived here.

    >>> S, rho = torch.ones(3, 1, 1, dtype=torch.float64), torch.full((3,), 1e-4, dtype=torch.float64)     # a shift
    >>> (1e4 * first_order_difference_covariance(S, rho)).real.flatten().round(decimals=3).tolist()      # |k|² = (2π/3)² = 4.386
    [0.0, 4.386, 4.386]
    """
    s, pair, _ = _moments(image_covariance, displacement_covariance)
    grid = tuple(s.shape[:-2])
    dims = tuple(range(len(grid)))
    correlations = torch.fft.ifftn(s * gradient_power(grid).to(s.device)[..., None, None], dim=dims)
    return torch.fft.fftn(pair.mean(0).reshape(*grid, 1, 1) * correlations, dim=dims)


def gradient_power(grid: Sequence[int]) -> Float[Tensor, "*grid"]:
    """|k|² in radians² a pixel², dimensions in which k is the middle frequency of an even side left out: the power of ∇x at the sites.

    >>> gradient_power((4,)).round(decimals=3).tolist()              # frequencies 0, 1, 2, −1
    [0.0, 2.467, 0.0, 2.467]
    """
    sites = validate_grid(grid)
    total = torch.zeros((), dtype=torch.float64)
    for n in sites:
        u = frequencies(n).to(torch.float64)
        total = total[..., None] + torch.where(2 * u == -n, 0.0, (2 * math.pi * u / n).square())
    return total


def _squares(grid: Sequence[int], steps: Sequence[float]) -> Float[Tensor, "*grid"]:
    """Σ_α (step_α u_α)² over the frequencies of a grid."""
    total = torch.zeros((), dtype=torch.float64)
    for n, step in zip(grid, steps, strict=True):
        total = total[..., None] + (step * frequencies(n).to(torch.float64)).square()
    return total


def _classes(grid: tuple[int, ...], device: torch.device) -> tuple[list[tuple[float, int]], Int64[Tensor, " D"]]:
    """(|k|², number of dimensions in which k is a middle frequency) of the classes that deformations treat alike; the class of each k."""
    squares = _squares(grid, [2 * math.pi / n for n in grid])
    middles = torch.zeros((), dtype=torch.float64)
    for n in grid:
        middles = middles[..., None] + (2 * frequencies(n) == -n)
    distinct, index = torch.unique(torch.stack([squares, middles]).flatten(1), dim=1, return_inverse=True)
    return [(square, int(m)) for square, m in distinct.T.tolist()], index.to(device)


def _distance_factors(
    classes: list[tuple[float, int]], grid: tuple[int, ...], pair: Float[Tensor, "P D"], variance: Float[Tensor, "P D"]
) -> Float[Tensor, "classes D"]:
    """⟨E (φ_k(τ_{p+h}) − 1)(φ_k(τ_p) − 1)*⟩_p of each class at every h; exponentials less 1 keep small displacements accurate.

    The cosine of a middle frequency makes (1 + e^{−2π²ρ})/2, multiplied out here so that nothing overflows.  h and −h have the same mean.
    """
    here, there = variance[:, :1], variance
    mirror = mirror_index(grid).to(pair.device)
    index = torch.arange(len(mirror), device=pair.device)
    factors = torch.zeros(len(classes), len(mirror), dtype=torch.float64, device=pair.device)
    for h in index[index <= mirror].split(max(1, CACHED // len(pair))):
        rho = pair[:, h]
        apart = (here + there[:, h]) / 2 - rho
        for i, (square, middles) in enumerate(classes):
            for j in range(middles + 1):
                exponents = square * apart if j == 0 else square * apart + 2 * math.pi**2 * j * rho
                factors[i, h] += math.comb(middles, j) / 2**middles * exponents.neg_().expm1_().mean(0)
    squares = torch.tensor([square for square, _ in classes], dtype=torch.float64, device=pair.device)
    alone = torch.expm1(-squares[:, None] * here[:, 0] / 2).mean(1, keepdim=True)
    return factors[:, torch.minimum(index, mirror)] - 2 * alone


def _moments(
    image_covariance: Covariance, displacement_covariance: Tensor
) -> tuple[Complex[Tensor, "*grid C C"], Float[Tensor, "P D"], Float[Tensor, "P D"]]:
    """S_k, and at site p (one for all where τ is stationary) and displacement h: ρ(p, p + h) and σ²_{p+h}."""
    s = validate_covariance("image_covariance", image_covariance)
    grid = tuple(s.shape[:-2])
    name, given = "displacement_covariance", displacement_covariance
    validate_tensor(name, given)
    if tuple(given.shape) == grid:
        rho = _stationary(given, name).to(s.device).reshape(1, -1)
        return s, rho, rho[:, :1].expand_as(rho)
    if tuple(given.shape) != 2 * grid:
        raise ValueError(f"{name}: expected {grid} of a stationary field, or {2 * grid}, the grid of the images, got {tuple(given.shape)}")
    matrix = given.detach().to(s.device, torch.float64).reshape(math.prod(grid), -1)
    if float((matrix - matrix.T).abs().max()) > 1e-4 * float(matrix.abs().max()) or float(matrix.diagonal().min()) < 0:
        raise ValueError(f"{name}: expected a symmetric matrix of sites with variances ≥ 0, got another; give ρ(p, p′) = E τ(p) τ(p′)")
    moved = _sums_of_sites(grid).to(s.device)
    return s, matrix.gather(1, moved), matrix.diagonal()[moved]


def _sums_of_sites(grid: tuple[int, ...]) -> Int64[Tensor, "D D"]:
    """The flat index of p + h mod n at (p, h)."""
    index = torch.zeros(1, 1, dtype=torch.int64)
    for n in grid:
        sums = (torch.arange(n)[:, None] + torch.arange(n)) % n
        index = (index[:, None, :, None] * n + sums[None, :, None, :]).flatten(2).flatten(0, 1)
    return index


def _stationary(covariance: object, name: str = "covariance") -> Float[Tensor, "*grid"]:
    """ρ(h) in float64, if it is even with a spectrum ≥ 0 up to single precision, else raises."""
    rho = validate_tensor(name, covariance, ndim=(1, 2, 3), shape="ρ(h) on a grid of 1 to 3 dimensions").detach().to(torch.float64)
    power = torch.fft.fftn(rho)
    dust = 1e-4 * float(power.abs().max())
    if float(power.imag.abs().max()) > dust or float(power.real.min()) < -dust:
        raise ValueError(f"{name}: expected ρ(h) = ρ(−h) with a spectrum ≥ 0, displacement h at index h, got another function")
    return rho


def _interpolated(images: Float[Tensor, "N C *grid"], displacements: Float[Tensor, "N dims *grid"]) -> Float[Tensor, "N C *grid"]:
    """The sum over half of the spectrum, one dimension after the other: the last as a matrix product, the others by φ at each site."""
    grid = tuple(images.shape[2:])
    sites, half = math.prod(grid), grid[-1] // 2 + 1
    hats = torch.fft.rfftn(images, dim=tuple(range(2, images.ndim)), norm="forward") * pair_weights(grid).to(images)
    waves = [_waves(n, tau.flatten(1), i, grid) for i, (n, tau) in enumerate(zip(grid, displacements.unbind(1), strict=True))]
    sums = hats.flatten(1, -2) @ waves[-1][:, :half]
    for n, wave in zip(reversed(grid[:-1]), reversed(waves[:-1]), strict=True):
        sums = (sums.reshape(len(images), -1, n, sites) * wave[:, None]).sum(2)
    return sums.real.reshape(images.shape)


def _waves(n: int, tau: Float[Tensor, "N D"], dim: int, grid: tuple[int, ...]) -> Complex[Tensor, "N n D"]:
    """φ_k at the positions p − τ(p) along one dimension."""
    shape = [n if i == dim else 1 for i in range(len(grid))]
    positions = torch.arange(n, dtype=tau.dtype, device=tau.device).reshape(shape).expand(grid).flatten() - tau
    k = frequencies(n, tau.device).to(tau.dtype)[:, None]
    angles = 2 * math.pi / n * k * positions[:, None]
    return torch.polar(torch.ones_like(angles), angles) if n % 2 else torch.complex(angles.cos(), angles.sin() * (2 * k != -n))
