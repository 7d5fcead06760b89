"""(c) of the claim on shrinkage: sparsity over frequencies, and how it grows with depth and with weight decay."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

import linconv as lc
from linconv.claims import Check, Note, Progress, agree, at_most, control, exceeds, predicted_failure
from linconv.statistics import mean_interval, trend
from verification._shrinkage_law import ALIVE, Sample, blocks_of, critical, needed, proofs, unit


def whitened_checks(sample: Sample, depths: tuple[int, ...], decays: tuple[float, ...]) -> Iterator[Check]:
    """(c) The theorem for constant s: with depth fewer survive, at the same fraction of the critical decay and at the same error."""
    shares, deep = np.linspace(0.05, 0.95, 19), [depth for depth in depths if depth >= 2]
    alive = {}
    for depth in deep:
        found = lc.fit_path(sample.x, sample.y, depth=depth, weight_decays=[f * unit(sample, depth) for f in decays])
        blocks = np.stack([blocks_of(solution.predictor, sample.s) for solution in found])
        alive[depth] = (np.linalg.norm(blocks, axis=(-2, -1)) > ALIVE * np.abs(blocks).max()).astype(float)
    for low, high in pairwise(deep):
        label = f"(c) whitened, depth {high} after {low}:"
        yield at_most(f"{label} survivors at the same fraction are among them", alive[high], alive[low])
        if (alive[high] != alive[low]).any():
            yield control(f"{label} the reverse", at_most("", alive[low], alive[high]))
        counts = [[needed(sample, depth, float(share)) for share in shares] for depth in (low, high)]
        yield at_most(f"{label} frequencies needed for the same error", counts[1], counts[0])


def counterexample_checks() -> Iterator[Check]:
    """(c) Two frequencies, s = 1 and 1/16, m = 1 and 8: at ¾ of the decay that kills all, depths 2, 3, 4 keep one, both, the other."""
    s, m = np.array([1.0, 0.25, 0.0625, 0.25]), np.array([1.0, 0.0, 8.0, 0.0])
    sites = np.arange(4)
    circulant = np.fft.ifft(np.sqrt(s)).real[(sites[:, None] - sites) % 4]
    x = torch.from_numpy(2 * circulant)[:, None]
    y = x.flatten(1) @ torch.from_numpy(np.fft.ifft(m).real)[:, None]
    alive = []
    for depth in (2, 3, 4):
        decay = 0.75 * float(critical(m, s, depth).max())
        values = lc.FrequencyBlocks.from_predictor(lc.fit(x, y, depth=depth, weight_decay=decay).predictor).values
        alive.append((values.abs().flatten() > ALIVE).int().tolist())
    expected = [[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]]
    yield agree("(c) s not constant: survivors at the same fraction, depths 2, 3, 4", alive, expected)
    nested = at_most("", [sum(row) for row in alive[1:]], [sum(row) for row in alive[:-1]])
    yield predicted_failure("(c) s not constant: survivors at the same fraction need not fall with depth", nested)


def trend_checks(
    kind: str, counts: np.ndarray, fewest: np.ndarray, depths: tuple[int, ...], decays: tuple[float, ...], generator: torch.Generator
) -> Iterator[Check | Note]:
    """(c) Over draws of images: survivors fall with the decay at each depth, and with depth at the same share of the explained variance."""
    deep = [depth for depth in depths if depth >= 2]
    below = counts[:, [depths.index(depth) for depth in deep]]
    for i, depth in enumerate(deep):
        name = f"(c) {kind}, depth {depth}: survivors lost from {decays[0]} to {decays[-1]} of the critical decay"
        yield from falls(name, below[:, i], np.log10(decays), generator)
    name = f"(c) {kind}: frequencies that depth {deep[-1]} needs less than depth {deep[0]}, mean over shares explained from 10 to 90 %"
    yield from falls(name, fewest.mean(2), np.array(deep, dtype=float), generator)
    gains = torch.from_numpy(below[:, -1].mean(1) - below[:, 0].mean(1))
    gained = mean_interval(gains)
    says = f"{gained.estimate:+.2f} at depth {deep[-1]} against {deep[0]}, 95 % interval {gained.low:+.2f} to {gained.high:+.2f}"
    yield Note(f"{kind}: survivors at the same fractions of the critical decay, where no theorem decides: {says}")


def certified_trend(drawn: list[Sample], decays: tuple[float, ...], generator: torch.Generator) -> Iterator[Check | Progress]:
    """(c) The same of images as they are at depth 2, by certified fits."""
    yield Progress(f"optima of {drawn[0].kind} images")
    counts = []
    for sample in drawn:
        chosen = [f * unit(sample, 2) for f in decays]
        found = lc.fit_path(sample.x, sample.y, depth=2, weight_decays=chosen, tol=1e-12)
        counts.append([int(proofs(sample, solution, decay)[0].sum()) for solution, decay in zip(found, chosen, strict=True)])
    name = f"(c) {drawn[0].kind} as they are, depth 2: survivors lost from {decays[0]} to {decays[-1]} of the critical decay"
    yield from falls(name, np.array(counts), np.log10(decays), generator)


def falls(name: str, counts: np.ndarray, levels: np.ndarray, generator: torch.Generator) -> Iterator[Check]:
    """Counts by draw and level: what is lost from the first level to the last, its interval over draws, the p-value of the trend."""
    columns = [torch.from_numpy(column.astype(float)) for column in counts.T]
    found = trend(columns, levels.tolist(), generator=generator, alternative="less")
    lost = columns[0] - columns[-1]
    check = exceeds(name, mean_interval(lost), 0, p_value=found.p_value, draws=len(lost))
    yield check
    if check.passed:  # an interval that straddles 0 cannot refute the opposite either
        yield control(f"{name}: with the opposite sign", exceeds("", mean_interval(-lost), 0))
