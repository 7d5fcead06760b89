"""Runs for `frequency_sensitivity`: which networks a preset trains, one of them trained, and the curves that are kept of it."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from linconv import images, models
from linconv.classifiers import accuracy, shuffled_labels, train_classifier
from linconv.filters import high_pass
from linconv.models import ImageNetwork
from linconv.sensitivity import sensitivity_curves
from linconv.spectra import power_spectrum, radial_average, standardise

ORIGIN = 0  # seed of the choice of images, the same for all runs


class Preset(NamedTuple):
    """Size of an experiment.  `depths` at the least decay, `decays` at `depth`; `others`: further families, (name, depth, width)."""

    side: int
    samples: int | None
    epochs: int
    batch_size: int
    seeds: int
    width: int
    depths: tuple[int, ...]
    depth: int
    decays: tuple[float, ...]
    others: tuple[tuple[str, int, int], ...]
    probes: int  # images at which sensitivities are taken


# `smoke` shows that everything runs; `reduced` is for two cores and an hour; `paper` is the published table, for GPUs or a cluster.
PRESETS = {
    "smoke": Preset(16, 300, 6, 32, 2, 8, (1, 2), 2, (1e-5, 1e-2), (), 16),
    "reduced": Preset(
        32,
        2048,
        15,
        64,
        3,
        16,
        (1, 2, 4),
        4,
        (1e-5, 1e-3, 1e-2),
        (("linear", 4, 16), ("myrtle", 5, 16), ("vgg", 11, 16), ("resnet", 20, 8)),
        32,
    ),
    "paper": Preset(
        32,
        None,
        500,
        512,
        5,
        64,
        (1, 2, 4, 8),
        4,
        (1e-5, 10 ** (-11 / 3), 10 ** (-7 / 3), 1e-1),
        (
            *(("linear", depth, 64) for depth in (1, 2, 4, 8)),
            ("myrtle", 5, 64),
            *(("vgg", depth, 64) for depth in (11, 13, 16, 19)),
            ("resnet", 9, 64),
            ("resnet", 20, 16),
            ("resnet", 56, 16),
        ),
        256,
    ),
}
STEP_SIZES = {"conv": 1e-3, "linear": 3e-4, "myrtle": 0.01, "vgg": 0.01, "resnet": 0.1}


def tasks_of(preset: str, data: str, seed: int) -> list[dict[str, Any]]:
    """The runs of a preset on natural and on high-pass images."""
    p = PRESETS[preset]
    shared = {"data": data, "side": p.side, "samples": p.samples, "epochs": p.epochs, "batch_size": p.batch_size, "probes": p.probes}
    least = p.decays[0]
    networks: list[dict[str, Any]] = [
        {"family": "conv", "depth": depth, "width": p.width, "decay": least, "labels": "true"} for depth in p.depths
    ]
    networks += [{"family": "conv", "depth": p.depth, "width": p.width, "decay": decay, "labels": "true"} for decay in p.decays[1:]]
    networks += [{"family": name, "depth": depth, "width": width, "decay": least, "labels": "true"} for name, depth, width in p.others]
    networks.append({"family": "conv", "depth": p.depth, "width": p.width, "decay": least, "labels": "shuffled"})
    kinds = [{"high": False}, {"high": True}]
    return [shared | network | kind | {"seed": seed + i} for network in networks for kind in kinds for i in range(p.seeds)]


@lru_cache(maxsize=2)
def prepare(data: str, side: int, samples: int | None, high: bool) -> tuple[images.ImageSet, images.ImageSet]:
    """Training and test images in single precision, natural or without the square |u_d| ≤ side/4, each channel standardised."""
    sets = []
    for split, count in (("train", samples), ("test", None if samples is None else max(samples // 4, 100))):
        loaded = images.load(
            data, split=split, samples=count, grid=(side, side), dtype=torch.float32, generator=torch.Generator().manual_seed(ORIGIN)
        )
        x = high_pass(loaded.images, side / 4) if high else loaded.images
        sets.append(images.ImageSet(standardise(x), loaded.labels, loaded.classes))
    return sets[0], sets[1]


def spectrum_curve(x: Float[Tensor, "N C H W"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Radii, and the root of the mean power of the images there."""
    radii, values = radial_average(power_spectrum(x.double()))
    return radii, values


def build(family: str, depth: int, width: int, channels: int, classes: int, side: int, seed: int) -> ImageNetwork:
    generator = torch.Generator().manual_seed(seed)
    grid = (side, side)
    if family in ("conv", "linear"):
        return models.conv_actually(
            channels, classes, grid, depth=depth, width=width, linear=family == "linear", dtype=torch.float32, generator=generator
        )
    if family == "myrtle":
        return models.myrtle(channels, classes, width=width, dtype=torch.float32, generator=generator)
    if family == "vgg":
        return models.vgg(depth, channels, classes, width=width, grid=grid, dtype=torch.float32, generator=generator)
    return models.resnet(depth, channels, classes, width=width, dtype=torch.float32, generator=generator)


def run(
    *,
    data: str,
    side: int,
    samples: int | None,
    high: bool,
    family: str,
    depth: int,
    width: int,
    decay: float,
    labels: str,
    epochs: int,
    batch_size: int,
    probes: int,
    seed: int,
) -> dict[str, Any]:
    """Train one network; its sensitivity curves at some test images, before and after, and its accuracies."""
    train, test = prepare(data, side, samples, high)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(family, depth, width, train.images.shape[1], len(train.classes), side, seed).to(device)
    targets = train.labels if labels == "true" else shuffled_labels(train.labels, torch.Generator().manual_seed(seed))

    def curves() -> list[list[float]]:
        return rounded(sensitivity_curves(net, test.images[:probes].to(device))[1].cpu())

    before = curves()
    ended = train_classifier(
        net,
        train.images,
        targets,
        epochs=epochs,
        batch_size=batch_size,
        step_size=STEP_SIZES[family],
        weight_decay=decay,
        generator=torch.Generator().manual_seed(seed + 10**7),
    )
    after = curves() if ended.stop_reason != "diverged" else []
    return {
        "before": before,
        "after": after if any(map(any, after)) else None,  # a network that answers the same to all images has no curve
        "train_accuracy": accuracy(net, train.images, targets),
        "test_accuracy": accuracy(net, test.images, test.labels),
        "stop_reason": ended.stop_reason,
    }


def rounded(curves: Float[Tensor, "N R"]) -> list[list[float]]:
    """Single precision in as few digits as tell it apart: stores stay readable."""
    return [[float(f"{value:.8g}") for value in curve] for curve in curves.tolist()]


def select(records: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The records whose parameters are those, and whose training did not diverge."""
    return [
        record
        for record in records
        if all(record["parameters"][key] == value for key, value in wanted.items()) and record["result"]["after"] is not None
    ]
