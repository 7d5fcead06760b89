"""The portfolio at depth ≥ 3 against ten L-BFGS runs of the deep network itself.

    LINCONV_DATA=DIR python -m benchmarks.portfolio [--grids 4,8] [--depths 3,4,6] [--runs 10] [--store FILE]
    python -m benchmarks.portfolio --small COUNT [--first SEED]

The runs minimise over full complex layers at half the spectrum, from torch's default initialisation, with SciPy's L-BFGS-B.
Images are 500 of CIFAR-10, or patches of the bundled photographs where that is not at hand, centred.  Where fewer than ten runs are
asked for, their mean time counts ten times.  A store keeps what is finished: a comparison of hours, such as `--grids 32`, can be killed
and goes on where it was.
`--small`: random problems of seeds SEED (default 0) to SEED + COUNT − 1, all ten runs.  Processor time of one thread.
"Portfolio / ten runs" is the ratio of times; "better by" is (best run − portfolio) / portfolio.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from benchmarks.timing import natural_images
from linconv import sweep
from linconv.solvers.descents import Frequencies
from linconv.solvers.networks import prune
from linconv.solvers.nonconvex import first_bound
from linconv.solvers.portfolio import portfolio
from linconv.solvers.problem import Problem
from linconv.solvers.reduction import reduce

GRIDS, DEPTHS, DECAY, IMAGES, RUNS = (4, 8), (3, 4, 6), 0.01, 500, 10
SMALL_GRIDS = [(3,), (4,), (5,), (2, 2), (2, 3), (3, 3), (4, 4), (2, 2, 2)]
SIZES = (8, 16, 32, 64, math.inf)  # numbers in the predictor, up to which a problem counts in a row of the table
LEVEL = 1e-9  # relative differences below this are rounding
T = TypeVar("T")


def photographs(size: int, depth: int) -> Problem:
    """Centred photographs with centred labels, more than C·D of them reduced as `fit` does."""
    x, y = natural_images(IMAGES, (size, size))
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
    options = {"maxcor": 10, "maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-12}
    weights = unpack(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return float(space.objective(prune(torch.from_numpy(product)[None] / math.sqrt(sites)))[0])


def small_problem(seed: int) -> Problem:
    """A random one: white images or such with a spectrum 1/(1 + |u|), labels linear with noise or nothing but noise."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(options: list[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    grid, channels, outputs = one_of(SMALL_GRIDS), one_of([1, 2, 3]), one_of([1, 2, 3])
    samples, depth, kind = one_of([5, 10, 20, 50]), one_of(list(DEPTHS)), one_of(["white", "natural", "noise"])
    decay = 10 ** (-2.7 + 1.5 * float(torch.rand((), generator=generator)))
    x = normal(samples, channels, *grid)
    if kind == "natural":
        spatial = tuple(range(2, 2 + len(grid)))
        axes = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in grid], indexing="ij")
        x = torch.fft.ifftn(torch.fft.fftn(x, dim=spatial) / (1 + torch.stack(axes).square().sum(0).sqrt()), dim=spatial).real
    y = normal(samples, outputs)
    if kind != "noise":
        y = x.flatten(1) @ normal(x[0].numel(), outputs) / math.sqrt(x[0].numel()) + 0.3 * y
    return Problem(x, y, depth, decay)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and its processor seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def portfolio_on_photographs(size: int, depth: int) -> dict[str, object]:
    problem = photographs(size, depth)
    found, seconds = timed(lambda: portfolio(problem, lower=first_bound(problem)))
    return {"objective": found.objective, "cpu": seconds, "members": found.members}


def run_on_photographs(size: int, depth: int, seed: int) -> dict[str, float]:
    problem = photographs(size, depth)
    objective, seconds = timed(lambda: run(Frequencies(problem), seed))
    return {"objective": objective, "cpu": seconds}


def compare(size: int, depth: int, runs: int, store: str) -> None:
    (found,) = (record["result"] for record in sweep(portfolio_on_photographs, {"size": [size], "depth": [depth]}, store=store, n_jobs=1))
    seeds = {"size": [size], "depth": [depth], "seed": list(range(runs))}
    trained = [record["result"] for record in sweep(run_on_photographs, seeds, store=store, n_jobs=1)]
    value, least = found["objective"], min(one["objective"] for one in trained)
    theirs = sum(one["cpu"] for one in trained) * RUNS / runs
    title = f"{size}×{size}, depth {depth}"
    print(f"{title:<17} portfolio {value:.9f} in {found['cpu']:7.1f} s   best of {runs} runs {least:.9f}, ten in {theirs:8.1f} s")
    print(f"{'':<17} portfolio / ten runs {found['cpu'] / theirs:.2f}   better by {(least - value) / value:.1e}", flush=True)
    for name, member in found["members"].items():
        print(f"{'':<17}   {name:<27} {member:.9f}   above the best by {member / value - 1:.1e}")


def compare_small(count: int, first: int) -> None:
    """A line for each problem in which the portfolio is worse or that is slower than three times the runs; then a table."""
    rows = []
    portfolio(small_problem(first))  # what is imported and set up at a first call is nobody's time
    for seed in range(first, first + count):
        problem = small_problem(seed)
        found, ours = timed(lambda problem=problem: portfolio(problem, lower=first_bound(problem)))  # as `fit` calls it
        space = Frequencies(problem)
        trained, theirs = timed(lambda space=space: min(run(space, number) for number in range(RUNS)))
        gain = (trained - found.objective) / found.objective
        rows.append((found.predictor.numel(), problem.depth, ours, theirs, gain))
        if gain < -LEVEL or ours > 3 * theirs:
            shape = f"{tuple(found.predictor.shape)}, N = {len(problem.x)}, depth {problem.depth}"
            print(f"seed {seed:<6} {shape:<35} portfolio / ten runs {ours / theirs:4.1f}   better by {gain:.1e}")
    title = f"{count} random problems from seed {first}"
    print(f"{title:<32} {'number':>6} {'time in total':>14} {'median':>7} {'most':>6} {'worse':>6} {'better':>7} {'by up to':>9}")
    groups = [(f"up to {size} numbers", [row for row in rows if low < row[0] <= size]) for low, size in pairwise((0, *SIZES))]
    groups += [(f"depth {depth}", [row for row in rows if row[1] == depth]) for depth in DEPTHS]
    for name, group in [*groups, ("all", rows)]:
        if group:
            ratios = [ours / theirs for _, _, ours, theirs, _ in group]
            total = sum(row[2] for row in group) / sum(row[3] for row in group)
            gains = [row[4] for row in group]
            worse, better = sum(gain < -LEVEL for gain in gains), sum(gain > LEVEL for gain in gains)
            print(
                f"{name:<32} {len(group):>6} {total:>14.2f} {median(ratios):>7.2f} {max(ratios):>6.1f}"
                f" {worse:>6} {better:>7} {max(gains):>9.1e}"
            )


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.portfolio")
    parser.add_argument("--grids", type=numbers, default=GRIDS)
    parser.add_argument("--depths", type=numbers, default=DEPTHS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--store", help="a file that keeps what is finished")
    parser.add_argument("--small", type=int, metavar="COUNT", help="random problems instead")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    chosen = parser.parse_args()
    if chosen.small:
        compare_small(chosen.small, chosen.first)
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in chosen.grids:
            for depth in chosen.depths:
                compare(size, depth, chosen.runs, chosen.store or os.path.join(folder, "runs.jsonl"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
