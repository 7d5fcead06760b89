r"""Power spectra of images and what is read off them: radial curves, the exponent of a power law.

The DFT is orthonormal, $\hat x_u = D^{-1/2} \sum_i x_i e^{-2\pi i\,u\cdot i/n}$, and maps over frequencies stand in the order of
`torch.fft.fftn`.  A frequency is the vector of integers of least modulus that its index stands for, in cycles per image: 0, 1, …, −1;
where n is even, the last one counts as n/2 (or −n/2: the same).  Its radius is its Euclidean norm.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from linconv.spectrum import full_spectrum
from linconv.statistics import Interval, jackknife_interval
from linconv.statistics.resampling import checked_level
from linconv.statistics.student import student_quantile
from linconv.validation import validate_size, validate_tensor

CHUNK = 2**22  # numbers that are transformed at once


def frequencies(n: int, device: torch.device | None = None) -> Int64[Tensor, " n"]:
    """The integer frequencies of n sites in fft order: 0, 1, …, −1; the middle one of an even number is −n/2.

    >>> frequencies(4).tolist(), frequencies(5).tolist()
    ([0, 1, -2, -1], [0, 1, 2, -2, -1])
    """
    indices = torch.arange(n, device=device)
    return torch.where(indices < (n + 1) // 2, indices, indices - n)


def shells(grid: Sequence[int], device: torch.device | None = None) -> tuple[Float[Tensor, " R"], Int64[Tensor, " D"], Int64[Tensor, " R"]]:
    """Radii, ascending, one for each distinct |u| of the grid; the position of each frequency's radius; how many frequencies have it.

    Radii are told apart by their squares, which are integers: no binning, and no rounding decides.

    >>> radii, index, counts = shells((3, 3))
    >>> radii.tolist(), counts.tolist(), index.tolist()
    ([0.0, 1.0, 1.4142135623730951], [1, 4, 4], [0, 1, 1, 1, 2, 2, 1, 2, 2])
    """
    squares = torch.zeros(1, dtype=torch.int64, device=device)
    for n in grid:
        squares = (squares[:, None] + frequencies(n, device).square()).flatten()
    distinct, index, counts = torch.unique(squares, return_inverse=True, return_counts=True)
    # NumPy's square root is rounded correctly, torch's is not on every machine.
    return torch.from_numpy(np.sqrt(distinct.cpu().numpy())).to(index.device), index, counts


def shell_means(maps: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N R"]:
    """The means of each map over its channels and over the frequencies of each radius, in float64."""
    radii, index, counts = shells(maps.shape[2:], maps.device)
    flat = maps.detach().to(torch.float64).flatten(2).mean(1)
    return flat.new_zeros(len(maps), len(radii)).index_add_(1, index, flat) / counts


def half_shell_means(half: Float[Tensor, "N C *half"], grid: tuple[int, ...]) -> Float[Tensor, "N R"]:
    """`shell_means` of maps equal at u and −u, from their values on half of the frequencies (last dimension 0 … n//2)."""
    return shell_means(on_full_grid(half.flatten(0, 1), grid).unflatten(0, half.shape[:2]))


def radial_average(map: Float[Tensor, "C *grid"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """The curve of a map over frequencies: its mean over the channels and over all frequencies u of equal |u|, without bins.

    `map` `(C, *grid)` in fft order, zero frequency at index 0, one to three dimensions of space; the sides may differ, |u| is in cycles per
    image in each.  Returns `(radii, values)`: the distinct |u|, ascending, and a value for each.  Raises `ValueError` or `TypeError`
    for another shape, and for numbers that are not finite.  Source: Godfrey et al., arXiv 2210.01257, section 5, on integer frequencies.

    >>> radii, values = radial_average(torch.tensor([[6.0, 1.0, 5.0, 3.0]]))      # frequencies 0, 1, −2, −1
    >>> radii.tolist(), values.tolist()
    ([0.0, 1.0, 2.0], [6.0, 2.0, 5.0])
    """
    validate_tensor("map", map, ndim=(2, 3, 4), shape="(C, *grid) with 1 to 3 dimensions of space")
    radii, _, _ = shells(map.shape[1:], map.device)
    return radii.to(map.dtype), shell_means(map[None])[0].to(map.dtype)


def standardise(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N C *grid"]:
    """The images with mean 0 and variance 1 in each channel, over all images and sites.

    Raises `ValueError` for a channel that is constant up to rounding, and for images that are not a finite real tensor `(N, C, *grid)`.

    >>> standardise(torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]])).round(decimals=5).tolist()
    [[[-1.0, 1.0]], [[1.0, -1.0]]]
    """
    validate_images(images)
    over = (0, *range(2, images.ndim))
    largest = images.abs().amax(over, keepdim=True)
    scaled = images / torch.where(largest > 0, largest, 1)
    centred = scaled - scaled.mean(over, keepdim=True)
    deviation = centred.square().mean(over, keepdim=True).sqrt()
    if bool((deviation <= 8 * torch.finfo(images.dtype).eps).any()):
        raise ValueError(f"images: expected channels that vary, got constant channel {int(deviation.flatten().argmin())}; leave it out")
    return centred / deviation


def power_spectrum(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "C *grid"]:
    r"""The root-mean-square spectrum $\sqrt{\mathbb E_n |\hat x_{n,c,u}|^2}$ of images, orthonormal DFT, fft order.

    `images` `(N, C, *grid)` are taken as they are: the zero frequency holds their mean.  The published curves are those of
    `standardise(images)`.  Transformed in the dtype of the images, in chunks, and averaged in float64.  Raises `ValueError` or `TypeError`
    for another shape, and for numbers that are not finite.  Source: the published experiment code of arXiv 2210.01257.

    >>> power_spectrum(torch.ones(2, 1, 4)).tolist()
    [[2.0, 0.0, 0.0, 0.0]]
    """
    validate_images(images)
    grid, scale = tuple(images.shape[2:]), _largest(images)
    mean = torch.stack([half.sum(0) for half in _half_power(images, scale)]).sum(0) / len(images)
    return (scale * on_full_grid(mean.sqrt(), grid)).to(images.dtype)


def on_full_grid(half: Float[Tensor, "maps *half"], grid: tuple[int, ...]) -> Float[Tensor, "maps *grid"]:
    """Maps over all frequencies from their values on half of them (last dimension 0 … n//2), for maps equal at u and −u."""
    return full_spectrum(half.movedim(0, -1), grid).movedim(-1, 0).contiguous()


def spectral_exponent(data: Float[Tensor, "..."], radii: Float[Tensor, " R"] | None = None, *, level: float = 0.95) -> Interval:
    r"""α of the power law $|f|^{-\alpha}$ that a spectrum follows, with an interval of confidence `level`.

    α is minus the slope of the least-squares line through log value against log radius, one point a radius.  Without `radii`, `data` are
    images `(N, C, *grid)`, N ≥ 2: the value is $(\mathbb E |\hat x_u|^2)^{1/2}$ over images, channels and the frequencies of that radius,
    for radii from 1 to half the shortest side, where circles are whole.  With `radii` `(R,)`, all of them positive, `data` are curves on
    them: `(N, R)`, whose mean curve is fitted, or one curve `(R,)`.

    Images, or curves, are samples: the interval is `jackknife_interval`, which covers 85 to 98 % at a nominal 95 % of 4 to 150 images of
    one or three channels, of equal contrast or of contrasts that differ by a factor e, where a bootstrap covers 69 to 95 %
    (docs/frequency-sensitivity.md).  Of one curve it is Student's interval of the slope, for independent normal errors of the logarithms.

    Raises `ValueError` for fewer than two radii (three points of one curve), radii or values that are not positive, fewer than two images
    or curves, and images without power at some radius, also when one of them is left out.  Natural images have α near 1.

    >>> r = torch.arange(1.0, 9.0)
    >>> round(float(spectral_exponent(3 * r**-1.5, r).estimate), 6)
    1.5
    """
    if radii is None:
        curves, distances, power = *_whole_circles(data), 0.5
    else:
        curves, distances, power = *_validate_curves(data, radii), 1.0
    needed = 2 if curves.ndim == 2 else 3
    if len(distances) < needed:
        raise ValueError(f"data: expected {needed} radii or more to fit a line, got {len(distances)}; take larger images or more radii")
    curves, logs = curves.to(torch.float64), distances.to(torch.float64).log()
    if curves.ndim == 1:
        return _slope_of_curve(_logarithms(curves), logs, level)
    if len(curves) < 2:
        raise ValueError("data: expected at least two images or curves, got 1; one says nothing of the spread")
    line = -power * (logs - logs.mean()) / (logs - logs.mean()).square().sum()
    left_out = (curves.sum(0) - curves) / (len(curves) - 1)
    return jackknife_interval(float(_logarithms(curves.mean(0)) @ line), _logarithms(left_out) @ line, level=level)


def published_curve(
    radii: Float[Tensor, " R"], values: Float[Tensor, "*runs R"], *, normalise: bool = True, smooth: int = 3, log: bool = True
) -> Float[Tensor, "*runs R"]:
    r"""Curves as the paper plots them: divided by their integral ∫ dr (`normalise`), smoothed, then their natural logarithm (`log`).

    The integral is that of the trapezoidal rule over `radii`.  Smoothing replaces a value by the mean of itself and of `smooth` neighbours
    to either side, as many of them as there are at the ends; 0 leaves it out.  `values` holds one curve in its last dimension, or many.

    Raises `ValueError` for radii that do not ascend, negative values, a curve without mass to divide by, and zeros to take the logarithm
    of.  Source: Godfrey et al., arXiv 2210.01257, section 5; what happens at the ends is our choice.

    >>> r = torch.arange(5.0)
    >>> published_curve(r, torch.tensor([0.0, 0.0, 6.0, 0.0, 0.0]), normalise=False, smooth=1, log=False).tolist()
    [0.0, 2.0, 2.0, 2.0, 0.0]
    """
    validate_tensor("radii", radii, ndim=(1,), shape="(R,)")
    validate_tensor("values", values)
    if values.ndim == 0 or values.shape[-1:] != radii.shape or values.min() < 0:
        raise ValueError(
            f"values: expected numbers ≥ 0, {len(radii)} a curve, got shape {tuple(values.shape)}, least {float(values.min()):.3g}"
        )
    if len(radii) < 2 or not bool((radii.diff() > 0).all()):
        raise ValueError("radii: expected two or more ascending numbers; sort the curve with them")
    curves = values
    if normalise:
        masses = torch.trapezoid(curves, radii)[..., None]
        if not bool((masses > 0).all()):
            raise ValueError("values: expected curves of positive integral, got 0; leave that curve out")
        curves = curves / masses
    if not (isinstance(smooth, int) and smooth == 0):
        curves = _smoothed(curves, validate_size("smooth", smooth))
    if log and not bool((curves > 0).all()):
        raise ValueError("values: expected positive numbers to take the logarithm of, got 0; pass log=False")
    return curves.log() if log else curves


def validate_images(images: object) -> None:
    validate_tensor("images", images, ndim=(3, 4, 5), shape="(N, C, *grid) with 1 to 3 dimensions of space")


def _validate_curves(data: object, radii: object) -> tuple[Tensor, Tensor]:
    distances = validate_tensor("radii", radii, ndim=(1,), shape="(R,)")
    curves = validate_tensor("data", data, ndim=(1, 2), shape="curves (R,) or (N, R) where radii are given")
    if curves.shape[-1] != len(distances) or not bool((distances > 0).all()):
        raise ValueError(
            f"radii: expected {curves.shape[-1]} positive numbers, one a value of a curve, got {len(distances)}, "
            f"least {float(distances.min()):.3g}; leave out radius 0"
        )
    return curves, distances


def _largest(images: Tensor) -> float:
    """The largest modulus, or 1 for zeros: squares of images scaled by it neither overflow nor vanish."""
    low, high = torch.aminmax(images)
    return max(-float(low), float(high)) or 1.0


def _half_power(images: Float[Tensor, "N C *grid"], scale: float) -> Iterator[Float[Tensor, "n C *half"]]:
    """|x̂_u|² of the images over the scale, on half of the frequencies, in float64, a chunk at a time."""
    for part in images.detach().split(max(1, CHUNK // images[0].numel())):
        yield torch.fft.rfftn(part / scale, dim=tuple(range(2, part.ndim)), norm="ortho").abs().to(torch.float64).square()


def _shell_power(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N R"]:
    """The mean of |x̂_u|² over channels and the frequencies of each radius, for each of the images, up to a common factor."""
    grid = tuple(images.shape[2:])
    parts = _half_power(images, _largest(images))
    return torch.cat([half_shell_means(half, grid) for half in parts])


def _whole_circles(images: Tensor) -> tuple[Float[Tensor, "N R"], Float[Tensor, " R"]]:
    """Shell powers of checked images at radii from 1 to half the shortest side, and these radii; what rounding leaves counts as none."""
    validate_images(images)
    power, (radii, _, _) = _shell_power(images), shells(images.shape[2:], images.device)
    present = power.mean(0) > (100 * torch.finfo(images.dtype).eps) ** 2 * power.mean(0).max()
    whole = (radii > 0) & (2 * radii <= min(images.shape[2:]))
    return (power * present)[:, whole], radii[whole]


def _logarithms(values: Float[Tensor, "*n R"]) -> Float[Tensor, "*n R"]:
    if not bool((values > 0).all()):
        raise ValueError(
            "data: expected positive values at every radius that is fitted, got 0 or less; cut the curve, or look at the images"
        )
    return values.log()


def _slope_of_curve(values: Float[Tensor, " R"], logs: Float[Tensor, " R"], level: float) -> Interval:
    """Minus the slope of the line through points, with Student's interval at R − 2 degrees of freedom."""
    confidence, x = checked_level(level), logs - logs.mean()
    slope = float(x @ values / x.square().sum())
    residual = values - values.mean() - slope * x
    error = float((residual.square().sum() / (len(x) - 2) / x.square().sum()).sqrt())
    half = student_quantile(confidence, len(x) - 2) * error
    return Interval(-slope, -slope - half, -slope + half, confidence)


def _smoothed(curves: Float[Tensor, "*runs R"], neighbours: int) -> Float[Tensor, "*runs R"]:
    """The mean of each value and its neighbours to either side, as many as there are."""
    flat = curves.reshape(1, -1, curves.shape[-1])
    means = functional.avg_pool1d(flat, 2 * neighbours + 1, stride=1, padding=neighbours, count_include_pad=False)
    return means.reshape(curves.shape)
