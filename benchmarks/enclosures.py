"""Rigorous enclosures of singular values against singular values without a proof, and against Arb.

    python -m benchmarks.enclosures [repeats]

The project's `singular_value_bounds` runs against the SVD of the same blocks (one of each pair u, −u, formed beforehand),
with vectors by NumPy and by torch and without vectors by NumPy, and against the project's own `conv_singular_values`.  The floor,
relative to NumPy's decomposition too, is what a proof by residuals cannot do without, in bare calls on blocks that are there: the
faster decomposition, three products and their norms.  Repeats alternate, so that a busy machine slows all; ratios are those of the
medians, one thread for all.  Arb (python-flint) forms exact blocks and takes the eigenvalues of V*V at 128 bits, once, where the
blocks are few.  "Width" is the median of (upper − lower) / upper.
"""

import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from linconv.enclosures import SingularValueBounds, singular_value_bounds
from linconv.spectrum import conv_blocks, conv_singular_values, half_pairs

CASES = [
    ((10, 3, 8, 8), (8, 8)),
    ((10, 3, 32, 32), (32, 32)),
    ((16, 16, 3, 3), (32, 32)),
    ((64, 64, 3, 3), (16, 16)),
    ((128, 64, 3, 3), (8, 8)),
]
TARGET = 2.0
ARB_ENTRIES = 2**13  # (frequencies × channel pairs) beyond which Arb takes minutes


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def half_blocks(weight: torch.Tensor, grid: tuple[int, ...]) -> np.ndarray:
    """The blocks at one frequency of each pair u, −u."""
    half = conv_blocks(weight, grid).values[..., : grid[-1] // 2 + 1, :, :].numpy()
    return np.delete(half.reshape(-1, *weight.shape[:2]), half_pairs(grid)[1].numpy(), axis=0)


def arb_singular_values(weight: np.ndarray, grid: tuple[int, ...], bits: int = 128) -> list[list[object]]:
    """Balls that contain the squared singular values at every distinct frequency, in no order."""
    from flint import acb, acb_mat, arb, ctx, fmpq

    ctx.prec = bits
    c_out, c_in, *taps = weight.shape
    roots = {n: [acb(arb(fmpq(-2 * j, n))).exp_pi_i() for j in range(n)] for n in grid}
    positions = list(product(*map(range, taps)))
    columns = acb_mat([[acb(float(weight[(i, j, *m)])) for i in range(c_out) for j in range(c_in)] for m in positions])
    found = []
    for u in product(*map(range, grid)):
        if u <= tuple(-a % n for a, n in zip(u, grid, strict=True)):
            phases = [math.prod((roots[n][a * b % n] for a, b, n in zip(u, m, grid, strict=True)), start=acb(1)) for m in positions]
            block = acb_mat(c_out, c_in, (acb_mat([phases]) * columns).entries())
            found.append((block.transpose().conjugate() * block).eig(multiple=True))
    return found


def bare_proof(blocks: np.ndarray, by_torch: bool) -> list[np.ndarray]:
    """Norms of V − UΣV*, U*U − I and VV* − I for every block, with no bound on their rounding."""
    left, values, right = (
        tuple(part.numpy() for part in torch.linalg.svd(torch.from_numpy(blocks), full_matrices=False))
        if by_torch
        else np.linalg.svd(blocks, full_matrices=False)
    )
    one = np.eye(values.shape[-1])
    defects = (left.conj().swapaxes(-2, -1) @ left - one, right @ right.conj().swapaxes(-2, -1) - one)
    return [np.sqrt(np.einsum("bij,bij->b", part, part.conj()).real) for part in (blocks - (left * values[:, None]) @ right, *defects)]


def compare(shape: tuple[int, ...], grid: tuple[int, ...], repeats: int) -> float:
    """Print one line and return the ratio project : full SVD."""
    weight = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = half_blocks(weight, grid)
    sides: list[Callable[[], object]] = [
        lambda: singular_value_bounds(weight, grid),
        lambda: np.linalg.svd(blocks, full_matrices=False),
        lambda: torch.linalg.svd(torch.from_numpy(blocks), full_matrices=False),
        lambda: np.linalg.svd(blocks, compute_uv=False),
        lambda: conv_singular_values(weight, grid),
        lambda: bare_proof(blocks, by_torch=False),
        lambda: bare_proof(blocks, by_torch=True),
    ]
    for side in sides:
        side()
    project, full, full_torch, values, own, *floors = (
        median(column) for column in zip(*([seconds(s) for s in sides] for _ in range(repeats)), strict=True)
    )
    bounds: SingularValueBounds = singular_value_bounds(weight, grid)
    width = float(((bounds.upper - bounds.lower) / bounds.upper).median())
    arb = ""
    if find_spec("flint") and math.prod(grid) * math.prod(shape[:2]) <= ARB_ENTRIES:
        arb = f"   Arb {seconds(lambda: arb_singular_values(weight.numpy(), grid)) / project:6.0f} times"
    case = f"{shape[1]:3d}→{shape[0]:<3d} {'×'.join(map(str, shape[2:])):>5s} taps, grid {'×'.join(map(str, grid)):>5s}"
    vectors = f"svd with vectors {project / full:5.2f} (torch {project / full_torch:5.2f}), floor {min(floors) / full:.2f}"
    plain = f"values only {project / values:5.2f}, conv_singular_values {project / own:5.2f}"
    print(f"{case}   project {project * 1e3:7.2f} ms   ratio to {vectors}, {plain}   width {width:.0e}{arb}")
    return project / full


def main(repeats: int = 11) -> None:
    print(f"one thread, {repeats} interleaved repeats, medians; target: ratio ≤ {TARGET:g} to the SVD")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for shape, grid in CASES:
            compare(shape, grid, repeats)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
