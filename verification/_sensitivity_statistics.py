"""What `frequency_sensitivity` asks of its records: distances to the spectra of the data, series by depth and weight decay, accuracies."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.statistics import Interval, cosine_distance, crossed_interval, first_moment, kl_divergence, total_variation
from verification._sensitivity_presets import DECAY_DEPTHS
from verification._sensitivity_runs import half_width_of, select
from verification._sweeping import Record, identity

FAMILIES = {"conv": "ConvActually", "linear": "its linear twin", "myrtle": "Myrtle CNN", "vgg": "VGG", "resnet": "ResNet"}

NONE = ("", "")  # published of a network that was not trained there

Curve = Float[Tensor, " R"]
Spectra = dict[float, Curve]  # of the data, by the half-width that the images lack; 0 for natural ones
Series = dict[float, list[Record]]
Distance = Callable[[Curve, Curve, Curve], float]  # of a network's curve and a spectrum at these radii

# Besides total variation, by which the predictions are judged.  The spectrum of high-pass images vanishes where no network is insensitive:
# the divergence that is finite is that of the data from the network.
OTHER_DISTANCES: dict[str, Distance] = {
    "Kullback–Leibler divergence of the data from the network, nats": lambda curve, spectrum, radii: kl_divergence(spectrum, curve, radii),
    "cosine distance": cosine_distance,
    "difference of mean frequencies, cycles per image": lambda curve, spectrum, radii: abs(
        first_moment(curve, radii) - first_moment(spectrum, radii)
    ),
}


def to_spectrum(
    curves: Float[Tensor, "runs R"], spectrum: Curve, radii: Curve, distance: Distance = total_variation
) -> Float[Tensor, " runs"]:
    """The distance of each curve to the spectrum."""
    return torch.tensor([distance(curve, spectrum, radii) for curve in curves], dtype=torch.float64)


def stacked(records: list[Record], when: str) -> Float[Tensor, "runs images R"]:
    return torch.tensor([record["result"][when] for record in records], dtype=torch.float64)


def pairs(records: list[Record], half_width: float) -> list[tuple[Record, Record]]:
    """Networks that differ in nothing but natural and high-pass training images: they start from the same weights."""
    high = {start(record): record for record in records if half_width_of(record["parameters"]) == half_width}
    return [(record, high[start(record)]) for record in records if not record["parameters"]["high"] and start(record) in high]


def start(record: Record) -> str:
    """What a run has in common with those on other kinds of images: all but these."""
    return identity({name: value for name, value in record["parameters"].items() if name not in ("high", "half_width")})


def following(
    chosen: list[tuple[Record, Record]], when: str, spectra: tuple[Curve, Curve], radii: Curve, distance: Distance = total_variation
) -> Interval:
    """Distance to the other data's spectrum less that to its own, mean over both networks of a pair; interval over pairs and images."""
    natural, high = (stacked([pair[i] for pair in chosen], when) for i in range(2))

    def statistic(sample: Tensor) -> Tensor:
        parts = sample.mean(1).chunk(2, -1)
        to = [[to_spectrum(part, spectrum, radii, distance) for spectrum in spectra] for part in parts]
        return (to[0][1] - to[0][0] + to[1][0] - to[1][1]).mean() / 2

    return crossed_interval(torch.cat([natural, high], -1), statistic)


def approach(records: list[Record], spectrum: Curve, radii: Curve) -> Interval:
    """How far training took d to this spectrum down, mean over networks; interval over networks and images."""
    untrained, trained = (stacked(records, when) for when in ("before", "after"))

    def statistic(sample: Tensor) -> Tensor:
        before, after = (to_spectrum(part, spectrum, radii) for part in sample.mean(1).chunk(2, -1))
        return (before - after).mean()

    return crossed_interval(torch.cat([untrained, trained], -1), statistic)


