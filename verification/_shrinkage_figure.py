"""The figure of the claim on shrinkage."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from linconv.solvers import Solution
from verification._networks import Run
from verification._shrinkage_law import SHARES, Sample, blocks_of, law

COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, RED, SKY)  # of depth 1, and of the others in turn


@dataclass(frozen=True)
class Curve:
    """One depth on one sample: the decay, the optimum that `fit` found, a trained network."""

    sample: Sample
    depth: int
    decay: float
    optimum: Solution
    trained: Run


def figure(curves: list[Curve], tables: dict[str, tuple[np.ndarray, np.ndarray]], decays: tuple[float, ...], title: str) -> Figure:
    """A row for each kind of images: shrinkage factors, survivors by decay, and frequencies needed for what is explained."""
    shown = Figure(figsize=(12.5, 3.4 * len(tables)), layout="constrained")
    for row, (kind, (counts, fewest)) in zip(shown.subplots(len(tables), 3, squeeze=False), tables.items(), strict=True):
        ours = [curve for curve in curves if curve.sample.kind == kind]
        depths, present = [curve.depth for curve in ours], int((ours[0].sample.s > 0).sum())
        _factors(row[0], ours)
        _bands(row[1], np.array(decays), counts, depths)
        _bands(row[2], 100 * SHARES, fewest, [depth for depth in depths if depth >= 2])
        row[0].set(title=f"{kind} images: shrinkage", xlabel="power of the data, $s_u$")
        row[1].set(title="survivors by weight decay", xscale="log", xlabel="weight decay over the least that kills all")
        row[2].set(title="survivors by fit", xlabel="% of the variance that least squares explains")
        for axes in row[1:]:
            axes.axhline(present, color=BLACK, lw=0.7, ls=":")
            axes.set(ylabel="surviving frequencies", ylim=(0, 1.06 * present))
    shown.suptitle(title, fontsize=10)
    return shown


def _factors(axes: Any, curves: list[Curve]) -> None:
    """The largest component of each frequency over that of least squares: the law, the optimum and the network on top of each other."""
    colours = COLOURS[1:] if curves[0].depth > 1 else COLOURS
    for colour, curve in zip(colours, curves, strict=False):
        sample, alive = curve.sample, curve.sample.s > 0
        s, m = sample.s[alive], sample.m[alive, 0]
        axes.plot(s, law(sample.m, sample.s, curve.decay, curve.depth)[alive, 0] / m, "_", color=colour, ms=11, mew=1.4)
        for beta, marker, size in ((curve.optimum.predictor, "o", 6), (curve.trained.predictor, "x", 4)):
            norms = np.linalg.norm(blocks_of(beta, sample.s), 2, axis=(-2, -1))[alive] * math.sqrt(len(alive))
            axes.plot(s, norms / (np.sqrt(s) * m), marker, color=colour, ms=size, mfc="none", mew=0.8)
    powers = np.geomspace(s.min(), s.max(), 200)
    if curves[0].depth == 1:
        axes.plot(powers, powers / (powers + 2 * curves[0].decay), color=COLOURS[0], lw=0.8)
    for marker, name in (("_", "law"), ("o", "optimum"), ("x", "trained")):
        axes.plot([], [], marker, color=BLACK, mfc="none", label=name)
    axes.set(xscale="log", ylabel="factor $t/m$ of the largest component", ylim=(-0.05, 1.05))
    axes.legend(fontsize=7, loc="lower right")


def _bands(axes: Any, places: np.ndarray, counts: np.ndarray, depths: list[int]) -> None:
    """Means over draws with their range; deeper networks over shallower ones, in the colours of the first panel."""
    colours = COLOURS[1:] if depths[0] > 1 else COLOURS
    for i, (colour, depth) in enumerate(zip(colours, depths, strict=False)):
        axes.plot(places, counts[:, i].mean(0), "-o", color=colour, ms=4, label=f"depth {depth}")
        axes.fill_between(places, counts[:, i].min(0), counts[:, i].max(0), color=colour, alpha=0.2, lw=0)
    axes.legend(fontsize=7)
