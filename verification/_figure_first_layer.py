"""The figure of `first_layer_consistency`: profiles, their table beside the published one, growth, frequencies, responses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from linconv.profile_fits import ProfileFit
from linconv.statistics import Interval

GROUPS = {
    "base": ("VGG-11", BLACK),
    "width": ("wider", BLUE),
    "architecture": ("ResNet-20", GREEN),
    "few": ("few images", PURPLE),
    "labels": ("few, random labels", ORANGE),
}
ROWS = {"seed": "seeds", "width": "widths", "architecture": "VGG – ResNet", "labels": "true – random", "start": "trained – start"}


def figure(
    results: dict[str, list[dict[str, Any]]],
    profiles: dict[str, dict[str, Float[Tensor, "runs P"]]],
    rows: dict[str, dict[str, Interval]],
    fits: dict[str, list[ProfileFit]],
    frequencies: tuple[Float[Tensor, " P"], Float[Tensor, " P"]],
    published: Mapping[str, tuple[str, ...]],
    title: str,
) -> Figure:
    drawing = Figure(figsize=(11, 6.4), layout="constrained")
    axes = drawing.subplots(2, 3)
    for place, (kind, label) in zip(axes[0, :2], {"change": "W − W₀", "trained": "W"}.items(), strict=True):
        _profiles(place, profiles, kind, label, fits[kind])
    _table(axes[0, 2], rows, published, fits)
    _growth(axes[1, 0], results)
    _frequencies(axes[1, 1], profiles["base"]["change"], *frequencies)
    _responses(axes[1, 2], results["base"])
    drawing.suptitle(title, fontsize=10)
    return drawing


def _profiles(axes: Any, profiles: dict[str, dict[str, Tensor]], kind: str, label: str, fits: list[ProfileFit]) -> None:
    for group, (name, colour) in GROUPS.items():
        for i, profile in enumerate(profiles[group][kind]):
            ranks = np.arange(1, len(profile) + 1)
            axes.plot(ranks, (profile / profile.max()).numpy(), color=colour, lw=0.9, label=name if i == 0 else None)
    for i, fit in enumerate(fits[:1]):
        scaled = (fit.profile / fit.profile.max()).numpy()
        axes.plot(np.arange(1, len(scaled) + 1), scaled, ":", color=RED, label="published formula, best t" if i == 0 else None)
    axes.set(xlabel="component, by descending λ", ylabel="energy / largest", title=label)
    axes.legend(fontsize=7)


def _table(
    axes: Any, rows: dict[str, dict[str, Interval]], published: Mapping[str, tuple[str, ...]], fits: dict[str, list[ProfileFit]]
) -> None:
    axes.axis("off")
    cells = [
        [title, *(f"{float(rows[kind][name].estimate):.2f}" for kind in ("change", "trained")), *published[name]]
        for name, title in ROWS.items()
    ]
    best = [f"{np.mean([fit.correlation for fit in fits[kind]]):.2f}" for kind in ("change", "trained")]
    cells.append(["formula fit", *best, *published["fit"]])
    names = ["correlation", "W − W₀", "W", "CIFAR-10", "CIFAR-100", "CelebA"]
    table = axes.table(cells, colLabels=names, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(6.5)
    # As wide as the longest text of each column: fixed widths were overrun by the published intervals.
    table.auto_set_column_width(list(range(len(names))))
    table.scale(1, 1.5)
    axes.set_title("ours, and published (VGG-11, W; arXiv 2206.02454)", fontsize=9)


def _growth(axes: Any, results: dict[str, list[dict[str, Any]]]) -> None:
    for group, (name, colour) in GROUPS.items():
        for i, run in enumerate(results[group]):
            met, sizes = zip(*run["growth"], strict=True)
            axes.plot(np.array(met) / 1000, sizes, color=colour, lw=0.9, label=name if i == 0 else None)
    axes.set(xlabel="images met (thousands)", ylabel="‖W − W₀‖ / ‖W₀‖", title="energy grows in training")
    axes.legend(fontsize=7)


def _frequencies(axes: Any, changes: Tensor, mean: Tensor, spread: Tensor) -> None:
    profile = (changes / changes.amax(1, keepdim=True)).mean(0)
    axes.errorbar(mean.numpy(), profile.numpy(), xerr=spread.numpy(), fmt="o", ms=4, color=BLACK, ecolor=GREY, elinewidth=0.7)
    axes.set(
        xlabel="spatial frequency of the component (cycles per pixel)", ylabel="energy / largest", title="W − W₀ by frequency, ± spread"
    )


def _responses(axes: Any, runs: list[dict[str, Any]]) -> None:
    for when, colour in (("before", GREY), ("after", PURPLE)):
        curves = np.array([run["autocorrelation"][when] for run in runs])
        axes.plot(curves.T, color=colour, lw=0.9)
        axes.plot([], color=colour, label=f"{when} training")
    axes.axhline(0, color=BLACK, lw=0.5)
    axes.set(xlabel="distance (pixels)", ylabel="autocorrelation of responses", title="responses of the first layer")
    axes.set_xticks(range(len(runs[0]["autocorrelation"]["before"])))
    axes.legend(fontsize=7)
