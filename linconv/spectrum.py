r"""Frequency blocks: the small matrix that a linear convolutional network is at each frequency.

With the unnormalised DFT $\hat w_u = \sum_m w_m e^{-2\pi i\, u\cdot m/n}$ a circular convolution multiplies $\hat x_u$ by
$\hat w_u$ and a readout contracts with the conjugate of its transform, so that a network with readout is

    f(x) = (1/D) Σ_u V_u x̂_u,   V_u = conj(ŵ^L_u) ŵ^{L−1}_u ⋯ ŵ^1_u,   D = number of sites

(arXiv 2210.01257, section 3).  The readout is conjugated, the hidden layers are not.
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal, overload

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from linconv.enclosures import SingularValueBounds, singular_value_bounds
from linconv.network import LinearCNN, fold_kernel
from linconv.symbols import (
    Positions,
    block_function,
    in_chunks,
    mirror_index,
    numbers_per_frequency,
    on_fast_path,
    stack_blocks,
)
from linconv.validation import validate_grid, validate_memory, validate_tensor

__all__ = [
    "FrequencyBlocks",
    "conv_blocks",
    "conv_singular_values",
    "frequency_blocks",
    "full_spectrum",
    "half_pairs",
    "mirror_index",
    "pair_weights",
]


@dataclass(frozen=True)
class FrequencyBlocks:
    """The blocks `values[u]`, a K×C complex matrix at each frequency u of the grid, in FFT order.

    `kind` is "readout" for a map from images to K numbers, f(x) = (1/D) Σ_u V_u x̂_u, or "equivariant" for a map from
    images to images, ŷ_u = V_u x̂_u.  `a @ b` applies b first: equivariant maps compose, and a readout may follow one.
    """

    values: Complex[Tensor, "*grid K C"]
    kind: Literal["readout", "equivariant"] = "readout"

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor) or not self.values.is_complex():
            got = self.values.dtype if isinstance(self.values, Tensor) else type(self.values).__name__
            raise TypeError(f"values: expected a complex tensor (*grid, K, C), got {got}")
        if self.kind not in ("readout", "equivariant"):
            raise ValueError(f"kind: expected 'readout' or 'equivariant', got {self.kind!r}")
        if self.values.ndim not in (3, 4, 5) or self.values.numel() == 0:
            raise ValueError(f"values: expected (*grid, K, C) with a grid of 1 to 3 dimensions, got shape {tuple(self.values.shape)}")
        # A finite sum has finite terms, and is quick; one that is not finite may have overflowed.
        values = self.values.detach()
        if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
            raise ValueError("values: expected finite numbers, got NaN or infinity")

    @classmethod
    def from_predictor(cls, beta: Float[Tensor, "K C *grid"]) -> "FrequencyBlocks":
        """The blocks V_u = conj(β̂_u) of the map f_k(x) = ⟨β_k, x⟩ given by a real tensor `(K, C, *grid)`."""
        validate_tensor("beta", beta, ndim=(3, 4, 5), shape="(K, C, *grid)")
        return cls(_transform(beta).conj().resolve_conj(), "readout")

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of sites, or of frequencies, in each dimension."""
        return tuple(self.values.shape[:-2])

    def predictor(self) -> Float[Tensor, "K C *grid"]:
        """The real tensor β with f_k(x) = ⟨β_k, x⟩; raises `ValueError` for equivariant blocks or ones without V_{−u} = conj(V_u)."""
        if self.kind != "readout":
            raise ValueError("predictor: these blocks are of kind 'equivariant', a map to images; only 'readout' blocks have a predictor")
        spatial = tuple(range(len(self.grid)))
        beta = torch.fft.ifftn(self.values.conj(), dim=spatial)
        with torch.no_grad():
            dust = math.sqrt(torch.finfo(beta.dtype).eps) * float(beta.abs().max())
            if float(beta.imag.abs().max()) > dust:
                raise ValueError("predictor: the blocks at u and −u are not conjugate, so no real predictor has them")
        return beta.real.movedim((-2, -1), (0, 1)).contiguous()

    def singular_values(self) -> Float[Tensor, "*grid r"]:
        """The min(K, C) singular values of every block, descending.

        On the CPU without gradients, a block at −u that is the conjugate of the one at u bit for bit is not decomposed again.
        """
        if not on_fast_path(self.values):
            return torch.linalg.svdvals(self.values)
        blocks = self.values.detach().flatten(0, -3)
        blocks = blocks.mT if blocks.shape[1] < blocks.shape[2] else blocks  # LAPACK is quicker with tall ones
        values = blocks.new_empty(len(blocks), min(blocks.shape[1:]), dtype=blocks.real.dtype)

        def decompose(u: Positions, minus: Positions) -> None:
            here, there = blocks[u], blocks[minus]
            values[u] = values[minus] = torch.linalg.svdvals(here)
            different = (there != here.conj()).flatten(1).any(1)
            values[minus[different]] = torch.linalg.svdvals(there[different])

        in_chunks(decompose, self.grid, 2 * blocks[0].numel(), blocks.dtype)
        return values.unflatten(0, self.grid)

    def __matmul__(self, other: "FrequencyBlocks") -> "FrequencyBlocks":
        if other.kind != "equivariant":
            raise ValueError("@: the map applied first must be equivariant; a readout has no images to pass on")
        if self.grid != other.grid or self.values.shape[-1] != other.values.shape[-2]:
            raise ValueError(f"@: blocks {tuple(self.values.shape)} cannot follow blocks {tuple(other.values.shape)}")
        return FrequencyBlocks(self.values @ other.values, self.kind)


