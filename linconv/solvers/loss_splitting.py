r"""A loss other than squared error with a weighted nuclear norm at some frequencies, by Douglas–Rachford splitting.

    min_{B, f} (1/N) Σ_n ℓ(f_n, y_n) + Σ_u μ_u ‖B_u‖_*    subject to    f_n = Σ_u B_u x̂_{n,u}

The outputs are variables of their own: the loss then falls apart into one small problem an image, the norm into one a block, and
what couples them is the projection on a subspace, a linear system factored once (as in Parikh and Boyd 2014, graph form).
Nearness is measured by R_u at each frequency, as `linconv.solvers.splitting` does, and by s_n at each image, which follows the
curvature of its loss: sure answers are freer to move than doubtful ones.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.losses import CrossEntropy, Loss
from linconv.solvers.splitting import NUCLEAR, RELAXATION, UNBALANCED, Anderson, Splitting, inverse, to_complex, to_real

NEWTON_STEPS = 60
HALVINGS = 30
ACCURACY = 1e-13  # of a proximal map, relative to the terms of its equation: some hundred roundings of them
ROUNDING = 32 * 2.0**-52  # of a gradient relative to y(1 − y), and to p(1 − p) times the outputs: where they cancel no step helps
FLATTEST = 1e-12  # curvature below which answers count as equally sure; probabilities near 1 tell no more


class LossSplitting(Splitting):
    """The iteration for a loss with bounded curvature, in the place of `Splitting` and with the same arguments after `loss`."""

    def __init__(
        self,
        loss: Loss,
        x: Float[Tensor, "N m"],
        y: Float[Tensor, "N K"],
        mu: Float[Tensor, " w"],
        blocks: Complex[Tensor, "w K C"],
        pulled: Complex[Tensor, "w K C"],
    ):
        self.loss = loss
        self.outputs = x @ to_real(blocks)
        self.slope = loss.gradient(self.outputs, y)
        super().__init__(x, y, mu, blocks, pulled)

    def _curvature(self) -> Float[Tensor, "N 1"]:
        """s_n, half-way on a logarithmic scale from the geometric mean to the mean second derivative of the loss of each image.

        The second derivatives alone are too uneven for a metric: they are estimates, and near 0 where an answer is sure.
        """
        p, total = _probabilities(self.loss, self.slope, self.y)
        mean = (p * (1 - p / total)).mean(1, keepdim=True).clamp(min=FLATTEST)
        return (mean * mean.log().mean().exp()).sqrt()

    def _factor(self) -> None:
        """All that depends on the metric, in coordinates √R B and √(s/N) f in which it is the identity."""
        n, root = len(self.x), self.metric.sqrt()
        self.steepness = self._curvature()
        self.scale = (self.steepness / n).sqrt()
        self.root, self.threshold = root[:, None, None], self.mu / root
        self.columns = self.scale * self.x / root.repeat(2 * self.channels)
        small = self.columns.T @ self.columns if self.tall else self.columns @ self.columns.T
        small.diagonal().add_(1.0)
        self.inverse = inverse(small)
        inside = to_real(self.root * self.blocks + self.dual / self.root)
        self.point = torch.cat([inside, self.scale * (self.outputs + self.slope / self.steepness)])
        self.anderson = Anderson()

    def rebalance(self) -> None:
        """A new metric, where it would differ from that in use by much at the frequencies or at the images."""
        metric, steepness = self._balanced(), self._curvature()
        changes = [float((new / old).log().abs().mean()) for new, old in ((metric, self.metric), (steepness, self.steepness))]
        if max(changes) > math.log(UNBALANCED):
            self.metric = metric
            self._factor()

    def advance(self, steps: int) -> None:
        """That many steps, after which `blocks` and `outputs` are the last results of the two proximal maps."""
        for _ in range(steps):
            inside, above = self.point.split([self.columns.shape[1], len(self.x)])
            cut = to_complex(inside, self.channels)
            shrunk = NUCLEAR.prox(cut, self.threshold)
            self.outputs, self.slope = proximal(self.loss, above / self.scale, self.y, self.steepness, self.outputs)
            z = torch.cat([to_real(shrunk), self.scale * self.outputs])
            self.point = self.anderson(self.point, RELAXATION * (self._projected(2 * z - self.point) - z))
        self.blocks, self.dual = shrunk / self.root, (cut - shrunk) * self.root

    def _projected(self, point: Float[Tensor, "m_and_N K"]) -> Float[Tensor, "m_and_N K"]:
        """The nearest blocks and outputs that belong together."""
        inside, above = point.split([self.columns.shape[1], len(self.x)])
        if self.tall:
            inside = self.inverse @ (inside + self.columns.T @ above)
            return torch.cat([inside, self.columns @ inside])
        off = self.inverse @ (above - self.columns @ inside)
        return torch.cat([inside + self.columns.T @ off, above - off])

    def residuals(self) -> list[Float[Tensor, "N K"]]:
        """Candidates for a dual point, minus gradients of the loss: at the outputs of `blocks`, and at `outputs`."""
        return [-self.loss.gradient(self.x @ to_real(self.blocks), self.y), -self.slope]

    def gaps(self) -> list[float]:
        """The duality gap of the problem on these frequencies by each of the `residuals`."""
        data = float(self.loss.value(self.x @ to_real(self.blocks), self.y)) / len(self.y)
        value = data + float(self.mu @ torch.linalg.svdvals(self.blocks).sum(-1))
        return [value - self._dual_value(residual) for residual in self.residuals()]

    def _dual_value(self, residual: Float[Tensor, "N K"]) -> float:
        norms = torch.linalg.matrix_norm(to_complex(self.x.T @ residual / len(residual), self.channels), ord=2)
        multiple = min(self.loss.multiple(-residual, self.y), float((self.mu / norms).min()))
        return -float(self.loss.conjugate(-multiple * residual, self.y)) / len(residual)


def proximal(
    loss: Loss, v: Float[Tensor, "N K"], y: Float[Tensor, "N K"], s: Float[Tensor, "N 1"], start: Float[Tensor, "N K"]
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """The minimisers f_n of ℓ(f, y_n) + (s_n/2)‖f − v_n‖² and the gradients of ℓ there, from `start`.

    Newton's method for each image.  The norm of the gradient falls along its steps at the rate at which it is taken, so that
    steps are halved until it does: that converges from everywhere, if slowly from where the loss is flat to rounding.
    """

    def equation(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = loss.gradient(f, y)
        left = slope + s * (f - v)
        return slope, left, torch.linalg.vector_norm(left, dim=1, keepdim=True)

    f = start
    slope, left, size = equation(f)
    open_, again = torch.ones_like(size, dtype=torch.bool), torch.zeros_like(size, dtype=torch.bool)
    for _ in range(NEWTON_STEPS):
        open_ = open_ & (size > _tolerance(loss, slope, y, s, f, v))
        if not bool(open_.any()):
            break
        step, length = _solve_shifted(loss, slope, y, s, -left), open_.to(f.dtype)
        for _ in range(HALVINGS):
            slope, left, tried = equation(f + length * step)
            worse = open_ & (tried > (1 - length / 4) * size)
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        f, size = f + length * step, tried
        if bool(worse.any()):  # far from the solution, where the loss has no curvature left: once more from 0, where it has most
            open_, f, again = open_ & ~(worse & again), torch.where(worse & ~again, 0.0, f), again | worse
            slope, left, size = equation(f)
    return f, slope


def _tolerance(
    loss: Loss,
    slope: Float[Tensor, "N K"],
    y: Float[Tensor, "N K"],
    s: Float[Tensor, "N 1"],
    f: Float[Tensor, "N K"],
    v: Float[Tensor, "N K"],
) -> Float[Tensor, "N 1"]:
    """How far from 0 the equation of `proximal` may be: a small part of its terms, and their rounding."""
    p, total = _probabilities(loss, slope, y)
    terms = torch.linalg.vector_norm(torch.cat([slope, s * f, s * v], 1), dim=1, keepdim=True)
    bent = torch.linalg.vector_norm(p * (1 - p / total), dim=1, keepdim=True) * f.abs().amax(1, keepdim=True)
    return ACCURACY * terms + ROUNDING * (torch.linalg.vector_norm(y * (1 - y).clamp(min=0), dim=1, keepdim=True) + bent)


def _probabilities(loss: Loss, slope: Float[Tensor, "N K"], y: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N 1"]]:
    """What the outputs predict, and what a prediction is a part of: the sum of the targets for cross-entropy, 1 for the logistic loss."""
    total = y.sum(1, keepdim=True) if isinstance(loss, CrossEntropy) else torch.ones_like(y[:, :1])
    return (slope + y).clamp(min=0).minimum(total), total


def _solve_shifted(
    loss: Loss, slope: Float[Tensor, "N K"], y: Float[Tensor, "N K"], s: Float[Tensor, "N 1"], right: Float[Tensor, "N K"]
) -> Float[Tensor, "N K"]:
    """(∇²ℓ + s)⁻¹ right: for cross-entropy a diagonal matrix less one of rank one, diag(p) − p pᵀ/S."""
    p, total = _probabilities(loss, slope, y)
    if not isinstance(loss, CrossEntropy):
        return right / (p * (1 - p) + s)
    part = p / (p + s)
    # Of Sherman and Morrison's denominator, 1 − Σ (p/S) p/(p + s) = Σ (p/S) s/(p + s): without cancellation for small s.
    remaining = (p / total * (s / (p + s))).sum(1, keepdim=True)
    return right / (p + s) + part * ((part * right).sum(1, keepdim=True) / (total * remaining))
