"""The figure of the claim on two pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE
from linconv.pooling_noise import constant_filter_noise_stability
from linconv.pooling_stability import constant_filter_deformation_stability, deformation_stability_limit, mean_square_displacement

Array = NDArray[np.float64]
COLOURS = {"low-frequency": BLUE, "high-frequency": ORANGE}


@dataclass(frozen=True)
class Table:
    """Input, layers and output of one network: D, and G with its standard errors."""

    D: list[float]
    G: Array
    errors: Array

    @property
    def R(self) -> Array:
        return np.array(self.D) / self.G


def figure(tables: dict[str, list[Table]], xis: tuple[int, ...], sites: int, ring: int) -> Figure:
    """Above: D, G and R in the layers of both networks. Below: the depth laws of constant filters."""
    drawing = Figure(figsize=(11, 6.4), layout="constrained")
    above, below = drawing.subplots(2, 3)
    shown = sorted({len(xis) // 2, len(xis) - 1})
    for axes, what, label in zip(
        above, ("D", "G", "R"), ("stability to moves, D", "stability to noise, G", "relative stability, R = D/G"), strict=True
    ):
        for kind, colour in COLOURS.items():
            for style, i in zip(("-o", "--s"), shown[::-1], strict=False):
                values = getattr(tables[kind][i], what)
                axes.plot(range(len(values) - 1), values[:-1], style, color=colour, ms=4, label=f"{kind}, ξ = {xis[i]}")
                size = 9 if kind == "high-frequency" else 5  # one around the other where both agree
                axes.plot(len(values) - 2 + 0.35, values[-1], style[-1], color=colour, mfc="none", ms=size)
        axes.set(yscale="log", xlabel="layer (0: input; open symbols: output)", ylabel=what, title=label)
    above[0].legend(fontsize=7)
    _moves(below[0], sites)
    _noise(below[1], sites, ring)
    _outputs(below[2], tables, xis)
    drawing.suptitle(f"Two pixels on a ring of {sites} sites, moves by −1, 0, +1", fontsize=10)
    return drawing


def _moves(axes: Any, sites: int) -> None:
    k = np.unique(np.geomspace(1, 4 * sites, 40).astype(int))
    axes.plot(k, [float(constant_filter_deformation_stability(int(n), sites=sites)) for n in k], color=BLUE, label="exact")
    axes.plot(k, 1 / (4 * k), ":", color=BLACK, label="1/(4k)")
    axes.axhline(deformation_stability_limit(sites=sites), color=GREY, lw=0.8, label="limit, lowest frequency")
    axes.set(xscale="log", yscale="log", xlabel="layers k", ylabel="$D_k$", title="constant filters, moves")
    axes.legend(fontsize=7)


def _noise(axes: Any, sites: int, ring: int) -> None:
    k, power = np.arange(1, 65), float(mean_square_displacement(sites=sites))
    for length, style in ((sites, "-"), (ring, "--")):
        few = k if length > sites else k[: sites // 2]
        for name, rectified, colour in (("ReLU", True, PURPLE), ("linear", False, GREEN)):
            values = constant_filter_noise_stability(len(few), rectified=rectified, power=power, sites=length)
            axes.plot(few, values.numpy(), style, color=colour, label=f"{name}, {length} sites")
    axes.plot(k, power / (24 * np.pi) * np.sqrt(8 * np.pi * k / 3), ":", color=BLACK, label="leading order, ∝ √k")
    axes.set(xscale="log", yscale="log", xlabel="layers k", ylabel="$G_k$", title="constant filters, noise")
    axes.legend(fontsize=7)


def _outputs(axes: Any, tables: dict[str, list[Table]], xis: tuple[int, ...]) -> None:
    for what, style in (("D", "-o"), ("G", "--s"), ("R", ":^")):
        for kind, size in (("high-frequency", 7), ("low-frequency", 3)):
            values = [getattr(table, what)[-1] for table in tables[kind]]
            axes.plot(xis, values, style, color=COLOURS[kind], ms=size, mfc="none" if size > 3 else None)
        axes.plot([], [], style, color=BLACK, ms=4, label=what)
    axes.set(yscale="log", xlabel="ξ", title="the outputs")
    axes.legend(fontsize=7, loc="upper left")
