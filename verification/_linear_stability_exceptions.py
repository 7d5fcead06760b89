"""What lies outside the closed form, with the size of its error there; photographs; channels shuffled between layers."""

import math
from collections.abc import Iterator
from itertools import permutations, product

import torch
from jaxtyping import Float
from torch import Tensor

import linconv as lc
from linconv import images
from linconv.claims import Check, Note, Progress, agree, control, exceeds, predicted_failure
from linconv.deformation import warp
from linconv.linear_stability import (
    linear_relative_stability,
    readout_relative_stability,
    shuffled_relative_stability,
    spectral_covariance,
)
from linconv.spectrum import FrequencyBlocks
from linconv.stationary_fields import bandlimited_warp, difference_covariance, maximum_entropy_covariance, stationary_displacements
from verification._linear_stability_map import low_pass
from verification._linear_stability_setting import (
    Weights,
    blocks_of,
    deformed,
    energies,
    filter_network,
    gain,
    measured,
    outputs,
    random_network,
    ratio,
    within,
)

EXCEPTION = 1e-3  # relative error that an exception must show, far above rounding
PERMUTED = 3  # channels of the shuffled network: all (3!)² pairs of permutations are enumerated


def exception_checks(loaded: images.ImageSet, generator: torch.Generator) -> Iterator[Check | Note | Progress]:
    """(g) Readout, zero padding, interpolation, fields and images that are not stationary: the formula is off, and by how much."""
    yield Progress("exceptions")
    x = loaded.images
    y = deformed(x, 0.25, generator) - x
    yield from readout_checks(loaded, y)
    yield from padding_checks(y, generator)
    yield from interpolation_checks(x, generator)
    yield from photograph_checks(x, generator)


def readout_checks(loaded: images.ImageSet, y: Float[Tensor, "N C *grid"]) -> Iterator[Check | Note]:
    """A trained readout mixes frequencies: it needs E y yᵀ. Over all shifts of the differences frequencies are uncorrelated again."""
    x, targets = images.center(loaded.images), loaded.one_hot()
    blocks = FrequencyBlocks.from_predictor(lc.fit(x, targets - targets.mean(0), depth=1, weight_decay=1e-2, tol=1e-6).predictor)
    beta = blocks.predictor().flatten(1)
    flat = y.flatten(1)
    observed = float((flat @ beta.T).square().sum() / flat.square().sum() / beta.square().sum() * flat.shape[1])
    yield agree("(g) readout, the whole covariance", observed, readout_relative_stability(blocks, flat.T @ flat / len(flat)), size=4096)
    formula = linear_relative_stability(FrequencyBlocks(blocks.values, "equivariant"), spectral_covariance(y))
    why = "a thousandth: an error that rounding cannot make"
    yield predicted_failure(
        "(g) readout, the covariance at each frequency alone", agree("", observed, formula, tolerance=EXCEPTION, reason=why)
    )
    yield Note(f"a readout trained on the labels has R = {observed:.3f} where the formula without its condition says {formula:.3f}")
    grid = tuple(y.shape[2:])
    shifts = [y.roll(shift, (2, 3)).flatten(1) @ beta.T for shift in product(*map(range, grid))]
    shifted = float(torch.stack(shifts).square().sum() / len(shifts) / flat.square().sum() / beta.square().sum() * flat.shape[1])
    yield agree("(g) readout, differences at all shifts", shifted, formula, size=4096)


def padding_checks(y: Float[Tensor, "N C *grid"], generator: torch.Generator) -> Iterator[Check | Note]:
    """With zero padding a convolution is no multiplication at each frequency."""
    s, m = spectral_covariance(y), y.shape[1]
    for name, net in (("low-pass", low_pass(5, 2, m)), ("random filters", random_network((m, 4, 3), (3, 3), generator))):
        observed, formula = measured(net, y, "zeros").value, linear_relative_stability(blocks_of(net, tuple(y.shape[2:])), s)
        off = agree("", observed, formula, tolerance=EXCEPTION, reason="a thousandth: an error that rounding cannot make")
        yield predicted_failure(f"(g) zero padding, {name}", off)
        yield Note(f"{name} with zero padding has R = {observed:.3f}, with circular padding {formula:.3f}")


