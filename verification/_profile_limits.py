"""The rest of `energy_profile`: random labels, limits, both layers trained; what torch does, beside the laws."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.claims import Check, Progress, agree, control, rate
from linconv.patches import energy_profile
from linconv.profiles import balance_change, moments, predicted_profile, small_start_limit
from verification._pooled_networks import (
    SIGMAS,
    Data,
    chi_spread,
    condensed,
    descend_by_doubling,
    descend_outputs,
    descend_pooled,
    normal,
    pooled_patches,
    rounding,
    stable_step,
)

REPEATS = 50
LABELLED = 600  # at most so many images in (d) and (e); the laws hold for any number
LATE = 40  # 2ηαt, or 4βηt of both layers, at which nothing is left to learn
OUTPUTS = 100  # for each entry of a patch: many
STRONGEST = 8  # modes that are trained to the end where both layers are: the time grows as the ratio of the first to the last α
NEAR = "of the slope, whose limit is approached"


def label_checks(data: Data, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(d) Random labels: the expected profile, and the spread of an energy, which depends on the number of outputs only."""
    yield Progress("training on random labels")
    spectrum, degrees, t = data.spectrum, (1, 4, 16, 64), 20
    law, most = torch.tensor([chi_spread(m) for m in degrees], dtype=torch.float64), min(LABELLED, len(data.x))
    for count in (most, most // 2):
        rows = pooled_patches(data)[:count]
        eta, modes = stable_step(rows), strengths(rows)[1]
        # Weights that start at zero are linear in the labels: those of a label of one at each image in turn have the expected squares.
        answers = descend_outputs(rows, torch.eye(count, dtype=torch.float64), eta, t) @ spectrum.components.T
        expected = predicted_profile(spectrum, form="random-labels", step_size=eta, steps=t, images=data.x[:count])
        summed = answers.square().sum(0).sqrt()
        yield agree(f"(d) {count} images: the expected energies", summed, expected, **rounding(t))
        yield control(f"(d) {count} images: 1/N dropped", agree("", summed, expected * count**0.5, **rounding(t)))
        trained = descend_outputs(rows, normal(generator, count, REPEATS * degrees[-1]), eta, t) @ modes.T
        energies = [trained[: REPEATS * m].unflatten(0, (REPEATS, m)).square().mean(1).sqrt() for m in degrees]
        observed = torch.stack([(e.std(0) / e.mean(0)).mean() for e in energies])
        # Labels reach the eigenvectors of A independently: each of them is a repeat.
        draws = REPEATS * len(modes)
        why = f"sampling error of a standard deviation from {draws} energies, {SIGMAS} of its own"
        terms: dict[str, Any] = {"tolerance": SIGMAS / math.sqrt(2 * draws), "reason": why, "scale": 1.0, "draws": draws}
        name = f"(d) {count} images: spread over mean of an energy of 1, 4, 16 and 64 outputs, divided by the law's"
        yield agree(name, observed / law, torch.ones_like(law), **terms)
        yield control(f"(d) {count} images: 1/√(2M) without its 2", agree("", observed / law, torch.full_like(law, 2**0.5), **terms))
        yield control(f"(d) {count} images: no concentration", agree("", observed / law, law[0] / law, **terms))


def limit_checks(data: Data, labels: Float[Tensor, " N"], count: int, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(e) Step sizes at one ηt, and starts that go to zero."""
    yield Progress("training at other step sizes and from other starts")
    spectrum, rows, targets = data.spectrum, pooled_patches(data)[:LABELLED], labels[:LABELLED, None]
    eta, head = stable_step(rows, count) / 10, torch.ones(1, count, dtype=torch.float64)
    start = normal(generator, count, rows.shape[1])

    def energies(step: float, t: int, sigma: float) -> Float[Tensor, " P"]:
        return energy_profile(descend_pooled(rows, targets, sigma * start, head, step, t, both=False)[1], spectrum.components)

    halvings = [2.0**-j for j in range(5)]
    sizes = torch.stack([energies(eta * h, round(40 / h), 0.0).norm() for h in halvings])
    yield rate("(e) energies at one ηt do not depend on η", halvings, sizes, 0, tolerance=0.05, reason=NEAR)
    yield control("(e) the published factor 1/η² across step sizes", rate("", halvings, sizes, -2, tolerance=0.05, reason=NEAR))
    sigmas, still = [10.0**-j for j in range(6, 11)], energies(eta, 40, 0.0)
    noise = torch.stack([(energies(eta, 40, sigma * float(sizes[0])) - still).abs().max() for sigma in sigmas])
    yield rate("(e) what the start adds vanishes with its size σ", sigmas, noise, 1, tolerance=0.05, reason=NEAR)
    yield control("(e) what the start adds vanishes as σ²", rate("", sigmas, noise, 2, tolerance=0.05, reason=NEAR))


def exponent_checks(natural: Data, tiles: Data, outputs: int, generator: torch.Generator) -> Iterator[Check | Progress]:
    """(f) Random labels, trained to the end: whitening α^{-1/2} under fixed heads; α^{-1/4} where many outputs train both layers."""
    yield Progress("training until the profile is white")
    terms: dict[str, Any] = {"tolerance": 0.03, "reason": "of the slope: sampling error of the labels"}
    rows = pooled_patches(natural)
    alpha, modes = strengths(rows)
    eta, doublings = stable_step(rows), 34
    learned = 2 * eta * alpha * 2.0**doublings > LATE
    late = descend_by_doubling(rows, normal(generator, len(rows), outputs), eta, doublings)
    alone = energy_profile(late, modes)[learned]
    yield rate("(f) energies under fixed heads, by α", alpha[learned], alone, -0.5, **terms)
    yield control("(f) no whitening under fixed heads", rate("", alpha[learned], alone, -0.25, **terms))
    yield Progress("training both layers of many outputs")
    rows = pooled_patches(tiles)
    alpha, modes = strengths(rows)
    kept = min(STRONGEST, len(alpha))
    trained = trained_jointly(rows, normal(generator, len(rows), OUTPUTS * rows.shape[1]), kept, generator)
    strong, jointly = alpha[:kept], energy_profile(trained, modes)[:kept]
    yield rate("(f) energies where many outputs train both layers, by α", strong, jointly, -0.25, **terms)
    yield control("(f) whitening where both layers are trained", rate("", strong, jointly, -0.5, **terms))


def strengths(rows: Float[Tensor, "N P"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m P"]]:
    """The eigenvalues α of A, descending, without those that are zero to rounding, and the eigenvectors as rows."""
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    kept = sizes > 1e-7 * sizes[0]
    return sizes[kept].square() / len(rows), right[kept]


def trained_jointly(
    rows: Float[Tensor, "N P"], targets: Float[Tensor, "N M"], kept: int, generator: torch.Generator
) -> Float[Tensor, "r P"]:
    """Filters that torch trained with their head from a small balanced start until the `kept` strongest modes have grown.

    For random labels a mode grows to a = β/α, β = (Mα/N)^{1/2}, as exp(4βηt): the weakest last, and it stays stable while ηaα_1 < 1.
    """
    (few, labels), (alpha, _) = condensed(rows, targets), strengths(rows)
    beta = math.sqrt(targets.shape[1] * float(alpha[kept - 1]) / len(rows))
    final = beta / float(alpha[kept - 1])
    eta, start = 0.25 / (final * float(alpha[0])), 1e-6 * final
    head, across = (torch.linalg.qr(normal(generator, size, len(few)))[0] for size in (len(few), rows.shape[1]))
    steps = round(LATE / (4 * beta * eta))
    return descend_pooled(few, labels, math.sqrt(start) * across.T, math.sqrt(start) * head, eta, steps, both=True)[1]


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
