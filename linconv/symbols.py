"""Blocks of convolutions on the CPU, at any frequencies, in chunks that a few threads share.

A position is the index of a frequency in the grid, row-major.  A real kernel has conjugate blocks at u and −u, so that work is
done at one of the two and written to both.  What `linconv.spectrum` computes this way equals its plain torch path to rounding.

Threads: there are as many workers as torch has threads, and each works with one.  OpenMP and MKL keep a thread count for each
thread of the program; `one_thread` sets those of the calling thread and sets them back.  No setting of the process changes, so
that calls from several threads cannot disturb each other.  Several threads inside LAPACK would wait for each other where the
machine is busy, which costs factors of 10 to 100.
"""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce

import torch
from jaxtyping import Complex, Float, Int64
from threadpoolctl import ThreadpoolController
from torch import Tensor

from linconv.network import fold_kernel

CHUNK_BYTES = 2**21
# Above this many taps a fast Fourier transform is quicker than a product with a table of roots of unity.
TABLE_TAPS = 121
OPENMP = ThreadpoolController().select(user_api="openmp")
# The MKL in torch stops following OpenMP's count once torch.set_num_threads or MKL_NUM_THREADS has given it one; this sets the
# count of the calling thread and returns the one before.  A torch without MKL has no such function.
set_mkl_threads = getattr(ctypes.CDLL(torch._C.__file__), "MKL_Set_Num_Threads_Local", lambda count: count)

Positions = Int64[Tensor, " P"]
BlockFunction = Callable[[Positions], Complex[Tensor, "P C_out C_in"]]


def on_fast_path(*tensors: Tensor) -> bool:
    """Whether all lie on the CPU and none needs a gradient."""
    return all(t.device.type == "cpu" for t in tensors) and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def mirror_index(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """For every frequency in row-major order, the position of its negative.

    >>> mirror_index((2, 3)).tolist()
    [0, 2, 1, 3, 5, 4]
    """
    index = torch.arange(math.prod(grid), device=device).reshape(grid)
    for dim in range(len(grid)):
        index = index.flip(dim).roll(1, dim)
    return index.flatten()


def distinct_frequencies(grid: tuple[int, ...]) -> tuple[Positions, Positions]:
    """Positions of one of u and −u each, with a last coordinate of at most n//2, and of their negatives.

    >>> [positions.tolist() for positions in distinct_frequencies((3, 3))]      # (0, 0), (0, 1), (1, 0), (1, 1), (2, 1)
    [[0, 1, 3, 4, 7], [0, 2, 6, 8, 5]]
    """
    own = torch.arange(math.prod(grid), device="cpu")
    mirror = mirror_index(grid, own.device)
    inside = own % grid[-1] <= grid[-1] // 2
    first = inside & ((own <= mirror) | ~inside[mirror])
    return own[first], mirror[first]


def in_chunks(work: Callable[[Positions, Positions], None], grid: tuple[int, ...], numbers: int, dtype: torch.dtype) -> None:
    """Call `work(u, −u)` on chunks of the positions that `distinct_frequencies` gives, each of about `CHUNK_BYTES`.

    `numbers` is how many numbers of the complex `dtype` one frequency takes.  A single chunk is worked on by the caller.  The
    first exception is raised.
    """
    step = max(1, CHUNK_BYTES // (numbers * dtype.itemsize))
    first, second = (positions.split(step) for positions in distinct_frequencies(grid))

    def run(u: Positions, minus: Positions) -> None:
        with one_thread():
            work(u, minus)

    workers = min(torch.get_num_threads(), len(first))
    if workers == 1:
        for u, minus in zip(first, second, strict=True):
            run(u, minus)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(run, first, second):
            pass


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, and the LAPACK and BLAS in it, use one thread for what the calling thread asks inside; other threads do not notice."""
    torch.get_num_threads()  # in a new thread torch sets the counts when it first looks, so let it look before
    with OPENMP.limit(limits=1):
        before = set_mkl_threads(1)
        try:
            yield
        finally:
            set_mkl_threads(before)


def block_function(kernel: Float[Tensor, "C_out C_in *kernel"], grid: tuple[int, ...]) -> BlockFunction:
    """A function from positions u, all in the half spectrum of the last dimension, to the blocks ŵ_u, `(P, C_out, C_in)`.

    They are products of the taps with roots of unity, one table a dimension, or come from one fast transform of all where
    there are many taps.
    """
    c_out, c_in = kernel.shape[:2]
    taps = tuple(min(k, n) for k, n in zip(kernel.shape[2:], grid, strict=True))
    kernel = fold_kernel(kernel, taps)
    if math.prod(taps) > TABLE_TAPS:
        spectrum = torch.fft.rfftn(kernel, s=grid, dim=tuple(range(2, kernel.ndim))).flatten(2)
        length = grid[-1] // 2 + 1
        return lambda u: spectrum[:, :, u // grid[-1] * length + u % grid[-1]].movedim(2, 0)
    columns = kernel.flatten(2).movedim(2, 0).flatten(1).to(kernel.dtype.to_complex())
    tables = [_roots(n, k).to(columns.dtype) for n, k in zip(grid, taps, strict=True)]

    def at(u: Positions) -> Complex[Tensor, "P C_out C_in"]:
        rows = [table[i] for table, i in zip(tables, torch.unravel_index(u, grid), strict=True)]
        roots = reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), rows)
        return (roots @ columns).reshape(-1, c_out, c_in)

    return at


def numbers_per_frequency(kernel: Float[Tensor, "C_out C_in *kernel"]) -> int:
    """How many complex numbers `block_function` holds for each frequency that it is asked for: the block and its roots of unity."""
    return math.prod(kernel.shape[:2]) + min(math.prod(kernel.shape[2:]), TABLE_TAPS)


def _roots(n: int, taps: int) -> Complex[Tensor, "n taps"]:
    """e^{−2πi um/n} for u < n and m < taps; exponents are reduced to one turn while they are integers, where that is exact."""
    turns = torch.outer(torch.arange(n, device="cpu"), torch.arange(taps, device="cpu")) % n
    angles = turns.to(torch.float64) * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angles), angles)


def stack_blocks(weights: Sequence[Tensor], grid: tuple[int, ...], *, readout: bool = False) -> Complex[Tensor, "*grid K C"]:
    """The blocks ŵ^L_u ⋯ ŵ^1_u at all frequencies, the last factor conjugated if it is a `readout`.

    Beyond the result this holds one chunk a worker, and half a spectrum of each layer with many taps.  The blocks at u and −u
    are conjugate, and those with u = −u real, bit for bit.
    """
    layers = [block_function(w, grid) for w in weights]
    widths = [weights[0].shape[1], *(len(w) for w in weights)]
    values = weights[0].new_empty(math.prod(grid), widths[-1], widths[0], dtype=weights[0].dtype.to_complex())

    def multiply(u: Positions, minus: Positions) -> None:
        factors = [layer(u) for layer in layers]
        if readout:
            factors[-1] = factors[-1].conj()
        # From the narrower end: the products stay narrow.
        if widths[0] < widths[-1]:
            blocks = reduce(lambda product, factor: factor @ product, factors)
        else:
            blocks = reduce(torch.matmul, reversed(factors))
        blocks.imag[u == minus] = 0
        values[u], values[minus] = blocks, blocks.conj()

    in_chunks(multiply, grid, sum(numbers_per_frequency(w) for w in weights), values.dtype)
    return values.reshape(*grid, widths[-1], widths[0])
