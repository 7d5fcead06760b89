"""The figures of `frequency_sensitivity`: curves beside the spectra of their data, distances, data statistics, accuracies."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, draw_map
from linconv.spectra import power_spectrum, published_curve, radial_average
from linconv.statistics import Interval, crossed_interval
from verification import _sensitivity_statistics as of
from verification._sensitivity_runs import half_width_of
from verification._sensitivity_statistics import FAMILIES, Curve, Series, Spectra
from verification._sweeping import Record

COLOURS = (BLUE, ORANGE, RED)  # natural, and high-pass by half-width
SHADES = (SKY, GREEN, PURPLE, RED, BLACK, BLUE, ORANGE, GREY)
FLOOR = 1e-4  # of densities shown: what a filter removed is rounding
COLUMNS = 6
WIDTH = 6.2  # inches at least, for the title


def kind_name(half_width: float, kinds: Iterable[float]) -> str:
    """What images are called: by their half-width only where there are several."""
    if half_width == 0:
        return "natural"
    return "high-pass" if len(list(kinds)) == 2 else f"high-pass {half_width:g}"


def panels(found: dict[tuple[str, str], Series], spectra: Spectra, radii: Curve, title: str) -> Figure:
    """In the manner of the paper: a column (a), (b), … for each family and what varies in it, a row for each kind of images."""
    blocks, columns = _layout(len(found))
    drawing = Figure(figsize=(max(WIDTH, 3.1 * columns), 2.7 * blocks * len(spectra)), layout="constrained")
    axes = drawing.subplots(blocks * len(spectra), columns, squeeze=False)
    for place in axes.flatten():
        place.axis("off")
    for i, ((family, parameter), levels) in enumerate(found.items()):
        for row, (width, colour) in enumerate(zip(spectra, COLOURS, strict=False)):
            place = axes[i // columns * len(spectra) + row, i % columns]
            place.axis("on")
            own = {level: [r for r in group if half_width_of(r["parameters"]) == width] for level, group in levels.items()}
            _curves(place, {level: group for level, group in own.items() if group}, parameter, radii)
            _spectrum(place, spectra[width], radii, colour)
            place.set_title(f"({chr(ord('a') + i)}) {FAMILIES[family]}, {kind_name(width, spectra)} images", fontsize=8)
    drawing.suptitle(title, fontsize=8)
    return drawing


def _layout(count: int) -> tuple[int, int]:
    """Rows and columns for so many panels, one at least: where all runs diverged the figure is empty."""
    columns = max(1, min(COLUMNS, count))
    return max(1, -(-count // columns)), columns


def _curves(axes: Any, levels: Series, parameter: str, radii: Curve) -> None:
    """Mean curves of mass 1, smoothed over ±3 neighbours as published, with bands over runs and images."""
    for i, (level, group) in enumerate(levels.items()):
        colour = SHADES[i % len(SHADES)]
        density = _published(torch.stack([of.curve_of(record) for record in group]).mean(0), radii)
        axes.plot(radii.numpy(), density.numpy(), color=colour, lw=1.0, label=f"{parameter} {level:g}")
        if len(group) > 1:
            band = _band(group, radii)
            low, high = (torch.as_tensor(edge).exp().numpy() for edge in (band.low, band.high))
            axes.fill_between(radii.numpy(), low, high, color=colour, alpha=0.25, lw=0)
    every = [record for group in levels.values() for record in group]
    if every:
        untrained = _published(torch.stack([of.curve_of(record, "before") for record in every]).mean(0), radii)
        axes.plot(radii.numpy(), untrained.numpy(), ":", color=GREY, label="untrained")


def _published(curve: Tensor, radii: Curve) -> Tensor:
    return published_curve(radii, curve, log=False)


def _band(group: list[Record], radii: Curve) -> Interval:
    """Of the logarithm, as the axis is: it does not reach below 0."""
    return crossed_interval(of.stacked(group, "after"), lambda sample: _published(sample.mean((0, 1)), radii).clamp(min=FLOOR / 10).log())


def _spectrum(axes: Any, spectrum: Curve, radii: Curve, colour: str) -> None:
    """The spectrum of the data in the same units."""
    axes.plot(radii.numpy(), _published(spectrum, radii).numpy(), "--", color=colour, lw=1.6, label="data")
    axes.set(yscale="log", ylim=(FLOOR, 1), xlabel="|u| (cycles per image)", ylabel="density of sensitivity")
    axes.legend(fontsize=6)


def distances(found: dict[tuple[str, str], Series], spectra: Spectra, radii: Curve, title: str) -> Figure:
    """Total variation of every run to the spectrum of its own data, and to the others'."""
    blocks, columns = _layout(len(found))
    drawing = Figure(figsize=(max(WIDTH, 3.1 * columns), 3.0 * blocks), layout="constrained")
    axes = drawing.subplots(blocks, columns, squeeze=False).flatten()
    for place in axes[len(found) :]:
        place.axis("off")
    for place, ((family, parameter), levels) in zip(axes, found.items(), strict=False):
        for width, colour in zip(spectra, COLOURS, strict=False):
            runs = [r for group in levels.values() for r in group if half_width_of(r["parameters"]) == width]
            if runs:
                _distances(place, runs, parameter, width, spectra, radii, colour)
        place.set(xscale="log", ylabel="total variation d", ylim=(0, 1), title=FAMILIES[family])
        place.set_xlabel("weight decay" if parameter == "decay" else "depth")
        if parameter == "depth":
            place.set_xticks(list(levels), [f"{level:g}" for level in levels])
            place.set_xticks([], minor=True)
        place.legend(fontsize=6)
    drawing.suptitle(title, fontsize=8)
    return drawing


