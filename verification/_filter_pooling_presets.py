"""What `filter_pooling` trains: sizes of the experiments on two pixels on a ring and on images, and the tasks that they make."""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Size of an experiment.

    Two pixels: `depth` hidden layers; ξ and widths as `base`, and varied one at a time; training steps; seeds; weight decays.
    Images: width of VGG-11, training images, epochs, seeds, images and draws of deformations at which stability is measured.
    Shuffles: of the channels of each network.
    """

    depth: int
    scales: tuple[int, ...]
    widths: tuple[int, ...]
    decays: tuple[float, ...]
    steps: int
    seeds: int
    image_width: int
    samples: int | None
    epochs: int
    image_seeds: int
    probes: int
    draws: int
    shuffles: int


# `tiny` is for tests, `smoke` for a first look, `reduced` for two cores and hours, `full` for a GPU.  First entries: the base.
PRESETS = {
    "tiny": Preset(3, (7,), (4,), (0.0,), 30, 4, 2, 80, 1, 2, 6, 1, 2),
    "smoke": Preset(5, (7, 5), (8, 16), (0.0,), 500, 12, 8, 600, 8, 4, 24, 2, 3),
    "reduced": Preset(5, (7, 5, 9, 11), (8, 4, 16, 32), (0.0, 1e-3), 3000, 24, 12, 2048, 15, 4, 64, 4, 6),
    "full": Preset(6, (7, 5, 9, 11, 13), (16, 4, 8, 32, 64), (0.0, 1e-4, 1e-3), 20000, 48, 64, None, 100, 8, 256, 8, 16),
}


def pixel_tasks(preset: str, seed: int) -> list[dict[str, Any]]:
    """The base, what differs from it in ξ, in width or in weight decay, and the base with shuffled labels."""
    p = PRESETS[preset]
    shared = {"depth": p.depth, "steps": p.steps, "seeds": p.seeds, "shuffles": p.shuffles, "seed": seed}
    base = {"xi": p.scales[0], "width": p.widths[0], "decay": p.decays[0], "labels": "true"}
    changes: list[dict[str, Any]] = [{}, *({"xi": xi} for xi in p.scales[1:]), *({"width": width} for width in p.widths[1:])]
    changes += [*({"decay": decay} for decay in p.decays[1:]), {"labels": "shuffled"}]
    return [shared | base | change for change in changes]


def image_tasks(preset: str, data: str, seed: int) -> list[dict[str, Any]]:
    p = PRESETS[preset]
    shared = {"data": data, "width": p.image_width, "samples": p.samples, "epochs": p.epochs}
    shared |= {"probes": p.probes, "draws": p.draws, "shuffles": p.shuffles}
    return [shared | {"seed": seed + i} for i in range(p.image_seeds)]
