"""Warping a batch of 3×32×32 images, one field an image: the project, a loop over images, and SciPy's `map_coordinates`.

    python -m benchmarks.deformation [images]

The loop is bilinear interpolation as in the published code, one image after the other: positions, floor, ceiling, four gathers.  SciPy
takes one channel at a time, with `order=1` and `mode="nearest"`, into an output made beforehand, positions computed for all at once.  The
time of the project includes the checks of its arguments.  Errors are the largest difference from SciPy in double precision, over the range
of the images.  One thread; medians of interleaved repeats, time on a core.
"""

import sys
from functools import partial

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.timing import interleaved, natural_images
from linconv.deformation import sample_displacements, typical_temperature, warp

SIDE, IMAGES, REPEATS, TARGET = 32, 256, 9, 3.0


def looped(images: Tensor, tau: Tensor) -> Tensor:
    side = images.shape[-1]
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=images.dtype)] * 2, indexing="ij")
    moved = []
    for x, (down, right) in zip(images, tau, strict=True):
        p, q = (rows - down).clamp(0, side - 1), (columns - right).clamp(0, side - 1)
        p0, q0, p1, q1 = p.floor().long(), q.floor().long(), p.ceil().long(), q.ceil().long()
        a, b = p - p0, q - q0
        moved.append((1 - a) * (1 - b) * x[:, p0, q0] + (1 - a) * b * x[:, p0, q1] + a * (1 - b) * x[:, p1, q0] + a * b * x[:, p1, q1])
    return torch.stack(moved)


def by_scipy(images: Tensor, tau: Tensor) -> Tensor:
    x, sites = images.numpy(), np.stack(np.meshgrid(*[np.arange(images.shape[-1])] * 2, indexing="ij"))
    moved = np.empty_like(x)
    for n, positions in enumerate(sites - tau.numpy()):
        for c in range(x.shape[1]):
            map_coordinates(x[n, c], positions, order=1, mode="nearest", output=moved[n, c])
    return torch.from_numpy(moved)


def main(count: int = IMAGES) -> None:
    torch.set_num_threads(1)
    images, _ = natural_images(count, (SIDE, SIDE))
    generator = torch.Generator().manual_seed(0)
    fields = sample_displacements(count, (SIDE, SIDE), temperature=typical_temperature(1.0, SIDE, 3), cutoff=3, generator=generator)
    expected, reach = by_scipy(images, fields), float(images.max() - images.min())
    print(f"{count} images of 3×{SIDE}×{SIDE}, linear, clamped; target {TARGET:g}")
    with threadpool_limits(1):
        for dtype in (torch.float32, torch.float64):
            x, tau = images.to(dtype), fields.to(dtype)
            works = [partial(work, x, tau) for work in (warp, looped, by_scipy)]
            ours, loop, peer = interleaved(works, REPEATS)
            errors = [float((work().double() - expected).abs().max()) / reach for work in works]
            print(
                f"{str(dtype).removeprefix('torch.')}: {1e6 * ours / count:.0f} µs an image; ratio {loop / ours:.1f} to the loop, "
                f"{peer / ours:.1f} to map_coordinates   errors {', '.join(f'{e:.0e}' for e in errors)}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
