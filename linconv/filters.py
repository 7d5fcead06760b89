"""Low, high and middle frequencies of images: orthogonal projections with symmetric masks.

Frequencies are those of `linconv.spectra`: integers, in cycles per image, symmetric about zero.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from linconv.spectra import frequencies, validate_images
from linconv.validation import validate_number


def low_pass(images: Float[Tensor, "N C *grid"], half_width: int | float | Sequence[int | float]) -> Float[Tensor, "N C *grid"]:
    r"""The part of images in the centred square of low frequencies, $|u_d| \le$ `half_width` in every dimension d, edges included.

    An orthogonal projection onto real images: symmetric in u and −u, so that no part of a frequency is lost on the way back, and it
    commutes with circular shifts.  `half_width` is in cycles per image, one number ≥ 0 or one a dimension; 0 leaves the mean of each
    channel, and from n/2 on all frequencies stay.  A half-width given as a fraction of the highest frequency is that times n/2.

    In the dtype of the images.  Raises `ValueError` or `TypeError` naming the argument.

    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    >>> low_pass(x, 0).tolist(), high_pass(x, 0).tolist()
    ([[[3.0, 3.0, 3.0, 3.0]]], [[[-2.0, -1.0, 0.0, 3.0]]])
    """
    validate_images(images)
    return _masked(images, _square(images, "half_width", half_width))


def high_pass(images: Float[Tensor, "N C *grid"], half_width: int | float | Sequence[int | float]) -> Float[Tensor, "N C *grid"]:
    r"""What `low_pass` leaves out: the images of the paper's experiments on high frequencies.

    The orthogonal complement; arguments and errors as there.  The paper's images of 32×32 pixels have `half_width=8`; its code removes
    −8, …, 7 and, in taking real parts, half of ±8, where this removes all of −8, …, 8 (arXiv 2210.01257, section 5).
    """
    validate_images(images)
    return _masked(images, ~_square(images, "half_width", half_width))


def band_pass(
    images: Float[Tensor, "N C *grid"], inner: int | float | Sequence[int | float], outer: int | float | Sequence[int | float]
) -> Float[Tensor, "N C *grid"]:
    """The part of images outside the square of half-width `inner` and inside that of `outer`, its edge included.

    Then low_pass(inner) + band_pass(inner, outer) + high_pass(outer) gives the images back, three orthogonal parts.  Arguments and errors
    as in `low_pass`; `inner` must not exceed `outer` in any dimension.
    """
    validate_images(images)
    inside, within = _square(images, "inner", inner), _square(images, "outer", outer)
    if bool((inside & ~within).any()):
        raise ValueError(f"inner: expected half-widths of at most those of outer, got {inner} and {outer}")
    return _masked(images, within & ~inside)


def _square(images: Tensor, name: str, half_width: object) -> Bool[Tensor, "*half"]:
    """Where |u_d| is at most the half-width in every dimension, on half of the frequencies."""
    grid = images.shape[2:]
    several = (
        list(half_width) if isinstance(half_width, Iterable) and not isinstance(half_width, str | Tensor) else [half_width] * len(grid)
    )
    widths = [validate_number(name, h) for h in several]
    if len(widths) != len(grid):
        raise ValueError(f"{name}: expected one number or {len(grid)}, one a dimension, got {widths}")
    mask = torch.ones((), dtype=torch.bool, device=images.device)
    for n, h in zip(grid, widths, strict=True):
        mask = mask[..., None] & (frequencies(n, images.device).abs() <= h)
    return mask[..., : grid[-1] // 2 + 1]


def _masked(images: Float[Tensor, "N C *grid"], kept: Bool[Tensor, "*half"]) -> Float[Tensor, "N C *grid"]:
    dims = tuple(range(2, images.ndim))
    return torch.fft.irfftn(torch.fft.rfftn(images, dim=dims) * kept, s=images.shape[2:], dim=dims)
