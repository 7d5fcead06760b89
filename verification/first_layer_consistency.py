r"""The first layers of different trained networks spread their energy over the patch components in the same way.

For filters W the energies $e_i = (\frac1K \sum_k \langle w_k, u_i\rangle^2)^{1/2}$ along the principal components u_i of the image patches
form a profile. Profiles of networks that differ in seed, width, architecture, or in labels that are true or random, correlate at .8 or
more; profiles of their untrained filters do not.

Source: Chowers and Weiss, arXiv 2206.02454, who report .87 to .99 for VGG-11 and ResNet-18 on CIFAR-10; the bound .8 is what a NeurIPS-2023
reproduction found for VGG-11 and ResNet-20. Intervals are this project's.

What is required is said of the change W − W₀: early in training W is mostly its start. Correlations are means over pairs of runs, their
intervals a bootstrap over components; means over runs, which are few, have Student's. A high correlation is weak evidence by itself: random
decreasing profiles correlate too, and what they reach is printed. It is an observation on some data, not a theorem.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval as Between
from jaxtyping import Float
from torch import Tensor

from linconv.claims import Check, Figure, Note, Progress, control, exceeds, main
from linconv.profile_fits import ProfileFit, fit_published
from linconv.statistics import Interval, bootstrap_interval, mean_interval
from verification._figure_first_layer import figure
from verification._first_layer_runs import PRESETS, STEP_SIZE, grid_of_runs, prepare, run, spatial_frequencies, spectrum_of
from verification._sweeping import Record, classified, identity, train_all

KIND = "empirical"
FAST = {"preset": "smoke", "jobs": 1}
LEAST = 0.8  # what the reproduction found
FIDELITY = 0.05  # of accuracy that a frozen first layer may cost
LEARNED = 2  # times chance: below that a network has hardly learned its labels
RESOLUTION = 1 / 32  # cycles per pixel
DRAWS = 1000
# Profiles of W, VGG-11 of full width, on CIFAR-10, CIFAR-100 and CelebA; the other architecture is ResNet-18 there.  arXiv 2206.02454.
PUBLISHED = {
    "seed": (".99", ".97", ".99"),
    "width": (".98", ".98", ".98"),
    "start": ("−.13 ± .18", "−.04 ± .04", "−.18 ± .13"),
    "architecture": (".87", ".80", ".92"),
    "labels": (".90 ± .02", ".91 ± .01", ".96 ± .03"),
    "fit": (".94", "–", ".96"),
}
PRESET_HELP = (
    "smoke (12 small networks: shows that everything runs), reduced (18 narrow ones, a quarter of a CPU hour), "
    "full (30 of the papers' size and training, 7,600 times the work of reduced: for GPUs)"
)

Profiles = dict[str, dict[str, Float[Tensor, "runs P"]]]


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    preset: Annotated[Literal["smoke", "reduced", "full"], PRESET_HELP] = "smoke",
    padding: Annotated[Literal["zeros", "circular"], "padding of all convolutions"] = "zeros",
    store: Annotated[str, "file that keeps finished runs, from which a run that was killed goes on; empty: none is kept"] = "",
    jobs: Annotated[int, Between(ge=1, le=256), "processes that train at the same time"] = 2,
    engine: Annotated[Literal["loky", "dask"], "where runs are trained: processes of this machine, or Dask workers"] = "loky",
    scheduler: Annotated[str, "address of a Dask scheduler, tcp://…; empty: a local cluster"] = "",
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first run of each kind"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    yield Progress("decomposing patches")
    train = classified(data, lambda: prepare(data, PRESETS[preset].samples)[0])
    spectrum, grid = spectrum_of(train), grid_of_runs(preset, data, padding, seed)
    p = PRESETS[preset]
    sizes = f"VGG-11 of width {p.width} and {p.other_width}, ResNet-20 of width {p.residual_width}"
    records: list[Record] = []
    yield from train_all(run, [task for tasks in grid.values() for task in tasks], store, jobs, engine, scheduler, records)
    by_parameters = {identity(record["parameters"]): record["result"] for record in records}
    results = {name: [by_parameters[identity(task)] for task in tasks] for name, tasks in grid.items()}
    both = f"true and random labels of {p.few or len(train)} images learned in {p.long} epochs"
    yield Note(f"preset {preset}: {sizes}, {len(train)} images of {data}, {p.epochs} epochs, {p.seeds} seeds; {both}", in_scope=True)
    profiles = {name: stacked(runs) for name, runs in results.items()}
    of_changes = [fit_published(e, spectrum.lambdas.double(), step_size=STEP_SIZE, generator=generator) for e in profiles["base"]["change"]]
    rows = {kind: correlations(profiles, kind, generator) for kind in ("change", "trained")}
    again = torch.Generator().manual_seed(seed)
    of_trained = [fit_published(e, spectrum.lambdas.double(), step_size=STEP_SIZE, generator=again) for e in profiles["base"]["trained"]]
    fits = {"change": of_changes, "trained": of_trained}
    yield from consistency_checks(profiles, rows["change"], generator)
    yield from notes(rows, fits, len(spectrum.lambdas), generator)
    frequencies = spatial_frequencies(spectrum)
    yield from behaviour(results, profiles, frequencies, len(train.classes))
    title = f"First layers, preset {preset}: {len(train)} images of {data}"
    yield Figure("first_layer_consistency", lambda: figure(results, profiles, rows, fits, frequencies, PUBLISHED, title))


def stacked(runs: list[dict[str, Any]]) -> dict[str, Float[Tensor, "runs P"]]:
    return {kind: torch.tensor([r[kind] for r in runs], dtype=torch.float64) for kind in ("initial", "trained", "change")}


def pairs(first: Float[Tensor, "n P"], second: Float[Tensor, "m P"] | None) -> tuple[Float[Tensor, "q P"], Float[Tensor, "q P"]]:
    """All pairs of a profile of each, or of two different profiles of the first."""
    if second is None:
        i, j = torch.triu_indices(len(first), len(first), 1)
        return first[i], first[j]
    return first.repeat_interleave(len(second), 0), second.repeat(len(first), 1)


def agreement(first: Float[Tensor, "n P"], second: Float[Tensor, "m P"] | None, generator: torch.Generator) -> Interval:
    """The mean over pairs of Pearson's correlation of two profiles, and its interval over components."""
    a, b = pairs(first, second)

    def statistic(components: Any, axis: int) -> Any:
        chosen = torch.as_tensor(components).long().movedim(axis, -1)
        u, v = (part[:, chosen] - part[:, chosen].mean(-1, keepdim=True) for part in (a, b))
        return ((u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1)).clamp(min=1e-300)).mean(0).numpy()

    return bootstrap_interval(torch.arange(a.shape[1], dtype=torch.float64), statistic, generator=generator, resamples=DRAWS)


