"""The hypotheses of theorems about linear CNNs, audited on a torch module: all of them, with what was found, not the first that fails."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from linconv.network import CONVOLUTIONS, LinearCNN
from linconv.torch_import import leaves
from linconv.validation import validate_sizes

CONV_CLASSES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
READOUT_CLASSES = {1: (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool1d), 2: (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool2d)}
READOUT_CLASSES[3] = (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis at one layer: its `name`, `layer`, whether it `holds`, and what was `found`.

    `linear`: without it the module is no linear CNN at all, and `from_torch` refuses it.  The others say that a layer is free: that its
    weights are all weights which its function can have, so that a least Σ‖w‖² over full kernels is about this network.
    """

    name: str
    layer: str
    holds: bool
    found: str
    linear: bool

    def __str__(self) -> str:
        return f"{self.layer}: {self.name} {'✓' if self.holds else '✗'} ({self.found})"


def audit(module: nn.Module, input_shape: Sequence[int]) -> tuple[Hypothesis, ...]:
    """Every hypothesis of theorem 4.10 (arXiv 2210.01257) at every layer of a module on images `(N, *input_shape)`.

    Of each convolution: bias-free, stride 1, same size, circular; kernel as large as the grid, dense (one group).  Of the rest: layers that
    are linear and keep to what `from_torch` reads, ending in one free readout, `Flatten` and one `Linear`; no weights used twice.

    Raises `TypeError` for what is no torch module, `ValueError` for an input shape that is not (C, *grid).

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), nn.Flatten(), nn.Linear(80, 2, bias=False))
    >>> [str(found) for found in audit(net, (3, 5, 4)) if not found.holds]  # doctest: +NORMALIZE_WHITESPACE
    ['layer 0 (Conv2d): bias-free ✗ (a bias of 4 numbers)', 'layer 0 (Conv2d): full kernel ✗ (3×3 on a grid of 5×4)']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}; pass the network itself")
    shape = validate_sizes("input_shape", input_shape)
    if len(shape) - 1 not in CONVOLUTIONS:
        raise ValueError(f"input_shape: expected (C, *grid) with a grid of 1 to 3 dimensions, got {shape}; leave out the batch")
    grid = shape[1:]
    if isinstance(module, LinearCNN):
        return tuple(_of_linear_cnn(module, grid))
    if any(isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta for p in module.parameters()):
        raise ValueError("module: expected weights, got a module some of which have none yet; call it once on an image, on a real device")
    named = [(f"layer {name} ({type(layer).__name__})", layer) for name, layer in leaves(module) if not isinstance(layer, nn.Identity)]
    last = max((i for i, (_, layer) in enumerate(named) if isinstance(layer, nn.modules.conv._ConvNd)), default=-1)
    found = [
        Hypothesis("as its class", name, False, "it has hooks, or another forward method", linear=True)
        for name, layer in [("the module", module), *named]
        if _altered(layer)
    ]
    for name, layer in named[: last + 1]:
        found += _of_convolution(name, layer, grid)
    for name, layer in named[last + 1 :]:
        found += _of_readout_layer(name, layer, grid)
    return (*found, _free_readout([layer for _, layer in named[last + 1 :]]), *_sharing([layer for _, layer in named]))


def _of_linear_cnn(net: LinearCNN, grid: tuple[int, ...]) -> Iterator[Hypothesis]:
    if type(net) is not LinearCNN or _altered(net):
        yield Hypothesis("linear", "network", False, "a LinearCNN with another forward method, or with hooks", linear=True)
    yield Hypothesis("grid", "network", net.grid == grid, f"made for {_times(net.grid)}, images of {_times(grid)}", linear=True)
    for i, weight in enumerate(net.weights[:-1]):
        yield from _folded(f"layer {i}", tuple(weight.shape[2:]), net.grid)
        yield _full_kernel(f"layer {i}", tuple(weight.shape[2:]), net.grid)


def _altered(module: nn.Module) -> bool:
    """Whether its class does not tell what it computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _of_convolution(name: str, layer: nn.Module, grid: tuple[int, ...]) -> Iterator[Hypothesis]:
    """What precedes the last convolution must be a convolution."""
    if type(layer) is not CONV_CLASSES[len(grid)]:
        kind = CONV_CLASSES[len(grid)].__name__
        yield Hypothesis("a convolution", name, False, f"{type(layer).__name__} where only {kind} keeps the network linear", linear=True)
        return
    assert isinstance(layer, nn.modules.conv._ConvNd)
    bias = "none" if layer.bias is None else f"a bias of {layer.bias.numel()} numbers"
    yield Hypothesis("bias-free", name, layer.bias is None, bias, linear=True)
    yield Hypothesis("stride 1", name, all(s == 1 for s in layer.stride), f"stride {_times(layer.stride)}", linear=True)
    excess = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    same = layer.padding == "same" or (
        not any(excess) if isinstance(layer.padding, str) else all(2 * p == e for p, e in zip(layer.padding, excess, strict=True))
    )
    padding = layer.padding if isinstance(layer.padding, str) else _times(layer.padding)
    yield Hypothesis("same size", name, same, f"padding {padding}", linear=True)
    circular = not any(excess) or layer.padding_mode == "circular"
    yield Hypothesis("circular", name, circular, f"padding mode {layer.padding_mode}" if any(excess) else "one tap", linear=True)
    yield from _folded(name, [e + 1 for e in excess], grid)
    if any(d != 1 for d in layer.dilation) and any(excess):
        yield Hypothesis("full kernel", name, False, f"{_times(layer.kernel_size)}, dilated {_times(layer.dilation)}", linear=False)
    else:
        yield _full_kernel(name, tuple(layer.kernel_size), grid)
    yield Hypothesis("dense", name, layer.groups == 1, "one group" if layer.groups == 1 else f"{layer.groups} groups", linear=False)


