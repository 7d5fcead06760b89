"""The sizes of `frequency_sensitivity`: which networks a preset trains on which images, and what the published ones reached.

Published settings and accuracies: Godfrey et al., arXiv 2210.01257, and the tables of its code (repository pnnl/frequency_sensitivity).
"""

from typing import Any, NamedTuple

import torch

from linconv import images

LABELLED = ("photos", "cifar10", "fashion-mnist")  # all other names are folders
HALF_WIDTH = 0.5  # of the square that high-pass images lack, in units of the highest frequency
LARGE, SMALL = 224, 64  # sides of ImageNette as it was used, and of the Tiny ImageNet that can stand in for it


class Family(NamedTuple):
    """Networks of one kind: `depths` at the least of the `decays`, all `decays` at `depth`; `step_size` None is that of few images."""

    name: str
    width: int
    depths: tuple[int, ...]
    depth: int
    decays: tuple[float, ...]
    batch_size: int
    step_size: float | None = None


class Preset(NamedTuple):
    """Size of an experiment; of the first family the predictions are required, and it is trained on shuffled labels too."""

    side: int
    samples: int | None  # None: all
    epochs: int
    seeds: int
    probes: int  # images at which sensitivities are taken
    families: tuple[Family, ...]
    half_widths: tuple[float, ...] = (HALF_WIDTH,)


def powers(last: int, count: int) -> tuple[float, ...]:
    """`count` numbers from 10⁻⁵ to 10^last in equal ratios, to four digits as in the published tables: they are part of a job's name."""
    return tuple(float(f"{10 ** (-5 + i * (last + 5) / (count - 1)):.4g}") for i in range(count))


# `smoke` shows that everything runs; `reduced` is for two cores and an hour; `paper` is the published table, for GPUs or a cluster.
PRESETS = {
    "smoke": Preset(16, 300, 6, 2, 16, (Family("conv", 8, (1, 2, 3), 2, (1e-5, 1e-3, 1e-2), 32),)),
    "reduced": Preset(
        32,
        2048,
        8,
        3,
        32,
        (
            Family("conv", 8, (1, 2, 4), 4, (1e-5, 1e-3, 1e-2), 32),
            Family("linear", 8, (4,), 4, (1e-5,), 32),
            Family("myrtle", 16, (5,), 5, (1e-5,), 32),
            Family("vgg", 16, (11,), 11, (1e-5,), 32),
            Family("resnet", 8, (20,), 20, (1e-5,), 32),
        ),
    ),
    "paper": Preset(
        32,
        None,
        500,
        5,
        256,
        (
            Family("conv", 64, (1, 2, 4, 8), 4, powers(-1, 4), 1024, 1e-4),
            Family("linear", 64, (1, 2, 4, 8), 4, powers(-1, 4), 1024, 1e-4),
            Family("myrtle", 64, (5,), 5, powers(-2, 10), 512, 1e-2),
            Family("vgg", 64, (11, 13, 16, 19), 11, powers(-2, 10), 256, 1e-2),
            Family("resnet", 64, (9,), 9, powers(-2, 10), 512, 0.1),
            Family("resnet", 16, (20, 56), 20, (1e-5,), 512, 0.1),
        ),
    ),
}
# What `paper` is on a folder of images: the row of ImageNette.
IMAGENETTE = Preset(
    LARGE, None, 500, 5, 64, (Family("vgg", 64, (11, 13, 16, 19), 11, powers(-2, 3), 256, 1.25e-3),), half_widths=(0.0714, HALF_WIDTH)
)

Accuracies = dict[tuple[str, str, float], tuple[str, str]]


def _rows(family: str, parameter: str, levels: tuple[float, ...], natural: str, high: str) -> Accuracies:
    return {(family, parameter, level): row for level, row in zip(levels, zip(natural.split(), high.split(), strict=True), strict=True)}