def correlations(profiles: Profiles, kind: str, generator: torch.Generator) -> dict[str, Interval]:
    """Across seeds, widths, architectures, labels, and of trained with untrained filters."""
    base = profiles["base"][kind]
    found = {"seed": agreement(base, None, generator)}
    found |= {name: agreement(base, profiles[name][kind], generator) for name in ("width", "architecture")}
    found["labels"] = agreement(profiles["few"][kind], profiles["labels"][kind], generator)
    return found | {"start": agreement(base, profiles["base"]["initial"], generator)}


def consistency_checks(profiles: Profiles, rows: dict[str, Interval], generator: torch.Generator) -> Iterator[Check]:
    what = {"seed": "seeds", "width": "widths", "architecture": "VGG-11 and ResNet-20", "labels": "true and random labels"}
    for name, text in what.items():
        yield exceeds(f"(a) W − W₀ across {text}: correlation of profiles", rows[name], LEAST)
    yield control("(a) profiles of the untrained filters", exceeds("", rows["start"], LEAST))
    base = profiles["base"]["change"]
    shuffled = base[:, torch.randperm(base.shape[1], generator=generator)]
    yield control("(a) components in another order", exceeds("", agreement(base, shuffled, generator), LEAST))


def notes(rows: dict[str, dict[str, Interval]], fits: dict[str, list[ProfileFit]], size: int, generator: torch.Generator) -> Iterator[Note]:
    random = torch.rand(DRAWS, size, dtype=torch.float64, generator=generator).sort(1, descending=True).values
    null = torch.stack([torch.corrcoef(random[i : i + 2])[0, 1] for i in range(0, DRAWS, 2)])
    yield Note(
        f"two random decreasing profiles correlate {float(null.mean()):.2f} on average, {float(null.quantile(0.95)):.2f} in one of 20"
    )
    titles = {
        "seed": "across seeds",
        "width": "across widths",
        "start": "trained with untrained",
        "architecture": "VGG-11 with ResNet-20",
        "labels": "true with random labels",
    }
    for name, title in titles.items():
        change, trained = (shown(rows[kind][name]) for kind in ("change", "trained"))
        yield Note(f"{title}: W − W₀ {change}, W {trained}; published {beside(name)}")
    for kind, title in (("change", "W − W₀"), ("trained", "W")):
        best, worth = ", ".join(f"{fit.correlation:.3f}" for fit in fits[kind]), max(fit.p_value for fit in fits[kind])
        yield Note(
            f"published formula fitted to {title}: correlation {best}, p at most {worth:.2g}; published (W) {beside('fit')}, without a null"
        )


