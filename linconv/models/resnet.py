"""Residual networks for small images: those of He et al. for CIFAR-10, and the nine-layer one of DAWNBench."""

import torch
from torch import nn

from linconv.models.building import PaddingMode, convolution, initialise, validate_padding_mode, validate_widths
from linconv.models.layers import ImageNetwork, Residual, Scale, Subsampling
from linconv.validation import validate_size


def resnet(
    depth: int,
    in_channels: int,
    classes: int,
    *,
    generator: torch.Generator,
    width: int | None = None,
    padding_mode: PaddingMode = "zeros",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> ImageNetwork:
    """ResNet-9 of DAWNBench, or the ResNet of He et al. of depth 6n + 2 (8, 14, 20, …, 56, …) for CIFAR-10.

    Depth 6n + 2: a 3×3 convolution and three stages of n blocks of two, with 1, 2 and 4 times the width (default 16), stride 2 where
    the second and third stage begin, batch norm throughout; global average pooling; linear.  Shortcuts have no parameters (option A:
    every second site, zeros for the new channels).  Any grid.  Source: arXiv 1512.03385, section 4.2.

    Depth 9: 3×3 convolutions of 1, 2, 4, 8 times the width (default 64) with batch norm and ReLU, 2×2 max-pooling after the last
    three, a residual block of two more after the second and the fourth; global max-pooling; linear without bias, outputs divided
    by 8.  Any grid of at least 8×8.  Source: Page, "How to train your ResNet" (2018), for DAWNBench.

    Convolutions have no bias.  Raises `ValueError` or `TypeError` naming the argument.

    >>> net = resnet(20, 3, 10, width=4, generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(2, 3, 32, 32, dtype=torch.float64)).shape
    torch.Size([2, 10])
    """
    depth = validate_size("depth", depth)
    if depth != 9 and (depth < 8 or depth % 6 != 2):
        raise ValueError(f"depth: expected 9, or 6n + 2 for n at least 1 (8, 14, 20, …, 56, …), got {depth}")
    default, widest, least = (64, 8, 8) if depth == 9 else (16, 4, 1)
    channels, classes, width = validate_widths(in_channels, classes, default if width is None else width, widest=widest)
    validate_padding_mode(padding_mode)
    with torch.device("meta"):
        features, readout = (
            _dawnbench(channels, classes, width, padding_mode)
            if depth == 9
            else _six_n_plus_two(depth // 6, channels, classes, width, padding_mode)
        )
        net = ImageNetwork(nn.Sequential(*features), nn.Sequential(*readout), in_channels=channels, least_side=least)
    return initialise(net, generator, dtype, device)


def _six_n_plus_two(n: int, channels: int, classes: int, width: int, padding_mode: PaddingMode) -> tuple[list[nn.Module], list[nn.Module]]:
    """Features and classifier of the networks of He et al.; the ReLU after a block is a layer of its own."""
    features = convolution(channels, width, padding_mode, bias=False)
    a = width
    for b in (width, 2 * width, 4 * width):
        for _ in range(n):
            stride = 1 if a == b else 2
            body = convolution(a, b, padding_mode, bias=False, stride=stride) + convolution(b, b, padding_mode, bias=False, relu=False)
            features += [Residual(nn.Sequential(*body), nn.Identity() if a == b else Subsampling(b - a)), nn.ReLU()]
            a = b
    return features, [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, classes)]


def _dawnbench(channels: int, classes: int, width: int, padding_mode: PaddingMode) -> tuple[list[nn.Module], list[nn.Module]]:
    """Features and classifier of ResNet-9; its residual blocks add after their ReLU."""
    features = convolution(channels, width, padding_mode, bias=False)
    for a, residual in [(width, True), (2 * width, False), (4 * width, True)]:
        features += [*convolution(a, 2 * a, padding_mode, bias=False), nn.MaxPool2d(2)]
        if residual:
            body = [layer for _ in range(2) for layer in convolution(2 * a, 2 * a, padding_mode, bias=False)]
            features.append(Residual(nn.Sequential(*body), nn.Identity()))
    return features, [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes, bias=False), Scale(1 / 8)]
