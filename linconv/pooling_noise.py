r"""How stable the layers of a network on two pixels are to noise: closed forms by rectified Gaussians, and simulation.

    G = ⟨‖f(x + η) − f(x)‖²⟩ / ⟨‖f(x₁) − f(x₂)‖²⟩

with the data of `linconv.pooling_stability` and white Gaussian noise with E‖η‖² = `power`, by default exactly ⟨‖τx − x‖²⟩ of the moves, so
that D/G is 1 at the input.  (The slides take 8/3 for it, which holds where pixels cannot meet: 1.6 % more on 32 sites.)

The first layer's pre-activations are Gaussian, and after its ReLU the means and covariances have closed forms.  Where later filters have no
negative taps and no bias, their ReLU changes nothing, and the layers up to the first bias follow from those moments, in frequency space:
E‖A e‖² = (1/l) Σ_q tr V_q S_e(q) V_q†.  Source: definition from the slides "The role of adaptive pooling" (PCSL 2022); moments of rectified
Gaussians: Rosenbaum (1961); bivariate normal probabilities: Owen (1956); the closed forms for layers are derived here.
"""

import copy
import math
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr, owens_t
from torch import Tensor, nn

from linconv.pooling import SITES, SumOverSites
from linconv.pooling_stability import all_pairs, displacement_spectrum, layer_spreads, layers_of, ring_images, validate_sites
from linconv.statistics import Interval, bootstrap_interval
from linconv.validation import validate_generator, validate_number, validate_size

Array = NDArray[np.float64]
Reals: TypeAlias = Array | np.float64
BATCHES = 100  # whose means are resampled
SMALLEST = 5  # sites on which two overlaps of filters with three taps are not the same
LONGEST = 4096


def two_pixel_noise_stability(solution: nn.Sequential, *, power: float | int | None = None, sites: int = SITES) -> tuple[float, ...]:
    """G of the input and of as many layers as have a closed form, in this order.

    `solution` is a sequence of circular convolutions and ReLU with a sum over sites at its end, as `pooling_solution` makes them, with
    integer taps of which none is negative.  The first layer has a closed form, and each further one up to the first bias; the output too
    where there is no other.  So the layer with the bias, and the output behind it, are there for ξ = 3 only: `simulated_noise_stability`
    gives all.  `power` is E‖η‖².  Raises `ValueError` for other modules.

    >>> from linconv.pooling import pooling_solution
    >>> [round(g, 4) for g in two_pixel_noise_stability(pooling_solution("low-frequency", 7))]
    [0.6996, 0.4368, 0.4696]
    """
    ring, noise = validate_sites(sites, smallest=SMALLEST), _power(power, sites)
    convolutions = _convolutions(solution)
    spectrum = _error_spectrum(convolutions[0], ring, noise)
    spreads = [float(spread) for spread in layer_spreads(solution, sites=ring)]
    response: NDArray[Any] = np.broadcast_to(np.eye(spectrum.shape[1]), spectrum.shape)
    powers = [noise, _passed(response, spectrum)]
    for layer in convolutions[1:]:
        if layer.bias is not None:
            return tuple(p / spread for p, spread in zip(powers, spreads, strict=False))
        response = _response(layer, ring) @ response
        powers.append(_passed(response, spectrum))
    powers.append(_passed(response[:1], spectrum[:1]))  # a sum over sites is the coefficient of frequency 0
    return tuple(p / spread for p, spread in zip(powers, spreads, strict=True))


