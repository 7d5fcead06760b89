"""Proved brackets at depth ≥ 3 on CIFAR-10: the gap at the root, and as branch and bound goes on.

    python -m benchmarks.branch [--seconds S] [--out DIR] [--cases NAME ...] [--full]

Data from `LINCONV_DATA`; images centred, targets one-hot.  The incumbent is the best of two descents from the library, and what
branch and bound finds.  Gaps are relative to F, and to F less the least data term, which is the part that is at stake.  Prints a
table and draws the gap against time (PNG and PDF).  --full adds the root bounds at 32×32.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from linconv.images import center, load
from linconv.solvers.branch import branch_and_bound, descent
from linconv.solvers.monitor import Monitor
from linconv.solvers.orbits import least_squares_point, orbits_of
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.reduction import reduce
from linconv.solvers.relaxation import root_region

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DECAY = 1e-3


@dataclass(frozen=True)
class Case:
    """Grid side, channels, outputs, images, depth."""

    side: int
    channels: int
    outputs: int
    images: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side},C{self.channels},K{self.outputs},N{self.images},L{self.depth}"


CASES = [Case(side, c, k, n, depth) for side in (2, 4, 8) for c, k in ((1, 1), (3, 4)) for n in (100, 1000) for depth in (3, 4, 6)]
ROOT_ONLY = [Case(32, 3, 10, n, 3) for n in (500, 5000)]


def problem_of(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(0)
    images = load("cifar10", samples=case.images, grid=(case.side, case.side), greyscale=case.channels == 1, generator=generator)
    x, y = center(images.images), images.one_hot()[:, : case.outputs].contiguous()
    constant = 0.0
    if len(x) > x[0].numel():
        x, y, constant = reduce(x, y)
    return Problem(x, y, case.depth, DECAY, constant=constant)


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """The brackets of one case with the times at which they were had."""
    problem = problem_of(case)
    orbits = orbits_of(problem)
    least, metric = least_squares_point(orbits), orbits.metric()
    found = [orbits.predictor_blocks(descent(orbits, start, metric)) for start in (least, 0 * least)]
    values = [problem.objective(problem.predictor(blocks)) for blocks in found]
    value, blocks = min(zip(values, found, strict=True), key=lambda pair: pair[0])
    floor = problem.data_term(problem.predictor(orbits.predictor_blocks(least)))
    start = time.process_time()
    _, lower = root_region(problem, value)
    root = time.process_time() - start
    trace = [(root, value - lower)]

    def note(solution: Solution) -> bool:
        trace.append((time.process_time() - start, solution.objective - solution.lower_bound))
        return trace[-1][0] < seconds

    final = Solution(problem.predictor(blocks), value, lower, "root")
    if seconds > 0:
        start = time.process_time()
        final = branch_and_bound(problem, blocks, value, tol=1e-8, max_nodes=10**9, monitor=Monitor(on_progress=note))
        note(final)
    row = {"case": case.name, "F": final.objective, "stake": final.objective - floor, "root gap": value - lower, "root seconds": root}
    return row | {"gap": final.objective - final.lower_bound, "nodes": final.nodes, "seconds": trace[-1][0], "trace": trace}


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/lower-bounds.md."""
    f, stake = row["F"], row["stake"]
    parts = [f"{row[gap] / f:.1e} ({row[gap] / stake:.1e})" for gap in ("root gap", "gap")]
    return f"| {row['case']} | {f:.6f} | {parts[0]} | {row['root seconds']:.1f} | {parts[1]} | {row['nodes']} | {row['seconds']:.1f} |"


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """The gap against time of all cases that branched."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    open_rows = [row for row in rows if len(row["trace"]) > 3]
    for i, row in enumerate(open_rows):
        times, gaps = zip(*row["trace"], strict=True)
        style = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
        relative = [max(gap / row["F"], 1e-12) for gap in gaps]
        axes.step(times, relative, style, where="post", color=COLOURS[i % len(COLOURS)], label=row["case"])
    axes.set(xscale="log", yscale="log", xlabel="seconds on one core", ylabel="proved gap relative to F")
    if open_rows:
        axes.legend(fontsize=6, ncols=2, loc="lower right")
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "pdf"):
        figure.savefig(out / f"branch.{kind}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case; 0: the root only")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--cases", nargs="*", default=None, help="names as in the table, or their beginnings")
    parser.add_argument("--full", action="store_true", help="32×32 too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | F | root gap / F (/ stake) | s | gap / F (/ stake) | nodes | s |\n|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for case in CASES + (ROOT_ONLY if arguments.full else []):
        if arguments.cases is None or any(case.name.startswith(name) for name in arguments.cases):
            rows.append(measure(case, 0.0 if case in ROOT_ONLY else arguments.seconds))
            print(line(rows[-1]), flush=True)
    draw(rows, arguments.out)


if __name__ == "__main__":
    main()
