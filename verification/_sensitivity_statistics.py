"""What `frequency_sensitivity` asks of its records: distances to the spectra of the data, series by depth and weight decay, accuracies."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.statistics import Interval, hierarchical_interval
from verification._sensitivity_runs import half_width_of, select
from verification._sweeping import Record, identity

FAMILIES = {"conv": "ConvActually", "linear": "its linear twin", "myrtle": "Myrtle CNN", "vgg": "VGG", "resnet": "ResNet"}
RESAMPLES = 1000

Curve = Float[Tensor, " R"]
Spectra = dict[float, Curve]  # shares of mass by the half-width that the images lack; 0 for natural ones
Series = dict[float, list[Record]]


def masses(curves: Float[Tensor, "*runs R"], radii: Curve) -> Float[Tensor, "*runs R"]:
    """Curves of mass 1, each value with its share of the trapezoidal rule: total variation is half the sum of differences."""
    shares = curves * trapezoid_weights(radii)
    return shares / shares.sum(-1, keepdim=True)


def trapezoid_weights(radii: Curve) -> Curve:
    steps = radii.diff()
    return (torch.cat([steps, steps.new_zeros(1)]) + torch.cat([steps.new_zeros(1), steps])) / 2


def stacked(records: list[Record], when: str) -> Float[Tensor, "runs images R"]:
    return torch.tensor([record["result"][when] for record in records], dtype=torch.float64)


def pairs(records: list[Record], half_width: float) -> list[tuple[Record, Record]]:
    """Networks that differ in nothing but natural and high-pass training images: they start from the same weights."""

    def key(record: Record) -> str:
        return identity({name: value for name, value in record["parameters"].items() if name not in ("high", "half_width")})

    high = {key(record): record for record in records if half_width_of(record["parameters"]) == half_width}
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


def approach(records: list[Record], spectrum: Curve, radii: Curve, generator: torch.Generator) -> Interval:
    """How far training took d to this spectrum down, mean over networks; networks and images are resampled."""
    untrained, trained = (stacked(records, when) for when in ("before", "after"))

    def statistic(sample: Tensor) -> Tensor:
        before, after = ((masses(part.mean(1), radii) - spectrum).abs().sum(-1) / 2 for part in sample.chunk(2, -1))
        return (before - after).mean()

    return hierarchical_interval(torch.cat([untrained, trained], -1), statistic, generator=generator, resamples=RESAMPLES)


def followed(record: Record, shares: Curve, radii: Curve) -> Record:
    """The record of a network with exactly these shares of its sensitivity."""
    curve = (shares / masses(torch.ones_like(radii), radii)).tolist()
    return record | {"result": record["result"] | {"after": [curve] * len(record["result"]["before"])}}


def distances(records: list[Record], spectra: Spectra, radii: Curve) -> Float[Tensor, " runs"]:
    """d between each network's curve and the spectrum of its own data."""
    own = torch.stack([spectra[half_width_of(record["parameters"])] for record in records])
    return (masses(stacked(records, "after").mean(1), radii) - own).abs().sum(-1) / 2


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
                name = f"{FAMILIES[family]}, {parameter.replace('decay', 'weight decay')} {level:g}"
                name += f", half-width {half_width:g}" if len(published) > 1 else ""
                rows.append([name, *_means(group, half_width), *known.get((family, parameter, level), ("", ""))])
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
