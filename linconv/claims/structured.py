"""Instances where statements about networks tend to break: the corners of domains, and tensors with structure.

Tensors are zeros, constants, deltas, of rank one, Nyquist waves, orthogonal at every frequency (all singular values equal), and
integer ramps.  They replace those of instances that were drawn, where the strategy admits them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from linconv.claims.arguments import is_rebuildable, rebuilt, tensors_of
from linconv.claims.drawing import Space, first_examples, fixed_dictionaries
from linconv.claims.ranges import boundary
from linconv.claims.signatures import Parameter

SHAPES = 6


def admits(parameter: Parameter, value: Any, known: Any) -> bool:
    """Whether the parameter may have this value, given that it may have the `known` one: what its strategy and its predicates say.

    A strategy may carry a function `admits(value, known)`, as those of `linconv.strategies` do.  Without one it is the only judge of
    what it yields, and nothing but its own draws is taken.
    """
    judge = getattr(parameter.domain.strategy, "admits", None)
    return judge is not None and parameter.domain.holds(value) and bool(judge(value, known))


def structured(space: Space, rng: Random) -> Iterator[dict[str, Any]]:
    """Structured instances, simplest first: corners of the flags, then structured tensors in several shapes, then both at once."""
    yield from _corners(space)
    if space.drawn:
        strategy = fixed_dictionaries(space.drawn)
        bases = [space.start | values for values in sorted(first_examples(strategy, rng.randrange(2**32), SHAPES), key=_size)]
        yield from bases
        for base, fill in itertools.product(bases, FILLS):
            yield from _filled(space, base, fill)
        for base, fill in itertools.product(bases, FILLS):
            yield from (instance | corner for instance in _filled(space, base, fill) for corner in _ends(space))


def _size(values: dict[str, Any]) -> int:
    return sum(tensor.numel() for value in values.values() for tensor in tensors_of(value))


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """One flag at a time at a boundary, then all, then two at a time."""
    values = {flag.name: list(boundary(flag.domain)) for flag in space.flags}
    for depth in range(max(map(len, values.values()), default=0)):
        yield from (space.start | {name: options[depth]} for name, options in values.items() if depth < len(options))
    yield from (space.start | corner for corner in _ends(space))
    for first, second in itertools.combinations(values, 2):
        yield from (space.start | {first: a, second: b} for a, b in itertools.product(values[first], values[second]))


def _ends(space: Space) -> list[dict[str, Any]]:
    """All flags at their first boundary value, and all at their last."""
    options = {flag.name: list(boundary(flag.domain)) for flag in space.flags}
    return [{name: found[end] for name, found in options.items() if found} for end in (0, -1)] if options else []


def _filled(space: Space, base: dict[str, Any], fill: Callable[[Tensor], Tensor]) -> Iterator[dict[str, Any]]:
    """All drawn tensors with one structure; then only those of one parameter, and in a network or tuple only one of them."""
    seen = {}
    for parameter in space.drawn:
        known = base[parameter.name]
        if not is_rebuildable(known):
            continue
        tensors = tensors_of(known)
        every = [_fill(tensor, fill) for tensor in tensors]
        choices = [every, *([*tensors[:i], every[i], *tensors[i + 1 :]] for i in range(len(tensors)) if len(tensors) > 1)]
        made = [
            value
            for value in (rebuilt(known, [t.detach().clone() for t in chosen]) for chosen in choices)
            if admits(parameter, value, known)
        ]
        if made:
            seen[parameter.name] = made
    if len(seen) > 1:
        yield base | {name: made[0] for name, made in seen.items()}
    yield from (base | {name: value} for name, made in seen.items() for value in made)


def _fill(tensor: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    return fill(tensor.detach()).to(tensor.dtype) if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()) else tensor


def _coordinates(tensor: Tensor) -> Sequence[Tensor]:
    """The index along each dimension, as integers that broadcast to the tensor."""
    return [torch.arange(n).reshape([-1 if i == dim else 1 for i in range(tensor.ndim)]) for dim, n in enumerate(tensor.shape)]


def _delta(tensor: Tensor) -> Tensor:
    filled = torch.zeros_like(tensor)
    filled[(0,) * tensor.ndim] = 1
    return filled


def _rank_one(tensor: Tensor) -> Tensor:
    return _product(tensor, [places + 1 for places in _coordinates(tensor)])


def _nyquist(tensor: Tensor) -> Tensor:
    """Alternating signs in space, the first two dimensions being channels; of a vector or a matrix in every dimension."""
    return _product(tensor, [1 - 2 * (places % 2) for places in _coordinates(tensor)[2 if tensor.ndim > 2 else 0 :]])


def _orthogonal(tensor: Tensor) -> Tensor:
    """Ones where the first two indices agree, at the first site: the identity block at every frequency."""
    filled = torch.zeros_like(tensor)
    if tensor.ndim < 2:
        return torch.ones_like(tensor)
    first_site: tuple[Any, ...] = (slice(None), slice(None), *(0 for _ in tensor.shape[2:]))
    filled[first_site] = torch.eye(*tensor.shape[:2], dtype=tensor.dtype)
    return filled


def _ramp(tensor: Tensor) -> Tensor:
    return torch.arange(1, tensor.numel() + 1).reshape(tensor.shape)


def _product(tensor: Tensor, factors: Sequence[Tensor]) -> Tensor:
    filled = torch.ones_like(tensor)
    for factor in factors:
        filled = filled * factor
    return filled


FILLS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.zeros_like,
    torch.ones_like,
    _delta,
    _orthogonal,
    _nyquist,
    _rank_one,
    _ramp,
    lambda tensor: torch.where(_ramp(tensor) % 2 == 0, 1.0, -1.0),
)
