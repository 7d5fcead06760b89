"""How the work grows with images N, channels C, outputs K, grid and depth L: `python -m benchmarks.growth [folder]`.

Time on a core of `fit` at depths 1 and 2 (gap 1e-6) and 3 (the portfolio and the root bound) and of `conv_singular_values` from 8C to 8K
channels, each relative to its base case, written as growth.pdf and growth.png into the folder (default docs/figures).  One thread.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from threadpoolctl import threadpool_limits

import linconv as lc
from benchmarks.timing import interleaved

matplotlib.use("Agg")
BASE = {"samples": 200, "channels": 2, "outputs": 3, "side": 6}
AXES = {
    "samples": ("images N", [50, 100, 200, 400]),
    "channels": ("channels C", [1, 2, 3, 6]),
    "outputs": ("outputs K", [1, 2, 4, 8]),
    "side": ("side of the grid", [4, 6, 8, 12, 16]),
}
DEPTHS = [1, 2, 3, 4, 6]
WIDER = 8  # times C and K for singular values, which would be done too quickly to be timed
# Okabe and Ito's colours, told apart without colour vision, with markers of their own.
STYLES = {"depth 1": ("#0072B2", "o"), "depth 2": ("#E69F00", "s"), "depth 3": ("#009E73", "^"), "singular values": ("#CC79A7", "D")}


def pink_images(samples: int, channels: int, side: int) -> torch.Tensor:
    """Gaussian images with the 1/|u| amplitudes of photographs, any number of channels."""
    noise = torch.randn(samples, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axis = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) ** 2
    return torch.fft.ifft2(torch.fft.fft2(noise) / (1 + axis[:, None] + axis).sqrt()).real


def works(samples: int, channels: int, outputs: int, side: int) -> dict[str, Callable[[], object]]:
    x = pink_images(samples, channels, side)
    y = torch.randn(samples, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kernel = torch.randn(WIDER * outputs, WIDER * channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    decays = {1: 1e-2, 2: 1e-2, 3: 1e-2}
    fits = {f"depth {L}": lambda L=L: lc.fit(x, y, depth=L, weight_decay=decays[L], tol=1e-6) for L in decays}
    return fits | {"singular values": lambda: lc.conv_singular_values(kernel, (side, side))}


def measure(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by axis and curve."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, (label, values) in AXES.items():
        found[name] = {curve: [] for curve in STYLES}
        for value in values:
            todo = works(**(BASE | {name: value}))
            for curve, time in zip(todo, interleaved(list(todo.values()), repeats), strict=True):
                found[name][curve].append(time)
            row = "   ".join(f"{curve} {found[name][curve][-1] / found[name][curve][0]:8.2f}" for curve in todo)
            print(f"{label:18s} {value:5d}   relative to {values[0]}: {row}", flush=True)
    return found


def by_depth(repeats: int) -> list[float]:
    x = pink_images(BASE["samples"], BASE["channels"], BASE["side"])
    y = torch.randn(len(x), BASE["outputs"], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = interleaved([lambda L=L: lc.fit(x, y, depth=L, weight_decay=1e-2, tol=1e-6) for L in DEPTHS], repeats)
    print("depth L            " + "   ".join(f"L={L} {time / times[0]:8.1f}" for L, time in zip(DEPTHS, times, strict=True)))
    return times


def draw(found: dict[str, dict[str, list[float]]], depths: list[float], folder: Path) -> None:
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(AXES) + 1, figsize=(14, 3.2), layout="constrained", sharey=False)
    for panel, (name, (label, values)) in zip(panels, AXES.items(), strict=False):
        for curve, (colour, marker) in STYLES.items():
            times = found[name][curve]
            panel.loglog(values, [time / times[0] for time in times], color=colour, marker=marker, label=curve)
        panel.set_xlabel(label)
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.set_xticks([], minor=True)
        panel.yaxis.set_minor_formatter("")
        panel.set_ylabel("work relative to the smallest")
    panels[0].legend(fontsize=7)
    panels[-1].semilogy(DEPTHS, [time / depths[0] for time in depths], color="black", marker="o")
    panels[-1].set_xlabel("depth L")
    panels[-1].set_xticks(DEPTHS)
    panels[-1].set_ylabel("work relative to depth 1")
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("pdf", "png"):
        figure.savefig(folder / f"growth.{kind}", dpi=150)
    plt.close(figure)
    print(f"written: {folder / 'growth.pdf'}, {folder / 'growth.png'}")


def main(folder: str = "docs/figures", repeats: int = 1) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        draw(measure(repeats), by_depth(repeats), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:2])
