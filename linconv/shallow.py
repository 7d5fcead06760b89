r"""One-hidden-layer ReLU networks of finite width, trained by gradient descent: between the lazy and the feature limit.

$$f(x) = \frac1H \sum_{h=1}^H c_h\, \sigma(w_h\cdot x) - \text{the same at the start}, \qquad c_h, w_h \sim \sqrt s\, N(0, I),$$

without biases.  The `scale` s sets the regime (Chizat, Oyallon and Bach, arXiv 1812.07956): a fit moves a neuron by about 1/s of its size.
At s → ∞ and H → ∞ training is kernel regression with Θ of `linconv.kernels`; at s → 0 neurons forget where they began.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.validation import validate_generator, validate_number, validate_size, validate_tensor

BLOWN_UP = 1e6  # times the first loss: descent diverges


class ShallowNetwork(nn.Module):
    """The network above on points `(n, dim)` or images `(n, …)` of `dim` entries, with outputs `(n, K)`; it begins as the function 0.

    Parameters `inner` w `(H, dim)` and `outer` c `(H, K)`; buffers `first_inner`, `first_outer` keep the start.

    >>> net = ShallowNetwork(3, 50, scale=1.0, generator=torch.Generator().manual_seed(0))
    >>> x = torch.eye(3, dtype=torch.float64)
    >>> net(x).flatten().tolist(), descend(net, x, torch.ones(3, 1, dtype=torch.float64)).stop_reason
    ([0.0, 0.0, 0.0], 'converged')
    """

    first_inner: Tensor
    first_outer: Tensor

    def __init__(
        self,
        dim: int,
        width: int,
        outputs: int = 1,
        *,
        scale: float,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        sizes = [validate_size(name, size) for name, size in (("dim", dim), ("width", width), ("outputs", outputs))]
        self.scale, source = validate_number("scale", scale, positive=True), validate_generator(generator)
        drawn = [torch.randn(sizes[1], n, dtype=torch.float64, generator=source) for n in (sizes[0], sizes[2])]
        inner, outer = ((math.sqrt(self.scale) * w).to(dtype) for w in drawn)
        self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)
        self.register_buffer("first_inner", inner.clone())
        self.register_buffer("first_outer", outer.clone())

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n K"]:
        """f(x), `(n, K)`."""
        seen = x.flatten(1)
        now, then = torch.relu(seen @ self.inner.T) @ self.outer, torch.relu(seen @ self.first_inner.T) @ self.first_outer
        return (now - then) / len(self.inner)

    @torch.no_grad()
    def total_variation(self) -> float:
        """(1/H) Σ_h |c_h||w_h| of the trained neurons, the start not subtracted; |c_h| is the 2-norm over outputs."""
        return float((torch.linalg.vector_norm(self.inner, dim=1) * torch.linalg.vector_norm(self.outer, dim=1)).mean())

    @torch.no_grad()
    def tangent_kernel(self, x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """(H/s) Σ ∂f(x)∂f(z) over all weights at the start, of the first output: it tends to `linconv.kernels.tangent_kernel` as H → ∞."""
        w, c = self.first_inner, self.first_outer[:, 0]
        a, b = x @ w.T, z @ w.T
        steps = ((a > 0) * c.square()).to(a.dtype) @ (b > 0).to(a.dtype).T
        both: Tensor = (torch.relu(a) @ torch.relu(b).T + steps * (x @ z.T)) / (len(w) * self.scale)
        return both


@dataclass(frozen=True)
class Descent:
    """What training did: the loss ½ mean ‖f − y‖² at the start and at the end, the steps, and why it stopped."""

    first_loss: float
    loss: float
    steps: int
    stop_reason: Literal["converged", "steps", "diverged"]


@torch.no_grad()
def descend(
    net: ShallowNetwork,
    x: Float[Tensor, "P *shape"],
    y: Float[Tensor, "P K"],
    *,
    tol: float = 1e-8,
    max_steps: int = 100_000,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Descent:
    r"""Train both layers in place by gradient descent on the loss $\frac1{2P}\sum_i\|f(x_i) - y_i\|^2$, until it is `tol` times the first.

    With `weight_decay` λ the objective is the loss + $\frac{\lambda}{2H} \sum_h (|c_h|^2 + |w_h|^2)$, for balanced neurons λ times the
    total variation.  A step is 1/(τ + m + λ): τ is the trace of JᵀJ, J the derivative of the outputs in the weights, and m the mean
    of |residual||x|, which bounds what the curvature of the network adds.  Their sum bounds the Hessian and is computed anew at each
    step, so that descent follows the gradient flow at any scale; with `momentum` β < 1 (heavy ball) a flow with inertia, 1/(1 − β) times as
    fast.  In the lazy limit both end at the same function.  x and y have the dtype and the device of the weights.
    Raises `ValueError` or `TypeError` naming the argument.
    """
    _validate(net, x, y)
    limit, allowed = validate_size("max_steps", max_steps), validate_number("tol", tol, positive=True)
    decay, beta = validate_number("weight_decay", weight_decay), validate_number("momentum", momentum)
    if beta >= 1:
        raise ValueError(f"momentum: expected a number from 0 to below 1, got {beta}; 0.9 is usual")
    seen, count, width = x.flatten(1), len(x), len(net.inner)
    norms = torch.linalg.vector_norm(seen, dim=1)
    w, c = net.inner, net.outer
    velocities = torch.zeros_like(c), torch.zeros_like(w)
    goal = y + torch.relu(seen @ net.first_inner.T) @ net.first_outer / width
    first = float(y.square().sum()) / (2 * count)
    for step in range(limit + 1):
        hidden = torch.relu(seen @ w.T)
        residual = hidden @ c / width - goal
        loss = float(residual.square().sum()) / (2 * count)
        if not loss <= BLOWN_UP * first or loss <= allowed * first or step == limit:
            break
        active = (hidden > 0).to(hidden.dtype)
        linear = (hidden.square().sum() + norms.square() @ (active @ c.square().sum(1))) / (count * width)
        curved = torch.linalg.vector_norm(residual, dim=1) @ norms / count
        rate = 1 / (linear + curved + decay)  # gradients times H: neurons move by amounts that do not depend on the width
        pulls = hidden.T @ residual / count, (active * (residual @ c.T)).T @ seen / count
        for weight, velocity, pull in zip((c, w), velocities, pulls, strict=True):
            velocity.mul_(beta).sub_(rate * (pull + decay * weight))
            weight.add_(velocity)
    reason: Literal["converged", "steps", "diverged"] = "steps"
    if loss <= allowed * first:
        reason = "converged"
    elif not math.isfinite(loss) or loss > first:
        reason = "diverged"
    return Descent(first, loss, step, reason)


def _validate(net: object, x: Tensor, y: Tensor) -> None:
    if not isinstance(net, ShallowNetwork):
        raise TypeError(f"net: expected a ShallowNetwork, got {type(net).__name__}; other modules are trained by linconv.train")
    validate_tensor("x", x)
    validate_tensor("y", y, ndim=(2,), shape="(P, K)")
    dim, outputs = net.inner.shape[1], net.outer.shape[1]
    if x.ndim < 2 or x[0].numel() != dim or y.shape != (len(x), outputs):
        raise ValueError(f"x, y: expected (P, …) of {dim} entries each and (P, {outputs}), got {tuple(x.shape)} and {tuple(y.shape)}")
    for name, data in (("x", x), ("y", y)):
        if (data.dtype, data.device) != (net.inner.dtype, net.inner.device):
            raise TypeError(
                f"{name}: expected {net.inner.dtype} on {net.inner.device} as the weights have, got {data.dtype} on {data.device}"
            )
