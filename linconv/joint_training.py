r"""Both layers of a linear network trained at once: the step, what balance it loses, and where it ends.

Outputs are $V W \bar p$ of mean patches, V an M×K head and W the K×P filters, trained on $\frac1N \sum_n \|y_n - V W \bar p_n\|^2$.
The balance is arXiv 1802.06509's, aligned modes those of arXiv 1312.6120; derived in docs/energy-profile.md.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.validation import validate_number, validate_steps, validate_tensor

Real = int | float


def moments(patches: Float[Tensor, "N P"], targets: Float[Tensor, "N M"]) -> tuple[Float[Tensor, "P P"], Float[Tensor, "M P"]]:
    """A = (1/N) Σ p̄ p̄ᵀ and B = (1/N) Σ y p̄ᵀ; raises where there is not a row of targets a mean patch."""
    _validate_rows(patches, targets)
    return patches.T @ patches / len(patches), targets.T @ patches / len(patches)


def _validate_rows(patches: Tensor, targets: Tensor) -> None:
    rows = validate_tensor("patches", patches, ndim=(2,), shape="mean patches (N, P)")
    if validate_tensor("targets", targets).ndim != 2 or len(rows) != len(targets):
        raise ValueError(f"targets: expected (N, M) with N = {len(rows)}, one row a mean patch, got {tuple(targets.shape)}; reshape them")
    _alike(patches=patches, targets=targets)


def _alike(**tensors: Tensor) -> None:
    """Raises unless all have one dtype and one device."""
    kinds = [f"{value.dtype} on {value.device}" for value in tensors.values()]
    if len(set(kinds)) > 1:
        raise TypeError(f"{', '.join(tensors)}: expected one dtype and device, got {', '.join(kinds)}; convert with .to(torch.float64)")


def _residual(head: Tensor, filters: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, "M P"]:
    """E = VWA − B."""
    for name, value in (("head", head), ("filters", filters), ("a", a), ("b", b)):
        validate_tensor(name, value)
    shapes, (m, k, p) = [tuple(given.shape) for given in (head, filters, a, b)], (len(head), len(filters), len(a))
    if shapes != [(m, k), (k, p), (p, p), (m, p)]:
        raise ValueError(f"head, filters, a, b: expected (M, K), (K, P), (P, P), (M, P), got {', '.join(map(str, shapes))}; take moments")
    _alike(head=head, filters=filters, a=a, b=b)
    return head @ filters @ a - b


def joint_step(
    head: Float[Tensor, "M K"], filters: Float[Tensor, "K P"], a: Float[Tensor, "P P"], b: Float[Tensor, "M P"], step_size: Real
) -> tuple[Float[Tensor, "M K"], Float[Tensor, "K P"]]:
    """One step of gradient descent on both layers at once: V ← V − 2ηEWᵀ, W ← W − 2ηVᵀE, E = VWA − B.

    From η = 1/max(‖V‖²‖A‖, ‖WAWᵀ‖) on, at these weights, descent on one of the layers alone diverges: a `RuntimeWarning` says so.
    Near a minimum both are stable together below 1/(‖V‖²‖A‖ + ‖WAWᵀ‖), which is at least half of that.

    Raises `ValueError` or `TypeError` naming the argument, for a step whose result leaves the range of the dtype too.
    """
    eta, error = validate_number("step_size", step_size, positive=True), _residual(head, filters, a, b)
    after = head - 2 * eta * error @ filters.T, filters - 2 * eta * head.T @ error
    if not all(bool(torch.isfinite(layer).all()) for layer in after):
        raise ValueError(f"step_size: the step of both layers at {eta:.4g} leaves the range of {head.dtype}; take a smaller one")
    gain = float(torch.linalg.matrix_norm(head, 2)) ** 2 * float(torch.linalg.matrix_norm(a, 2))
    curvature = max(gain, float(torch.linalg.matrix_norm(filters @ a @ filters.T, 2)))
    if eta * curvature >= 1:
        warnings.warn(
            f"step_size: gradient descent on one layer alone diverges at {eta:.4g} from these weights; take less than {1 / curvature:.4g}",
            RuntimeWarning,
            stacklevel=2,
        )
    return after


def balance_change(
    head: Float[Tensor, "M K"], filters: Float[Tensor, "K P"], a: Float[Tensor, "P P"], b: Float[Tensor, "M P"], step_size: Real
) -> Float[Tensor, "K K"]:
    """What one `joint_step` adds to VᵀV − WWᵀ, exactly: 4η²(WEᵀEWᵀ − VᵀEEᵀV), of second order in η.

    The terms of first order, −2η(VᵀEWᵀ + WEᵀV), are the same in both; gradient flow conserves the difference (arXiv 1802.06509).
    """
    eta, error = validate_number("step_size", step_size, positive=True), _residual(head, filters, a, b)
    right, left = 2 * eta * error @ filters.T, 2 * eta * head.T @ error
    return right.T @ right - left @ left.T


def small_start_limit(patches: Float[Tensor, "N P"], targets: Float[Tensor, "N M"]) -> Float[Tensor, "P P"]:
    r"""WᵀW = (ΘᵀΘ)^{1/2} of a first layer trained to convergence jointly with its head from a small balanced start.

    Θ = BA⁺, M×P, is the least-squares map from mean patches to targets, and the number of filters at least its rank.  The energies are
    then $e_i = (\langle u_i, W^T W u_i\rangle / K)^{1/2}$; `patches` are
    `mean_patches(spectrum, images)`.  Derived in docs/energy-profile.md; balance is arXiv 1802.06509's.
    """
    _validate_rows(patches, targets)
    left, sizes, right = reduced_svd(patches)
    theta = (targets.T @ left / sizes) @ right.T
    _, gains, v = torch.linalg.svd(theta, full_matrices=False)
    return v.T @ (gains[:, None] * v)


def aligned_mode(
    alpha: Float[Tensor, " m"], beta: Float[Tensor, " m"], start: Float[Tensor, " m"], *, step_size: Real, steps: Real | Float[Tensor, ""]
) -> Float[Tensor, " m"]:
    r"""The strength a(t) of modes whose two layers are aligned and balanced, under gradient flow for the time η·t.

    $\dot a = 4a(\beta - \alpha a)$ has $a(t) = (\beta/\alpha) / (1 + (\beta/(\alpha a_0) - 1)\, e^{-4\beta\eta t})$ (Saxe, McClelland,
    Ganguli, arXiv 1312.6120); computed so that α = 0 and β = 0 are no exceptions.  α, β, a₀ ≥ 0.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> [round(aligned_mode(one, one, 0.01 * one, step_size=0.1, steps=t).item(), 3) for t in (0, 10, 100)]
    [0.01, 0.355, 1.0]
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("start", start)):
        if bool((validate_tensor(name, value) < 0).any()):
            raise ValueError(f"{name}: expected numbers ≥ 0, got {float(value.min())}; strengths and moments of aligned modes are")
    if not alpha.shape == beta.shape == start.shape:
        raise ValueError(f"alpha, beta, start: expected one shape, got {tuple(alpha.shape)}, {tuple(beta.shape)}, {tuple(start.shape)}")
    _alike(alpha=alpha, beta=beta, start=start)
    time = 4 * validate_number("step_size", step_size, positive=True) * validate_steps(steps)
    z = torch.where(beta > 0, beta * time, 0.0)  # 0 · ∞ is 0 here, and below
    spent = torch.where(beta > 0, -torch.expm1(-z) / beta, time)  # ∫ exp(−4βηs) ds
    taken = torch.where(alpha > 0, start * alpha * spent, 0.0)
    return torch.where(start > 0, start / (torch.exp(-z) + taken), 0.0)


def reduced_svd(matrix: Float[Tensor, "m n"], rounding: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values above rounding, right vectors as columns; `rounding` is the norm of what the entries are wrong by."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > max(max(matrix.shape) * torch.finfo(matrix.dtype).eps * float(values[0]), rounding)
    return left[:, kept], values[kept], right[kept].T
