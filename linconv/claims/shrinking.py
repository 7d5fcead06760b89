"""A counterexample made small: fewer layers, channels, sites and images, simpler flags, fewer and shorter numbers.

Every candidate lies in the claim's domain (its strategies admit it) and must fail as the original does.  The loop ends where no single
step makes it smaller, or when its attempts or two minutes are spent.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from linconv.claims.arguments import is_network, is_rebuildable, rebuilt, tensors_of
from linconv.claims.drawing import Space
from linconv.claims.ranges import simpler
from linconv.claims.structured import admits

ATTEMPTS = 1500
SECONDS = 120.0  # for claims that take long
SEEDS = 8
DENOMINATORS = (1, 2, 4, 8)
SMALL = (2.0, 3.0, 4.0, 5.0)
Instance = dict[str, Any]
Axis = tuple[tuple[str, int, int], ...]  # (parameter, tensor, dimension) that have one size together


def shrunk(space: Space, instance: Instance, fails: Callable[[Instance], bool]) -> Instance:
    """The smallest instance found that still fails; the given one where none is smaller."""
    attempts, deadline = ATTEMPTS, time.monotonic() + SECONDS

    def go_on() -> bool:
        return attempts > 0 and time.monotonic() < deadline

    def still_fails(candidate: Instance) -> bool:
        nonlocal attempts
        attempts -= 1
        return fails(candidate)

    seen = True
    while seen and go_on():
        seen = False
        for moves in (_flags, _shapes, _entries):
            instance, smaller = _descend(partial(moves, space), instance, still_fails, go_on)
            seen = seen or smaller
    return instance


def _descend(
    moves: Callable[[Instance], Iterator[Instance]], instance: Instance, fails: Callable[[Instance], bool], go_on: Callable[[], bool]
) -> tuple[Instance, bool]:
    """Take the first move that still fails, again and again."""
    smaller, found = False, True
    while found and go_on():
        found = False
        for candidate in moves(instance):
            if not go_on():
                break
            if fails(candidate):
                instance, smaller, found = candidate, True, True
                break
    return instance, smaller


def _flags(space: Space, instance: Instance) -> Iterator[Instance]:
    """Simpler flags, each with the seed as it is and with a few others, for a smaller instance draws other numbers."""
    seed = next((flag for flag in space.flags if flag.name == "seed"), None)
    for flag in space.flags:
        for value in simpler(flag.domain, instance[flag.name]):
            yield instance | {flag.name: value}
            if seed is not None and flag is not seed:
                yield from (instance | {flag.name: value, "seed": other} for other in range(SEEDS) if seed.domain.holds(other))
    if seed is not None and isinstance(instance["seed"], int):
        yield from (instance | {"seed": other} for other in range(min(SEEDS, instance["seed"])) if seed.domain.holds(other))


def _shapes(space: Space, instance: Instance) -> Iterator[Instance]:
    """Without a layer, without a dimension, and with fewer places along an axis: half of them, or one less."""
    known = {p.name: p for p in space.drawn if is_rebuildable(instance[p.name])}
    for changes in _changes(instance, list(known)):
        if all(admits(known[name], value, instance[name]) for name, value in changes.items()):
            yield instance | changes


def _changes(instance: Instance, names: Sequence[str]) -> Iterator[Instance]:
    for name in names:
        if is_network(instance[name]):
            yield from ({name: net} for net in _without_a_layer(instance[name]))
    yield from _squeezed(instance, names)
    axes = [axis for name in names for axis in _axes(name, instance[name])]
    for axis in _tied(axes, instance):
        size = _size(axis, instance)
        for keep in ([torch.arange(size // 2)] if size > 3 else []) + [_all_but(size, place) for place in reversed(range(min(size, 8)))]:
            yield _narrowed(instance, axis, keep)


def _all_but(size: int, place: int) -> Tensor:
    return torch.cat([torch.arange(place), torch.arange(place + 1, size)])


def _axes(name: str, value: Any) -> list[Axis]:
    """What can be narrowed alone: widths, outputs, sides of the grid and kernels of a network; dimensions of tensors."""
    shapes = [tuple(tensor.shape) for tensor in tensors_of(value)]
    if not is_network(value):
        return [((name, i, dim),) for i, shape in enumerate(shapes) for dim in range(len(shape))]
    last = len(shapes) - 1
    found: list[Axis] = [((name, 0, 1),), ((name, last, 0),)]
    found += [((name, i, 0), (name, i + 1, 1)) for i in range(last)]
    for dim in range(2, len(shapes[0])):
        full = [(name, i, dim) for i in range(last) if shapes[i][dim] == shapes[last][dim]]
        found += [((name, last, dim), *full), ((name, last, dim),)] if full else [((name, last, dim),)]
        found += [((name, i, dim),) for i in range(last)]
    return found


def _size(axis: Axis, instance: Mapping[str, Any]) -> int:
    name, tensor, dim = axis[0]
    return tensors_of(instance[name])[tensor].shape[dim]


def _tied(axes: Sequence[Axis], instance: Instance) -> Iterator[Axis]:
    """Axes of more than one place: all of one size together, in pairs, alone."""
    sizes: dict[int, list[Axis]] = {}
    for axis in axes:
        if _size(axis, instance) > 1:
            sizes.setdefault(_size(axis, instance), []).append(axis)
    for same in sizes.values():
        if len(same) > 2:
            yield tuple(dict.fromkeys(place for axis in same for place in axis))
        yield from same
        yield from (tuple(dict.fromkeys((*one, *other))) for one, other in combinations(same, 2))


def _narrowed(instance: Instance, axis: Axis, keep: Tensor) -> Instance:
    changes: Instance = {}
    for name in dict.fromkeys(name for name, _, _ in axis):
        tensors = [tensor.detach() for tensor in tensors_of(instance[name])]
        for _, i, dim in (place for place in axis if place[0] == name):
            tensors[i] = tensors[i].index_select(dim, keep)
        changes[name] = rebuilt(instance[name], tensors)
    return changes


def _without_a_layer(net: Any) -> Iterator[Any]:
    """A network with one hidden layer less, where its neighbours fit, and cut to fit where they do not."""
    weights = [weight.detach() for weight in net.weights]
    for i in range(len(weights) - 1):
        rest = weights[:i] + weights[i + 1 :]
        before = rest[i - 1].shape[0] if i else weights[0].shape[1]
        width = min(before, rest[i].shape[1])
        rest[i] = rest[i][:, :width]
        if i:
            rest[i - 1] = rest[i - 1][:width]
        yield _network(net, rest)


def _network(net: Any, weights: Sequence[Tensor]) -> Any:
    return type(net).from_weights([weight.contiguous() for weight in weights], tuple(weights[-1].shape[2:]))


def _squeezed(instance: Instance, names: Sequence[str]) -> Iterator[Instance]:
    """All tensors of more than three dimensions without their last one, where that has one place."""
    tensors = {name: tensors_of(instance[name]) for name in names}
    every = [tensor for found in tensors.values() for tensor in found]
    if every and all(tensor.ndim > 3 and tensor.shape[-1] == 1 for tensor in every):
        yield {name: rebuilt(instance[name], [tensor.detach().squeeze(-1) for tensor in found]) for name, found in tensors.items()}


def _entries(space: Space, instance: Instance) -> Iterator[Instance]:
    """Tensors with more zeros, and with shorter numbers: whole ones, then halves, quarters and eighths."""
    for parameter in space.drawn:
        known = instance[parameter.name]
        if not is_rebuildable(known):
            continue
        tensors = [tensor.detach() for tensor in tensors_of(known)]
        for i, tensor in enumerate(tensors):
            for simple in _simpler_tensors(tensor):
                value = rebuilt(known, [*tensors[:i], simple, *tensors[i + 1 :]])
                if admits(parameter, value, known):
                    yield instance | {parameter.name: value}


def _simpler_tensors(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.flatten()
    nonzero = flat.nonzero().flatten()
    yield from (made.reshape(tensor.shape) for made in _with_more_zeros(flat, nonzero))
    if not tensor.is_floating_point():
        return
    for denominator in DENOMINATORS:
        rounded = (flat * denominator).round() / denominator
        if _complexity(rounded) < _complexity(flat):
            yield rounded.reshape(tensor.shape)
    for place in nonzero.tolist():
        for value in _shorter(float(flat[place])):
            made = flat.clone()
            made[place] = value
            yield made.reshape(tensor.shape)


def _with_more_zeros(flat: Tensor, nonzero: Tensor) -> Iterator[Tensor]:
    """All entries zero, then half of those that are not, a quarter, and so on down to single ones."""
    length = len(nonzero)
    while length >= 1:
        for part in nonzero.split(length):
            made = flat.clone()
            made[part] = 0
            yield made
        length //= 2


def _shorter(value: float) -> Iterator[float]:
    """Numbers with a shorter text and no larger: ±1, then fractions with small denominators."""
    sign = 1.0 if value > 0 else -1.0
    candidates = [
        1.0,
        sign,
        *(sign * whole for whole in SMALL),
        *(round(value * d) / d for d in DENOMINATORS),
        *(round(value, digits) for digits in (1, 2, 3, 6)),
    ]
    for candidate in dict.fromkeys(candidates):
        if candidate and _cost(candidate) < _cost(value):
            yield candidate


def _cost(value: float) -> tuple[int, float, bool]:
    return len(repr(abs(value))), abs(value), value < 0


def _complexity(flat: Tensor) -> tuple[int, int]:
    entries = flat.tolist()
    return sum(map(bool, entries)), sum(len(repr(abs(entry))) for entry in entries)
