"""What `linear_relative_stability` is tested with: networks in space, images of spectrum k^{−α}, Monte-Carlo with errors, enumeration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import linconv as lc
from linconv.claims import Check, agree
from linconv.deformation import sample_displacements, temperature_range, warp
from linconv.network import circular_convolution
from linconv.spectra import frequencies
from linconv.stationary_fields import bandlimited_warp, stationary_displacements
from linconv.statistics import Interval

Weights: TypeAlias = list[Tensor]  # of circular convolutions, in the order of application
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
MOST_IMPULSES = 1024
ERRORS = 4.0  # standard errors that a Monte-Carlo mean may be off: 6 in 100 000 are further off by chance


Compared: TypeAlias = "list[tuple[str, float, Ratio]]"  # kind of images, closed form, Monte-Carlo


@dataclass(frozen=True)
class Ratio:
    """A ratio of means over draws with its standard error, by the delta method."""

    value: float
    error: float

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.value - ERRORS * self.error, self.value + ERRORS * self.error, 0.99994)


def ratio(a: Float[Tensor, " draws"], b: Float[Tensor, " draws"], factor: float = 1.0, images: int = 0) -> Ratio:
    """factor · mean a / mean b of pairs that are drawn independently of other pairs.

    `images` is the number of images where these are given and each is drawn as often, one after the other: then only what differs between
    the draws of one image is sampling error.
    """
    value = float(a.mean() / b.mean())
    rest = a - value * b
    if images:
        rounds = rest.reshape(-1, images)
        rest = (rounds - rounds.mean(0)) * math.sqrt(len(rounds) / (len(rounds) - 1))
    error = float(rest.square().mean().sqrt() / b.mean()) / math.sqrt(len(a))
    return Ratio(factor * value, abs(factor) * error)


def within(name: str, found: Ratio, predicted: float, draws: int, required: bool = True) -> Check:
    """A Monte-Carlo mean agrees with a prediction up to its sampling error."""
    reason = f"sampling: {ERRORS:g} standard errors of a mean of {draws} draws"
    allowed = ERRORS * found.error / abs(predicted)
    return agree(name, found.value, predicted, tolerance=allowed, reason=reason, draws=draws, required=required)


def random_network(channels: Sequence[int], kernel: Sequence[int], generator: torch.Generator) -> Weights:
    """Normal kernels."""
    pairs = zip(channels[1:], channels[:-1], strict=True)
    return [torch.randn(c_out, c_in, *kernel, dtype=torch.float64, generator=generator) for c_out, c_in in pairs]


def filter_network(taps: Sequence[float], channels: int, dims: int, layers: int) -> Weights:
    """The same separable filter on every channel alone, in every layer: [1, 1, 1] is a low-pass, [1, −2, 1] a high-pass."""
    line = torch.tensor(taps, dtype=torch.float64)
    kernel = reduce(lambda product, _: product[..., None] * line, range(dims - 1), line)
    eye = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * dims)
    return [eye * kernel] * layers


def blocks_of(weights: Weights, grid: tuple[int, ...]) -> lc.FrequencyBlocks:
    return reduce(lambda before, w: lc.conv_blocks(w, grid) @ before, weights[1:], lc.conv_blocks(weights[0], grid))


def outputs(weights: Weights, x: Float[Tensor, "N C *grid"], padding: str = "circular") -> Float[Tensor, "N K *grid"]:
    """The network in the space domain; with "zeros" the images are continued by zeros and the middle of the kernel stays in place."""
    for w in weights:
        if padding == "circular":
            x = circular_convolution(x, w)
        else:
            x = CONVOLUTIONS[x.ndim - 2](x, w.flip(tuple(range(2, w.ndim))), padding="same")
    return x


def energies(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, " N"]:
    return images.flatten(1).square().sum(1)


def gain(weights: Weights, channels: int, grid: tuple[int, ...], padding: str = "circular") -> float:
    """E‖f(η)‖² / E‖η‖² of white noise, from the answers to a unit impulse at every site of every channel.

    For large images with circular padding at one site alone: an impulse elsewhere is answered by the same image, shifted.
    """
    impulses = torch.eye(channels * math.prod(grid), dtype=torch.float64).reshape(-1, channels, *grid)
    if len(impulses) > MOST_IMPULSES and padding == "circular":
        impulses = impulses[:: math.prod(grid)]
    return float(energies(outputs(weights, impulses, padding)).mean())


def measured(weights: Weights, y: Float[Tensor, "N C *grid"], padding: str = "circular", images: int = 0) -> Ratio:
    """R by its definition: what the network makes of the differences over what it makes of white noise of their mean energy."""
    grid = tuple(y.shape[2:])
    return ratio(energies(outputs(weights, y, padding)), energies(y), 1 / gain(weights, y.shape[1], grid, padding), images)


def squared_frequencies(grid: Sequence[int]) -> Float[Tensor, "*grid"]:
    """|k|² in radians² a pixel²."""
    total = torch.zeros((), dtype=torch.float64)
    for n in grid:
        total = total[..., None] + (2 * math.pi * frequencies(n).to(torch.float64) / n).square()
    return total


def power_law(grid: Sequence[int], exponent: float, channels: int = 1) -> Complex[Tensor, "*grid C C"]:
    """S_k = |k|^{−α} I, and no zero frequency."""
    squares = squared_frequencies(grid)
    power = torch.where(squares > 0, squares.clamp_min(1e-30) ** (-exponent / 2), 0.0)
    return (power[..., None, None] * torch.eye(channels, dtype=torch.float64)).to(torch.complex128)


def synthetic_images(n: int, grid: Sequence[int], exponent: float, channels: int, generator: torch.Generator) -> Tensor:
    """Gaussian images `(n, channels, *grid)` with the spectrum `power_law`."""
    dims = tuple(range(-len(grid), 0))
    amplitude = power_law(grid, exponent)[..., 0, 0].real.sqrt()
    white = torch.randn(n, channels, *grid, dtype=torch.float64, generator=generator)
    return torch.fft.ifftn(torch.fft.fftn(white, dim=dims) * amplitude, dim=dims).real


def deformed(x: Float[Tensor, "N C H W"], share: float, generator: torch.Generator) -> Float[Tensor, "N C H W"]:
    """τx with maximum-entropy fields, cutoff 3, at this share of the published greatest temperature; bilinear, edges clamped."""
    grid = (x.shape[2], x.shape[3])
    temperature = share * temperature_range(max(grid), 3)[1]
    return warp(x, sample_displacements(len(x), grid, temperature=temperature, cutoff=3, generator=generator))


def differences(x: Float[Tensor, "N C *grid"], rho: Float[Tensor, "*grid"], generator: torch.Generator) -> Float[Tensor, "N C *grid"]:
    """y = τx − x with a stationary field an image and band-limited interpolation."""
    return bandlimited_warp(x, stationary_displacements(len(x), rho, generator=generator)) - x


def enumerated(s: NDArray[np.float64], rho: NDArray[np.float64], *, cosine: bool = True) -> NDArray[np.float64]:
    """S_y of one channel in one dimension, frequency by frequency and site by site, with ρ `(n,)` or `(n, n)`; no code of the library.

    `cosine=False` takes a travelling wave at the middle frequency of an even side, with which real images would not stay real.
    """
    n = len(s)
    p = np.arange(n)
    matrix = rho[(p[None] - p[:, None]) % n] if rho.ndim == 1 else rho
    variance = matrix.diagonal()
    total = np.zeros(n)
    for u in range(n):
        k = 2 * np.pi * min(u, n - u) / n
        apart = np.exp(-(k**2) * (variance[:, None] + variance - 2 * matrix) / 2)
        if cosine and 2 * u == n:
            apart = (apart + np.exp(-(k**2) * (variance[:, None] + variance + 2 * matrix) / 2)) / 2
        alone = np.exp(-(k**2) * variance / 2)
        moments = apart - alone[:, None] - alone + 1
        for q in range(n):
            phases = np.cos(2 * np.pi * (u - q) * (p[:, None] - p) / n)
            total[q] += s[u] * (phases * moments).sum() / n**2
    return total


def drawn(covariance: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Gaussian fields in one dimension of a covariance ρ(h) or ρ(p, p′), by its square root."""
    sites = torch.arange(len(covariance))
    matrix = covariance[(sites - sites[:, None]) % len(sites)] if covariance.ndim == 1 else covariance
    values, vectors = torch.linalg.eigh(matrix)
    white = torch.randn(n, len(sites), dtype=torch.float64, generator=generator)
    return (white * values.clamp_min(0).sqrt() @ vectors.T)[:, None]


def randomly_shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image rolled by a random shift."""
    height, width = x.shape[2:]
    shifts = torch.randint(height * width, (len(x),), generator=generator).tolist()
    return torch.stack([image.roll((shift // width, shift % width), (1, 2)) for image, shift in zip(x, shifts, strict=True)])


def site_mean(pairs: Tensor) -> Tensor:
    """ρ(h) = ⟨ρ(p, p + h)⟩ over sites of the torus."""
    height, width = pairs.shape[:2]
    rolled = [pairs[i, j].roll((-i, -j), (0, 1)) for i in range(height) for j in range(width)]
    return torch.stack(rolled).mean(0)
