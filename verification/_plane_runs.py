"""Runs for `filter_pooling` on the published data, two pixels on 28×28 sites: networks trained on few and on many images.

Moves and borders are those of `linconv.pooling`.  Test images are at held-out distances, every fourth of those there are: a random split
would test on shifts of training images.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from linconv.classifiers import accuracy, train_classifier
from linconv.filter_energies import convolutions, laplacian_energies, shuffle_channels
from linconv.pooling import Moves, hold_out_distances, move_pixels, two_pixels
from linconv.pooling_stability import layers_of

GRID = (28, 28)
UNIT = math.sqrt(math.prod(GRID) / 2)  # brightness of a pixel at which images have mean square 1
STRIDES = (1, 2, 1, 2, 1)  # of the five layers; a site of the last sees 21×21
DRAWS = 2  # moves of each probe, and noise
STEP_SIZE, BATCH = 0.01, 16


class Plane(NamedTuple):
    """Numbers of training images, widths, the first with all of them, seeds, steps, probes of stability, shuffles of channels."""

    samples: tuple[int, ...]
    widths: tuple[int, ...]
    seeds: int
    steps: int
    probes: int
    shuffles: int


PLANES = {
    "tiny": Plane((40, 80), (2,), 2, 6, 30, 1),
    "smoke": Plane((64, 256), (8,), 4, 800, 100, 2),
    "reduced": Plane((64, 128, 256, 512, 1024, 2048), (8, 16), 6, 1500, 500, 6),
    "full": Plane((64, 128, 256, 512, 1024, 2048, 4096, 16384), (32, 8, 64), 10, 20000, 2000, 16),
}


def plane_tasks(preset: str, seed: int) -> list[dict[str, Any]]:
    """The first width at all numbers of images, and the others at the largest."""
    p = PLANES[preset]
    kinds = [(n, p.widths[0]) for n in p.samples] + [(p.samples[-1], width) for width in p.widths[1:]]
    shared = {"steps": p.steps, "probes": p.probes, "shuffles": p.shuffles}
    return [shared | {"samples": n, "width": width, "seed": seed + i} for n, width in kinds for i in range(p.seeds)]


def network(width: int, seed: int) -> nn.Sequential:
    """Five 3×3 convolutions with zero padding, ReLU, mean over sites, readout of two classes; He's normal weights, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for (a, b), stride in zip(pairwise([1, *[width] * len(STRIDES)]), STRIDES, strict=True):
        layers += [nn.utils.skip_init(nn.Conv2d, a, b, 3, padding=1, stride=stride), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.utils.skip_init(nn.Linear, width, 2)]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = 2 if isinstance(layer, nn.Conv2d) else 1
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * math.sqrt(gain / layer.weight[0].numel()))
                if layer.bias is not None:
                    layer.bias.zero_()
    return nn.Sequential(*layers)


def data(samples: int, probes: int, seed: int) -> tuple[tuple[Tensor, Int64[Tensor, " N"]], tuple[Tensor, Int64[Tensor, " M"]]]:
    """Training images and classes, test images and classes; pixels at 1."""
    everything = two_pixels(GRID, samples=2 * samples + 8 * probes, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))
    parts = hold_out_distances(everything, everything.distances.unique()[2::4].tolist())
    train, test = ((part.images[:count], (part.labels[:count] > 0).long()) for part, count in zip(parts, (samples, probes), strict=True))
    return train, test


def run_plane(*, samples: int, width: int, steps: int, probes: int, shuffles: int, seed: int) -> dict[str, Any]:
    """Train one network by stochastic gradient descent with momentum.

    `energies`: before and after, by layer and eigenvalue of the Laplacian.  `before`, `after`: for each set of moves log D, log G, log R of
    each layer after its ReLU and of the output, and the mean over shuffles of what shuffling its channels adds to log D and to log R.
    """
    train, test = data(samples, probes, seed)
    net, generator, epochs = network(width, seed), torch.Generator().manual_seed(seed), max(1, round(steps * BATCH / samples))

    def look() -> dict[str, Any]:
        return {moves: stabilities(net, test[0], moves, shuffles, seed) for moves in get_args(Moves)}

    def energies() -> list[list[float]]:
        return [laplacian_energies(entry.weight.detach().double())[1].tolist() for entry in convolutions(net)]

    result: dict[str, Any] = {"before": look(), "energies": [energies()]}
    ended = train_classifier(
        net,
        UNIT * train[0],
        train[1],
        epochs=epochs,
        patience=epochs,  # the loss may stay for hundreds of steps before it falls
        batch_size=min(BATCH, samples),
        step_size=STEP_SIZE,
        flips=False,
        translations=0,
        generator=generator,
    )
    result["diverged"] = ended.stop_reason == "diverged"
    if not result["diverged"]:
        result |= {"after": look(), "energies": [*result["energies"], energies()]}
        result |= {f"{name}_accuracy": accuracy(net, UNIT * x, y) for name, (x, y) in (("train", train), ("test", test))}
    return result


def stabilities(net: nn.Sequential, x: Float[Tensor, "M 1 H W"], moves: Moves, shuffles: int, seed: int) -> dict[str, list[float]]:
    """log D, G and R by layer, and what shuffled channels add: the same moves and the same noise, as large as moves on average, for all."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.cat([move_pixels(x, moves=moves, generator=generator) for _ in range(DRAWS)])
    power = float((moved - x.repeat(DRAWS, 1, 1, 1)).square().mean())
    noisy = x.repeat(DRAWS, 1, 1, 1) + math.sqrt(power) * torch.randn(moved.shape, generator=generator)
    d, g = logarithms(net, x, moved, noisy)
    others = torch.stack([logarithms(shuffle_channels(net, generator), x, moved, noisy) for _ in range(shuffles)]).mean(0)
    return {
        "D": d.tolist(),
        "G": g.tolist(),
        "R": (d - g).tolist(),
        "shuffled_D": (others[0] - d).tolist(),
        "shuffled_R": (others[0] - others[1] - d + g).tolist(),
    }


def logarithms(net: nn.Module, x: Tensor, moved: Tensor, noisy: Tensor) -> Float[Tensor, "2 layers"]:
    """log D and log G of each layer after its ReLU and of the output."""
    found = []
    for still, there, near in zip(*(layers_of(net, UNIT * images)[1:] for images in (x, moved, noisy)), strict=True):
        here = still.flatten(1).double()
        spread = 2 * here.var(0).sum()
        changes = [(part.flatten(1) - here.repeat(DRAWS, 1)).square().sum(1).mean() for part in (there, near)]
        found.append((torch.stack(changes) / spread).log())
    return torch.stack(found, 1)
