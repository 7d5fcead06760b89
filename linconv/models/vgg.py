"""VGG networks of Simonyan and Zisserman, for small images and for large ones."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from linconv.models.building import PaddingMode, convolution, initialise, validate_padding_mode, validate_widths
from linconv.models.layers import Dropout, ImageNetwork
from linconv.validation import validate_memory, validate_size, validate_sizes

# Convolutions before each of the five poolings, and their widths in units of the first.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)


def vgg(
    depth: int,
    in_channels: int,
    classes: int,
    *,
    generator: torch.Generator,
    width: int = 64,
    padding_mode: PaddingMode = "zeros",
    grid: Sequence[int] = (32, 32),
    batch_norm: bool = True,
    classifier_widths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> ImageNetwork:
    """VGG-11, 13, 16 or 19: stages of 3×3 convolutions with bias, batch norm and ReLU, 2×2 max-pooling after each, then a classifier.

    Stages have 1, 2, 4, 8 and 8 times the width.  `grid` is the one that the network takes, at least 32×32.  Where the five poolings
    leave one site (sides 32 to 63) the classifier is one linear layer, as is usual on CIFAR-10; on larger images it is adaptive average
    pooling to 7×7, two hidden layers of 64 times the width (4096, as in the original) and one linear layer.  `classifier_widths` gives
    other hidden layers, after the same pooling.  Each has a ReLU and dropout with probability 1/2, whose masks come from a seed
    drawn from `generator`.

    Raises `ValueError` or `TypeError` naming the argument.  Source: arXiv 1409.1556, table 1, columns A, B, D, E.

    >>> net = vgg(11, 3, 10, width=8, generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(2, 3, 32, 32, dtype=torch.float64)).shape
    torch.Size([2, 10])
    """
    depth = validate_size("depth", depth)
    if depth not in STAGES:
        raise ValueError(f"depth: expected 11, 13, 16 or 19, got {depth}")
    sites = validate_sizes("grid", grid, dims=2)
    if min(sites) < 32:
        raise ValueError(f"grid: expected sides of at least 32, which five poolings halve, got {sites}; enlarge the images")
    side = 1 if max(sites) < 64 else 7
    channels, classes, width = validate_widths(in_channels, classes, width, widest=8, head=side**2)
    validate_padding_mode(padding_mode)
    usual = () if side == 1 else (64 * width, 64 * width)
    hidden = usual if classifier_widths is None else validate_sizes("classifier_widths", classifier_widths, per="hidden layer")
    widths = (8 * width * side**2, *hidden, classes)
    validate_memory("width" if classifier_widths is None else "classifier_widths", max(a * b for a, b in pairwise(widths)))
    with torch.device("meta"):
        features: list[nn.Module] = []
        previous = channels
        for convolutions, multiple in zip(STAGES[depth], WIDTHS, strict=True):
            for _ in range(convolutions):
                features += convolution(previous, multiple * width, padding_mode, bias=True, batch_norm=batch_norm)
                previous = multiple * width
            features.append(nn.MaxPool2d(2))
        readout = [nn.AdaptiveAvgPool2d(side), nn.Flatten(), *_perceptron(widths)]
        net = ImageNetwork(nn.Sequential(*features), nn.Sequential(*readout), in_channels=channels, grid=sites)
    return initialise(net, generator, dtype, device)


def _perceptron(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers of these widths, with ReLU and dropout between them."""
    layers: list[nn.Module] = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU(), Dropout())]
    return layers[:-2]
