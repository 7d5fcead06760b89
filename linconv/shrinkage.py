r"""The proximal map of $\lambda x^p$ on numbers $x \ge 0$: soft thresholding, shrinkage, and for p < 1 a map with a jump."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

SPLITTER = 2.0**27 + 1  # cuts the 53 bits of a float64 into two halves (Veltkamp)
SMALLEST = 5e-324


def shrink(y: Float[Tensor, "*batch"], step: Float[Tensor, "*#batch"], p: float) -> Float[Tensor, "*batch"]:
    r"""The scalar proximal map $\arg\min_{x \ge 0} \tfrac12 (x-y)^2 + \lambda x^p$ of y ≥ 0, λ = step ≥ 0, for 0 < p ≤ 1 or p = 2.

    For p < 1 the minimiser is 0 up to the threshold τ and jumps there to z; beyond, it is the larger root of x + λp x^{p−1} = y.
    For p = 2/L, L = 1, 2, 3, …, the result is within 4 units in the last place, unless y is within 4 of τ, where it is 0 or about
    z; p between 2/3 and 1 multiplies rounding by up to 1/(1 − p).

    Differentiable in y and λ away from τ by the implicit function theorem, twice and more.  Source: derived here.

    >>> shrink(torch.tensor([1.0, 1.6]), torch.tensor(1.0), 0.5)                 # τ = 1.5, z = 1
    tensor([0.0000, 1.1295])
    """
    if p == 2:
        return y / (1 + 2 * step)
    if p == 1:
        return (y - step).clamp(min=0)
    return _Shrink.apply(y, step, p)


class _Shrink(torch.autograd.Function):
    """`shrink` for p < 1 with the derivatives of the implicit equation, computed in float64."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, step: Tensor, p: float) -> Tensor:
        if y.device.type == "cpu":
            x = torch.from_numpy(minimiser(np, y.detach().double().numpy(), step.detach().double().numpy(), p)[0]).to(y.dtype)
        else:
            x = minimiser(torch, y.double(), step.double(), p)[0].to(y.dtype)
        ctx.save_for_backward(step, x)
        ctx.p = p  # type: ignore[attr-defined]
        return x

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        step, x = ctx.saved_tensors  # type: ignore[attr-defined]
        slope, pull = derivatives(x, step, ctx.p)  # type: ignore[attr-defined]
        return gradient * slope, (gradient * pull).sum_to_size(step.shape), None


def derivatives(x: Tensor, step: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """∂x/∂y and ∂x/∂λ at x = shrink(y, λ, p) for p ≤ 1: with a = λp x^{p−2} they are 1/(1 − (1−p)a) and −p x^{p−1} times that.

    0 where x = 0, but ∂x/∂y = 1 where λ = 0.
    """
    alive = x > 0
    safe = torch.where(alive, x, 1.0)
    power = p * safe ** (p - 1)
    slope = 1 / (1 - (1 - p) * step * power / safe)
    return torch.where(alive, slope, torch.where(step > 0, 0.0, 1.0)), torch.where(alive, -power * slope, 0.0)


def minimiser(xp: Any, y: Any, step: Any, p: float) -> tuple[Any, Any]:
    """`shrink` for p < 1, and its threshold τ, on float64 arrays of xp: NumPy (twice as fast on small arrays) or torch (any device).

    Halley's method on x + λp x^{p−1} = y from a point that is exact at the threshold and far from it.  For p ≤ 2/3 the first step
    leaves 1e-5 and the second, of third order and with the residual in twice the precision, rounding.  p towards 1 starts less
    well: one step more.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # see `_power_term`
        weight = xp.where(step > 0, step, 1.0)
        border, z = threshold(xp, weight, p)
        survives = y > border
        target = xp.where(survives, y, border)
        x = target - (border - z) * (border / target)
        for _ in range(1 if p <= 2 / 3 else 2):
            term = weight * (x**p / x) * p
            x = _halley(x, (x - target) + term, term, p)
        high, low = _power_term(xp, x, weight, p, p)
        x = _halley(x, ((x - target) + high) + low, high, p)
        return xp.where(step > 0, xp.where(survives, x, 0.0), y), xp.where(step > 0, border, 0.0)


def threshold(xp: Any, step: Any, p: float) -> tuple[Any, Any]:
    """τ, up to which `shrink` is 0, and z, where it jumps to there, for λ = step > 0 in float64 and p < 1.

    At the jump x does as well as 0: y = x/2 + λx^{p−1}.  τ is the minimum of this function and z = (2(1−p)λ)^{1/(2−p)} is where it
    is attained, so that the rounding of z changes τ in second order only.
    """
    g = 1 / (2 - p)
    z = (2 * (1 - p)) ** g * step**g
    z = xp.where(z > SMALLEST, z, SMALLEST)
    high, low = _power_term(xp, z, step, p, 1.0)
    return high + (z / 2 + low), z


def _halley(x: Any, residual: Any, term: Any, p: float) -> Any:
    """One step of Halley's method for a function of which `term` = λp x^{p−1} is the part that is not linear."""
    ratio = term / x
    slope = 1 - (1 - p) * ratio
    newton = residual / slope
    return x - newton / (1 - newton / x * ((1 - p) * (2 - p) / 2 * ratio / slope))


def _power_term(xp: Any, x: Any, step: Any, p: float, factor: float) -> tuple[Any, Any]:
    """factor·λ·x^{p−1} as a sum of two float64, so that of all roundings only that of x^p counts.

    x^{p−1} is x^p/x, since a rounded p − 1 would be multiplied by ln x.
    """
    power = x**p
    quotient = power / x
    product, error = _two_product(quotient, x)
    rest = ((power - product) - error) / x
    first, first_error = _two_product(quotient, step)
    high, high_error = _two_product(first, factor)
    low = high_error + factor * (first_error + rest * step)
    return high, xp.where(xp.isfinite(low), low, 0.0)  # beyond 1e300 the halves overflow, and rounding stays as it is


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded product and its error, exact unless something over- or underflows (Dekker)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high
