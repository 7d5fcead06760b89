r"""Trained CNNs inherit the spectrum of their data: their sensitivity to each frequency follows its strength in the training images.

The sensitivity of a network f at frequency u is $\mathbb E_x \|\partial f / \partial \hat x_u\|_2$, the spectrum of the data
$(\mathbb E |\hat x_u|^2)^{1/2}$; both are averaged over circles |u| = r and compared as curves of mass 1, by their total variation d.

(a) Linear CNNs: the sensitivity is $D^{-1/2} (\sum_k |V_u[k, c]|^2)^{1/2}$ without any data, and of a trained network that of the optimum
of the weight-decayed problem. This part is a theorem. (b) Nonlinear networks on natural and on high-pass images: a network is nearer to
the spectrum of its own data than to the other's (prediction 1); nearer with depth (2), nearer with weight decay (3). These are
observations, each with an interval that decides, and the verdict is open where it does not.

Source: Godfrey et al., arXiv 2210.01257, section 5 and figure 1, whose networks and images these are in kind; statistics and intervals
are this project's. Presets say how far the size is reduced; Tiny ImageNet stands in for ImageNette where that is not at hand.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval as Between
from jaxtyping import Float
from torch import Tensor, nn

import linconv as lc
from linconv import images
from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, at_most, control, exceeds, inconclusive, main
from linconv.sensitivity import frequency_sensitivity
from linconv.statistics import Interval, hierarchical_interval, trend
from linconv.sweeps import sweep
from verification._figure_sensitivity import figure
from verification._sensitivity_runs import PRESETS, prepare, run, select, spectrum_curve, tasks_of

KIND = "empirical"
FAST = {"preset": "smoke", "jobs": 1}
EFFECT = 0.02  # of mass: differences of total variation below this are no support for anything
RESAMPLES = 1000
LINEAR_SIDE, LINEAR_SAMPLES = 6, 300

Curve = Float[Tensor, " R"]
Record = dict[str, Any]


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    preset: Annotated[Literal["smoke", "reduced", "paper"], "size: smoke, reduced (an hour on two cores), paper (published)"] = "smoke",
    store: Annotated[str, "file that keeps finished runs, from which a run that was killed goes on; empty: none is kept"] = "",
    jobs: Annotated[int, Between(ge=1, le=256), "processes that train at the same time"] = 2,
    engine: Annotated[Literal["loky", "dask"], "where runs are trained: processes of this machine, or Dask workers"] = "loky",
    scheduler: Annotated[str, "address of a Dask scheduler, tcp://…; empty: a local cluster"] = "",
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first run of each kind"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    p = PRESETS[preset]
    yield Progress("reading images")
    try:
        natural, high = (prepare(data, p.side, p.samples, kind)[0] for kind in (False, True))
        linear = images.load(data, samples=LINEAR_SAMPLES, grid=(LINEAR_SIDE,) * 2, generator=generator)
    except (ValueError, OSError) as error:
        raise UsageError(f"data: {error}") from error
    if len(natural.classes) < 2:
        raise UsageError(f"data: expected at least two classes, {data} has only {natural.classes[0]!r}")
    what = f"{len(natural)} images of {data}, {p.side}×{p.side}, {p.epochs} epochs, {p.seeds} seeds, width {p.width}"
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(store) if store else Path(scratch, "runs.jsonl")
        yield from train_all(tasks_of(preset, data, seed), path, jobs, engine, scheduler, records)
    yield Note(f"preset {preset}: {what}", in_scope=True)
    yield from linear_checks(linear, seed)
    radii, own = spectrum_curve(natural.images)
    spectra = torch.stack([masses(own, radii), masses(spectrum_curve(high.images)[1], radii)])
    yield from follow_checks(records, spectra, radii, generator)
    yield from trend_checks(records, spectra, radii, p.depths, p.depth, p.decays, generator)
    yield from accuracies(records)
    yield Figure("frequency_sensitivity", lambda: figure(records, spectra, radii, f"Preset {preset}: {what}"))


def linear_checks(loaded: images.ImageSet, seed: int) -> Iterator[Check | Progress]:
    """(a) Closed form, engine, optimum and training of linear CNNs at depths 1 and 2."""
    x, y = images.center(loaded.images), loaded.one_hot()
    y = y - y.mean(0)
    for depth, decay in ((1, 1e-2), (2, 2e-3)):
        yield Progress(f"training a linear CNN of depth {depth}")
        best = lc.fit(x, y, depth=depth, weight_decay=decay, tol=1e-10)
        hidden = (min(x.shape[1], y.shape[1]),) * (depth - 1)
        net = lc.LinearCNN(x.shape[1], hidden, y.shape[1], tuple(x.shape[2:]), generator=torch.Generator().manual_seed(seed))
        run_ = lc.train(net, x, y, weight_decay=decay, steps=300)
        predicted = frequency_sensitivity(lc.LinearCNN.from_weights([best.predictor], net.grid))
        trained = frequency_sensitivity(net)
        reason = f"the objective of the network is within {run_.objectives[-1] / best.objective - 1:.0e} of the optimum's"
        yield agree(
            f"(a) depth {depth}: sensitivity of the trained network, and of the optimum", trained, predicted, tolerance=1e-4, reason=reason
        )
        probed = frequency_sensitivity(nn.Sequential(net), x[:16])
        yield agree(f"(a) depth {depth}: by gradients at 16 images, and without data", probed, trained, size=4096)
        for name, wrong in {
            "D^{-1/2} dropped": trained * math.sqrt(math.prod(net.grid)),
            "frequencies in another order": trained.roll(1, -1),
            "half the spectrum doubled": torch.cat([trained[..., :1], 2 * trained[..., 1:]], -1),
        }.items():
            yield control(f"(a) depth {depth}: {name}", agree("", probed, wrong, size=4096))
        other = lc.fit(x, y, depth=depth, weight_decay=10 * decay).predictor
        changed = frequency_sensitivity(lc.LinearCNN.from_weights([other], net.grid))
        yield control(f"(a) depth {depth}: ten times the weight decay", agree("", trained, changed, tolerance=1e-4))


def train_all(
    tasks: list[dict[str, Any]], store: Path, jobs: int, engine: Literal["loky", "dask"], scheduler: str, records: list[Record]
) -> Iterator[Progress]:
    """Train what the store does not have yet; all records go into `records`."""
    try:
        found = sweep(run, tasks, store=store, engine=engine, scheduler=scheduler or None, n_jobs=None if scheduler else jobs)
        yield Progress(f"training, 0 of {len(tasks)} runs")
        for record in found:
            records.append(record)
            yield Progress(f"training, {len(records)} of {len(tasks)} runs", len(records) / len(tasks))
    except (ValueError, OSError) as error:  # of the store, or of a scheduler that does not answer
        raise UsageError(str(error)) from error
    records.sort(key=lambda record: str(sorted(record["parameters"].items())))


def masses(curves: Float[Tensor, "*runs R"], radii: Curve) -> Float[Tensor, "*runs R"]:
    """Curves of mass 1, each value with its share of the trapezoidal rule: total variation is half the sum of differences."""
    steps = radii.diff()
    weights = (torch.cat([steps, steps.new_zeros(1)]) + torch.cat([steps.new_zeros(1), steps])) / 2
    shares = curves * weights
    return shares / shares.sum(-1, keepdim=True)


def stacked(records: list[Record], when: str) -> Float[Tensor, "runs images R"]:
    return torch.tensor([record["result"][when] for record in records], dtype=torch.float64)


def pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """Networks that differ in nothing but natural and high-pass training images: they start from the same weights."""

    def key(record: Record) -> str:
        return str(sorted((name, value) for name, value in record["parameters"].items() if name != "high"))

    high = {key(record): record for record in records if record["parameters"]["high"]}
    return [(record, high[key(record)]) for record in records if not record["parameters"]["high"] and key(record) in high]


def following(
    chosen: list[tuple[Record, Record]], when: str, spectra: Float[Tensor, "2 R"], radii: Curve, generator: torch.Generator
) -> Interval:
    """d to the other data's spectrum less d to that of its own, mean over both networks of a pair; pairs and images are resampled."""
    natural, high = (stacked([pair[i] for pair in chosen], when) for i in range(2))

    def statistic(sample: Tensor) -> Tensor:
        shares = [masses(part.mean(1), radii) for part in sample.chunk(2, -1)]
        to = [[(part - spectrum).abs().sum(-1) / 2 for spectrum in spectra] for part in shares]
        return (to[0][1] - to[0][0] + to[1][0] - to[1][1]).mean() / 2

    return hierarchical_interval(torch.cat([natural, high], -1), statistic, generator=generator, resamples=RESAMPLES)


