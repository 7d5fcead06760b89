"""The figure of `filter_pooling`: energies in training, overlaps, the least D by layer, shuffled channels; and the same for images."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from linconv.pooling_stability import constant_filter_deformation_stability
from verification._stable_filters import least_stability

SHADES = (BLUE, SKY, GREEN, ORANGE, RED, PURPLE)


def figure(pixels: list[dict[str, Any]], pictures: list[dict[str, Any]], planes: list[dict[str, Any]], title: str) -> Figure:
    drawing = Figure(figsize=(14, 6.2), layout="constrained")
    axes = drawing.subplots(2, 4)
    base = pixels[0]["result"]
    _energies(axes[0, 0], base)
    _overlaps(axes[0, 1], pixels)
    _least(axes[0, 2], pixels[0]["parameters"]["depth"])
    _shuffled_pixels(axes[1, 0], base)
    kept = [record["result"] for record in pictures if not record["result"]["diverged"]]
    _image_energies(axes[1, 1], kept)
    _image_stability(axes[1, 2], kept)
    trained = [record for record in planes if not record["result"]["diverged"]]
    _plane_layers(axes[0, 3], [record["result"] for record in trained])
    _plane_errors(axes[1, 3], trained)
    for place in axes.flat[1:3]:
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.suptitle(title, fontsize=9)
    return drawing


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _layers(count: int) -> np.ndarray:
    return np.arange(1, count + 1)


def _energies(axes: Any, result: dict[str, Any]) -> None:
    """c_t/c_0 of the first and of the last layer, geometric mean over seeds."""
    grown = (_tensor(result["energies"]) / _tensor(result["energies"])[0]).log().mean(1).exp()
    times = np.maximum(result["times"], 0.5)
    for layer, style in ((0, ":"), (-1, "-")):
        for index, (value, colour) in enumerate(zip((0, 1, 3), SHADES, strict=False)):
            label = f"λ = {value}, {'first' if layer == 0 else 'last'} layer"
            axes.plot(times, grown[:, layer, index].numpy(), style, color=colour, label=label)
    axes.set(xscale="log", xlabel="step (at the left end: 0)", ylabel="$c_t / c_0$", title="two pixels: energy of filters")
    axes.legend(fontsize=6, loc="upper left")


def _overlaps(axes: Any, records: list[dict[str, Any]]) -> None:
    names = {"low": ("[1, 1, 1]", BLUE), "high": ("single taps", ORANGE)}
    for record, style in ((records[0], "o-"), (next(r for r in records if r["parameters"]["labels"] == "shuffled"), "x:")):
        for kind, (name, colour) in names.items():
            after = _tensor(record["result"]["overlaps"][kind]["after"]).mean(0)
            labels = "" if style == "o-" else ", shuffled labels"
            axes.plot(_layers(len(after)), after.numpy(), style, color=colour, label=name + labels)
    for kind, (_, colour) in names.items():
        before = _tensor(records[0]["result"]["overlaps"][kind]["before"]).mean(0)
        axes.plot(_layers(len(before)), before.numpy(), "--", color=colour, alpha=0.5, label="untrained")
    axes.set(xlabel="layer", ylabel="overlap with filters of", ylim=(0, 1.3), title="two pixels: which solution")
    axes.legend(fontsize=5, ncols=2, loc="upper left")


def _least(axes: Any, depth: int) -> None:
    layers = _layers(depth)
    axes.plot(layers, [float(constant_filter_deformation_stability(int(k))) for k in layers], "o-", color=GREY, label="[1, 1, 1]")
    axes.plot(layers, [least_stability(int(k), "linear")[0] for k in layers], "s-", color=BLUE, label="least, linear")
    axes.plot(layers, [least_stability(int(k), "any")[0] for k in layers], "k_", ms=12, label="least, any network")
    axes.set(xlabel="layer", ylabel="D", yscale="log", title="two pixels: the least D")
    axes.legend(fontsize=6, loc="upper right")


def _shuffled_pixels(axes: Any, result: dict[str, Any]) -> None:
    """Medians over seeds, since one silent layer is infinite."""
    for name, colour in (("D", BLUE), ("R", ORANGE)):
        for when, style in (("before", ":"), ("after", "o-")):
            values = _tensor(result[when][f"shuffled_{name}"]).nanmedian(0).values.exp()
            label = f"{name}, {'trained' if when == 'after' else 'untrained'}"
            axes.plot(_layers(len(values)), values.numpy(), style, color=colour, label=label)
    axes.axhline(1, color=GREY, lw=0.6)
    ticks = [*map(str, _layers(len(result["after"]["D"][0]) - 1)), "out"]
    axes.set_xticks(_layers(len(ticks)), ticks)
    axes.set(xlabel="layer", ylabel="shuffled / own", yscale="log", title="two pixels: shuffled channels")
    axes.legend(fontsize=6, loc="lower left")


def _image_energies(axes: Any, results: list[dict[str, Any]]) -> None:
    grown = torch.stack([_tensor(r["energies_after"]) / _tensor(r["energies_before"]) for r in results]).log().mean(0).exp()
    for index, (value, colour) in enumerate(zip((0, 1, 2, 3, 4, 6), SHADES, strict=True)):
        axes.plot(_layers(len(grown)), grown[:, index].numpy(), "o-", ms=3, color=colour, label=f"λ = {value}")
    axes.set(xlabel="layer", ylabel="$c_t / c_0$", yscale="log", title="images: energy of filters")
    axes.legend(fontsize=6, loc="upper right")


def _image_stability(axes: Any, results: list[dict[str, Any]]) -> None:
    for when, style in (("before", ":"), ("after", "o-")):
        own = torch.stack([_tensor(r[f"log_R_{when}"]) for r in results]).mean(0).exp()
        shuffled = torch.stack([_tensor(r[f"shuffled_log_R_{when}"]).mean(0) for r in results]).mean(0).exp()
        name = "trained" if when == "after" else "untrained"
        axes.plot(_layers(len(own)), own.numpy(), style, color=BLACK, label=name)
        axes.plot(_layers(len(own)), shuffled.numpy(), style, color=RED, label=f"{name}, channels shuffled")
    axes.set(xlabel="layer", ylabel="R", yscale="log", title="images: relative stability")
    axes.legend(fontsize=6, loc="upper right")


def _plane_layers(axes: Any, results: list[dict[str, Any]]) -> None:
    """D, G and R by layer and of the output, geometric means over runs; R of shuffled copies."""
    for when, style in (("before", ":"), ("after", "o-")):
        found = {key: torch.stack([_tensor(r[when]["stay"][key]) for r in results]).mean(0) for key in ("D", "G", "R", "shuffled_R")}
        found["R, channels shuffled"] = found["R"] + found.pop("shuffled_R")
        for (name, values), colour in zip(found.items(), (BLUE, GREEN, BLACK, RED), strict=True):
            label = f"{name}, {'trained' if when == 'after' else 'untrained'}"
            axes.plot(_layers(len(values)), values.exp().numpy(), style, ms=3, color=colour, label=label)
    ticks = [*map(str, _layers(len(values) - 1)), "out"]
    axes.set_xticks(_layers(len(ticks)), ticks)
    axes.set(xlabel="layer", yscale="log", title="28×28: stability")
    axes.set_ylim(top=30 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=5, ncols=2, loc="upper left")


def _plane_errors(axes: Any, records: list[dict[str, Any]]) -> None:
    sizes = sorted({record["parameters"]["samples"] for record in records})
    for size, colour in zip(sizes, (*SHADES, BLACK, GREY), strict=False):
        some = [record["result"] for record in records if record["parameters"]["samples"] == size]
        for part, mark in (("stay", "o"), ("step", "x")):
            r = [np.exp(result["after"][part]["R"][-1]) for result in some]
            label = f"{size} images" if part == "stay" else ""
            axes.plot(r, [1 - result["test_accuracy"] for result in some], mark, color=colour, label=label)
    axes.set(xscale="log", xlabel="R of the output (×: moves ±1 only)", ylabel="test error", title="28×28: error and stability")
    axes.legend(fontsize=6, loc="lower right")
