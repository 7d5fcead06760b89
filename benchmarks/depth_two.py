"""Depth 2: `fit` against L-BFGS on the two-layer network, and against cvxpy's SCS and Clarabel, on CIFAR-10 where it is at hand.

    python -m benchmarks.depth_two [--full]

The weight decay is given as a part of the least one at which the zero predictor is optimal.  `fit` runs to a certified gap of
1e-6.  L-BFGS (SciPy, 20 pairs) trains the balanced factors of each block, at one frequency of each pair u, −u, on data in
real Fourier coordinates, so that no step needs a transform; torch's L-BFGS (strong Wolfe) trains the network in pixels.  Both
stop as soon as they are within 1e-6 of the certified optimum, which they cannot know by themselves.  Times of cvxpy's solvers
are without its compilation.  A ratio is peer : project, of medians of alternating repeats on one thread.
Rows that name no loss are of squared error.  The floor is what the iterations of `fit` would cost on all frequencies if they were
bare products with the data and bare singular values: working sets go below it.  --full adds 32² to SCS (over ten minutes to
compile) and 50,000 images.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

import linconv as lc
from benchmarks.timing import interleaved, natural_images, seconds
from linconv.losses import LossName, loss_of
from linconv.solvers.splitting import Splitting
from linconv.spectrum import half_pairs

TOL = 1e-6
TARGETS = {"L-BFGS": 3.0, "SCS": 60.0}


@dataclass(frozen=True)
class Case:
    """Images, targets and a weight decay, as a part of that beyond which all is 0."""

    x: torch.Tensor
    y: torch.Tensor
    part: float
    loss: LossName = "squared"

    @property
    def decay(self) -> float:
        residual = -loss_of(self.loss).gradient(torch.zeros_like(self.y), self.y)
        pulled = (residual.T @ self.x.flatten(1) / len(self.x)).reshape(-1, *self.x.shape[1:])
        blocks = torch.fft.fftn(pulled, dim=(2, 3)).movedim((0, 1), (-2, -1))
        return self.part * float(torch.linalg.matrix_norm(blocks, ord=2).max()) / 2

    def fit(self, tol: float = TOL) -> lc.Solution:
        return lc.fit(self.x, self.y, depth=2, weight_decay=self.decay, loss=self.loss, tol=tol)


def fourier(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Real columns `(N, P·2·C)` at one frequency of each pair, real and imaginary parts apart, and μ of each frequency."""
    _, second, own = (places.numpy() for places in half_pairs(tuple(case.x.shape[2:])))
    spectra = torch.fft.rfftn(case.x, dim=(2, 3), norm="ortho").flatten(2).numpy()
    scale = np.full(spectra.shape[2], math.sqrt(2))
    scale[own] = 1
    spectra, scale = np.delete(spectra * scale, second, axis=2), np.delete(scale, second)
    columns = np.stack([spectra.real, -spectra.imag], 1).transpose(0, 3, 1, 2)
    return columns.reshape(len(spectra), -1), scale * 2 * case.decay / math.sqrt(math.prod(case.x.shape[2:]))


def data_term(f: np.ndarray, y: np.ndarray, loss: LossName) -> tuple[float, np.ndarray]:
    """The loss summed over the images, and its derivative in the outputs."""
    if loss == "squared":
        return float(((f - y) ** 2).sum()) / 2, f - y
    below = f - f.max(1, keepdims=True)
    powers = np.exp(below)
    total = powers.sum(1, keepdims=True)
    return float(np.log(total).sum() - (y * below).sum()), powers / total - y


class Reached(Exception):
    """The objective is where it should be."""


