"""(b) of the claim on shrinkage: images as they are, whose frequencies are correlated; with the checks that (a) has too."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, agree, attains, control, inconclusive, predicted_failure
from verification._shrinkage_law import Sample, blocks_of, count, measured, proofs, train, unit

TRAINED = "an error of 1e-6 in the outputs is 1e-12 in the objective, where rounding stops the optimiser"


def edge_checks(label: str, sample: Sample, depth: int) -> Iterator[Check]:
    """The largest critical decay is the least that kills all: just above it the optimum is 0, just below it is not."""
    least = unit(sample, depth)
    if sample.s.all() or depth == 2:
        sides = lc.fit_path(sample.x, sample.y, depth=depth, weight_decays=[least * 0.999, least * 1.001], tol=1e-12)
        alive = [int(bool(solution.predictor.any())) for solution in sides]
        yield agree(f"{label} the least decay that kills all, to a thousandth", alive, [1, 0])


def image_checks(
    kind: str, x: Tensor, y: Tensor, depths: tuple[int, ...], decays: tuple[float, ...], generator: torch.Generator
) -> Iterator[Check | Note | Progress]:
    """(b) Images as they are, frequencies correlated."""
    sample = measured(kind, x, y)
    for depth in depths:
        label = f"(b) {kind} as they are, depth {depth}:"
        yield Progress(label)
        if depth == 1:
            yield from ridge_checks(label, sample, decays)
        elif depth == 2:
            yield from certified_checks(label, sample, decays, generator)
        elif sample.s.all() and depth == min(d for d in depths if d > 2):  # one decay: the portfolio takes seconds
            decay = decays[-1] * unit(sample, depth)
            best = lc.fit(x, y, depth=depth, weight_decay=decay)
            alive = count(blocks_of(best.predictor, sample.s))
            survive = f"{alive} of {len(sample.s)} frequencies survive decay {decay:.3g} in the best of a portfolio, gap {best.gap:.1e}"
            yield Note(f"{label} {survive}")


def ridge_checks(label: str, sample: Sample, decays: tuple[float, ...]) -> Iterator[Check]:
    """Depth 1 is ridge regression on all coordinates at once, and not a factor for each frequency."""
    chosen = [f * unit(sample, 1) for f in decays]
    found = lc.fit_path(sample.x, sample.y, depth=1, weight_decays=chosen)
    expected = [witnesses.ridge_optimum(sample.x.numpy(), sample.y.numpy(), decay) for decay in chosen]
    observed = torch.stack([solution.predictor for solution in found])
    # Normal equations square the condition number of the rows that the witness solves by least squares.
    condition = float(1 + torch.linalg.matrix_norm(sample.x.flatten(1), 2) ** 2 / (2 * len(sample.x) * chosen[0]))
    accuracy: dict[str, Any] = {"tolerance": 1e-14 * condition, "reason": "rounding, 1e-14 times the condition number of XᵀX/N + 2λ"}
    yield agree(f"{label} ridge regression", observed, np.stack(expected), **accuracy)
    halved = [witnesses.ridge_optimum(sample.x.numpy(), sample.y.numpy(), decay / 2) for decay in chosen]
    yield control(f"{label} λ in the place of 2λ", agree("", observed, np.stack(halved), **accuracy))
    if sample.s.all():
        least = torch.linalg.lstsq(sample.x.flatten(1), sample.y, driver="gelsd").solution.T.reshape(observed.shape[1:])
        factors = [(sample.s / (sample.s + 2 * decay))[:, None, None] * blocks_of(least, sample.s) for decay in chosen]
        blocks = np.stack([blocks_of(solution.predictor, sample.s) for solution in found])
        far = agree("", blocks, np.stack(factors), tolerance=0.01, reason="a hundredth, far above rounding")
        yield predicted_failure(f"{label} the factor s_u/(s_u + 2λ) of decoupled data fails", far)
    else:
        yield removed_band(label, found[0].predictor, sample)


def removed_band(label: str, beta: Tensor, sample: Sample, **accuracy: Any) -> Check:
    """Weight decay has no one to oppose it where the data are silent."""
    norms = lc.FrequencyBlocks.from_predictor(beta).values.flatten(0, 1).abs().amax((-2, -1))
    silent = torch.from_numpy(sample.s == 0)
    return agree(f"{label} nothing in the removed band", norms[silent], 0 * norms[silent], scale=float(norms.max()), size=4096, **accuracy)


def certified_checks(label: str, sample: Sample, decays: tuple[float, ...], generator: torch.Generator) -> Iterator[Check | Note]:
    """Depth 2 is convex: at the optimum the gradient at u has norm μ where the block lives, and at most μ where it is 0."""
    chosen = [f * unit(sample, 2) for f in decays]
    found = lc.fit_path(sample.x, sample.y, depth=2, weight_decays=chosen, tol=1e-13)
    counts, decided, ratios, errors = [], [], [], []
    for solution, decay in zip(found, chosen, strict=True):
        alive, dead, ratio, error = proofs(sample, solution, decay)
        counts.append(int(alive.sum()))
        decided.append(int((alive | dead).sum()))
        ratios.append(ratio[alive])
        errors.append(error)
    name, everything = f"{label} frequencies proved to live or to be 0", [len(sample.s)] * len(chosen)
    if decided == everything:
        yield agree(name, decided, everything, scope="certified")
    else:
        yield inconclusive(name, f"{decided} of {len(sample.s)}, for each decay: bounds too far apart")
    yield Note(f"{label} proved to survive at {' '.join(map(str, decays))} of the critical decay: {' '.join(map(str, counts))}")
    gradients = np.concatenate(ratios)
    why = "what the duality gap leaves open"
    yield agree(
        f"{label} gradients at the survivors, over μ",
        gradients,
        np.ones_like(gradients),
        tolerance=max(errors),
        reason=why,
        scope="certified",
    )
    doubled = agree("", gradients, 2 * np.ones_like(gradients), tolerance=max(errors), reason=why)
    yield control(f"{label} λ in the place of 2λ", doubled)
    decay, best = chosen[len(chosen) // 2], found[len(chosen) // 2]
    trained = train(sample, 2, decay, generator)
    yield attains(
        f"{label} objective of a trained network", trained.objective, best.objective, lower=best.lower_bound, tolerance=1e-8, reason=TRAINED
    )
    yield from edge_checks(label, sample, 2)
    if not sample.s.all():
        yield removed_band(label, best.predictor, sample)
