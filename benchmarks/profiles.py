"""Patch spectra against scikit-learn's IncrementalPCA, and the exact law of a first layer against torch's gradient descent.

    LINCONV_DATA=DIR python -m benchmarks.profiles [images]

All of CIFAR-10 by default, 3×3 patches at stride 1, in single precision as loaded, decomposed in double precision by both.  The peer
sees the same patches, cut by torch's `unfold`, which is timed apart and counted for neither side; batches of 200 images.  Agreement is
that of λ, relative to the largest.  The floor is the bare product of the patches with themselves.  Memory is the peak of the process.
Then 10,000 steps of gradient descent on the filters of a linear CNN, on 1,000 of the images, beside the formula at the same time.
One thread; time on a core.
"""

import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.timing import seconds
from linconv.images import load
from linconv.patches import patch_spectrum
from linconv.profiles import exact_dynamics

BATCH, KERNEL, STEPS, TRAINED, FILTERS = 200, 3, 10_000, 1000, 8
SOME = 20  # steps of torch's convolution, whose cost does not change from one to the next
TARGETS = {"PCA": 5.0, "training": 1000.0}


def batches(images: Tensor) -> Iterator[Tensor]:
    """All patches of a few images at a time, `(patches, P)` in double precision."""
    for part in images.split(BATCH):
        yield nn.functional.unfold(part.double(), KERNEL).transpose(1, 2).flatten(0, 1)


def decompositions(images: Tensor) -> None:
    found: list[Tensor] = []
    ours = seconds(lambda: found.append(patch_spectrum(images.split(BATCH), KERNEL).lambdas.double()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    from sklearn.decomposition import IncrementalPCA

    cut = seconds(lambda: [None for _ in batches(images)])
    peer = IncrementalPCA()
    theirs = seconds(lambda: [peer.partial_fit(patches.numpy()) for patches in batches(images)]) - cut
    floor = seconds(lambda: [patches.T @ patches for patches in batches(images)]) - cut
    count = len(images) * (images.shape[2] - KERNEL + 1) * (images.shape[3] - KERNEL + 1)
    lambdas = np.sqrt(peer.explained_variance_ * (count - 1) / count)
    exact = patch_spectrum((part.double() for part in images.split(BATCH)), KERNEL).lambdas.numpy()
    print(
        f"patch PCA, {len(images)} images, {count:.3g} patches: ratio {theirs / ours:.1f} (target {TARGETS['PCA']:g})   "
        f"to the floor {ours / floor:.2f}   agreement {np.abs(exact - lambdas).max() / lambdas[0]:.0e}   "
        f"peak before the peer {peak:.2f} GiB, of which images {images.nbytes / 2**30:.2f}"
    )


def dynamics(images: Tensor, labels: Tensor) -> None:
    x = images[:TRAINED].double()
    y = labels[:TRAINED].double() - labels[:TRAINED].double().mean()
    spectrum = patch_spectrum(x, KERNEL)
    start = 0.01 * torch.randn(FILTERS, *spectrum.patch_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = nn.functional.unfold(x, KERNEL).mean(-1) - spectrum.mean
    step = 0.5 * len(x) / (FILTERS * float(torch.linalg.matrix_norm(pooled, 2)) ** 2)
    filters = start.clone().requires_grad_()

    def descend() -> None:
        for _ in range(SOME):
            f = nn.functional.conv2d(x, filters).mean((2, 3)).sum(1) - (filters.flatten(1) @ spectrum.mean).sum()
            (slope,) = torch.autograd.grad((f - y).square().mean(), filters)
            with torch.no_grad():
                filters.sub_(step * slope)

    slow = seconds(descend) / SOME * STEPS
    law: list[Tensor] = []
    ours = seconds(lambda: law.append(exact_dynamics(spectrum, x, y, start, step_size=step).at(STEPS)))
    weights, pulled = start.flatten(1).clone(), pooled.T @ y / len(x)
    moment = pooled.T @ pooled / len(x)

    def descend_on_moments() -> None:
        for _ in range(STEPS):
            weights.sub_(2 * step * (moment @ weights.sum(0) - pulled))

    quick = seconds(descend_on_moments)
    error = float((law[0].flatten(1) - weights).abs().max() / weights.abs().max())
    print(
        f"exact law at t = {STEPS}, {TRAINED} images: ratio to torch's convolution {slow / ours:.3g} (target {TARGETS['training']:g}; "
        f"extrapolated from {SOME} steps), to descent on its 27×27 moments {quick / ours:.3g}   agreement {error:.0e}"
    )


def main(count: int | None = None) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        start = time.process_time()
        data = load("cifar10", samples=count, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
        print(f"{len(data)} images of CIFAR-10 read in {time.process_time() - start:.1f} s", flush=True)
        decompositions(data.images)
        dynamics(data.images, data.labels)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
