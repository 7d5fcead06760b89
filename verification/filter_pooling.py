r"""Trained convolutional networks pool with smooth filters in their first layers and with coupled channels in their last.

The energy of filters w on an eigenvalue of the Laplacian of their grid is $c_\lambda = \langle \sum_{\Psi} \langle w, \Psi\rangle^2
\rangle$, the mean over pairs of channels; filters become low-frequency where c₀ grows faster in training than c at the largest
eigenvalue.  Permuting the input channels of every convolution undoes channel pooling and leaves each filter as it is.

(a) Two pixels on a ring of 32 sites, the deformation stability $D = \langle\|p(\tau x) - p(x)\|^2\rangle / \langle\|p(x_1) -
p(x_2)\|^2\rangle$ of layer k.  Its least value over filters is a generalised eigenvalue, is attained with ReLU, and lies below that of
the filters [1, 1, 1] of the published solution; no network of any width or activation is more stable by more than .6 %.  This part is a
theorem of ours.
(b) Networks trained on two pixels: filters become low-frequency, towards the filters of the low-frequency solution rather than those
of the high-frequency one; shuffling channels does not change D of hidden layers.  That it changes nothing at all, as published for
28×28 pixels, is predicted to fail at the output: the readout weighs channels.
(c) A VGG-11 on images: filters become low-frequency more in the first half of the layers, and shuffling costs log R = log D/G more in
the second half.
(d) Networks on the published data, two pixels on 28×28 sites, with both sets of moves: filters become low-frequency; training lowers R of
the output and raises G; shuffling channels does not raise D of hidden layers.  Whether it leaves R of the output as it is, and whether test
error grows with R over networks that saw different numbers of images, is asked.

Source: "The role of adaptive pooling" (slides, PCSL 2022), whose statements (b) to (d) examine; R is that of arXiv 2105.02468.  The slides
leave open how solutions depend on ξ and on the number of channels, and whether internal layers can do better: answered in (b) and (a).
Intervals are over seeds.  (b) to (d) are observations, not theorems.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval as Between
from jaxtyping import Float
from torch import Tensor

from linconv.claims import Check, Figure, Note, Progress, agree, at_most, control, exceeds, inconclusive, main, predicted_failure
from linconv.pooling import MOVES
from linconv.statistics import correlation_interval
from verification._figure_filter_pooling import figure
from verification._filter_pooling_presets import PRESETS, Preset, image_tasks, pixel_tasks
from verification._filter_pooling_runs import prepare, run_images, run_pixels
from verification._plane_runs import PLANES, plane_tasks, run_plane
from verification._stable_filters import least_checks
from verification._sweeping import classified, decided, identity, judged, over_seeds, shown, train_all, untrained

KIND = "empirical"
FAST = {"preset": "tiny", "jobs": 1}
EFFECT = 0.01  # of a logarithm, and of an overlap: what is smaller is no support for anything
LEARNED = 0.95  # accuracy in training on two pixels from which networks count as trained; on images twice that of chance
TOLD_APART = 0.8  # the same on 28×28 sites, where few images are told apart by heart
FALL = math.log(2)  # of R: a fall by less than a factor of 2 is none
NO_EFFECT = math.log(1.25)  # shuffling is without effect on D below this
FEWEST = 4  # runs behind a statement on 28×28 sites

Record = dict[str, Any]


def claim(
    *,
    data: Annotated[str, "data set of (c): photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    preset: Annotated[Literal["tiny", "smoke", "reduced", "full"], "size: smoke, reduced (hours on two cores), full (a GPU)"] = "smoke",
    store: Annotated[str, "file that keeps finished runs, from which a run that was killed goes on; empty: none is kept"] = "",
    jobs: Annotated[int, Between(ge=1, le=256), "processes that train at the same time"] = 2,
    engine: Annotated[Literal["loky", "dask"], "where runs are trained: processes of this machine, or Dask workers"] = "loky",
    scheduler: Annotated[str, "address of a Dask scheduler, tcp://…; empty: a local cluster"] = "",
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first run of each kind"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    p = PRESETS[preset]
    yield Progress("reading images")
    train = classified(data, lambda: prepare(data, p.samples)[0])
    pixels: list[Record] = []
    pictures: list[Record] = []
    planes: list[Record] = []
    yield from train_all(run_pixels, pixel_tasks(preset, seed), store, jobs, engine, scheduler, pixels)
    yield from train_all(run_images, image_tasks(preset, data, seed), store, jobs, engine, scheduler, pictures)
    yield from train_all(run_plane, plane_tasks(preset, seed), store, jobs, engine, scheduler, planes)
    order = [identity(task) for task in pixel_tasks(preset, seed)]
    pixels.sort(key=lambda record: order.index(identity(record["parameters"])))  # the base first, on true labels
    what = f"two pixels: {p.depth} layers of three taps, {p.seeds} seeds, {p.steps} steps; images: VGG-11 of width {p.image_width}, "
    what += f"{len(train)} images of {data}, {p.epochs} epochs, {p.image_seeds} seeds; "
    what += f"28×28: {' '.join(map(str, PLANES[preset].samples))} images, {PLANES[preset].steps} steps, {PLANES[preset].seeds} seeds"
    yield Note(f"preset {preset}: {what}", in_scope=True)
    yield from least_checks(p.depth, seed)
    yield from judged(image_checks(pictures), untrained(pictures[0], 2 / len(train.classes)))
    yield from judged(plane_checks(planes), untrained(joint(planes), TOLD_APART))
    if min(len(record["result"]["kept"]) for record in pixels) < 2:
        yield inconclusive("(b) networks on two pixels", "of some kind fewer than two did not diverge")
        return
    yield from first_layer_check(pixels[0])
    yield from judged(pixel_checks(pixels, p), untrained(pixels[0], LEARNED))
    yield Figure("filter_pooling", lambda: figure(pixels, pictures, planes, f"Preset {preset}: {what}"))


# (b) Two pixels.


def column(record: Record, *path: str) -> Float[Tensor, "seeds ..."]:
    entry = record["result"]
    for name in path:
        entry = entry[name]
    return torch.tensor(entry, dtype=torch.float64)


def smoothing(record: Record) -> Float[Tensor, "*seeds layers"]:
    """log of what training multiplies c₀ by, less that of c at the largest eigenvalue."""
    energies = column(record, "energies")
    grown = (energies[-1] / energies[0]).log()
    return grown[..., 0] - grown[..., -1]


def approach(record: Record) -> Float[Tensor, "seeds layers"]:
    """Overlap gained with the filters of the low-frequency solution less that with the other's, each a share of what was left to gain."""
    gains = []
    for kind in ("low", "high"):
        before, after = (column(record, "overlaps", kind, when) for when in ("before", "after"))
        gains.append((after - before) / (1 - before))
    return gains[0] - gains[1]


