"""The figure of theorem 4.10: singular values, radial profiles, objectives."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

import linconv as lc
from linconv.solvers import Solution
from verification._networks import Run, spectral_start
from verification._setting import Setting, squared_frequencies

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLACK, ORANGE, BLUE, GREEN, GREY = "#000000", "#E69F00", "#0072B2", "#009E73", "#999999"


def figure(setting: Setting, optimum: Solution, runs: list[Run]) -> Figure:
    """Singular values of every block, trained and predicted; their profile and that of the data; objectives above the optimum."""
    shown = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = shown.subplots(1, 3, width_ratios=(1.15, 1, 1.1))
    _singular_values(left, setting, optimum, runs[0])
    _profiles(middle, setting, optimum, runs[0])
    _objectives(right, optimum, runs)
    shown.suptitle(f"Theorem 4.10 at depth {setting.depth}: {setting.describe()}", fontsize=10)
    return shown


def _singular_values(axes: Any, setting: Setting, optimum: Solution, trained: Run) -> None:
    order = squared_frequencies(setting.grid).flatten().argsort(stable=True)

    def values(beta: Float[Tensor, "K C *grid"]) -> np.ndarray:
        sigma = lc.FrequencyBlocks.from_predictor(beta).singular_values().flatten(0, -2)
        return sigma[order].numpy()

    start = "least squares" if setting.loss == "squared" else "depth 1"
    least = values(lc.frequency_blocks(spectral_start(setting, setting.rank)).predictor().detach())
    predicted, found = values(optimum.predictor), values(trained.predictor)
    places = np.arange(len(order))
    floor = 0.3 * found[found > 1e-6 * found.max()].min() if found.max() > 0 else 1.0
    for i in range(predicted.shape[1]):
        axes.plot(places, least[:, i], "_", color=GREY, label=start if i == 0 else None)
        axes.plot(places, np.maximum(predicted[:, i], floor), "o", mfc="none", color=BLUE, ms=7, label="optimum" if i == 0 else None)
        axes.plot(places, np.maximum(found[:, i], floor), "x", color=ORANGE, ms=5, label="trained" if i == 0 else None)
    axes.axhline(floor, color=GREY, lw=0.6, ls=":")
    axes.text(places[-1], floor * 1.04, "0", ha="right", va="bottom", color=GREY, fontsize=8)
    axes.set(yscale="log", xlabel="frequency, by distance from zero", ylabel="singular values of the block", title="Blocks")
    axes.legend(fontsize=8)


def _profiles(axes: Any, setting: Setting, optimum: Solution, trained: Run) -> None:
    radii, groups = torch.unique(squared_frequencies(setting.grid).sqrt().flatten(), return_inverse=True)
    counts = torch.bincount(groups)

    def profile(map_: Float[Tensor, " D"]) -> Float[Tensor, " R"]:
        mean = torch.zeros(len(radii), dtype=torch.float64).index_add_(0, groups, map_) / counts
        return (mean / mean.sum()).sqrt()

    def energy(beta: Float[Tensor, "K C *grid"]) -> Float[Tensor, " D"]:
        return lc.FrequencyBlocks.from_predictor(beta).values.abs().square().sum((-2, -1)).flatten()

    spatial = tuple(range(2, setting.raw.ndim))
    data = torch.fft.fftn(setting.raw, dim=spatial).abs().square().mean((0, 1)).flatten()
    axes.plot(radii, profile(data), "-s", color=BLACK, ms=4, label="images" if setting.raw is setting.x else "images (before whitening)")
    axes.plot(radii, profile(energy(optimum.predictor)), "o", mfc="none", ms=7, color=BLUE, label="optimum")
    axes.plot(radii, profile(energy(trained.predictor)), "x", ms=5, color=ORANGE, label="trained")
    axes.set(
        xlabel="spatial frequency (cycles per image)", ylabel="root of the share of the energy", title="Radial profiles", ylim=(0, None)
    )
    axes.legend(fontsize=8)


def _objectives(axes: Any, optimum: Solution, runs: list[Run]) -> None:
    gaps = [(found.objective - optimum.objective) / optimum.objective for found in runs]
    rounding = 1e-16
    names = [found.name for found in runs]
    places = np.arange(len(runs))
    axes.barh(places, [max(abs(gap), rounding) for gap in gaps], color=[GREEN if gap < 1e-8 else GREY for gap in gaps], left=0)
    for place, gap in zip(places, gaps, strict=True):
        axes.text(max(abs(gap), rounding) * 2, place, f"{gap:.1e}" if gap else "equal", va="center", fontsize=8)
    axes.set(
        xscale="log",
        xlim=(rounding, max(1e3, 1e4 * max(gaps))),
        yticks=places,
        yticklabels=names,
        title="Objectives",
    )
    axes.set_xlabel("(objective − optimum) / optimum\n(grey: another local minimum)")
    axes.invert_yaxis()
