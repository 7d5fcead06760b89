"""Runs for `filter_pooling`: networks trained on two pixels, all seeds at once, and image networks; what is kept of each."""

import copy
import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from linconv import images, models
from linconv.classifiers import accuracy, shuffled_labels, train_classifier
from linconv.deformation import typical_temperature
from linconv.filter_energies import convolutions, distinct_filters, filter_overlap, laplacian_energies, shuffle_channels
from linconv.models import ImageNetwork
from linconv.pooling import SITES, hold_out_distances, pooling_solution, two_pixels
from linconv.pooling_stability import mean_square_displacement
from linconv.spectra import standardise
from linconv.stability import layer_stabilities
from verification._stable_filters import FARTHEST, MOVES, changes_and_spread, pair_images

ORIGIN = 0  # seed of what all runs share: the choice of images, noise
STEP_SIZE, MOMENTUM = 0.05, 0.9
NOISES = 8  # an image, on two pixels
TIMES = 7  # at which filters are looked at in training, the start and the end among them
DISPLACEMENT, CUTOFF = 1.0, 3  # pixels, and modes: those of the published measurements


# Two pixels.


class Rings(nn.Module):
    """Many small networks on a ring at once, one a seed, as groups of one: three-tap circular convolutions, ReLU, mean over sites, readout.

    Their losses add up and share no weight, so that a step of all is a step of each.  He's normal initialisation, biases 0.
    """

    def __init__(self, seeds: int, width: int, depth: int, seed: int) -> None:
        super().__init__()
        sizes = [1, *[width] * depth]
        drawn = [torch.Generator().manual_seed(seed + i) for i in range(seeds)]

        def stacked(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in drawn]).float() * scale)

        self.weights = nn.ParameterList(stacked(b, a, 3, scale=math.sqrt(2 / (3 * a))) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(seeds, b)) for b in sizes[1:])
        self.readout = stacked(2, width, scale=math.sqrt(1 / width))
        self.offset = nn.Parameter(torch.zeros(seeds, 2))

    def forward(self, x: Float[Tensor, "N 1 l"]) -> Float[Tensor, "seeds N 2"]:
        seeds = len(self.readout)
        x = x.expand(-1, seeds, -1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            padded = functional.pad(x, (1, 1), mode="circular")
            x = functional.conv1d(padded, weight.flatten(0, 1), bias.flatten(), groups=seeds).relu()
        pooled = x.mean(2).unflatten(1, (seeds, -1)).transpose(0, 1)
        return pooled @ self.readout.mT + self.offset[:, None]

    @torch.no_grad()
    def single(self, i: int) -> nn.Sequential:
        """Network i by itself, in double precision, without gradients."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            layer = nn.utils.skip_init(nn.Conv1d, weight.shape[2], weight.shape[1], 3, padding=1, padding_mode="circular")
            layer.weight.copy_(weight[i])
            layer.bias.copy_(bias[i])
            layers += [layer, nn.ReLU()]
        readout = nn.utils.skip_init(nn.Linear, self.readout.shape[2], 2)
        readout.weight.copy_(self.readout[i])
        readout.bias.copy_(self.offset[i])
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), readout).double().requires_grad_(False)


def inputs(xi: int) -> tuple[Float[Tensor, "N 1 l"], Int64[Tensor, " N"], Float[Tensor, "M 1 l"], Int64[Tensor, " M"]]:
    """Training and test images, one for each distance since the networks see nothing else, and classes: 1 where d < ξ.

    Held out are the middle one of the distances below ξ and the middle one of those above.
    """
    data = two_pixels((SITES,), xi=float(xi), dtype=torch.float32)
    near, far = (data.distances[data.labels == label].unique() for label in (1, -1))
    parts = hold_out_distances(data, [float(d[len(d) // 2]) for d in (near, far)])
    once = []
    for part in parts:
        rows = torch.stack([(part.distances == d).nonzero()[0, 0] for d in part.distances.unique()])
        once += [part.images[rows], (part.labels[rows] > 0).long()]
    return once[0], once[1], once[2], once[3]


def descend(nets: Rings, x: Tensor, y: Int64[Tensor, "seeds N"], steps: int, decay: float) -> tuple[list[int], list[list[Tensor]]]:
    """Train on the mean cross-entropy of each network; steps after which, about as far apart in logarithm, the weights are returned."""
    decaying, others = [*nets.weights, nets.readout], [*nets.biases, nets.offset]
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    rule = torch.optim.SGD(groups, lr=STEP_SIZE, momentum=MOMENTUM)
    times = sorted({0, steps, *(round(steps ** (i / (TIMES - 2))) for i in range(TIMES - 1))})
    seen = []
    for step in range(steps + 1):
        if step in times:
            seen.append([weight.detach().double().clone() for weight in nets.weights])
        if step < steps:
            rule.zero_grad()
            functional.cross_entropy(nets(x).flatten(0, 1), y.flatten(), reduction="sum").div(len(x)).backward()
            rule.step()
    return times, seen


def run_pixels(
    *, xi: int, width: int, depth: int, decay: float, labels: str, steps: int, seeds: int, shuffles: int, seed: int
) -> dict[str, Any]:
    """Train networks of all seeds by full-batch gradient descent with momentum; lists have one entry a seed, then a layer where there are.

    `energies`: by time, seed, layer and eigenvalue of the Laplacian.  `D`, `R`: of each hidden layer and of the output, before and after;
    `shuffled_D`, `shuffled_R`: mean log ratio of the shuffled network to it, not finite where a layer is the same for all images.  `kept`:
    the seeds whose loss is finite at the end; the lists are of these.
    """
    x, y, x_test, y_test = inputs(xi)
    nets = Rings(seeds, width, depth, seed)
    if labels == "shuffled":
        y = torch.stack([shuffled_labels(y, torch.Generator().manual_seed(seed + i)) for i in range(seeds)])
    else:
        y = y.expand(seeds, -1)
    start = [nets.single(i) for i in range(seeds)]
    times, seen = descend(nets, x, y, steps, decay)
    with torch.no_grad():
        losses = functional.cross_entropy(nets(x).transpose(1, 2), y, reduction="none").mean(1)
        train, test = ((nets(a).argmax(2) == b).double().mean(1) for a, b in ((x, y), (x_test, y_test.expand(seeds, -1))))
    kept = [i for i in range(seeds) if math.isfinite(float(losses[i]))]
    result: dict[str, Any] = {"times": times, "kept": kept}
    result |= {"losses": losses[kept].tolist(), "train_accuracy": train[kept].tolist(), "test_accuracy": test[kept].tolist()}
    result["energies"] = [[[laplacian_energies(weight[i])[1].tolist() for weight in weights] for i in kept] for weights in seen]
    pairs = {"before": [start[i] for i in kept], "after": [nets.single(i) for i in kept]}
    result["overlaps"] = {
        kind: {when: [overlaps(net, templates) for net in some] for when, some in pairs.items()}
        for kind, templates in solution_filters(xi).items()
    }
    for when, some in pairs.items():
        measured = [shuffled_stabilities(net, shuffles, seed + 10**6 * (i + 1)) for i, net in zip(kept, some, strict=True)]
        result[when] = {name: [entry[name] for entry in measured] for name in ("D", "R", "shuffled_D", "shuffled_R")}
    return result


def solution_filters(xi: int) -> dict[str, Float[Tensor, "T 3"]]:
    """What is particular to each solution built by hand: [1, 1, 1], and the three single taps."""
    low, both = (distinct_filters(pooling_solution(kind, xi)) for kind in ("low-frequency", "high-frequency"))
    single = both[(both != 0).sum(1) == 1]
    return {"low": low, "high": single}


def overlaps(net: nn.Module, templates: Float[Tensor, "T 3"]) -> list[float]:
    return [float(filter_overlap(entry.weight.detach(), templates)) for entry in convolutions(net)]


@lru_cache(maxsize=1)
def _probes() -> tuple[Tensor, Tensor, Tensor]:
    """Pairs, moved pairs, and pairs with Gaussian noise as large on average as what moves change: shared by all networks."""
    still, moved = pair_images()
    scale = math.sqrt(float(mean_square_displacement()) / SITES)
    noise = torch.randn(NOISES, *still.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(ORIGIN))
    return still, moved, still + scale * noise


@torch.no_grad()
def pixel_stabilities(net: nn.Sequential) -> Float[Tensor, "2 layers"]:
    """D, exact, and G, of eight draws of noise, of each layer after its ReLU and of the output."""
    still, moved, noisy = _probes()
    batch, found = torch.cat([still, moved.flatten(0, 1), noisy.flatten(0, 1)]), []
    for layer in net:
        batch = layer(batch)
        if isinstance(layer, nn.ReLU | nn.Linear):
            a, b, c = batch.split([FARTHEST, len(MOVES) * FARTHEST, NOISES * FARTHEST])
            b, c = (part.unflatten(0, (-1, FARTHEST)) for part in (b, c))
            changed, spread = changes_and_spread(a, b)
            found.append(torch.stack([changed, changes_and_spread(a, c)[0]]) / spread)
    return torch.stack(found, 1)


def shuffled_stabilities(net: nn.Sequential, shuffles: int, seed: int) -> dict[str, list[float]]:
    """D and R of each layer, and the mean over shuffles of the logarithm of what shuffling its channels multiplies them by."""
    generator = torch.Generator().manual_seed(seed)
    d, g = pixel_stabilities(net)
    others = torch.stack([pixel_stabilities(_as_sequential(shuffle_channels(net, generator))) for _ in range(shuffles)])
    ratios = (others[:, 0] / d).log().mean(0), (others[:, 0] / others[:, 1] / (d / g)).log().mean(0)
    return {"D": d.tolist(), "R": (d / g).tolist(), "shuffled_D": ratios[0].tolist(), "shuffled_R": ratios[1].tolist()}


def _as_sequential(net: nn.Module) -> nn.Sequential:
    if not isinstance(net, nn.Sequential):
        raise TypeError(f"net: expected nn.Sequential, got {type(net).__name__}")
    return net


# Images.


@lru_cache(maxsize=1)
def prepare(data: str, samples: int | None) -> tuple[images.ImageSet, images.ImageSet]:
    """Training and test images of 32×32 in single precision, each channel standardised."""
    sets = []
    for split, count in (("train", samples), ("test", None if samples is None else max(samples // 4, 100))):
        loaded = images.load(
            data, split=split, samples=count, grid=(32, 32), dtype=torch.float32, generator=torch.Generator().manual_seed(ORIGIN)
        )
        sets.append(images.ImageSet(standardise(loaded.images), loaded.labels, loaded.classes))
    return sets[0], sets[1]


def run_images(
    *, data: str, samples: int | None, width: int, epochs: int, probes: int, draws: int, shuffles: int, seed: int
) -> dict[str, Any]:
    """Train a VGG-11; by layer its energies and log R of it and of its shuffled copies, before and after; accuracies."""
    train, test = prepare(data, samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    net = models.vgg(11, train.images.shape[1], len(train.classes), width=width, dtype=torch.float32, generator=generator).to(device)
    start = copy.deepcopy(net)
    ended = train_classifier(
        net,
        train.images,
        train.labels,
        epochs=epochs,
        batch_size=32 if samples else 128,
        step_size=0.02,
        weight_decay=1e-4,
        generator=torch.Generator().manual_seed(seed + 10**7),
    )
    result: dict[str, Any] = {"stop_reason": ended.stop_reason, "diverged": ended.stop_reason == "diverged"}
    if result["diverged"]:
        return result
    result |= {"train_accuracy": accuracy(net, train.images, train.labels), "test_accuracy": accuracy(net, test.images, test.labels)}
    for when, some in (("before", start), ("after", net)):
        weights = [entry.weight.detach().double() for entry in convolutions(some)]
        result[f"energies_{when}"] = [laplacian_energies(weight)[1].tolist() for weight in weights]
        result[f"log_R_{when}"] = log_stabilities(some, test.images[:probes].to(device), draws, seed)
        rng = torch.Generator().manual_seed(seed + 2 * 10**7)
        several = [log_stabilities(shuffle_channels(some, rng), test.images[:probes].to(device), draws, seed) for _ in range(shuffles)]
        result[f"shuffled_log_R_{when}"] = several
    return result


def log_stabilities(net: nn.Module, x: Float[Tensor, "N C H W"], draws: int, seed: int) -> list[float]:
    """log R of each layer after its ReLU, all with the same deformations and noise."""
    if not isinstance(net, ImageNetwork):
        raise TypeError(f"net: expected an ImageNetwork, got {type(net).__name__}")
    names = [f"features.{name}" for name, module in net.features.named_children() if isinstance(module, nn.ReLU)]
    found = layer_stabilities(
        net,
        x,
        names,
        temperature=typical_temperature(DISPLACEMENT, x.shape[-1], CUTOFF),
        cutoff=CUTOFF,
        n_draws=draws,
        resamples=20,
        generator=torch.Generator().manual_seed(seed),
    )
    return [math.log(float(found[name].R.estimate)) for name in names]
