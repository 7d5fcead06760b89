"""Figures of one's own data: one palette, labelled axes, and no global state of pyplot touched.

Save them as any matplotlib figure: `figure.savefig("profile.pdf")`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from linconv.patches import PatchSpectrum
from linconv.profile_fits import ProfileFit
from linconv.profiles import validate_lambdas
from linconv.validation import validate_tensor

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
)
BINS = 30
DECADES = 4  # of a heat map that are told apart; what a filter removed is rounding
COLUMNS = 5


def profile_figure(
    energies: Float[Tensor, " P"],
    spectrum: PatchSpectrum | Float[Tensor, " P"],
    fit: ProfileFit,
    *,
    exact: Float[Tensor, " P"] | None = None,
    title: str = "",
) -> Figure:
    """A measured energy profile with the published formula, the exact law where it is known, and the null model of the fit.

    Left: `energies` as measured, the published formula at the best time of `fit`, and `exact`, by the rank of the component; `exact` is
    drawn as it is, the formula with the constant of the fit.  Right: the best correlations that random decreasing profiles and power laws
    reach in the same search, and that of the measured profile.  `energies` and `exact` are `(P,)` in the order of the components.
    Raises `ValueError` or `TypeError` for profiles of another length.
    """
    shown = Figure(figsize=(8.4, 3.3), layout="constrained")
    left, right = shown.subplots(1, 2, width_ratios=(1.5, 1))
    draw_profile(left, energies, spectrum, fit, exact=exact)
    draw_null(right, fit)
    if title:
        shown.suptitle(title, fontsize=10)
    return shown


def draw_profile(
    axes: Any,
    energies: Float[Tensor, " P"],
    spectrum: PatchSpectrum | Float[Tensor, " P"],
    fit: ProfileFit,
    *,
    exact: Float[Tensor, " P"] | None = None,
) -> None:
    """The left panel of `profile_figure` on given axes; components with λ = 0, of which the formula says nothing, are left out."""
    lambdas = spectrum.lambdas if isinstance(spectrum, PatchSpectrum) else validate_lambdas(spectrum)
    profiles = {"energies": energies, "fit": fit.profile} | ({} if exact is None else {"exact": exact})
    for name, profile in profiles.items():
        if len(validate_tensor(name, profile, ndim=(1,), shape="profiles (P,)")) != len(lambdas):
            raise ValueError(f"{name}: expected {len(lambdas)} numbers, one a component, got {len(profile)}; use one spectrum for all")
    kept = (lambdas > 0).cpu()
    order = lambdas.cpu()[kept].argsort(descending=True)
    ranks = np.arange(1, len(order) + 1)
    measured, fitted, *known = (profile.detach().cpu()[kept][order].numpy() for profile in profiles.values())
    time = "∞" if fit.steps == float("inf") else f"{fit.steps:.3g}"
    axes.plot(ranks, fitted, "-", color=BLUE, label=f"published, best t = {time}")
    if known:
        axes.plot(ranks, known[0], "--", color=ORANGE, label="exact law")
    axes.plot(ranks, measured, "o", color=BLACK, ms=4, label="measured")
    positive = measured[measured > 0]
    axes.set(xlabel="component, by descending λ", ylabel="energy $e_i$", yscale="log" if len(positive) == len(measured) else "linear")
    axes.legend(fontsize=7)


def draw_null(axes: Any, fit: ProfileFit) -> None:
    """The right panel of `profile_figure` on given axes."""
    families = {"random decreasing profiles": (fit.null_decreasing, GREY), "power laws $λ^q$": (fit.null_powers, PURPLE)}
    lowest = min(float(torch.cat([fit.null_decreasing, fit.null_powers]).quantile(0.01)), fit.correlation)
    edges = np.linspace(min(lowest, 0.99), 1, BINS)
    for label, (null, colour) in families.items():
        axes.hist(null.clamp(min=float(edges[0])).numpy(), bins=edges, color=colour, alpha=0.6, label=label, density=True)
    axes.axvline(fit.correlation, color=BLACK, lw=1.2, label=f"measured, p = {fit.p_value:.2g}")
    axes.set(xlabel="best correlation over t", ylabel="density of the null")
    axes.legend(fontsize=7, loc="upper left")


def map_figure(maps: Mapping[str, Float[Tensor, "C H W"]]) -> Figure:
    """Heat maps over frequencies by title, such as `frequency_sensitivity` and `power_spectrum` give them: mean over channels, logarithmic.

    Each has its own scale, of at most four decades.  See `draw_map`.  Raises `ValueError` where there is none.
    """
    if not maps:
        raise ValueError("maps: expected one map or more, got none")
    columns = min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    shown = Figure(figsize=(2.9 * columns, 2.6 * rows), layout="constrained")
    places = shown.subplots(rows, columns, squeeze=False).flatten()
    for place, (title, map) in zip(places, maps.items(), strict=False):
        shown.colorbar(draw_map(place, map), ax=place)
        place.set_title(title, fontsize=7)
    for place in places[len(maps) :]:
        place.axis("off")
    return shown


def draw_map(axes: Any, map: Float[Tensor, "C H W"]) -> Any:
    """A map `(C, H, W)` over frequencies, in fft order as it is computed, drawn with zero frequency in the centre.

    Axes are in cycles per image; on an even side the row or column of n/2 stands at −n/2.  Returns the image, for a colour bar.  Raises
    `ValueError` for a map of another shape, with negative values, or without a positive one.
    """
    values = validate_tensor("map", map, ndim=(3,), shape="(C, H, W)").detach().cpu().to(torch.float64).mean(0)
    if float(values.min()) < 0 or float(values.max()) == 0:
        raise ValueError(f"map: expected numbers ≥ 0, not all 0, got {float(values.min()):.3g} to {float(values.max()):.3g}")
    top = float(values.max())
    (low_v, high_v), (low_u, high_u) = ((-(n // 2) - 0.5, (n - 1) // 2 + 0.5) for n in values.shape)
    drawn = axes.imshow(
        torch.fft.fftshift(values).clamp(min=top * 10.0**-DECADES).numpy(),
        norm=LogNorm(top * 10.0**-DECADES, top),
        extent=(low_u, high_u, low_v, high_v),
        origin="lower",
        cmap="cividis",
    )
    axes.set(xlabel="$u_2$ (cycles per image)", ylabel="$u_1$ (cycles per image)")
    return drawn