def pixel_checks(records: list[Record], p: Preset) -> Iterator[Check | Note]:
    base, shuffled = records[0], next(r for r in records if r["parameters"]["labels"] == "shuffled")
    true = [r for r in records if r["parameters"]["labels"] == "true"]
    for record in true:
        name = named(record)
        yield decided(f"(b) {name}: filters become low-frequency", smoothing(record).mean(1), EFFECT, required=record is base)
        text = f"(b) {name}: nearer to the low-frequency solution than to the other"
        yield decided(text, approach(record).mean(1), EFFECT, required=record is base)
    nothing = torch.zeros(p.seeds, dtype=torch.float64)
    yield control("(b) filters that do not change, planted: become low-frequency", decided("", nothing, EFFECT))
    low = column(base, "overlaps", "low", "before").mean(1)
    # A single tap has all overlap with the one solution, and 1/3 with the other.
    yield control("(b) single taps, planted: nearer to the low-frequency solution", decided("", (1 / 3 - low) / (1 - low) - 1, EFFECT))
    yield from label_checks(base, shuffled)
    yield from shuffle_checks(base)
    yield from pixel_notes(true, shuffled)


def named(record: Record) -> str:
    q = record["parameters"]
    return f"ξ {q['xi']}, width {q['width']}" + (f", decay {q['decay']:g}" if q["decay"] else "")


def paired(base: Record, other: Record, of: Callable[[Record], Tensor]) -> Float[Tensor, " seeds"]:
    """Differences between runs from the same initial weights."""
    common = [seed for seed in base["result"]["kept"] if seed in other["result"]["kept"]]
    if not common:
        return torch.empty(0, dtype=torch.float64)
    first, second = (torch.stack([of(record).mean(1)[record["result"]["kept"].index(seed)] for seed in common]) for record in (base, other))
    return first - second


def label_checks(base: Record, shuffled: Record) -> Iterator[Check]:
    """Is it the task that makes filters smooth, or would any labels?"""
    for name, of in (("low-frequency", smoothing), ("nearer to the low-frequency solution", approach)):
        yield decided(f"(b) {name}, more than with shuffled labels", paired(base, shuffled, of), 0.0, required=False)