def interpolation_checks(x: Float[Tensor, "N C H W"], generator: torch.Generator) -> Iterator[Check | Note]:
    """The spectrum of band-limited differences is not that of linear interpolation, which blurs; nor that of fields that fade at edges."""
    grid, s = tuple(x.shape[2:]), spectral_covariance(x)
    many = x.repeat(math.ceil(1000 / len(x)), 1, 1, 1)
    rho = maximum_entropy_covariance(grid, variance=0.25, cutoff=2)
    tau = stationary_displacements(len(many), rho, generator=generator)
    predicted = difference_covariance(s, rho)
    power = float(torch.diagonal(predicted, dim1=-2, dim2=-1).real.sum())
    net = low_pass(2, 2, x.shape[1])
    formula = linear_relative_stability(blocks_of(net, grid), predicted)
    for name, warped in (("linear interpolation", warp(many, tau, boundary="periodic")), ("band-limited", bandlimited_warp(many, tau))):
        y = warped - many
        powers, found = energies(y), measured(net, y)
        check = within(f"(g) {name}: E‖y‖²", ratio(powers, torch.ones_like(powers), images=len(x)), power, len(y))
        yield predicted_failure(check.name, check) if name.startswith("linear") else check
        yield Note(
            f"photographs, σ = 0.5: {name} has E‖y‖² = {float(powers.mean()) / power:.3f} of the formula and R = {found.value:.3f}, "
            f"the formula {formula:.3f}"
        )


def photograph_checks(x: Float[Tensor, "N C H W"], generator: torch.Generator) -> Iterator[Check | Note]:
    """Natural images: spatial pooling by a linear network does not lower R."""
    for share in (0.01, 0.25):
        y = deformed(x, share, generator) - x
        about = f"images deformed at {share:g} of the greatest temperature, bilinear:"
        for layers in (1, 5):
            found = measured(low_pass(layers, 2, x.shape[1]), y).interval
            yield exceeds(f"(g) {about} R of {layers} layers [1, 1, 1] is above 1", found, 1.0, draws=len(y), required=False)
        high = measured(filter_network([1.0, -2.0, 1.0], x.shape[1], 2, 1), y)
        yield Note(f"{about} R of the high-pass [1, −2, 1] is {high.value:.3f}")


def shuffle_checks(generator: torch.Generator) -> Iterator[Check | Note]:
    """(h) Channels shuffled between layers: the expectation against all permutations, numerator and denominator each."""
    grid, c = (5, 6), PERMUTED
    layers = [random_network((a, b), (3, 3), generator)[0] for a, b in ((2, c), (c, c), (c, 2))]
    y = torch.randn(20, 2, *grid, dtype=torch.float64, generator=generator).cumsum(2)
    moved, white, ratios = [], [], []
    for first, second in product(permutations(range(c)), repeat=2):
        net: Weights = [layers[0], layers[1][:, list(first)], layers[2][:, list(second)]]
        moved.append(float(energies(outputs(net, y)).sum()))
        white.append(gain(net, 2, grid))
        ratios.append(moved[-1] / white[-1])
    observed = sum(moved) / sum(white) / float(energies(y).sum())
    s = spectral_covariance(y)
    blocks = [lc.conv_blocks(w, grid) for w in layers]
    yield agree("(h) channels shuffled twice, all permutations", observed, shuffled_relative_stability(blocks, s), size=4096)
    mean = sum(ratios) / len(ratios) / float(energies(y).sum())
    yield control("(h) the mean of R over permutations", agree("", mean, shuffled_relative_stability(blocks, s), size=4096))
    plain = linear_relative_stability(blocks_of(layers, grid), s)
    yield control("(h) no shuffling", agree("", observed, plain, size=4096))
    single = shuffled_relative_stability([blocks[0], blocks[2] @ blocks[1]], s)
    yield control("(h) one of the two shuffles", agree("", observed, single, size=4096))
