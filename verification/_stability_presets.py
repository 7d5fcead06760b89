"""What `relative_stability` trains: architectures and sizes of its presets, and the tasks that they make."""

from typing import Any, NamedTuple


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
            Architecture("myrtle", 5, 16),
            *(Architecture("conv", depth, 8) for depth in (2, 3)),
            *(Architecture("linear", depth, 8) for depth in (2, 3)),
            *(Architecture("resnet", depth, 8) for depth in (8, 9)),
            *(Architecture("vgg", depth, 8) for depth in (11, 13)),
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