def _distances(axes: Any, runs: list[Record], parameter: str, width: float, spectra: Spectra, radii: Curve, colour: str) -> None:
    levels = [record["parameters"][parameter] for record in runs]
    curves = torch.stack([of.curve_of(record) for record in runs])
    for other, spectrum in spectra.items():
        if other != width and 0 not in (other, width):
            continue  # high-pass images are compared with natural ones
        d = of.to_spectrum(curves, spectrum, radii)
        label = f"{kind_name(width, spectra)}, to {'its own' if other == width else kind_name(other, spectra)}"
        axes.plot(levels, d.numpy(), "o" if other == width else "x", mfc="none", color=colour, label=label)


def data_statistics(
    kinds: dict[float, Float[Tensor, "N C H W"]], met: dict[float, Float[Tensor, "C H W"]], exponent: Interval, title: str
) -> Figure:
    """The spectra of the images by radius, as they are and as training moves them, with the power law fitted to the natural ones; maps."""
    drawing = Figure(figsize=(3.4 * (1 + len(kinds)), 3.0), layout="constrained")
    axes = drawing.subplots(1, 1 + len(kinds))
    for (width, x), place, colour in zip(kinds.items(), axes[1:], COLOURS, strict=False):
        name = kind_name(width, kinds)
        (radii, values), (_, moved) = radial_average(power_spectrum(x.double())), radial_average(met[width])
        shown = values > FLOOR * values.max()
        axes[0].plot(radii[1:][shown[1:]].numpy(), values[1:][shown[1:]].numpy(), color=colour, label=name)
        axes[0].plot(radii[1:].numpy(), moved[1:].numpy(), "--", color=colour, label=f"{name}, moved in training")
        if width == 0:
            law = values[1] * (radii[1:] / radii[1]) ** -float(exponent.estimate)
            axes[0].plot(radii[1:].numpy(), law.numpy(), ":", color=BLACK, label=f"|u|^−α, α = {of.shown(exponent)}")
        drawing.colorbar(draw_map(place, met[width]), ax=place)
        place.set_title(f"{name} images, moved in training", fontsize=8)
    axes[0].set(xscale="log", yscale="log", xlabel="|u| (cycles per image)", ylabel="$(E|x̂_u|^2)^{1/2}$, standardised images")
    axes[0].set_ylim(bottom=axes[0].get_ylim()[0] / 30)  # room for the legend
    axes[0].legend(fontsize=6, loc="lower left")
    drawing.suptitle(title, fontsize=8)
    return drawing


def linear_curves(maps: dict[str, Float[Tensor, "C H W"]], x: Float[Tensor, "N C H W"]) -> Figure:
    """Linear CNNs: the sensitivity that the theorem predicts, that of the trained network, and the spectrum of their images."""
    drawing = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = drawing.subplots()
    for (name, map), colour in zip(maps.items(), (BLUE, BLUE, ORANGE, ORANGE), strict=True):
        radii, values = radial_average(map)
        axes.plot(radii.numpy(), values.numpy(), "o" if "trained" in name else "-", ms=4, color=colour, label=name)
    radii, values = radial_average(power_spectrum(x))
    scale = next(iter(maps.values())).max() / values[1:].max()
    axes.plot(radii[1:].numpy(), (values[1:] * scale).numpy(), "--", color=GREY, label="spectrum of the images, scaled")
    axes.set(yscale="log", xlabel="|u| (cycles per image)", ylabel="sensitivity", title="linear CNNs")
    axes.legend(fontsize=7)
    return drawing


def accuracy_table(rows: list[list[str]], origin: str, title: str) -> Figure:
    """Test accuracies beside those published for `origin`."""
    drawing = Figure(figsize=(7.4, 0.6 + 0.22 * (len(rows) + 2)), layout="constrained")
    axes = drawing.subplots()
    axes.axis("off")
    columns = ["network", "natural", "high-pass", "runs", f"{origin}, published", "high-pass"]
    cells = rows or [["all runs diverged", *[""] * 5]]
    table = axes.table(cells, colLabels=columns, loc="center", colWidths=[0.4, 0.12, 0.12, 0.08, 0.2, 0.12])
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    axes.set_title(f"Test accuracy. {title}", fontsize=8)
    return drawing
