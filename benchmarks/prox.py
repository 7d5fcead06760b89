"""The proximal map of the nuclear norm and of Schatten-p on 544 blocks of 10×3: this project against pyproximal and bare LAPACK.

    python -m benchmarks.prox [repeats]

The blocks are those of 10 outputs and 3 channels on half the spectrum of 32×32 pixels, complex128.  The peer is `pyproximal.Nuclear(
(10, 3), 1.0).prox(block.ravel(), step)` in a loop over the blocks, flattened beforehand: it takes one matrix at a time, and has no p < 1,
so that ours at p = 2/3 and 1/2 stands against its p = 1.  The floor is what a decomposition alone costs in one batched call: of the
blocks, and of Gram matrices that are given.  Repeats alternate, so that a busy machine slows all; ratios are those of the
medians.  A project's time is that of ten calls in turn, divided by ten, as in a solver.  "Proved" is the share of blocks that go
through their Gram matrices.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from linconv.penalties import Schatten
from linconv.spectral_shrinkage import _through_gram

BLOCKS, ROWS, COLUMNS = 544, 10, 3
POWERS = {"1": 1.0, "2/3": 2 / 3, "1/2": 0.5}
TARGET = 15.0
CALLS = 10


def seconds(work: Callable[[], object], calls: int = CALLS) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def compare(peer: Callable[[np.ndarray, float], np.ndarray], dtype: torch.dtype, step: float, threads: str, repeats: int) -> None:
    """Print one line for each p, and one for the floor."""
    blocks = torch.randn(BLOCKS, ROWS, COLUMNS, dtype=dtype, generator=torch.Generator().manual_seed(0))
    array = blocks.numpy()
    flat = [block.ravel() for block in array]
    gram = np.matmul(array.conj().swapaxes(-1, -2), array)
    expected = np.stack([peer(block, step) for block in flat]).reshape(array.shape)
    difference = np.abs(Schatten(1.0).prox(blocks, step).numpy() - expected).max() / np.abs(array).max()
    works: dict[str, Callable[[], object]] = {f"p = {name}": lambda p=p: Schatten(p).prox(blocks, step) for name, p in POWERS.items()}
    works["floor, torch.linalg.svd"] = lambda: torch.linalg.svd(blocks, full_matrices=False)
    works["floor, np.linalg.svd"] = lambda: np.linalg.svd(array, full_matrices=False)
    works["floor, np.linalg.eigh (Gram)"] = lambda: np.linalg.eigh(gram)
    times: dict[str, list[float]] = {name: [] for name in works}
    others = []
    for _ in range(repeats):
        others.append(seconds(lambda: [peer(block, step) for block in flat], 1))
        for name, work in works.items():
            times[name].append(seconds(work))
    other = median(others)
    print(
        f"{str(dtype)[6:]}, step {step:g}, {threads}: peer {other * 1e3:.2f} ms, agreement at p = 1 {difference:.0e} of the largest entry"
    )
    for name, found in times.items():
        line = f"    {name:28s} {median(found) * 1e3:7.3f} ms   peer : this {other / median(found):5.1f}"
        if name[4:] in POWERS:
            proved = _through_gram(array, np.full(BLOCKS, step), POWERS[name[4:]], np.empty_like(array)).mean()
            line += f"   proved {proved:.0%}"
        print(line)


def main(repeats: int = 15) -> None:
    try:
        from pyproximal import Nuclear
    except ImportError:
        sys.exit("benchmarks.prox compares with pyproximal, which is not installed: pip install pyproximal")
    peer = Nuclear((ROWS, COLUMNS), 1.0).prox
    default = torch.get_num_threads()
    print(f"{BLOCKS} blocks of {ROWS}×{COLUMNS}, {repeats} interleaved repeats, medians; target: {TARGET:g} at p = 1, complex128")
    for dtype in (torch.complex128, torch.float64):
        for step in (0.1, 1.0, 3.0):
            compare(peer, dtype, step, f"{default} threads by default", repeats)
            with threadpool_limits(1):
                torch.set_num_threads(1)
                compare(peer, dtype, step, "1 thread", repeats)
                torch.set_num_threads(default)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