def factored_lbfgs(case: Case, goal: float) -> int:
    """Train B_u = b_u a_u until the objective is at most `goal`; evaluations."""
    columns, mu = fourier(case)
    y, n, channels, outputs = case.y.numpy(), len(case.y), case.x.shape[1], case.y.shape[1]
    frequencies, width, evaluations = len(mu), min(channels, outputs), 0
    split = frequencies * width * channels

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal evaluations
        evaluations += 1
        numbers = flat.view(complex)
        a, b = numbers[:split].reshape(frequencies, width, channels), numbers[split:].reshape(frequencies, outputs, width)
        blocks = (b @ a).transpose(0, 2, 1)
        data, left = data_term(columns @ np.stack([blocks.real, blocks.imag], 1).reshape(-1, outputs), y, case.loss)
        slope = (columns.T @ left / n).reshape(frequencies, 2, channels, outputs)
        g = (slope[:, 0] + 1j * slope[:, 1]).transpose(0, 2, 1)
        value = data / n + float(mu @ ((np.abs(a) ** 2).sum((1, 2)) + (np.abs(b) ** 2).sum((1, 2)))) / 2
        if value <= goal:
            raise Reached
        by_a = b.conj().transpose(0, 2, 1) @ g + mu[:, None, None] * a
        by_b = g @ a.conj().transpose(0, 2, 1) + mu[:, None, None] * b
        return value, np.concatenate([by_a.ravel(), by_b.ravel()]).view(float)

    start = 0.05 * np.random.default_rng(0).standard_normal(2 * (split + frequencies * outputs * width))
    try:
        minimize(
            objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 10**5, "maxfun": 10**5, "maxcor": 20, "ftol": 0, "gtol": 0}
        )
    except Reached:
        return evaluations
    return -evaluations


def pixel_lbfgs(case: Case, goal: float) -> int:
    """Train the network itself until the objective is at most `goal`, for a minute at most; evaluations, negative if it is not there."""
    outputs, channels, grid = case.y.shape[1], case.x.shape[1], tuple(case.x.shape[2:])
    net = lc.LinearCNN(channels, (min(channels, outputs),), outputs, grid, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=10**5, history_size=20, line_search_fn="strong_wolfe", tolerance_change=0)
    evaluations, end = 0, time.process_time() + 60

    def closure() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimiser.zero_grad()
        decay = torch.stack([w.square().sum() for w in net.weights]).sum()
        value = (net(case.x) - case.y).square().sum() / (2 * len(case.x)) + case.decay * decay
        if value.item() <= goal or time.process_time() > end:
            raise Reached(value.item())
        value.backward()
        return value

    try:
        optimiser.step(closure)
    except Reached as reached:
        return evaluations if reached.args[0] <= goal else -evaluations
    return -evaluations


def programme(case: Case, solver: str, **options: float) -> tuple[float, float]:
    """Seconds of a solver of cvxpy once compiled, and its objective; a complex block is [[Re, −Im], [Im, Re]], of twice its norm."""
    columns, mu = fourier(case)
    channels, outputs = case.x.shape[1], case.y.shape[1]
    numbers = cp.Variable((columns.shape[1], outputs))
    norms = []
    for u, weight in enumerate(mu):
        real, imaginary = (numbers[(2 * u + part) * channels : (2 * u + part + 1) * channels] for part in (0, 1))
        norms.append(weight / 2 * cp.normNuc(cp.bmat([[real, -imaginary], [imaginary, real]])))
    task = cp.Problem(cp.Minimize(cp.sum_squares(columns @ numbers - case.y.numpy()) / (2 * len(case.y)) + cp.sum(norms)))
    data, chain, inverse = task.get_problem_data(solver, solver_opts=options)
    start = time.process_time()
    found = chain.solve_via_data(task, data, warm_start=False, verbose=False, solver_opts=options)
    taken = time.process_time() - start
    task.unpack_results(found, chain, inverse)
    return taken, float(task.value)


def counted(work: Callable[[], lc.Solution]) -> tuple[lc.Solution, int]:
    """What the work returns, and the steps of splitting that it makes."""
    made, plain = [], Splitting.run

    def run(self: Splitting, *arguments: Any) -> tuple[int, bool]:
        steps, reached = plain(self, *arguments)
        made.append(steps)
        return steps, reached

    Splitting.run = run
    try:
        return work(), sum(made)
    finally:
        Splitting.run = plain


