"""Representation cost at depth 2 with restricted kernels: this project against the semidefinite programme in cvxpy.

    python -m benchmarks.restricted [seconds]

The peer minimises 2‖Z‖_* over the (taps·C) × (K·D) matrices Z that compute the predictor, as `linconv.witnesses` states it,
by SCS and by Clarabel at their default tolerances, compilation by cvxpy included. Seconds are the processor's; run with
OMP_NUM_THREADS=1 for one thread each. Each solve runs in a process of its own, which is stopped after `seconds`; a solver that was
stopped gets no larger programmes.  "Rows" are taps·C, "width" is the project's proved bracket over its lower bound, "agreement" the
peer's value over the project's upper bound, minus one.
"""

import sys
import time
from itertools import product
from multiprocessing import TimeoutError as Stopped
from multiprocessing import get_context
from statistics import median

import numpy as np
import torch

from linconv.solvers.restricted import restricted_cost

CASES = [  # grid, taps a side, C, K
    (4, 2, 2, 2),
    (6, 3, 2, 2),
    (8, 3, 3, 4),
    (8, 3, 3, 10),
    (16, 3, 3, 10),
    (8, 3, 16, 10),
    (16, 3, 16, 10),
    (16, 7, 3, 10),
    (16, 5, 16, 10),
]
SOLVERS = ("SCS", "CLARABEL")
ENOUGH_SECONDS = 10.0


def predictor(side: int, channels: int, outputs: int) -> torch.Tensor:
    return torch.randn(outputs, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def peer(case: tuple[int, int, int, int], solver: str) -> tuple[float, float]:
    """Seconds and value of 2 min ‖Z‖_* with Σ_s Z[(s, c), (κ, q + s)] = β[κ, c, q]."""
    import cvxpy as cp  # takes a second to load, which is not the solver's

    side, taps, channels, outputs = case
    beta = predictor(side, channels, outputs).numpy()
    start = time.process_time()
    z = cp.Variable((taps**2 * channels, outputs * side**2))
    columns = np.arange(outputs * side**2).reshape(outputs, side, side)
    shifted = [np.roll(columns, (-i, -j), (1, 2)).ravel() for i, j in product(range(taps), repeat=2)]
    constraints = [cp.sum([z[s * channels + c, at] for s, at in enumerate(shifted)]) == beta[:, c].ravel() for c in range(channels)]
    value = cp.Problem(cp.Minimize(2 * cp.normNuc(z)), constraints).solve(solver=solver)
    return time.process_time() - start, float(value)


def project(case: tuple[int, int, int, int], repeats: int = 3) -> tuple[float, float, float]:
    """Seconds (median), relative width of the bracket and its upper end."""
    side, taps, channels, outputs = case
    beta, times = predictor(side, channels, outputs), []
    for _ in range(repeats):
        start = time.process_time()
        bounds = restricted_cost(beta, 2, (taps, taps), None)
        times.append(time.process_time() - start)
        if sum(times) > ENOUGH_SECONDS:
            break
    return median(times), bounds.upper / bounds.lower - 1, bounds.upper


def limited(case: tuple[int, int, int, int], solver: str, limit: float) -> tuple[float, float] | None:
    """`peer` in a process that is stopped after `limit` seconds; `None` then."""
    with get_context("spawn").Pool(1) as pool:
        pool.apply(peer, ((2, 1, 1, 1), solver))  # loads the modules
        try:
            return pool.apply_async(peer, (case, solver)).get(limit)
        except Stopped:
            return None


def main(limit: float = 20.0) -> None:
    torch.set_num_threads(1)
    print(f"one repeat of the peer, at most {limit:g} s; median of up to 3 of the project; ratio peer : project")
    practical = set(SOLVERS)
    for case in CASES:
        side, taps, channels, outputs = case
        rows = taps**2 * channels
        seconds, width, upper = project(case)
        line = f"{side:2d}² {taps}×{taps} C={channels:<2d} K={outputs:<2d} {rows:3d} rows  project {seconds:7.3f} s width {width:.0e}"
        for solver in SOLVERS:
            found = limited(case, solver, limit) if solver in practical else None
            if found is None:
                practical.discard(solver)
                line += f"   {solver} –"
            else:
                line += f"   {solver} {found[0]:6.2f} s ratio {found[0] / seconds:6.1f} agreement {found[1] / upper - 1:+.0e}"
        print(line, flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
