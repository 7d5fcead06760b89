r"""From a small start gradient flow learns the components of a linear CNN one after the other, at times that have a formula.

Let images decouple (second moment $s_u I$ at frequency u with the orthonormal DFT, 0 between frequencies) and let $m$ be the singular
values of the least-squares blocks $M_u$. From balanced weights whose blocks are aligned with $M_u$ every singular value t of $V_u$
moves by itself along the flow $\dot w = -\nabla \frac1{2N} \sum_n \|f(x_n) - y_n\|^2$, and the number of sites drops out:

$$\dot t = L\, s_u\, t^{2 - 2/L} (m - t), \qquad\text{at } L = 2:\quad t(\tau) = \frac{m}{1 + (m/t_0 - 1)\, e^{-2 s_u m \tau}},$$

which passes m/2 at $\tau = \int_{t_0}^{m/2} dt / (L s_u t^{2-2/L}(m - t))$, at L = 2 at $\log(m/t_0 - 1) / (2 s_u m)$. As
$t_0 \to 0$ components are learned at every depth in the order of $s_u m$, the covariance of input and output: neither that of the power
nor that of m. From small random weights of one channel at L = 2 the same holds with $t_0 = \frac14 |\hat w^1_u + e^{-i\varphi_u} \hat
w^2_u|^2$, the part of the start that is aligned with the phase $\varphi_u$ of $\hat\beta_u$; the rest decays.

Source: Saxe, McClelland, Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural networks, arXiv
1312.6120, for fully connected networks; Pinson, Lenaerts, Ginis, arXiv 2303.02034, for dominant frequencies in convolutional networks;
derived here for this setting.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval, Len
from jaxtyping import Complex, Float
from scipy.integrate import quad, solve_ivp
from torch import Tensor

import linconv as lc
from linconv.claims import Check, Note, Progress, agree, control, main
from linconv.spectrum import mirror_index
from verification._networks import one_thread

Array = np.ndarray

FAST = {"grid": (3, 4), "steps": 60}
ALIGNED_START = 1e-3  # of the largest singular value at depth 2; its power 2/L at depth L, with weights of the same size
RANDOM_START = 1e-7  # of the size that keeps a layer's outputs near its inputs


def claim(
    *,
    depth: Annotated[int, Interval(ge=3, le=5), "number of layers L; networks of two layers are always tried too"] = 3,
    channels: Annotated[int, Interval(ge=2, le=4), "input channels C"] = 2,
    outputs: Annotated[int, Interval(ge=2, le=4), "outputs K"] = 3,
    grid: Annotated[tuple[Annotated[int, Interval(ge=3, le=6)], ...], Len(2, 2), "sites in each dimension, H W"] = (3, 5),
    steps: Annotated[int, Interval(ge=60, le=2000), "steps of the fourth-order integrator"] = 100,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of spectra, blocks and weights"] = 0,
) -> Iterator[Check | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        for layers in (2, depth):
            yield Progress(f"aligned start, depth {layers}")
            # The plateau before a component is learned lengthens with the depth.
            yield from aligned_checks(layers, channels, outputs, grid, (layers - 1) * steps, generator)
        yield Progress("random start")
        yield from random_checks(grid, steps, generator)


def uniform(grid: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Float[Tensor, "*grid"]:
    """A random even function of frequency, between the two numbers."""
    values = (low + (high - low) * torch.rand(grid, generator=generator, dtype=torch.float64)).flatten()
    return values[torch.minimum(mirror_index(grid), torch.arange(len(values)))].reshape(grid)


def designed(power: Float[Tensor, "*grid"], channels: int) -> Float[Tensor, "N C *grid"]:
    """C·D images whose second moment is s_u I at frequency u and 0 between frequencies: unit images, filtered by √s."""
    grid = tuple(power.shape)
    size = channels * power.numel()
    unit = torch.eye(size, dtype=torch.float64).reshape(size, channels, *grid)
    dims = tuple(range(2, unit.ndim))
    return math.sqrt(size) * torch.fft.ifftn(torch.fft.fftn(unit, dim=dims) * power.sqrt(), dim=dims).real


def flow(net: lc.LinearCNN, x: Tensor, y: Tensor, time: float, steps: int) -> list[Complex[Tensor, "*grid K C"]]:
    """Blocks along the gradient flow of the network in space, at the start and after each step of the Runge–Kutta method."""
    weights = [w.detach().clone() for w in net.weights]
    step = time / steps

    def velocity(at: list[Tensor]) -> list[Tensor]:
        moved = lc.LinearCNN.from_weights(at, net.grid)
        value = (moved(x) - y).square().sum() / (2 * len(x))
        return [-g for g in torch.autograd.grad(value, moved.weights)]

    def ahead(slopes: list[Tensor], by: float) -> list[Tensor]:
        return [w + by * k for w, k in zip(weights, slopes, strict=True)]

    blocks = [lc.frequency_blocks(net).values.detach()]
    for _ in range(steps):
        k1 = velocity(weights)
        k2 = velocity(ahead(k1, step / 2))
        k3 = velocity(ahead(k2, step / 2))
        k4 = velocity(ahead(k3, step))
        weights = [w + step / 6 * (a + 2 * b + 2 * c + d) for w, a, b, c, d in zip(weights, k1, k2, k3, k4, strict=True)]
        blocks.append(lc.frequency_blocks(lc.LinearCNN.from_weights(weights, net.grid)).values.detach())
    return blocks


def sizes_at(times: Float[Array, " n"], depth: int, rate: float, m: float, start: float, *, factor: float = 1.0) -> Float[Array, " n"]:
    """t along ṫ = factor·L s t^{2−2/L}(m − t): the sigmoid at depth 2, else an integration of log t to 1e-12."""
    if depth == 2:
        return np.asarray(m / (1 + (m / start - 1) * np.exp(-2 * factor * rate * m * times)))

    def slope(_: float, log_t: Float[Array, " 1"]) -> Float[Array, " 1"]:
        t = np.exp(log_t)
        return np.asarray(factor * depth * rate * t ** (1 - 2 / depth) * (m - t))

    found = solve_ivp(slope, (0, times[-1]), [math.log(start)], t_eval=times, method="DOP853", rtol=1e-12, atol=1e-12)
    return np.asarray(np.exp(found.y[0]))


def half_time(depth: int, rate: float, m: float, start: float) -> float:
    """∫ dt / (L s t^{2−2/L}(m − t)) from the start to m/2, with t = e^a."""
    value, _ = quad(lambda a: math.exp(a * (2 / depth - 1)) / (depth * rate * (m - math.exp(a))), math.log(start), math.log(m / 2))
    return float(value)


def crossings(times: Float[Array, " n"], sizes: Float[Array, "n j"], m: Float[Array, " j"]) -> Float[Array, " j"]:
    """When each size passes half of its m: between steps log(t/(m − t)) is interpolated, which at depth 2 is a straight line."""
    shares = np.clip(sizes / m, 1e-15, 1 - 1e-12)
    logits = np.log(shares / (1 - shares))
    after = (logits > 0).argmax(0)
    column = np.arange(len(m))
    low, high = logits[after - 1, column], logits[after, column]
    return np.asarray(times[after - 1] + (times[after] - times[after - 1]) * -low / (high - low))


def aligned_checks(
    depth: int, channels: int, outputs: int, grid: tuple[int, ...], steps: int, generator: torch.Generator
) -> Iterator[Check]:
    """Every block along the flow, and when each component is half learned."""
    beta = torch.randn(outputs, channels, *grid, generator=generator, dtype=torch.float64)
    power = uniform(grid, 0.3, 1.7, generator)
    x = designed(power, channels)
    y = x.flatten(1) @ beta.flatten(1).T
    least_squares = lc.FrequencyBlocks.from_predictor(beta).values.flatten(0, len(grid) - 1)
    u, m, vh = (part.numpy() for part in torch.linalg.svd(least_squares, full_matrices=False))
    start = ALIGNED_START ** (2 / depth) * float(m.max())
    small = lc.FrequencyBlocks(torch.from_numpy(start * u @ vh).reshape(*grid, outputs, channels)).predictor()
    rates = np.repeat(power.flatten().numpy(), m.shape[1]).reshape(m.shape)
    time = 1.5 * half_time(depth, *upper_quartile(rates, m), start)
    coarse, fine = (flow(lc.minimal_network(small, depth), x, y, time, n) for n in (steps // 2, steps))
    times = np.linspace(0, time, steps + 1)

    def blocks_at(factor: float) -> Complex[Array, "T D K C"]:
        components = zip(rates.ravel(), m.ravel(), strict=True)
        along = np.stack([sizes_at(times, depth, float(s), float(mi), start, factor=factor) for s, mi in components])
        return np.asarray(np.einsum("uki,uit,uic->tukc", u, along.reshape(*m.shape, -1), vh))

    change = float(max((a - b).abs().max() for a, b in zip(coarse, fine[::2], strict=True)) / m.max())
    accuracy: dict[str, Any] = {"tolerance": max(change, 1e-12), "reason": "what halving the steps of the integrator changed"}
    found = torch.stack(fine).flatten(1, len(grid)).numpy()
    yield agree(f"aligned, depth {depth}: all blocks along the flow", found, blocks_at(1.0), **accuracy)
    for name, factor in (("factor L dropped from the speed", 1 / depth), ("speed of the next depth", (depth + 1) / depth)):
        yield control(f"aligned, depth {depth}: {name}", agree("", found, blocks_at(factor), **accuracy))
    sizes = np.einsum("uki,tukc,uic->tui", u.conj(), found, vh.conj()).real.reshape(len(times), -1)
    learned = np.flatnonzero((sizes[-1] > 0.6 * m.ravel()) & (start < m.ravel() / 4))
    halves = crossings(times, sizes[:, learned], m.ravel()[learned])
    formula = [half_time(depth, float(rates.ravel()[j]), float(m.ravel()[j]), start) for j in learned]
    reading: dict[str, Any] = {"scale": time, "tolerance": 0.1 / steps + change, "reason": "a tenth of a step, for what lies between steps"}
    name = f"aligned, depth {depth}: when {len(learned)} of {m.size} components are half learned"
    yield agree(name, halves, formula, **reading)
    by_size = [half_time(depth, float(rates.mean()), float(m.ravel()[j]), start) for j in learned]
    yield control(f"aligned, depth {depth}: times without the power s", agree("", halves, by_size, **reading))


def upper_quartile(rates: Float[Array, "D r"], m: Float[Array, "D r"]) -> tuple[float, float]:
    """s and m of the component at the upper quartile of s·m: about a quarter of all is half learned by its time."""
    chosen = int(np.argsort((rates * m).ravel())[3 * m.size // 4])
    return float(rates.ravel()[chosen]), float(m.ravel()[chosen])


def random_checks(grid: tuple[int, ...], steps: int, generator: torch.Generator) -> Iterator[Check | Note]:
    """One channel, two layers, small random weights: times by the aligned part of the start, order by s·m."""
    order = ranked(grid, generator)
    power = torch.where(order % 2 == 0, 0.7, 2.0).double()  # so that neither s nor m alone has the order of s·m
    m = 1.5 ** -order.double() / power  # s·m falls by a factor of 1.5 from one frequency to the next
    phases = torch.fft.fftn(torch.randn(grid, generator=generator, dtype=torch.float64))
    least_squares = m * phases / phases.abs()
    x = designed(power, 1)
    y = x.flatten(1) @ torch.fft.ifftn(least_squares).real.reshape(-1, 1)
    net = lc.LinearCNN(1, (1,), 1, grid, generator=generator, scale=RANDOM_START)
    first, second = (torch.fft.fftn(w.detach()[0, 0]) for w in net.weights)
    aligned = (first + (phases / phases.abs()).conj() * second).abs().square() / 4
    half = torch.log(m / aligned - 1) / (2 * power * m)
    keep = torch.unique(torch.minimum(mirror_index(grid), torch.arange(power.numel()))).numpy()
    expected = half.flatten().numpy()[keep]
    time = 1.1 * float(np.sort(expected)[2 * len(keep) // 3])
    blocks = torch.stack(flow(net, x, y, time, 4 * steps)).flatten(1).abs().numpy()[:, keep]
    chosen = np.flatnonzero(expected < time / 1.1 * 1.0001)
    times = np.linspace(0, time, 4 * steps + 1)
    found = crossings(times, blocks[:, chosen], m.flatten().numpy()[keep][chosen])
    accuracy: dict[str, Any] = {
        "tolerance": 1e-3,
        "reason": "the integrator; what the start leaves out is of the order of its square, 1e-14",
    }
    name = f"random start: when {len(chosen)} of {len(keep)} frequencies are half learned"
    yield agree(name, found, expected[chosen], **accuracy)
    yield control("random start: times without the factor 2 of two layers", agree("", found, 2 * expected[chosen], **accuracy))
    ranks = order.flatten().numpy()[keep][chosen]
    yield agree("random start: the order is that of s·m", np.argsort(found).tolist(), np.argsort(ranks).tolist())
    for name, wrong in (("power s", power), ("least-squares size m", m)):
        guess = np.argsort(-wrong.flatten().numpy()[keep][chosen]).tolist()
        yield control(f"random start: the order is that of the {name}", agree("", np.argsort(found).tolist(), guess))


def ranked(grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random order of the pairs ±u."""
    sites = torch.arange(math.prod(grid))
    first = torch.minimum(mirror_index(grid), sites)
    pairs, index = torch.unique(first, return_inverse=True)
    return torch.randperm(len(pairs), generator=generator)[index].reshape(grid)


if __name__ == "__main__":
    main(claim)
