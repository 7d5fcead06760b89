"""The figure of `frequency_sensitivity`: curves of networks beside the spectra of their data, and distances by depth and decay."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from verification._sensitivity_runs import select

KINDS = {False: ("natural", BLUE), True: ("high-pass", ORANGE)}
FLOOR = 1e-4  # of densities shown: what a filter removed is rounding
SHADES = (SKY, GREEN, PURPLE, RED, BLACK)


def figure(records: list[dict[str, Any]], spectra: Float[Tensor, "2 R"], radii: Float[Tensor, " R"], title: str) -> Figure:
    drawing = Figure(figsize=(11, 6.2), layout="constrained")
    axes = drawing.subplots(2, 3)
    conv = select(records, family="conv", labels="true")
    least = min(record["parameters"]["decay"] for record in conv)
    middle = sorted({r["parameters"]["depth"] for r in conv if r["parameters"]["decay"] != least} or {conv[0]["parameters"]["depth"]})[0]
    for place, (high, (name, colour)) in zip(axes[:, 0], KINDS.items(), strict=True):
        _curves(place, [r for r in conv if r["parameters"]["decay"] == least and r["parameters"]["high"] == high], "depth", radii)
        _spectrum(place, spectra[int(high)], radii, colour)
        place.set_title(f"{name} images, by depth", fontsize=9)
    for place, (high, (name, colour)) in zip(axes[:, 1], KINDS.items(), strict=True):
        _curves(place, [r for r in conv if r["parameters"]["depth"] == middle and r["parameters"]["high"] == high], "decay", radii)
        _spectrum(place, spectra[int(high)], radii, colour)
        place.set_title(f"{name} images, depth {middle}, by weight decay", fontsize=9)
    _distances(axes[0, 2], [r for r in conv if r["parameters"]["decay"] == least], "depth", spectra, radii)
    _distances(axes[1, 2], [r for r in conv if r["parameters"]["depth"] == middle], "decay", spectra, radii)
    drawing.suptitle(title, fontsize=10)
    return drawing


def _density(curves: Tensor, radii: Tensor) -> np.ndarray:
    """Curves divided by their integrals."""
    return (curves / torch.trapezoid(curves, radii)[..., None]).numpy()


def _mean_curve(record: dict[str, Any], when: str = "after") -> Tensor:
    return torch.tensor(record["result"][when], dtype=torch.float64).mean(0)


def _curves(axes: Any, records: list[dict[str, Any]], parameter: str, radii: Tensor) -> None:
    levels = sorted({record["parameters"][parameter] for record in records})
    for level, colour in zip(levels, SHADES, strict=False):
        chosen = [r for r in records if r["parameters"][parameter] == level]
        several = _density(torch.stack([_mean_curve(r) for r in chosen]), radii)
        axes.plot(radii.numpy(), several.T, color=colour, lw=0.8)
        axes.plot([], color=colour, label=f"{parameter} {level:g}")
    untrained = _density(torch.stack([_mean_curve(r, "before") for r in records]).mean(0), radii)
    axes.plot(radii.numpy(), untrained, ":", color=GREY, label="untrained")


def _spectrum(axes: Any, shares: Tensor, radii: Tensor, colour: str) -> None:
    weights = torch.cat([radii.diff(), radii.new_zeros(1)]) + torch.cat([radii.new_zeros(1), radii.diff()])
    axes.plot(radii.numpy(), (2 * shares / weights).numpy(), "--", color=colour, lw=1.6, label="data")
    axes.set(yscale="log", ylim=(FLOOR, None), xlabel="|u| (cycles per image)", ylabel="density of sensitivity")
    axes.legend(fontsize=7)


def _distances(axes: Any, records: list[dict[str, Any]], parameter: str, spectra: Tensor, radii: Tensor) -> None:
    for high, (name, colour) in KINDS.items():
        chosen = [r for r in records if r["parameters"]["high"] == high]
        density = _density(torch.stack([_mean_curve(r) for r in chosen]), radii)
        weights = (torch.cat([radii.diff(), radii.new_zeros(1)]) + torch.cat([radii.new_zeros(1), radii.diff()])).numpy() / 2
        for other, style in ((high, "o"), (not high, "x")):
            d = np.abs(density * weights - spectra[int(other)].numpy()).sum(-1) / 2
            levels = [r["parameters"][parameter] for r in chosen]
            axes.plot(levels, d, style, mfc="none", color=colour, label=f"{name}, to {'its own' if other == high else 'the other'}")
    axes.set(xscale="log", xlabel="depth" if parameter == "depth" else "weight decay", ylabel="total variation d", ylim=(0, 1))
    if parameter == "depth":
        depths = sorted({r["parameters"]["depth"] for r in records})
        axes.set_xticks(depths, [str(depth) for depth in depths], minor=False)
        axes.set_xticks([], minor=True)
    axes.legend(fontsize=7)
