"""The figure of `lazy_feature`: learning curves, rotations, rough fields, finite width, and what images add."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.plotting import BLUE, GREEN, GREY, ORANGE
from verification._lazy_feature_runs import Between, Limits

SIDES = {"lazy": BLUE, "feature": ORANGE}


def figure(
    table: list[list[Limits]],
    sizes: list[int],
    fields: dict[int, Float[Tensor, "draws sizes"]],
    field_sizes: dict[int, tuple[int, ...]],
    middle: list[Between],
    widths: tuple[int, ...],
    scales: tuple[float, ...],
    found: list[dict[str, float]],
    dim: int,
) -> Figure:
    drawing = Figure(figsize=(11, 6.2), layout="constrained")
    axes = drawing.subplots(2, 3)
    _limits(axes[0, 0], table, sizes, "error", f"test error, y = 1, d = {dim}")
    _limits(axes[0, 1], table, sizes, "stability", "rotation stability S")
    _fields(axes[0, 2], fields, field_sizes)
    _rates(axes[1, 0], middle, widths, scales)
    _between(axes[1, 1], middle)
    _images(axes[1, 2], found)
    return drawing


def _limits(axes: Any, table: list[list[Limits]], sizes: list[int], what: str, label: str) -> None:
    for side, colour in SIDES.items():
        for i, row in enumerate(table):
            values = [getattr(entry, f"{side}_{what}") for entry in row]
            axes.plot(sizes, values, "o-", color=colour, ms=3, lw=0.8, label=side if i == 0 else None)
    _log(axes, "training points P", label)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)


def _fields(axes: Any, fields: dict[int, Tensor], sizes: dict[int, tuple[int, ...]]) -> None:
    for (d, errors), colour in zip(fields.items(), (GREEN, BLUE, ORANGE), strict=True):
        p, mean = np.array(sizes[d]), errors.mean(0).numpy()
        axes.plot(p, mean, "o", color=colour, ms=4, label=f"d = {d}")
        axes.plot(p, mean[-1] * (p / p[-1]) ** (-1 / (d - 1)), ":", color=colour, label=f"$P^{{-1/{d - 1}}}$" if d > 2 else "$P^{-1}$")
    _log(axes, "training points P", "expected error, field as rough as Θ")
    shown = sorted({size for points in sizes.values() for size in points})
    axes.set_xticks(shown, [str(size) for size in shown])
    axes.set_xticks([], minor=True)


def _rates(axes: Any, middle: list[Between], widths: tuple[int, ...], scales: tuple[float, ...]) -> None:
    for i, run in enumerate(middle):
        axes.plot(widths, run.widths.numpy(), "o-", color=GREEN, ms=3, lw=0.8, label="own kernel to Θ, by width" if i == 0 else None)
        axes.plot(scales, run.scales.numpy(), "s-", color=BLUE, ms=3, lw=0.8, label="trained to own kernel, by scale" if i == 0 else None)
    _log(axes, "width H, or scale s", "distance of functions")


def _between(axes: Any, middle: list[Between]) -> None:
    for place, (name, colour) in enumerate((("small start", GREY), ("and weight decay", ORANGE))):
        for i, run in enumerate(middle):
            axes.plot(run.to_lazy[place], run.to_feature[place], "o", color=colour, ms=5, label=name if i == 0 else None)
    axes.set(xlabel="distance to the lazy limit", ylabel="distance to the feature limit", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=7)


def _images(axes: Any, found: list[dict[str, float]]) -> None:
    for place, (side, colour) in enumerate(SIDES.items()):
        for i, run in enumerate(found):
            values = [run[f"{side} R at the start"], run[f"{side} R"]]
            axes.plot([3 * place, 3 * place + 1], values, "o-", color=colour, ms=4, lw=0.8, label=side if i == 0 else None)
    axes.set_xticks([0, 1, 3, 4], ["start", "trained"] * 2, fontsize=8)
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set(ylabel="relative stability R, images")
    axes.legend(fontsize=7)


def _log(axes: Any, x: str, y: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.legend(fontsize=7)
