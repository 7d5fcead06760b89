r"""Representation cost: the least Σ‖w‖² with which a linear CNN of a given depth computes a predictor.

With V_u the unnormalised K×C block at each of the D frequencies,

    R_L(β) = min { Σ_l ‖w^l‖² : the network computes β } = (L/D) Σ_u ‖V_u‖_{S_{2/L}}^{2/L},

attained by balanced factors.  With orthonormal blocks the factor is L·D^{−(L−1)/L}: it depends on the depth.  The idea is
theorem 4.10 of arXiv 2210.01257; statement and proof in `docs/theorem410.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.enclosures import cost_bounds
from linconv.network import LinearCNN
from linconv.penalties import truncate
from linconv.spectrum import FrequencyBlocks, mirror_index
from linconv.validation import validate_memory, validate_size, validate_sizes, validate_tensor


@dataclass(frozen=True)
class Cost:
    """An interval that contains the representation cost; `lower == upper` where a formula is exact.

    `truncated` is what the singular values counted as zero (at or below 100 eps of the largest) would have added.
    """

    lower: float
    upper: float
    truncated: float = 0.0


def representation_cost(
    predictor: Float[Tensor, "K C *grid"],
    depth: int,
    *,
    kernel_size: int | Sequence[int] | None = None,
    hidden_channels: int | Sequence[int] | None = None,
    enclose: bool = False,
) -> Cost:
    """The least Σ_l ‖w^l‖² of a linear CNN of `depth` layers that computes the predictor β, `(K, C, *grid)`.

    `kernel_size` restricts the hidden kernels (an integer or one a dimension; default the full grid), `hidden_channels`
    the hidden widths (one number or depth − 1 of them; default unlimited).  Both bounds are `inf` where a block has a
    higher rank than the narrowest layer: no such network computes β.  Full kernels and kernels of one tap are exact;
    depth 2 with restricted kernels is a semidefinite programme with (folded taps) × r rows, r ≤ C the rank of the predictor as a
    (K·D)×C matrix: solved to a relative width of about 1e-11 up to 80 rows and, but for very sparse spectra, below 1e-6 up
    to 600; other restricted cases, and larger ones, give bounds (docs/restricted-kernels.md).  Rank tolerance: 100 eps relative to
    the largest singular value over all frequencies.

    With `enclose` the bounds are proved to contain the cost of exactly these floating-point numbers, rounding of the Fourier
    transform included and nothing truncated (docs/enclosures.md).  A zero singular value is then known only to about 1e-14 of
    the largest, so that a predictor of low rank has a wide interval at great depth.  Full kernels only (or depth 1), and
    widths of at least min(K, C): whether a rank is smaller, rounded numbers cannot prove.

    Raises `ValueError` or `TypeError` naming the argument.

    >>> beta = torch.zeros(1, 1, 4, dtype=torch.float64); beta[0, 0, 0] = 1      # a delta: every block is 1
    >>> [round(representation_cost(beta, depth).lower, 9) for depth in (1, 2, 3)]
    [1.0, 2.0, 3.0]
    """
    validate_tensor("predictor", predictor, ndim=(3, 4, 5), shape="(K, C, *grid)")
    depth, grid = validate_size("depth", depth), tuple(predictor.shape[2:])
    kernel = grid if kernel_size is None else validate_sizes("kernel_size", kernel_size, dims=len(grid))
    width = _narrowest(hidden_channels, depth)
    if enclose:
        if kernel != grid and depth > 1:
            raise ValueError(f"enclose: expected kernels as large as the grid {grid}, got kernel_size {kernel}; omit it")
        rank = min(predictor.shape[:2])
        if width is not None and width < rank:
            raise ValueError(f"enclose: expected hidden_channels of at least {rank} = min(K, C), got {width}: a rank cannot be enclosed")
        return Cost(*cost_bounds(predictor, depth))
    sigma = FrequencyBlocks.from_predictor(predictor.detach()).singular_values()
    kept = truncate(sigma)
    if width is not None and int((kept > 0).sum(-1).max()) > width:
        return Cost(math.inf, math.inf)
    if kernel == grid or depth == 1:
        full = _schatten_cost(kept, depth)
        if not math.isfinite(full) or (full == 0 and bool(kept.any())):
            raise ValueError(
                f"predictor: expected numbers whose squares are in double precision, got up to {predictor.abs().max():.0e}; rescale"
            )
        return Cost(full, full, _schatten_cost(sigma, depth) - full)
    # Explicit weights of that many taps are part of the answer.
    validate_memory("kernel_size", math.prod(kernel) * predictor.shape[1] ** 2, 2**27)
    from linconv.solvers.restricted import restricted_cost

    bounds = restricted_cost(predictor.detach(), depth, kernel, width)
    return Cost(bounds.lower, bounds.upper)


def _schatten_cost(sigma: Float[Tensor, "*grid r"], depth: int) -> float:
    """(L/D) Σ σ^{2/L} over the singular values of all blocks."""
    sites = math.prod(sigma.shape[:-1])
    return depth / sites * float((sigma[sigma > 0].to(torch.float64) ** (2 / depth)).sum())


def _narrowest(hidden_channels: int | Sequence[int] | None, depth: int) -> int | None:
    """The narrowest hidden width, None where there is none or it is unlimited."""
    if hidden_channels is None:
        return None
    widths = validate_sizes("hidden_channels", hidden_channels, dims=depth - 1, per="hidden layer")
    return min(widths, default=None)


def minimal_network(predictor: Float[Tensor, "K C *grid"], depth: int, *, hidden_channels: int | Sequence[int] | None = None) -> LinearCNN:
    """A network of full kernels that computes the predictor with the least Σ‖w‖², every layer having the same norm.

    Block V = UΣV* becomes Σ^{1/L}V*, Σ^{1/L}, …, UΣ^{1/L}; factors at −u are the conjugates of those at u and those of
    self-conjugate frequencies are real, so that the weights are.  Hidden widths are min(K, C) unless given; channels
    beyond that are zero.  Singular values at or below the rank tolerance are dropped, as the cost counts them.

    Raises `ValueError` where the widths are smaller than the rank of a block, and as `representation_cost` does.

    >>> beta = torch.ones(2, 3, 4, 5, dtype=torch.float64)
    >>> net = minimal_network(beta, 3)
    >>> cost = sum((w**2).sum().item() for w in net.weights)
    >>> round(cost / representation_cost(beta, 3).lower, 12)
    1.0
    """
    validate_tensor("predictor", predictor, ndim=(3, 4, 5), shape="(K, C, *grid)")
    depth = validate_size("depth", depth)
    outputs, channels, *grid = predictor.shape
    rank = min(outputs, channels)
    widths = validate_sizes("hidden_channels", rank if hidden_channels is None else hidden_channels, dims=depth - 1, per="hidden layer")
    if depth == 1:
        return LinearCNN.from_weights([predictor.detach()], grid)
    left, sigma, right = conjugate_svd(FrequencyBlocks.from_predictor(predictor.detach()))
    sigma = truncate(sigma)
    needed = int((sigma > 0).sum(-1).max())
    if min(widths) < needed:
        raise ValueError(f"hidden_channels: expected at least {needed}, the largest rank of a block, got {widths}")
    root = torch.diag_embed(sigma ** (1 / depth)).to(left.dtype)
    factors = [root @ right, *[root] * (depth - 2), (left @ root).conj()]
    sizes = [(b, a) for a, b in zip((channels, *widths), (*widths, outputs), strict=True)]
    weights = []
    for factor, (rows, columns) in zip(factors, sizes, strict=True):
        spatial = torch.fft.ifftn(factor, dim=tuple(range(len(grid)))).real.movedim((-2, -1), (0, 1))
        weight = spatial.new_zeros(rows, columns, *grid)
        r, c = min(rows, factor.shape[-2]), min(columns, factor.shape[-1])
        weight[:r, :c] = spatial[:r, :c]
        weights.append(weight)
    return LinearCNN.from_weights(weights, grid)


def conjugate_svd(
    blocks: FrequencyBlocks,
) -> tuple[Complex[Tensor, "*grid K r"], Float[Tensor, "*grid r"], Complex[Tensor, "*grid r C"]]:
    """Singular value decompositions U, σ, V* of the blocks of a real map, conjugate at u and −u and real where u = −u."""
    grid = blocks.grid
    values = blocks.values.flatten(0, len(grid) - 1)
    mirror = mirror_index(grid, values.device)
    own = torch.arange(len(mirror), device=values.device)
    left, sigma, right = torch.linalg.svd(values, full_matrices=False)
    real = mirror == own
    real_left, real_sigma, real_right = torch.linalg.svd(values[real].real, full_matrices=False)
    left[real], sigma[real], right[real] = real_left.to(left.dtype), real_sigma, real_right.to(right.dtype)
    second = mirror < own
    left[second], sigma[second], right[second] = (t[mirror[second]] for t in (left.conj(), sigma, right.conj()))
    return left.unflatten(0, grid), sigma.unflatten(0, grid), right.unflatten(0, grid)
