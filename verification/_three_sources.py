"""The link of three sources on one set of images: spectrum of the data, sensitivity of a trained linear CNN, stability to deformations.

Photographs are whitened and given the spectrum |k|^{−α} in each channel, so that frequencies and channels are uncorrelated; the linear CNN
is the optimum of the weight-decayed problem for their labels.  With a stationary τ all three quantities are then exact.
`python -m verification._three_sources FOLDER` draws the figure alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

import linconv as lc
from linconv import images
from linconv.linear_stability import linear_relative_stability, spectral_covariance
from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY
from linconv.sensitivity import frequency_sensitivity
from linconv.spectra import radial_average
from linconv.spectrum import FrequencyBlocks
from linconv.stationary_fields import difference_covariance, maximum_entropy_covariance
from verification._linear_stability_setting import Ratio, differences, energies, power_law, ratio
from verification._shrinkage_law import measured, unit

SIDE, SAMPLES = 7, 600
EXPONENTS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
SHOWN = {1.0: BLUE, 2.0: GREEN, 3.0: RED}
SIGMAS = {0.1: SKY, 1.0: ORANGE}
DECAY = 0.4  # of the least weight decay that kills all
DEPTH = 2
FIELDS = 10  # for each image


@dataclass(frozen=True)
class Source:
    """Data of one exponent: their spectrum, the sensitivity of the network, and by σ the spectrum of τx − x, R and R drawn."""

    exponent: float
    spectrum: Float[Tensor, "*grid"]
    sensitivity: Float[Tensor, "C *grid"]
    differences: dict[float, Float[Tensor, "*grid"]]
    stability: dict[float, tuple[float, Ratio]]


def source(white: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], exponent: float, generator: torch.Generator) -> Source:
    grid = tuple(white.shape[2:])
    s = power_law(grid, exponent)[..., 0, 0].real
    s = s / s.mean()
    x = torch.fft.ifftn(torch.fft.fftn(white, dim=(2, 3)) * s.sqrt(), dim=(2, 3)).real
    decay = DECAY * unit(measured("power law", x, y), DEPTH)
    beta = lc.fit(x, y, depth=DEPTH, weight_decay=decay, tol=1e-8).predictor
    net = lc.LinearCNN.from_weights([beta], grid).requires_grad_(False)
    blocks = FrequencyBlocks(
        lc.frequency_blocks(net).values, "equivariant"
    )  # frequencies of y are uncorrelated: the condition for a readout
    spectra, found, gain = {}, {}, float(beta.square().sum()) / x[0].numel()
    for sigma in SIGMAS:
        rho = maximum_entropy_covariance(grid, variance=sigma**2, cutoff=1)
        covariance = difference_covariance(spectral_covariance(x), rho)
        moved = differences(x.repeat(FIELDS, 1, 1, 1), rho, generator)
        drawn = ratio(net(moved).square().sum(1), energies(moved), 1 / gain, len(x))
        spectra[sigma] = torch.diagonal(covariance, dim1=-2, dim2=-1).real.mean(-1)
        found[sigma] = linear_relative_stability(blocks, covariance), drawn
    return Source(exponent, s, frequency_sensitivity(net), spectra, found)


def three_sources(seed: int = 0) -> Figure:
    """Spectra of the data, sensitivities of the networks, spectra of τx − x, and the relative stability that they make together."""
    generator = torch.Generator().manual_seed(seed)
    photos = images.load("photos", grid=(SIDE, SIDE), samples=SAMPLES, generator=generator)
    targets = photos.one_hot() - photos.one_hot().mean(0)
    white = images.whiten(photos.images)
    found = [source(white, targets, exponent, generator) for exponent in EXPONENTS]
    shown = Figure(figsize=(12.5, 3.2), layout="constrained")
    data, sensitive, moved, stable = shown.subplots(1, 4)
    for each in found:
        if each.exponent in SHOWN:
            style = {"color": SHOWN[each.exponent], "marker": ".", "label": f"α = {each.exponent:g}"}
            _curve(data, each.spectrum[None], **style)
            _curve(sensitive, each.sensitivity.square() / each.sensitivity.square().mean(), **style)
            for sigma, line in zip(SIGMAS, ("-", "--"), strict=True):
                _curve(moved, each.differences[sigma][None] / each.differences[sigma].mean(), linestyle=line, **style)
    data.set(xscale="log", yscale="log", title="1 the data: $S_k$", ylabel="power over its mean")
    sensitive.set(title="2 the network learnt: its squared sensitivity", ylabel="over its mean")
    moved.set(title="3 the deformation: $S(q)$ of τx − x", ylabel="over its mean")
    for axes in (data, sensitive, moved):
        axes.set_xlabel("|u| (cycles per image)")
        axes.set_xticks([1, 2, 3, 4], ["1", "2", "3", "4"])
        axes.set_xticks([], minor=True)
    data.legend(fontsize=7)
    _stabilities(stable, found)
    for axes in (data, sensitive, moved, stable):
        axes.title.set_fontsize(9)
    return shown


def _curve(axes: Any, values: Float[Tensor, "C *grid"], **style: Any) -> None:
    radii, means = radial_average(values)
    axes.plot(radii[1:], means[1:], lw=1.2, **style)


def _stabilities(axes: Any, found: list[Source]) -> None:
    for sigma, colour in SIGMAS.items():
        axes.plot(EXPONENTS, [each.stability[sigma][0] for each in found], color=colour, label=f"closed form, σ = {sigma:g}")
        for each in found:
            drawn = each.stability[sigma][1]
            axes.errorbar(each.exponent, drawn.value, 2 * drawn.error, fmt="o", ms=3, color=BLACK)
    axes.axhline(1, color=GREY, lw=0.8)
    axes.axvline(2, color=GREY, lw=0.8)
    axes.set(xlabel="α of the data", ylabel="R", title="4 R: the mean of 3 weighted with 2")
    axes.legend(fontsize=7)


if __name__ == "__main__":
    three_sources().savefig(Path(sys.argv[1]) / "three_sources.png", dpi=130)
