"""Blocks and singular values of circular convolutions against their peers, on the same work in one run.

    python -m benchmarks.blocks [repeats]

Singular values have three peers, each written plainly as its authors publish it, in the precision of the kernel:

* FFT, `numpy.linalg.svd` of `numpy.fft.fft2` (Sedghi, Gupta, Long, arXiv 1805.10408);
* LFA, local Fourier analysis: the symbol at a frequency is the sum of the taps times roots of unity, here one matrix product
  for all frequencies, then `numpy.linalg.svd` (van Betteray, Kahl, Rottmann, arXiv 2506.05617);
* torch, the FFT method in torch, `torch.linalg.svdvals` of `torch.fft.fft2`.

Repeats of all alternate, so that a busy machine slows all; a ratio is that of the medians, against the fastest peer.  Each size
runs with the threads that NumPy and torch take by default, with one thread for all, and with one busy process beside it.  The
floor is the bare library call, on one thread, for one of each pair of frequencies u, −u, shared by the threads without loss: a
sample of the blocks is timed and scaled.  "floor 1.03" says that the project takes 1.03 times that.  Blocks of a network are
compared with full transforms in NumPy and in torch, as one would write them.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import linconv as lc
from linconv.symbols import CHUNK_BYTES, distinct_frequencies, one_thread

CASES = [(64, 32), (16, 128)]  # channels, side; kernels are 3 × 3
LARGE = (64, 224)
TARGETS = {"default": 3.5, "1 thread": 1.8, "busy": 1.8}
SAMPLE_BYTES = 2**24
ENOUGH_SECONDS = 5.0


def fft_peer(kernel: np.ndarray, side: int) -> np.ndarray:
    """Singular values `(side, side, C)` of a kernel `(3, 3, C, C)` by the FFT method."""
    transform = np.fft.fft2(kernel, (side, side), axes=(0, 1)).astype(np.result_type(kernel.dtype, np.complex64), copy=False)
    return np.linalg.svd(transform, compute_uv=False)


def lfa_peer(kernel: np.ndarray, side: int) -> np.ndarray:
    """The same by local Fourier analysis: symbols are sums of taps times roots of unity."""
    k, _, channels, _ = kernel.shape
    roots = np.exp(-2j * np.pi / side * np.outer(np.arange(side), np.arange(k)))
    phases = np.einsum("ua,vb->uvab", roots, roots).reshape(side * side, k * k).astype(np.result_type(kernel.dtype, np.complex64))
    symbols = (phases @ kernel.reshape(k * k, -1).astype(phases.dtype)).reshape(side, side, channels, channels)
    return np.linalg.svd(symbols, compute_uv=False)


def torch_peer(weight: torch.Tensor, side: int) -> np.ndarray:
    """The same by the FFT method in torch."""
    return torch.linalg.svdvals(torch.fft.fft2(weight, (side, side)).permute(2, 3, 0, 1)).numpy()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, the repeats of all interleaved; on a slow machine there are fewer repeats, but three if asked for."""
    times: list[dict[str, float]] = []
    while len(times) < min(repeats, 3) or (len(times) < repeats and sum(sum(row.values()) for row in times) < ENOUGH_SECONDS):
        times.append({name: seconds(work) for name, work in contestants.items()})
    return {name: median(row[name] for row in times) for name in contestants}


