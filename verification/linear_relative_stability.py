r"""Relative stability of a linear CNN is a weighted mean of the spectrum of τx − x, and to images of spectrum k^{−2} all are neutral.

Let f be a stack of circular convolutions with the blocks $V_q$ on N sites and m channels, y = τx − x the difference that a deformation
makes, $S(q) = \mathbb E\,\hat y_q \hat y_q^\dagger / N$, and η white noise with E‖η‖² = E‖y‖².  For all images and deformations

$$R_f = \frac{\mathbb E\|f(\tau x) - f(x)\|^2}{\mathbb E\|f(x + \eta) - f(x)\|^2}
      = \frac{N m \sum_q \operatorname{tr} V_q S(q) V_q^\dagger}{\sum_q \|V_q\|^2 \sum_q \operatorname{tr} S(q)} .$$

For band-limited images with the spectrum $S_k$ and a Gaussian stationary τ of covariance ρ(h), S(q) is the transform of
$\frac1N \sum_k S_k e^{ikh} (e^{-|k|^2(\sigma^2 - \rho(h))} - 2e^{-|k|^2\sigma^2/2} + 1)$ (cosines at middle frequencies of even sides).
To first order in the displacement, with P the spectrum of τ of sum 1 and $w_q = \|V_q\|^2/\sum\|V\|^2$, images of spectrum $|k|^{-2} I$
give

$$R_f = \frac{N}{N - \sum_k \nu_k} \Big(1 - \sum_{q,k} w_q P(q - k)\, \nu_k\Big),$$

$\nu_0 = 1$, and $\nu_k$ the share of |k|² in middle frequencies of even sides: near 1 for every network with little weight where τ lives.
For a low-pass (P ∗ w larger on average inside every circle) R_f at α < 2 is at most that at α = 2, and at α > 2 at least that.

Source: theorem, proof and exceptions are derived in docs/linear-relative-stability.md; relative stability is that of Petrini et al., arXiv
2105.02468.  Networks with readout or zero padding, and other interpolations, are outside the statement and predicted to fail.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Interval as Between
from annotated_types import Len
from torch import Tensor

from linconv import images
from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, at_most, control, main
from linconv.deformation import displacement_covariance, sample_displacements, temperature_range
from linconv.linear_stability import linear_relative_stability, relative_stability_bounds, spectral_covariance
from linconv.stationary_fields import (
    bandlimited_warp,
    difference_covariance,
    first_order_difference_covariance,
    maximum_entropy_covariance,
)
from verification._given import Given, InputShape, ModulePath, Net, on_given_network
from verification._linear_stability_exceptions import exception_checks, shuffle_checks
from verification._linear_stability_laws import crossing_checks, neutral_checks, order_checks
from verification._linear_stability_map import figure, low_pass, stability_map
from verification._linear_stability_setting import (
    Compared,
    Ratio,
    Weights,
    blocks_of,
    deformed,
    differences,
    drawn,
    energies,
    enumerated,
    measured,
    outputs,
    power_law,
    random_network,
    randomly_shifted,
    ratio,
    site_mean,
    synthetic_images,
    within,
)
from verification._three_sources import three_sources

FAST = {"side": 8, "samples": 40, "draws": 250, "displacements": (0.1, 1.0, 2.0), "points": 6}
CHANNELS = 2


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    side: Annotated[int, Between(ge=8, le=32), "height of the images; their width is one more in part (a)"] = 12,
    samples: Annotated[int, Between(ge=20, le=100_000), "number of images"] = 200,
    draws: Annotated[int, Between(ge=200, le=1_000_000), "draws of images and deformations behind each Monte-Carlo mean"] = 2000,
    displacements: Annotated[
        tuple[Annotated[float, Between(ge=0.01, le=3)], ...], Len(2, 40), "displacements σ of the map, increasing, in pixels"
    ] = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0),
    points: Annotated[int, Between(ge=6, le=1000), "exponents α of the map, from −1 to 4"] = 21,
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of images, deformations and networks"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Figure | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(on_network, net, module, input_shape, torch.Generator().manual_seed(seed), least_depth=2)
        return
    if not all(low < high for low, high in pairwise(displacements)):
        raise UsageError(f"displacements must increase, got {' '.join(map(str, displacements))}; sort them and drop what occurs twice")
    generator = torch.Generator().manual_seed(seed)
    try:
        wide, square = (images.load(data, samples=samples, grid=grid, generator=generator) for grid in ((side, side + 1), (side, side)))
    except (ValueError, OSError) as error:
        raise UsageError(f"data: {error}") from error
    yield Note(f"{len(wide)} images of {data}, {wide.images.shape[1]} channels, side {side}, {draws} draws", in_scope=True)
    compared: Compared = []
    yield from exact_checks(wide.images, generator)
    yield from noise_checks(wide.images, generator)
    yield from spectrum_checks(square.images, draws, generator, compared)
    yield from neutral_checks(generator)
    marks: list[tuple[float, float, Ratio]] = []
    yield from order_checks(draws, generator, marks)
    yield Progress("map of the crossing")
    line, plane = (stability_map(grid, displacements, points) for grid in ((33,), (15, 15)))
    yield from crossing_checks(line)
    yield from crossing_checks(plane)
    yield from exception_checks(square, generator)
    yield from shuffle_checks(generator)
    yield Figure("linear_relative_stability", lambda: figure(line, plane, marks, compared))
    yield Figure("three_sources", lambda: three_sources(seed))


def on_network(given: Given) -> Iterator[Check | Note | Progress]:
    """The hidden convolutions without the readout, to which the statement does not extend: R of arbitrary differences, and its bounds."""
    hidden = [w.detach() for w in given.net.weights[:-1]]
    yield Note("the hidden convolutions alone: with a readout the statement does not hold", in_scope=True)
    yield Progress("answers to every impulse")
    y = torch.randn(20, *given.input_shape, dtype=torch.float64, generator=given.generator).cumsum(-1)
    s, observed = spectral_covariance(y), measured(hidden, y).value
    yield agree("(a) arbitrary differences", observed, linear_relative_stability(blocks_of(hidden, given.net.grid), s), size=4096)
    low, high = relative_stability_bounds(s)
    yield at_most("(a) not above the largest eigenvalue of S over the mean", observed, high)
    yield at_most("(a) not below the smallest", low, observed)
    yield from formula_controls(hidden, y, s)


def exact_checks(x: Tensor, generator: torch.Generator) -> Iterator[Check]:
    """(a) The closed form is an identity for the differences at hand: no sampling error, no assumption on images or deformation."""
    m = x.shape[1]
    y = deformed(x, 0.25, generator) - x
    grid = tuple(y.shape[2:])
    networks = {
        "random filters": random_network((m, 4, m), (3, 3), generator),
        "low-pass": low_pass(3, 2, m),
        "channel mixing": random_network((m, m), (1, 1), generator),
    }
    s = spectral_covariance(y)
    for name, net in networks.items():
        yield agree(f"(a) deformed images, {name}", measured(net, y).value, linear_relative_stability(blocks_of(net, grid), s), size=4096)
    for sites in ((11,), (4, 3, 5)):
        z = torch.randn(20, CHANNELS, *sites, dtype=torch.float64, generator=generator).cumsum(-1)
        net = random_network((CHANNELS, 3, 2), (3,) * len(sites), generator)
        formula = linear_relative_stability(blocks_of(net, sites), spectral_covariance(z))
        yield agree(f"(a) arbitrary differences on {'×'.join(map(str, sites))} sites", measured(net, z).value, formula, size=4096)
    low, high = relative_stability_bounds(s)
    found = [measured(net, y).value for net in networks.values()]
    yield at_most("(a) no network above the largest eigenvalue of S over the mean", found, high)
    yield at_most("(a) none below the smallest", [low] * len(found), found)
    yield from formula_controls(networks["random filters"], y, s)


def formula_controls(net: Weights, y: Tensor, s: Tensor) -> Iterator[Check]:
    """Formulas that are wrong, against the measured value."""
    grid, observed = tuple(y.shape[2:]), measured(net, y).value
    v = blocks_of(net, grid).values
    half, last = grid[-1] // 2 + 1, len(grid) - 1
    truth = _formula(v, s)
    wrong = {
        "N m left out": _formula(v, s) / (y.shape[1] * math.prod(grid)),
        "blocks transposed": _formula(v.mT, s) if v.shape[-1] == v.shape[-2] else truth,
        "blocks conjugated": _formula(v.conj(), s),
        "covariance transposed": _formula(v, s.mT),
        "singular values in the place of their squares": _formula(_rooted(v), s),
        "half a spectrum without pair weights": _formula(v.narrow(last, 0, half), s.narrow(last, 0, half)),
        "channels of the covariance summed before the mean": _formula(v, torch.eye(y.shape[1]) * s.sum((-2, -1), keepdim=True)),
    }
    for name, value in wrong.items():
        if abs(value - truth) > 1e-6 * truth:  # with one channel, or blocks that are real, some of these are the formula itself
            yield control(f"(a) {name}", agree("", observed, value, size=4096))


def _formula(v: Tensor, s: Tensor) -> float:
    """The closed form written out, for variants of its parts."""
    power = torch.diagonal(s, dim1=-2, dim2=-1).real.mean()
    return float((v @ s.to(v.dtype) * v.conj()).real.sum() / (v.abs().square().sum() * power))


def _rooted(v: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(v, full_matrices=False)
    return left @ (values.sqrt()[..., None] * right)


def noise_checks(x: Tensor, generator: torch.Generator) -> Iterator[Check]:
    """(b) The same with noise that is drawn, of the norm of each difference or of their mean norm."""
    y = deformed(x, 0.25, generator) - x
    y = y.repeat(math.ceil(1000 / len(y)), 1, 1, 1)
    net = low_pass(2, 2, x.shape[1])
    moved, power = energies(outputs(net, y)), energies(y)
    formula = linear_relative_stability(blocks_of(net, tuple(y.shape[2:])), spectral_covariance(y))
    noise = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    answers = energies(outputs(net, noise)) / energies(noise)  # to noise of norm 1
    norm = power.sqrt().mean()
    for name, target, factor in (
        ("each difference", power, 1.0),
        ("norms as their mean", norm.square().expand_as(power), power.mean() / norm**2),
    ):
        drawn = ratio(answers * target, target)
        found = float(moved.mean() / target.mean()) / drawn.value
        observed = Ratio(found, found * drawn.error / drawn.value)
        yield within(
            f"(b) noise drawn, norms of {name}" if factor == 1 else f"(b) noise drawn, {name}", observed, formula * float(factor), len(y)
        )
        if factor != 1:
            yield control("(b) the mean norm taken for the root of the mean square", within("", observed, formula, len(y)))


def spectrum_checks(x: Tensor, draws: int, generator: torch.Generator, compared: Compared) -> Iterator[Check | Note | Progress]:
    """(c) S of τx − x to all orders, for synthetic images and for photographs."""
    cases = [((6,), 0.0, 0.5, 1), ((12,), 2.0, 1.0, 3), ((15,), 1.5, 0.7, 3), ((8, 9), 2.0, 0.8, 2), ((4, 5, 3), 1.0, 0.5, 1)]
    for grid, exponent, sigma, cutoff in cases:
        label = f"(c) {'×'.join(map(str, grid))} sites, α = {exponent:g}, σ = {sigma:g}:"
        yield Progress(label)
        rho, known = maximum_entropy_covariance(grid, variance=sigma**2, cutoff=cutoff), power_law(grid, exponent, CHANNELS)
        y = differences(synthetic_images(draws, grid, exponent, CHANNELS, generator), rho, generator)
        yield from compare(label, "synthetic", y, difference_covariance(known, rho), generator, compared)
        if sigma > 0.6:
            first = first_order_difference_covariance(known, rho)
            yield control(f"{label} the first order alone", total("", y, first))
    yield from enumeration_checks(draws, generator)
    yield from photograph_checks(x, draws, generator, compared)


def photograph_checks(x: Tensor, draws: int, generator: torch.Generator, compared: Compared) -> Iterator[Check | Note]:
    """(c) Given images, periodic: any at all where τ is stationary, and else where they are shifted at random."""
    many = x.repeat(max(2, math.ceil(draws / len(x))), 1, 1, 1)
    grid, s = (x.shape[2], x.shape[3]), spectral_covariance(x)
    rho = maximum_entropy_covariance(grid, variance=1.0, cutoff=2)
    y = differences(many, rho, generator)
    label = "(c) images as given, stationary τ of 1 pixel:"
    yield from compare(label, "photographs", y, difference_covariance(s, rho), generator, compared, len(x))
    temperature = temperature_range(grid[0], 3)[1]
    tau = sample_displacements(len(many), grid, temperature=temperature, cutoff=3, generator=generator)
    shifted = randomly_shifted(many, generator)
    pairs = displacement_covariance(grid, temperature=temperature, cutoff=3)
    y = bandlimited_warp(shifted, tau) - shifted
    label, covariance = "(c) images shifted at random, maximum-entropy τ:", difference_covariance(s, pairs)
    yield from compare(label, "photographs", y, covariance, generator, compared, len(x))
    averaged = difference_covariance(s, site_mean(pairs))
    off = float(
        torch.diagonal(averaged - covariance, dim1=-2, dim2=-1).real.sum() / torch.diagonal(covariance, dim1=-2, dim2=-1).real.sum()
    )
    yield Note(f"images shifted at random: with ρ averaged over sites before the exponential the total is off by {off:.1%}")


def compare(
    label: str, kind: str, y: Tensor, covariance: Tensor, generator: torch.Generator, compared: Compared, given: int = 0
) -> Iterator[Check]:
    """Total and R of two networks, from differences that were drawn and from the spectrum that was computed."""
    m, dims, grid = y.shape[1], y.ndim - 2, tuple(y.shape[2:])
    yield total(f"{label} E‖y‖²", y, covariance, given)
    for name, net in (("low-pass", low_pass(2, dims, m)), ("random filters", random_network((m, 3), (3,) * dims, generator))):
        found, expected = measured(net, y, images=given), linear_relative_stability(blocks_of(net, grid), covariance)
        compared.append((kind, expected, found))
        yield within(f"{label} R, {name}", found, expected, len(y))


def total(name: str, y: Tensor, covariance: Tensor, given: int = 0) -> Check:
    powers = energies(y)
    found = ratio(powers, torch.ones_like(powers), images=given)
    return within(name, found, float(torch.diagonal(covariance, dim1=-2, dim2=-1).real.sum()), len(y))


def enumeration_checks(draws: int, generator: torch.Generator) -> Iterator[Check]:
    """(c) The formula against sums over all frequencies and pairs of sites, fields stationary or not, and what a cosine changes."""
    for n in (7, 6):
        s, rho = power_law((n,), 1.0), maximum_entropy_covariance((n,), variance=0.5, cutoff=1)
        mixing = torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5
        for name, given in (("stationary τ", rho), ("any Gaussian τ", mixing @ mixing.T)):
            observed = difference_covariance(s, given)[:, 0, 0].real
            yield agree(
                f"(c) {n} sites, {name}: formula and enumeration", observed, enumerated(s[:, 0, 0].real.numpy(), given.numpy()), size=4096
            )
            if given.ndim == 2:
                sites = torch.arange(n)
                averaged = given[sites, (sites[:, None] + sites) % n].mean(1)
                wrong = difference_covariance(s, averaged)[:, 0, 0].real
                yield control(f"(c) {n} sites, {name}: ρ averaged over sites before the exponential", agree("", observed, wrong))
            if n % 2 == 0:
                y = bandlimited_warp(x := synthetic_images(draws, (n,), 1.0, 1, generator), drawn(given, draws, generator)) - x
                wave = torch.from_numpy(enumerated(s[:, 0, 0].real.numpy(), given.numpy(), cosine=False))
                yield total(f"(c) {n} sites, {name}: E‖y‖²", y, observed[:, None, None])
                yield control(f"(c) {n} sites, {name}: a travelling wave at the middle frequency", agree("", observed, wave))


if __name__ == "__main__":
    main(claim)
