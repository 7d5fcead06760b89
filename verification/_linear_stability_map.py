"""The order of R in α, and where it crosses 1: closed forms on a grid of exponents α and displacements σ, and the figure."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.linear_stability import linear_relative_stability
from linconv.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY
from linconv.stationary_fields import difference_covariance, gradient_power, maximum_entropy_covariance
from verification._linear_stability_setting import Ratio, Weights, blocks_of, filter_network, power_law, squared_frequencies

CUTOFF = 3  # of the displacement fields of the map, in cycles per image
LAYERS = (1, 2, 5)  # of the low-pass networks of the map


@dataclass(frozen=True)
class Map:
    """R `(layers, sigmas, exponents)` of low-pass networks [1, 1, 1]^L on images k^{−α} displaced by σ pixels."""

    grid: tuple[int, ...]
    sigmas: tuple[float, ...]
    exponents: Float[Tensor, " exponents"]
    R: Float[Tensor, "layers sigmas exponents"]

    def crossings(self) -> Float[Tensor, "layers sigmas"]:
        """The α at which R is 1, linear between neighbours in log R; infinite where R is below 1 throughout, −infinite where above."""
        logs = self.R.log()
        above = (logs > 0).to(torch.int64).argmax(-1, keepdim=True).clamp_min(1)
        low, high = logs.gather(-1, above - 1)[..., 0], logs.gather(-1, above)[..., 0]
        step = self.exponents[1] - self.exponents[0]
        found = self.exponents[above[..., 0] - 1] - low / (high - low) * step
        return torch.where(logs[..., 0] > 0, -torch.inf, torch.where(logs[..., -1] <= 0, torch.inf, found))


def low_pass(layers: int, dims: int, channels: int = 1) -> Weights:
    return filter_network([1.0, 1.0, 1.0], channels, dims, layers)


def stability_map(grid: tuple[int, ...], sigmas: tuple[float, ...], points: int) -> Map:
    """R at `points` exponents from −1 to 4."""
    networks = [blocks_of(low_pass(layers, len(grid)), grid) for layers in LAYERS]
    exponents = torch.linspace(-1, 4, points, dtype=torch.float64)
    found = torch.empty(len(networks), len(sigmas), points, dtype=torch.float64)
    for i, sigma in enumerate(sigmas):
        rho = maximum_entropy_covariance(grid, variance=sigma**2, cutoff=CUTOFF)
        for j, exponent in enumerate(exponents.tolist()):
            covariance = difference_covariance(power_law(grid, exponent), rho)
            found[:, i, j] = torch.tensor([linear_relative_stability(network, covariance) for network in networks])
    return Map(grid, sigmas, exponents, found)


def kept_shares(grid: tuple[int, ...]) -> Float[Tensor, "*grid"]:
    """μ_k = 1 − ν_k: what of |k|² is not in middle frequencies of even sides; 0 at k = 0."""
    return gradient_power(grid) / squared_frequencies(grid).clamp_min(1e-30)


def profile(weights: Weights, grid: tuple[int, ...]) -> Float[Tensor, "*grid"]:
    """w_q = ‖V_q‖² / Σ ‖V‖²."""
    norms = blocks_of(weights, grid).values.abs().square().sum((-2, -1))
    return norms / norms.sum()


def smoothed(w: Float[Tensor, "*grid"], rho: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """(P ∗ w)_k = Σ_q P(q − k) w_q, with P the spectrum of the displacement, of sum 1: the product with ρ/ρ(0) in space."""
    return torch.fft.fftn(torch.fft.ifftn(w) * rho / rho.flatten()[0]).real


def cumulative_excess(weights: Weights, rho: Float[Tensor, "*grid"]) -> Float[Tensor, " R"]:
    """Mean of P ∗ w over 0 < |k| ≤ r, less that over all k ≠ 0, both with weights μ, over the latter: ≥ 0 at every r for a low-pass."""
    grid = tuple(rho.shape)
    mu, w = kept_shares(grid).flatten(), smoothed(profile(weights, grid), rho).flatten()
    index = torch.unique(squared_frequencies(grid), return_inverse=True)[1].flatten()
    sums, masses = (torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, v).cumsum(0)[1:] for v in (mu * w, mu))
    return sums / masses / (sums[-1] / masses[-1]) - 1


def figure(line: Map, plane: Map, points: list[tuple[float, float, Ratio]], compared: list[tuple[str, float, Ratio]]) -> Figure:
    """R against α in one dimension with Monte-Carlo, the crossing α* against σ, the map in two dimensions, formula against Monte-Carlo."""
    shown = Figure(figsize=(12.5, 3.4), layout="constrained")
    curves, crossing, plain, scatter = shown.subplots(1, 4)
    _curves(curves, line, points)
    _crossings(crossing, (line, plane))
    levels = plane.R[1].log10().clamp(-1, 1)
    image = plain.pcolormesh(plane.sigmas, plane.exponents, levels.T, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest", rasterized=True)
    plain.contour(plane.sigmas, plane.exponents, levels.T, levels=[0.0], colors=BLACK, linewidths=1.2)
    plain.set(xscale="log", xlabel="σ (pixels)", ylabel="α", title=f"$\\log_{{10}} R$, {_named(plane)}, {LAYERS[1]} layers")
    shown.colorbar(image, ax=plain)
    _scatter(scatter, compared)
    for axes in (curves, crossing, plain, scatter):
        axes.title.set_fontsize(9)
    return shown


def _named(found: Map) -> str:
    return "×".join(map(str, found.grid)) + " sites"


def _curves(axes: Any, line: Map, points: list[tuple[float, float, Ratio]]) -> None:
    chosen = [i for i, sigma in enumerate(line.sigmas) if sigma in (0.1, 0.5, 1.0, 2.0)]
    for i, colour in zip(chosen, (BLUE, GREEN, ORANGE, RED), strict=False):
        axes.plot(line.exponents, line.R[1, i], color=colour, label=f"σ = {line.sigmas[i]:g}")
        for sigma, exponent, found in points:
            if sigma == line.sigmas[i]:
                axes.errorbar(exponent, found.value, 2 * found.error, fmt="o", ms=3, color=colour)
    axes.axhline(1, color=GREY, lw=0.8)
    axes.axvline(2, color=GREY, lw=0.8)
    axes.set(yscale="log", xlabel="α of the images $k^{-α}$", ylabel="R", title=f"low-pass, {LAYERS[1]} layers, {_named(line)}")
    axes.legend(fontsize=7)


def _crossings(axes: Any, maps: tuple[Map, ...]) -> None:
    for found, style in zip(maps, ("-", "--"), strict=True):
        for layers, curve, colour in zip(LAYERS, found.crossings(), (SKY, BLUE, BLACK), strict=True):
            axes.plot(found.sigmas, curve, style, color=colour, marker=".", label=f"{_named(found)}, {layers} layer{'s' * (layers > 1)}")
    axes.axhline(2, color=GREY, lw=0.8)
    axes.set(xscale="log", xlabel="σ (pixels)", ylabel="α*, where R = 1", title="above the line R > 1")
    axes.legend(fontsize=6)


def _scatter(axes: Any, compared: list[tuple[str, float, Ratio]]) -> None:
    ends = [value for _, predicted, found in compared for value in (predicted, found.value)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, lw=0.8)
    for kind, colour, marker in (("synthetic", BLUE, "o"), ("photographs", ORANGE, "s")):
        chosen = [(predicted, found) for name, predicted, found in compared if name == kind]
        axes.errorbar(
            [p for p, _ in chosen],
            [f.value for _, f in chosen],
            [2 * f.error for _, f in chosen],
            fmt=marker,
            ms=4,
            mfc="none",
            color=colour,
            label=kind,
        )
    axes.set(xscale="log", yscale="log", xlabel="closed form", ylabel="Monte-Carlo", title="R of linear networks")
    axes.legend(fontsize=7)
