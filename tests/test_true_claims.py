"""True claims are never refuted: 200 examples each, or as many as LINCONV_REDTEAM says (`make redteam`: 10,000)."""

import os
from collections.abc import Callable, Iterator
from typing import Annotated

import pytest
import torch
from annotated_types import Interval
from torch import Tensor

from linconv import strategies
from linconv.claims import Check, NotApplicable, agree, at_most, control, falsify, proved_at_most
from linconv.cost import minimal_network, representation_cost
from linconv.network import LinearCNN, circular_convolution
from linconv.penalties import Schatten
from linconv.spectrum import FrequencyBlocks, conv_singular_values, frequency_blocks

EXAMPLES = int(os.environ.get("LINCONV_REDTEAM", "200"))

Seed = Annotated[int, Interval(ge=0, le=10**6)]
Side = Annotated[int, Interval(ge=1, le=7)]
Width = Annotated[int, Interval(ge=1, le=3)]
Predictor = Annotated[Tensor, strategies.predictors(grid=strategies.grids(max_sites=12), max_outputs=2, max_channels=2)]
Kernel = Annotated[Tensor, strategies.predictors(grid=(2, 3), max_outputs=2, max_channels=2)]
Network = Annotated[
    LinearCNN, strategies.linear_cnns(grid=strategies.grids(max_dims=2, max_sites=9), max_depth=3, max_channels=2, max_outputs=2)
]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parseval(*, beta: Predictor) -> Iterator[Check]:
    energy = frequency_blocks(LinearCNN.from_weights([beta], beta.shape[2:])).values.abs().square().sum()
    sites = beta[0, 0].numel()
    yield agree("energy", energy, sites * beta.square().sum())
    yield control("D² for D", agree("energy", (sites + 1) * (beta.square().sum() + 1), sites * beta.square().sum()))


def the_blocks_compute_the_network(*, net: Network, seed: Seed = 0) -> Iterator[Check]:
    x = normal(seed, 2, net.weights[0].shape[1], *net.grid)
    blocks = frequency_blocks(net)
    scale = float(x.abs().sum()) * max(1e-300, float(torch.stack([w.detach().abs().sum() for w in net.weights]).prod()))
    predicted = x.flatten(1) @ blocks.predictor().flatten(1).T
    yield agree("outputs", net(x), predicted, scale=scale)
    yield control("one more", agree("outputs", net(x) + scale, predicted, scale=scale))


def shifts_keep_singular_values(*, side: Side = 4, channels: Width = 2, seed: Seed = 0) -> Iterator[Check]:
    kernel = normal(seed, channels, channels, side, side)
    predicted = conv_singular_values(kernel, (side, side))
    yield agree("singular values", conv_singular_values(kernel.roll((1, 2), (2, 3)), (side, side)), predicted)
    yield control("scaled", agree("singular values", conv_singular_values(1.01 * kernel, (side, side)), predicted))


def a_convolution_stretches_by_its_largest_singular_value(*, w: Kernel, seed: Seed = 0) -> Iterator[Check]:
    x = normal(seed, 1, w.shape[1], 2, 3)
    bound = conv_singular_values(w, (2, 3)).max() * x.norm()
    yield at_most("norm", circular_convolution(x, w).norm(), bound)
    yield control("half", at_most("norm", bound + 1, bound / 2))


def singular_values_lie_below_the_sum_of_entries(*, w: Kernel) -> Iterator[Check]:
    entries = w.abs().sum()
    yield at_most("largest", conv_singular_values(w, (2, 3)).max(), entries)
    yield control("half of the largest", at_most("largest", entries + 1, entries / 2))


def weights_cost_at_least_the_representation_cost(*, net: Network) -> Iterator[Check]:
    # Without this hypothesis the search refutes it: taps that wrap around meet, and 1 + 1 on one site is cheaper than 2.
    if any(k > n for w in net.weights[:-1] for k, n in zip(w.shape[2:], net.grid, strict=True)):
        raise NotApplicable("kernels no wider than the grid")
    if not all(bool(w.any()) for w in net.weights):
        yield agree("nothing to represent", 0.0, 0.0)
        return
    with torch.no_grad():
        least, paid = representation_cost(frequency_blocks(net).predictor(), net.depth).lower, sum(w.square().sum() for w in net.weights)
    yield at_most("cost", least, paid)
    yield control("a tenth", at_most("cost", paid, paid / 10))


def the_minimal_network_computes_its_predictor(*, beta: Predictor, depth: Annotated[int, Interval(ge=1, le=4)] = 3) -> Iterator[Check]:
    if not bool(beta.any()):
        yield agree("nothing to represent", 0.0, 0.0)
        return
    net = minimal_network(beta, depth)
    yield agree("predictor", frequency_blocks(net).predictor().detach(), beta)
    yield control("doubled", agree("predictor", 2 * beta, beta))


def the_proximal_map_does_not_increase_singular_values(
    *, seed: Seed = 0, step: Annotated[float, Interval(ge=0, le=4)] = 0.5
) -> Iterator[Check]:
    blocks = FrequencyBlocks.from_predictor(normal(seed, 2, 3, 4))
    before = blocks.singular_values()
    yield at_most("shrunk", Schatten(0.5).prox(blocks, step).singular_values(), before)
    yield control("grown", at_most("grown", 1.001 * before, before))


def the_enclosure_lies_below_the_sum_of_entries(*, seed: Seed = 0, side: Side = 3) -> Iterator[Check]:
    w = normal(seed, 2, 2, side)
    values, bound = conv_singular_values(w, (side,), enclose=True), float(w.abs().sum())
    yield proved_at_most("σ ≤ Σ|w|", values, bound)
    yield control("a tenth", proved_at_most("σ", values, float(values.lower.max()) / 10))


CLAIMS: list[Callable[..., Iterator[Check]]] = [
    parseval,
    the_blocks_compute_the_network,
    shifts_keep_singular_values,
    a_convolution_stretches_by_its_largest_singular_value,
    singular_values_lie_below_the_sum_of_entries,
    weights_cost_at_least_the_representation_cost,
    the_minimal_network_computes_its_predictor,
    the_proximal_map_does_not_increase_singular_values,
    the_enclosure_lies_below_the_sum_of_entries,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_true_claims_are_never_refuted(claim: Callable[..., Iterator[Check]]) -> None:
    verdict = falsify(claim, budget=EXAMPLES)
    assert verdict.verdict == "HOLDS", verdict.reason
    assert "% confidence at most" in verdict.scope
