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

from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, control, main, predicted_failure, rate
from linconv.patches import energy_profile, mean_patches, patch_spectrum
from linconv.profile_fits import fit_published
from linconv.profiles import ExactDynamics, balance_change, exact_dynamics, moments, predicted_profile, published, small_start_limit
from verification._figure_profiles import Fitted, figure
from verification._pooled_networks import Data, chi_spread, descend, descend_pooled, load, pooled_patches

FAST = {"samples": 100, "outputs": 60, "steps": 20}
SIGMAS = 4.5  # of a normal deviate: the largest of a few dozen exceeds it once in some thousand runs
TRAINED = 100  # images that torch's convolution is trained on; the laws hold for any
REPEATS = 400
NEAR = "of the slope, whose limit is approached"
EPSILON = torch.finfo(torch.float64).eps


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
    yield from exponent_checks(natural, outputs, generator)
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
    energies, lambdas, printed, law = random_label_profile(tiles, outputs, steps, generator)
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
    energies, lambdas, printed, law = random_label_profile(natural, outputs, steps, generator)
    fit = fit_published(energies, lambdas, step_size=printed, generator=generator)
    shown.append(Fitted("natural images, stride 1", energies, lambdas, fit, energies_of(natural, law, steps)))
    yield from remarks("natural images, stride 1", natural, fit.verdict)
    for t, found in ((steps, energies), (10**8, energies_of(natural, law, 10**8))):
        shape = published(lambdas, printed, t)
        correlation = float(torch.corrcoef(torch.stack([found, shape]))[0, 1])
        yield Note(f"natural images, stride 1: the published profile at t = {t} correlates {correlation:.2f}")
        check = agree("", logarithm(found), logarithm(shape), **sampling(natural, outputs))
        yield predicted_failure(f"(c) natural images, stride 1: published profile at t = {t}", check)


