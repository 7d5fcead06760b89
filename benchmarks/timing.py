"""What the one-thread benchmarks share: interleaved timing, and real images.

Times are those that the process spends on a core: what its neighbours do costs it caches, but no turns.
"""

import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from linconv import images


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each; the repeats alternate, so that what slows the machine slows all of them."""
    for work in works:
        work()
    rounds = [[seconds(work) for work in works] for _ in range(repeats)]
    return [median(column) for column in zip(*rounds, strict=True)]


def has_cifar10() -> bool:
    return os.path.isdir(os.path.join(os.environ.get("LINCONV_DATA", ""), "cifar-10-batches-bin"))


def natural_images(samples: int, grid: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Centred images and centred class indicators: CIFAR-10 where LINCONV_DATA has it, else patches of the bundled photographs."""
    loaded = images.load("cifar10" if has_cifar10() else "photos", samples=samples, grid=grid, generator=torch.Generator().manual_seed(0))
    indicators = loaded.one_hot()
    return images.center(loaded.images).to(dtype), (indicators - indicators.mean(0)).to(dtype)
