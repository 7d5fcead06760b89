"""Strategies of what is constrained: blocks of given ranks or singular values, images of a given spectrum, patches, displacements.

What they yield fills no open set, so that they carry no `admits`: Hypothesis alone varies and shrinks it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jaxtyping import Float
from torch import Tensor

from linconv.spectrum import FrequencyBlocks, mirror_index
from linconv.strategies.general import Draw, Grid, grid_strategy, tensors
from linconv.validation import validate_grid, validate_number, validate_size, validate_tensor

SEEDS = st.just(0) | st.integers(1, 2**32 - 1)


def blocks(
    *,
    outputs: int,
    channels: int,
    grid: Grid | None = None,
    rank: int | None = None,
    singular_values: Sequence[float] | Float[Tensor, "..."] | None = None,
) -> SearchStrategy[FrequencyBlocks]:
    """Readout blocks `(*grid, outputs, channels)` of real predictors, in float64, of rank at most `rank` or with given singular values.

    `singular_values` holds min(outputs, channels) numbers for all frequencies alike, or a tensor `(*grid, min(outputs, channels))` equal
    at u and −u, with `grid` a tuple.  Rank-bounded blocks are products of two kernels and shrink to zeros and small integers; the others
    are U diag(σ) V† with unitary U and V, identities where they are simplest.  Raises `ValueError` or `TypeError` for options that are
    none, for both or neither of `rank` and `singular_values`, and for singular values that no real predictor has.

    >>> from hypothesis import find
    >>> found = find(blocks(outputs=2, channels=2, grid=(3,), singular_values=[2.0, 1.0]), lambda blocks: True)
    >>> found.singular_values()[1].tolist(), found.predictor()[:, :, 0].tolist()
    ([2.0, 1.0], [[2.0, 0.0], [0.0, 1.0]])
    """
    least = min(validate_size("outputs", outputs), validate_size("channels", channels))
    if (rank is None) == (singular_values is None):
        raise ValueError(f"rank: give it or singular_values, one of the two; got rank={rank}, singular_values={singular_values}")
    if rank is not None:
        if validate_size("rank", rank) > least:
            raise ValueError(f"rank: expected at most min(outputs, channels) = {least}, got {rank}")
        return _low_rank(grid_strategy(grid), outputs, channels, rank)
    return _with_singular_values(grid_strategy(grid), outputs, channels, _checked(torch.as_tensor(singular_values).double(), least, grid))


def _checked(values: Tensor, least: int, grid: Grid | None) -> Tensor:
    """Non-negative singular values of a shape that fits, the same at u and −u."""
    if values.shape[-1:] != (least,) or not bool((values >= 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"singular_values: expected {least} finite numbers ≥ 0, for all frequencies or each, got {values.tolist()}")
    if values.ndim > 1:
        sites = () if grid is None or isinstance(grid, SearchStrategy) else validate_grid(grid)
        if tuple(values.shape[:-1]) != sites:
            raise ValueError(f"singular_values: expected one set for each frequency of the grid {sites}, got shape {tuple(values.shape)}")
        flat = values.flatten(0, -2)
        if not torch.equal(flat, flat[mirror_index(sites)]):
            raise ValueError("singular_values: expected the same at u and −u, as real predictors have; symmetrise them")
    return values


@st.composite
def _low_rank(draw: Draw, grids: SearchStrategy[tuple[int, ...]], outputs: int, channels: int, rank: int) -> FrequencyBlocks:
    grid = draw(grids)
    left, right = draw(tensors((outputs, rank, *grid), torch.float64)), draw(tensors((rank, channels, *grid), torch.float64))
    return FrequencyBlocks(_transform(left) @ _transform(right))


@st.composite
def _with_singular_values(
    draw: Draw, grids: SearchStrategy[tuple[int, ...]], outputs: int, channels: int, values: Tensor
) -> FrequencyBlocks:
    grid = draw(grids)
    left, right = (_unitary(draw(SEEDS), n, grid) for n in (outputs, channels))
    least = values.shape[-1]
    middle = torch.diag_embed(values.expand(*grid, least)).to(torch.complex128)
    return FrequencyBlocks(left[..., :least] @ middle @ right[..., :least].mH)


def _unitary(seed: int, size: int, grid: tuple[int, ...]) -> Tensor:
    """A unitary matrix for each frequency, conjugate at u and −u: the polar factor of a kernel's blocks; identities for seed 0."""
    if seed == 0:
        return torch.eye(size, dtype=torch.complex128).expand(*grid, size, size)
    u, _, vh = torch.linalg.svd(_transform(torch.from_numpy(np.random.default_rng(seed).standard_normal((size, size, *grid)))))
    return u @ vh


