r"""Gradient flow conserves the difference between the Gram matrices of neighbouring layers, at every frequency where kernels are full.

Let $W^l_u$ be the transform of layer l, the readout's conjugated, and
$\Delta^l_u = W^{l+1 *}_u W^{l+1}_u - W^l_u W^{l *}_u$. Along the flow $\dot w = -\nabla F$ of any
loss of the outputs plus $\lambda \sum \|w\|^2$

$$\frac{d}{dt}\, \Delta^l_u = -4\lambda\, \Delta^l_u, \qquad \Delta^l_u(t) = e^{-4\lambda t}\, \Delta^l_u(0)$$

for every u where layers l and l + 1 have full kernels. Where one of them has fewer taps only the sum over frequencies obeys it, that
is the matrix $\langle w^{l+1}_{\cdot i}, w^{l+1}_{\cdot j} \rangle - \langle w^l_{i \cdot}, w^l_{j \cdot} \rangle$ in space. A step of
gradient descent, $w^+ = w - \eta \nabla F$ with G the transform of the gradient of the loss alone, obeys the exact identity
$\Delta^+ = (1 - 2\eta\lambda)^2 \Delta + \eta^2 (G^{l+1 *} G^{l+1} - G^l G^{l *})$: over a fixed time the error falls as η.

Channel by channel the law holds of far more networks (Du, Hu, Lee): where convolutions and dense layers, with any kernels, groups,
strides, padding and with biases, follow each other with nothing between them but what commutes with a positive factor on a channel (ReLU,
pooling, flattening), $\delta = \|\text{outgoing weights}\|^2 - \|\text{incoming weights and bias}\|^2$ of each channel obeys
$\dot\delta = -4\lambda\delta$. Of a given network outside the hypotheses above this is what is checked.

Proof. In the loss' first-order change both $W^{l+1 *} G^{l+1}$ and $G^l W^{l *}$ are the derivative along a change of basis of the
channels between the layers, at each frequency if all such changes are allowed, for constant ones if kernels are restricted.

Source: Du, Hu, Lee, arXiv 1806.00900; Arora, Cohen, Hazan, arXiv 1802.06509, for fully connected networks; the rest derived here.
"""

import copy
import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, TypeAlias

import torch
from annotated_types import Interval, Len
from jaxtyping import Complex, Float
from torch import Tensor, nn

import linconv as lc
from linconv.claims import Check, Note, Progress, agree, control, main, predicted_failure, rate
from linconv.losses import loss_of
from linconv.torch_import import leaves
from verification._given import Given, InputShape, ModulePath, Net, none_known, on_given_network
from verification._networks import one_thread

FAST = {"grid": (3, 4), "steps": 20}
FIRST_ORDER: dict[str, Any] = {"tolerance": 0.05, "reason": "a fitted exponent: terms of second order in the step bend the line by less"}
FINER = (1, 2, 3, 4, 6, 8)  # into how many parts the largest step is divided
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, *POOLS, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
SHARE = 0.005  # of its norm that a layer moves in the first of the largest steps


def claim(
    *,
    depth: Annotated[int, Interval(ge=2, le=6), "number of layers L, the readout counted"] = 3,
    channels: Annotated[int, Interval(ge=1, le=4), "input channels C"] = 2,
    hidden: Annotated[int, Interval(ge=2, le=4), "width of every hidden layer"] = 3,
    outputs: Annotated[int, Interval(ge=2, le=4), "outputs K, classes of the cross-entropy"] = 2,
    grid: Annotated[tuple[Annotated[int, Interval(ge=3, le=8)], ...], Len(1, 3), "sites in each dimension, H W"] = (4, 5),
    weight_decay: Annotated[float, Interval(ge=0.01, le=0.2), "weight decay λ"] = 0.05,
    steps: Annotated[int, Interval(ge=10, le=1000), "steps of gradient descent at the largest step size"] = 40,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of weights, images and targets"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Net = None,
) -> Iterator[Check | Note | Progress]:
    if net is not None or module:
        yield from on_given_network(
            partial(on_network, weight_decay=weight_decay),
            net,
            module,
            input_shape,
            torch.Generator().manual_seed(seed),
            needs=("dense", "own weights", "within the grid", "free readout"),
            least_depth=2,
            nearest=partial(channel_by_channel, weight_decay=weight_decay),
        )
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, channels, *grid, generator=generator, dtype=torch.float64)
    noise = torch.randn(12, outputs, generator=generator, dtype=torch.float64)
    for loss, y in (("squared", noise), ("cross-entropy", noise.softmax(1))):
        for kernel in (None, 2):
            net = lc.LinearCNN(channels, [hidden] * (depth - 1), outputs, grid, kernel_size=kernel, generator=generator, scale=0.8)
            problem = Problem(x, y, loss, weight_decay)
            label = f"{loss}, {'full kernels' if kernel is None else '2 taps a side'}"
            with one_thread():
                yield from derivative_checks(label, net, problem, problem.gradients(net), kernel is None)
                if kernel is not None:
                    yield from restricted_checks(label, net, problem)
                if loss == "squared":
                    yield Progress(f"gradient descent, {label}")
                    yield from descent_checks(label, net, problem, steps)


