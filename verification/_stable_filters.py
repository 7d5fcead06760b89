r"""How stable to moved pixels can one layer be?  The least deformation stability over filters, as generalised eigenvalues.

A site of layer k sees a window of w = 2k + 1 sites, and of two pixels on a ring one of finitely many patterns: nothing, one pixel, two, or
one site lit twice after pixels met.  For a function φ of the pattern, the same at every site, numerator and denominator of

$$D = \langle\|p(\tau x) - p(x)\|^2\rangle \,/\, \langle\|p(x_1) - p(x_2)\|^2\rangle$$

are quadratic forms in the values of φ, $\varphi^\top N \varphi$ and $\varphi^\top M \varphi$; D of several channels is a weighted mean of
those of each.  So the least generalised eigenvalue of (N, M) is the least D of *any* layer that sees w sites, however wide and whatever
its activation.  Linear φ are a subspace.  Every real filter of 2k + 1 taps is a composition of k filters of three, for a real polynomial
of even degree is a product of real quadratic ones: the least eigenvalue on that subspace is the least D of linear layers of depth k with
three taps, and one channel attains it.  Derived here.
"""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor, nn

from linconv.claims import Check, Note, Progress, agree, attains, control, proved
from linconv.pooling import SITES
from linconv.pooling_stability import constant_filter_deformation_stability, two_pixel_deformation_stability

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Functions = Literal["linear", "any"]
MOVES = tuple(itertools.product((-1, 0, 1), repeat=2))  # each pixel by itself, all nine alike
FARTHEST = SITES // 2
DIGITS = 10**6  # certified digits of the least D
SCALE = 20  # taps of the integer networks are multiples of 1/20
PATTERNS = SITES * (SITES - 1)  # windows of all ordered pairs at one place: the unit of frequencies


class Forms(NamedTuple):
    """D = (9 · 992)⁻¹ φᵀNφ / (992⁻² φᵀMφ), 992 = 32 · 31, with integer matrices; `sites` are those lit in each pattern."""

    sites: tuple[tuple[int, ...], ...]
    numerator: Integers
    denominator: Integers

    def on(self, values: Array) -> "tuple[Array, Array]":
        """Numerator and denominator of D on the span of the columns of `values`."""
        numerator = values.T @ self.numerator @ values / (len(MOVES) * PATTERNS)
        return numerator, values.T @ self.denominator @ values / PATTERNS**2


@lru_cache(maxsize=16)
def quadratic_forms(width: int) -> Forms:
    """The forms of functions of windows of `width` sites that are 0 where nothing is lit: a constant added to φ changes neither."""
    if not 1 <= width < SITES:
        raise ValueError(f"width: expected a window of 1 to {SITES - 1} sites, got {width}")
    patterns = [pattern for count in (1, 2) for pattern in itertools.combinations_with_replacement(range(width), count)]
    index = {(): 0} | {pattern: i for i, pattern in enumerate(patterns, start=1)}
    numerator, seen = np.zeros((len(index),) * 2, dtype=np.int64), np.zeros(len(index), dtype=np.int64)
    for start, distance in itertools.product(range(SITES), range(1, SITES)):
        here = index[_window((start, start + distance), width)]
        seen[here] += 1
        for a, b in MOVES:
            there = index[_window((start + a, start + distance + b), width)]
            for i, j, sign in ((here, here, 1), (there, there, 1), (here, there, -1), (there, here, -1)):
                numerator[i, j] += sign
    denominator = 2 * (PATTERNS * np.diag(seen) - np.outer(seen, seen))
    return Forms(tuple(patterns), numerator[1:, 1:], denominator[1:, 1:])


def _window(pixels: tuple[int, int], width: int) -> tuple[int, ...]:
    """The lit sites that a window at sites 0 … width − 1 of the ring sees."""
    return tuple(sorted(site % SITES for site in pixels if site % SITES < width))


def basis(width: int, functions: Functions) -> Integers:
    """Values of φ that span the functions: on each pattern the lit sites, or the patterns themselves."""
    sites = quadratic_forms(width).sites
    if functions == "any":
        return np.eye(len(sites), dtype=np.int64)
    return np.array([[pattern.count(site) for site in range(width)] for pattern in sites])


def least_stability(depth: int, functions: Functions) -> tuple[float, Array]:
    """The least D of layer `depth` over linear layers with three taps, or over all layers; and the φ that has it.

    "linear" gives the 2·depth + 1 taps, "any" the value of each pattern.
    """
    numerator, denominator = quadratic_forms(2 * depth + 1).on(basis(2 * depth + 1, functions).astype(np.float64))
    # N is positive definite, since moves join every pattern to the empty one; M is not: τx has patterns that x has not.
    values, vectors = linalg.eigh(denominator, numerator)
    return 1 / float(values[-1]), vectors[:, -1]


