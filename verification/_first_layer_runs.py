"""Runs of nonlinear networks for `first_layer_consistency`: which ones a preset has, one of them trained, and what is kept of it."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from linconv import images, models
from linconv.classifiers import accuracy, shuffled_labels, train_classifier
from linconv.models import ImageNetwork
from linconv.patches import PatchSpectrum, energy_profile, first_filters, patch_spectrum
from verification._sweeping import train_and_test

KERNEL = 3
LAGS = 4
ORIGIN = 0  # seed of the choice of images, the same for all runs


class Preset(NamedTuple):
    """Size of an experiment: VGG-11 of `width` and of `other_width`, ResNet-20 of `residual_width`; images, epochs, seeds.

    Random labels can only be learned by heart, which takes more epochs of fewer images: `few` of them for `long` epochs, not moved nor
    mirrored.  The same is done with their true labels, so that the two differ in the labels alone.
    """

    width: int
    other_width: int
    residual_width: int
    samples: int | None
    epochs: int
    few: int | None
    long: int
    seeds: int
    batch_size: int


# `smoke` shows that everything runs; `reduced` ends in minutes on two cores; `full` is the size of the papers, for a GPU.
PRESETS = {
    "smoke": Preset(8, 12, 4, 250, 4, 60, 20, 2, 32),
    "reduced": Preset(16, 24, 8, 2048, 10, 512, 30, 3, 64),
    "full": Preset(64, 128, 16, None, 100, None, 100, 5, 128),
}
STEP_SIZE, WEIGHT_DECAY = 0.02, 1e-4


def grid_of_runs(preset: str, data: str, padding_mode: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of each group: `base` and those that differ from it in one respect, `few`, and `labels`, which differs from that in one."""
    p = PRESETS[preset]
    shared = {
        "data": data,
        "samples": p.samples,
        "few": None,
        "epochs": p.epochs,
        "batch_size": p.batch_size,
        "padding_mode": padding_mode,
        "network": "vgg11",
        "width": p.width,
        "labels": "true",
        "augmented": True,
        "frozen": False,
    }
    few = {"few": p.few, "epochs": p.long, "augmented": False}
    changes: dict[str, dict[str, Any]] = {
        "base": {},
        "width": {"width": p.other_width},
        "architecture": {"network": "resnet20", "width": p.residual_width},
        "few": few,
        "labels": few | {"labels": "random"},
        "frozen": {"frozen": True},
    }
    return {name: [shared | change | {"seed": seed + i} for i in range(p.seeds)] for name, change in changes.items()}


@lru_cache(maxsize=1)
def prepare(data: str, samples: int | None) -> tuple[images.ImageSet, images.ImageSet]:
    """Training and test images in single precision, each channel standardised by the training set's mean and deviation."""
    sets = train_and_test(data, samples, 32, ORIGIN)
    train = sets[0].images
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    if float(deviation.max()) <= 1e-6:
        raise ValueError(f"expected images that vary, those of {data} have one colour; take other images")
    deviation = deviation.where(deviation > 1e-6, 1.0)
    train_set, test_set = (images.ImageSet((s.images - mean) / deviation, s.labels, s.classes) for s in sets)
    return train_set, test_set


@lru_cache(maxsize=1)
def spectrum_of(train: images.ImageSet) -> PatchSpectrum:
    """Principal components of the patches that a first layer sees inside the images."""
    return patch_spectrum(train.images, KERNEL)


def build(network: str, width: int, channels: int, classes: int, padding_mode: Literal["zeros", "circular"], seed: int) -> ImageNetwork:
    generator = torch.Generator().manual_seed(seed)
    make = models.vgg if network == "vgg11" else models.resnet
    depth = 11 if network == "vgg11" else 20
    return make(depth, channels, classes, width=width, padding_mode=padding_mode, dtype=torch.float32, generator=generator)


def run(
    *,
    data: str,
    samples: int | None,
    few: int | None,
    epochs: int,
    batch_size: int,
    padding_mode: Literal["zeros", "circular"],
    network: str,
    width: int,
    labels: str,
    augmented: bool,
    frozen: bool,
    seed: int,
) -> dict[str, Any]:
    """Train one network; energies of its first layer W, of its start W₀ and of W − W₀, their growth, responses, accuracies.

    Components are those of all `samples`, also where only the first `few` are trained on.
    """
    train, test = prepare(data, samples)
    spectrum = spectrum_of(train)
    net = build(network, width, train.images.shape[1], len(train.classes), padding_mode, seed)
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    x, targets = train.images[:few], train.labels[:few]
    if labels == "random":
        targets = shuffled_labels(targets, torch.Generator().manual_seed(seed))
    start = first_filters(net).clone()
    if frozen:
        next(net.parameters()).requires_grad_(False)
    growth: list[tuple[int, float]] = []

    def follow(progress: Any) -> None:
        growth.append((len(progress.losses) * len(x), float((first_filters(net) - start).norm() / start.norm())))

    ended = train_classifier(
        net,
        x,
        targets,
        epochs=epochs,
        batch_size=batch_size,
        step_size=STEP_SIZE,
        weight_decay=WEIGHT_DECAY,
        flips=augmented,
        translations=2 if augmented else 0,
        generator=torch.Generator().manual_seed(seed + 10**7),
        on_epoch=follow,
    )
    first, before, some = first_filters(net).cpu(), start.cpu(), train.images[:200]

    def energies(filters: Float[Tensor, "K C k k"]) -> list[float]:
        return energy_profile(filters.double(), spectrum.components.double()).tolist()

    return {
        "lambdas": spectrum.lambdas.tolist(),
        "initial": energies(before),
        "trained": energies(first),
        "change": energies(first - before),
        "growth": growth,
        "autocorrelation": {"before": autocorrelation(before, some), "after": autocorrelation(first, some)},
        "train_accuracy": accuracy(net, x, targets),
        "test_accuracy": accuracy(net, test.images, test.labels),
        "stop_reason": ended.stop_reason,
    }


def autocorrelation(filters: Float[Tensor, "K C k k"], x: Float[Tensor, "N C H W"]) -> list[float]:
    """Correlation of the responses of filters at sites 0, 1, … pixels apart, in rows and columns, averaged over filters and images."""
    responses = torch.nn.functional.conv2d(x.double(), filters.double())
    responses = responses - responses.mean((0, 2, 3), keepdim=True)
    variance = responses.square().mean((0, 2, 3))
    found = [1.0]
    for lag in range(1, LAGS + 1):
        rows = (responses[:, :, lag:] * responses[:, :, :-lag]).mean((0, 2, 3))
        columns = (responses[..., lag:] * responses[..., :-lag]).mean((0, 2, 3))
        found.append(float(((rows + columns) / 2 / variance).mean()))
    return found


def spatial_frequencies(spectrum: PatchSpectrum, resolution: int = 32) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """For each component the mean |f| of its power, in cycles per pixel, and the standard deviation of |f| about it."""
    power = torch.fft.fft2(spectrum.components.double().unflatten(1, spectrum.patch_shape), (resolution, resolution)).abs().square().sum(1)
    axis = torch.fft.fftfreq(resolution, dtype=torch.float64)
    radius = (axis[:, None].square() + axis.square()).sqrt()
    weight = power / power.sum((1, 2), keepdim=True)
    mean = (weight * radius).sum((1, 2))
    return mean, ((weight * radius.square()).sum((1, 2)) - mean.square()).clamp(min=0).sqrt()