def beside(name: str) -> str:
    """A row of the published table."""
    return ", ".join(f"{value} ({data})" for data, value in zip(("CIFAR-10", "CIFAR-100", "CelebA"), PUBLISHED[name], strict=True))


def shown(interval: Interval) -> str:
    return f"{float(interval.estimate):.2f} ({float(interval.low):.2f} to {float(interval.high):.2f})"


def behaviour(
    results: dict[str, list[dict[str, Any]]],
    profiles: Profiles,
    frequencies: tuple[Float[Tensor, " P"], Float[Tensor, " P"]],
    classes: int,
) -> Iterator[Check | Note]:
    """(b) What training does to the first layer: energy grows, the profile peaks inside the band, responses; and what freezing it costs."""
    free = [run for name, runs in results.items() if name != "frozen" for run in runs]
    ratios = torch.tensor([math.log(r["growth"][-1][1] / r["growth"][0][1]) for r in free], dtype=torch.float64)
    grown = mean_interval(ratios)
    yield exceeds("(b) ‖W − W₀‖ grows after the first epoch: log of the ratio", grown, 0.0, draws=len(free))
    yield control("(b) it shrinks", exceeds("", Interval(-float(grown.estimate), -float(grown.high), -float(grown.low), grown.level), 0.0))
    mean, spread = frequencies
    peaks, low, high = mean[profiles["base"]["change"].argmax(1)], float(mean.min()), float(mean.max())
    yield Note(
        f"components lie at {low:.2f} to {high:.2f} cycles per pixel, each ± {float(spread.mean()):.2f}; "
        f"the profile of W − W₀ peaks at {', '.join(f'{float(peak):.2f}' for peak in peaks)}"
    )
    inside = mean_interval(torch.minimum(peaks - low, high - peaks))
    yield exceeds("(b) peak of W − W₀: cycles per pixel inside the band", inside, RESOLUTION, draws=len(peaks), required=False)
    before, after = (sum(r["autocorrelation"][when][1] for r in results["base"]) / len(results["base"]) for when in ("before", "after"))
    yield Note(f"neighbouring responses of the first layer correlate {before:.2f} before and {after:.2f} after training")
    losses = torch.tensor(
        [f["test_accuracy"] - b["test_accuracy"] for f, b in zip(results["frozen"], results["base"], strict=True)], dtype=torch.float64
    )
    what = "(b) test accuracy with a frozen first layer, less that of a trained one"
    yield exceeds(what, mean_interval(losses), -FIDELITY, draws=len(losses), required=False)
    fitted = sum(run["train_accuracy"] for run in results["labels"]) / len(results["labels"])
    if fitted < LEARNED / classes:
        yield Note(
            f"random labels were not learned (train accuracy {fitted:.2f}, chance {1 / classes:.2f}): W − W₀ is that of early training"
        )
    groups = ", ".join(
        f"{name} {sum(r['train_accuracy'] for r in runs) / len(runs):.2f}/{sum(r['test_accuracy'] for r in runs) / len(runs):.2f}"
        for name, runs in results.items()
    )
    yield Note(f"accuracy, train/test: {groups}")


if __name__ == "__main__":
    main(claim)