def compare(side: int, samples: int, part: float, repeats: int, pixels: bool = False, loss: LossName = "squared") -> None:
    """Print the project, the floor and the networks on one problem."""
    x, y = natural_images(samples, (side, side))
    if loss != "squared":
        y = torch.nn.functional.one_hot(y.argmax(1), y.shape[1]).to(y)
    case = Case(x, y, part, loss)
    best = case.fit(1e-9)
    found, steps = counted(case.fit)
    goal = best.objective * (1 + TOL)
    columns = fourier(case)[0]
    right, blocks = (
        np.ones((columns.shape[1], y.shape[1])),
        torch.randn(side * (side // 2 + 1), y.shape[1], x.shape[1], dtype=torch.complex128),
    )
    works = [case.fit, partial(factored_lbfgs, case, goal), lambda: columns.T @ (columns @ right), lambda: torch.linalg.svdvals(blocks)]
    ours, theirs, products, values = interleaved(works, repeats)
    print(
        f"{side:3d}² N={samples:<5d} {loss}, decay {part:<6g} project {ours * 1e3:8.1f} ms, {steps:4d} steps, gap {found.gap:.0e}   "
        f"floor {steps * (products + values) * 1e3:8.1f} ms   L-BFGS {theirs * 1e3:9.1f} ms, {factored_lbfgs(case, goal)} evaluations, "
        f"ratio {theirs / ours:6.1f} (target {TARGETS['L-BFGS']:g})",
        flush=True,
    )
    if pixels:
        slow = seconds(lambda: print(f"     in pixels: {pixel_lbfgs(case, goal)} evaluations", end=""))
        print(f" (negative: not within {TOL:g}), ratio {slow / ours:.0f}", flush=True)


def conic(side: int, samples: int, part: float, solver: str, options: dict[str, float]) -> None:
    """Print one line about a solver of cvxpy; its accuracy is that of its objective against the certified optimum."""
    case = Case(*natural_images(samples, (side, side)), part)
    (ours,), best = interleaved([case.fit], 3), case.fit(1e-9)
    theirs, value = programme(case, solver, **options)
    error = abs(value / best.objective - 1)
    print(
        f"{side:3d}² N={samples:<5d} decay {part:<6g} {solver}: {theirs:.2f} s, objective within {error:.0e}, ratio {theirs / ours:.0f}",
        flush=True,
    )


def growth(samples: list[int]) -> None:
    """Print how the time grows with N, C, K and the grid, from C = 3, K = 10, 16², N = 500 and decay .01."""
    base = {"N": 500, "C": 3, "K": 10, "side": 16}
    for name, values in {"N": samples, "C": [1, 2, 3], "K": [2, 5, 10], "side": [8, 16, 32]}.items():
        cells = []
        for value in values:
            size = {**base, name: value}
            x, y = natural_images(size["N"], (size["side"], size["side"]), torch.float32 if size["N"] > 10**4 else torch.float64)
            case = Case(x[:, : size["C"]].contiguous(), y[:, : size["K"]].contiguous(), 0.01)
            cells.append(f"{value}: {seconds(case.fit):.3f} s")
        print(f"growth with {name}: {', '.join(cells)}", flush=True)


def main(full: bool) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for part in (0.3, 0.1, 0.03, 0.01):
            compare(32, 500, part, 3)
        for part in (0.3, 0.1, 0.03, 0.01, 0.003):
            compare(32, 500, part, 3, loss="cross-entropy")
        compare(8, 100, 0.01, 5, pixels=True)
        compare(16, 200, 0.01, 5)
        accurate = {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 10**5}
        for side, samples in [(8, 100), (16, 200), *([(32, 500)] if full else [])]:
            conic(side, samples, 0.03, "SCS", accurate)
        for side, samples in [(8, 100), (16, 200)]:
            conic(side, samples, 0.03, "CLARABEL", {})
        growth([250, 500, 1000, 2000, 10_000, *([50_000] if full else [])])


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
