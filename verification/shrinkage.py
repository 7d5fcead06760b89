r"""Weight decay shrinks every frequency of a linear CNN by what its data say: ridge at depth 1, thresholds beyond.

Let the images have the second moment $s_u I$ at frequency u and none between frequencies (orthonormal DFT), and let the least-squares
predictor have the singular values $m_{ui}$ in its unnormalised block at u.  The minimum of
$\frac1{2N} \sum_n \|f(x_n) - y_n\|^2 + \lambda \sum_l \|w^l\|^2$ over linear CNNs of depth L keeps all singular vectors, and each m becomes

$$t = \operatorname{argmin}_{t \ge 0}\ \tfrac12 (t - m)^2 + \frac{\lambda L}{s_u}\, t^{2/L} :\qquad
\frac{s_u}{s_u + 2\lambda}\, m \ (L = 1), \qquad \Big(m - \frac{2\lambda}{s_u}\Big)_+ \ (L = 2),$$

and for L ≥ 3 zero or the larger root of $t + \frac{2\lambda}{s_u} t^{2/L-1} = m$.  It survives exactly below its critical decay

$$\lambda_c = \frac{s_u}2\, \frac{(L-2)^{1-2/L}}{(L-1)^{2-2/L}}\, m^{2-2/L}, \qquad \lambda_c = \frac{s_u m}2 \ (L = 2),$$

so that of equal components those at weak frequencies die first, and the survivors of a larger decay are among those of a smaller one.
With depth the truth depends on what is held fixed.  Where s is constant, survivors are fewer at the same fraction of the decay that kills
all, and at the same training error.  Where it is not, the first is false (a counterexample is checked), and the second is tested.

Source: the thesis is that of Godfrey et al., arXiv 2210.01257, section 4; statement, proofs and counterexample are derived in
docs/shrinkage.md.  Data that decouple are images whitened and given their own power spectrum again; images as they are follow at L = 1
(ridge regression) and at L = 2 with a certificate for each frequency, and at L ≥ 3 are described only.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Interval, Len, Lt
from torch import Tensor

import linconv as lc
from linconv import images
from linconv.claims import (
    Check,
    Figure,
    Note,
    Progress,
    UsageError,
    agree,
    attains,
    control,
    inconclusive,
    main,
)
from linconv.filters import high_pass
from verification._networks import Run
from verification._shrinkage_figure import Curve, figure
from verification._shrinkage_images import TRAINED, edge_checks, image_checks, removed_band
from verification._shrinkage_law import (
    Sample,
    blocks_of,
    contested,
    count,
    decoupled,
    law,
    measured,
    minimum,
    needed_table,
    outputs_of,
    survivor_table,
    survivors,
    train,
    unit,
)
from verification._shrinkage_sparsity import certified_trend, counterexample_checks, trend_checks, whitened_checks

FAST = {"depths": (1, 2, 3), "side": 4, "samples": 120, "decays": (0.01, 0.6), "draws": 6}
GAP = "the gap that the solvers are asked for, 1e-12, and rounding"


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    depths: Annotated[tuple[Annotated[int, Interval(ge=1, le=8)], ...], Len(2, 6), "depths L, increasing, two at least 2"] = (1, 2, 3, 4),
    decays: Annotated[
        tuple[Annotated[float, Gt(0), Lt(1)], ...], Len(2, 12), "weight decays, increasing, as fractions of the least that kills all"
    ] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6),
    side: Annotated[int, Interval(ge=4, le=16), "side of the square images"] = 6,
    samples: Annotated[int, Interval(ge=20, le=100_000), "number of images N"] = 600,
    draws: Annotated[int, Interval(ge=3, le=100), "draws of N images behind each interval"] = 6,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the samples and of the random starts"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    for name, values in (("depths", depths), ("decays", decays)):
        if not all(low < high for low, high in pairwise(values)):
            raise UsageError(f"{name} must increase, got {' '.join(map(str, values))}; sort them and drop what occurs twice")
    if depths[-2] < 2:
        raise UsageError(f"depths must end in two of at least 2, got {' '.join(map(str, depths))}; at depth 1 nothing dies: try 1 2 3")
    generator = torch.Generator().manual_seed(seed)
    natural, filtered, y = load(data, side, samples, generator)
    white = images.whiten(natural)
    pair = [decoupled("natural", white, natural, y), decoupled("high-pass", white, filtered, y)]
    yield Note(f"{samples} images of {data}, {natural.shape[1]} channels, side {side}, {y.shape[1]} outputs", in_scope=True)
    shown: list[Curve] = []
    for sample, other in (pair, pair[::-1]):
        yield from curve_checks(sample, other, depths, decays, generator, shown)
    for kind, x in (("natural", natural), ("high-pass", filtered)):
        yield from image_checks(kind, x, y, depths, decays, generator)
    yield from whitened_checks(measured("whitened", white, y), depths, decays)
    yield from counterexample_checks()
    yield Progress("drawing images for the trends")
    more = [load(data, side, samples, generator) for _ in range(draws - 1)]
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for which, kind in enumerate(("natural", "high-pass")):
        drawn = [pair[which], *(decoupled(kind, images.whiten(d[0]), d[which], d[2]) for d in more)]
        tables[kind] = survivor_table(drawn, depths, decays), needed_table(drawn, [depth for depth in depths if depth >= 2])
        yield from trend_checks(kind, *tables[kind], depths, decays, generator)
        if 2 in depths:
            yield from certified_trend([measured(kind, d[which], d[2]) for d in [(natural, filtered, y), *more]], decays, generator)
    yield Figure("shrinkage", lambda: figure(shown, tables, decays, f"{samples} images of {data}, {side}×{side}"))


def load(data: str, side: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Centred images, the same less their frequencies below a quarter of the side, and centred class indicators."""
    try:
        loaded = images.load(data, samples=samples, grid=(side, side), generator=generator)
    except OSError as error:
        raise UsageError(f"data: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len(loaded.classes) < 2:
        raise UsageError(f"data: expected at least two classes, {data} has only {loaded.classes[0]!r}; subfolders are classes")
    if samples <= loaded.images[0].numel():
        raise UsageError(f"samples must exceed C·D = {loaded.images[0].numel()}, got {samples}; take more or a smaller --side")
    x, y = images.center(loaded.images), loaded.one_hot()
    if torch.linalg.matrix_rank(x.flatten(1)) < x[0].numel():
        raise UsageError(f"side: the images of {data} do not span all C·D = {x[0].numel()} dimensions; take a smaller --side")
    return x, high_pass(x, (side + 2) // 4 - 1), y - y.mean(0)


def curve_checks(
    sample: Sample, other: Sample, depths: tuple[int, ...], decays: tuple[float, ...], generator: torch.Generator, shown: list[Curve]
) -> Iterator[Check | Progress]:
    """(a) Data that decouple: optima and a trained network against the law, at every frequency and component."""
    for depth in depths:
        label = f"(a) {sample.kind}, depth {depth}:"
        yield Progress(f"{label} optima and a trained network")
        chosen = [f * unit(sample, depth) for f in decays]
        half = contested(sample, depth, decays)
        if depth > 2 and not sample.s.all():  # the portfolio takes seconds for each
            chosen = [half]
        found = lc.fit_path(sample.x, sample.y, depth=depth, weight_decays=chosen, tol=1e-12)
        trained = train(sample, depth, half, generator)
        shown.append(Curve(sample, depth, half, found[chosen.index(half)], trained))
        observed, predicted = [solution.predictor for solution in found], [law(sample.m, sample.s, decay, depth) for decay in chosen]
        blocks, expected = np.stack([blocks_of(beta, sample.s) for beta in observed]), np.stack([outputs_of(sample, t) for t in predicted])
        exact = all(solution.method in ("ridge", "decoupled, scalar thresholding") for solution in found)
        accuracy: dict[str, Any] = {"size": 4096} if exact else {"tolerance": 1e-5, "reason": f"{GAP}, square root"}
        yield agree(f"{label} blocks of the optima", blocks, expected, **accuracy, draws=len(chosen))
        yield agree(f"{label} surviving frequencies", [count(b) for b in blocks], [survivors(sample, decay, depth) for decay in chosen])
        minima = [minimum(sample, t, decay, depth) for t, decay in zip(predicted, chosen, strict=True)]
        objectives = [solution.objective for solution in found]
        yield agree(f"{label} objectives of the optima", objectives, minima, tolerance=1e-10, reason=GAP)
        yield from trained_checks(label, sample, trained, minima[chosen.index(half)], expected[chosen.index(half)])
        if not sample.s.all():
            yield removed_band(f"{label} optima,", observed[0], sample)
            for curve in shown:
                there = law(other.m, other.s, curve.decay, depth)[sample.s == 0]
                if curve.sample is other and curve.depth == depth and there.any():
                    wrong = removed_band("", curve.optimum.predictor, sample)
                    yield control(f"{label} the optimum of {other.kind} images has nothing in that band", wrong)
        if depth > 1:
            yield from edge_checks(label, sample, depth)
        yield from curve_controls(label, sample, other, depth, chosen, (blocks, expected), accuracy)


def trained_checks(label: str, sample: Sample, trained: Run, least: float, expected: np.ndarray) -> Iterator[Check]:
    """A network that stopped above the minimum has missed it, and says nothing of the blocks there."""
    terms: dict[str, Any] = {"tolerance": 1e-5, "reason": TRAINED}
    yield attains(f"{label} objective of a trained network", trained.objective, least, tolerance=1e-8, reason=TRAINED)
    if trained.objective > (1 + 1e-8) * least:
        yield inconclusive(f"{label} blocks of a trained network", "it stopped above the minimum: not converged, or in another one")
        return
    yield agree(f"{label} blocks of a trained network", blocks_of(trained.predictor, sample.s), expected, **terms)
    if not sample.s.all():
        yield removed_band(f"{label} trained network,", trained.predictor, sample, **terms)


def curve_controls(
    label: str,
    sample: Sample,
    other: Sample,
    depth: int,
    decays: list[float],
    blocks: tuple[np.ndarray, np.ndarray],
    accuracy: dict[str, Any],
) -> Iterator[Check]:
    """Laws that are wrong, against the blocks of the optima; `blocks`: found, and as the law has them."""
    observed, expected = blocks
    present = np.flatnonzero(sample.s)
    order, s = present[sample.s[present].argsort()], sample.s
    flat, upside_down = np.where(s > 0, s[present].mean(), 0.0), np.zeros_like(s)
    upside_down[order] = s[order[::-1]]
    wrong = {
        "the exponent of another depth": [law(sample.m, s, decay, depth + 1) for decay in decays],
        "a threshold without s_u": [law(sample.m, flat, decay, depth) for decay in decays],
        "λ in the place of 2λ": [law(sample.m, s, decay / 2, depth) for decay in decays],
        "the spectrum upside down": [law(sample.m, upside_down, decay, depth) for decay in decays],
    }
    if s.all():  # the powers that the high-pass keeps are those of the natural images
        wrong[f"the spectrum of {other.kind} images"] = [law(sample.m, other.s, decay, depth) for decay in decays]
    scale = float(np.abs(expected).max())
    for name, curves in wrong.items():
        variant = np.stack([outputs_of(sample, t) for t in curves])
        if np.abs(variant - expected).max() > 1e-3 * scale:  # where none but frequencies of equal power survive, some are no mistakes
            yield control(f"{label} {name}", agree("", observed, variant, scale=scale, **accuracy))
    side = sample.x.shape[-1]
    here = np.arange(len(s)) % side <= side // 2
    counts, folded = ([count(b) for b in expected], [count(b[here]) for b in expected])
    if folded != counts:  # a lone zero frequency is in either half
        halves = agree("", [count(b[here]) for b in observed], counts)
        yield control(f"{label} half a spectrum counted without pair weights", halves)


if __name__ == "__main__":
    main(claim)
