"""Runs for `relative_stability`: which networks a preset trains, one of them trained, and its stability before, in and after training."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linconv import images
from linconv.classifiers import ClassifierRun, accuracy, shuffled_labels, train_classifier
from linconv.deformation import typical_temperature
from linconv.models import ImageNetwork
from linconv.spectra import standardise
from linconv.stability import RelativeStability, layer_stabilities
from verification._sensitivity_runs import STEP_SIZES, build

ORIGIN = 0  # seed of what all runs share: the choice of images, the deformations, the noise
DISPLACEMENT, CUTOFF = 1.0, 3  # the published δ in pixels, and c


class Architecture(NamedTuple):
    """One of `linconv.models`, by family, depth and width."""

    family: str
    depth: int
    width: int

    @property
    def label(self) -> str:
        return f"{self.family}-{self.depth}, width {self.width}"


class Preset(NamedTuple):
    """Size of an experiment.  `probes` test images and `draws` deformations of each at which stability is measured.

    The first architecture is trained on shuffled labels as well, by as many seeds.
    """

    side: int
    samples: int | None
    epochs: int
    batch_size: int
    seeds: int
    probes: int
    draws: int
    architectures: tuple[Architecture, ...]


# `tiny` is for tests; `smoke` shows that everything runs; `reduced` ends in minutes on two idle cores; `full` is for a GPU.  Intervals are
# over architectures: five at least, as fewer decide nothing.
PRESETS = {
    "tiny": Preset(
        12,
        60,
        2,
        20,
        2,
        16,
        4,
        tuple(Architecture(*a) for a in [("conv", 2, 2), ("linear", 2, 2), ("conv", 2, 4), ("conv", 3, 2), ("linear", 3, 2)]),
    ),
    "smoke": Preset(
        16,
        200,
        4,
        32,
        2,
        32,
        8,
        tuple(Architecture(*a) for a in [("myrtle", 5, 4), ("conv", 2, 4), ("resnet", 8, 4), ("linear", 2, 4), ("conv", 3, 4)]),
    ),
    "reduced": Preset(
        32,
        2048,
        6,
        64,
        2,
        64,
        4,
        (
            Architecture("myrtle", 5, 8),
            Architecture("conv", 2, 8),
            Architecture("linear", 2, 8),
            Architecture("resnet", 8, 8),
            Architecture("vgg", 11, 8),
        ),
    ),
    "full": Preset(
        32,
        None,
        200,
        128,
        5,
        500,
        8,
        (
            Architecture("myrtle", 5, 64),
            Architecture("conv", 2, 64),
            Architecture("conv", 4, 64),
            Architecture("linear", 4, 64),
            *(Architecture("vgg", depth, 64) for depth in (11, 13, 16, 19)),
            Architecture("resnet", 9, 64),
            *(Architecture("resnet", depth, 16) for depth in (8, 20, 56)),
        ),
    ),
}


def tasks_of(preset: str, data: str, seed: int) -> list[dict[str, Any]]:
    p = PRESETS[preset]
    shared = {"data": data, "side": p.side, "samples": p.samples, "epochs": p.epochs, "batch_size": p.batch_size}
    shared |= {"probes": p.probes, "draws": p.draws}
    kinds = [(architecture, "true") for architecture in p.architectures] + [(p.architectures[0], "shuffled")]
    return [
        shared | architecture._asdict() | {"labels": labels, "seed": seed + i} for architecture, labels in kinds for i in range(p.seeds)
    ]


@lru_cache(maxsize=1)
def prepare(data: str, side: int, samples: int | None) -> tuple[images.ImageSet, images.ImageSet]:
    """Training and test images in single precision, each channel standardised."""
    sets = []
    for split, count in (("train", samples), ("test", None if samples is None else max(samples // 2, 200))):
        generator = torch.Generator().manual_seed(ORIGIN)
        loaded = images.load(data, split=split, samples=count, grid=(side, side), dtype=torch.float32, generator=generator)
        sets.append(images.ImageSet(standardise(loaded.images), loaded.labels, loaded.classes))
    return sets[0], sets[1]


def layer_names(net: ImageNetwork) -> list[str]:
    """The activations along the trunk, in order, and "", the output."""
    return [name for name, part in net.named_modules() if name.count(".") == 1 and isinstance(part, nn.ReLU)] + [""]


def run(
    *,
    data: str,
    side: int,
    samples: int | None,
    family: str,
    depth: int,
    width: int,
    labels: str,
    epochs: int,
    batch_size: int,
    probes: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Train one network.  `epochs`, `R`, `D`, `G`: of the output, before training, after 1, 2, 4, … epochs and at the end.

    `again`: R and G of the untrained network from other deformations and other noise.  `layers`: R of each layer before and after.  None
    stands for a network whose training diverged, or that answers the same to all images.
    """
    train, test = prepare(data, side, samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(family, depth, width, train.images.shape[1], len(train.classes), side, seed).to(device)
    targets = train.labels if labels == "true" else shuffled_labels(train.labels, torch.Generator().manual_seed(seed))
    probed, temperature = test.images[:probes].to(device), typical_temperature(DISPLACEMENT, side, CUTOFF)

    def measured(layers: list[str], origin: int = ORIGIN) -> dict[str, RelativeStability] | None:
        generator = torch.Generator().manual_seed(origin)
        options: dict[str, Any] = {"temperature": temperature, "cutoff": CUTOFF, "n_draws": draws, "generator": generator, "resamples": 100}
        try:
            return layer_stabilities(net, probed, layers, **options)
        except ValueError:  # not finite, or the same for all images
            return None

    names = layer_names(net)
    before, again = measured(names), measured([""], ORIGIN + 1)
    courses = [(0, None if before is None else before[""])]

    def look(sofar: ClassifierRun) -> None:
        epoch = len(sofar.losses)
        if epoch & (epoch - 1) == 0 and epoch < epochs:
            found = measured([""])
            courses.append((epoch, None if found is None else found[""]))

    ended = train_classifier(
        net,
        train.images,
        targets,
        epochs=epochs,
        batch_size=batch_size,
        step_size=STEP_SIZES[family],
        weight_decay=1e-4,
        generator=torch.Generator().manual_seed(seed + 10**7),
        on_epoch=look,
    )
    after = measured(names) if ended.stop_reason != "diverged" else None
    courses.append((len(ended.losses), None if after is None else after[""]))
    alive = all(found is not None for _, found in courses) and again is not None
    return {
        "alive": alive,
        **({} if not alive else {key: [value(found, key) for _, found in courses] for key in "RDG"}),
        "epochs": [epoch for epoch, _ in courses],
        "again": None if again is None else {key: value(again[""], key) for key in "RG"},
        "layers": None if before is None or after is None else [[value(found[name], "R") for name in names] for found in (before, after)],
        "train_accuracy": accuracy(net, train.images, targets),
        "test_accuracy": accuracy(net, test.images, test.labels),
        "stop_reason": ended.stop_reason,
    }


def value(found: RelativeStability | None, key: str) -> float:
    """The estimate of R, D or G, in as many digits as single precision has."""
    return float(f"{float(getattr(found, key).estimate):.8g}")


def architecture_of(record: dict[str, Any]) -> Architecture:
    p = record["parameters"]
    return Architecture(p["family"], p["depth"], p["width"])


def logarithms(records: list[dict[str, Any]], key: str, index: int) -> Tensor:
    """log₁₀ of R, D or G, one a run: index 0 before training, −1 after it."""
    return torch.tensor([record["result"][key][index] for record in records], dtype=torch.float64).log10()