# By family, parameter that varies and its value: test accuracies on natural and on high-pass CIFAR-10.
PUBLISHED = (
    _rows("conv", "depth", (1, 2, 4, 8), ".546 .612 .633 .624", ".373 .404 .494 .499")
    | _rows("conv", "decay", powers(-1, 4), ".628 .626 .631 .641", ".513 .518 .534 .484")
    | _rows(
        "myrtle",
        "decay",
        powers(-2, 10),
        ".866 .864 .866 .863 .866 .868 .867 .869 .868 .836",
        ".791 .795 .794 .796 .795 .797 .797 .793 .782 .747",
    )
    | _rows("vgg", "depth", (11, 13, 16, 19), ".872 .886 .888 .890", ".797 .809 .807 .809")
    | _rows(
        "vgg",
        "decay",
        powers(-2, 10),
        ".872 .871 .874 .874 .875 .876 .883 .885 .881 .836",
        ".795 .793 .794 .798 .799 .801 .805 .809 .789 .169",
    )
    | _rows("resnet", "depth", (9, 20, 56), ".920 .899 .902", ".845 .830 .833")
    | _rows(
        "resnet",
        "decay",
        powers(-2, 10),
        ".920 .920 .920 .923 .925 .929 .935 .936 .928 .912",
        ".850 .853 .853 .849 .849 .861 .862 .864 .862 .844",
    )
)
DECAY_DEPTHS = {"conv": 4, "linear": 4, "myrtle": 5, "vgg": 11, "resnet": 9}  # at which weight decays varied
# On ImageNette, high-pass with either half-width.
PUBLISHED_IMAGENETTE = {
    0.0714: _rows("vgg", "depth", (11, 13, 16, 19), ".832 .826 .841 .855", ".834 .840 .835 .841")
    | _rows("vgg", "decay", powers(-2, 3), ".820 .825 .788", ".836 .825 .791"),
    HALF_WIDTH: _rows("vgg", "depth", (11, 13, 16, 19), ".832 .826 .841 .855", ".794 .789 .801 .823")
    | _rows("vgg", "decay", powers(-2, 3), ".820 .825 .788", ".791 .789 .748"),
}


def preset_of(name: str, data: str) -> Preset:
    """The preset; `paper` on a folder of images is ImageNette's row, at the side of 64 pixels where the images have no more."""
    if name != "paper" or data in LABELLED:
        return PRESETS[name]
    image = images.load(data, samples=1, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).images
    return IMAGENETTE._replace(side=SMALL if min(image.shape[2:]) <= SMALL else LARGE)


def tasks_of(p: Preset, data: str, seed: int) -> list[dict[str, Any]]:
    """The runs of a preset on natural and on high-pass images.

    What has the default of `run` is left out: the parameters are the name of a run, and a store goes on being read when others come.
    """
    tasks: list[dict[str, Any]] = []
    kinds = [{"high": False}, *({"high": True} | _unless(half_width=w, default=HALF_WIDTH) for w in p.half_widths)]
    for family in p.families:
        networks: list[dict[str, Any]] = [{"depth": depth, "decay": family.decays[0], "labels": "true"} for depth in family.depths]
        networks += [{"depth": family.depth, "decay": decay, "labels": "true"} for decay in family.decays[1:]]
        if family is p.families[0]:
            networks.append({"depth": family.depth, "decay": family.decays[0], "labels": "shuffled"})
        shared = {"data": data, "side": p.side, "samples": p.samples, "epochs": p.epochs, "probes": p.probes}
        shared |= {"family": family.name, "width": family.width, "batch_size": family.batch_size}
        shared |= _unless(step_size=family.step_size, default=None)
        tasks += [shared | network | kind | {"seed": seed + i} for network in networks for kind in kinds for i in range(p.seeds)]
    return tasks


def _unless(*, default: object, **parameter: Any) -> dict[str, Any]:
    return {name: value for name, value in parameter.items() if value != default}
