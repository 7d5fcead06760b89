r"""Losses ℓ(f, y) of the outputs of a network, summed over the samples: value, derivatives, and the conjugate of lower bounds.

f, y and z are `(N, K)`.  For every z, Σ_n ℓ(f_n, y_n) ≥ ⟨z, f⟩ − Σ_n ℓ*(z_n): a bound for every predictor (Fenchel, Young).
Squared error ½‖f − y‖²; cross-entropy −Σ_k y_k log softmax(f)_k; logistic loss Σ_k log(1 + e^{f_k}) − y_k f_k.

Values, gradients and conjugates of the last two are sums without cancellation: where an output is sure of an answer that is
certain, all three are far below 1, and 1 − q in the place of the sum of the other probabilities would leave nothing of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LossName = Literal["squared", "cross-entropy", "logistic"]
ROUNDING = 1e4  # of ε: by how much a point of a conjugate's domain may miss it


@dataclass(frozen=True)
class SquaredError:
    """½‖f − y‖².  What the methods of all losses mean is said here; `smoothness` bounds the second derivatives in f."""

    smoothness: float = 1.0

    def value(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        """Σ_n ℓ(f_n, y_n)."""
        return (f - y).square().sum() / 2

    def gradient(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The derivative of ℓ with respect to each output."""
        return f - y

    def curvature(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"], d: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The derivative of the gradient in the direction d: ∇²ℓ(f_n, y_n) d_n."""
        return d

    def conjugate(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        """Σ_n ℓ*(z_n) with ℓ*(z) = sup_f ⟨z, f⟩ − ℓ(f, y), `inf` outside its domain; finite at s·gradient for 0 ≤ s ≤ 1."""
        return (z * y).sum() + z.square().sum() / 2

    def multiple(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> float:
        """An s at which −Σ_n ℓ*(s z_n) is largest, or large, for a gradient z; every smaller multiple stays in the domain."""
        linear, square = -float((z * y).sum()), float(z.square().sum())
        return max(linear / square, 0.0) if square else 0.0

    def validate(self, y: Float[Tensor, "N K"]) -> None:
        """Raise `ValueError` where y are no targets of this loss; here any numbers are."""


@dataclass(frozen=True)
class CrossEntropy:
    r"""−Σ_k y_k log softmax(f)_k, each row of y a distribution over the K classes.

    A row may sum to S = 1 up to rounding: ℓ(f, y) = S log Σ_k e^{f_k} − ⟨y, f⟩ for every S.
    """

    smoothness: float = 0.5 * (1 + 1e-5)  # S(diag(q) − q qᵀ) ⪯ ½S·I for a distribution q, and `validate` lets S be 1 ± 1e-5

    def value(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        below, _, rest = _below_largest(f)
        return (y * below).sum() + (y.sum(1) * torch.log1p(rest)).sum()

    def gradient(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        q, others = _probabilities(f)
        return q * (y.sum(1, keepdim=True) - y) - y * others

    def curvature(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"], d: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        q, _ = _probabilities(f)
        return y.sum(1, keepdim=True) * q * (d - (q * d).sum(1, keepdim=True))

    def conjugate(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        """Σ_k q_k log(q_k/S) for q = z + y ≥ 0 with the sum S of y: the largest q_k is S less the others."""
        q, total = z + y, y.sum(1)
        allowed = ROUNDING * torch.finfo(z.dtype).eps
        if bool((q < -allowed).any()) or bool((z.sum(1).abs() > allowed).any()):
            return z.new_tensor(torch.inf)
        q = q.clamp(min=0)
        others = torch.where(_largest(q), 0.0, q)
        missing = (others.sum(1) / total).clamp(max=1)
        return torch.special.xlogy(others, others / total[:, None]).sum() + (total * torch.special.xlog1py(1 - missing, -missing)).sum()

    def multiple(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> float:
        return 1.0

    def validate(self, y: Float[Tensor, "N K"]) -> None:
        sums = y.sum(1)
        if y.shape[1] < 2 or bool((y < 0).any()) or bool(((sums - 1).abs() > 1e-5).any()):
            raise ValueError(
                "y: cross-entropy expects distributions over at least 2 classes, rows ≥ 0 that sum to 1, "
                f"got {y.shape[1]} columns, entries from {float(y.min()):.3g}, sums {float(sums.min()):.3g} to {float(sums.max()):.3g}; "
                "for integer labels use torch.nn.functional.one_hot(labels).to(x.dtype)"
            )


@dataclass(frozen=True)
class Logistic:
    r"""Σ_k log(1 + e^{f_k}) − y_k f_k, each y_k in [0, 1] the probability of an answer of its own."""

    smoothness: float = 0.25

    def value(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        log_sigmoid = torch.nn.functional.logsigmoid
        return -(y * log_sigmoid(f) + (1 - y) * log_sigmoid(-f)).sum()

    def gradient(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return (1 - y) * torch.sigmoid(f) - y * torch.sigmoid(-f)

    def curvature(self, f: Float[Tensor, "N K"], y: Float[Tensor, "N K"], d: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return torch.sigmoid(f) * torch.sigmoid(-f) * d

    def conjugate(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
        """q log q + (1 − q) log(1 − q) for q = z + y in [0, 1], from the smaller of the two probabilities."""
        smaller = torch.minimum(z + y, (1 - y) - z)
        if bool((smaller < -ROUNDING * torch.finfo(z.dtype).eps).any()):
            return z.new_tensor(torch.inf)
        smaller = smaller.clamp(min=0)
        return (torch.special.xlogy(smaller, smaller) + torch.special.xlog1py(1 - smaller, -smaller)).sum()

    def multiple(self, z: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> float:
        return 1.0

    def validate(self, y: Float[Tensor, "N K"]) -> None:
        if bool((y < 0).any()) or bool((y > 1).any()):
            raise ValueError(f"y: the logistic loss expects probabilities from 0 to 1, got {float(y.min()):.3g} to {float(y.max()):.3g}")


def _largest(f: Float[Tensor, "N K"]) -> Tensor:
    """Where the largest entry of each row stands, one of them if there are several."""
    return torch.arange(f.shape[1], device=f.device) == f.argmax(1, keepdim=True)


def _below_largest(f: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"], Float[Tensor, " N"]]:
    """m − f ≥ 0 for the largest output m of each row, e^{f − m}, and its sum over all but that one."""
    # By index and not by amax, whose derivative is shared among equal outputs: the largest power, 1, belongs to one of them.
    below = f.gather(1, f.argmax(1, keepdim=True)) - f
    powers = torch.exp(-below)
    return below, powers, torch.where(_largest(f), 0.0, powers).sum(1)


def _probabilities(f: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """softmax(f), and 1 − softmax(f) without cancellation."""
    _, powers, rest = _below_largest(f)
    total = 1 + rest[:, None]
    return powers / total, torch.where(_largest(f), rest[:, None], total - powers) / total


Loss = SquaredError | CrossEntropy | Logistic
SQUARED = SquaredError()


def loss_of(name: LossName) -> Loss:
    """The loss of that name; `ValueError` for another.

    >>> loss_of("logistic").value(torch.tensor([[800.0]]), torch.tensor([[0.5]])).item()
    400.0
    """
    losses: dict[str, Loss] = {"squared": SQUARED, "cross-entropy": CrossEntropy(), "logistic": Logistic()}
    if not isinstance(name, str) or name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(map(repr, losses))}, got {name!r}")
    return losses[name]