def shuffle_checks(base: Record) -> Iterator[Check | Note]:
    """Shuffling channels: no effect on D of hidden layers from the second on; an effect at the output."""
    change = column(base, "after", "shuffled_D")
    hidden = change[:, 1:-1].mean(1)
    yield decided("(b) shuffling channels does not raise D of hidden layers by 1.25: −log ratio", -hidden, -NO_EFFECT)
    yield decided("(b) shuffling channels does not lower D of hidden layers by 1.25: log ratio", hidden, -NO_EFFECT)
    yield control("(b) D of hidden layers ten times as large, planted", decided("", -hidden - math.log(10), -NO_EFFECT))
    name = "(b) shuffling channels does not raise D of the output by 1.25: −log ratio"
    yield predicted_failure(name, decided("", -change[:, -1], -NO_EFFECT, required=False))


def first_layer_check(base: Record) -> Iterator[Check]:
    change = column(base, "after", "shuffled_D")[:, 0]
    name = "(b) shuffling does nothing to the first layer, which sees one channel: log ratio of D"
    yield agree(name, change, torch.zeros_like(change), scale=1.0, size=4096)


def pixel_notes(true: list[Record], shuffled: Record) -> Iterator[Check | Note]:
    for record in [*true, shuffled]:
        labels = "" if record is not shuffled else ", shuffled labels"
        rows = {
            "c₀/c₃ grows by e^": smoothing(record).mean(1),
            "approach": approach(record).mean(1),
            "log D shuffled/own, hidden": column(record, "after", "shuffled_D")[:, 1:-1].mean(1),
            "output": column(record, "after", "shuffled_D")[:, -1],
            "log R shuffled/own, hidden": column(record, "after", "shuffled_R")[:, 1:-1].mean(1),
            "R output": column(record, "after", "shuffled_R")[:, -1],
        }
        gains = "; ".join(f"{key} {shown(over_seeds(values))}" for key, values in rows.items())
        accuracies = [float(column(record, f"{part}_accuracy").mean()) for part in ("train", "test")]
        yield Note(f"{named(record)}{labels}: accuracy {accuracies[0]:.2f}, at held-out distances {accuracies[1]:.2f}; {gains}")
    for what in ("D", "R"):
        before, after = (
            ", ".join(f"{v:.2g}" for v in column(true[0], when, what).nanmedian(0).values.tolist()) for when in ("before", "after")
        )
        yield Note(f"{named(true[0])}: median {what} by layer and of the output before training {before}; after {after}")
    lost = sum(record["parameters"]["seeds"] - len(record["result"]["kept"]) for record in [*true, shuffled])
    total = sum(record["parameters"]["seeds"] for record in [*true, shuffled])
    silent = sum(int((~column(record, "after", "shuffled_R").isfinite()).any(1).sum()) for record in [*true, shuffled])
    yield Note(f"of {total} networks on two pixels {silent} have a layer, own or shuffled, that is the same for all images: left out there")
    yield at_most("(b) runs that diverged", lost, total / 4, tolerance=0.0, reason="more leave nothing to judge", required=False)


# (c) Images.


def halves(values: Float[Tensor, "seeds layers"]) -> tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]:
    """Means over the first and over the second half of the layers."""
    middle = values.shape[1] // 2
    return values[:, :middle].mean(1), values[:, middle:].mean(1)