def linear_stability(taps: Array) -> float:
    """D of a linear layer that composes to these taps."""
    numerator, denominator = quadratic_forms(len(taps)).on(basis(len(taps), "linear") @ taps[:, None])
    return float(numerator[0, 0] / denominator[0, 0])


def is_lower_bound(depth: int, functions: Functions, numerator: int, denominator: int) -> bool:
    """Whether D ≥ numerator/denominator for all of the functions: N − λM is positive definite, decided in integers."""
    forms, columns = quadratic_forms(2 * depth + 1), basis(2 * depth + 1, functions).astype(object)
    matrix = denominator * PATTERNS * forms.numerator.astype(object) - numerator * len(MOVES) * forms.denominator.astype(object)
    return positive_definite((columns.T @ matrix @ columns).tolist())


def positive_definite(matrix: list[list[int]]) -> bool:
    """Sylvester's criterion for a symmetric matrix of integers: all leading minors, by Bareiss's elimination, are positive."""
    rows, previous = [list(row) for row in matrix], 1
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, len(rows)):
            for j in range(i, len(rows)):
                # Only the upper triangle is kept; the division leaves no rest.
                rows[i][j] = (rows[i][j] * rows[k][k] - rows[k][i] * rows[k][j]) // previous
        previous = rows[k][k]
    return True


def three_tap_factors(taps: Array) -> list[Array]:
    """Filters of three taps that compose to one of 2k + 1: pairs of conjugate roots, and of real ones.

    The smoothest comes first: the one whose middle tap is largest.
    """
    roots = np.roots(taps)
    if len(roots) != len(taps) - 1:
        raise ValueError("taps: expected a first tap that is not zero; a shorter filter has fewer factors")
    real = sorted(root.real for root in roots if root.imag == 0)
    factors = [np.array([1.0, -2 * root.real, abs(root) ** 2]) for root in roots if root.imag > 0]
    factors += [np.array([1.0, -(a + b), a * b]) for a, b in zip(real[::2], real[1::2], strict=True)]
    factors.sort(key=lambda factor: -factor[1])
    return [taps[0] * factors[0], *factors[1:]]


def integer_network(factors: list[Array], scale: int) -> nn.Sequential:
    """One channel, the filters rounded to multiples of 1/scale and multiplied by it, ReLU after each; the output is the last layer."""
    layers: list[nn.Module] = []
    for factor in factors:
        layer = nn.utils.skip_init(nn.Conv1d, 1, 1, len(factor), padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
        layer.weight.data.copy_(torch.from_numpy((scale * factor).round()))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers).requires_grad_(False)


def composed(factors: list[Array]) -> Array:
    """The filter that filters applied after one another are."""
    taps = np.ones(1)
    for factor in factors:
        taps = np.convolve(taps, factor)
    return taps


def distance_weights() -> Float[Tensor, " 16"]:
    """Shares of the pairs of sites at distance 1 … 16: equal but for the last, which has half as many."""
    weights = torch.full((FARTHEST,), 2.0, dtype=torch.float64)
    weights[-1] = 1.0
    return weights / (SITES - 1)


def pair_images() -> tuple[Float[Tensor, "16 1 l"], Float[Tensor, "9 16 1 l"]]:
    """One image for each distance, and its nine deformations; all others are shifts of these."""
    rows, distances = torch.arange(FARTHEST), torch.arange(1, FARTHEST + 1)
    still = torch.zeros(FARTHEST, 1, SITES, dtype=torch.float64)
    moved = torch.zeros(len(MOVES), FARTHEST, 1, SITES, dtype=torch.float64)
    still[:, 0, 0] = still[rows, 0, distances] = 1
    for image, (a, b) in zip(moved, MOVES, strict=True):
        image[:, 0, a] += 1
        image[rows, 0, (distances + b) % SITES] += 1
    return still, moved