def _validate_convolution(weight: object, grid: object) -> tuple[int, ...]:
    """The grid as a tuple of integers, if the weight is a kernel for it; else raises naming the argument."""
    sites = validate_grid(grid)
    validate_tensor("weight", weight, ndim=(2 + len(sites),), shape=f"(C_out, C_in, {len(sites)} spatial sizes)")
    return sites


def _transform(weight: Float[Tensor, "C_out C_in *grid"]) -> Complex[Tensor, "*grid C_out C_in"]:
    """The unnormalised DFT over space, frequencies first."""
    return torch.fft.fftn(weight, dim=tuple(range(2, weight.ndim))).movedim((0, 1), (-2, -1))


def conv_blocks(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> FrequencyBlocks:
    """The equivariant blocks ŵ_u of one circular convolution on a grid; a kernel wider than the grid wraps around.

    `weight` is `(C_out, C_in, *kernel)` with as many spatial dimensions as `grid`.  Gradients flow to `weight`.  On the CPU
    without gradients the blocks at u and −u are conjugate bit for bit.  Raises `ValueError` or `TypeError` for shapes or
    dtypes that do not fit.  Source: Sedghi, Gupta, Long, arXiv 1805.10408.
    """
    sites = _validate_convolution(weight, grid)
    validate_memory("grid", math.prod(weight.shape[:2]) * math.prod(sites))
    values = stack_blocks([weight.detach()], sites) if on_fast_path(weight) else _transform(fold_kernel(weight, sites))
    return FrequencyBlocks(values, "equivariant")


def frequency_blocks(net: LinearCNN) -> FrequencyBlocks:
    """The readout blocks V_u = conj(ŵ^L_u) ŵ^{L−1}_u ⋯ ŵ^1_u of a network; gradients flow to its weights.

    A network on the CPU that needs no gradient (inside `torch.no_grad()`, or after `net.requires_grad_(False)`) is handled in
    chunks of half the spectrum by `torch.get_num_threads()` threads, and its blocks at u and −u are conjugate bit for bit.
    Raises `TypeError` for another module: `from_torch` imports those that are linear convolutional networks.

    >>> net = LinearCNN(2, (3,), 4, (5, 6), generator=torch.Generator().manual_seed(0))
    >>> blocks, x = frequency_blocks(net), torch.ones(1, 2, 5, 6, dtype=torch.float64)
    >>> bool(torch.allclose((blocks.predictor().flatten(1) @ x.flatten()), net(x)[0]))
    True
    """
    if not isinstance(net, LinearCNN):
        raise TypeError(f"net: expected a LinearCNN, got {type(net).__name__}; use linconv.from_torch to import a torch module")
    if on_fast_path(*net.weights):
        return FrequencyBlocks(stack_blocks([w.detach() for w in net.weights], net.grid, readout=True), "readout")
    *hidden, readout = [_transform(fold_kernel(w, net.grid)) for w in net.weights]
    return FrequencyBlocks(reduce(torch.matmul, reversed(hidden), readout.conj().resolve_conj()), "readout")


@overload
def conv_singular_values(
    weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...], *, enclose: Literal[False] = False
) -> Float[Tensor, "*grid r"]: ...


@overload
def conv_singular_values(
    weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...], *, enclose: Literal[True]
) -> SingularValueBounds: ...


