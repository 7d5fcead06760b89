"""Random linear CNNs, the dense matrices that they are, and ways to use their blocks, for the claim about frequency blocks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

import linconv as lc
from linconv import witnesses
from linconv.claims import UsageError
from verification._given import Given

IMAGES = 4
MOST_NUMBERS = 4096
MOST_IMPULSES = 1024
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Network:
    """A random network with images, and the matrix that it is according to the dense witness."""

    net: lc.LinearCNN
    x: Float[Tensor, "N C *grid"]
    matrix: Float[np.ndarray, "K columns"]

    @property
    def weights(self) -> list[Tensor]:
        return [w.detach() for w in self.net.weights]

    @property
    def blocks(self) -> Complex[Tensor, "*grid K C"]:
        return lc.frequency_blocks(self.net).values.detach()

    @property
    def layers(self) -> list[Complex[Tensor, "*grid C_out C_in"]]:
        """The transforms of all weights, the readout last and not conjugated."""
        return [lc.conv_blocks(w, self.net.grid).values for w in self.weights]

    @property
    def outputs(self) -> Float[np.ndarray, "N K"]:
        return np.asarray(self.x.flatten(1).double().numpy() @ self.matrix.T)


class Draw:
    """Random weights and images: from one seed the same numbers in both precisions."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def weight(self, *shape: int) -> Tensor:
        """Of the size that keeps the outputs of a layer near those of its input."""
        return (torch.randn(shape, generator=self.generator, dtype=torch.float64) / math.sqrt(math.prod(shape[1:]))).to(self.dtype)

    def images(self, *shape: int) -> Tensor:
        return torch.randn(IMAGES, *shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def network(self, widths: list[int], grid: tuple[int, ...], kernel: tuple[int, ...]) -> Network:
        """`widths` are those of the images, of the hidden layers and of the outputs."""
        hidden = [self.weight(b, a, *kernel) for a, b in pairwise(widths[:-1])]
        net = lc.LinearCNN.from_weights([*hidden, self.weight(widths[-1], widths[-2], *grid)], grid)
        matrix = witnesses.dense_network([w.detach().double().numpy() for w in net.weights], grid)
        return Network(net, self.images(widths[0], *grid), matrix)

    def module(self, widths: list[int], grid: tuple[int, ...], **options: Any) -> nn.Sequential:
        """torch's own circular convolutions with the given options, then Flatten and Linear."""
        convolution, options = CONVOLUTIONS[len(grid)], {"padding": "same", "padding_mode": "circular", "bias": False, **options}
        skip: Any = torch.nn.utils.skip_init  # layers would draw initial weights from torch's global generator
        layers = [skip(convolution, a, b, **options) for a, b in pairwise(widths[:-1])]
        module = nn.Sequential(*layers, nn.Flatten(), skip(nn.Linear, widths[-2] * math.prod(grid), widths[-1], bias=False))
        for parameter in module.parameters():
            parameter.data = self.weight(*parameter.shape)
        return module.requires_grad_(False)


def as_matrix(given: Given) -> Network:
    """A given network with images; the matrix is what the module itself, in space, makes of every unit impulse, or its gradient."""
    numbers = math.prod(given.input_shape)
    if numbers > MOST_NUMBERS:
        raise UsageError(f"input_shape: expected at most {MOST_NUMBERS} numbers in an image, so that its matrix fits, got {numbers}")
    if numbers <= MOST_IMPULSES:
        with torch.no_grad():
            matrix = given.module(torch.eye(numbers, dtype=torch.float64).reshape(-1, *given.input_shape)).T
    else:
        images = torch.zeros(given.net.weights[-1].shape[0], *given.input_shape, dtype=torch.float64, requires_grad=True)
        matrix = torch.autograd.grad(given.module(images).diagonal().sum(), images)[0].flatten(1)
    x = torch.randn(IMAGES, *given.input_shape, dtype=torch.float64, generator=given.generator)
    return Network(given.net, x, matrix.numpy())


def stack(values: Iterable[Any]) -> Any:
    """Arrays or tensors of one shape, in one; tensors stay tensors, so that their precision is known."""
    entries = list(values)
    return torch.stack(entries) if isinstance(entries[0], Tensor) else np.stack(entries)


def dense_layers(weights: list[Tensor], grid: tuple[int, ...]) -> Float[np.ndarray, "rows columns"]:
    """The matrix of convolutions one after the other, by the witness."""
    matrices = [witnesses.dense_convolution(w.double().numpy(), grid) for w in reversed(weights)]
    return matrices[0] if len(matrices) == 1 else np.linalg.multi_dot(matrices)


def in_frequency(matrix: Float[np.ndarray, "rows columns"], grid: tuple[int, ...]) -> Complex[np.ndarray, "rows columns"]:
    """F W F⁻¹ with the DFT matrix F on every channel."""
    fourier = witnesses.dense_fourier(grid)
    sites = len(fourier)
    channels = matrix.reshape(len(matrix) // sites, sites, -1, sites).swapaxes(1, 2)
    turned = fourier @ channels @ fourier.conj().T / sites
    return turned.swapaxes(1, 2).reshape(matrix.shape)


def block_diagonal(blocks: Complex[Tensor, "*grid A B"]) -> Complex[Tensor, "rows columns"]:
    """The matrix with rows (c, u) and columns (d, v) that has `blocks[u][c, d]` where u = v, and zero elsewhere."""
    flat = blocks.flatten(0, -3)
    return torch.diag_embed(flat.movedim(0, -1)).transpose(1, 2).flatten(2).flatten(0, 1)


def transform(x: Float[Tensor, "N C *grid"]) -> Complex[Tensor, "N C D"]:
    """x̂ by the DFT matrix, in the precision of x."""
    fourier = torch.from_numpy(witnesses.dense_fourier(tuple(x.shape[2:])))
    return x.flatten(2).to(x.dtype.to_complex()) @ fourier.T.to(x.dtype.to_complex())


def through(blocks: Complex[Tensor, "*grid K C"], x: Float[Tensor, "N C *grid"]) -> Complex[Tensor, "N K"]:
    """(1/D) Σ_u V_u x̂_u: real up to rounding where it is right."""
    flat = blocks.flatten(0, -3)
    return torch.einsum("ukc,ncu->nk", flat, transform(x)) / len(flat)


def through_half(blocks: Complex[Tensor, "*grid K C"], x: Float[Tensor, "N C *grid"], weights: Tensor) -> Float[Tensor, "N K"]:
    """The real part of the sum over the half spectrum, each frequency of the last dimension with its weight."""
    grid = blocks.shape[:-2]
    spectrum = transform(x).unflatten(-1, grid)[..., : len(weights)].flatten(2)
    flat = blocks.narrow(len(grid) - 1, 0, len(weights)) * weights.to(x.dtype)[:, None, None]
    return torch.einsum("ukc,ncu->nk", flat.flatten(0, -3), spectrum).real / math.prod(grid)


def zero_padded(weights: list[Tensor], x: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N K"]:
    """A wrong network: zeros around the image, so that nothing comes back on the other side."""
    convolve = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[x.ndim]
    for w in weights[:-1]:
        around = [side for k in reversed(w.shape[2:]) for side in (k - 1, 0)]
        x = convolve(nn.functional.pad(x, around), w.flip(tuple(range(2, w.ndim))))
    return x.flatten(1) @ weights[-1].flatten(1).T