class Problem:
    """Images, targets and a loss; the gradient of the objective or of the loss alone by automatic differentiation in space."""

    def __init__(self, x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], loss: Any, weight_decay: float) -> None:
        self.x, self.y, self.loss, self.weight_decay = x, y, loss_of(loss), weight_decay

    def gradients(self, net: lc.LinearCNN) -> list[Tensor]:
        value = self.loss.value(net(self.x), self.y) / len(self.x)
        return list(torch.autograd.grad(value, net.weights))

    def descend(self, net: lc.LinearCNN, step_size: float, steps: int) -> lc.LinearCNN:
        """`steps` steps of gradient descent on the loss plus weight decay, from a copy."""
        moving = lc.LinearCNN.from_weights([w.detach() for w in net.weights], net.grid)
        for _ in range(steps):
            slopes = self.gradients(moving)
            with torch.no_grad():
                for w, slope in zip(moving.weights, slopes, strict=True):
                    w.sub_(step_size * (slope + 2 * self.weight_decay * w))
        return moving


def transforms(weights: list[Tensor], grid: tuple[int, ...]) -> list[Complex[Tensor, "D rows columns"]]:
    """The blocks of each layer, one row a frequency, the readout's conjugated."""
    blocks = [lc.conv_blocks(w.detach(), grid).values.flatten(0, -3) for w in weights]
    return [*blocks[:-1], blocks[-1].conj()]


def commutators(lower: list[Tensor], upper: list[Tensor], full: bool) -> Tensor:
    """Σ over pairs (A, B) of B^{l+1}* A^{l+1} − A^l B^l*, flattened over layers and, for full kernels, frequencies; else their mean."""
    parts = [b.mH @ a - c @ d.mH for (c, a), (d, b) in zip(pairwise(lower), pairwise(upper), strict=True)]
    return torch.stack([part if full else part.mean(0, keepdim=True) for part in parts])


def difference(net: lc.LinearCNN, full: bool) -> Tensor:
    """Δ, for full kernels at every frequency; otherwise its mean over frequencies, which is the matrix in space."""
    blocks = transforms(list(net.weights), net.grid)
    return commutators(blocks, blocks, full)


def derivative(net: lc.LinearCNN, gradients: list[Tensor], full: bool, decay: float) -> tuple[Tensor, float]:
    """dΔ/dt along the flow of these gradients and weight decay, and the size of the terms that cancel in it."""
    blocks, slopes = transforms(list(net.weights), net.grid), transforms(gradients, net.grid)
    velocity = [-(g + 2 * decay * w) for g, w in zip(slopes, blocks, strict=True)]
    half = commutators(velocity, blocks, full)
    terms = max(float((b.mH @ a).abs().max()) for a, b in zip(velocity[1:], blocks[1:], strict=True))
    return half + half.mH, terms


