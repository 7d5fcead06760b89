"""The portfolio at depth ≥ 3 against ten L-BFGS runs of the deep network itself.

    LINCONV_DATA=DIR python -m benchmarks.portfolio [grid sizes] [depths]     e.g.  4,8 3,4,6

The runs minimise over full complex layers at half the spectrum, from torch's default initialisation, with SciPy's L-BFGS-B.
Up to a grid of 8×8 all ten are run, beyond that two, whose time counts five times.  Images are 500 of CIFAR-10, centred; one
thread, one run.  "Portfolio / ten runs" is the ratio of times; "better by" is (best run − portfolio) / portfolio.
"""

import math
import sys
import time
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from linconv.images import center, load
from linconv.solvers.descents import Frequencies
from linconv.solvers.networks import prune
from linconv.solvers.portfolio import portfolio
from linconv.solvers.problem import Problem
from linconv.solvers.reduction import reduce

GRIDS, DEPTHS, DECAY, IMAGES, RUNS = (4, 8, 16, 32), (3, 4, 6), 0.01, 500, 10


def photographs(size: int, depth: int) -> Problem:
    """Centred photographs with centred labels, more than C·D of them reduced as `fit` does."""
    images = load("cifar10", samples=IMAGES, grid=(size, size), generator=torch.Generator().manual_seed(0))
    x, y = center(images.images), images.one_hot()
    y = y - y.mean(0)
    if len(x) > x[0].numel():
        return Problem(*reduce(x, y)[:2], depth, DECAY, constant=reduce(x, y)[2])
    return Problem(x, y, depth, DECAY)


def run(space: Frequencies, seed: int) -> float:
    """The objective of one L-BFGS run over layers in frequency space, from torch's default initialisation."""
    problem = space.problem
    channels, outputs, sites = problem.x.shape[1], problem.y.shape[1], math.prod(problem.grid)
    generator = torch.Generator().manual_seed(seed)
    scale = (space.weights / sites).sqrt()[:, None, None]  # in these coordinates Σ‖w‖² is the plain sum of squares
    layers = []
    for inputs, size in pairwise([channels, *[max(channels, outputs)] * (problem.depth - 1), outputs]):
        weight = (2 * torch.rand(size, inputs, *problem.grid, dtype=torch.float64, generator=generator) - 1) / math.sqrt(inputs * sites)
        layers.append(math.sqrt(sites) * space.restrict(problem.blocks(weight)) * scale)
    ends = np.cumsum([2 * layer.numel() for layer in layers])[:-1]
    real = np.stack([np.ones(len(space.own)), (~space.own).numpy()], -1)[:, None, None, :]

    def unpack(x: np.ndarray) -> list[np.ndarray]:
        parts = zip(np.split(x, ends), layers, strict=True)
        return [part.view(np.complex128).reshape(layer.shape) / scale.numpy() for part, layer in parts]

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights = unpack(x)
        below = [weights[0]]
        for weight in weights[1:]:
            below.append(weight @ below[-1])
        value, slope = space.data_term(torch.from_numpy(below[-1] / math.sqrt(sites))[None])
        pulled, gradients = slope[0].numpy() * math.sqrt(sites), []
        for index in reversed(range(len(weights))):
            gradient = pulled if index == 0 else pulled @ below[index - 1].conj().swapaxes(1, 2)
            gradients.append(np.ascontiguousarray(gradient * scale.numpy()).view(np.float64).reshape(*gradient.shape, 2) * real)
            pulled = weights[index].conj().swapaxes(1, 2) @ pulled
        return float(value[0]) + problem.weight_decay * float(x @ x), np.concatenate(
            [g.ravel() for g in reversed(gradients)]
        ) + 2 * problem.weight_decay * x

    start = np.concatenate([(np.ascontiguousarray(a.numpy()).view(np.float64).reshape(*a.shape, 2) * real).ravel() for a in layers])
    options = {"maxcor": 20, "maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-12}
    weights = unpack(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return float(space.objective(prune(torch.from_numpy(product)[None] / math.sqrt(sites)))[0])


def compare(size: int, depth: int) -> None:
    problem = photographs(size, depth)
    start = time.perf_counter()
    found = portfolio(problem)
    ours = time.perf_counter() - start
    space, runs = Frequencies(problem), RUNS if size <= 8 else 2
    start = time.perf_counter()
    trained = min(run(space, seed) for seed in range(runs))
    theirs = (time.perf_counter() - start) * RUNS / runs
    title = f"{size}×{size}, depth {depth}"
    print(f"{title:<17} portfolio {found.objective:.9f} in {ours:7.1f} s   best of {runs} runs {trained:.9f}, ten in {theirs:8.1f} s")
    print(f"{'':<17} portfolio / ten runs {ours / theirs:.2f}   better by {(trained - found.objective) / found.objective:.1e}")
    for name, value in found.members.items():
        print(f"{'':<17}   {name:<27} {value:.9f}   above the best by {value / found.objective - 1:.1e}")


def main(grids: tuple[int, ...], depths: tuple[int, ...]) -> None:
    for size in grids:
        for depth in depths:
            compare(size, depth)


if __name__ == "__main__":
    chosen = [tuple(map(int, argument.split(","))) for argument in sys.argv[1:]]
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main(*(given or default for given, default in zip(chosen + [()] * (2 - len(chosen)), (GRIDS, DEPTHS), strict=True)))
