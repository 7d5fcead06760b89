"""Runs for `relative_stability`: which networks a preset trains, one of them trained, and its stability before, in and after training."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv import images
from linconv.classifiers import ClassifierRun, accuracy, shuffled_labels, train_classifier
from linconv.deformation import typical_temperature
from linconv.models import ImageNetwork
from linconv.spectra import standardise
from linconv.stability import RelativeStability, layer_stabilities
from verification._sensitivity_runs import STEP_SIZES, build
from verification._stability_presets import Architecture

Found = dict[str, RelativeStability]

ORIGIN = 0  # seed of what all runs share: the choice of images, the deformations, the noise
DISPLACEMENT, CUTOFF = 1.0, 3  # the published δ in pixels, and c


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
    probed, names = test.images[:probes].to(device), layer_names(net)
    before, again = stabilities(net, probed, names, draws, ORIGIN), stabilities(net, probed, [""], draws, ORIGIN + 1)
    course = {0: before}

    def look(sofar: ClassifierRun) -> None:
        epoch = len(sofar.losses)
        if epoch & (epoch - 1) == 0 and epoch < epochs:
            course[epoch] = stabilities(net, probed, [""], draws, ORIGIN)

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
    after = stabilities(net, probed, names, draws, ORIGIN) if ended.stop_reason != "diverged" else None
    return {
        **course_of(course | {len(ended.losses): after}, names, again),
        "train_accuracy": accuracy(net, train.images, targets),
        "test_accuracy": accuracy(net, test.images, test.labels),
        "stop_reason": ended.stop_reason,
    }


def stabilities(net: ImageNetwork, x: Float[Tensor, "N C H W"], layers: list[str], draws: int, origin: int) -> Found | None:
    """R, D and G of layers; None where outputs are not finite, or the same for all images."""
    temperature, generator = typical_temperature(DISPLACEMENT, x.shape[-1], CUTOFF), torch.Generator().manual_seed(origin)
    try:
        return layer_stabilities(net, x, layers, temperature=temperature, cutoff=CUTOFF, n_draws=draws, generator=generator, resamples=100)
    except ValueError:
        return None


def course_of(course: dict[int, Found | None], names: list[str], again: Found | None) -> dict[str, Any]:
    """What is kept of the stabilities at each epoch: of the output always, of the layers at the start and at the end."""
    epochs = sorted(course)
    before, after = course[epochs[0]], course[epochs[-1]]
    outputs = [found[""] for found in course.values() if found is not None]
    alive = len(outputs) == len(course) and again is not None
    return {
        "alive": alive,
        **({key: [value(found, key) for found in outputs] for key in "RDG"} if alive else {}),
        "epochs": epochs,
        "again": None if again is None else {key: value(again[""], key) for key in "RG"},
        "layers": None if before is None or after is None else [[value(found[name], "R") for name in names] for found in (before, after)],
    }


def value(found: RelativeStability, key: str) -> float:
    """The estimate of R, D or G, in as many digits as single precision has."""
    return float(f"{float(getattr(found, key).estimate):.8g}")


def architecture_of(record: dict[str, Any]) -> Architecture:
    p = record["parameters"]
    return Architecture(p["family"], p["depth"], p["width"])


def logarithms(records: list[dict[str, Any]], key: str, index: int) -> Tensor:
    """log₁₀ of R, D or G, one a run: index 0 before training, −1 after it."""
    return torch.tensor([record["result"][key][index] for record in records], dtype=torch.float64).log10()