def derivative_checks(label: str, net: lc.LinearCNN, problem: Problem, gradients: list[Tensor], full: bool) -> Iterator[Check]:
    """One evaluation of the gradient decides: nothing is integrated."""
    decay, where = problem.weight_decay, "at each frequency" if full else "summed over frequencies"
    rates, terms = derivative(net, gradients, full, decay)
    exact: dict[str, Any] = {"scale": terms, "size": len(problem.x) * problem.x[0].numel()}
    before = difference(net, full)
    yield agree(f"{label}: dΔ/dt = −4λΔ {where}", rates, -4 * decay * before, **exact)
    alone, _ = derivative(net, gradients, full, 0.0)
    yield agree(f"{label}: without weight decay dΔ/dt = 0 {where}", alone, torch.zeros_like(alone), **exact)
    if 2 * decay * float(before.abs().max()) > 1e-6 * terms:  # not of a balanced network
        yield control(f"{label}: dΔ/dt = −2λΔ", agree("", rates, -2 * decay * before, **exact))
    still = [torch.zeros_like(g) for g in gradients[:-1]]
    moved, _ = derivative(net, [*still, gradients[-1]], full, 0.0)
    yield control(f"{label}: dΔ/dt = 0 where the readout alone moves", agree("", moved, torch.zeros_like(moved), **exact))
    if full and max(net.grid) > 2:
        blocks, slopes = transforms(list(net.weights), net.grid), transforms(gradients, net.grid)
        for part in (blocks, slopes):
            part[-1] = part[-1].conj()
        wrong = commutators(slopes, blocks, full)
        if float((wrong + wrong.mH).abs().max()) > 1e-6 * terms:  # kernels that are symmetric have real transforms
            yield control(f"{label}: readout not conjugated", agree("", wrong + wrong.mH, torch.zeros_like(wrong), **exact))


def restricted_checks(label: str, net: lc.LinearCNN, problem: Problem) -> Iterator[Check]:
    """At single frequencies the law fails; the sum over them is the matrix in space."""
    decay = problem.weight_decay
    each, terms = derivative(net, problem.gradients(net), True, decay)
    exact: dict[str, Any] = {"scale": terms, "size": len(problem.x) * problem.x[0].numel()}
    yield predicted_failure(f"{label}: dΔ/dt = −4λΔ at each frequency", agree("", each, -4 * decay * difference(net, True), **exact))
    first, second = net.weights[0].detach(), net.weights[1].detach()
    space = torch.einsum("oi...,oj...->ij", second, second) - torch.einsum("ic...,jc...->ij", first, first)
    yield agree(f"{label}: the mean of Δ over frequencies is the matrix in space", difference(net, False)[0, 0].real, space)


def on_network(given: Given, *, weight_decay: float) -> Iterator[Check]:
    """At the given weights, along the flow of the module's own parameters; per frequency where all its kernels are full."""
    for loss, problem in problems(given, given.net.weights[-1].shape[0], weight_decay):
        with one_thread():
            yield from derivative_checks(loss, given.net, problem, own_gradients(given, problem), not given.lacks("full kernel"))


def problems(given: Given, outputs: int, weight_decay: float) -> Iterator[tuple[str, Problem]]:
    x = torch.randn(12, *given.input_shape, generator=given.generator, dtype=torch.float64)
    noise = torch.randn(12, outputs, generator=given.generator, dtype=torch.float64)
    for loss, y in (("squared", noise), ("cross-entropy", noise.softmax(1))):
        if outputs > 1 or loss == "squared":  # the cross-entropy of one class is constant
            yield loss, Problem(x, y, loss, weight_decay)


def channel_by_channel(given: Given, *, weight_decay: float) -> Iterator[Check | Note | Progress]:
    """The nearest form: δ of each channel between two layers of weights, along the flow of the module's own parameters."""
    joints = list(neighbours(given.module))
    try:
        with torch.no_grad():
            shape = given.module(torch.zeros(1, *given.input_shape, dtype=torch.float64)).shape
    except (RuntimeError, ValueError):
        shape = torch.Size()
    if not joints or given.lacks("own weights") or given.lacks("as its class") or len(shape) != 2:
        yield from none_known(given)
        return
    for loss, problem in problems(given, shape[1], weight_decay):
        value = problem.loss.value(given.module(problem.x), problem.y) / len(problem.x)
        parameters: list[Tensor] = list(given.module.parameters())
        slopes = torch.autograd.grad(value, parameters)
        squares = {w: w.detach() ** 2 for w in parameters}
        falls = {w: 2 * w.detach() * (g + 2 * weight_decay * w.detach()) for w, g in zip(parameters, slopes, strict=True)}
        fall, delta = (torch.cat([outgoing(b, a, of) - incoming(a, of) for a, b in joints]) for of in (falls, squares))
        terms = max(float(incoming(a, {w: f.abs() for w, f in falls.items()}).max()) for a, _ in joints)
        name = f"{loss}: nearest form, channel by channel: dδ/dt = −4λδ"
        yield agree(name, -fall, -4 * weight_decay * delta, scale=terms, size=problem.x.numel())


