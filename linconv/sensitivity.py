r"""Frequency sensitivity: how much the outputs of a torch module change with each Fourier coefficient of its input.

With x = Re ifft(x̂), the orthonormal DFT and torch's gradient ∂/∂Re + i ∂/∂Im of a free complex x̂, the chain rule gives

    ∂f_k/∂x̂_{c,u} = D^{-1/2} Σ_i ∂f_k/∂x_{c,i} exp(−2πi u·i/n),

the orthonormal DFT of the gradient in the pixels, for nonlinear f too: K backward passes and Fourier transforms replace all D
derivatives (docs/frequency-sensitivity.md).  Definitions: Godfrey et al., arXiv 2210.01257, section 5.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.gradient_spectra import visit_spectra
from linconv.network import LinearCNN
from linconv.spectra import half_shell_means, on_full_grid, shells
from linconv.spectrum import frequency_blocks
from linconv.statistics import Interval, bootstrap_interval
from linconv.statistics.resampling import Array
from linconv.validation import validate_tensor

Statistic = Literal["mean", "rms"]


def frequency_sensitivity(
    model: nn.Module,
    images: Float[Tensor, "N C *grid"] | Iterable[Any] | None = None,
    *,
    statistic: Statistic = "mean",
    batch_size: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "C *grid"]:
    r"""The sensitivity of a module to each frequency of its input, a map `(C, *grid)` in fft order.

    "mean" is $\frac1N \sum_n (\sum_k |\partial f_k/\partial\hat x_{c,u}(x_n)|^2)^{1/2}$, the mean over images of the 2-norm over outputs;
    "rms" is $(\frac1{NK} \sum_{n,k} |\partial f_k/\partial\hat x_{c,u}(x_n)|^2)^{1/2}$.  Orthonormal DFT; u and −u are not lumped together.

    `model` maps images `(N, C, *grid)`, one to three dimensions of space, to outputs `(N, K)`, those of an image independent of the others
    in its batch.  It is run in evaluation mode and left as it was: modes, parameters, their `grad`, buffers.  `images` is a
    tensor, or an iterable of batches, tensors or tuples that begin with one, as a `DataLoader` yields; they stay where they are and move to
    the model's device a chunk at a time.  `batch_size` images are a chunk; by default as many as keep to a fixed memory for activations.
    The result has the dtype of the images and lies on the device of the model.  `progress` shows a bar on stderr.

    A `LinearCNN` needs no images: $D^{-1/2} (\sum_k |V_u[k,c]|^2)^{1/2}$ with the blocks $V_u$ of `frequency_blocks`, over √K for "rms".

    Raises `ValueError` or `TypeError` for images that the model does not take, another dtype than that of its weights, outputs of another
    shape, without gradient, or that depend on the rest of the batch, and for outputs or gradients that are not finite.

    >>> net = LinearCNN(2, (3,), 4, (5, 6), generator=torch.Generator().manual_seed(0))
    >>> images = torch.randn(7, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    >>> measured = frequency_sensitivity(nn.Sequential(net), images)
    >>> measured.shape, torch.allclose(measured, frequency_sensitivity(net))
    (torch.Size([2, 5, 6]), True)
    """
    _validate_statistic(statistic)
    if type(model) is LinearCNN and (images is None or isinstance(images, Tensor)):
        return _linear_sensitivity(model, images, statistic)
    if images is None:
        raise ValueError(f"images: expected some for a {type(model).__name__}, got None; only a LinearCNN has a closed form without them")
    total: list[Tensor] = []

    def add(norms: Tensor, _: tuple[int, ...]) -> None:
        sofar = total.pop() if total else torch.zeros_like(norms[0])
        total.append(sofar + norms.sum(0) if statistic == "mean" else torch.hypot(sofar, _root_of_squares(norms)))

    seen = visit_spectra(model, images, add, batch_size=batch_size, progress=progress)
    divisor = seen.images if statistic == "mean" else math.sqrt(seen.images * seen.outputs)
    return on_full_grid(total[0] / divisor, seen.grid).to(seen.dtype)


def sensitivity_maps(
    model: nn.Module, images: Float[Tensor, "N C *grid"] | Iterable[Any], *, batch_size: int | None = None, progress: bool = False
) -> Float[Tensor, "N C *grid"]:
    """For each image alone the 2-norm over outputs of ∂f/∂x̂, whose mean over images is `frequency_sensitivity`.

    Arguments and errors as there; N·C·D numbers.
    """
    parts: list[Tensor] = []
    seen = visit_spectra(model, images, lambda norms, _: parts.append(norms), batch_size=batch_size, progress=progress)
    norms = torch.cat(parts)
    return on_full_grid(norms.flatten(0, 1), seen.grid).unflatten(0, norms.shape[:2]).to(seen.dtype)


def sensitivity_curves(
    model: nn.Module, images: Float[Tensor, "N C *grid"] | Iterable[Any], *, batch_size: int | None = None, progress: bool = False
) -> tuple[Float[Tensor, " R"], Float[Tensor, "N R"]]:
    """`(radii, curves)`: the radial average of each image's own sensitivity; the mean over images is that of `frequency_sensitivity`.

    Stacked over runs, the curves are what `crossed_interval` takes.  Arguments and errors as in `frequency_sensitivity`; memory is
    that of a chunk, and N·R numbers.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).double()
    >>> radii, curves = sensitivity_curves(net, torch.ones(4, 1, 3, 3, dtype=torch.float64))
    >>> radii.shape, curves.shape
    (torch.Size([3]), torch.Size([4, 3]))
    """
    parts: list[Tensor] = []
    seen = visit_spectra(
        model, images, lambda norms, grid: parts.append(half_shell_means(norms, grid)), batch_size=batch_size, progress=progress
    )
    curves = torch.cat(parts)
    return shells(seen.grid, curves.device)[0].to(seen.dtype), curves.to(seen.dtype)


def sensitivity_interval(
    model: nn.Module,
    images: Float[Tensor, "N C *grid"] | Iterable[Any],
    *,
    generator: torch.Generator,
    statistic: Statistic = "mean",
    level: float = 0.95,
    resamples: int = 2000,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[Float[Tensor, " R"], Interval]:
    """`(radii, band)`: the radial average of `frequency_sensitivity` with a bootstrap interval over images at each radius.

    It tells what other images of the same kind would have changed, not what other runs of the training would: for both together
    give the `sensitivity_curves` of several runs to `crossed_interval`.  `level` and `resamples` as in `bootstrap_interval`, the
    other arguments and errors as in `frequency_sensitivity`; at least two images.  "rms" keeps the map of every image.

    >>> net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    >>> images = torch.randn(20, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> radii, band = sensitivity_interval(net, images, generator=torch.Generator().manual_seed(1))
    >>> bool((band.low <= band.estimate).all() and (band.estimate <= band.high).all()), radii.tolist()
    (True, [0.0, 1.0, 2.0, 3.0])
    """
    _validate_statistic(statistic)
    options: dict[str, Any] = {"generator": generator, "level": level, "resamples": resamples}
    if statistic == "mean":
        radii, curves = sensitivity_curves(model, images, batch_size=batch_size, progress=progress)
        return radii, bootstrap_interval(curves, **options)
    parts: list[Tensor] = []
    seen = visit_spectra(model, images, lambda norms, _: parts.append(norms), batch_size=batch_size, progress=progress)
    norms = torch.cat(parts) / math.sqrt(seen.outputs)
    radii = shells(seen.grid, norms.device)[0].to(seen.dtype)
    return radii, bootstrap_interval(norms.flatten(1), _curve_of_rms(norms.shape[1:], seen.grid), **options)


def _curve_of_rms(half: tuple[int, ...], grid: tuple[int, ...]) -> Callable[..., Array]:
    """The statistic radial average of √(mean of squares) of maps as SciPy hands them over: images in `axis`, frequencies in front."""

    def curve(norms: Array, axis: int) -> Array:
        rms = torch.from_numpy(np.sqrt(np.square(norms).mean(axis)))
        several = rms.reshape(len(rms), -1).T.reshape(-1, *half)
        return half_shell_means(several, grid).T.reshape(-1, *rms.shape[1:]).numpy()

    return curve


def _linear_sensitivity(net: LinearCNN, images: Tensor | None, statistic: Statistic) -> Float[Tensor, "C *grid"]:
    """The closed form; images, where there are any, are looked at only to refuse those that the network does not take."""
    if images is not None:
        expected = (net.weights[0].shape[1], *net.grid)
        validate_tensor("images", images, ndim=(2 + len(net.grid),), shape=f"(N, {', '.join(map(str, expected))})")
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: expected (N, {', '.join(map(str, expected))}) as the model takes, got {tuple(images.shape)}")
        if images.dtype != net.weights[0].dtype:
            raise TypeError(
                f"images: expected {net.weights[0].dtype} as the model has, got {images.dtype}; convert one of them with .to(...)"
            )
    if not all(bool(torch.isfinite(w).all()) for w in net.weights):
        raise ValueError("model: expected finite weights, got NaN or infinity; look at its training")
    with torch.no_grad():
        blocks = frequency_blocks(net).values
        norms = _root_of_squares(blocks.abs().movedim(-2, 0))
    outputs = blocks.shape[-2] if statistic == "rms" else 1
    return (norms / math.sqrt(math.prod(net.grid) * outputs)).movedim(-1, 0).contiguous()


def _root_of_squares(values: Float[Tensor, "n *shape"]) -> Float[Tensor, "*shape"]:
    """The 2-norm over the first dimension, without overflow."""
    largest = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
    return largest * torch.linalg.vector_norm(values / largest, dim=0)


def _validate_statistic(statistic: object) -> None:
    if statistic not in ("mean", "rms"):
        raise ValueError(f"statistic: expected 'mean' or 'rms', got {statistic!r}")
