r"""How stable the layers of a network are when two pixels move: exact fractions, by enumeration, and the depth law of constant filters.

    D = ⟨‖f(τx) − f(x)‖²⟩ / ⟨‖f(x₁) − f(x₂)‖²⟩

over the l(l − 1)/2 pairs of distinct sites on a ring, or on a plane, all equally likely; the two pixels move independently, and add to 2
where they meet; x₁ and x₂ are drawn independently, with replacement.  For k linear layers with the filter [1, 1, 1] on a ring
(docs/two-pixels.md)

    D_k = Σ_q |ŵ|^{2k} S_y / (2 S_x Σ_{q≠0} |ŵ|^{2k}),   S_y = 4(1 − φ) − 2(1 − φ)²/(l − 1),   S_x = 2 − 2/(l − 1),

ŵ = 1 + 2 cos q, φ the characteristic function of a move.  Source: definition and systems from the slides "The role of adaptive pooling"
(PCSL 2022); the closed forms are derived here.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from linconv.pooling import SITES, Moves, moved_sites, validate_moves
from linconv.validation import validate_size, validate_sizes

ENUMERABLE = 256  # sites, whose pairs times moves are a few hundred MB at most
EXACT = 2**53  # up to here float64 holds every integer


def two_pixel_deformation_stability(
    solution: nn.Module, *, moves: Moves = "stay", sites: int | tuple[int, ...] = SITES, periodic: bool | None = None
) -> tuple[Fraction, ...]:
    """Exact D of the input, of each layer after its ReLU, and of the output, in this order.

    `solution` maps images `(N, 1, sites)` of a ring to outputs of any shape, image by image, with integer weights, such as one of
    `pooling_solution`; its layers are the outputs of its `nn.ReLU` modules in the order in which they run.  With `sites=(H, W)` it maps
    images `(N, 1, H, W)` of a plane of at most 256 sites, where each coordinate of a pixel moves by itself, and stops at the border
    unless `periodic`: moves, and the default of `periodic`, are those of `move_pixels`.

    The module is copied, run in float64 on the CPU, where sums of integers are exact, and summed up in integers.  D does not depend on the
    scale of a layer: multiply rational weights by a common denominator.  Raises `ValueError` for weights or layers that are not integers,
    for numbers too large to be exact, for a module that does not take such images, and for a layer that is the same for all images, whose
    D is 0/0.

    >>> from linconv.pooling import pooling_solution
    >>> for kind in ("low-frequency", "high-frequency"):
    ...     print(*two_pixel_deformation_stability(pooling_solution(kind, 5)))
    976/1395 2944/11745 5456/25023 124/1095
    976/1395 1760/4023 620/2187 124/1095
    >>> print(*two_pixel_deformation_stability(nn.ReLU(), sites=(2, 2)))
    236/243 236/243 236/243
    """
    grid = validate_plane(sites) if isinstance(sites, tuple | list) else (validate_sites(sites),)
    steps, total = list(itertools.product(validate_moves(moves), repeat=len(grid))), math.prod(grid)
    pairs, index = all_pairs(total), _index(total)
    at = index[pairs[:, 0], pairs[:, 1]]
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(total, -1)
    there = [moved_sites(places, torch.tensor(step).expand_as(places), grid, periodic) for step in steps]
    moved = [index[a[pairs[:, 0]], b[pairs[:, 1]]] for a, b in itertools.product(there, repeat=2)]
    found = []
    for k, layer in enumerate(integer_layers(solution, grid)):
        change = Fraction(sum(_square(layer[to] - layer[at]) for to in moved), len(moved) * len(at))
        spread = _spread(layer[at])
        if spread == 0:
            raise ValueError(f"solution: expected layers that differ between images, got one that does not, number {k} after the input")
        found.append(change / spread)
    return tuple(found)


def layer_spreads(solution: nn.Module, *, sites: int = SITES) -> tuple[Fraction, ...]:
    """⟨‖f(x₁) − f(x₂)‖²⟩, the denominator of D, of input, layers and output; arguments and errors as in `two_pixel_deformation_stability`.

    >>> from linconv.pooling import pooling_solution
    >>> [str(spread) for spread in layer_spreads(pooling_solution("high-frequency", 3))]
    ['15/4', '1479/3844', '548/961']
    """
    ring = validate_sites(sites)
    pairs, index = all_pairs(ring), _index(ring)
    return tuple(_spread(layer[index[pairs[:, 0], pairs[:, 1]]]) for layer in integer_layers(solution, (ring,)))


def mean_square_displacement(*, moves: Moves = "stay", sites: int = SITES, distance: int | None = None) -> Fraction:
    """⟨‖τx − x‖²⟩ over all pairs of distinct sites, or over those at one distance, by enumeration.

    Twice 2(1 − P(stay)) where the pixels cannot meet, from d = 3 on; nearer ones may exchange their places or add up.

    >>> [str(mean_square_displacement(distance=d)) for d in (1, 2, 3, 16)], str(mean_square_displacement())
    (['16/9', '26/9', '8/3', '8/3'], '244/93')
    """
    steps, ring = validate_moves(moves), validate_sites(sites)
    if distance is not None and not 1 <= validate_size("distance", distance) <= ring // 2:
        raise ValueError(f"distance: expected one of 1 to {ring // 2} on {ring} sites, got {distance}")
    chosen = all_pairs(ring) if distance is None else torch.tensor([[0, distance]])
    x = ring_images(chosen, ring)[:, 0]
    moved = [ring_images((chosen + torch.tensor(move)) % ring, ring)[:, 0] for move in itertools.product(steps, steps)]
    return Fraction(sum(_square(y - x) for y in moved), len(moved) * len(chosen))


def constant_filter_deformation_stability(layers: int, *, moves: Moves = "stay", sites: int = SITES) -> Fraction:
    """D_k of k = `layers` linear layers with the filter [1, 1, 1], by its closed form, exactly; 0 layers are the input.

    ReLU changes nothing here, where all is positive: it is D of a layer of the low-frequency solution before the last.  To leading order in
    √k/l it is 3m/(8k), m the mean square of a move, thus 1/(4k) for "stay"; for k → ∞ it tends to `deformation_stability_limit`.

    >>> [round(4 * k * float(constant_filter_deformation_stability(k)), 2) for k in (1, 3, 6)]
    [1.0, 1.05, 1.22]
    """
    ring = validate_sites(sites, largest=2**16)
    if layers != 0:
        validate_size("layers", layers)
    overlaps = _autocorrelation(layers, ring)
    # Σ_q |ŵ|^{2k} s(q) / l, for a cosine series s with coefficients c_h, is Σ_h c_h a_h.
    signal = 2 * Fraction(2 * ring - 4, ring - 1) * (overlaps[0] - Fraction(9**layers, ring))
    return sum((c * a for c, a in zip(displacement_spectrum(moves, ring), overlaps, strict=True)), Fraction(0)) / signal


def deformation_stability_limit(*, moves: Moves = "stay", sites: int = SITES) -> float:
    """The limit of D_k as k → ∞, S_y(2π/l)/(2 S_x): only the lowest frequency is left.

    >>> round(deformation_stability_limit(), 5), round(float(constant_filter_deformation_stability(500)), 5)
    (0.01323, 0.01323)
    """
    ring = validate_sites(sites, largest=2**16)
    q = 2 * math.pi / ring
    spectrum = sum(float(c) * math.cos(q * h) for h, c in enumerate(displacement_spectrum(moves, ring)))
    return spectrum * (ring - 1) / (4 * ring - 8)


def layers_of(net: nn.Module, images: Float[Tensor, "N 1 *grid"]) -> list[Float[Tensor, "N ..."]]:
    """The images, what each `nn.ReLU` puts out in the order in which they run, and the output."""
    layers = [images]
    hooks = [
        module.register_forward_hook(lambda _, __, output: layers.append(output.clone()))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            layers.append(net(images.clone()))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = f"(N, 1, {', '.join(map(str, images.shape[2:]))})"
        raise ValueError(f"solution: expected a module on images {shape}, got one that fails: {str(error).splitlines()[0]}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def integer_layers(solution: nn.Module, grid: tuple[int, ...]) -> list[Int64[Tensor, "images features"]]:
    """`layers_of` as integers, for all images of two pixels i ≤ j, those in one place included; errors as in the functions above."""
    if not isinstance(solution, nn.Module):
        raise TypeError(f"solution: expected a torch module on images, got {type(solution).__name__}")
    net = copy.deepcopy(solution).double().cpu().eval()
    sizes = [2.0]
    for module in net.modules():  # numbers before a ReLU too, which may hide them
        module.register_forward_hook(lambda _, __, output: sizes.append(float(output.abs().max()) if isinstance(output, Tensor) else 0))
    pairs = torch.combinations(torch.arange(math.prod(grid)), 2, with_replacement=True)
    images = ring_images(pairs, math.prod(grid)).double().unflatten(2, grid)
    layers = [layer.flatten(1) for layer in layers_of(net, images)]
    weights = [parameter.detach() for parameter in net.parameters()]
    if not all(bool((numbers == numbers.round()).all()) for numbers in weights + layers):
        raise ValueError("solution: expected integer weights and layers, got others; multiply them by a common denominator")
    largest = max(sizes)
    # No partial sum behind a number exceeds the first, and no sum of squares over the sites and channels of a layer the second.
    sums = largest * max([1.0, *(float(w.abs().sum()) for w in weights)])
    squares = max(layer.shape[1] for layer in layers) * (2 * largest) ** 2
    if not (sums < EXACT and squares < 2**63):
        raise ValueError(
            f"solution: expected sums that are exact in float64 and 64 bits, got numbers up to {largest:.1e}; take fewer layers"
        )
    return [layer.round().long() for layer in layers]


def validate_sites(sites: object, *, smallest: int = 3, largest: int = ENUMERABLE) -> int:
    """Return the number of sites of a ring, else raise."""
    ring = validate_size("sites", sites)
    if not smallest <= ring <= largest:
        raise ValueError(f"sites: expected a ring of {smallest} to {largest}, got {ring}")
    return ring


def validate_plane(sites: object) -> tuple[int, int]:
    """Return the two sizes of a plane whose pairs can be enumerated, else raise."""
    sizes = validate_sizes("sites", sites)
    if len(sizes) != 2 or not 3 <= math.prod(sizes) <= ENUMERABLE:
        raise ValueError(f"sites: expected a number, of a ring, or (H, W) with 3 to {ENUMERABLE} sites in all, got {sizes}")
    return sizes[0], sizes[1]


def all_pairs(sites: int) -> Int64[Tensor, "pairs 2"]:
    return torch.combinations(torch.arange(sites), 2)


def _index(sites: int) -> Int64[Tensor, "l l"]:
    """The place of the image with pixels i and j, in either order, among those of `integer_layers`."""
    i, j = torch.combinations(torch.arange(sites), 2, with_replacement=True).T
    index = torch.empty(sites, sites, dtype=torch.long)
    index[i, j] = index[j, i] = torch.arange(len(i))
    return index


def ring_images(pairs: Int64[Tensor, "n 2"], sites: int) -> Int64[Tensor, "n 1 l"]:
    """Images with pixels at given sites, which add to 2 where they meet."""
    return torch.zeros(len(pairs), sites, dtype=torch.long).scatter_add_(1, pairs, torch.ones_like(pairs))[:, None]


def _square(rows: Int64[Tensor, "n features"]) -> int:
    """Σ of all squares; rows are summed in 64 bits, and their sums without bounds."""
    return sum(rows.square().sum(1).tolist())


def _spread(rows: Int64[Tensor, "n features"]) -> Fraction:
    """⟨‖a − b‖²⟩ over independent draws of two rows: 2(⟨‖a‖²⟩ − ‖⟨a⟩‖²)."""
    n = len(rows)
    return Fraction(2 * (n * _square(rows) - sum(total * total for total in rows.sum(0).tolist())), n * n)


def _ring_product(a: Sequence[Fraction | int], b: Sequence[Fraction | int]) -> list[Fraction | int]:
    """Circular convolution of two sequences."""
    n = len(a)
    product: list[Fraction | int] = [0] * n
    for i, left in enumerate(a):
        if left:
            for j, right in enumerate(b):
                product[(i + j) % n] += left * right
    return product


def _autocorrelation(layers: int, sites: int) -> list[Fraction | int]:
    """a_h = Σ_q |ŵ|^{2k} cos(qh) / l of k filters [1, 1, 1]: integers, the coefficients of (z⁻¹ + 1 + z)^{2k} on the ring."""
    box = [int(h in (0, 1, sites - 1)) for h in range(sites)]
    overlaps: list[Fraction | int] = [int(h == 0) for h in range(sites)]
    for _ in range(2 * layers):
        overlaps = _ring_product(box, overlaps)
    return overlaps


def displacement_spectrum(moves: Moves, sites: int) -> list[Fraction | int]:
    """Coefficients c_h of S_y(q) = Σ_h c_h cos(qh); c_0 is ⟨‖τx − x‖²⟩ in closed form."""
    steps = validate_moves(moves)
    change: list[Fraction | int] = [Fraction(int(h == 0)) for h in range(sites)]  # 1 − φ
    for step in steps:
        change[step % sites] -= Fraction(1, len(steps))
    squared = _ring_product(change, change)
    return [4 * c - Fraction(2, sites - 1) * c2 for c, c2 in zip(change, squared, strict=True)]
