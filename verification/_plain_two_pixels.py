"""Two pixels on a ring in plain NumPy and Python: what the claim compares the library with. Nothing here comes from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BATCHES = 100
Moves = Literal["stay", "step"]
STEPS: dict[str, tuple[int, ...]] = {"stay": (-1, 0, 1), "step": (-1, 1)}


@dataclass(frozen=True)
class Estimates:
    """Means with their standard errors, one a layer."""

    means: Array
    errors: Array


def layers(kind: str, depth: int, x: Array) -> list[Array]:
    """Input, layers and output of a solution by shifts of arrays `(N, l)`; the last of `depth` layers has the bias."""
    found, left, right, both = [x], x, x, x
    for layer in range(1, depth + 1):
        if kind == "low-frequency":
            both = np.roll(both, 1, 1) + both + np.roll(both, -1, 1)
        else:
            left, right = np.roll(left, -1, 1), np.roll(right, 1, 1)
            both = both + left + right
        left, right, both = (np.maximum(h, 0) for h in (left, right, both - (layer == depth)))
        found.append(both if kind == "low-frequency" or layer == depth else np.concatenate([left, right, both], 1))
    return [*found, found[-1].sum(1, keepdims=True)]


def images(pairs: NDArray[np.int64], sites: int) -> Array:
    """Black rings with two pixels that add up where they meet."""
    x = np.zeros((len(pairs), sites))
    rows = np.arange(len(pairs))
    for pixel in pairs.T:
        x[rows, pixel % sites] += 1
    return x


def random_pairs(count: int, sites: int, rng: np.random.Generator) -> NDArray[np.int64]:
    first = rng.integers(sites, size=count)
    return np.stack([first, first + rng.integers(1, sites, size=count)], 1)


def deformation(kind: str, depth: int, sites: int, moves: Moves, draws: int, rng: np.random.Generator) -> Estimates:
    """D of every layer, by as many random pairs and moves, and as many random pairs of images."""

    def change() -> list[Array]:
        pairs = random_pairs(draws, sites, rng)
        moved = pairs + rng.choice(STEPS[moves], size=pairs.shape)
        return differences(layers(kind, depth, images(pairs, sites)), layers(kind, depth, images(moved, sites)))

    return ratios(change, kind, depth, sites, draws, rng)


def noise(kind: str, depth: int, sites: int, power: float, draws: int, rng: np.random.Generator) -> Estimates:
    """G of every layer, likewise; the noise has E‖η‖² = `power`."""

    def change() -> list[Array]:
        x = images(random_pairs(draws, sites, rng), sites)
        noisy = x + rng.normal(scale=math.sqrt(power / sites), size=x.shape)
        return differences(layers(kind, depth, x), layers(kind, depth, noisy))

    return ratios(change, kind, depth, sites, draws, rng)


def differences(a: list[Array], b: list[Array]) -> list[Array]:
    return [np.square(p - q).sum(1) for p, q in zip(a, b, strict=True)]


def ratios(change: Callable[[], list[Array]], kind: str, depth: int, sites: int, draws: int, rng: np.random.Generator) -> Estimates:
    """⟨change⟩ / ⟨‖f(x₁) − f(x₂)‖²⟩, with standard errors by the spread of both over batches (first order in either)."""
    upper = change()
    lower = differences(*(layers(kind, depth, images(random_pairs(draws, sites, rng), sites)) for _ in range(2)))
    batches = np.array([[part.mean() for part in np.array_split(values, BATCHES)] for values in [*upper, *lower]])
    means, errors = batches.mean(1), batches.std(1, ddof=1) / math.sqrt(BATCHES)
    top, bottom = np.split(means, 2)
    spread = np.hypot(*np.split(errors / means, 2))
    return Estimates(top / bottom, top / bottom * spread)


def output_stability(xi: int, sites: int, moves: Moves) -> Fraction:
    """D of the output, exactly, from ReLU(ξ − d) and the distances alone: no network, and no constant."""

    def f(step: int) -> int:
        d = step % sites
        return max(xi - min(d, sites - d), 0)

    values = [f(d) for d in range(1, sites)]
    changes = [(f(d + b - a) - f(d)) ** 2 for d in range(1, sites) for a, b in product(STEPS[moves], repeat=2)]
    variance = Fraction(sum(v * v for v in values), len(values)) - Fraction(sum(values), len(values)) ** 2
    return Fraction(sum(changes), len(changes)) / (2 * variance)


def depth_law(layers_: int, sites: int, moves: Moves, *, collisions: bool = True, constant: bool = False, per_site: bool = False) -> float:
    """D_k in frequency space; each flag leaves a term out, adds one, or divides by l once too often, as a wrong variant."""
    q = 2 * np.pi * np.arange(sites) / sites
    gains = ((1 + 2 * np.cos(q)) / 3) ** (2 * layers_)
    away = 1 - np.mean([np.cos(q * step) for step in STEPS[moves]], axis=0)
    moved = 4 * away - (2 * away**2 / (sites - 1) if collisions else 0)
    signal = 2 * (2 - 2 / (sites - 1)) * gains[0 if constant else 1 :].sum()
    return float((gains * moved).sum() / signal / (sites if per_site else 1))


def shift_law(layers_: int, sites: int, moves: Moves) -> Fraction:
    """D of a layer of the high-frequency network before the last: unpooled pixels in two channels, in the third fields with two edges."""
    m, p = 2 * layers_ + 1, Fraction(sum(step != 0 for step in STEPS[moves]), len(STEPS[moves]))
    signal = 2 * Fraction(2 * sites - 4, sites - 1)
    return (12 * p - 8 * p**2 / (sites - 1)) / (signal * (2 + m - Fraction(2 + m * m, sites)))
