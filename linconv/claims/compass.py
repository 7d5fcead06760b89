"""Counterexamples sought uphill over the numbers among a claim's flags: compass search (Hooke and Jeeves, J. ACM 8, 1961).

One number at a time is moved by its step, up and down; where nothing leads up, all steps are halved.  No gradient is needed.
"""

import math
from collections.abc import Callable
from typing import Any

from linconv.claims.drawing import Space
from linconv.claims.measure import Number
from linconv.claims.ranges import ends, on_lattice
from linconv.claims.signatures import Parameter

ROUNDS = 40
FLAT = 10  # halvings without a way up, after which the place counts as a top
FEW = 8  # integers of no more values are all tried elsewhere


def movable(space: Space) -> list[Parameter]:
    """Numbers between two ends; a seed has no up and no down."""
    return [flag for flag in space.flags if flag.name != "seed" and flag.domain.kind in (int, float) and _width(flag) < math.inf]


def _width(flag: Parameter) -> Number:
    low, high = ends(flag.domain)
    return math.inf if flag.domain.kind is int and high - low < FEW else high - low


def climb(space: Space, start: dict[str, Any], height: Callable[[dict[str, Any]], Number]) -> None:
    """Go uphill from one instance; `height` tries an instance and ends the climb by raising."""
    flags = movable(space)
    value, step, flat = start, 0.25, 0
    best = height(start) if flags else math.inf
    for _ in range(ROUNDS):
        if flat == FLAT or not flags:
            return
        here = best
        for flag in flags:
            if value[flag.name] is None:  # from an optional number that is left out no way leads up
                continue
            for direction in (1, -1):
                other = value | {flag.name: on_lattice(flag.domain, value[flag.name] + direction * step * _width(flag))}
                if other != value and (found := height(other)) > best:
                    value, best = other, found
        flat, step = (0, step) if best > here else (flat + 1, step / 2)
