"""Depth 1: `fit` and `fit_path` against scikit-learn's Ridge on CIFAR-10, or on the bundled photographs where that is not at hand.

    python -m benchmarks.ridge [repeats]

The peer is `Ridge(alpha, fit_intercept=False)` with the solver that it chooses itself (Cholesky on the smaller of N and C·D),
alpha = 2N·weight_decay, which is the same problem.  `fit` checks its data, refines the solution once and certifies it;
the peer does neither.  The floor is the bare product XXᵀ or XᵀX and its Cholesky decomposition.  Repeats alternate, ratios are
those of medians, all with one thread.
"""

import sys

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import linconv as lc
from benchmarks.timing import interleaved, natural_images

CASES = [(16, 500), (32, 500), (16, 2000), (32, 2000)]  # side, images
DECAYS = np.geomspace(1e-4, 1e-1, 10)


def compare(side: int, samples: int, repeats: int) -> None:
    from sklearn.linear_model import Ridge

    x, y = natural_images(samples, (side, side))
    flat, targets = x.flatten(1).numpy(), y.numpy()

    def peer(decay: float) -> np.ndarray:
        return Ridge(2 * samples * decay, fit_intercept=False).fit(flat, targets).coef_

    def floor() -> torch.Tensor:
        matrix = x.flatten(1)
        small = matrix @ matrix.T if samples < matrix.shape[1] else matrix.T @ matrix
        return torch.linalg.cholesky(small + torch.eye(len(small), dtype=small.dtype))

    ours, theirs, bare = interleaved([lambda: lc.fit(x, y, depth=1, weight_decay=0.01), lambda: peer(0.01), floor], repeats)
    difference = np.abs(lc.fit(x, y, depth=1, weight_decay=0.01).predictor.flatten(1).numpy() - peer(0.01)).max()
    print(
        f"{side:3d}² N={samples:<5d} one decay   project {ours * 1e3:8.1f} ms   peer {theirs * 1e3:8.1f} ms   ratio {theirs / ours:5.2f}   "
        f"floor {bare * 1e3:8.1f} ms   agreement {difference:.0e}"
    )
    ours, theirs = interleaved(
        [lambda: lc.fit_path(x, y, depth=1, weight_decays=list(DECAYS)), lambda: [peer(decay) for decay in DECAYS]], repeats
    )
    print(
        f"{side:3d}² N={samples:<5d} {len(DECAYS)} decays   project {ours * 1e3:8.1f} ms   "
        f"peer {theirs * 1e3:8.1f} ms   ratio {theirs / ours:5.2f}"
    )


def main(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for side, samples in CASES:
            compare(side, samples, repeats)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
