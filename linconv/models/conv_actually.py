"""ConvActually, the network nearest to the theory: convolutions with kernels of the size of the grid."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from linconv.models.building import initialise, validate_widths
from linconv.models.layers import FullConvolution, ImageNetwork
from linconv.validation import validate_grid, validate_size


def conv_actually(
    in_channels: int,
    classes: int,
    grid: Sequence[int],
    *,
    depth: int,
    generator: torch.Generator,
    width: int = 64,
    linear: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> ImageNetwork:
    """ConvActually: depth − 1 circular convolutions with kernels of the size of the grid, each followed by a ReLU; flatten; linear.

    `grid` has 1 to 3 dimensions and is the only one that the network takes.  `linear=True` is the twin with identity activations: its
    `state_dict` has the same names, and without bias it is a `LinearCNN` (docs/models.md).  Parameters, with D sites, C input channels
    and K classes: `(depth − 2)(width² D + width) + C width D + width + K(width D + 1)`, and `K(C D + 1)` at depth 1.

    Raises `ValueError` or `TypeError` naming the argument.  Source: section 5 of arXiv 2210.01257; the sizes are those of its published
    experiment code.

    >>> net = conv_actually(3, 10, (8, 8), depth=4, width=16, generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(2, 3, 8, 8, dtype=torch.float64)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 10]), 46138)
    """
    sites = validate_grid(grid)
    depth, size = validate_size("depth", depth), math.prod(sites)
    channels, classes, width = validate_widths(in_channels, classes, width, taps=size, head=size)
    widths = [channels, *[width] * (depth - 1)]
    with torch.device("meta"):
        features = []
        for a, b in pairwise(widths):
            features += [FullConvolution(a, b, sites, bias=bias), nn.Identity() if linear else nn.ReLU()]
        readout = [nn.Flatten(), nn.Linear(widths[-1] * size, classes, bias=bias)]
        net = ImageNetwork(nn.Sequential(*features), nn.Sequential(*readout), in_channels=channels, grid=sites)
    return initialise(net, generator, dtype, device)