def own_gradients(given: Given, problem: Problem) -> list[Tensor]:
    """The gradient in the module's own parameters, read as weights are read: the import is linear in them, layer by layer."""
    value = problem.loss.value(given.module(problem.x), problem.y) / len(problem.x)
    slopes = torch.autograd.grad(value, list(given.module.parameters()))
    moving = copy.deepcopy(given.module)
    with torch.no_grad():
        for parameter, slope in zip(moving.parameters(), slopes, strict=True):
            parameter.copy_(slope)
    return list((moving if isinstance(moving, lc.LinearCNN) else lc.from_torch(moving, given.input_shape)).weights)


def neighbours(module: nn.Module) -> Iterator[tuple[Layer, Layer]]:
    """Layers of weights that follow each other in a Sequential with nothing between them but what commutes with positive factors."""
    before, flat = None, False
    for _, layer in leaves(module):
        if isinstance(layer, Layer) and {name for name, _ in layer.named_parameters()} in ({"weight"}, {"weight", "bias"}):
            if before is not None and flat == isinstance(layer, nn.Linear):
                yield before, layer
            before, flat = layer, isinstance(layer, nn.Linear)
        elif isinstance(layer, nn.Flatten):
            flat = layer.start_dim == 1 and layer.end_dim == -1
        elif not isinstance(layer, HOMOGENEOUS):
            before = None


def incoming(layer: Layer, of: dict[Tensor, Tensor]) -> Float[Tensor, " C"]:
    """For each output channel the sum over its weights and its bias."""
    return torch.stack([of[parameter].reshape(len(parameter), -1).sum(1) for parameter in layer.parameters()]).sum(0)


def outgoing(layer: Layer, before: Layer, of: dict[Tensor, Tensor]) -> Float[Tensor, " C"]:
    """For each channel of the layer before, the sum over the weights that it meets."""
    weight = of[layer.weight]
    if isinstance(layer, nn.Linear):  # behind a flattened image each channel has a block of columns
        return weight.sum(0).reshape(len(before.weight), -1).sum(1)
    return weight.flatten(2).sum(2).reshape(layer.groups, -1, weight.shape[1]).sum(1).flatten()


def descent_checks(label: str, net: lc.LinearCNN, problem: Problem, steps: int) -> Iterator[Check]:
    """One step against the exact identity, and the error after a fixed time as the step becomes smaller."""
    full = all(tuple(w.shape[2:]) == net.grid for w in net.weights)
    before, slopes, decay = difference(net, full), transforms(problem.gradients(net), net.grid), problem.weight_decay
    step = SHARE * float(max(w.detach().norm() / g.norm() for w, g in zip(net.weights, problem.gradients(net), strict=True)))
    after, second = difference(problem.descend(net, step, 1), full), step**2 * commutators(slopes, slopes, full)
    size = len(problem.x) * problem.x[0].numel()
    yield agree(f"{label}: Δ after one step of gradient descent", after, (1 - 2 * step * decay) ** 2 * before + second, size=size)
    yield control(f"{label}: one step without its second-order term", agree("", after, (1 - 2 * step * decay) ** 2 * before, size=size))
    sizes = [step / parts for parts in FINER]
    time = steps * step
    ends = [difference(problem.descend(net, size, steps * parts), full) for parts, size in zip(FINER, sizes, strict=True)]
    errors = [float(torch.linalg.vector_norm(end - math.exp(-4 * decay * time) * before)) for end in ends]
    yield rate(f"{label}: distance of descent from e^{{−4λt}}Δ(0), by step size", sizes, errors, 1, **FIRST_ORDER)
    wrong = [float(torch.linalg.vector_norm(end - math.exp(-2 * decay * time) * before)) for end in ends]
    yield control(f"{label}: e^{{−2λt}}Δ(0), as torch's weight decay of λ would have it", rate("", sizes, wrong, 1, **FIRST_ORDER))
    extrapolated = (FINER[-1] * ends[-1] - FINER[-2] * ends[-2]) / (FINER[-1] - FINER[-2])
    limit: dict[str, Any] = {
        "tolerance": float((ends[-1] - ends[-2]).abs().max() / before.abs().max()),
        "scale": float(before.abs().max()),
        "reason": f"the change from step/{FINER[-2]} to step/{FINER[-1]}",
    }
    yield agree(f"{label}: Δ extrapolated to step size 0", extrapolated, math.exp(-4 * decay * time) * before, **limit)
    half = agree("", extrapolated, math.exp(-2 * decay * time) * before, **limit)
    yield control(f"{label}: Δ extrapolated to step size 0, with e^{{−2λt}}", half)


if __name__ == "__main__":
    main(claim)
