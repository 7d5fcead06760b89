"""The Myrtle CNN: four convolutions, three max-poolings, one linear layer."""

import torch
from torch import nn

from linconv.models.building import PaddingMode, convolution, initialise, validate_padding_mode, validate_widths
from linconv.models.layers import ImageNetwork


def myrtle(
    in_channels: int,
    classes: int,
    *,
    generator: torch.Generator,
    width: int = 64,
    padding_mode: PaddingMode = "zeros",
    batch_norm: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> ImageNetwork:
    """The Myrtle CNN: 3×3 convolutions of 1, 2, 4, 8 times the width with batch norm and ReLU, max-pooling, one linear layer.

    The second and third convolutions are followed by 2×2 max-pooling, the fourth by max-pooling over the whole image.

    Convolutions have a bias where `batch_norm=False`, as in the experiments of arXiv 2210.01257.  Any grid of at least 4×4; on 32×32 the
    poolings are the 1, 2, 2, 8 of the five-layer network of arXiv 1912.02292, after the backbone of Page's DAWNBench entry (2018).

    Raises `ValueError` or `TypeError` naming the argument.

    >>> net = myrtle(3, 10, width=8, generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(2, 3, 9, 7, dtype=torch.float64)).shape
    torch.Size([2, 10])
    """
    channels, classes, width = validate_widths(in_channels, classes, width, widest=8)
    validate_padding_mode(padding_mode)
    with torch.device("meta"):
        features = convolution(channels, width, padding_mode, batch_norm=batch_norm, bias=not batch_norm)
        for a, pooled in [(1, True), (2, True), (4, False)]:
            features += convolution(a * width, 2 * a * width, padding_mode, batch_norm=batch_norm, bias=not batch_norm)
            features += [nn.MaxPool2d(2)] if pooled else []
        readout = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes)]
        net = ImageNetwork(nn.Sequential(*features), nn.Sequential(*readout), in_channels=channels, least_side=4)
    return initialise(net, generator, dtype, device)
