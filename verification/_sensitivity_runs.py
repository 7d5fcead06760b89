"""Runs for `frequency_sensitivity`: which networks a preset trains, one of them trained, and the curves that are kept of it."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv import images, models
from linconv.classifiers import accuracy, shuffled_labels, train_classifier
from linconv.filters import high_pass
from linconv.models import ImageNetwork
from linconv.sensitivity import sensitivity_maps
from linconv.spectra import power_spectrum, shell_means, standardise
from verification._sensitivity_presets import HALF_WIDTH
from verification._sweeping import train_and_test

ORIGIN = 0  # seed of the choice of images, the same for all runs
MOVES = 2  # pixels by which training moves images, and mirrors them: the published augmentation


# Of runs with few images; the published ones are part of their tasks.
STEP_SIZES = {"conv": 1e-3, "linear": 3e-4, "myrtle": 0.01, "vgg": 0.01, "resnet": 0.1}


@lru_cache(maxsize=2)
def prepare(data: str, side: int, samples: int | None, half_width: float) -> tuple[images.ImageSet, images.ImageSet]:
    """Training and test images in single precision, each channel standardised.

    High-pass images lack the square |u_d| ≤ half_width · side/2; where `half_width` is 0 they are natural and keep their mean.
    """
    sets = []
    for part in train_and_test(data, samples, side, ORIGIN):
        x = high_pass(part.images, half_width * side / 2) if half_width else part.images
        sets.append(images.ImageSet(standardise(x), part.labels, part.classes))
    return sets[0], sets[1]


def half_width_of(parameters: dict[str, Any]) -> float:
    """Of the images that a run is about: 0 for natural ones."""
    return float(parameters.get("half_width", HALF_WIDTH)) if parameters["high"] else 0.0


def met_spectrum(x: Float[Tensor, "N C H W"], moves: int = MOVES) -> Float[Tensor, "C H W"]:
    """The root-mean-square spectrum of images as training shows them: mirrored or not, moved by up to `moves` pixels, zeros moving in.

    The mean over all moves and both mirror images, each as likely as the others, without drawing any.  It is not that of the images as
    they are: edges against zeros have power at all frequencies, at those too that a filter took.
    """
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (moves,) * 4)
    offsets = [(i, j) for i in range(2 * moves + 1) for j in range(2 * moves + 1)]
    spectra = [power_spectrum(padded[..., i : i + height, j : j + width]).double() for i, j in offsets]
    power = torch.stack(spectra).square().mean(0)
    mirrored = power.flip(-1).roll(1, -1)  # of x_{n−1−i}, whose DFT has the moduli of that at −u
    return ((power + mirrored) / 2).sqrt()


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
    step_size: float | None = None,
    half_width: float = HALF_WIDTH,
) -> dict[str, Any]:
    """Train one network; its sensitivity at some test images, before and after, as curves and as a map, and its accuracies."""
    train, test = prepare(data, side, samples, half_width if high else 0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(family, depth, width, train.images.shape[1], len(train.classes), side, seed).to(device)
    targets = train.labels if labels == "true" else shuffled_labels(train.labels, torch.Generator().manual_seed(seed))
    probed = test.images[:probes].to(device)
    before = sensitivity_maps(net, probed)
    ended = train_classifier(
        net,
        train.images,
        targets,
        epochs=epochs,
        batch_size=batch_size,
        step_size=STEP_SIZES[family] if step_size is None else step_size,
        weight_decay=decay,
        flips=True,
        translations=MOVES,
        generator=torch.Generator().manual_seed(seed + 10**7),
    )
    alive = ended.stop_reason != "diverged"
    maps = sensitivity_maps(net, probed) if alive else torch.zeros_like(before)
    sensitive = bool(maps.any())  # a network that answers the same to all images has no curve
    return {
        "before": rounded(shell_means(before), 8),
        "after": rounded(shell_means(maps), 8) if sensitive else None,
        "map": rounded(maps.mean((0, 1))[:, : side // 2 + 1], 4) if sensitive else None,
        "train_accuracy": accuracy(net, train.images, targets),
        "test_accuracy": accuracy(net, test.images, test.labels),
        "stop_reason": ended.stop_reason,
    }


def rounded(values: Float[Tensor, "m n"], digits: int) -> list[list[float]]:
    """In as few digits as are worth keeping: stores stay readable.  Eight tell all numbers of single precision apart."""
    return [[float(f"{value:.{digits}g}") for value in row] for row in values.tolist()]


def select(records: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The records whose parameters are those, and whose training did not diverge."""
    return [
        record
        for record in records
        if all(record["parameters"][key] == value for key, value in wanted.items()) and record["result"]["after"] is not None
    ]
