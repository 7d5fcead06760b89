r"""Two pixels, the data of adaptive pooling, and the two networks built by hand that solve them.

An image is black but for two sites at +1, at distance d; its label is sign(ξ − d).  On a ring, with the low-frequency filters [1, 1, 1] in
k̃ = (ξ − 1)/2 layers and a bias of −1 in the last, or with shifts that meet in a third channel, ReLU and a sum over sites, a network
computes ReLU(ξ − d), the first of them up to a constant (docs/two-pixels.md).

Source: the slides "The role of adaptive pooling" (PCSL 2022) and the published code of arXiv 2105.02468 and 2210.01506; the constant that
the slides omit, and the bound ξ ≤ (l + 1)/2, are derived here.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from linconv.validation import validate_generator, validate_grid, validate_memory, validate_number, validate_size, validate_tensor

Moves = Literal["stay", "step"]
Kind = Literal["low-frequency", "high-frequency"]
# Each value of a tuple has the same probability.
MOVES: dict[str, tuple[int, ...]] = {"stay": (-1, 0, 1), "step": (-1, 1)}
SITES = 32  # of the ring on the slides
PUBLISHED_XI = {1: 7.0, 2: 14.0}


class TwoPixels(NamedTuple):
    """Images `(N, 1, *grid)`, labels ±1 and distances between the two pixels, `(N,)` each, all of one dtype."""

    images: Float[Tensor, "N 1 *grid"]
    labels: Float[Tensor, " N"]
    distances: Float[Tensor, " N"]


def two_pixels(
    grid: tuple[int, ...] = (SITES,),
    *,
    xi: float | int | None = None,
    gap: float | int = 2.0,
    periodic: bool | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> TwoPixels:
    """All images with two distinct pixels at +1 on a black grid, with y = sign(ξ − d), d their Euclidean distance.

    The defaults are the published systems: a ring of 32 sites with ξ = 7 for `grid=(32,)`, and 28×28 sites without periodicity and ξ = 14
    for `grid=(28, 28)`.  Pairs with ξ − gap/2 ≤ d < ξ + gap/2 are left out, as published, and always those at d = ξ, which have no sign.
    Each unordered pair comes once, ordered by its sites; `samples` draws that many of them, without replacement and in random order, from
    `generator`: all pairs of 28×28 sites would be 300 000 images, 2 GB.

    A circular network with stride 1 and global pooling is invariant to shifts, and so sees nothing but d on a ring: the 496 pairs of 32
    sites are 16 distinct inputs, and a random split has every test input in the training set.  Hold out distances, with
    `hold_out_distances`, and not samples.

    The published code never lights a site (i, i) of the diagonal, divides images by their mean and balances the classes; here every pair
    counts, and pixels are 1.  Raises `ValueError` for sizes, ξ or samples with which there are no pairs of both labels.

    >>> data = two_pixels()
    >>> data.images.shape, data.distances.unique().int().tolist()
    (torch.Size([432, 1, 32]), [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    >>> plane = two_pixels((28, 28), samples=100, generator=torch.Generator().manual_seed(0))
    >>> plane.images.sum((1, 2, 3)).unique().tolist(), bool((plane.labels == (14 - plane.distances).sign()).all())
    ([2.0], True)
    """
    grid = validate_grid(grid)
    scale, width = _scale(xi, grid), validate_number("gap", gap)
    ring = len(grid) == 1 if periodic is None else periodic
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    sites = math.prod(grid)
    validate_memory("grid", 8 * sites * (sites - 1) // 2, 2**32)
    pairs = torch.combinations(torch.arange(sites), 2)
    distances = _distances(pairs, grid, ring)
    kept = ((distances < scale - width / 2) | (distances >= scale + width / 2)) & (distances != scale)
    pairs, distances = pairs[kept], distances[kept]
    if not (distances < scale).any() or not (distances > scale).any():
        far = float(distances.max()) if len(distances) else 0
        raise ValueError(
            f"xi: expected pairs closer and farther than ξ = {scale:g} beyond a gap of {width:g}, got none of one label on {grid}, "
            f"where those that are left have distances up to {far:g}; take another ξ, a smaller gap or a larger grid"
        )
    if samples is not None:
        chosen = _drawn(len(pairs), samples, generator)
        pairs, distances = pairs[chosen], distances[chosen]
    return TwoPixels(_images(pairs, grid, dtype), (scale - distances).sign().to(dtype), distances.to(dtype))


def hold_out_distances(data: TwoPixels, held_out: Iterable[float | int]) -> tuple[TwoPixels, TwoPixels]:
    """`(train, test)`: the pairs at the distances `held_out` are the test set, all others the training set.

    Raises `ValueError` for a distance that no pair has, and where nothing is left to train on or to test.

    >>> train, test = hold_out_distances(two_pixels(), [3, 12])
    >>> test.distances.unique().tolist(), len(train.labels), len(test.labels)
    ([3.0, 12.0], 368, 64)
    """
    asked = torch.tensor([validate_number("held_out", d) for d in held_out], dtype=torch.float64)
    # Distances are roots of integers: two that differ are farther apart than this.
    close = (data.distances.double()[:, None] - asked).abs() < 1e-5
    missing = asked[~close.any(0)].tolist()
    if missing:
        raise ValueError(f"held_out: expected distances of the data, got {missing}; {_listed(data.distances)}")
    test = close.any(1)
    if not test.any() or test.all():
        raise ValueError(f"held_out: expected some but not all distances, got {asked.tolist()}; {_listed(data.distances)}")
    train_part, test_part = (TwoPixels(*(values[part] for values in data)) for part in (~test, test))
    return train_part, test_part


def move_pixels(
    images: Float[Tensor, "N 1 *grid"], *, moves: Moves = "stay", periodic: bool | None = None, generator: torch.Generator
) -> Float[Tensor, "N 1 *grid"]:
    """The images of two pixels with each pixel moved by itself: "stay" by −1, 0 or +1, "step" by −1 or +1, all equally likely.

    On a plane each of its coordinates moves so, independently.  Where `periodic`, by default in one dimension alone as in `two_pixels`,
    moves go around; else a coordinate that would leave the grid stays on its border.  Pixels that meet add to 2.  "stay" is that of the
    slides; "step", coordinates and border are those of the published code of arXiv 2210.01506, in which pixels that meet count once.
    Raises `ValueError` for images that are not black but for two pixels at 1.

    >>> moved = move_pixels(two_pixels().images, generator=torch.Generator().manual_seed(0))
    >>> moved.sum((1, 2)).unique().tolist(), moved.unique().tolist()
    ([2.0], [0.0, 1.0, 2.0])
    """
    validate_tensor("images", images, ndim=(3, 4, 5), shape="(N, 1, *grid)")
    validate_generator(generator)
    lit, grid = images.nonzero(), tuple(images.shape[2:])
    lights = (images != 0).flatten(1).sum(1)
    if images.shape[1] != 1 or not bool((lights == 2).all()) or not bool((images[images != 0] == 1).all()):
        raise ValueError("images: expected one channel, black but for two pixels at 1, as two_pixels makes them; got others")
    values = torch.tensor(validate_moves(moves))
    drawn = values[torch.randint(len(values), (len(images), 2, len(grid)), generator=generator, device=generator.device).cpu()]
    return _images(moved_sites(lit[:, 2:].view(-1, 2, len(grid)), drawn.to(images.device), grid, periodic), grid, images.dtype)


def moved_sites(
    places: Int64[Tensor, "*n dims"], by: Int64[Tensor, "*n dims"], grid: tuple[int, ...], periodic: bool | None
) -> Int64[Tensor, "*n"]:
    """The sites, by their index in the flattened grid, to which pixels at `places` move: around, or no farther than the border."""
    sizes = torch.tensor(grid, device=places.device)
    ring = len(grid) == 1 if periodic is None else periodic
    there = (places + by) % sizes if ring else (places + by).clamp(min=torch.zeros_like(sizes), max=sizes - 1)
    strides = torch.tensor([math.prod(grid[d + 1 :]) for d in range(len(grid))], device=places.device)
    return (there * strides).sum(-1)


def pooling_solution(kind: Kind, xi: int, *, sites: int = SITES, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    r"""A network built by hand on a ring, `(N, 1, sites)` to `(N, 1)`, that tells d ≥ ξ from d < ξ in k̃ = (ξ − 1)/2 layers.

    "low-frequency": one channel, filters [1, 1, 1], a bias of −1 in the last layer:
    $f = 2\cdot 3^{\tilde k} - 2\xi + \mathrm{ReLU}(\xi - d)$.
    "high-frequency": three channels, one shifted to the left by each layer, one to the right, and one that adds up both; the last layer has
    the third alone, with a bias of −1: $f = \mathrm{ReLU}(\xi - d)$.  Both are exact for every pair of distinct sites.

    The modules are `conv1`, `relu1`, … and `sum`, the sum over sites; convolutions are circular.  Parameters need no gradient:
    `requires_grad_()` to train on from them.  ξ is odd, since each layer sees one more site on either side, and 3 ≤ ξ ≤ (sites + 1)/2:
    of larger fields two meet on the other side of the ring too.  Raises `ValueError`, with the values allowed, for another.

    >>> data, solution = two_pixels(xi=7), pooling_solution("low-frequency", 7)
    >>> bool((solution(data.images)[:, 0] == 2 * 3**3 - 2 * 7 + (7 - data.distances).relu()).all())
    True
    >>> [name for name, _ in solution.named_children()]
    ['conv1', 'relu1', 'conv2', 'relu2', 'conv3', 'relu3', 'sum']
    """
    depth = _layers_for(kind, xi, validate_size("sites", sites))
    first, middle, last = (_FILTERS[kind].get(place) for place in ("first", "middle", "last"))
    filters = [first, *[middle] * (depth - 2), last] if depth > 1 else [[[[1, 1, 1]]]]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, taps in enumerate(filters, 1):
        layers[f"conv{k}"] = _convolution(torch.tensor(taps, dtype=dtype), -1.0 if k == depth else None)
        layers[f"relu{k}"] = nn.ReLU()
    return nn.Sequential(OrderedDict(**layers, sum=SumOverSites())).requires_grad_(False)


class SumOverSites(nn.Module):
    """Global sum pooling, `(N, C, *grid)` to `(N, C)`."""

    def forward(self, x: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N C"]:
        return x.flatten(2).sum(2)


def allowed_scales(sites: int = SITES) -> tuple[int, ...]:
    """The ξ for which there are solutions on a ring: the odd numbers from 3 to half the sites, rounded up.

    >>> allowed_scales()
    (3, 5, 7, 9, 11, 13, 15)
    """
    return tuple(range(3, (validate_size("sites", sites) + 1) // 2 + 1, 2))


def validate_moves(moves: object) -> tuple[int, ...]:
    """The displacements of a move set, else raise naming the argument."""
    if not isinstance(moves, str) or moves not in MOVES:
        raise ValueError(f"moves: expected 'stay' (−1, 0, +1) or 'step' (−1, +1), got {moves!r}")
    return MOVES[moves]


# torch correlates: the tap [0, 0, 1] fetches from the right, and so shifts to the left. Channels of the second: left, right, both.
_LEFT, _STAY, _RIGHT, _NONE, _BOX = [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]
_BOTH = [_LEFT, _RIGHT, _STAY]
_FILTERS: dict[str, dict[str, list[list[list[int]]]]] = {
    "low-frequency": {"first": [[_BOX]], "middle": [[_BOX]], "last": [[_BOX]]},
    "high-frequency": {
        "first": [[_LEFT], [_RIGHT], [_BOX]],
        "middle": [[_LEFT, _NONE, _NONE], [_NONE, _RIGHT, _NONE], _BOTH],
        "last": [_BOTH],
    },
}


def _convolution(weight: Float[Tensor, "out into 3"], bias: float | None) -> nn.Conv1d:
    """A circular convolution with given taps, the same bias everywhere; made without drawing from the global generator."""
    layer = nn.utils.skip_init(
        nn.Conv1d, weight.shape[1], weight.shape[0], 3, padding=1, padding_mode="circular", bias=bias is not None, dtype=weight.dtype
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.fill_(bias)
    return layer


def _layers_for(kind: object, xi: object, sites: int) -> int:
    """k̃ for a ξ that the construction allows."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected 'low-frequency' or 'high-frequency', got {kind!r}")
    allowed = allowed_scales(sites)
    if isinstance(xi, bool | str) or xi not in allowed:
        values = ", ".join(map(str, allowed)) or "none; take at least 5 sites"
        raise ValueError(f"xi: expected an odd integer from 3 to (sites + 1)/2, for {sites} sites one of {values}; got {xi!r}")
    return (allowed[allowed.index(xi)] - 1) // 2


def _scale(xi: float | int | None, grid: tuple[int, ...]) -> float:
    if xi is None and len(grid) not in PUBLISHED_XI:
        raise ValueError(f"xi: expected a distance for {len(grid)} dimensions, where none is published, got None; give one in sites")
    return PUBLISHED_XI[len(grid)] if xi is None else validate_number("xi", xi, positive=True)


def _distances(pairs: Int64[Tensor, "N 2"], grid: tuple[int, ...], periodic: bool) -> Float[Tensor, " N"]:
    """Euclidean distances of sites given by their index in the flattened grid."""
    steps = [np.abs(axis[:, 0] - axis[:, 1]) for axis in np.unravel_index(pairs.numpy(), grid)]
    if periodic:
        steps = [np.minimum(step, n - step) for step, n in zip(steps, grid, strict=True)]
    # NumPy's root is correctly rounded and torch's, by vectors, need not be: 14 must be 14 where it is compared with ξ.
    return torch.from_numpy(np.sqrt(np.square(np.stack(steps)).sum(0).astype(np.float64)))


def _images(pairs: Int64[Tensor, "N 2"], grid: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "N 1 *grid"]:
    validate_memory("samples", len(pairs) * math.prod(grid))
    flat = torch.zeros(len(pairs), math.prod(grid), dtype=dtype, device=pairs.device)
    return flat.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=dtype)).view(-1, 1, *grid)


def _drawn(count: int, samples: object, generator: torch.Generator | None) -> Int64[Tensor, " n"]:
    wanted = validate_size("samples", samples)
    if wanted > count:
        raise ValueError(f"samples: expected at most the {count} pairs there are, got {wanted}; they are drawn without replacement")
    rng = validate_generator(generator)
    return torch.randperm(count, generator=rng, device=rng.device)[:wanted].cpu()


def _listed(distances: Tensor) -> str:
    values = distances.unique().tolist()
    shown = ", ".join(f"{d:g}" for d in values[:20])
    return f"the data have {shown}{', …' if len(values) > 20 else ''}"
