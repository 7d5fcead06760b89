"""Linear convolutional networks in the space domain: the model, circular convolution, import of torch modules.

Nothing here uses a Fourier transform, so that what `linconv.spectrum` says about a network can be checked against what
the network does.  Layers l < L are circular convolutions, the last is a contraction over channels and space
(arXiv 2210.01257, equations (3.1) to (3.3)).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.validation import REAL_DTYPES, validate_grid, validate_number, validate_size, validate_sizes, validate_tensor

# Full-size kernels on small grids run several times faster as one product with the block-circulant matrix, up to this size.
DENSE_ENTRIES = 2**24
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
        return (x.flatten(1) @ block_circulant(kernel).T).reshape(len(x), -1, *grid)
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


class NotLinearCNNError(ValueError):
    """A torch module that is not a linear convolutional network of the kind `from_torch` accepts; says which layer and why."""


class LinearCNN(nn.Module):
    r"""A linear convolutional network of depth L, from images `(N, C, *grid)` to outputs `(N, K)`.

    $f(x) = w^{L,T}(w^{L-1} \star \cdots \star w^1 \star x)$: L − 1 circular convolutions without bias, then a readout that
    contracts channels and space (arXiv 2210.01257, (3.1)).  The depth counts the readout; L = 1 is a plain linear model.

    Arguments: `in_channels` C; `hidden_channels`, the L − 1 hidden widths; `out_features` K; `grid`, 1 to 3 positive
    integers; `kernel_size`, an integer or one a dimension (default: the full grid; wider kernels wrap around).
    Weights are drawn from `generator`: uniform on ±1/√fan_in as torch's own layers do, or, if `scale` is given, normal
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
        hidden = validate_sizes("hidden_channels", hidden_channels)
        first, outputs = validate_size("in_channels", in_channels), validate_size("out_features", out_features)
        kernel = self.grid if kernel_size is None else validate_sizes("kernel_size", kernel_size, dims=len(self.grid))
        if dtype not in REAL_DTYPES:
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        if scale is not None:
            scale = validate_number("scale", scale)
        widths = (first, *hidden)
        shapes = [(b, a, *kernel) for a, b in zip(widths, hidden, strict=False)] + [(outputs, widths[-1], *self.grid)]
        target = torch.device(device) if device is not None else torch.device("cpu")
        # Drawn where the generator lives, so that one seed gives one network on every device.
        source = generator.device if generator is not None else target
        self.layers = nn.ParameterList()
        for shape in shapes:
            deviation = 1 / math.sqrt(math.prod(shape[1:]))
            w = torch.empty(shape, dtype=dtype, device=source)
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
        if isinstance(weights, Tensor) or len(weights) == 0:
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
            raise ValueError(f"weights[-1]: expected a readout (K, C, *{sites}) over the whole grid, got shape {tuple(weights[-1].shape)}")
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
        return f"{shapes[0][1]} → {shapes[-1][0]}, grid={self.grid}, depth={self.depth}, weights={shapes}"


def from_torch(module: nn.Module, input_shape: Sequence[int]) -> LinearCNN:
    """The `LinearCNN` that computes the same function as a torch module on images `(N, *input_shape)`.

    Accepted: an `nn.Sequential`, nested too, of circular stride-1 `Conv1d`/`Conv2d`/`Conv3d` with `padding="same"` (or
    the equal numbers; even kernels, dilation and groups included), followed by the readout: any of `Identity`,
    `Flatten`, `AdaptiveAvgPool`, `Linear`, ending in `(N, K)`.  No bias anywhere.

    The imported kernels have the full size of the grid: torch's cross-correlation is flipped, shifted and, where it is
    wider than the grid, folded; everything after the last convolution becomes one readout.  The *function* is the same.
    Σ‖w‖² is not where a kernel was folded or where the readout was more than one `Flatten` and one `Linear`, and training
    the import is not training the module: small kernels have become full ones.

    Raises `NotLinearCNNError` naming the first layer that does not fit, its position and the reason.

    >>> net = from_torch(nn.Sequential(
    ...     nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular", bias=False), nn.Flatten(), nn.Linear(80, 2, bias=False)
    ... ), (3, 5, 4))
    >>> net.depth, net.grid
    (2, (5, 4))
    """
    shape = validate_sizes("input_shape", input_shape)
    if len(shape) - 1 not in CONVOLUTIONS:
        raise ValueError(f"input_shape: expected (C, *grid) with a grid of 1 to 3 dimensions, got {shape}")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    grid, channels = shape[1:], shape[0]
    layers = _flatten("", module)
    last = max((i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.modules.conv._ConvNd)), default=-1)
    weights = []
    for name, layer in layers[: last + 1]:
        _refuse_overrides(name, layer)
        if type(layer) is nn.Identity:
            continue
        kernel = _full_kernel(name, layer, grid)
        if kernel.shape[1] != channels:
            raise _refusal(name, layer, f"it has {kernel.shape[1]} input channels and gets {channels}")
        channels = kernel.shape[0]
        weights.append(kernel)
    parameters = [layer.weight for _, layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)] or [
        torch.zeros(0, dtype=torch.float64)
    ]
    if len({(p.dtype, p.device) for p in parameters}) > 1 or parameters[0].dtype not in REAL_DTYPES:
        raise NotLinearCNNError("the layers must share one dtype, float32 or float64, and one device; convert with module.double()")
    weights.append(_readout(layers[last + 1 :], channels, grid, parameters[0]))
    return LinearCNN.from_weights(weights, grid)