def floor(weight: torch.Tensor, side: int) -> tuple[Callable[[], object], float]:
    """The bare library call on a sample of the blocks, and the factor from its time to that of half of all."""
    blocks = torch.fft.fft2(weight, (8, 8)).permute(2, 3, 0, 1).flatten(0, 1)
    count = max(1, SAMPLE_BYTES // (blocks[0].numel() * blocks.itemsize))
    sample = blocks.repeat(-(-count // len(blocks)), 1, 1)[:count]

    def bare() -> object:
        with one_thread():
            return torch.linalg.svdvals(sample)

    return bare, len(distinct_frequencies((side, side))[0]) / count


def compare(channels: int, side: int, dtype: torch.dtype, condition: str, repeats: int) -> None:
    """Print one line for one size."""
    weight = torch.randn(channels, channels, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kernel = np.ascontiguousarray(weight.permute(2, 3, 0, 1).numpy())
    bare, scale = floor(weight, side)
    found: dict[str, np.ndarray] = {}
    contestants: dict[str, Callable[[], object]] = {
        "project": lambda: found.update(project=lc.conv_singular_values(weight, (side, side)).numpy()),
        "FFT": lambda: found.update(FFT=fft_peer(kernel, side)),
        "LFA": lambda: found.update(LFA=lfa_peer(kernel, side)),
        "torch": lambda: found.update(torch=torch_peer(weight, side)),
        "floor": bare,
    }
    if repeats > 1:
        medians(contestants, 1)  # warms up
    times = medians(contestants, repeats)
    peers = {name: times[name] for name in ("FFT", "LFA", "torch")}
    best = min(peers, key=peers.__getitem__)
    ratio = peers[best] / times["project"]
    least = times["floor"] * scale / torch.get_num_threads()
    agreement = max(float(np.abs(found["project"] - found[name]).max() / found[name].max()) for name in peers)
    listed = "  ".join(f"{name} {value * 1e3:8.1f}" for name, value in peers.items())
    print(
        f"{channels:3d}→{channels:<3d} {side:3d}² {str(dtype)[6:]} {condition:8s} project {times['project'] * 1e3:8.1f} ms  {listed}  "
        f"best {best:5s} ratio {ratio:5.2f} (target {TARGETS[condition]})  to FFT {peers['FFT'] / times['project']:5.2f}  "
        f"floor {times['project'] / least:4.2f}  agreement {agreement:.0e}",
        flush=True,
    )


def compare_network(dtype: torch.dtype, repeats: int) -> None:
    """Print two lines for the blocks of a network and their singular values."""
    grid = (32, 32)
    generator = torch.Generator().manual_seed(0)
    net = lc.LinearCNN(3, (64, 64), 10, grid, kernel_size=3, dtype=dtype, generator=generator).requires_grad_(False)
    arrays = [w.numpy() for w in net.weights]

    def numpy_blocks() -> np.ndarray:
        *hidden, readout = (np.moveaxis(np.fft.fft2(w, grid), (0, 1), (2, 3)) for w in arrays)
        return reduce(np.matmul, reversed(hidden), readout.conj())

    def torch_blocks() -> torch.Tensor:
        *hidden, readout = (torch.fft.fft2(w, grid).permute(2, 3, 0, 1) for w in net.weights)
        return reduce(torch.matmul, reversed(hidden), readout.conj())

    blocks = lc.frequency_blocks(net)
    difference = float((blocks.values - torch_blocks()).abs().max() / blocks.values.abs().max())
    for title, contestants in (
        ("blocks", {"project": lambda: lc.frequency_blocks(net), "NumPy": numpy_blocks, "torch": torch_blocks}),
        (
            "singular values",
            {
                "project": blocks.singular_values,
                "NumPy": lambda: np.linalg.svd(blocks.values.numpy(), compute_uv=False),
                "torch": lambda: torch.linalg.svdvals(blocks.values),
            },
        ),
    ):
        medians(contestants, 1)
        times = medians(contestants, repeats)
        best = min(times["NumPy"], times["torch"])
        listed = "  ".join(f"{name} {value * 1e3:7.2f}" for name, value in times.items())
        print(f"3→64→64→10, 32² {str(dtype)[6:]} {title}: {listed} ms  ratio {best / times['project']:5.2f}  agreement {difference:.0e}")


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """One other process that multiplies matrices all the time."""
    loop = "import numpy as np\na = np.ones((500, 500))\nwhile True:\n    a @ a"
    with subprocess.Popen([sys.executable, "-c", f"from threadpoolctl import threadpool_limits as t\nt(1)\n{loop}"]) as process:
        time.sleep(1)  # its imports
        try:
            yield
        finally:
            process.kill()


def main(repeats: int = 7) -> None:
    default = torch.get_num_threads()
    print(f"{default} threads by default, up to {repeats} interleaved repeats, medians; blocks held: {CHUNK_BYTES / 2**20:g} MiB a thread")
    for dtype in (torch.float64, torch.float32):
        compare_network(dtype, repeats)
    sizes = [(size, dtype, repeats) for size in CASES for dtype in (torch.float64, torch.float32)] + [(LARGE, torch.float32, 1)]
    for size, dtype, times in sizes:
        compare(*size, dtype, "default", times)
        torch.set_num_threads(1)
        with threadpool_limits(1):
            compare(*size, dtype, "1 thread", times)
        torch.set_num_threads(default)
        if size != LARGE:
            with busy_neighbour():
                compare(*size, dtype, "busy", times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
