"""Patches of images, their principal components, and how the energy of a first layer is spread over them.

A filter w of a torch convolution answers a patch p with ⟨w, p⟩: both are flattened in the same order, (C, *kernel).  The definitions
are those of Chowers and Weiss, arXiv 2206.02454, section 4.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.models.layers import FullConvolution
from linconv.network import LinearCNN
from linconv.validation import validate_sizes, validate_tensor

Padding = Literal["valid", "zeros", "circular", "reflect", "replicate"]
PADDINGS = ("valid", "zeros", "circular", "reflect", "replicate")
CHUNK = 2**18  # numbers in an array of patches: 2 MiB, which stay in a core's cache between being cut and being multiplied
EPSILON = torch.finfo(torch.float64).eps


class Windows(NamedTuple):
    """Where patches are cut: size and stride in each dimension, and how images are continued beyond their border."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding

    def counts(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The number of patches in each dimension of a grid."""
        inside = [0 if self.padding != "valid" else k - 1 for k in self.kernel]
        return tuple((n - lost - 1) // s + 1 for n, lost, s in zip(grid, inside, self.stride, strict=True))

    def pad(self, images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N C *padded"]:
        """The images continued by k − 1 sites in each dimension, unless the padding is "valid"; the odd one on the right as in torch."""
        widths = [width for k in reversed(self.kernel) for width in ((k - 1) // 2, k // 2)]
        if self.padding == "valid" or not any(widths):
            return images
        return nn.functional.pad(images, widths, mode="constant" if self.padding == "zeros" else self.padding)

    def patches(self, padded: Float[Tensor, "N C *padded"]) -> Float[Tensor, "P N J"]:
        """All J patches of each padded image, the P = C·(taps) numbers of a patch down the first dimension."""
        dims = range(2, padded.ndim)
        for dim, k, s in zip(dims, self.kernel, self.stride, strict=True):
            padded = padded.unfold(dim, k, s)
        taps = range(2 + len(dims), 2 + 2 * len(dims))
        return padded.permute(1, *taps, 0, *dims).flatten(0, len(dims)).flatten(2)


@dataclass(frozen=True)
class PatchSpectrum:
    """Principal components of the patches of N images, P = C·(taps) numbers a patch, J patches an image.

    `components`: orthonormal eigenvectors u_i of the patches' second moment as rows, λ descending, the largest entry of each positive.
    `lambdas`: λ_i, the root mean square of ⟨u_i, p⟩ over all patches; 0 where λ² is below rounding, P·ε·max λ².
    `mean_patch_covariance`: A = (1/N) Σ_n p̄_n p̄_nᵀ with p̄_n the mean patch of image n.
    `mean`: what was taken from every patch before, the mean of all of them where they were centred, else 0.
    `precise_covariance`, `precise_mean`: A and the mean in float64, as they were summed: small eigenvalues of A decide at late times.
    `windows`: how the patches were cut; `n_images` N, `patches_per_image` J.
    """

    components: Float[Tensor, "P P"]
    lambdas: Float[Tensor, " P"]
    mean_patch_covariance: Float[Tensor, "P P"]
    precise_covariance: Float[Tensor, "P P"]
    mean: Float[Tensor, " P"]
    precise_mean: Float[Tensor, " P"]
    windows: Windows
    n_images: int
    patches_per_image: int

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """(C, *kernel), the shape of a patch and of a filter."""
        return (len(self.lambdas) // math.prod(self.windows.kernel), *self.windows.kernel)


def patch_spectrum(
    images: Float[Tensor, "N C *grid"] | Iterable[Tensor],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    center: bool = True,
    padding: Padding = "valid",
) -> PatchSpectrum:
    r"""Principal components of the patches that a convolution of this kernel size and stride sees.

    $\lambda_i^2 = \frac{1}{NJ}\sum_{n,j} \langle u_i, p_{nj}\rangle^2$ over all J patches of all N images, u_i the eigenvectors of their
    second moment, the mean patch removed first if `center` (Chowers and Weiss, arXiv 2206.02454, section 4).

    `images` is a tensor `(N, C, *grid)`, or an iterable of such tensors that is read once; the grid has 1 to 3 dimensions.  Patches lie
    inside the images; with another `padding` they are continued as torch's `padding="same"` does, in that `padding_mode`.  Computed
    in float64 on the images' device, two mebibytes of patches at a time and without a copy of the images; the result has their dtype.

    Raises `ValueError` or `TypeError` for patches larger than the images, images without variation, batches of different shapes, and
    numbers that are not finite.

    >>> x = torch.rand(50, 3, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> spectrum = patch_spectrum(x, 3)
    >>> spectrum.components.shape, spectrum.patches_per_image
    (torch.Size([27, 27]), 42)
    >>> bool((spectrum.lambdas.square().mean() - 1 / 12).abs() < 0.003)     # white noise: the variance of a pixel
    True
    """
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected a torch tensor (N, C, *grid) or an iterable of them, got {type(images).__name__}")
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, torch.empty(0))
    _refuse_pair("images[0]", first)
    validate_tensor("images", first, ndim=(3, 4, 5), shape="images (N, C, *grid)")
    windows = _windows(kernel_size, stride, padding, tuple(first.shape[2:]))
    # Second moments are taken about a colour near the mean: about zero they would lose the digits of the variation.
    colour = torch.stack([part.to(torch.float64).flatten(2).mean(2).sum(0) for part in first.detach().split(100)]).sum(0) / len(first)
    sums = _sums(_alike(first, batches), windows, colour)
    per_image = math.prod(windows.counts(first.shape[2:]))
    mean = colour.repeat_interleave(math.prod(windows.kernel)) + (drift := sums.means / sums.images)
    moment, of_means = sums.moment / (sums.images * per_image) - drift.outer(drift), sums.of_means / sums.images - drift.outer(drift)
    removed, kept = (mean, 0 * mean) if center else (0 * mean, mean)
    moment, of_means = moment + kept.outer(kept), of_means + kept.outer(kept)
    if not float(moment.abs().max()) <= torch.finfo(first.dtype).max:
        raise ValueError(f"images: expected pixels whose squares {first.dtype} holds, got larger ones; rescale the images")
    components, lambdas = _principal(moment, float(mean.abs().max()))
    return PatchSpectrum(
        components=components.to(first.dtype),
        lambdas=lambdas.to(first.dtype),
        mean_patch_covariance=of_means.to(first.dtype),
        precise_covariance=of_means,
        mean=removed.to(first.dtype),
        precise_mean=removed,
        windows=windows,
        n_images=sums.images,
        patches_per_image=per_image,
    )


def _windows(kernel_size: object, stride: object, padding: Padding, grid: tuple[int, ...]) -> Windows:
    kernel, steps = (validate_sizes(name, n, dims=len(grid)) for name, n in (("kernel_size", kernel_size), ("stride", stride)))
    if padding not in PADDINGS:
        raise ValueError(f"padding: expected one of {', '.join(PADDINGS)}, got {padding!r}")
    if any(k > n for k, n in zip(kernel, grid, strict=True)):
        raise ValueError(f"kernel_size: expected patches that fit into images of {grid} pixels, got {kernel}; take smaller patches")
    return Windows(kernel, steps, padding)


def _alike(first: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    """The batches in turn, each checked to hold images like the first."""
    yield first
    for i, batch in enumerate(others, start=1):
        _refuse_pair(f"images[{i}]", batch)
        validate_tensor(f"images[{i}]", batch, ndim=(first.ndim,), shape="images (N, C, *grid)")
        if batch.shape[1:] != first.shape[1:]:
            raise ValueError(f"images[{i}]: expected images {tuple(first.shape[1:])} as in the first batch, got {tuple(batch.shape[1:])}")
        yield batch


def _refuse_pair(name: str, batch: object) -> None:
    if isinstance(batch, list | tuple):
        raise TypeError(f"{name}: expected a tensor of images, got a {type(batch).__name__}; pass (batch[0] for batch in loader)")


class _Sums(NamedTuple):
    """Σ p pᵀ over patches, Σ p̄ p̄ᵀ and Σ p̄ over the mean patches of images, all less a colour; the number of images."""

    moment: Float[Tensor, "P P"]
    of_means: Float[Tensor, "P P"]
    means: Float[Tensor, " P"]
    images: int


def _sums(batches: Iterable[Tensor], windows: Windows, colour: Float[Tensor, " C"]) -> _Sums:
    size = len(colour) * math.prod(windows.kernel)
    moment, of_means, total, count = colour.new_zeros(size, size), colour.new_zeros(size, size), colour.new_zeros(size), 0
    for images in batches:
        means = colour.new_zeros(len(images), size)
        for part, patches in _pieces(images, windows, colour):
            moment.addmm_(patches.flatten(1), patches.flatten(1).T)
            means[part] += patches.sum(-1).T
        means /= math.prod(windows.counts(images.shape[2:]))
        of_means.addmm_(means.T, means)
        total += means.sum(0)
        count += len(images)
    return _Sums(moment, of_means, total, count)


def _pieces(
    images: Float[Tensor, "N C *grid"], windows: Windows, colour: Float[Tensor, " C"]
) -> Iterator[tuple[slice, Float[Tensor, "P n J"]]]:
    """The patches less a colour, of a few images at a time, or where one image has too many, of a few rows of it."""
    rows, *others = windows.counts(images.shape[2:])
    in_a_row = math.prod(others) * len(colour) * math.prod(windows.kernel)
    at_once, block = max(1, CHUNK // (rows * in_a_row)), max(1, min(rows, CHUNK // in_a_row))
    kernel, stride = windows.kernel[0], windows.stride[0]
    shift = colour.reshape(-1, *[1] * (images.ndim - 2))
    for start in range(0, len(images), at_once):
        padded = windows.pad(images[start : start + at_once].detach().to(torch.float64)) - shift
        for row in range(0, rows, block):
            last = min(rows, row + block) - 1
            strip = padded[:, :, row * stride : last * stride + kernel]
            yield slice(start, start + len(padded)), windows.patches(strip)


def _principal(moment: Float[Tensor, "P P"], size: float) -> tuple[Float[Tensor, "P P"], Float[Tensor, " P"]]:
    """Eigenvectors as rows and square roots of the eigenvalues, descending; `size` is that of the pixels."""
    values, vectors = torch.linalg.eigh(moment)
    values, rows = values.flip(0), vectors.T.flip(0)
    if float(values[0]) <= (100 * EPSILON * size) ** 2:
        raise ValueError("images: expected patches that vary, got constant ones; take other images, or center=False if they are not zero")
    values = values.where(values > len(values) * EPSILON * values[0], 0.0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign(), values.sqrt()


def mean_patches(spectrum: PatchSpectrum, images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N P"]:
    """The mean patch p̄_n of each image, in float64, less the spectrum's mean: what a first layer before average pooling sees.

    Raises `ValueError` or `TypeError` for images whose channels or dimensions are not those of the spectrum, or that are too small.
    """
    dims = len(spectrum.windows.kernel)
    validate_tensor("images", images, ndim=(2 + dims,), shape=f"images (N, C, {dims} spatial sizes)")
    if images.shape[1] != spectrum.patch_shape[0]:
        raise ValueError(f"images: expected {spectrum.patch_shape[0]} channels as the spectrum has, got shape {tuple(images.shape)}")
    windows = _windows(*spectrum.windows, tuple(images.shape[2:]))
    mean = spectrum.precise_mean
    colour = mean.reshape(images.shape[1], -1).mean(1)
    means = mean.new_zeros(len(images), len(mean))
    for part, patches in _pieces(images, windows, colour):
        means[part] += patches.sum(-1).T
    return means / math.prod(windows.counts(images.shape[2:])) - (mean - colour.repeat_interleave(math.prod(windows.kernel)))


def first_filters(model: nn.Module, layer: str | None = None) -> Float[Tensor, "K C *kernel"]:
    """The filters of a model's first convolution, or of the layer of that name, as they multiply whole patches entry by entry.

    The first is the first in the order of `model.named_modules()`, which is the order of definition.  A filter that sees one group of the
    channels has zeros in the others, and one with dilation d zeros between its taps, so that its kernel has d(k − 1) + 1 of them.
    True convolutions, which are those of a `LinearCNN` and of `FullConvolution`, are flipped.

    Raises `ValueError` for a model without convolution, an unknown layer, one that is no convolution, and one without weights yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | FullConvolution | LinearCNN
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    name = next(iter(convolutions), None) if layer is None else layer
    if name not in convolutions:
        known = ", ".join(map(repr, convolutions)) or "none"
        raise ValueError(f"layer: expected the name of a convolution of the model, got {layer!r}; it has {known}; or pass the filters")
    chosen = convolutions[name]
    if isinstance(chosen, LinearCNN | FullConvolution):
        weight = (chosen.weights[0] if isinstance(chosen, LinearCNN) else chosen.weight).detach()
        readout = isinstance(chosen, LinearCNN) and chosen.depth == 1
        return weight if readout else weight.flip(tuple(range(2, weight.ndim)))
    if isinstance(chosen.weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"layer: {name!r} is lazy and has no weights yet; run the model on one batch of images first")
    return _of_whole_patches(chosen)


def _of_whole_patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Float[Tensor, "K C *kernel"]:
    """Its filters with the zeros that groups and dilation leave."""
    weight, groups = layer.weight.detach(), layer.groups
    sizes = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    filters = weight.new_zeros(groups, len(weight) // groups, groups, weight.shape[1], *sizes)
    taps = (slice(None),) * 4 + tuple(slice(None, None, d) for d in layer.dilation)
    filters[taps].diagonal(dim1=0, dim2=2).copy_(weight.unflatten(0, (groups, -1)).movedim(0, -1))
    return filters.flatten(0, 1).flatten(1, 2)


def energy_profile(
    filters: Float[Tensor, "K C *kernel"] | nn.Module, components: Float[Tensor, "m P"], *, layer: str | None = None
) -> Float[Tensor, " m"]:
    r"""The root-mean-square weight of the filters along each component, $e_i = (\frac1K \sum_k \langle w_k, u_i\rangle^2)^{1/2}$.

    `filters` is the weight of any torch convolution, or a module whose first convolution (or `layer`, by name) is taken, with groups and
    dilation as `first_filters` spreads them; `components` are the rows u_i of a `PatchSpectrum`.  Computed in float64 without gradients,
    in any units; the result has the filters' dtype.  Raises `ValueError` or `TypeError` where filters and components do not fit.
    Source: Chowers and Weiss, arXiv 2206.02454, section 4.

    >>> x = torch.rand(50, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> components = patch_spectrum(x, 3).components
    >>> energy_profile(2 * components[:1].reshape(1, 1, 3), components).round(decimals=12).abs().tolist()
    [2.0, 0.0, 0.0]
    """
    if layer is not None and not isinstance(filters, nn.Module):
        raise ValueError(f"layer: expected none beside filters, which have no layers, got {layer!r}; pass the module, or its weight alone")
    weight = first_filters(filters, layer) if isinstance(filters, nn.Module) else filters
    validate_tensor("filters", weight, ndim=(2, 3, 4, 5), shape="filters (K, C, *kernel)")
    validate_tensor("components", components, ndim=(2,), shape="components as rows (m, P)")
    rows = weight.detach().flatten(1).to(torch.float64)
    if rows.shape[1] != components.shape[1] or weight.device != components.device:
        raise ValueError(
            f"filters: expected {components.shape[1]} weights a filter on {components.device} as the components have, got shape "
            f"{tuple(weight.shape)} on {weight.device}; take patches of these sizes, and pass a grouped or dilated layer as a module"
        )
    size = rows.abs().max().clamp(min=torch.finfo(torch.float64).tiny)  # squares of what is as large as 1 neither overflow nor vanish
    energies = (rows / size @ components.detach().to(torch.float64).T).square().mean(0).sqrt()
    return (size * energies).to(weight.dtype)