def _flatten(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The leaves of nested Sequentials in order, each with its position as torch names it."""
    if type(module) is not nn.Sequential:
        return [(prefix or "the module itself", module)]
    _refuse_overrides(prefix or "the module itself", module)
    return [leaf for name, child in module.named_children() for leaf in _flatten(f"{prefix}.{name}" if prefix else name, child)]


def _refusal(name: str, layer: nn.Module, reason: str) -> NotLinearCNNError:
    return NotLinearCNNError(f"layer {name} ({type(layer).__name__}): {reason}")


def _refuse_overrides(name: str, layer: nn.Module) -> None:
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise _refusal(name, layer, "it has forward hooks, which can change what it computes; remove them")
    if "forward" in vars(layer):
        raise _refusal(name, layer, "its forward method was replaced, so that its class does not tell what it computes")


def _full_kernel(name: str, layer: nn.Module, grid: tuple[int, ...]) -> Tensor:
    """The full-grid kernel of a torch convolution, as a true convolution; refuses what is not circular, stride 1, same, bias-free."""
    conv_class = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]
    if type(layer) is not conv_class:
        raise _refusal(name, layer, f"before the last convolution only bias-free circular {conv_class.__name__} and Identity are allowed")
    if layer.bias is not None:
        raise _refusal(name, layer, "it has a bias; use bias=False")
    if any(s != 1 for s in layer.stride):
        raise _refusal(name, layer, f"its stride is {layer.stride}; only stride 1 is a circular convolution of the grid")
    # torch pads `same` with half of the excess on the left, rounded down.
    excess = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        same = layer.padding == "same" or not any(excess)
    else:
        same = all(2 * p == e for p, e in zip(layer.padding, excess, strict=True))
    if not same:
        raise _refusal(name, layer, f"its padding is {layer.padding}, which changes the size of the grid; use padding='same'")
    if any(excess) and layer.padding_mode != "circular":
        raise _refusal(name, layer, f"its padding_mode is {layer.padding_mode!r}; use padding_mode='circular'")
    group, per_group = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    kernel = layer.weight.new_zeros(layer.out_channels, layer.in_channels, *grid)
    weight = layer.weight.detach()
    for g in range(layer.groups):
        rows, columns = slice(g * group, (g + 1) * group), slice(g * per_group, (g + 1) * per_group)
        for tap in np.ndindex(*layer.kernel_size):
            # y_i = Σ_j W_j x_{i + j·dilation − left}: tap j of a cross-correlation is tap left − j·dilation of a convolution.
            site = tuple((e // 2 - j * d) % n for e, j, d, n in zip(excess, tap, layer.dilation, grid, strict=True))
            kernel[rows, columns][(..., *site)] += weight[rows][(..., *tap)]
    return kernel


def _readout(layers: list[tuple[str, nn.Module]], channels: int, grid: tuple[int, ...], like: Tensor) -> Tensor:
    """What follows the last convolution as one tensor (K, C, *grid): the derivative of its K outputs, each at its own image."""
    with torch.enable_grad():
        image = torch.zeros(1, channels, *grid, dtype=like.dtype, device=like.device)
        out = _apply_readout(layers, image)
        if out.ndim != 2:
            raise NotLinearCNNError(f"the module ends in images {_shape(out)} and has no readout; append nn.Flatten()")
        images = image.repeat(out.shape[1], *[1] * (image.ndim - 1)).requires_grad_()
        (readout,) = torch.autograd.grad(_apply_readout(layers, images).diagonal().sum(), images)
    return readout


def _apply_readout(layers: list[tuple[str, nn.Module]], out: Tensor) -> Tensor:
    """What the layers after the last convolution make of images (N, C, *grid); refuses those that are not linear, by name."""
    pools = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[out.ndim - 2]
    dims = out.ndim
    for name, layer in layers:
        _refuse_overrides(name, layer)
        if type(layer) not in (nn.Flatten, nn.Linear, nn.Identity, pools):
            raise _refusal(name, layer, f"after the last convolution only Flatten, {pools.__name__}, Linear and Identity are allowed")
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            raise _refusal(name, layer, "it has a bias; use bias=False")
        if isinstance(layer, nn.Flatten) and (layer.start_dim != 1 or layer.end_dim not in (-1, out.ndim - 1)):
            raise _refusal(name, layer, f"it flattens dimensions {layer.start_dim} to {layer.end_dim}; use 1 to -1")
        if isinstance(layer, nn.Linear) and (out.ndim != 2 or out.shape[1] != layer.in_features):
            raise _refusal(name, layer, f"it expects (N, {layer.in_features}) and gets {_shape(out)}")
        if isinstance(layer, pools) and out.ndim != dims:
            raise _refusal(name, layer, f"it expects images and gets {_shape(out)}")
        try:
            out = layer(out)
        except RuntimeError as error:
            raise _refusal(name, layer, f"it does not accept its input: {error}") from error
    return out


def _shape(out: Tensor) -> str:
    return f"(N, {', '.join(map(str, out.shape[1:]))})"