def distances(records: list[Record], spectra: Float[Tensor, "2 R"], radii: Curve) -> Float[Tensor, " runs"]:
    """d between each network's curve and the spectrum of its own data."""
    shares = masses(stacked(records, "after").mean(1), radii)
    own = spectra[[int(record["parameters"]["high"]) for record in records]]
    return (shares - own).abs().sum(-1) / 2


def follow_checks(records: list[Record], spectra: Float[Tensor, "2 R"], radii: Curve, generator: torch.Generator) -> Iterator[Check | Note]:
    """(b) Prediction 1, by family."""
    yield Note(f"d between the two spectra: {float((spectra[0] - spectra[1]).abs().sum() / 2):.2f}")
    families = sorted({record["parameters"]["family"] for record in records})
    for family in families:
        chosen = pairs(select(records, family=family, labels="true"))
        name = f"(b) 1: {family} networks are nearer to their own data's spectrum"
        if len(chosen) < 2:
            yield inconclusive(name, "the training of all pairs but one diverged", required=family == "conv")
            continue
        yield exceeds(name, following(chosen, "after", spectra, radii, generator), EFFECT, draws=2 * len(chosen), required=family == "conv")
    every = pairs([record for record in records if record["parameters"]["family"] == "conv"])
    yield control("(b) 1: untrained networks", exceeds("", following(every, "before", spectra, radii, generator), EFFECT))
    crossed = [(followed(a, spectra[1], radii), followed(b, spectra[0], radii)) for a, b in every]
    yield control(
        "(b) 1: networks with the other data's spectrum", exceeds("", following(crossed, "after", spectra, radii, generator), EFFECT)
    )
    shuffled = pairs(select(records, labels="shuffled"))
    if len(shuffled) > 1:
        yield Note(f"trained on shuffled labels, the same difference is {shown(following(shuffled, 'after', spectra, radii, generator))}")


