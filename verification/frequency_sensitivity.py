r"""Trained CNNs inherit the spectrum of their data: their sensitivity to each frequency follows its strength in the training images.

The sensitivity of a network f at frequency u is $\mathbb E_x \|\partial f / \partial \hat x_u\|_2$, the spectrum of the data
$(\mathbb E |\hat x_u|^2)^{1/2}$; both are averaged over circles |u| = r and compared as curves of mass 1, by their total variation d.
The spectrum is that of the images as training shows them, mirrored and moved by up to two pixels with zeros moving in.

(a) Linear CNNs: the sensitivity is $D^{-1/2} (\sum_k |V_u[k, c]|^2)^{1/2}$ without any data, and of a trained network that of the optimum
of the weight-decayed problem. This part is a theorem. (b) Nonlinear networks on natural and on high-pass images: a network is nearer to
the spectrum of its own data than to the other's (prediction 1); nearer with depth (2), nearer with weight decay (3). These are
observations, each with an interval that decides, and the verdict is open where it does not.

Source: Godfrey et al., arXiv 2210.01257, section 5 and figure 1, whose networks and images these are in kind; statistics and intervals
are this project's. Presets say how far the size is reduced; Tiny ImageNet stands in for ImageNette where that is not at hand.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Interval as Between
from jaxtyping import Float
from torch import Tensor, nn

import linconv as lc
from linconv import images
from linconv.claims import Check, Figure, Note, Progress, agree, at_most, control, exceeds, inconclusive, main
from linconv.plotting import map_figure
from linconv.sensitivity import frequency_sensitivity
from linconv.spectra import on_full_grid, power_spectrum, radial_average, spectral_exponent
from linconv.statistics import Interval, Trend, total_variation, trend
from verification import _figure_sensitivity as figures
from verification._sensitivity_presets import HALF_WIDTH, IMAGENETTE, PUBLISHED, PUBLISHED_IMAGENETTE, SMALL, Preset, preset_of, tasks_of
from verification._sensitivity_runs import half_width_of, met_spectrum, prepare, run, select
from verification._sensitivity_statistics import (
    FAMILIES,
    OTHER_DISTANCES,
    Curve,
    Spectra,
    accuracy_rows,
    approach,
    distances,
    followed,
    following,
    mean_distances,
    pairs,
    series,
    shown,
)
from verification._sweeping import Record, classified, missing, train_all

KIND = "empirical"
FAST = {"preset": "smoke", "jobs": 1}
RESAMPLES = 1000
EFFECT = 0.02  # of mass: differences of total variation below this are no support for anything
LINEAR_SIDE, LINEAR_SAMPLES = 6, 300
UNITS = {"depth": ("with depth", "each doubling", math.log2), "decay": ("with weight decay", "each factor of 10", math.log10)}


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    preset: Annotated[Literal["smoke", "reduced", "paper"], "size: smoke, reduced (an hour on one core), paper (published)"] = "smoke",
    store: Annotated[str, "file that keeps finished runs, from which a run that was killed goes on; empty: none is kept"] = "",
    jobs: Annotated[int, Between(ge=1, le=256), "processes that train at the same time"] = 2,
    engine: Annotated[
        Literal["loky", "dask", "none"],
        "where runs are trained: processes of this machine, Dask workers, or nowhere: the store alone is shown",
    ] = "loky",
    scheduler: Annotated[str, "address of a Dask scheduler, tcp://…; empty: a local cluster"] = "",
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first run of each kind"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    yield Progress("reading images")
    linear = classified(data, lambda: images.load(data, samples=LINEAR_SAMPLES, grid=(LINEAR_SIDE,) * 2, generator=generator))
    p = preset_of(preset, data)
    kinds = {width: classified(data, partial(training_images, data, p, width)).images for width in (0.0, *p.half_widths)}
    records: list[Record] = []
    tasks = tasks_of(p, data, seed)
    yield from train_all(run, tasks, store, jobs, engine, scheduler, records)
    what = f"{len(kinds[0.0])} images of {data}, {p.side}×{p.side}, {p.epochs} epochs, {p.seeds} seeds, width {p.families[0].width}"
    yield Note(f"preset {preset}: {what}", in_scope=True)
    if lacking := missing(tasks, records, by=("family", "depth", "decay", "labels")):
        yield Note(lacking, in_scope=True)
    if p.families == IMAGENETTE.families and p.side == SMALL:
        yield Note(f"{data} stands in for ImageNette, whose images are larger", in_scope=True)
    maps: dict[str, Tensor] = {}
    yield from linear_checks(linear, seed, maps)
    met = {width: met_spectrum(x) for width, x in kinds.items()}
    radii, spectra = spectra_of(met)
    exponent = spectral_exponent(kinds[0.0])
    yield Note(f"natural images: spectrum as |u|^−α, α = {shown(exponent)}; published: a power law")
    for width, x in kinds.items():
        d = total_variation(radial_average(power_spectrum(x.double()))[1], spectra[width], radii)
        yield Note(f"{figures.kind_name(width, kinds)} images: moves in training change their spectrum by d = {d:.2f}")
    yield from follow_checks(records, spectra, radii, p.families[0].name)
    yield from trend_checks(records, spectra, radii, p.families[0].name, generator)
    origin, known = ("ImageNette", PUBLISHED_IMAGENETTE) if p.families == IMAGENETTE.families else ("CIFAR-10", {HALF_WIDTH: PUBLISHED})
    rows = accuracy_rows(records, known)
    yield from accuracies(rows, records, origin)
    title = f"Preset {preset}: {what}"
    for name, draw in {
        "": lambda: figures.panels(series(records), spectra, radii, title),
        "_distances": lambda: figures.distances(series(records), spectra, radii, title),
        "_data": lambda: figures.data_statistics(kinds, met, exponent, title),
        "_linear": lambda: figures.linear_curves(maps, linear.images),
        "_maps": lambda: map_figure(maps_of(records, met)),
        "_accuracy": lambda: figures.accuracy_table(rows, origin, title),
    }.items():
        yield Figure(f"frequency_sensitivity{name}", draw)


def training_images(data: str, p: Preset, width: float) -> images.ImageSet:
    """What the networks see; raises where there are too few to train or to test on."""
    return prepare(data, p.side, p.samples, width)[0]


def spectra_of(met: dict[float, Float[Tensor, "C H W"]]) -> tuple[Curve, Spectra]:
    """Radii, and the curve of the spectrum of each kind of images."""
    curves = {width: radial_average(power) for width, power in met.items()}
    return curves[0.0][0], {width: values for width, (_, values) in curves.items()}


def maps_of(records: list[Record], met: dict[float, Float[Tensor, "C H W"]]) -> dict[str, Float[Tensor, "C H W"]]:
    """Maps to look at: spectra of the data, and the sensitivity of the networks of each family that kept theirs, mean over runs."""
    shown_maps: dict[str, Tensor] = {}
    for width, power in met.items():
        name = figures.kind_name(width, met)
        shown_maps[f"data, {name}"] = power
        for (family, parameter), levels in series(records).items():
            level, group = max(levels.items())
            halves = [r["result"]["map"] for r in group if half_width_of(r["parameters"]) == width and "map" in r["result"]]
            if halves:
                half = torch.tensor(halves, dtype=torch.float64).mean(0)
                shown_maps[f"{FAMILIES[family]}, {parameter} {level:g}, {name}"] = on_full_grid(half[None], tuple(power.shape[1:]))
    return shown_maps


def linear_checks(loaded: images.ImageSet, seed: int, maps: dict[str, Tensor]) -> Iterator[Check | Progress]:
    """(a) Closed form, engine, optimum and training of linear CNNs at depths 1 and 2; their sensitivities go into `maps`."""
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
        maps |= {f"depth {depth}, predicted": predicted, f"depth {depth}, trained": trained}
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


def follow_checks(records: list[Record], spectra: Spectra, radii: Curve, first: str) -> Iterator[Check | Note]:
    """(b) Prediction 1, by family and by the half-width that high-pass images lack; required of the first family."""
    present = {record["parameters"]["family"] for record in records}
    for width in [width for width in spectra if width]:
        both = (spectra[0.0], spectra[width])
        of_width = f", half-width {width:g}" if len(spectra) > 2 else ""
        yield Note(f"d between the two spectra{of_width}: {total_variation(*both, radii):.2f}")
        for family in [family for family in FAMILIES if family in present | {first}]:
            chosen = pairs(select(records, family=family, labels="true"), width)
            name = f"(b) 1: {family} networks are nearer to their own data's spectrum{of_width}"
            if len(chosen) < 2:
                yield inconclusive(name, "fewer than two pairs of networks, on natural and on high-pass images", required=family == first)
                continue
            found = following(chosen, "after", both, radii)
            yield exceeds(name, found, EFFECT, draws=2 * len(chosen), required=family == first)
            for kind, part in zip(("natural", "high-pass"), zip(*chosen, strict=True), strict=True):
                fall = approach(list(part), both[int(kind != "natural")], radii)
                yield Note(
                    f"{family} networks on {kind} images{of_width}: training took d to their own data's spectrum down by {shown(fall)}"
                )
            if family == first:
                yield from others_and_controls(records, chosen, both, radii, of_width)
        shuffled = pairs(select(records, labels="shuffled"), width)
        if len(shuffled) > 1:
            yield Note(f"trained on shuffled labels, the same difference is {shown(following(shuffled, 'after', both, radii))}")


def others_and_controls(
    records: list[Record], chosen: list[tuple[Record, Record]], both: tuple[Curve, Curve], radii: Curve, of_width: str
) -> Iterator[Check | Note]:
    """Prediction 1 of these pairs by the other distances, and what must not pass for it."""
    for what, distance in OTHER_DISTANCES.items():
        try:
            by_other = shown(following(chosen, "after", both, radii, distance))
        except ValueError:  # a divergence from a network that is insensitive where its data are not
            by_other = "infinite"
        yield Note(f"the same by {what}{of_width}: {by_other}")
    yield control(f"(b) 1: untrained networks{of_width}", exceeds("", following(chosen, "before", both, radii), EFFECT))
    crossed = [(followed(a, both[1]), followed(b, both[0])) for a, b in chosen]
    wrong = following(crossed, "after", both, radii)
    yield control(f"(b) 1: networks with the other data's spectrum{of_width}", exceeds("", wrong, EFFECT))


def trend_checks(records: list[Record], spectra: Spectra, radii: Curve, first: str, generator: torch.Generator) -> Iterator[Check | Note]:
    """(b) Predictions 2 and 3, required of the first family: the slope of d against log₂ depth and log₁₀ weight decay.

    A value is the mean over kinds of images of networks that start alike: kinds differ in d by more than levels do.
    """
    found = series(records)
    for number, (parameter, (what, unit, scale)) in enumerate(UNITS.items(), 2):
        for family in FAMILIES:
            levels = found.get((family, parameter), {})
            if len(levels) < 2 and family != first:
                continue
            name = f"(b) {number}: {family} networks are nearer {what}"
            values = {scale(level): mean_distances(group, spectra, radii) for level, group in levels.items()}
            yield from trend_check(name, f"fall of d with {unit}", values, generator, required=family == first)
            for width in spectra:
                own = {scale(v): [r for r in group if half_width_of(r["parameters"]) == width] for v, group in levels.items()}
                alone = judged({v: distances(group, spectra, radii) for v, group in own.items()}, generator)
                if alone:
                    kind = figures.kind_name(width, spectra)
                    yield Note(f"{family} networks on {kind} images alone: fall of d with {unit} {shown(negated(alone.slope))}")


def judged(values: dict[float, Float[Tensor, " runs"]], generator: torch.Generator) -> Trend | None:
    """Theil and Sen's slope of the values against the levels that have any; None where there are too few for an interval."""
    present = {level: several for level, several in values.items() if len(several)}
    if len(present) < 2 or sum(map(len, present.values())) < 3:
        return None
    found = trend(list(present.values()), list(present), generator=generator, alternative="less", resamples=RESAMPLES)
    return found if math.isfinite(float(found.slope.low)) else None


