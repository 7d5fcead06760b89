"""The figure of `relative_stability`: R in the course of training, test error against √R with the published line, R by layer, D and G."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from verification._stability_presets import Architecture

COLOURS, MARKS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, GREY), "os^Dv"
PUBLISHED = 0.2

Groups = dict[Architecture, list[dict[str, Any]]]
Look = dict[str, str]


def figure(trained: Groups, shuffled: Groups, title: str) -> Figure:
    drawing = Figure(figsize=(11, 6.6), layout="constrained")
    axes = drawing.subplots(2, 2)
    looks = looks_of(list(trained | shuffled))
    styles = [(groups, style, suffix) for groups, style, suffix in ((trained, "-", ""), (shuffled, ":", ", shuffled labels")) if groups]
    for groups, style, suffix in styles:
        for architecture, group in groups.items():
            look = looks[architecture]
            _course(axes[0, 0], group, "R", style, look, architecture.label + suffix)
            _layers(axes[1, 0], group, style, look)
            if not suffix:
                _course(axes[1, 1], group, "D", "-", look, None)
                _course(axes[1, 1], group, "G", "--", look, None)
    _errors(axes[0, 1], trained, shuffled, looks)
    axes[0, 0].axhline(1, color=GREY, lw=0.8)
    axes[1, 0].axhline(1, color=GREY, lw=0.8)
    axes[0, 0].set(xscale="symlog", yscale="log", xlabel="epochs", ylabel="relative stability R", title="in training")
    axes[1, 0].set(yscale="log", xlabel="layer, from the first activation to the output", ylabel="R", title="trained, by layer")
    axes[1, 1].set(xscale="symlog", yscale="log", xlabel="epochs", ylabel="D (lines) and G (dashed)", title="deformations and noise")
    epochs = next(iter((trained | shuffled).values()))[0]["result"]["epochs"]
    for place in (axes[0, 0], axes[1, 1]):
        place.set_xticks(epochs, [f"{epoch:g}" for epoch in epochs])
        place.tick_params(axis="x", which="minor", length=0)
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    drawing.suptitle(title, fontsize=10)
    return drawing


def looks_of(architectures: list[Architecture]) -> dict[Architecture, Look]:
    """A colour for each family, and a mark for each of its members."""
    families = list(dict.fromkeys(architecture.family for architecture in architectures))
    looks = {}
    for i, family in enumerate(families):
        for j, architecture in enumerate(a for a in architectures if a.family == family):
            looks[architecture] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[j % len(MARKS)]}
    return looks


def _geometric(group: list[dict[str, Any]], key: str) -> np.ndarray:
    """Geometric mean over runs."""
    return np.asarray(np.exp(np.mean([np.log(record["result"][key]) for record in group], axis=0)))


def _course(axes: Any, group: list[dict[str, Any]], key: str, style: str, look: Look, label: str | None) -> None:
    axes.plot(group[0]["result"]["epochs"], _geometric(group, key), style, ms=3, lw=1, label=label, **look)


def _layers(axes: Any, group: list[dict[str, Any]], style: str, look: Look) -> None:
    after = np.exp(np.mean([np.log(record["result"]["layers"][1]) for record in group], axis=0))
    axes.plot(np.linspace(0, 1, len(after)), after, style, ms=3, lw=1, **look)


def _errors(axes: Any, trained: Groups, shuffled: Groups, looks: dict[Architecture, Look]) -> None:
    roots = []
    for groups, change in ((trained, {}), (shuffled, {"marker": "x"})):
        for architecture, group in groups.items():
            root = [record["result"]["R"][-1] ** 0.5 for record in group]
            look = looks[architecture] | change
            axes.plot(root, [1 - record["result"]["test_accuracy"] for record in group], ls="", ms=5, **look)
            roots += root
    line = np.geomspace(min(roots) / 1.5, max(roots) * 1.5, 50)
    axes.plot(line, PUBLISHED * line, "--", color=GREY, label="published, 0.2 √R")
    axes.set(xscale="log", yscale="log", xlabel="√R after training", ylabel="test error", title="errors (crosses: shuffled labels)")
    axes.legend(fontsize=7)