def label_checks(data: Data, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(d) Random labels: the expected profile, and the spread of an energy, which depends on the number of outputs only."""
    yield Progress("drawing random labels")
    spectrum, degrees, t = data.spectrum, (1, 4, 16, 64), 30
    spread = torch.tensor([chi_spread(m) for m in degrees], dtype=torch.float64)
    why = f"sampling error of a standard deviation from {REPEATS} repeats, {SIGMAS} of its own"
    terms: dict[str, Any] = {"tolerance": SIGMAS / math.sqrt(2 * REPEATS), "reason": why, "scale": spread, "draws": REPEATS}
    for count in (len(data.x), len(data.x) // 2):
        x, eye = data.x[:count], torch.eye(count, dtype=torch.float64)
        eta = stable_step(mean_patches(spectrum, x))
        # Weights that start at zero are linear in the labels: what a label of one at each image gives tells all.
        law = exact_dynamics(spectrum, x, eye, torch.zeros(count, *spectrum.patch_shape, dtype=torch.float64), step_size=eta, head=eye)
        answers = law.at(t).flatten(1) @ spectrum.components.T
        expected = predicted_profile(spectrum, form="random-labels", step_size=eta, steps=t, images=x)
        yield agree(f"(d) {count} images: the expected energies", answers.square().sum(0).sqrt(), expected, size=count * count)
        yield control(f"(d) {count} images: 1/N dropped", agree("", answers.square().sum(0).sqrt(), expected * count**0.5, size=count**2))
        found = []
        for m in degrees:
            energies = (normal(generator, REPEATS * m, count) @ answers).unflatten(0, (REPEATS, m)).square().mean(1).sqrt()
            found.append((energies.std(0) / energies.mean(0)).mean())
        observed = torch.stack(found)
        yield agree(f"(d) {count} images: spread over mean of an energy, 1, 4, 16 and 64 outputs", observed, spread, **terms)
        yield control(f"(d) {count} images: spread 1/√M", agree("", observed, 2**0.5 * spread, **terms))


def limit_checks(data: Data, labels: Float[Tensor, " N"], count: int, generator: torch.Generator) -> Iterator[Check]:
    """(e) Step sizes at one ηt, and starts that go to zero."""
    spectrum, x = data.spectrum, data.x
    eta, start = stable_step(mean_patches(spectrum, x), count) / 10, normal(generator, count, *spectrum.patch_shape)

    def energies(step: float, t: int, sigma: float) -> Float[Tensor, " P"]:
        return energy_profile(exact_dynamics(spectrum, x, labels, sigma * start, step_size=step).at(t), spectrum.components)

    halvings = [2.0**-j for j in range(5)]
    sizes = torch.stack([energies(eta * h, round(40 / h), 0.0).norm() for h in halvings])
    yield rate("(e) energies at one ηt do not depend on η", halvings, sizes, 0, tolerance=0.05, reason=NEAR)
    yield control("(e) the published factor 1/η² across step sizes", rate("", halvings, sizes, -2, tolerance=0.05, reason=NEAR))
    sigmas = [10.0**-j for j in range(6, 11)]
    noise = torch.stack([(energies(eta, 40, sigma * float(sizes[0])) - energies(eta, 40, 0.0)).abs().max() for sigma in sigmas])
    yield rate("(e) what the start adds vanishes with its size σ", sigmas, noise, 1, tolerance=0.05, reason=NEAR)
    yield control("(e) what the start adds vanishes as σ²", rate("", sigmas, noise, 2, tolerance=0.05, reason=NEAR))


def exponent_checks(data: Data, outputs: int, generator: torch.Generator) -> Iterator[Check]:
    """(f) After infinite time, random labels: whitening α^{-1/2} under fixed heads; α^{-1/4} where many outputs train both layers."""
    rows = mean_patches(data.spectrum, data.x)
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    kept = sizes > 1e-7 * sizes[0]
    alpha, q, n = sizes[kept].square() / len(rows), right[kept], len(rows)
    start, eye = torch.zeros(outputs, *data.spectrum.patch_shape, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64)
    law = exact_dynamics(data.spectrum, data.x, normal(generator, n, outputs), start, step_size=stable_step(rows), head=eye)
    alone = (law.at(math.inf).flatten(1) @ q.T).square().mean(0).sqrt()
    many = normal(generator, n, 50 * len(q))
    jointly = torch.einsum("ip,pq,iq->i", q, small_start_limit(rows, many), q).sqrt()
    terms: dict[str, Any] = {"tolerance": 0.03, "reason": "of the slope: sampling error of the labels"}
    yield rate("(f) energies under fixed heads, by α", alpha, alone, -0.5, **terms)
    yield rate("(f) energies where many outputs train both layers, by α", alpha, jointly, -0.25, **terms)
    yield control("(f) no whitening under fixed heads", rate("", alpha, alone, -0.25, **terms))
    yield control("(f) whitening where both layers are trained", rate("", alpha, jointly, -0.5, **terms))


def joint_checks(data: Data, count: int, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(g) Both layers trained by torch: balance step by step, and the limit from a small balanced start."""
    yield Progress("training both layers")
    # A few directions of moderate and different strengths: balance drifts in first order where A and BᵀB do not commute.
    directions = torch.linalg.svd(pooled_patches(data), full_matrices=False)[0][:, : count + 1] * len(data.x) ** 0.5
    rows = directions * torch.linspace(1, 1.5, count + 1, dtype=torch.float64)
    teacher = torch.linalg.qr(normal(generator, count + 1, 3))[0] * torch.linspace(1, 1.5, 3, dtype=torch.float64)
    targets = rows @ teacher + 0.5 * normal(generator, len(rows), 3)
    a, b = moments(rows, targets)
    head, filters, eta = normal(generator, 3, count), normal(generator, count, count + 1), 0.01
    changes, predicted = [], []
    for _ in range(5):
        after = descend_pooled(rows, targets, filters, head, eta, 1, both=True)
        predicted.append(balance_change(head, filters, a, b, eta))
        changes.append((after[0].T @ after[0] - after[1] @ after[1].T) - (head.T @ head - filters @ filters.T))
        head, filters = after
    change, law = torch.stack(changes), torch.stack(predicted)
    terms: dict[str, Any] = {"scale": float((head.T @ head).abs().max()), "size": 4096}
    yield agree("(g) balance lost in five steps", change, law, **terms)
    yield control("(g) the sign of the balance", agree("", change, -law, **terms))
    limit = small_start_limit(rows, targets)
    basis, etas, errors = torch.linalg.qr(normal(generator, count, count))[0], (0.012, 0.009, 0.006, 0.0045, 0.003), []
    for step in etas:
        small = 1e-4 * basis[:3]
        wide = torch.cat([small.T, small.new_zeros(count, count - 2)], 1)
        _, ended = descend_pooled(rows, targets, wide, small, step, round(12 / step), both=True)
        errors.append(float((ended.T @ ended - limit).norm() / limit.norm()))
    yield rate("(g) distance from the limit (ΘᵀΘ)^{1/2}, by η", etas, errors, 1, tolerance=0.1, reason=NEAR)
    yield control("(g) the limit is reached at any η", rate("", etas, errors, 0, tolerance=0.1, reason=NEAR))


def random_label_profile(
    data: Data, outputs: int, steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], float, ExactDynamics]:
    """Energies of filters that torch trained from zero, one an output, λ where it is not 0, the formula's η, and the exact law."""
    spectrum, rows = data.spectrum, pooled_patches(data)
    eta, start, eye = stable_step(rows), rows.new_zeros(outputs, rows.shape[1]), torch.eye(outputs, dtype=torch.float64)
    labels = normal(generator, len(rows), outputs)
    _, trained = descend_pooled(rows, labels, start, eye, eta, steps, both=False)
    law = exact_dynamics(spectrum, data.x, labels, start.unflatten(1, spectrum.patch_shape), step_size=eta, head=eye)
    varies = spectrum.lambdas > 0
    lambdas = spectrum.lambdas[varies]
    # On natural images 2η/J lies beyond the formula's own bound; 1/λ² is its fastest start.
    printed = min(2 * eta / spectrum.patches_per_image, 1 / float(lambdas.max()) ** 2)
    return energy_profile(trained, spectrum.components)[varies], lambdas, printed, law


