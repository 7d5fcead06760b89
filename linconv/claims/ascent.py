"""Counterexamples sought uphill: the error of a check as a function of the tensors and networks that the claim is given.

The step is a fraction of the norm of the variables along the normalised gradient; it grows while the error does and is halved where it
does not or where it would leave the domain, so that neither the scale of the variables nor that of the error matters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linconv.claims.arguments import is_rebuildable, rebuilt, tensors_of
from linconv.claims.checks import Check
from linconv.claims.drawing import Space
from linconv.claims.structured import admits

STEPS = 40
FIRST_STEP, LONGER, SHORTER, SHORTEST = 0.3, 1.4, 0.4, 1e-4

Evaluate = Callable[[dict[str, Any]], Sequence[Check]]


def ascend(space: Space, start: dict[str, Any], evaluate: Evaluate, try_plain: Callable[[dict[str, Any]], object], which: int) -> int:
    """Go uphill from one instance; the number of steps that led up.

    `evaluate` runs the claim and gives its checks, `try_plain` judges an instance without gradients and is called where a check fails.
    Of several checks with a gradient `which` (modulo their number) is followed.  Ends where the gradient vanishes or is not finite.
    """
    names = [p.name for p in space.drawn if is_rebuildable(start[p.name]) and _may_move(p, start[p.name])]
    values = {name: [tensor.detach().clone() for tensor in tensors_of(start[name])] for name in names}
    size, climbed, best = FIRST_STEP, 0, -math.inf
    accepted, direction = values, {}
    for _ in range(STEPS):
        instance = start | {name: rebuilt(start[name], tensors) for name, tensors in values.items()}
        if not all(admits(p, instance[p.name], start[p.name]) for p in space.drawn if p.name in names):
            size *= SHORTER  # the step leaves the domain
        else:
            found = _slope(start, values, evaluate, which) if values else None
            if found is None:
                return climbed
            error, gradient, failed = found
            if failed:
                try_plain(instance)
            if error > best:
                climbed += best > -math.inf
                best, accepted, direction, size = error, values, gradient, size * (LONGER if climbed else 1)
            else:
                size *= SHORTER
        length = _norm(direction)
        if not 0 < length < math.inf or size < SHORTEST:
            return climbed
        factor = size * (_norm(accepted) or 1.0) / length
        values = {name: [t + factor * g for t, g in zip(accepted[name], direction[name], strict=True)] for name in names}
    return climbed


def _may_move(parameter: Any, known: Any) -> bool:
    """Whether every real entry is admitted: a strategy of given ranks or spectra does not let its entries move."""
    moved = rebuilt(known, [_nudged(tensor) for tensor in tensors_of(known)])
    return admits(parameter, moved, known)


def _nudged(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach()
    ramp = torch.linspace(0.1, 0.7, max(tensor.numel(), 1), dtype=tensor.dtype)[: tensor.numel()]
    return tensor.detach() + ramp.reshape(tensor.shape)


def _slope(
    start: dict[str, Any], values: dict[str, list[Tensor]], evaluate: Evaluate, which: int
) -> tuple[float, dict[str, list[Tensor]], bool] | None:
    """The signed error of one check, its gradient, and whether a check fails; None where there is no gradient to follow."""
    instance = start | {name: rebuilt(start[name], [tensor.clone() for tensor in tensors]) for name, tensors in values.items()}
    leaves = {name: _variables(instance[name]) for name in values}
    checks = [check for check in evaluate(instance) if check.required]
    failed = any(check.outcome == "fail" for check in checks)
    steep = [check for check in checks if check.ascent is not None and not _is_rounding(check)]
    if not steep:
        return (0.0, {}, True) if failed else None
    ascent = steep[which % len(steep)].ascent
    error = ascent() if ascent is not None else torch.zeros(())
    flat = [leaf for parts in leaves.values() for leaf in parts]
    variable = [leaf for leaf in flat if leaf.requires_grad]
    if not error.requires_grad or not variable:
        return None
    gradients = iter(torch.autograd.grad(error, variable, allow_unused=True))
    found = {name: [_or_zero(next(gradients) if leaf.requires_grad else None, leaf) for leaf in parts] for name, parts in leaves.items()}
    value = float(error.detach())
    return None if math.isnan(value) or not math.isfinite(_norm(found)) else (value, found, failed)


def _variables(value: Any) -> list[Tensor]:
    """The tensors of an instance, made variables; weights of a network are already."""
    tensors = tensors_of(value)
    for tensor in tensors:
        if tensor.is_floating_point() and not isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(True)
    return tensors


def _is_rounding(check: Check) -> bool:
    """An equality that holds to rounding has a gradient without meaning."""
    return check.side == "predicted" and not check.loosened and check.outcome == "pass"


def _or_zero(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if gradient is None else gradient


def _norm(parts: dict[str, list[Tensor]]) -> float:
    return math.sqrt(
        sum(
            float(tensor.detach().double().square().sum()) for tensors in parts.values() for tensor in tensors if tensor.is_floating_point()
        )
    )
