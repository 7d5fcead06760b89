"""The figure of the energy profiles: for each kind of images the profile, and the null model of its fit."""

from typing import NamedTuple

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from linconv.plotting import draw_null, draw_profile
from linconv.profile_fits import ProfileFit


class Fitted(NamedTuple):
    """A measured profile with the published formula fitted to it and the exact law."""

    kind: str
    energies: Float[Tensor, " m"]
    lambdas: Float[Tensor, " m"]
    fit: ProfileFit
    exact: Float[Tensor, " m"]


def figure(fits: list[Fitted], title: str) -> Figure:
    """A row for each kind of images."""
    drawing = Figure(figsize=(8.4, 6.2), layout="constrained")
    for (left, right), fitted in zip(drawing.subplots(len(fits), 2, width_ratios=(1.5, 1), squeeze=False), fits, strict=True):
        draw_profile(left, fitted.energies, fitted.lambdas, fitted.fit, exact=fitted.exact)
        draw_null(right, fitted.fit)
        left.set_title(fitted.kind, fontsize=9)
    drawing.suptitle(title, fontsize=10)
    return drawing
