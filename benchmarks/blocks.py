"""All singular values of one circular convolution: this project against `numpy.linalg.svd(numpy.fft.fft2(…))`.

    python -m benchmarks.blocks [repeats]

The peer is the method of Sedghi, Gupta and Long (arXiv 1805.10408) as its authors publish it, in the precision of the
kernel.  Repeats of the two alternate, so that a busy machine slows both; a ratio is that of the medians.  Each size runs
with the threads that NumPy and torch take by default and with one thread for all.  "Chunk" is the memory of the frequency
blocks that the project holds at a time per worker, "peer" that of its whole spectrum.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from linconv.spectrum import CHUNK_BYTES, conv_singular_values

CASES = [(64, 32), (16, 128)]  # channels, side; kernels are 3 × 3
TARGET = 2.0


def peer(kernel: np.ndarray, side: int) -> np.ndarray:
    """Singular values `(side, side, C)` of a kernel `(3, 3, C, C)`, as published."""
    transform = np.fft.fft2(kernel, (side, side), axes=(0, 1)).astype(np.result_type(kernel.dtype, np.complex64), copy=False)
    return np.linalg.svd(transform, compute_uv=False)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(channels: int, side: int, dtype: torch.dtype, threads: str, repeats: int) -> float:
    """Print one line and return the ratio peer : project."""
    weight = torch.randn(channels, channels, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kernel = np.ascontiguousarray(weight.permute(2, 3, 0, 1).numpy())
    ours, theirs = conv_singular_values(weight, (side, side)).numpy(), peer(kernel, side)  # also warms both up
    difference = float(np.abs(ours - theirs).max() / theirs.max())
    times = [(seconds(lambda: conv_singular_values(weight, (side, side))), seconds(lambda: peer(kernel, side))) for _ in range(repeats)]
    project, other = (median(column) for column in zip(*times, strict=True))
    spectrum = side * side * channels**2 * (8 if dtype == torch.float32 else 16)
    memory = f"chunk {CHUNK_BYTES / 2**20:.0f} MiB, peer {spectrum / 2**20:.0f} MiB"
    print(
        f"{channels:3d}→{channels:<3d} {side:3d}² {str(dtype)[6:]} {threads:8s} project {project * 1e3:8.1f} ms   "
        f"peer {other * 1e3:8.1f} ms   ratio {other / project:5.2f}   agreement {difference:.0e}   {memory}"
    )
    return other / project


def main(repeats: int = 7) -> None:
    default = torch.get_num_threads()
    print(f"{default} threads by default, {repeats} interleaved repeats, medians; target: ratio ≥ {TARGET:g} for 64→64 on 32²")
    for channels, side in CASES:
        for dtype in (torch.float64, torch.float32):
            compare(channels, side, dtype, "default", repeats)
            with threadpool_limits(1):
                torch.set_num_threads(1)
                compare(channels, side, dtype, "1 thread", repeats)
                torch.set_num_threads(default)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
