"""Import of torch modules: which of them are linear convolutional networks, and the `LinearCNN` that computes the same function."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from linconv.network import CONVOLUTIONS, LinearCNN
from linconv.validation import REAL_DTYPES, validate_sizes


class NotLinearCNNError(ValueError):
    """A torch module that is not a linear convolutional network of the kind `from_torch` accepts; says which layer and why."""


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
    for name, part in module.named_modules():
        _refuse_overrides(name or "the module itself", part)
    layers = leaves(module)
    last = max((i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.modules.conv._ConvNd)), default=-1)
    weights = []
    for name, layer in layers[: last + 1]:
        _refuse_overrides(name, layer)
        if type(layer) is nn.Identity:
            continue
        kernel = _full_kernel(name, layer, grid)
        if not bool(torch.isfinite(kernel).all()):
            raise _refusal(name, layer, "its weight has NaN or infinite entries")
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


def leaves(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The leaves of nested Sequentials in order, each with its position as torch names it."""
    if type(module) is not nn.Sequential:
        return [(prefix or "the module itself", module)]
    # Not named_children, which leaves out a module that stands there a second time.
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    return [leaf for name, child in children for leaf in leaves(child, f"{prefix}.{name}" if prefix else name)]


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
