"""What the domain of a flag holds: its ends, a value at random, and the values where statements tend to break."""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle, islice
from random import Random
from typing import Any

import annotated_types

from linconv.claims.domains import Domain
from linconv.claims.measure import Number

# A domain without an end is explored to about 2¹⁶ beyond the other end, on a logarithmic scale.
OCTAVES = 16
LONGEST = 4  # entries of a tuple of any length, where its domain does not say
NONE_ONE_IN = 4
FEW = 100
DIGITS = 13  # beyond which a shorter decimal is no simpler


def is_searchable(domain: Domain) -> bool:
    """Whether values can be chosen: numbers, truth values, choices, and tuples of them."""
    return domain.kind in (int, float, bool, "choice") or (domain.kind == "tuple" and all(map(is_searchable, domain.items)))


def ends(domain: Domain) -> tuple[Number, Number]:
    """The smallest and the largest value, infinite where there is none; an open end of a float is one ulp away."""
    low: Number = -math.inf
    high: Number = math.inf
    for rule in domain.constraints:
        if isinstance(rule, annotated_types.Ge | annotated_types.Gt):
            low = max(low, _inside(rule.ge if isinstance(rule, annotated_types.Ge) else rule.gt, domain.kind, rule, math.inf))
        elif isinstance(rule, annotated_types.Le | annotated_types.Lt):
            high = min(high, _inside(rule.le if isinstance(rule, annotated_types.Le) else rule.lt, domain.kind, rule, -math.inf))
    return low, high


def _inside(end: Any, kind: Any, rule: Any, towards: float) -> Number:
    is_open = isinstance(rule, annotated_types.Gt | annotated_types.Lt)
    if kind is int:
        whole: int = math.ceil(end) if towards > 0 else math.floor(end)
        return whole + int(math.copysign(1, towards)) if is_open and whole == end else whole
    return math.nextafter(end, towards) if is_open else float(end)


def lengths(domain: Domain) -> tuple[int, int]:
    """How many entries a tuple of any length may have."""
    least = max((rule.min_length for rule in domain.constraints if isinstance(rule, annotated_types.MinLen)), default=0)
    most = [rule.max_length for rule in domain.constraints if isinstance(rule, annotated_types.MaxLen) and rule.max_length is not None]
    return least, min(most, default=max(least, LONGEST))


def at_random(domain: Domain, rng: Random) -> Any:
    """A value: uniform between two ends, log-uniform from one; None, where it is allowed, one time in four."""
    if domain.optional and rng.randrange(NONE_ONE_IN) == 0:
        return None
    if domain.kind is bool:
        return rng.random() < 0.5
    if domain.kind == "choice":
        return rng.choice(domain.choices)
    if domain.kind == "tuple":
        return tuple(at_random(item, rng) for item in _entries(domain, rng.randint(*lengths(domain)) if domain.variadic else 0))
    low, high = ends(domain)
    if math.isinf(low) or math.isinf(high):
        magnitude = 2 ** rng.uniform(0 if domain.kind is int else -OCTAVES, OCTAVES) - (domain.kind is int)
        value = low + magnitude if math.isinf(high) and not math.isinf(low) else high - magnitude if not math.isinf(high) else magnitude
        value = value * rng.choice((-1, 1)) if math.isinf(low) and math.isinf(high) else value
        return on_lattice(domain, value)
    return on_lattice(domain, rng.uniform(low, high) if domain.kind is float else rng.randint(int(low), int(high)))


def _entries(domain: Domain, length: int) -> tuple[Domain, ...]:
    return domain.items * length if domain.variadic else domain.items


def on_lattice(domain: Domain, value: Number) -> Any:
    """The value moved into the domain: in its type, between the ends, and a multiple of what it must be."""
    low, high = ends(domain)
    steps: list[Any] = [rule.multiple_of for rule in domain.constraints if isinstance(rule, annotated_types.MultipleOf)]
    number: Any = math.floor(value) if domain.kind is int else float(value)
    for step in steps:
        number = math.floor(Fraction(number) / Fraction(step)) * step
        number = number + step if number < low else number
    number = min(max(number, low), high) if not steps else number
    return domain.kind(number)


def boundary(domain: Domain) -> Iterator[Any]:
    """The values of a domain where statements tend to break, simplest first: both ends and their neighbours, 0, ±1, 2, every choice."""
    seen: list[Any] = []
    for value in _boundary(domain):
        if domain.holds(value) and not any(value == other and type(value) is type(other) for other in seen):
            seen.append(value)
            yield value


def _boundary(domain: Domain) -> Iterator[Any]:
    if domain.kind is bool:
        yield from (False, True)
    elif domain.kind == "choice":
        yield from domain.choices
    elif domain.kind == "tuple":
        yield from _boundary_tuples(domain)
    else:
        low, high = ends(domain)
        near = [low, low + 1, 0, 1, -1, 2, high - 1, high]
        if domain.kind is float and not math.isinf(low) and not math.isinf(high):
            near.append((low + high) / 2)
        yield from (on_lattice(domain, value) for value in near if math.isfinite(value) and low <= value <= high)
    if domain.optional:
        yield None


def _boundary_tuples(domain: Domain) -> Iterator[tuple[Any, ...]]:
    """All entries alike, and entries that differ: statements about squares fail on rectangles."""
    least, most = lengths(domain)
    for length in dict.fromkeys((least, least + 1, most)) if domain.variadic else (0,):
        columns = [list(boundary(item)) for item in _entries(domain, length)]
        deepest = max(map(len, columns), default=1)
        for place in range(deepest):
            yield tuple(column[min(place, len(column) - 1)] for column in columns)
            yield tuple(next(islice(cycle(column), place + i, None)) for i, column in enumerate(columns))


def simpler(domain: Domain, value: Any) -> Iterator[Any]:
    """Values of the domain that are simpler than the given one, simplest first."""
    for candidate in _simpler(domain, value):
        if domain.holds(candidate) and (candidate != value or type(candidate) is not type(value)):
            yield candidate


def _simpler(domain: Domain, value: Any) -> Iterator[Any]:
    if domain.optional and value is not None:
        yield None
    if value is None:
        return
    if domain.kind in (bool, "choice"):
        choices = (False, True) if domain.kind is bool else domain.choices
        yield from choices[: choices.index(value)]
    elif domain.kind == "tuple":
        if domain.variadic:
            yield from (value[:i] + value[i + 1 :] for i in range(len(value)))
        for i, item in enumerate(_entries(domain, len(value))):
            yield from ((*value[:i], entry, *value[i + 1 :]) for entry in simpler(item, value[i]))
    else:
        yield from _simpler_numbers(domain, value)


def _simpler_numbers(domain: Domain, value: Any) -> Iterator[Any]:
    low, high = ends(domain)
    aim = 0 if low <= 0 <= high else low if low > 0 else high
    if domain.kind is int:
        gap, towards = abs(value - int(aim)), int(math.copysign(1, value - aim))
        if gap <= FEW:  # one after the other, for a failure need not persist in between
            yield from (int(aim) + towards * step for step in range(gap))
            return
        yield from (value - towards * (gap >> shift) for shift in range(gap.bit_length()))
    else:
        candidates = (float(aim), *(round(value, digits) for digits in range(DIGITS)))
        yield from (number for number in candidates if len(repr(number)) < len(repr(value)) or number == 0)
