"""What the families share: checks of sizes, the 3×3 convolution with batch norm and ReLU, the initialisation."""

import math
from typing import Literal

import torch
from torch import nn

from linconv.models.layers import Dropout, FullConvolution, ImageNetwork
from linconv.validation import REAL_DTYPES, validate_device, validate_generator, validate_memory, validate_size

PaddingMode = Literal["zeros", "circular"]


def validate_widths(in_channels: int, classes: int, width: int, *, widest: int = 1, taps: int = 9, head: int = 1) -> tuple[int, int, int]:
    """The three sizes as integers, else raise; `widest` times the width is the widest layer, `head` the sites that the readout sees."""
    channels, classes, width = (
        validate_size(name, size) for name, size in (("in_channels", in_channels), ("classes", classes), ("width", width))
    )
    validate_memory("width", (widest * width) ** 2 * taps)
    validate_memory("in_channels", channels * width * taps)
    validate_memory("classes", classes * head * max(widest * width, channels))
    return channels, classes, width


def validate_padding_mode(padding_mode: object) -> None:
    """Raise where it is neither of the two."""
    if padding_mode not in ("zeros", "circular"):
        raise ValueError(f"padding_mode: expected 'zeros' or 'circular', got {padding_mode!r}")


def convolution(
    c_in: int, c_out: int, padding_mode: PaddingMode, *, bias: bool, batch_norm: bool = True, relu: bool = True, stride: int = 1
) -> list[nn.Module]:
    """A padded 3×3 convolution, batch norm and ReLU as wanted."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, padding_mode=padding_mode, bias=bias)]
    layers += [nn.BatchNorm2d(c_out)] if batch_norm else []
    layers += [nn.ReLU()] if relu else []
    return layers


def initialise(net: ImageNetwork, generator: torch.Generator, dtype: torch.dtype, device: torch.device | str | None) -> ImageNetwork:
    """The network, built on torch's meta device (without storage, so without a draw), with weights from the generator.

    Weights and biases are uniform on ±1/√fan_in, drawn where the generator lives: one seed, one network, on every device.  Dropout
    gets a seed from the same generator, in the order of the layers.
    """
    validate_generator(generator)
    target = validate_device(device)
    if dtype not in REAL_DTYPES:
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    net = net.to(dtype).to_empty(device=generator.device)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()  # constants
        elif isinstance(layer, nn.Conv2d | nn.Linear | FullConvolution):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, Dropout):
            layer.next_seed.random_(2**62, generator=generator)
    return net.to(target)