def followed(record: Record, spectrum: Curve) -> Record:
    """The record of a network whose sensitivity is exactly this spectrum."""
    return record | {"result": record["result"] | {"after": [spectrum.tolist()] * len(record["result"]["before"])}}


def distances(records: list[Record], spectra: Spectra, radii: Curve) -> Float[Tensor, " runs"]:
    """d between each network's curve and the spectrum of its own data."""
    own = [to_spectrum(curve_of(record)[None], spectra[half_width_of(record["parameters"])], radii) for record in records]
    return torch.cat(own) if own else torch.empty(0, dtype=torch.float64)


def mean_distances(records: list[Record], spectra: Spectra, radii: Curve) -> Float[Tensor, " starts"]:
    """d to the spectrum of its own data, mean over the kinds of images, of networks that start from the same weights; all kinds or none."""
    starts: dict[str, list[Record]] = {}
    for record in records:
        starts.setdefault(start(record), []).append(record)
    means = [distances(several, spectra, radii).mean() for several in starts.values() if len(several) == len(spectra)]
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float64)


def series(records: Iterable[Record]) -> dict[tuple[str, str], Series]:
    """Networks with true labels by family and by what varies in it, "depth" at the least decay, "decay" at the depth that has most.

    A family of which nothing varies stands under "depth".
    """
    found: dict[tuple[str, str], Series] = {}
    alive = select(records, labels="true")
    for family in FAMILIES:
        chosen = [record for record in alive if record["parameters"]["family"] == family]
        least = min((record["parameters"]["decay"] for record in chosen), default=0.0)
        shallow = by_level([record for record in chosen if record["parameters"]["decay"] == least], "depth")
        decays = [by_level(several, "decay") for several in by_level(chosen, "depth").values()]
        most: Series = max(decays, key=len, default={})
        if len(shallow) > 1 or (shallow and len(most) < 2):
            found[family, "depth"] = shallow
        if len(most) > 1:
            found[family, "decay"] = most
    return found


def by_level(records: list[Record], parameter: str) -> Series:
    levels = sorted({record["parameters"][parameter] for record in records})
    return {level: [record for record in records if record["parameters"][parameter] == level] for level in levels}


def accuracy_rows(records: list[Record], published: dict[float, dict[tuple[str, str, float], tuple[str, str]]]) -> list[list[str]]:
    """Network, mean test accuracy on natural and on high-pass images, number of runs, and what was published of them."""
    rows = []
    for half_width, known in published.items():
        for (family, parameter), levels in series(records).items():
            for level, group in levels.items():
                depth, decay = (group[0]["parameters"][name] for name in ("depth", "decay"))
                name = f"{FAMILIES[family]}, depth {depth}" + (f", weight decay {level:g}" if parameter == "decay" else "")
                name += f", half-width {half_width:g}" if len(published) > 1 else ""
                by_decay = known.get((family, "decay", decay), NONE) if depth == DECAY_DEPTHS[family] else NONE
                beside = known.get((family, "depth", depth), by_decay) if parameter == "depth" else by_decay
                rows.append([name, *_means(group, half_width), *beside])
        shuffled = select(records, labels="shuffled")
        rows += [["shuffled labels", *_means(shuffled, half_width), "", ""]] if shuffled else []
    return rows


def _means(group: list[Record], half_width: float) -> list[str]:
    kinds = [[r for r in group if half_width_of(r["parameters"]) == kind] for kind in (0.0, half_width)]
    means = [f"{sum(r['result']['test_accuracy'] for r in runs) / len(runs):.3f}".lstrip("0") if runs else "–" for runs in kinds]
    return [*means, str(min(map(len, kinds)))]


def shown(interval: Interval) -> str:
    return f"{float(interval.estimate):.3f} ({float(interval.low):.3f} to {float(interval.high):.3f})"


def curve_of(record: Record, when: str = "after") -> Curve:
    """The sensitivity of a network, mean over its images."""
    values: Any = record["result"][when]
    return torch.tensor(values, dtype=torch.float64).mean(0)