def changes_and_spread(
    still: Float[Tensor, "16 C *sites"], moved: Float[Tensor, "moves 16 C *sites"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Numerator and denominator of D from activations on `pair_images`, exact for networks that commute with shifts.

    The mean of an activation over all shifts of an image is its mean over sites, which is how the denominator knows of all pairs.
    """
    weights = distance_weights().to(still)
    still, moved = still.reshape(*still.shape[:2], -1), moved.reshape(*moved.shape[:3], -1)
    changed = (weights * (moved - still).square().sum((2, 3)).mean(0)).sum()
    mean = (weights[:, None] * still.mean(2)).sum(0)
    spread = (weights * still.square().sum((1, 2))).sum() - still.shape[2] * mean.square().sum()
    return changed, 2 * spread


def descend(depth: int, width: int, steps: int, generator: torch.Generator) -> float:
    """The least D of layer `depth` that descent on the weights meets: three-tap convolutions with ReLU and biases, `width` channels."""
    still, moved = pair_images()
    images = torch.cat([still, moved.flatten(0, 1)])
    sizes = [1, *[width] * depth]
    # Positive weights: few units are silent at the start.
    weights = [torch.rand(b, a, 3, dtype=torch.float64, generator=generator).mul(2 / (3 * a)) for a, b in itertools.pairwise(sizes)]
    biases = [0.1 * torch.randn(b, dtype=torch.float64, generator=generator) for b in sizes[1:]]
    rule, least = torch.optim.Adam([w.requires_grad_() for w in (*weights, *biases)], lr=0.03), math.inf
    for _ in range(steps):
        x = images
        for w, b in zip(weights, biases, strict=True):
            x = nn.functional.conv1d(nn.functional.pad(x, (1, 1), mode="circular"), w, b).relu()
        changed, spread = changes_and_spread(x[:FARTHEST], x[FARTHEST:].unflatten(0, (len(MOVES), FARTHEST)))
        if float(spread.detach()) <= 0:  # every unit is silent
            break
        least = min(least, float((changed / spread).detach()))
        rule.zero_grad()
        (changed / spread).log().backward()
        rule.step()
    return least


def least_checks(depth: int, seed: int) -> Iterator[Check | Note | Progress]:
    """The least D of each layer: proved from below, attained by integers, met by descent, below that of [1, 1, 1]."""
    networks = []
    for k in range(1, depth + 1):
        yield Progress(f"least D of layer {k}")
        (linear, taps), (least, _) = least_stability(k, "linear"), least_stability(k, "any")
        floors: list[tuple[Functions, int]] = [("linear", math.floor(linear * DIGITS)), ("any", math.floor(least * DIGITS))]
        reason = f"N − λM positive definite, in integers, at λ = {floors[0][1] / DIGITS} and {floors[1][1] / DIGITS}"
        failures = sum(not is_lower_bound(k, functions, floor, DIGITS) for functions, floor in floors)
        yield proved(f"(a) layer {k}: lower bounds of D, linear and any layer", cases=2, failures=failures, reason=reason)
        too_high = sum(not is_lower_bound(k, functions, floor + 1, DIGITS) for functions, floor in floors)
        yield control(f"(a) layer {k}: the bounds raised by 10⁻⁶", proved("", cases=2, failures=too_high))
        networks.append(two_pixel_deformation_stability(integer_network(three_tap_factors(taps / taps[0]), SCALE)))
        attained = float(networks[-1][k])
        why = f"its taps are multiples of 1/{SCALE}"
        yield agree(f"(a) layer {k}: exact D of an integer network with ReLU, and the least", attained, linear, tolerance=0.01, reason=why)
        box, ones = constant_filter_deformation_stability(k), composed([np.ones(3)] * k)
        yield control(f"(a) layer {k}: the filters [1, 1, 1]", agree("", float(box), linear, tolerance=0.01))
        yield agree(f"(a) layer {k}: D of [1, 1, 1] by the forms, and in closed form", linear_stability(ones), float(box), size=4096)
        yield Note(f"layer {k}: D of the filters [1, 1, 1] {float(box):.4f}, least of linear layers {linear:.4f}, of any {least:.4f}")
    better = sum(net[k] < constant_filter_deformation_stability(k) for k, net in enumerate(networks, 1))
    yield proved("(a) more stable than the low-frequency solution", cases=depth, failures=depth - better, reason="D compared as fractions")
    yield from descent_check(min(depth, 3), seed)


def descent_check(depth: int, seed: int) -> Iterator[Check]:
    """Networks with ReLU, biases and four channels, trained to be stable: they find the linear least, and do not undercut the other."""
    (linear, _), (least, _) = least_stability(depth, "linear"), least_stability(depth, "any")
    found = descend(depth, 4, 100, torch.Generator().manual_seed(seed))
    yield attains(
        f"(a) layer {depth}: least D met by descent on a ReLU network",
        found,
        linear,
        tolerance=0.02,
        reason="a hundred steps from random weights",
        lower=least,
        size=4096,
    )