def _transform(kernel: Tensor) -> Tensor:
    return torch.fft.fftn(kernel, dim=tuple(range(2, kernel.ndim))).movedim((0, 1), (-2, -1)).contiguous()


def spectral_images(power: Float[Tensor, "*shape"], *, max_images: int = 3) -> SearchStrategy[Tensor]:
    """Images `(N, C, *grid)`, 1 ≤ N ≤ `max_images`, with exactly this power spectrum |x̂_u|² (orthonormal DFT) and phases of any kind.

    `power` is `(C, *grid)`, non-negative and equal at u and −u; the images have its dtype.  Simplest are images without phases.  Raises
    `ValueError` or `TypeError` for another `power`.

    >>> from hypothesis import find
    >>> find(spectral_images(torch.ones(1, 4, dtype=torch.float64)), lambda x: len(x) == 1)
    tensor([[[2., 0., 0., 0.]]], dtype=torch.float64)
    """
    validate_tensor("power", power, ndim=(2, 3, 4), shape="(C, *grid)")
    flat = power.flatten(1)
    if not bool((power >= 0).all()) or not torch.equal(flat, flat[:, mirror_index(tuple(power.shape[1:]))]):
        raise ValueError("power: expected numbers ≥ 0 that are equal at u and −u, as real images have; symmetrise it")
    count = st.integers(1, validate_size("max_images", max_images))
    return st.builds(_with_phases, st.just(power), count, SEEDS)


def _with_phases(power: Tensor, count: int, seed: int) -> Tensor:
    dims, shape = tuple(range(2, power.ndim + 1)), (count, *power.shape)
    noise = np.random.default_rng(seed).standard_normal(shape) if seed else np.zeros(shape)
    noise.reshape(*shape[:2], -1)[..., 0] += 0.0 if seed else 1.0  # a delta has no phases
    spectrum = torch.fft.fftn(torch.from_numpy(noise), dim=dims)
    phases = spectrum / spectrum.abs()
    return torch.fft.ifftn(power.double().sqrt() * phases, dim=dims, norm="ortho").real.to(power.dtype)


def patches(images: Float[Tensor, "N C *grid"], kernel_size: int) -> SearchStrategy[Tensor]:
    """Patches `(C, *kernel)` of the given images, cut out anywhere inside; shrinks to the corner of the first.

    Raises `ValueError` or `TypeError` for images that are none, and for a kernel wider than they are.

    >>> from hypothesis import find
    >>> find(patches(torch.arange(12.0).reshape(2, 1, 6), 3), lambda patch: patch.sum() > 12)
    tensor([[6., 7., 8.]])
    """
    validate_tensor("images", images, ndim=(3, 4, 5), shape="(N, C, *grid)")
    grid = tuple(images.shape[2:])
    if validate_size("kernel_size", kernel_size) > min(grid):
        raise ValueError(f"kernel_size: expected at most {min(grid)}, the smallest side of the images, got {kernel_size}")
    corners = st.tuples(*(st.integers(0, n - kernel_size) for n in grid))
    return st.builds(_cut, st.just(images), st.integers(0, len(images) - 1), corners, st.just(kernel_size))


def _cut(images: Tensor, number: int, corner: tuple[int, ...], size: int) -> Tensor:
    patch = images[number]
    for dim, start in enumerate(corner, start=1):
        patch = patch.narrow(dim, start, size)
    return patch.clone()


def displacements(grid: Sequence[int], *, cutoff: int = 3, max_pixels: float = 1.0) -> SearchStrategy[Tensor]:
    """Displacement fields `(2, H, W)` in pixels, zero at the border: sine modes up to `cutoff`, no component beyond `max_pixels`.

    Component 0 is along the rows H.  Shrinks to the zero field and to few modes.  Raises `ValueError` or `TypeError` for a grid that is
    not of two dimensions and for options that are not positive.

    >>> from hypothesis import find
    >>> find(displacements((3, 4)), lambda field: True).abs().max()
    tensor(0., dtype=torch.float64)
    """
    sites = validate_grid(grid)
    if len(sites) != 2:
        raise ValueError(f"grid: expected (H, W), got {sites}")
    modes, most = validate_size("cutoff", cutoff), validate_number("max_pixels", max_pixels)
    return st.builds(_field, tensors((2, modes, modes), torch.float64), st.just(sites), st.just(most))


def _field(coefficients: Tensor, grid: tuple[int, ...], most: float) -> Tensor:
    modes = torch.arange(1, coefficients.shape[1] + 1, dtype=torch.float64)
    rows, columns = (torch.sin(math.pi * modes[:, None] * torch.linspace(0, 1, n, dtype=torch.float64)) for n in grid)
    field = torch.einsum("dij,ih,jw->dhw", coefficients, rows, columns)
    largest = float(field.abs().max())
    return field * (most / largest) if largest > most else field
