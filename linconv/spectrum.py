r"""Frequency blocks: the small matrix that a linear convolutional network is at each frequency.

With the unnormalised DFT $\hat w_u = \sum_m w_m e^{-2\pi i\, u\cdot m/n}$ a circular convolution multiplies $\hat x_u$ by
$\hat w_u$ and a readout contracts with the conjugate of its transform, so that a network with readout is

    f(x) = (1/D) Σ_u V_u x̂_u,   V_u = conj(ŵ^L_u) ŵ^{L−1}_u ⋯ ŵ^1_u,   D = number of sites

(arXiv 2210.01257, section 3).  The readout is conjugated, the hidden layers are not.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor

from linconv.network import LinearCNN, fold_kernel
from linconv.validation import validate_grid, validate_memory, validate_tensor

CHUNK_BYTES = 2**21
# Above this many taps a fast Fourier transform is quicker than a product with a table of roots of unity.
TABLE_TAPS = 121


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
        if not bool(torch.isfinite(self.values.detach()).all()):
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
        """The min(K, C) singular values of every block, descending."""
        return torch.linalg.svdvals(self.values)

    def __matmul__(self, other: "FrequencyBlocks") -> "FrequencyBlocks":
        if other.kind != "equivariant":
            raise ValueError("@: the map applied first must be equivariant; a readout has no images to pass on")
        if self.grid != other.grid or self.values.shape[-1] != other.values.shape[-2]:
            raise ValueError(f"@: blocks {tuple(self.values.shape)} cannot follow blocks {tuple(other.values.shape)}")
        return FrequencyBlocks(self.values @ other.values, self.kind)


def _transform(weight: Float[Tensor, "C_out C_in *grid"]) -> Complex[Tensor, "*grid C_out C_in"]:
    """The unnormalised DFT over space, frequencies first."""
    return torch.fft.fftn(weight, dim=tuple(range(2, weight.ndim))).movedim((0, 1), (-2, -1))


def conv_blocks(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> FrequencyBlocks:
    """The equivariant blocks ŵ_u of one circular convolution on a grid; a kernel wider than the grid wraps around.

    `weight` is `(C_out, C_in, *kernel)` with as many spatial dimensions as `grid`.  Gradients flow to `weight`.  Raises
    `ValueError` or `TypeError` for shapes or dtypes that do not fit.  Source: Sedghi, Gupta, Long, arXiv 1805.10408.
    """
    sites = validate_grid(grid)
    validate_tensor("weight", weight, ndim=(2 + len(sites),), shape=f"(C_out, C_in, {len(sites)} spatial sizes)")
    validate_memory("grid", math.prod(weight.shape[:2]) * math.prod(sites))
    return FrequencyBlocks(_transform(fold_kernel(weight, sites)), "equivariant")


def frequency_blocks(net: LinearCNN) -> FrequencyBlocks:
    """The readout blocks V_u = conj(ŵ^L_u) ŵ^{L−1}_u ⋯ ŵ^1_u of a network; gradients flow to its weights.

    Raises `TypeError` for another module: `from_torch` imports those that are linear convolutional networks.

    >>> net = LinearCNN(2, (3,), 4, (5, 6), generator=torch.Generator().manual_seed(0))
    >>> blocks, x = frequency_blocks(net), torch.ones(1, 2, 5, 6, dtype=torch.float64)
    >>> bool(torch.allclose((blocks.predictor().flatten(1) @ x.flatten()), net(x)[0]))
    True
    """
    if not isinstance(net, LinearCNN):
        raise TypeError(f"net: expected a LinearCNN, got {type(net).__name__}; use linconv.from_torch to import a torch module")
    *hidden, readout = [_transform(fold_kernel(w, net.grid)) for w in net.weights]
    return FrequencyBlocks(reduce(torch.matmul, reversed(hidden), readout.conj().resolve_conj()), "readout")


def conv_singular_values(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> Float[Tensor, "*grid r"]:
    """All singular values of one circular convolution, min(C_out, C_in) at each frequency, descending.

    Together, over all frequencies, they are the singular values of the block-circulant matrix that maps images
    `(C_in, *grid)` to images `(C_out, *grid)` (arXiv 1805.10408).  A kernel wider than the grid wraps around.

    A weight on the CPU that needs no gradient is handled in chunks of half the spectrum by a few threads; otherwise the
    blocks are formed in torch and gradients flow to `weight`.  Raises as `conv_blocks` does.

    >>> w = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)      # x_i − x_{i−1}
    >>> conv_singular_values(w, (4,)).flatten().round(decimals=6).tolist()
    [0.0, 1.414214, 2.0, 1.414214]
    """
    sites = validate_grid(grid)
    validate_tensor("weight", weight, ndim=(2 + len(sites),), shape=f"(C_out, C_in, {len(sites)} spatial sizes)")
    validate_memory("grid", min(weight.shape[:2]) * math.prod(sites))
    if weight.device.type != "cpu" or (weight.requires_grad and torch.is_grad_enabled()):
        return conv_blocks(weight, sites).singular_values()
    taps = tuple(min(k, n) for k, n in zip(weight.shape[2:], sites, strict=True))
    half = _half_singular_values(fold_kernel(weight.detach(), taps).numpy(), sites)
    return full_spectrum(torch.from_numpy(half), sites)


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


def mirror_index(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """For every frequency in row-major order, the position of its negative.

    >>> mirror_index((2, 3)).tolist()
    [0, 2, 1, 3, 5, 4]
    """
    index = torch.arange(math.prod(grid), device=device).reshape(grid)
    for dim in range(len(grid)):
        index = index.flip(dim).roll(1, dim)
    return index.flatten()


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


def _half_singular_values(kernel: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Singular values at the half spectrum in chunks; each of a few workers, with one BLAS thread, holds the blocks of one chunk."""
    half = (*grid[:-1], grid[-1] // 2 + 1)
    symbols, (first, second, _) = _half_symbols(kernel, grid, half), half_pairs(grid)
    distinct = np.delete(np.arange(math.prod(half)), second)
    step = max(1, CHUNK_BYTES // (kernel.shape[0] * kernel.shape[1] * 2 * kernel.itemsize))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        chunks = (distinct[start : start + step] for start in range(0, len(distinct), step))
        parts = list(pool.map(lambda chunk: np.linalg.svd(symbols(chunk), compute_uv=False), chunks))
    values = np.empty((math.prod(half), min(kernel.shape[:2])), kernel.dtype)
    values[distinct] = np.concatenate(parts)
    values[second] = values[first]
    return values.reshape(*half, -1)


def _half_symbols(kernel: np.ndarray, grid: tuple[int, ...], half: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the blocks at positions of the half spectrum in row-major order.

    They come from a table of roots of unity, or from one fast transform of everything where there are many taps.
    """
    c_out, c_in, *taps = kernel.shape
    dtype = np.result_type(kernel.dtype, np.complex64)
    if math.prod(taps) > TABLE_TAPS:
        spectrum = np.fft.rfftn(kernel, grid, axes=tuple(range(2, kernel.ndim))).astype(dtype, copy=False)
        flat = np.moveaxis(spectrum, (0, 1), (-2, -1)).reshape(-1, c_out, c_in)
        return lambda chunk: flat[chunk]
    columns = np.ascontiguousarray(np.moveaxis(kernel, (0, 1), (-2, -1)).reshape(-1, c_out * c_in)).astype(dtype)
    positions = np.indices(taps).reshape(len(taps), -1)

    def symbols(chunk: np.ndarray) -> np.ndarray:
        frequencies = np.stack(np.unravel_index(chunk, half))
        # Exponents are reduced to one turn while they are integers, where that is exact.
        turns = sum(np.outer(u, m) % n / n for u, m, n in zip(frequencies, positions, grid, strict=True))
        roots = np.exp(-2j * np.pi * turns).astype(dtype)
        return (roots @ columns).reshape(-1, c_out, c_in)

    return symbols