def channel_gains(records: list[Record], when: str) -> tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]:
    """What the first and what the second half of the layers add to log R shuffled − log R, averaged over shuffles; 0 at the input."""
    own = torch.stack([column(record, f"log_R_{when}") for record in records])
    shuffled = torch.stack([column(record, f"shuffled_log_R_{when}").mean(0) for record in records])
    lost = shuffled - own
    middle = lost[:, own.shape[1] // 2 - 1]
    return middle, lost[:, -1] - middle


def image_smoothing(record: Record) -> Float[Tensor, " layers"]:
    grown = (column(record, "energies_after") / column(record, "energies_before")).log()
    return grown[:, 0] - grown[:, -1]


def image_checks(records: list[Record]) -> Iterator[Check | Note]:
    kept = [record for record in records if not record["result"]["diverged"]]
    if len(kept) < 2:
        yield inconclusive("(c) image networks", "fewer than two did not diverge")
        return
    first, second = halves(torch.stack([image_smoothing(record) for record in kept]))
    yield decided("(c) filters become low-frequency, first half less second half", first - second, EFFECT)
    early, late = channel_gains(kept, "after")
    yield decided("(c) shuffling raises log R, second half less first half", late - early, EFFECT)
    yield decided("(c) shuffling raises log R at the last layer", early + late, EFFECT)
    yield control("(c) filters that do not change, planted: first half less second half", decided("", 0 * first, EFFECT))
    yield control("(c) channels left in their order, planted", decided("", 0 * early, EFFECT))
    halved = ", ".join(shown(over_seeds(half)) for half in (first, second))
    yield Note(f"log growth of c₀ over that of c₆, first and second half of the layers: {halved}")
    for when in ("before", "after"):
        own = torch.stack([column(record, f"log_R_{when}") for record in kept]).mean(0)
        shuffled = torch.stack([column(record, f"shuffled_log_R_{when}").mean(0) for record in kept]).mean(0)
        rows = (", ".join(f"{value:.2f}" for value in values.exp().tolist()) for values in (own, shuffled))
        yield Note(f"R by layer {when} training: {next(rows)}; with shuffled channels: {next(rows)}")
    accuracies = [sum(record["result"][f"{part}_accuracy"] for record in kept) / len(kept) for part in ("train", "test")]
    yield Note(f"accuracy of the image networks: training {accuracies[0]:.2f}, test {accuracies[1]:.2f}")


# (d) Two pixels on 28×28 sites.


def joint(records: list[Record]) -> Record:  # the accuracies in training of all runs, as those of one; 0 where one diverged
    return {"result": {"train_accuracy": [record["result"].get("train_accuracy", 0.0) for record in records]}}


def plane_columns(records: list[Record], when: str, moves: str) -> dict[str, Float[Tensor, "runs layers"]]:
    return {key: torch.stack([column(r, when, moves, key) for r in records]) for key in ("D", "G", "R", "shuffled_D", "shuffled_R")}


def plane_checks(records: list[Record]) -> Iterator[Check | Note]:
    kept = [record for record in records if not record["result"]["diverged"]]
    if len(kept) < FEWEST:
        yield inconclusive("(d) networks on 28×28 sites", f"fewer than {FEWEST} did not diverge")
        return
    growth = torch.stack([smoothing(record).mean() for record in kept])
    yield decided("(d) filters become low-frequency", growth, EFFECT)
    yield control("(d) filters that do not change, planted: become low-frequency", decided("", 0 * growth, EFFECT))
    for moves in MOVES:
        before, after = (plane_columns(kept, when, moves) for when in ("before", "after"))
        yield decided(f"(d) '{moves}': training lowers log R of the output by log 2", (before["R"] - after["R"])[:, -1], FALL)
        yield control(f"(d) '{moves}': the untrained networks against themselves", decided("", 0 * before["R"][:, -1], FALL))
        yield decided(f"(d) '{moves}': training raises log G of the output by log 2", (after["G"] - before["G"])[:, -1], FALL)
        hidden, output = after["shuffled_D"][:, 1:-1].mean(1), after["shuffled_R"][:, -1]
        yield decided(f"(d) '{moves}': shuffling channels does not raise D of hidden layers by 1.25: −log ratio", -hidden, -NO_EFFECT)
        yield decided(f"(d) '{moves}': shuffling channels raises R of the output by 1.25: log ratio", output, NO_EFFECT, required=False)
        yield from error_check(kept, moves, after["R"][:, -1])
        for when, found in (("before", before), ("after", after)):
            rows = (f"{key} {' '.join(f'{v:.2g}' for v in values.mean(0).exp().tolist())}" for key, values in found.items())
            yield Note(f"(d) '{moves}', {when} training, by layer and of the output, geometric means: {', '.join(rows)}")
    for size in sorted({record["parameters"]["samples"] for record in kept}):
        some = [record for record in kept if record["parameters"]["samples"] == size]
        accuracies = (
            f"{part} {shown(over_seeds(torch.stack([column(r, f'{part}_accuracy') for r in some])))}" for part in ("train", "test")
        )
        yield Note(f"(d) {size} images: accuracy, {', '.join(accuracies)}")


def error_check(kept: list[Record], moves: str, log_r: Float[Tensor, " runs"]) -> Iterator[Check]:
    """Test error against R of the output, logarithms, over runs with all numbers of images."""
    errors = torch.tensor([1 - r["result"]["test_accuracy"] for r in kept], dtype=torch.float64)
    errors = errors.clamp_min(0.5 / kept[0]["parameters"]["probes"]).log()
    name = f"(d) '{moves}': correlation of test error and R of the output"
    if len(errors.unique()) < FEWEST:
        yield inconclusive(name, f"fewer than {FEWEST} different errors", required=False)
        return
    found = correlation_interval(errors, log_r)
    yield exceeds(name, found, 0.0, draws=len(kept), required=False)
    levels = torch.arange(float(len(kept)), dtype=torch.float64)
    planted = correlation_interval(levels, 0.1 * (levels % 2) - levels)
    yield control(f"(d) '{moves}': errors that fall with R, planted", exceeds("", planted, 0.0))


if __name__ == "__main__":
    main(claim)