def followed(record: Record, shares: Curve, radii: Curve) -> Record:
    """The record of a network with exactly these shares of its sensitivity."""
    curve = (shares / masses(torch.ones_like(radii), radii)).tolist()
    return record | {"result": record["result"] | {"after": [curve] * len(record["result"]["before"])}}


def trend_checks(
    records: list[Record],
    spectra: Float[Tensor, "2 R"],
    radii: Curve,
    depths: tuple[int, ...],
    depth: int,
    decays: tuple[float, ...],
    generator: torch.Generator,
) -> Iterator[Check]:
    """(b) Predictions 2 and 3: the slope of d against log₂ depth and against log₁₀ of the weight decay, over all runs."""
    series = {
        "2: nearer with depth": [(math.log2(n), select(records, family="conv", labels="true", depth=n, decay=decays[0])) for n in depths],
        "3: nearer with weight decay": [
            (math.log10(decay), select(records, family="conv", labels="true", depth=depth, decay=decay)) for decay in decays
        ],
    }
    for name, groups in series.items():
        kept = [(level, distances(group, spectra, radii)) for level, group in groups if group]
        if len(kept) < 2 or sum(len(values) for _, values in kept) < 3:
            yield inconclusive(f"(b) {name}", "too many runs diverged")
            continue
        levels, values = [level for level, _ in kept], [value for _, value in kept]
        found = trend(values, levels, generator=generator, alternative="less", resamples=RESAMPLES)
        slope = found.slope
        nearer = Interval(-float(slope.estimate), -float(slope.high), -float(slope.low), slope.level)
        draws = sum(map(len, values))
        yield exceeds(f"(b) {name}: fall of d a unit", nearer, 0.0, draws=draws, p_value=found.p_value)
        planted = [value + (level - levels[0]) for level, value in kept]
        rising = trend(planted, levels, generator=generator, resamples=RESAMPLES).slope
        wrong = Interval(-float(rising.estimate), -float(rising.high), -float(rising.low), rising.level)
        yield control(f"(b) {name}: a rise by 1 a unit planted", exceeds("", wrong, 0.0))


def shown(interval: Interval) -> str:
    return f"{float(interval.estimate):.3f} ({float(interval.low):.3f} to {float(interval.high):.3f})"


def accuracies(records: list[Record]) -> Iterator[Check | Note]:
    """Test accuracy, natural/high-pass, of each kind of network; and that training happened at all."""
    kinds = sorted({tuple(record["parameters"][key] for key in ("family", "depth", "decay", "labels")) for record in records})
    for family, depth, decay, labels in kinds:
        pair = [select(records, family=family, depth=depth, decay=decay, labels=labels, high=high) for high in (False, True)]
        means = ["–" if not runs else f"{sum(r['result']['test_accuracy'] for r in runs) / len(runs):.2f}" for runs in pair]
        yield Note(f"test accuracy, {family} depth {depth}, decay {decay:.0e}, {labels} labels: natural {means[0]}, high-pass {means[1]}")
    diverged = sum(record["result"]["after"] is None for record in records)
    yield at_most("runs that diverged", diverged, len(records) / 4, tolerance=0.0, reason="more leave nothing to judge", required=False)


if __name__ == "__main__":
    main(claim)
