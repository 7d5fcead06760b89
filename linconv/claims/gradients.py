"""The error of a comparison as a differentiable tensor, for the search that goes uphill."""

from collections.abc import Callable

import torch
from torch import Tensor


def signed_error(observed: object, bound: object, scale: object, *, two_sided: bool = False) -> Callable[[], Tensor] | None:
    """max (observed − bound) / scale, or max |observed − bound| / scale, with its gradient, computed when called.

    None where no side is a tensor that requires a gradient: a check then keeps nothing alive and costs what it did.  `scale` is
    by default the largest |bound|, and where that is zero the largest |observed|, as in `agree`.
    """
    if not any(isinstance(side, Tensor) and side.requires_grad for side in (observed, bound)):
        return None

    def error() -> Tensor:
        left, right = _as_tensor(observed), _as_tensor(bound)
        unit = (right if scale is None else _as_tensor(scale)).abs().max()
        unit = left.abs().max() if scale is None and unit == 0 else unit
        gap = (left - right).abs() if two_sided else left - right
        return gap.max() / unit

    return error


def _as_tensor(value: object) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
