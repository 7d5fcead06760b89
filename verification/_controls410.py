"""Wrong variants of theorem 4.10, each a mistake that somebody could make. Every one must be refuted."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, agree, control
from linconv.losses import LossName
from linconv.solvers import Solution, fit
from verification._networks import Run, network
from verification._setting import Setting

SOLVER = "the certified gap, and 1e-6 for a wrong optimum to be told from the right one"


def controls(setting: Setting, optimum: Solution, spectral: Run) -> Iterator[Check]:
    """Controls on the cost, on the map and on the optimum, those that the depth and the sizes leave different from the truth."""
    generator = torch.Generator().manual_seed(setting.depth)
    yield from cost_controls(setting, generator)
    yield from map_controls(setting, generator)
    if optimum.gap <= 1e-8:  # where the optimum is not certified there is nothing to tell a wrong one from
        yield from optimum_controls(setting, optimum, spectral, generator)


def cost_controls(setting: Setting, generator: torch.Generator) -> Iterator[Check]:
    """Wrong formulas for the cost of a random predictor, against singular values of the block-circulant matrix."""
    depth, grid, sites = setting.depth, setting.grid, setting.sites
    beta = torch.randn(setting.y.shape[1], *setting.x.shape[1:], dtype=torch.float64, generator=generator)
    right = witnesses.dense_cost(beta.numpy(), depth)
    blocks = lc.FrequencyBlocks.from_predictor(beta)
    sigma, p = blocks.singular_values(), 2 / depth
    total = float((sigma**p).sum())
    half = sigma.movedim(len(grid) - 1, 0)[: grid[-1] // 2 + 1]
    rank = sigma.shape[-1]
    wrong: list[tuple[bool, str, float]] = [
        (True, "exponent 1/L in the place of 2/L", depth / sites * float((sigma ** (p / 2)).sum())),
        (True, "exponent 2/(L+1)", depth / sites * float((sigma ** (2 / (depth + 1))).sum())),
        (sites > 1, "factor 1/D dropped", depth * total),
        (sites > 1 and depth > 1, "orthonormal blocks without D^(-(L-1)/L)", depth * total / sites ** (1 / depth)),
        (depth > 1, "factor L dropped", total / sites),
        (grid[-1] > 2, "half spectrum without pair weights", depth / sites * float((half**p).sum())),
        (
            rank > 1 and depth > 1,
            "Frobenius norm of each block",
            depth / sites * float((blocks.values.abs().square().sum((-2, -1)) ** (p / 2)).sum()),
        ),
        (rank > 1, "largest singular value of each block only", depth / sites * float((sigma[..., 0] ** p).sum())),
    ]
    for applies, name, value in wrong:
        if applies:
            yield control(f"cost: {name}", agree("", value, right, size=beta.numel()))


def map_controls(setting: Setting, generator: torch.Generator) -> Iterator[Check]:
    """Wrong predictors of a random network, against what the network computes layer by layer."""
    net, images, grid = network(setting, generator, scale=1.0), setting.x[:8], setting.grid
    outputs, weights = net(images).detach(), [w.detach() for w in net.weights]
    blocks = lc.frequency_blocks(net).values.detach()
    spatial = tuple(range(2, 2 + len(grid)))

    def through(values: Tensor) -> Tensor:
        return images.flatten(1) @ lc.FrequencyBlocks(values).predictor().flatten(1).T

    lopsided = any(n > 2 for n in grid)
    if lopsided:
        yield control("map: readout not conjugated", agree("", through(blocks.conj()), outputs, size=4096))
    r = min(setting.y.shape[1], setting.x.shape[1])
    if r > 1:
        square = lc.LinearCNN.from_weights([torch.randn(r, r, *grid, dtype=torch.float64, generator=generator) for _ in weights], grid)
        inputs = torch.randn(8, r, *grid, dtype=torch.float64, generator=generator)
        turned = lc.FrequencyBlocks(lc.frequency_blocks(square).values.detach().mT).predictor()
        wrong = inputs.flatten(1) @ turned.flatten(1).T
        yield control("map: every block transposed (same cost)", agree("", wrong, square(inputs).detach(), size=4096))
    if setting.depth == 1:
        return
    if lopsided:
        flipped = lc.LinearCNN.from_weights([*(w.flip(spatial) for w in weights[:-1]), weights[-1]], grid)
        yield control("map: cross-correlation, kernels flipped", agree("", flipped(images).detach(), outputs, size=4096))
    if setting.sites > 1:
        padded = images
        layer = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(grid)]
        for w in weights[:-1]:
            around = [pair for n in reversed(grid) for pair in (n - 1, 0)]
            padded = layer(nn.functional.pad(padded, around), w.flip(spatial))
        wrong = padded.flatten(1) @ weights[-1].flatten(1).T
        yield control("map: zero padding in the place of circular", agree("", wrong, outputs, size=4096))


def optimum_controls(setting: Setting, optimum: Solution, spectral: Run, generator: torch.Generator) -> Iterator[Check]:
    """Wrong optima, against the objective that the trained network reached."""

    def compare(
        x: Tensor,
        y: Tensor,
        *,
        depth: int = setting.depth,
        decay: float = setting.weight_decay,
        hidden: int | None = setting.hidden,
        loss: LossName = setting.loss,
    ) -> Check:
        other = fit(x, y, depth=depth, weight_decay=decay, loss=loss, hidden_channels=hidden if depth > 1 else None)
        return agree("", spectral.objective, other.objective, tolerance=1e-6, reason=SOLVER)

    x, y = setting.x, setting.y
    yield control("optimum: weight decay halved (torch's convention)", compare(x, y, decay=setting.weight_decay / 2))
    if setting.loss == "squared":
        yield control("optimum: 1/N in the place of 1/2N", compare(2**0.5 * x, 2**0.5 * y))
    else:
        yield control("optimum: squared error", compare(x, y, loss="squared"))
    if setting.loss == "cross-entropy":
        yield control("optimum: logistic loss", compare(x, y, loss="logistic"))
    if setting.loss == "logistic" and y.shape[1] > 1:
        mean = compare(x, y, decay=setting.weight_decay * y.shape[1])
        yield control("optimum: mean over the outputs (torch's convention)", mean)
    yield control("optimum: labels shuffled", compare(x, y[torch.randperm(len(y), generator=generator)]))
    # Without decoupled data depth 3 and narrow layers are solved by descents: with these losses that takes longer than all the rest.
    quick = setting.loss == "squared"
    if quick:
        yield control("optimum: one layer more", compare(x, y, depth=setting.depth + 1))
    if setting.depth > 1:
        yield control("optimum: one layer less", compare(x, y, depth=setting.depth - 1))
        factor = setting.sites ** ((setting.depth - 1) / setting.depth)
        if setting.sites > 1:
            yield control("optimum: depth-dependent factor of the penalty dropped", compare(x, y, decay=setting.weight_decay * factor))
    ranks = (lc.FrequencyBlocks.from_predictor(optimum.predictor).singular_values() > 1e-9).sum(-1)
    if quick and setting.depth > 1 and int(ranks.max()) > 1:
        yield control("optimum: network of width 1", compare(x, y, hidden=1))
