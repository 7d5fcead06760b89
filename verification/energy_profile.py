r"""Gradient descent writes a computable energy profile into the first layer of a linear CNN, and sometimes the published one.

K filters W see the mean patch $\bar p_n$ of each image (convolution, global average pooling), a fixed head V adds their answers up, and
gradient descent with step η runs on $\frac1N \sum_n \|y_n - V W \bar p_n\|^2$. With
$A = \frac1N \sum_n \bar p_n \bar p_n^T = Q \alpha Q^T$, $B = \frac1N \sum_n y_n \bar p_n^T$ and V = P S Rᵀ the modes $z = R^T W Q$ obey,
for any data and any number of steps,

$$z_{ai}(t) = (1 - 2\eta s_a^2 \alpha_i)^t z_{ai}(0) + \frac{1 - (1 - 2\eta s_a^2\alpha_i)^t}{s_a \alpha_i} (P^T B Q)_{ai},$$

and W keeps what neither V nor the data reach. For one output that sums the filters, $e_i^2 = s_i^2 + \langle u_i, \bar w_t\rangle^2$
with s_i conserved. Published (theorem 4.2), λ_i² being the variance of all patches along u_i:

$$e_i = \tilde c\, |1 - (1 - \eta\lambda_i^2)^t| / (\eta^2\lambda_i^2) \cdot \lambda_i .$$

Source: Chowers and Weiss, arXiv 2206.02454, for the model and the published formula; the exact law, its expectation over random labels
and the joint training of both layers are derived in docs/energy-profile.md. The published shape needs α_i ∝ λ_i², as holds where the
patches of an image are uncorrelated: it is tested on images made of shuffled tiles, and its failure on natural images is predicted.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, control, main, predicted_failure
from linconv.patches import energy_profile, mean_patches, patch_spectrum
from linconv.profile_fits import fit_published
from linconv.profiles import ExactDynamics, exact_dynamics, predicted_profile, published
from verification._figure_profiles import Fitted, figure
from verification._pooled_networks import (
    SIGMAS,
    Data,
    descend,
    descend_by_doubling,
    descend_outputs,
    load,
    normal,
    pooled_patches,
    rounding,
    stable_step,
)
from verification._profile_limits import exponent_checks, joint_checks, label_checks, limit_checks

FAST = {"samples": 100, "outputs": 60, "steps": 20}
TRAINED = 100  # images that torch's convolution is trained on; the laws hold for any


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    samples: Annotated[int, Interval(ge=100, le=100_000), "number of images N"] = 600,
    side: Annotated[int, Interval(ge=6, le=256), "side of the square images"] = 15,
    kernel: Annotated[int, Interval(ge=2, le=7), "side of the patches"] = 3,
    filters: Annotated[int, Interval(ge=3, le=64), "filters K of the networks with one and with three outputs"] = 4,
    steps: Annotated[int, Interval(ge=10, le=10_000), "steps t of gradient descent"] = 100,
    outputs: Annotated[int, Interval(ge=20, le=2000), "vectors of random labels M, one filter each"] = 200,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of images, filters and labels"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    if side < 2 * kernel:
        raise UsageError(f"side must be at least {2 * kernel}, twice the kernel, so that an image has several tiles, got {side}")
    generator = torch.Generator().manual_seed(seed)
    yield Progress("decomposing patches")
    natural, tiles, labels = load(data, samples, side, kernel, generator)
    yield Note(f"{samples} images of {data}, {natural.spectrum.patches_per_image} patches of {kernel}×{kernel} pixels each", in_scope=True)
    yield from exact_checks(natural, labels, filters, steps, generator)
    yield from head_checks(natural, filters, steps, generator)
    shown: list[Fitted] = []
    yield from tile_checks(tiles, outputs, steps, generator, shown)
    yield from natural_checks(natural, outputs, steps, generator, shown)
    yield Figure("energy_profile", lambda: figure(shown, f"Random labels, t = {steps}: {samples} images of {data}, {outputs} outputs"))
    yield from label_checks(natural, generator)
    yield from limit_checks(natural, labels, filters, generator)
    yield from exponent_checks(natural, tiles, outputs, generator)
    yield from joint_checks(tiles, filters, generator)


def exact_checks(data: Data, labels: Float[Tensor, " N"], count: int, steps: int, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(a) One output, natural images, true labels: torch's convolution against the exact law, and mistakes that must be told apart."""
    yield Progress("training a network with one output")
    spectrum, x, y = data.spectrum, data.x[:TRAINED], labels[:TRAINED]
    eta = stable_step(pooled_patches(data)[:TRAINED], count)
    start = 0.3 * normal(generator, count, *spectrum.patch_shape)
    trained = descend(data, x, y[:, None], start, torch.ones(1, count, dtype=torch.float64), eta, steps)
    law = exact_dynamics(spectrum, x, y, start, step_size=eta)
    yield agree(f"(a) filters after {steps} steps of torch", trained, law.at(steps), **rounding(steps))
    predicted = predicted_profile(spectrum, form="exact", step_size=eta, steps=steps, images=x, targets=y, filters=start)
    yield agree("(a) their energy profile", energy_profile(trained, spectrum.components), predicted, **rounding(steps))
    before, after = ((w - w.mean(0)).flatten(1) @ spectrum.components.T for w in (start, trained))
    yield agree("(a) differences of filters are conserved", after.square().mean(0), before.square().mean(0), **rounding(steps))
    raw = patch_spectrum(data.x, spectrum.windows.kernel, center=False)
    slow = stable_step(mean_patches(raw, x), count)
    wrong = {
        "rate 2ηKα without its 2": exact_dynamics(spectrum, x, y, start, step_size=eta / 2).at(steps),
        "rate 2ηKα without K": exact_dynamics(spectrum, x, y, start, step_size=eta / count).at(steps),
        "one step less": law.at(steps - 1),
        "a start at zero": exact_dynamics(spectrum, x, y, 0 * start, step_size=eta).at(steps),
        "patches not centred": exact_dynamics(raw, x, y, start, step_size=slow).at(round(steps * eta / slow)),
        "labels in another order": exact_dynamics(spectrum, x, y.roll(1), start, step_size=eta).at(steps),
    }
    for name, filters in wrong.items():
        yield control(f"(a) {name}", agree("", trained, filters, **rounding(steps)))


