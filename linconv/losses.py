r"""Losses ℓ(f, y) of the outputs of a network, summed over the samples: value, gradient, and the conjugate of lower bounds.

f, y and z are `(N, K)`.  For every z, Σ_n ℓ(f_n, y_n) ≥ ⟨z, f⟩ − Σ_n ℓ*(z_n): a bound for every predictor (Fenchel, Young).
Squared error ½‖f − y‖²; cross-entropy −Σ_k y_k log softmax(f)_k; logistic loss Σ_k log(1 + e^{f_k}) − y_k f_k.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["squared", "cross-entropy", "logistic"]


@dataclass(frozen=True)
class SquaredError:
    """½‖f − y‖².  What the methods of all losses mean is said here; `smoothness` bounds the second derivatives in f."""

    smoothness: float = 1.0

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """Σ_n ℓ(f_n, y_n)."""
        return (f - y).square().sum() / 2

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """The derivative of ℓ with respect to each output."""
        return f - y

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        """Σ_n ℓ*(z_n) with ℓ*(z) = sup_f ⟨z, f⟩ − ℓ(f, y); finite at every multiple s·gradient with 0 ≤ s ≤ 1."""
        return (z * y).sum() + z.square().sum() / 2

    def multiple(self, z: Tensor, y: Tensor) -> float:
        """An s at which −Σ_n ℓ*(s z_n) is largest, or large, for a gradient z; every smaller multiple stays in the domain."""
        linear, square = -float((z * y).sum()), float(z.square().sum())
        return max(linear / square, 0.0) if square else 0.0

    def validate(self, y: Tensor) -> None:
        """Raise `ValueError` where y are no targets of this loss; here any numbers are."""


@dataclass(frozen=True)
class CrossEntropy:
    r"""−Σ_k y_k log softmax(f)_k, each row of y a distribution over the K classes."""

    smoothness: float = 0.5  # diag(q) − q qᵀ ⪯ ½ I for a distribution q

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (y.sum(1) * torch.logsumexp(f, 1)).sum() - (y * f).sum()

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return y.sum(1, keepdim=True) * torch.softmax(f, 1) - y

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        # Infinite unless z + y is a distribution, which rounding may miss by a little below 0.
        q = (z + y).clamp(min=0)
        return torch.special.xlogy(q, q).sum() - torch.special.xlogy(y.sum(1), y.sum(1)).sum()

    def multiple(self, z: Tensor, y: Tensor) -> float:
        return 1.0

    def validate(self, y: Tensor) -> None:
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

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(f, threshold=1e3).sum() - (y * f).sum()

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(f) - y

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        q = (z + y).clamp(min=0, max=1)
        return torch.special.xlogy(q, q).sum() + torch.special.xlog1py(1 - q, -q).sum()

    def multiple(self, z: Tensor, y: Tensor) -> float:
        return 1.0

    def validate(self, y: Tensor) -> None:
        if bool((y < 0).any()) or bool((y > 1).any()):
            raise ValueError(f"y: the logistic loss expects probabilities from 0 to 1, got {float(y.min()):.3g} to {float(y.max()):.3g}")


Loss = SquaredError | CrossEntropy | Logistic
SQUARED = SquaredError()


def loss_of(name: LossName) -> Loss:
    """The loss of that name; `ValueError` for another."""
    losses: dict[str, Loss] = {"squared": SQUARED, "cross-entropy": CrossEntropy(), "logistic": Logistic()}
    if name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(map(repr, losses))}, got {name!r}")
    return losses[name]
