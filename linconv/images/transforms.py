"""Transforms of image tensors: greyscale, centring, whitening, area averaging; any number of spatial dimensions."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.validation import validate_sizes, validate_tensor

LUMA = (0.299, 0.587, 0.114)


def check_images(images: object) -> None:
    """Raise, naming the argument, unless `images` is a non-empty finite real tensor (N, C, *grid)."""
    validate_tensor("images", images, ndim=(3, 4, 5), shape="(N, C, *grid)")


def greyscale(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N 1 *grid"]:
    """Luma 0.299 R + 0.587 G + 0.114 B of images with three channels (ITU-R BT.601-7, §2.5.1); one channel is returned as it is.

    Raises ValueError for another number of channels.
    """
    check_images(images)
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise ValueError(f"images: greyscale needs 1 or 3 channels (R, G, B), got {images.shape[1]} in shape {tuple(images.shape)}")
    return torch.tensordot(images, images.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)


def center(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N C *grid"]:
    """The images less their mean image; they then span at most N − 1 dimensions."""
    check_images(images)
    return images - images.mean(0, keepdim=True)


def resize(images: Float[Tensor, "N C *grid"], grid: Sequence[int]) -> Float[Tensor, "N C *new_grid"]:
    """Area averaging: each new pixel is the integral mean of the piecewise constant image over its footprint.

    Exact at every ratio, up as well as down, and in every number of spatial dimensions; the mean of each image is kept.
    Raises ValueError unless `grid` has one positive integer a spatial dimension.

    >>> resize(torch.tensor([[[0.0, 3.0, 6.0]]]), (2,))
    tensor([[[1., 5.]]])
    """
    check_images(images)
    for dim, m in enumerate(validate_sizes("grid", grid, dims=images.ndim - 2), start=2):
        n = images.shape[dim]
        # Overlap of output cell [i n, (i+1) n] with input cell [j m, (j+1) m], in units of 1/m input pixels: integers, exact.
        out, inp = torch.arange(m, device=images.device)[:, None] * n, torch.arange(n, device=images.device) * m
        overlap = (torch.minimum(out + n, inp + m) - torch.maximum(out, inp)).clamp(min=0)
        if n != m:
            images = torch.tensordot(images, overlap.to(images.dtype) / n, dims=([dim], [1])).movedim(-1, dim)
    return images.contiguous()


def whiten(images: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N C *grid"]:
    r"""Images whose uncentred second moment $\frac1N X^\top X$ is the identity on all C·D coordinates, D the pixels; X is (N, C·D).

    Symmetric (ZCA, Löwdin) whitening: with X = U S Vᵀ the result is √N U Vᵀ, of all such sets the nearest to the images
    (Kessy, Lewin and Strimmer 2018, arXiv 1512.00809).  Centred images stay centred.  Computed in float64 from the singular
    value decomposition of X itself, so nothing is squared, and exact up to rounding in the dtype of the images.

    Raises ValueError for fewer images than coordinates, and for images that do not span them.

    >>> x = whiten(torch.rand(50, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).flatten(1)
    >>> bool((x.T @ x / 50 - torch.eye(12)).abs().max() < 1e-13)
    True
    """
    check_images(images)
    flat = images.flatten(1)
    n, p = flat.shape
    if n < p:
        raise ValueError(
            f"images: whitening needs N ≥ C·D, got N = {n} images of C·D = {p} numbers; take more images, a smaller grid or greyscale"
        )
    left, scale, right = torch.linalg.svd(flat.to(torch.float64), full_matrices=False)
    # Rounding the entries of rank-deficient images leaves singular values of a few eps, relative to the largest, at every size.
    rank = int((scale > 100 * torch.finfo(images.dtype).eps * scale[0]).sum())
    if rank < p:
        raise ValueError(
            f"images: whitening needs images that span all C·D = {p} dimensions, got rank {rank} from {n} images; "
            "take more or other images, a smaller grid, or greyscale where the channels are equal, or leave out centring where N = C·D"
        )
    isometry = left @ right
    # One Newton–Schulz step towards the polar factor brings what rounding left of QᵀQ − I down to the last digits.
    isometry = isometry @ (1.5 * torch.eye(p, dtype=torch.float64, device=images.device) - 0.5 * isometry.T @ isometry)
    whitened: Tensor = math.sqrt(n) * isometry
    return whitened.reshape(images.shape).to(images.dtype)
