r"""Shifting the kernel of a circular convolution leaves its singular values unchanged.

For every kernel w and shift a:  $\sigma(w) = \sigma(T_a w)$.   Source: shifts multiply each block by a unit phase.

Copy this file, inside this folder or outside the project. The docstring is the statement and its source. Every parameter has
its type, its domain and its help in one annotation. A claim that is an observation and not a theorem sets `KIND = "empirical"`.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from annotated_types import Interval

import linconv as lc
from linconv.claims import Check, agree, control, main

FAST = {"side": 4}  # the parameters of `python -m verification --fast`


def claim(
    *,
    channels: Annotated[int, Interval(ge=1, le=8), "channels in and out"] = 2,
    side: Annotated[int, Interval(ge=2, le=16), "side of the square grid"] = 5,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the kernel"] = 0,
) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(channels, channels, side, side, generator=generator, dtype=torch.float64)
    shifted = torch.roll(kernel, (1, 2), (2, 3))
    predicted = lc.conv_singular_values(kernel, (side, side))
    yield agree("singular values", lc.conv_singular_values(shifted, (side, side)), predicted)
    yield control("a scaled kernel", agree("singular values", lc.conv_singular_values(1.01 * kernel, (side, side)), predicted))


if __name__ == "__main__":
    main(claim)