def energies_of(data: Data, law: ExactDynamics, steps: int) -> Float[Tensor, " m"]:
    """The energies of the exact law along the components with λ > 0."""
    return energy_profile(law.at(steps), data.spectrum.components)[data.spectrum.lambdas > 0]


def remarks(kind: str, data: Data, verdict: str) -> Iterator[Note]:
    spread = data.spread()
    yield Note(f"{kind}: Jα_i/λ_i² lies between {float(spread.min()):.2g} and {float(spread.max()):.2g}")
    yield Note(f"{kind}, published formula at its best t: {verdict}")


def sampling(data: Data, outputs: int) -> dict[str, Any]:
    n, size = len(data.x), len(data.spectrum.lambdas)
    allowed = SIGMAS * math.sqrt(1 / (2 * outputs) + 1 / (2 * n)) + size / (2 * n)
    why = f"sampling error of log e: {SIGMAS} standard deviations for {outputs} label vectors and {n} images, and P/2N for bias"
    return {"tolerance": allowed, "reason": why, "scale": 1.0}


def rounding(steps: int) -> dict[str, Any]:
    return {"tolerance": 100 * steps * EPSILON, "reason": "rounding of gradient descent, 100·ε a step"}


def stable_step(patches: Float[Tensor, "N P"], gain: float = 1.0) -> float:
    """1/(2s²α), half of the largest stable step: the fastest mode needs one."""
    return 0.5 * len(patches) / (gain * float(torch.linalg.matrix_norm(patches, 2)) ** 2)


def logarithm(energies: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Logarithms less their mean: profiles up to the constant c̃."""
    return energies.log() - energies.log().mean()


def normal(generator: torch.Generator, *shape: int) -> Float[Tensor, "..."]:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


if __name__ == "__main__":
    main(claim)
