"""Linear convolutional networks in the space domain: the model, circular convolution.

Nothing here uses a Fourier transform, so that what `linconv.spectrum` says about a network can be checked against what
the network does.  Layers l < L are circular convolutions, the last is a contraction over channels and space
(arXiv 2210.01257, equations (3.1) to (3.3)).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.validation import (
    REAL_DTYPES,
    validate_device,
    validate_generator,
    validate_grid,
    validate_memory,
    validate_number,
    validate_size,
    validate_sizes,
    validate_tensor,
)

# Full-size kernels on small grids run several times faster as one product with the block-circulant matrix, up to this size.
DENSE_ENTRIES = 2**24
PRINTED = 24  # numbers up to which the representation of a network has its weights
CONVOLUTIONS = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def fold_kernel(weight: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> Float[Tensor, "C_out C_in *grid"]:
    """The kernel as a function on the grid: tap m lands on site m mod n, taps that meet add up.

    A kernel wider than the grid therefore wraps around (it aliases), as a circular convolution with it does; a smaller
    one is padded with zeros.
    """
    for dim, n in enumerate(grid, start=2):
        if weight.shape[dim] == n:
            continue
        pieces = [nn.functional.pad(p.movedim(dim, -1), (0, n - p.shape[dim])).movedim(-1, dim) for p in weight.split(n, dim)]
        weight = torch.stack(pieces).sum(0)
    return weight


def circular_convolution(x: Float[Tensor, "N C_in *grid"], weight: Float[Tensor, "C_out C_in *kernel"]) -> Float[Tensor, "N C_out *grid"]:
    r"""True circular convolution, $(w \star x)_{ci} = \sum_{m,d} w_{cdm}\, x_{d,\,i-m \bmod n}$ (arXiv 2210.01257, (3.2)).

    Kernel tap m adds x shifted by +m; no normalising factor; a kernel wider than the grid wraps around.
    """
    grid = tuple(x.shape[2:])
    taps = tuple(min(k, n) for k, n in zip(weight.shape[2:], grid, strict=True))
    kernel = fold_kernel(weight, taps)
    if taps == grid and kernel.numel() * math.prod(grid) <= DENSE_ENTRIES:
        return (x.flatten(1) @ block_circulant(kernel).T).reshape(len(x), len(kernel), *grid)
    padding = [p for k in reversed(taps) for p in (k - 1, 0)]
    # torch's convolutions are cross-correlations: flipping the kernel turns one into a convolution.
    return CONVOLUTIONS[len(grid)](nn.functional.pad(x, padding, mode="circular"), kernel.flip(tuple(range(2, x.ndim))))


def block_circulant(kernel: Float[Tensor, "C_out C_in *grid"]) -> Float[Tensor, "rows columns"]:
    """The matrix of a circular convolution on flattened images: entry ((c, i), (d, j)) is `kernel[c, d, i − j mod n]`."""
    c_out, c_in, *grid = kernel.shape
    offsets = torch.zeros(1, 1, dtype=torch.int64, device=kernel.device)
    for n in grid:  # the flat index of i − j, one dimension after the other
        sites = torch.arange(n, device=kernel.device)
        difference = (sites[:, None] - sites) % n
        offsets = (offsets[:, None, :, None] * n + difference[None, :, None, :]).flatten(2).flatten(0, 1)
    size = math.prod(grid)
    matrix = kernel.flatten(2)[:, :, offsets.flatten()].reshape(c_out, c_in, size, size)
    return matrix.permute(0, 2, 1, 3).reshape(c_out * size, c_in * size)


class LinearCNN(nn.Module):
    r"""A linear convolutional network of depth L, from images `(N, C, *grid)` to outputs `(N, K)`.

    $f(x) = w^{L,T}(w^{L-1} \star \cdots \star w^1 \star x)$: L − 1 circular convolutions without bias, then a readout that
    contracts channels and space (arXiv 2210.01257, (3.1)).  The depth counts the readout; L = 1 is a plain linear model.

    Arguments: `in_channels` C; `hidden_channels`, the L − 1 hidden widths; `out_features` K; `grid`, 1 to 3 positive
    integers; `kernel_size`, an integer or one a dimension (default: the full grid; wider kernels wrap around).
    Weights are drawn from `generator` (default: a new one with seed 0): uniform on ±1/√fan_in as torch's own layers do,
    or, if `scale` is given, normal
    with standard deviation scale/√fan_in.  `weights` lists the parameters, `(C_l, C_{l-1}, *kernel)` for hidden layers
    and `(K, C_{L-1}, *grid)` for the readout.

    Raises `ValueError` or `TypeError` for sizes that are not positive integers, other dtypes than float32 and float64,
    or a negative or non-finite scale.

    >>> net = LinearCNN(3, (8, 8), 10, (5, 4), kernel_size=3, generator=torch.Generator().manual_seed(0))
    >>> net.depth, [tuple(w.shape) for w in net.weights]
    (3, [(8, 3, 3, 3), (8, 8, 3, 3), (10, 8, 5, 4)])
    >>> net(torch.ones(2, 3, 5, 4, dtype=torch.float64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        out_features: int,
        grid: Sequence[int],
        *,
        kernel_size: int | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.grid = validate_grid(grid)
        hidden = validate_sizes("hidden_channels", hidden_channels, per="hidden layer")
        first, outputs = validate_size("in_channels", in_channels), validate_size("out_features", out_features)
        kernel = self.grid if kernel_size is None else validate_sizes("kernel_size", kernel_size, dims=len(self.grid))
        if dtype not in REAL_DTYPES:
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        if scale is not None:
            scale = validate_number("scale", scale)
        widths = (first, *hidden)
        shapes = [(b, a, *kernel) for a, b in zip(widths, hidden, strict=False)] + [(outputs, widths[-1], *self.grid)]
        validate_memory("grid", max(math.prod(shape) for shape in shapes))
        # Without a generator the weights are those of seed 0: torch's global state is neither read nor changed.
        generator = torch.Generator().manual_seed(0) if generator is None else validate_generator(generator)
        target = validate_device(device)
        self.layers = nn.ParameterList()
        for shape in shapes:
            deviation = 1 / math.sqrt(math.prod(shape[1:]))
            w = torch.empty(shape, dtype=dtype, device=generator.device)  # where the generator lives: one seed, one network
            if scale is None:
                w.uniform_(-deviation, deviation, generator=generator)
            else:
                w.normal_(0, 1, generator=generator).mul_(scale * deviation)
            self.layers.append(nn.Parameter(w.to(target)))

    @classmethod
    def from_weights(cls, weights: Sequence[Tensor], grid: Sequence[int]) -> "LinearCNN":
        """A network with copies of the given weights, readout last.

        Hidden weights `(C_l, C_{l-1}, *kernel)`, readout `(K, C_{L-1}, *grid)`, all of one real dtype and device.  Raises
        `ValueError` or `TypeError` naming the weight whose shape, dtype or device does not fit.
        """
        sites = validate_grid(grid)
        if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or len(weights) == 0:
            raise ValueError("weights: expected a list of at least one tensor, the readout last")
        for i, w in enumerate(weights):
            validate_tensor(f"weights[{i}]", w, ndim=(2 + len(sites),), shape=f"(C_out, C_in, {len(sites)} spatial sizes)")
            if (w.dtype, w.device) != (weights[0].dtype, weights[0].device):
                raise TypeError(
                    f"weights[{i}]: expected {weights[0].dtype} on {weights[0].device} as weights[0] has, got {w.dtype} on {w.device}"
                )
            if i and w.shape[1] != weights[i - 1].shape[0]:
                raise ValueError(
                    f"weights[{i}]: expected {weights[i - 1].shape[0]} input channels, the outputs of weights[{i - 1}], got {w.shape[1]}"
                )
        if tuple(weights[-1].shape[2:]) != sites:
            got = tuple(weights[-1].shape)
            raise ValueError(f"weights[-1]: expected a readout (K, C, {', '.join(map(str, sites))}) over the whole grid, got shape {got}")
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net.grid = sites
        net.layers = nn.ParameterList(nn.Parameter(w.detach().clone(memory_format=torch.contiguous_format)) for w in weights)
        return net

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters in order, readout last."""
        return list(self.layers)

    @property
    def depth(self) -> int:
        """Number of layers L, the readout counted."""
        return len(self.layers)

    def forward(self, x: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N K"]:
        """Outputs `(N, K)` of images `(N, C, *grid)`; raises `ValueError` or `TypeError` for other shapes or dtypes."""
        first = self.layers[0]
        expected = (first.shape[1], *self.grid)
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch tensor of images (N, {', '.join(map(str, expected))}), got {type(x).__name__}")
        if x.ndim != len(expected) + 1 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: expected images (N, {', '.join(map(str, expected))}), got shape {tuple(x.shape)}")
        if x.dtype != first.dtype:
            raise TypeError(f"x: expected {first.dtype} as the weights have, got {x.dtype}; convert one of them with .to(...)")
        *hidden, readout = self.layers
        for w in hidden:
            x = circular_convolution(x, w)
        return x.flatten(1) @ readout.flatten(1).T

    def extra_repr(self) -> str:
        shapes = [tuple(w.shape) for w in self.layers]
        # Of a minimal counterexample the numbers are what one wants to see.
        few = sum(w.numel() for w in self.layers) <= PRINTED
        entries = "".join(f"\n{w.tolist()}" for w in self.layers) if few else ""
        return f"{shapes[0][1]} → {shapes[-1][0]}, grid={self.grid}, depth={self.depth}, weights={shapes}{entries}"