def conv_singular_values(
    weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...], *, enclose: bool = False
) -> Float[Tensor, "*grid r"] | SingularValueBounds:
    """All singular values of one circular convolution, min(C_out, C_in) at each frequency, descending.

    Together, over all frequencies, they are the singular values of the block-circulant matrix that maps images
    `(C_in, *grid)` to images `(C_out, *grid)` (arXiv 1805.10408).  A kernel wider than the grid wraps around.

    Only one of u and −u is decomposed, and one frequency of a dimension in which the kernel has one tap.  A weight on the
    CPU that needs no gradient is handled in chunks by `torch.get_num_threads()` threads; otherwise the blocks of half the
    spectrum are formed at once and gradients flow to `weight`.  Raises as `conv_blocks` does.

    With `enclose` the result has `.lower` and `.upper`, float64 tensors of that shape proved to contain the exact singular
    values of exactly these weights, rounding of the Fourier transform included (docs/enclosures.md); no gradient flows.

    >>> w = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)      # x_i − x_{i−1}
    >>> conv_singular_values(w, (4,)).flatten().round(decimals=6).tolist()
    [0.0, 1.414214, 2.0, 1.414214]
    >>> bounds = conv_singular_values(w, (4,), enclose=True)
    >>> bounds.lower[2].item() <= 2 <= bounds.upper[2].item()
    True
    """
    if enclose:
        return singular_value_bounds(weight, grid)
    sites = _validate_convolution(weight, grid)
    rank = min(weight.shape[:2])
    validate_memory("grid", rank * math.prod(sites))
    varying = tuple(1 if k == 1 else n for k, n in zip(weight.shape[2:], sites, strict=True))
    wide = weight.transpose(0, 1) if weight.shape[0] > rank else weight
    values = _singular_values_in_chunks(wide.detach(), varying) if on_fast_path(weight) else _singular_values_at_once(wide, varying)
    return values.expand(*sites, rank).contiguous()


def _singular_values_at_once(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> Float[Tensor, "*grid r"]:
    """The singular values in torch, with gradients, on any device, from all blocks of half the spectrum."""
    half = torch.fft.rfftn(fold_kernel(weight, grid), dim=tuple(range(2, weight.ndim))).movedim((0, 1), (-2, -1))
    return full_spectrum(torch.linalg.svdvals(half), grid)


def _singular_values_in_chunks(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> Float[Tensor, "*grid r"]:
    """The same on the CPU without gradients, a chunk a thread; quickest where C_out ≤ C_in."""
    blocks, values = block_function(weight, grid), weight.new_empty(math.prod(grid), min(weight.shape[:2]))

    def decompose(u: Positions, minus: Positions) -> None:
        # Transposed, wide blocks are tall and column-major, as LAPACK takes them without more ado.
        values[u] = values[minus] = torch.linalg.svdvals(blocks(u).mT)

    in_chunks(decompose, grid, numbers_per_frequency(weight), weight.dtype.to_complex())
    return values.unflatten(0, grid)


def pair_weights(grid: tuple[int, ...]) -> Float[Tensor, " half"]:
    """How often each frequency of the half spectrum (last dimension 0 … n//2) stands in the full one: 1 or 2.

    A sum over all frequencies of something equal at u and −u is the sum over the half spectrum with these weights.

    >>> pair_weights((3, 5)).tolist(), pair_weights((6,)).tolist()
    ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0, 1.0])
    """
    last = torch.arange(grid[-1] // 2 + 1)
    return torch.where((2 * last) % grid[-1] == 0, 1.0, 2.0).to(torch.float64)


def full_spectrum(half: Float[Tensor, "*half r"], grid: tuple[int, ...]) -> Float[Tensor, "*grid r"]:
    """The full spectrum of a quantity equal at u and −u from its half (last dimension 0 … n//2)."""
    dims = tuple(range(len(grid)))
    mirrored = half[..., 1 : (grid[-1] + 1) // 2, :].flip(dims)
    for dim in dims[:-1]:  # −u is n − u except at 0, which stays where it is
        mirrored = mirrored.roll(1, dim)
    return torch.cat([half, mirrored], dim=dims[-1])


def half_pairs(grid: tuple[int, ...]) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"], Int64[Tensor, " S"]]:
    """Positions in the half spectrum, row-major: pairs u, −u that both stand in it, first and second, and those with u = −u.

    >>> [positions.tolist() for positions in half_pairs((3, 4))]      # (1, 0) and (2, 0), (1, 2) and (2, 2); (0, 0) and (0, 2)
    [[3, 5], [6, 8], [0, 2]]
    """
    half = (*grid[:-1], grid[-1] // 2 + 1)
    place = torch.full(grid, -1, dtype=torch.int64)
    place[..., : half[-1]] = torch.arange(math.prod(half)).reshape(half)
    mirror = place.flatten()[mirror_index(grid)].reshape(grid)[..., : half[-1]].flatten()
    own = torch.arange(math.prod(half))
    first = own < mirror
    return own[first], mirror[first], own[own == mirror]
