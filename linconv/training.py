r"""Actual gradient descent on torch models: what a weight-decayed network does, beside what theory says it should.

The objective is (1/N) Σ_n ℓ(f(x_n), y_n) + weight_decay · Σ_l ‖w^l‖² with ℓ = ½‖f − y‖² or another loss, that of `linconv.fit`;
torch's own `weight_decay` would be twice ours.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from linconv.losses import LossName, loss_of
from linconv.network import LinearCNN, fold_kernel
from linconv.validation import validate_generator, validate_number, validate_size, validate_tensor

Objective = Callable[[Tensor, Tensor], Tensor]  # of images and targets
StopReason = Literal["converged", "stalled", "steps", "diverged", "stopped"]


@dataclass(frozen=True)
class Trajectory:
    """What a training run did.

    `objectives`: before the first step and after each.  `stop_reason`: "converged" (relative gradient below `tol`),
    "stalled" (L-BFGS finds no decrease beyond rounding, twice), "steps" (all were taken), "diverged" (the objective is
    not finite), "stopped" (`on_step` returned False).  `gradient_norm`: ‖∇F‖·‖w‖/F at the end.  `imbalance`: before and
    after, see `imbalance`; None for modules other than `LinearCNN`.  `weights`: copies by step, where they were asked for.
    """

    objectives: Float[Tensor, " steps"]
    stop_reason: StopReason
    gradient_norm: float
    imbalance: tuple[float, float] | None
    weights: dict[int, list[Tensor]] = field(default_factory=dict)


def objective(
    net: nn.Module, x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], weight_decay: float, loss: LossName = "squared"
) -> Float[Tensor, ""]:
    """(1/N) Σ ℓ(f(x_n), y_n) + weight_decay · Σ‖w‖² over all parameters of the module; ℓ as in `linconv.fit`."""
    return loss_of(loss).value(net(x), y) / len(x) + weight_decay * sum_of_squares(net)


def sum_of_squares(net: nn.Module) -> Float[Tensor, ""]:
    """Σ‖w‖² over all parameters of a module."""
    return torch.stack([w.square().sum() for w in net.parameters()]).sum()


def imbalance(net: LinearCNN) -> float:
    r"""How far neighbouring layers are from balance, relative to Σ‖w‖².

    The largest over l of (1/D) Σ_u ‖W_u^{l+1}* W_u^{l+1} − W_u^l W_u^l*‖, where W^L is the conjugated readout.  Gradient
    flow conserves each difference where all kernels are full (arXiv 1802.06509, 1806.00900), and weight decay drives it to
    0: with decay λ the imbalance is at most (gradient norm)·F/(2λ Σ‖w‖²), the norm relative as in `Trajectory`.  For
    smaller kernels all that holds of the sum over frequencies only, whose norm is then what is measured.
    """
    full = all(tuple(w.shape[2:]) == net.grid for w in net.weights)
    blocks = [_blocks(w.detach(), net.grid) for w in net.weights]
    blocks[-1] = blocks[-1].conj()
    total = float(sum_of_squares(net).detach())
    worst = 0.0
    for lower, upper in pairwise(blocks):
        difference = (upper.mH @ upper - lower @ lower.mH).flatten(0, -3) / math.prod(net.grid)
        if not full:
            difference = difference.sum(0)
        worst = max(worst, float(torch.linalg.matrix_norm(difference).sum()))
    return worst / total if total else 0.0


def _blocks(weight: Tensor, grid: tuple[int, ...]) -> Tensor:
    return torch.fft.fftn(fold_kernel(weight, grid), dim=tuple(range(2, weight.ndim))).movedim((0, 1), (-2, -1))


@torch.enable_grad()
def train(
    net: nn.Module,
    x: Float[Tensor, "N C *grid"],
    y: Float[Tensor, "N K"],
    *,
    weight_decay: float,
    steps: int,
    loss: LossName = "squared",
    step_size: float | None = None,
    momentum: float = 0.0,
    batch_size: int | None = None,
    optimizer: Literal["lbfgs", "sgd"] | torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    tol: float = 1e-10,
    record_every: int | None = None,
    on_step: Callable[[int, float], bool | None] | None = None,
    progress: bool = False,
) -> Trajectory:
    """Train a torch module in place on a loss with weight decay, to convergence or for `steps` steps.

    `x` `(N, C, *grid)`, `y` `(N, K)`, both of the dtype and device of the weights.  `loss`: "squared" (½‖f − y‖²),
    "cross-entropy" (softmax; rows of y are distributions over K classes) or "logistic" (each y_k a probability).

    With `step_size`, gradient descent (with `momentum`, on minibatches of `batch_size` drawn without replacement from
    `generator`); without, L-BFGS with a strong Wolfe line search, a step being up to 20 iterations; any
    `torch.optim.Optimizer` over the module's parameters may be given instead.  Objectives are always those of the full data.
    `record_every` keeps copies of the weights.  `on_step(step, objective)` may return False to stop; an interrupt leaves
    the weights as the last step left them.

    Start from torch's default (`LinearCNN(...)`), from scaled Gaussians (`scale=`), or balanced, from a predictor
    (`minimal_network(predictor, depth)`; with the least-squares predictor this is the balanced spectral start).

    Raises `ValueError` or `TypeError` naming the argument.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = (torch.randn(20, *s, dtype=torch.float64, generator=g) for s in ((1, 4), (2,)))
    >>> run = train(LinearCNN(1, (2,), 2, (4,), generator=g), x, y, weight_decay=0.01, steps=100)
    >>> run.stop_reason in ("converged", "stalled"), bool(run.objectives[-1] < run.objectives[0]), run.imbalance[1] < 1e-6
    (True, True, True)
    """
    _validate(net, x, y, loss)
    decay, steps = validate_number("weight_decay", weight_decay), validate_size("steps", steps)
    rule, batches = _optimizer(net, optimizer, step_size, momentum), _batches(len(x), batch_size, generator)
    record = steps + 1 if record_every is None else validate_size("record_every", record_every)
    before = imbalance(net) if isinstance(net, LinearCNN) else None

    def value(images: Tensor, targets: Tensor) -> Tensor:
        return objective(net, images, targets, decay, loss)

    values: list[float] = []
    kept: dict[int, list[Tensor]] = {}
    reason: StopReason | None = None
    scale = _lbfgs_scale(value, x, y) if isinstance(rule, torch.optim.LBFGS) else 1.0
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("training", total=steps)
        for step in range(1, steps + 1):
            if batch_size is None:
                values.append(_step(rule, value, x, y, scale))
            else:
                values.append(float(value(x, y).detach()))
                rows = next(batches)
                _step(rule, value, x[rows], y[rows], scale)
            if step % record == 0:
                kept[step] = [w.detach().clone() for w in net.parameters()]
            bar.update(task, completed=step, description=f"training, objective {values[-1]:.6g}")
            reason = _reason_to_stop(rule, net, values, scale * tol if batch_size is None else -1.0)
            if on_step is not None and on_step(step, values[-1]) is False:
                reason = "stopped"
            if reason:
                break
    net.zero_grad()
    final = value(x, y)
    values.append(float(final.detach()))
    if not math.isfinite(values[-1]):
        reason = "diverged"
    final.backward()
    balance = None if before is None or not isinstance(net, LinearCNN) else (before, imbalance(net))
    gradient = _relative_gradient(net, values[-1])
    net.zero_grad()
    return Trajectory(torch.tensor(values, dtype=torch.float64), reason or "steps", gradient, balance, kept)


def _lbfgs_scale(value: Objective, x: Tensor, y: Tensor) -> float:
    """torch's L-BFGS drops curvature pairs with s·y ≤ 1e-10, in absolute terms: it then crawls to the end with stale ones.

    Minimising 1e10·F/F(start) instead moves that threshold below rounding.
    """
    with torch.no_grad():
        start = float(value(x, y))
    return 1e10 / start if math.isfinite(start) and start > 0 else 1.0


def _step(rule: torch.optim.Optimizer, value: Objective, x: Tensor, y: Tensor, scale: float) -> float:
    """One step of the optimiser on scale · F, which leaves scale · ∇F in the gradients; returns F before the step."""

    def closure() -> float:
        rule.zero_grad()
        scaled = scale * value(x, y)
        scaled.backward()
        return float(scaled.detach())

    return float(rule.step(closure)) / scale


def _reason_to_stop(rule: torch.optim.Optimizer, net: nn.Module, values: list[float], tol: float) -> StopReason | None:
    if not math.isfinite(values[-1]):
        return "diverged"
    if _relative_gradient(net, values[-1]) <= tol:
        return "converged"
    if isinstance(rule, torch.optim.LBFGS):
        eps = torch.finfo(next(net.parameters()).dtype).eps
        flat = [later >= (1 - eps) * earlier for earlier, later in pairwise(values[-3:])]
        if flat == [True, True]:
            return "stalled"
        if flat and flat[-1]:
            rule.state.clear()  # old curvature pairs can be what blocks the line search: once more without them
    return None


def _relative_gradient(net: nn.Module, value: float) -> float:
    """‖∇F‖·‖w‖/F from the gradients at hand: without units, the relative change of F by a change of the weights as large as they are."""
    squares = sum(float(w.grad.square().sum()) for w in net.parameters() if w.grad is not None)
    norm = math.sqrt(squares * float(sum_of_squares(net).detach()))
    return norm / value if norm else 0.0


def _optimizer(
    net: nn.Module, optimizer: Literal["lbfgs", "sgd"] | torch.optim.Optimizer | None, step_size: float | None, momentum: float
) -> torch.optim.Optimizer:
    if isinstance(optimizer, torch.optim.Optimizer):
        ours = {id(w) for w in net.parameters()}
        if not any(id(w) in ours for group in optimizer.param_groups for w in group["params"]):
            raise ValueError("optimizer: expected one over the parameters of net, got one over others; build it from net.parameters()")
        if step_size is not None:
            raise ValueError("step_size: the given optimizer already has one; pass only one of step_size and optimizer")
        return optimizer
    if optimizer not in (None, "lbfgs", "sgd"):
        raise ValueError(f"optimizer: expected 'lbfgs', 'sgd' or a torch.optim.Optimizer, got {optimizer!r}")
    if optimizer == "sgd" and step_size is None:
        raise ValueError("step_size: optimizer 'sgd' needs one; pass step_size > 0")
    if step_size is None:
        return torch.optim.LBFGS(net.parameters(), history_size=50, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe")
    if optimizer == "lbfgs":
        raise ValueError("step_size: L-BFGS finds its own step; leave step_size out")
    size = validate_number("step_size", step_size, positive=True)
    return torch.optim.SGD(net.parameters(), lr=size, momentum=validate_number("momentum", momentum))


def _batches(samples: int, batch_size: int | None, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Rows of one minibatch after the other, every epoch in a new order; without a batch size, nothing is drawn."""
    if batch_size is None:
        while True:
            yield torch.arange(0)
    size = validate_size("batch_size", batch_size)
    generator = validate_generator(generator)
    while True:
        yield from torch.randperm(samples, generator=generator, device=generator.device).split(min(size, samples))


def _validate(net: nn.Module, x: Tensor, y: Tensor, loss: LossName) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch module, got {type(net).__name__}")
    weights = list(net.parameters())
    if not weights:
        raise ValueError("net: expected parameters to train, the module has none")
    validate_tensor("x", x, ndim=(3, 4, 5), shape="(N, C, *grid)")
    validate_tensor("y", y, ndim=(2,), shape="(N, K)")
    loss_of(loss).validate(y)
    if len(x) != len(y):
        raise ValueError(f"y: expected {len(x)} rows, one an image, got {len(y)}")
    for name, data in (("x", x), ("y", y)):
        if (data.dtype, data.device) != (weights[0].dtype, weights[0].device):
            raise TypeError(
                f"{name}: expected {weights[0].dtype} on {weights[0].device} as the weights have, got {data.dtype} on {data.device}"
            )
    try:
        with torch.no_grad():
            outputs = net(x[:1])
    except RuntimeError as error:
        raise ValueError(f"x: expected images that net accepts, got shape {tuple(x.shape)}: {str(error).splitlines()[0]}") from error
    if outputs.shape != y[:1].shape:
        raise ValueError(f"y: expected {tuple(outputs.shape[1:])} numbers an image as the net computes, got {tuple(y.shape[1:])}")
