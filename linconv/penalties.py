r"""The Schatten-p penalty on frequency blocks: value, proximal map, distance to stationarity.

Weight decay on a linear CNN of depth L is this penalty with p = 2/L on its blocks (arXiv 2210.01257, theorem 4.10).
"""

import cmath
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from linconv.shrinkage import shrink as shrink
from linconv.spectral_shrinkage import shrink_singular_values
from linconv.spectrum import FrequencyBlocks
from linconv.validation import validate_number

Blocks = TypeVar("Blocks", FrequencyBlocks, Tensor)


def rank_tolerance(dtype: torch.dtype) -> float:
    """Singular values below this multiple of the largest one over all blocks count as zero: 100 eps of the real precision.

    Rounding leaves dust of a few eps in blocks of low rank, and a power 2/L < 1 magnifies it: without the cut a
    rank-deficient Schatten sum is wrong by .5 % at L = 10.
    """
    return 100 * torch.finfo(dtype).eps


def truncate(sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
    """Singular values with those at or below `rank_tolerance` times the largest of all set to zero."""
    return torch.where(sigma > rank_tolerance(sigma.dtype) * sigma.detach().max(), sigma, 0.0)


@dataclass(frozen=True)
class Schatten:
    r"""The penalty Ω(B) = Σ_u Σ_i σ_i(B_u)^p over a batch of blocks, for 0 < p ≤ 1 or p = 2.

    Blocks are `FrequencyBlocks` or a tensor `(*batch, K, C)`, real or complex; the sum runs over the full batch.
    The representation cost at depth L is (L/D) times the value of `Schatten(2/L)` on the unnormalised blocks.
    Raises `ValueError` for another p.

    >>> Schatten(0.5).value(torch.diag(torch.tensor([4.0, 9.0, 0.0], dtype=torch.float64))).item()
    5.0
    """

    p: float

    def __post_init__(self) -> None:
        p = validate_number("p", self.p, positive=True)
        if p > 1 and p != 2:
            raise ValueError(f"p: expected 0 < p ≤ 1, or 2, got {p}; depth L has p = 2/L")

    def value(self, blocks: FrequencyBlocks | Inexact[Tensor, "*batch K C"]) -> Float[Tensor, ""]:
        """Σσ^p, singular values at or below `rank_tolerance` of the largest one counted as zero."""
        sigma = truncate(torch.linalg.svdvals(_tensor("blocks", blocks)))
        kept = sigma > 0
        return torch.where(kept, torch.where(kept, sigma, 1.0) ** self.p, 0.0).sum()

    def prox(self, blocks: Blocks, step: float | Tensor) -> Blocks:
        """The minimiser X of ½‖X − B‖² + step·Ω(X), in the type that came; `step` ≥ 0 is one number or one per block `(*batch,)`."""
        values = _tensor("blocks", blocks)
        if not isinstance(step, Tensor):
            step = validate_number("step", step)
        elif not bool((step >= 0).all()) or not bool(torch.isfinite(step).all()):
            raise ValueError(f"step: expected finite numbers ≥ 0, got {step}")
        steps = torch.as_tensor(step, dtype=values.real.dtype, device=values.device)
        if steps.shape not in ((), values.shape[:-2]):
            raise ValueError(f"step: expected one number or one per block {tuple(values.shape[:-2])}, got shape {tuple(steps.shape)}")
        shrunk = shrink_singular_values(values, steps, self.p)
        return FrequencyBlocks(shrunk, blocks.kind) if isinstance(blocks, FrequencyBlocks) else shrunk

    def stationarity(
        self, blocks: FrequencyBlocks | Inexact[Tensor, "*batch K C"], gradient: FrequencyBlocks | Inexact[Tensor, "*batch K C"]
    ) -> Float[Tensor, ""]:
        """Distance (Frobenius) of −gradient to the limiting subdifferential of Ω at the blocks; 0 where g + Ω is stationary.

        `gradient` is that of the smooth part g, in the layout of the blocks.  Along the singular vectors of nonzero σ the
        subdifferential is pσ^{p−1}; off them it is everything for p < 1, the unit ball of the spectral norm for p = 1 and
        0 for p = 2.
        """
        values, minus = _tensor("blocks", blocks), -_tensor("gradient", gradient)
        if values.shape != minus.shape:
            raise ValueError(f"gradient: expected the shape {tuple(values.shape)} of the blocks, got {tuple(minus.shape)}")
        u, sigma, vh = torch.linalg.svd(values, full_matrices=True)
        kept = truncate(sigma)
        rotated = u.mH @ minus @ vh.mH
        slopes = torch.where(kept > 0, self.p * torch.where(kept > 0, kept, 1.0) ** (self.p - 1), 0.0)
        r = sigma.shape[-1]
        diagonal = torch.zeros_like(rotated)
        diagonal[..., range(r), range(r)] = slopes.to(rotated.dtype)
        residual = rotated - diagonal
        if self.p <= 1:
            rows, columns = (torch.nn.functional.pad(kept == 0, (0, n - r), value=True) for n in rotated.shape[-2:])
            null = rows[..., :, None] & columns[..., None, :]
            outside = torch.linalg.matrix_norm(torch.where(null, 0.0, residual)) ** 2
            excess = (torch.linalg.svdvals(torch.where(null, residual, 0.0)) - 1).clamp(min=0) if self.p == 1 else torch.zeros(())
            return (outside.sum() + (excess**2).sum()).sqrt()
        return torch.linalg.norm(residual)


def _tensor(name: str, blocks: FrequencyBlocks | Tensor) -> Tensor:
    """The blocks as a tensor, if they are finite numbers `(*batch, K, C)`."""
    values = blocks.values if isinstance(blocks, FrequencyBlocks) else blocks
    if not isinstance(values, Tensor) or not (values.is_floating_point() or values.is_complex()):
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: expected FrequencyBlocks or a real or complex tensor (*batch, K, C), got {got}")
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(f"{name}: expected (*batch, K, C) with data in it, got shape {tuple(values.shape)}")
    parts = values.detach()
    # A finite sum of finite numbers is the quick case; an overflow of the sum leaves it to the numbers themselves.
    if not cmath.isfinite(parts.sum().item()) and not bool(torch.isfinite(parts).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return values