def _folded(name: str, spans: Sequence[int], grid: tuple[int, ...]) -> Iterator[Hypothesis]:
    """Taps that wrap around meet others: two of them, w and w, are one of 2w, which costs twice as much."""
    if any(span > n for span, n in zip(spans, grid, strict=True)):
        yield Hypothesis(
            "within the grid", name, False, f"its taps span {_times(spans)} on a grid of {_times(grid)} and meet", linear=False
        )


def _full_kernel(name: str, taps: tuple[int, ...], grid: tuple[int, ...]) -> Hypothesis:
    return Hypothesis("full kernel", name, taps == grid, f"{_times(taps)} on a grid of {_times(grid)}", linear=False)


def _of_readout_layer(name: str, layer: nn.Module, grid: tuple[int, ...]) -> Iterator[Hypothesis]:
    linear = type(layer) in READOUT_CLASSES[len(grid)]
    allowed = ", ".join(kind.__name__ for kind in READOUT_CLASSES[len(grid)])
    yield Hypothesis(
        "linear", name, linear, type(layer).__name__ if linear else f"{type(layer).__name__} is none of {allowed}", linear=True
    )
    if isinstance(layer, nn.Linear):
        bias = "none" if layer.bias is None else f"a bias of {layer.bias.numel()} numbers"
        yield Hypothesis("bias-free", name, layer.bias is None, bias, linear=True)


def _free_readout(layers: list[nn.Module]) -> Hypothesis:
    """A `Linear` on all sites: pooling ties its weights, two of them are one factor more."""
    kinds = [type(layer).__name__ for layer in layers]
    return Hypothesis("free readout", "the end", kinds == ["Flatten", "Linear"], ", ".join(kinds) or "nothing", linear=False)


def _sharing(layers: list[nn.Module]) -> Iterator[Hypothesis]:
    weights = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    repeated = len(weights) - len({id(weight) for weight in weights})
    if repeated:
        yield Hypothesis("own weights", "network", False, f"{repeated} of {len(weights)} weights stand in two layers", linear=False)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def hidden_kernel(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Taps in each dimension that contain every hidden kernel, dilation counted, at most the grid; the grid without hidden layers."""
    grid = tuple(input_shape)[1:]
    if isinstance(module, LinearCNN):
        spans = [tuple(weight.shape[2:]) for weight in module.weights[:-1]]
    else:
        convolutions = [layer for _, layer in leaves(module) if isinstance(layer, nn.modules.conv._ConvNd)]
        spans = [tuple(d * (k - 1) + 1 for d, k in zip(c.dilation, c.kernel_size, strict=True)) for c in convolutions]
    return tuple(min(n, max(sizes)) for n, sizes in zip(grid, zip(*spans, strict=True), strict=True)) if spans else grid