def trend_check(
    name: str, what: str, values: dict[float, Float[Tensor, " runs"]], generator: torch.Generator, *, required: bool
) -> Iterator[Check]:
    """Whether distances fall with the level, and a planted rise that the same number of runs has to see."""
    draws = sum(map(len, values.values()))
    found = judged(values, generator)
    if found is None:
        reason = f"{draws} networks that were trained on all kinds of images are too few for an interval"
        yield inconclusive(name, reason, required=required)
        return
    yield exceeds(f"{name}: {what}", negated(found.slope), 0.0, draws=draws, p_value=found.p_value, required=required)
    planted = judged({level: distance + (level - min(values)) for level, distance in values.items()}, generator)
    if planted:
        yield control(f"{name}: a rise by 1 planted", exceeds("", negated(planted.slope), 0.0))


def negated(interval: Interval) -> Interval:
    return Interval(-float(interval.estimate), -float(interval.high), -float(interval.low), interval.level)


def accuracies(rows: list[list[str]], records: list[Record], origin: str) -> Iterator[Check | Note]:
    """Test accuracies, beside those published for `origin` where there are any; and that training happened at all."""
    for name, natural, high, count, *published in rows:
        beside = f"; published for {origin}: {published[0]} and {published[1]}" if published[0] else ""
        yield Note(f"test accuracy, {name}: natural {natural}, high-pass {high}, {count} runs of each{beside}")
    diverged = sum(record["result"]["after"] is None for record in records)
    yield at_most("runs that diverged", diverged, len(records) / 4, tolerance=0.0, reason="more leave nothing to judge", required=False)


if __name__ == "__main__":
    main(claim)