def constant_filter_noise_stability(
    layers: int, *, rectified: bool = True, power: float | int | None = None, sites: int = SITES
) -> Float[Tensor, " layers"]:
    r"""G_1, …, G_k of k = `layers` layers with the filter [1, 1, 1] and no bias, with ReLU or linear, in closed form.

    Linear layers pass noise as they pass signals, but for frequency 0: $G_k = \frac{P}{2 S_x} \sum_q |\hat w|^{2k} / \sum_{q \ne 0}
    |\hat w|^{2k}$, nearly flat.  Rectified noise has a positive mean, which every further layer passes undamped: G_k approaches
    $\frac{P}{24\pi} \sqrt{8\pi k/3}$ for 1 ≪ k ≪ l², P the `power`.

    >>> [[round(float(g), 2) for g in constant_filter_noise_stability(7, rectified=r)] for r in (True, False)]
    [[0.44, 0.47, 0.51, 0.54, 0.58, 0.61, 0.64], [0.75, 0.78, 0.81, 0.83, 0.85, 0.87, 0.89]]
    """
    depth, noise = validate_size("layers", layers), _power(power, sites)
    ring = validate_sites(sites, smallest=SMALLEST, largest=LONGEST)
    gains = ((1 + 2 * np.cos(2 * np.pi * np.arange(ring) / ring)) / 3) ** 2  # |ŵ|² over 9, which would overflow
    box = nn.utils.skip_init(nn.Conv1d, 1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    box.weight.data.fill_(1)
    first = _error_spectrum(box, ring, noise)[:, 0, 0].real / 9 if rectified else noise * gains
    signal = 2 * (2 - 2 / (ring - 1))
    found = [(gains ** (k - 1) * first).sum() / (signal * (gains[1:] ** k).sum()) for k in range(1, depth + 1)]
    return torch.tensor(found, dtype=torch.float64)


def simulated_noise_stability(
    solution: nn.Module,
    *,
    draws: int = 100_000,
    generator: torch.Generator,
    power: float | int | None = None,
    level: float = 0.95,
    sites: int = SITES,
) -> tuple[Interval, ...]:
    """G of the input, of each layer after its ReLU and of the output, by as many draws of a pair and of its noise.

    `solution` as in `two_pixel_deformation_stability`, from which the exact denominator comes; the intervals are those of the numerator, by
    bootstrap over the means of 100 batches.  Raises as there, and for fewer than two draws a batch.

    >>> from linconv.pooling import pooling_solution
    >>> found = simulated_noise_stability(pooling_solution("high-frequency", 3), draws=1000, generator=torch.Generator().manual_seed(0))
    >>> [bool(g.low < g.estimate < g.high) for g in found]
    [True, True, True]
    """
    ring, rng, noise = validate_sites(sites), validate_generator(generator), _power(power, sites)
    batch = validate_size("draws", draws) // BATCHES
    if batch < 2:
        raise ValueError(f"draws: expected at least {2 * BATCHES}, two for each of {BATCHES} batches, got {draws}")
    spreads = torch.tensor([float(spread) for spread in layer_spreads(solution, sites=ring)], dtype=torch.float64)
    images, net = ring_images(all_pairs(ring), ring).double(), copy.deepcopy(solution).double().cpu().eval()
    means = torch.empty(BATCHES, len(spreads), dtype=torch.float64)
    for i in range(BATCHES):
        x = images[torch.randint(len(images), (batch,), generator=rng, device=rng.device).cpu()]
        eta = torch.randn(x.shape, generator=rng, dtype=torch.float64, device=rng.device).cpu() * math.sqrt(noise / ring)
        layers = layers_of(net, torch.cat([x, x + eta]))
        means[i] = torch.stack([(h[batch:] - h[:batch]).square().sum() / batch for h in layers])
    found = bootstrap_interval(means / spreads, generator=rng, level=level, resamples=2000)
    values = [torch.as_tensor(v).tolist() for v in (found.estimate, found.low, found.high)]
    return tuple(Interval(estimate, low, high, level) for estimate, low, high in zip(*values, strict=True))


def rectified_mean(mean: Reals, deviation: Reals | float) -> Array:
    """E ReLU(z), z normal."""
    m, s = np.asarray(mean), np.asarray(deviation)
    return np.asarray(m * ndtr(m / s) + s * _density(m / s))


def rectified_covariance(m1: Reals, m2: Reals, s1: float, s2: float, correlation: float) -> Array:
    """cov(ReLU(z₁), ReLU(z₂)) of jointly normal z with means m, standard deviations s and a correlation in (−1, 1].

    Source: Rosenbaum (1961), moments of a truncated bivariate normal distribution.

    >>> zero = np.zeros(())  # of independent and of equal variables
    >>> [round(float(rectified_covariance(zero, zero, 1.0, 1.0, r)), 4) for r in (0.0, 1.0)]
    [0.0, 0.3408]
    """
    a, b, r = m1 / s1, m2 / s2, correlation
    if r > 1 - 1e-12:  # one variable: the smaller argument decides whether both are positive
        low = np.minimum(a, b)
        product = (a * b + 1) * ndtr(low) + (a + b - low) * _density(low)
    else:
        root = math.sqrt(1 - r * r)
        near, far = _density(b) * ndtr((a - r * b) / root), _density(a) * ndtr((b - r * a) / root)
        both = root * np.exp(-(a * a - 2 * r * a * b + b * b) / (2 * root**2)) / (2 * math.pi)
        product = (a * b + r) * bivariate_normal(a, b, r) + a * near + b * far + both
    return np.asarray(s1 * s2 * product - rectified_mean(m1, s1) * rectified_mean(m2, s2))


def bivariate_normal(h: Reals, k: Reals, correlation: float) -> Array:
    """P(z₁ ≤ h, z₂ ≤ k) of standard normal variables with a correlation in (−1, 1).  Source: Owen (1956).

    >>> bivariate_normal(np.zeros(1), np.zeros(1), 0.5).round(12).tolist()
    [0.333333333333]
    """
    root = math.sqrt(1 - correlation**2)

    def wedge(x: Reals, y: Reals) -> Array:
        slope = (y - correlation * x) / np.where(x == 0, np.nan, x * root)
        return np.asarray(owens_t(x, np.where(x == 0, np.copysign(np.inf, y), slope)))

    signs = np.sign(h) * np.sign(k)  # of h·k, which may underflow
    opposite = 0.5 * ((signs < 0) | ((signs == 0) & (h + k < 0)))
    found = (ndtr(h) + ndtr(k)) / 2 - wedge(h, k) - wedge(k, h) - opposite
    return np.where((h == 0) & (k == 0), 0.25 + math.asin(correlation) / (2 * math.pi), found)


def _density(x: Reals) -> Array:
    return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def _error_spectrum(layer: nn.Conv1d, sites: int, power: float) -> NDArray[np.complex128]:
    """S_e(q) = E ê ê† of the error e = ReLU(z + noise) − ReLU(z) of the first layer, `(l, C, C)`, averaged over distances."""
    distances = torch.arange(1, sites // 2 + 1)
    images = ring_images(torch.stack([torch.zeros_like(distances), distances], 1), sites).double()
    weights = np.where(2 * distances.numpy() == sites, 1.0, 2.0)  # opposite sites are half as many pairs
    weights /= weights.sum()
    with torch.no_grad():
        means = layer(images).numpy()
    taps = layer.weight.detach().numpy()[:, 0]
    channels, width = taps.shape
    deviations = np.sqrt(power / sites * np.square(taps).sum(1))
    bias = rectified_mean(means, deviations[:, None]) - np.maximum(means, 0)
    spectrum = np.einsum("d,dcq,deq->qce", weights, np.fft.fft(bias), np.fft.fft(bias).conj())
    for lag in range(1 - width, width):
        phases = np.exp(2j * np.pi * lag * np.arange(sites) / sites)
        for c in range(channels):
            for e in range(channels):
                shared = float(taps[c, max(lag, 0) : width + lag] @ taps[e, max(-lag, 0) : width - lag]) * power / sites
                if shared:
                    r = shared / (deviations[c] * deviations[e])
                    found = rectified_covariance(means[:, c], np.roll(means[:, e], -lag, 1), deviations[c], deviations[e], r)
                    spectrum[:, c, e] += phases * (weights @ found.sum(1))
    return np.asarray(spectrum)


def _passed(response: NDArray[Any], spectrum: NDArray[np.complex128]) -> float:
    """(1/l) Σ_q tr V_q S(q) V_q†; l is the number of frequencies given."""
    return float(np.einsum("qoc,qce,qoe->", response, spectrum, response.conj()).real / len(spectrum))


def _response(layer: nn.Conv1d, sites: int) -> NDArray[np.complex128]:
    """V_q of a circular convolution, `(l, C_out, C_in)`: the transforms of its answers to a pixel in each channel."""
    pixels = torch.zeros(layer.in_channels, layer.in_channels, sites, dtype=torch.float64)
    pixels[:, :, 0] = torch.eye(layer.in_channels)
    with torch.no_grad():
        return np.asarray(np.fft.fft(layer(pixels).numpy()).transpose(2, 1, 0))


def _convolutions(solution: object) -> list[nn.Conv1d]:
    """The convolutions of a sequence of circular ones and ReLU with a sum over sites, in float64; raises for another module."""
    if not isinstance(solution, nn.Sequential):
        raise TypeError(f"solution: expected an nn.Sequential as pooling_solution makes it, got {type(solution).__name__}")
    if len(solution) < 3:
        raise ValueError(f"solution: expected circular Conv1d and ReLU in turn and a SumOverSites, got {len(solution)} modules")
    *layers, last = copy.deepcopy(solution).double().cpu()
    convolutions = [layer for layer in layers[::2] if _is_circular(layer)]
    alternate = 0 < 2 * len(convolutions) == len(layers) and all(isinstance(layer, nn.ReLU) for layer in layers[1::2])
    if not (alternate and isinstance(last, SumOverSites)):
        raise ValueError("solution: expected circular Conv1d and ReLU in turn and a SumOverSites, got other modules; simulate those")
    if any(bool((layer.weight < 0).any()) for layer in convolutions) or not bool((convolutions[0].weight > 0).any(2).all()):
        raise ValueError("solution: expected filters without negative taps, none empty in the first layer, got others; simulate those")
    return convolutions


def _is_circular(layer: nn.Module) -> TypeGuard[nn.Conv1d]:
    return (
        isinstance(layer, nn.Conv1d)
        and layer.padding_mode == "circular"
        and (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups) == ((3,), (1,), (1,), (1,), 1)
    )


def _power(power: float | int | None, sites: int) -> float:
    """E‖η‖², by default ⟨‖τx − x‖²⟩ of moves that may stay."""
    if power is None:
        return float(displacement_spectrum("stay", validate_sites(sites, largest=LONGEST))[0])
    return validate_number("power", power, positive=True)