def head_checks(data: Data, count: int, steps: int, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(b) Three outputs and a random head, of rank 2."""
    yield Progress("training a network with three outputs")
    spectrum, x = data.spectrum, data.x[:TRAINED]
    start, head, targets = normal(generator, count, *spectrum.patch_shape), normal(generator, 3, count), normal(generator, len(x), 3)
    head[2] = head[0] + head[1]
    eta = stable_step(pooled_patches(data)[:TRAINED], float(torch.linalg.matrix_norm(head, 2)) ** 2)
    trained = descend(data, x, targets, start, head, eta, steps)
    law = exact_dynamics(spectrum, x, targets, start, step_size=eta, head=head)
    yield agree("(b) three outputs, head of rank 2", trained, law.at(steps), **rounding(steps))
    summed = exact_dynamics(spectrum, x, targets.sum(1), start, step_size=stable_step(mean_patches(spectrum, x), count)).at(steps)
    yield control("(b) the head taken for a sum", agree("", trained, summed, **rounding(steps)))


def tile_checks(
    tiles: Data, outputs: int, steps: int, generator: torch.Generator, shown: list[Fitted]
) -> Iterator[Check | Note | Progress]:
    """(c) Shuffled tiles, random labels, one filter an output: the published profile, with η read as 2η/J."""
    yield Progress("training on shuffled tiles")
    energies, lambdas, printed, law = random_label_profile(tiles, normal(generator, len(tiles.x), outputs), steps)
    fit = fit_published(energies, lambdas, step_size=printed, generator=generator)
    shown.append(Fitted("shuffled tiles", energies, lambdas, fit, energies_of(tiles, law, steps)))
    yield from remarks("shuffled tiles", tiles, fit.verdict)
    terms = sampling(tiles, outputs)
    shape = logarithm(published(lambdas, printed, steps))
    yield agree("(c) shuffled tiles: published profile", logarithm(energies), shape, p_value=fit.p_value, draws=outputs, **terms)
    wrong = {
        "whitening from the start": 1 / lambdas,
        "no whitening": lambdas,
        "1/J dropped": published(lambdas, printed, steps * tiles.spectrum.patches_per_image),
        "order of components reversed": published(lambdas, printed, steps).flip(0),
    }
    for name, other in wrong.items():
        yield control(f"(c) {name}", agree("", logarithm(energies), logarithm(other), **terms))


def natural_checks(
    natural: Data, outputs: int, steps: int, generator: torch.Generator, shown: list[Fitted]
) -> Iterator[Check | Note | Progress]:
    """(c) Natural images at stride 1, the rest the same: patches overlap and look alike, and the published profile is predicted to fail."""
    yield Progress("training on natural images")
    labels = normal(generator, len(natural.x), outputs)
    energies, lambdas, printed, law = random_label_profile(natural, labels, steps)
    fit = fit_published(energies, lambdas, step_size=printed, generator=generator)
    shown.append(Fitted("natural images, stride 1", energies, lambdas, fit, energies_of(natural, law, steps)))
    yield from remarks("natural images, stride 1", natural, fit.verdict)
    rows = pooled_patches(natural)
    late = energy_profile(descend_by_doubling(rows, labels, stable_step(rows), 27), natural.spectrum.components)
    for t, found in ((steps, energies), (2**27, late[natural.spectrum.lambdas > 0])):
        shape = published(lambdas, printed, t)
        correlation = float(torch.corrcoef(torch.stack([found, shape]))[0, 1])
        yield Note(f"natural images, stride 1: the published profile at t = {t} correlates {correlation:.2f}")
        check = agree("", logarithm(found), logarithm(shape), **sampling(natural, outputs))
        yield predicted_failure(f"(c) natural images, stride 1: published profile at t = {t}", check)


def random_label_profile(
    data: Data, labels: Float[Tensor, "N M"], steps: int
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], float, ExactDynamics]:
    """Energies of filters that torch trained from zero, one an output, λ where it is not 0, the formula's η, and the exact law."""
    spectrum, rows = data.spectrum, pooled_patches(data)
    eta, eye = stable_step(rows), torch.eye(labels.shape[1], dtype=torch.float64)
    trained = descend_outputs(rows, labels, eta, steps)
    start = torch.zeros_like(trained).unflatten(1, spectrum.patch_shape)
    law = exact_dynamics(spectrum, data.x, labels, start, step_size=eta, head=eye)
    varies = spectrum.lambdas > 0
    lambdas = spectrum.lambdas[varies]
    # On natural images 2η/J lies beyond the formula's own bound; 1/λ² is its fastest start.
    printed = min(2 * eta / spectrum.patches_per_image, 1 / float(lambdas.max()) ** 2)
    return energy_profile(trained, spectrum.components)[varies], lambdas, printed, law


def energies_of(data: Data, law: ExactDynamics, steps: int) -> Float[Tensor, " m"]:
    """The energies of the exact law along the components with λ > 0."""
    return energy_profile(law.at(steps), data.spectrum.components)[data.spectrum.lambdas > 0]


def remarks(kind: str, data: Data, verdict: str) -> Iterator[Note]:
    rates, along = (f"{float(ratio.min()):.2g} and {float(ratio.max()):.2g}" for ratio in (data.rate_ratios(), data.spread()))
    yield Note(f"{kind}: Jα_i/λ_i², α_i the eigenvalues of A by rank, lies between {rates}; J u_iᵀAu_i/λ_i², along each component, {along}")
    yield Note(f"{kind}, published formula at its best t: {verdict}")


def sampling(data: Data, outputs: int) -> dict[str, Any]:
    n, size = len(data.x), len(data.spectrum.lambdas)
    allowed = SIGMAS * math.sqrt(1 / (2 * outputs) + 1 / (2 * n)) + size / (2 * n)
    why = f"sampling error of log e: {SIGMAS} standard deviations for {outputs} label vectors and {n} images, and P/2N for bias"
    return {"tolerance": allowed, "reason": why, "scale": 1.0}


def logarithm(energies: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Logarithms less their mean: profiles up to the constant c̃."""
    return energies.log() - energies.log().mean()


if __name__ == "__main__":
    main(claim)
