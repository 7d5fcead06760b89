"""Figures show what they were given, and leave pyplot alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from linconv.patches import patch_spectrum
from linconv.plotting import map_figure, profile_figure
from linconv.profile_fits import fit_published
from linconv.profiles import published
from linconv.spectra import power_spectrum

LAMBDAS = torch.linspace(3, 0.1, 12, dtype=torch.float64)


def fitted(energies, spectrum=LAMBDAS):
    return fit_published(energies, spectrum, step_size=0.1, generator=torch.Generator().manual_seed(0), draws=50)


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_the_figure_shows_the_profiles_by_descending_lambda():
    energies, exact = published(LAMBDAS, 0.1, 30), LAMBDAS**0.5
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    fit = fitted(energies[shuffled], LAMBDAS[shuffled])
    shown = lines(profile_figure(energies[shuffled], LAMBDAS[shuffled], fit, exact=exact[shuffled], title="a title"))
    assert np.allclose(shown["measured"].get_ydata(), energies)
    assert np.allclose(shown["exact law"].get_ydata(), exact)
    assert np.allclose(shown["published, best t = 30"].get_ydata(), energies)  # the constant of the fit is 1 here
    assert shown["measured"].get_xdata().tolist() == list(range(1, 13))


def test_the_null_is_drawn_beside_the_measured_correlation():
    fit = fitted(LAMBDAS**0.3)
    panel = profile_figure(LAMBDAS**0.3, LAMBDAS, fit).axes[1]
    assert panel.lines[0].get_xdata()[0] == fit.correlation
    areas = sum(patch.get_height() * patch.get_width() for patch in panel.patches)
    assert areas == pytest.approx(2)  # two densities, nothing of them beyond the edges


def test_components_of_no_variance_are_left_out_and_infinite_times_are_named():
    lambdas = torch.cat([LAMBDAS, torch.zeros(2, dtype=torch.float64)])
    energies = torch.cat([1 / LAMBDAS, torch.ones(2, dtype=torch.float64)])
    fit = replace(fitted(energies, lambdas), steps=math.inf)
    shown = lines(profile_figure(energies, lambdas, fit))
    assert len(shown["measured"].get_ydata()) == 12
    assert "published, best t = ∞" in shown


def test_a_spectrum_with_a_measured_zero_and_a_title_need_no_pyplot():
    x = torch.rand(30, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = patch_spectrum(x, 2)
    energies = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    figure = profile_figure(energies, spectrum, fitted(energies, spectrum))
    assert figure.axes[0].get_yscale() == "linear"
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    assert pyplot.get_fignums() == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["energies", "exact", "fit"])
def test_profiles_of_another_length_are_refused_by_name(name):
    energies = LAMBDAS**0.3
    given = {"energies": energies, "exact": energies, "fit": fitted(energies)}
    given[name] = fitted(energies[:-1], LAMBDAS[:-1]) if name == "fit" else energies[:-1]
    with pytest.raises(ValueError, match=f"{name}: expected 12 numbers"):
        profile_figure(given["energies"], LAMBDAS, given["fit"], exact=given["exact"])


@pytest.mark.parametrize("grid", [(8, 6), (7, 9), (6, 5)], ids=str)
def test_heat_maps_have_zero_frequency_in_the_centre_and_axes_in_cycles_per_image(grid):
    """A wave of a known frequency is found where the axes say, at u and at −u, and nowhere else."""
    u = (2, -1)
    rows, columns = (2 * torch.pi * f * torch.arange(n, dtype=torch.float64) / n for f, n in zip(u, grid, strict=True))
    waves = torch.cos(rows[:, None] + columns).expand(1, 3, *grid)
    (axes, _) = map_figure({"a wave": power_spectrum(waves)}).axes
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    shown = image.get_array()
    assert image.origin == "lower"
    assert ((right - left), (top - bottom)) == grid[::-1]
    peaks = {(row + 0.5 + bottom, column + 0.5 + left) for row, column in zip(*np.nonzero(shown > 0.5 * shown.max()), strict=True)}
    assert peaks == {u, (-u[0], -u[1])}
    assert "cycles per image" in axes.get_xlabel()
    assert axes.get_title() == "a wave"


def test_heat_maps_show_four_decades_and_as_many_panels_as_maps():
    map = torch.rand(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    map[:, 0, 0] = 0
    figure = map_figure({str(i): 10.0**i * map for i in range(7)})
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(drawn) == 7
    assert sum(axes.axison for axes in figure.axes) == 14  # and their colour bars
    for image in drawn:
        assert image.norm.vmax == pytest.approx(1e4 * image.norm.vmin)
        assert image.get_array().min() == pytest.approx(image.norm.vmin)
    assert np.allclose(drawn[3].get_array(), 1000 * drawn[0].get_array())
    assert pyplot.get_fignums() == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "maps: expected one map or more"),
        ({"a": torch.zeros(1, 4, 4)}, "map: expected numbers ≥ 0, not all 0, got 0 to 0"),
        ({"a": -torch.ones(1, 4, 4)}, "map: expected numbers ≥ 0"),
        ({"a": torch.ones(4, 4)}, r"map: expected .*\(C, H, W\)"),
        ({"a": torch.full((1, 4, 4), torch.nan)}, "map: .*NaN"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        map_figure(maps)
