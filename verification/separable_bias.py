r"""On separable data gradient descent makes a one-channel convolutional network the separator of least bridge norm of its spectrum.

Let one-channel networks of depth L, with full kernels on D sites, be trained by gradient descent on $\sum_n e^{-y_n f(x_n)}$. Where the
direction of the predictor converges, it does to a first-order point of

$$\min_\beta \|\hat\beta\|_{2/L} \quad\text{subject to}\quad y_n \langle \beta, x_n \rangle \ge 1, \qquad\text{that is}\qquad
|\hat\beta_u|^{2/L - 2}\, \hat\beta_u = \sum_n \alpha_n y_n \hat x_{n,u} \text{ where } \hat\beta_u \ne 0,\ \alpha \ge 0,$$

with $\alpha_n = 0$ for images beyond the margin: the support vector machine at L = 1, the global minimum at L = 2. The approach is
slow. For a single image at depth 2 it is exact: with $|\hat w^1| = |\hat w^2|$ and aligned phases $|\hat\beta_u|$ grows as the power
$|\hat x_u| / \max_v |\hat x_v|$ of the margin. At L ≥ 3 the frequency with the largest $|\hat\beta_u(0)|^{1 - 2/L} |\hat x_u|$ wins, and
it need not be the one of least cost. At L ≤ 2 descent that starts in the direction of the solution leaves it by O(1/margin).

Source: Gunasekar, Lee, Soudry, Srebro, Implicit bias of gradient descent on linear convolutional networks, arXiv 1806.00468; that
margins over $\|w\|^L$ grow: Lyu, Li, arXiv 1906.05890; exponents and the winner are derived here. Dividing the steps by the loss changes
the time only, not the path that small steps follow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Annotated, Any

import cvxpy as cp
import numpy as np
import torch
from annotated_types import Interval, Len
from jaxtyping import Complex, Float
from scipy.optimize import nnls
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, UsageError, agree, at_most, control, exceeds, inconclusive, main, rate
from linconv.spectrum import mirror_index
from linconv.statistics import bootstrap_interval
from verification._networks import one_thread

Array = np.ndarray

FAST = {"grid": (3, 4), "steps": 800, "draws": 5}
EXPONENT: dict[str, Any] = {"tolerance": 0.05, "reason": "a fitted exponent: steps are finite, and the start is not forgotten at once"}
CONIC = "the conic solver's accuracy"
MARGINS = (60, 85, 120, 170, 240, 340)
INVERSE: dict[str, Any] = {"tolerance": 0.25, "reason": "a fitted exponent: slow frequencies and the next order in 1/margin bend the line"}
SLOWER = 0.9  # of the largest |x̂_u|: the exponent 1 is then wrong by twice the tolerance of a fit, or more
STEP = 0.4  # of the inverse of a bound on the curvature of the logarithm of the loss


def claim(
    *,
    images: Annotated[int, Interval(ge=2, le=6), "number of images N"] = 4,
    grid: Annotated[tuple[Annotated[int, Interval(ge=3, le=8)], ...], Len(1, 2), "sites in each dimension, H W"] = (3, 5),
    steps: Annotated[int, Interval(ge=200, le=100_000), "steps of gradient descent in the trend"] = 2000,
    draws: Annotated[int, Interval(ge=5, le=100), "number of random data sets in the trend"] = 6,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of images, labels and weights"] = 0,
) -> Iterator[Check | Note | Progress]:
    sites = math.prod(grid)
    if images >= sites:
        raise UsageError(f"images: expected fewer than the {sites} sites of the grid, got {images}; take fewer images or a larger grid")
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        yield from gradient_check(images, grid, generator)
        yield from one_image_checks(grid, draws, generator)
        yield Progress("descent from solutions")
        for depth in (1, 2):
            yield from solution_checks(depth, separable(images, grid, generator))
        for depth in (2, 3):
            yield Progress(f"descent from random weights, depth {depth}")
            yield from trend_checks(depth, images, grid, steps, draws, generator)


def separable(images: int, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """y_n x_n of Gaussian images with random labels: fewer images than sites are separable."""
    labels = torch.randint(0, 2, (images, 1), generator=generator) * 2 - 1
    return (labels * torch.randn(images, math.prod(grid), generator=generator, dtype=torch.float64)).reshape(images, 1, *grid)


@dataclass(frozen=True)
class Point:
    """Where training is: the margins y_n f(x_n), the transform of the predictor, Σ‖w‖²."""

    margins: Float[Array, " N"]
    spectrum: Complex[Array, " D"]
    squares: float

    @property
    def margin(self) -> float:
        return float(self.margins.min())


def layers(net: lc.LinearCNN) -> Complex[Array, "L D"]:
    """The transforms of the weights, the readout's conjugated, so that their product at u is conj(β̂_u)."""
    rows = [witnesses.dense_fourier(net.grid) @ w.detach().numpy().ravel() for w in net.weights]
    return np.stack([*rows[:-1], rows[-1].conj()])


def others(w: Complex[Array, "L D"]) -> Complex[Array, "L D"]:
    """For each layer the product of all others."""
    return np.stack([np.prod(np.delete(w, i, 0), 0) for i in range(len(w))])


def slopes(w: Complex[Array, "L D"], spectra: Complex[Array, "N D"]) -> Complex[Array, "L D"]:
    """The transforms of the gradients of log Σ exp(−margin) with respect to the weights."""
    margins = (spectra @ np.prod(w, 0)).real / w.shape[1]
    shares = np.exp(margins.min() - margins)
    return -((shares / shares.sum()) @ spectra * others(w)).conj()


def descent(
    w: Complex[Array, "L D"], spectra: Complex[Array, "N D"], step: float, *, fixed: bool = False
) -> Iterator[Complex[Array, "L D"]]:
    """Gradient descent with steps divided by the loss, at the scale of frequencies: the weights before each step, without end.

    Steps are `step` times the inverse of a bound on the curvature, ‖x‖² max_u |product of the other layers|², or `fixed`.
    """
    longest = float((np.abs(spectra) ** 2).sum(1).max()) / w.shape[1]
    while True:
        yield w
        size = step if fixed else step / (longest * float((np.abs(others(w)) ** 2).max()))
        w = w - size * slopes(w, spectra)


def point(w: Complex[Array, "L D"], spectra: Complex[Array, "N D"]) -> Point:
    product = np.prod(w, 0)
    return Point((spectra @ product).real / len(product), product.conj(), float((np.abs(w) ** 2).sum()) / len(product))


def at_steps(walk: Iterator[Complex[Array, "L D"]], spectra: Complex[Array, "N D"], marks: list[int]) -> list[Point]:
    return [point(w, spectra) for i, w in enumerate(islice(walk, max(marks) + 1)) if i in marks]


def gradient_check(images: int, grid: tuple[int, ...], generator: torch.Generator) -> Iterator[Check]:
    """The gradients that descent uses, against automatic differentiation of the network in space."""
    z, net = separable(images, grid, generator), lc.LinearCNN(1, [1, 1], 1, grid, generator=generator)
    in_space = torch.autograd.grad(torch.logsumexp(-net(z).flatten(), 0), net.weights)
    expected = layers(lc.LinearCNN.from_weights(in_space, grid))
    found = slopes(layers(net), transforms(z))
    yield agree("gradients in frequency and of the network in space", found, expected, size=z.numel())
    yield control("gradients: readout not conjugated", agree("", found, np.vstack([expected[:-1], expected[-1:].conj()]), size=z.numel()))


def residual(at: Point, spectra: Complex[Array, "N D"], power: float) -> float:
    """How far from a first-order point of min ‖β̂‖_p the direction is, relative: a non-negative least squares problem in α.

    The condition times |β̂|^{1 − p/2}, |β̂|^{p/2} e^{iφ} = |β̂|^{1 − p/2} Σ α_n y_n x̂_n, also makes sense where β̂_u tends to 0; images
    beyond the margin add α_n (margin_n/margin − 1).
    """
    b = at.spectrum / at.margin
    sizes, phases = np.abs(b), np.exp(1j * np.angle(b))
    slack = np.diag(at.margins / at.margin - 1) * math.sqrt(len(b))
    columns = (spectra * sizes ** (1 - power / 2)).T
    goal = phases * sizes ** (power / 2)
    matrix = np.vstack([columns.real, columns.imag, slack])
    target = np.concatenate([goal.real, goal.imag, np.zeros(len(slack))])
    return float(nnls(matrix, target)[1] / np.linalg.norm(target))


def bridge(spectrum: Complex[Array, " D"], power: float) -> float:
    return float((np.abs(spectrum) ** power).sum() / len(spectrum))


def transforms(z: Tensor) -> Complex[Array, "N D"]:
    return np.asarray(z.flatten(1).numpy() @ witnesses.dense_fourier(tuple(z.shape[2:])).T)


def least_norm(z: Tensor, power: int) -> Float[Array, " D"]:
    """The separator of margin 1 with the least Σ|β̂_u|^p, p = 1 or 2, by a conic solver."""
    beta = cp.Variable(z[0].numel())
    spectrum = witnesses.dense_fourier(tuple(z.shape[2:])) @ beta
    goal = cp.norm1(spectrum) if power == 1 else cp.sum_squares(beta)
    options: dict[str, Any] = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    cp.Problem(cp.Minimize(goal), [z.flatten(1).numpy() @ beta >= 1]).solve(solver=cp.CLARABEL, **options)
    return np.asarray(beta.value)


def balanced(beta: Float[Array, " D"], grid: tuple[int, ...], depth: int) -> lc.LinearCNN:
    """A one-channel network of the given predictor whose layers have the same size at each frequency; those below 1e-5 are 0."""
    spectrum = np.fft.fftn(beta.reshape(grid))
    spectrum = np.where(np.abs(spectrum) > 1e-5 * np.abs(spectrum).max(), spectrum, 0)
    cleaned = torch.from_numpy(np.fft.ifftn(spectrum).real.copy())[None, None]
    return lc.minimal_network(cleaned, depth)


def one_image_checks(grid: tuple[int, ...], draws: int, generator: torch.Generator) -> Iterator[Check]:
    """Each frequency grows by itself: exponents at depth 2, and the frequency that wins at depth 3."""
    yield from exponent_checks(torch.randn(1, 1, *grid, generator=generator, dtype=torch.float64))
    found, expected, by_image = zip(*(winners(grid, generator) for _ in range(draws)), strict=True)
    yield agree("one image, depth 3: the frequency that wins", found, expected, draws=draws)
    yield control("one image, depth 3: the largest frequency of the image wins", agree("", found, by_image))


def exponent_checks(z: Tensor) -> Iterator[Check]:
    """Depth 2, from the direction of the image: the slowest, the median and the fastest of the frequencies that grow more slowly."""
    sizes = np.abs(transforms(z)[0])
    shares = sizes / sizes.max()
    slower = np.flatnonzero(shares < SLOWER)
    if len(slower) == 0:
        why = f"every |x̂_u| is at least {SLOWER} of the largest, too close to tell the exponents from 1: take another seed or a larger grid"
        yield inconclusive("one image, depth 2: |β̂_u| by margin", why)
        return
    net = balanced(z.numpy().ravel() / sizes.max() ** 2, tuple(z.shape[2:]), 2)
    walk = descent(layers(net), transforms(z), 0.02 / float(sizes.max()), fixed=True)
    points = at_steps(walk, transforms(z), list(range(400, 801, 50)))
    margins = [at.margin for at in points]
    for quantile in (0, 0.5, 1):
        where = slower[np.argsort(shares[slower])[round(quantile * (len(slower) - 1))]]
        values = [abs(at.spectrum[where]) for at in points]
        name = f"one image, depth 2: |β̂_u| where |x̂_u| is {shares[where]:.3f} of the largest, by margin"
        yield rate(name, margins, values, float(shares[where]), **EXPONENT)
        if quantile == 0:
            yield control("one image: all frequencies keep their proportions", rate("", margins, values, 1.0, **EXPONENT))


def winners(grid: tuple[int, ...], generator: torch.Generator) -> tuple[int, int, int]:
    """The largest frequency of a trained network of depth 3, of |β̂_u(0)|^{1/3} |x̂_u|, and of the image; u and −u are one."""
    while True:
        z = torch.randn(1, 1, *grid, generator=generator, dtype=torch.float64)
        sizes = torch.from_numpy(np.abs(transforms(z)[0]))
        even = torch.fft.fftn(torch.randn(grid, generator=generator, dtype=torch.float64)).abs().flatten()
        scores = even ** (1 / 3) * sizes
        first, second = scores[scores < 0.9999 * scores.max()].max(), scores.max()
        mirrored = int(sizes.argmax()) != int(scores.argmax()) and not torch.isclose(sizes[scores.argmax()], sizes.max())
        if second > 1.15 * first and mirrored:  # a clear winner, and not the largest frequency of the image
            break
    spectrum = even.reshape(grid) * torch.exp(1j * torch.from_numpy(np.angle(transforms(z)[0])).reshape(grid))
    net = balanced(torch.fft.ifftn(spectrum).real.numpy().ravel(), grid, 3)
    (last,) = at_steps(descent(layers(net), transforms(z), STEP), transforms(z), [1000])
    representative = np.minimum(np.arange(len(sizes)), mirror_index(grid).numpy())
    return tuple(int(representative[int(np.argmax(v))]) for v in (np.abs(last.spectrum), scores.numpy(), sizes.numpy()))  # type: ignore


def solution_checks(depth: int, z: Tensor) -> Iterator[Check]:
    """The separator of least norm is a direction that descent keeps: from margin M on to 2M it leaves it by O(1/M)."""
    grid, spectra = tuple(z.shape[2:]), transforms(z)
    beta = least_norm(z, 2 // depth)
    start = layers(balanced(beta, grid, depth))
    points = []
    for margin in MARGINS:
        walk = descent(margin ** (1 / depth) * start, spectra, STEP)
        points.append(next(at for at in (point(w, spectra) for w in walk) if at.margin >= 2 * margin))
    found, margins = [residual(at, spectra, 2 / depth) for at in points], [at.margin for at in points]
    yield rate(f"depth {depth}, from the solution: residual when the margin has doubled, by margin", margins, found, -1, **INVERSE)
    norms = [bridge(at.spectrum / at.margin, 2 / depth) for at in points]
    least = bridge(witnesses.dense_fourier(grid) @ beta, 2 / depth)
    yield at_most(f"depth {depth}, from the solution: no separator has a smaller Σ|β̂|^p", least, min(norms), tolerance=1e-7, reason=CONIC)
    excess = [norm / least - 1 for norm in norms]
    yield rate(f"depth {depth}, from the solution: relative excess of Σ|β̂|^p at margin 1, by margin", margins, excess, -1, **INVERSE)
    other = [residual(at, spectra, 2 / (3 - depth)) for at in points]
    yield control(f"depth {depth}: the condition of depth {3 - depth}", rate("", margins, other, -1, **INVERSE))


def trend_checks(
    depth: int, images: int, grid: tuple[int, ...], steps: int, draws: int, generator: torch.Generator
) -> Iterator[Check | Note]:
    """From random weights: margins over ‖w‖^L grow, and residuals fall, over draws of data."""
    early, ends, worse = [], [], []
    marks = np.unique(np.geomspace(max(steps // 32, 20), steps, 8).astype(int)).tolist()
    for _ in range(draws):
        z = separable(images, grid, generator)
        net = lc.LinearCNN(1, [1] * (depth - 1), 1, grid, generator=generator)
        spectra = transforms(z)
        points = at_steps(descent(layers(net), spectra, STEP / 4), spectra, marks)
        smoothed = [-float(np.logaddexp.reduce(-at.margins)) / (at.squares / depth) ** (depth / 2) for at in points]
        worse.append(max((a - b for a, b in pairwise(smoothed) if a > 0), default=0.0) / abs(smoothed[-1]))
        early.append(residual(points[0], spectra, 2 / depth))
        ends.append(residual(points[-1], spectra, 2 / depth))
    yield at_most(f"depth {depth}: −log(loss)/‖w‖^L never falls once the loss is below 1", worse, 0.0, scale=1.0, draws=draws)
    gains = torch.tensor(early).log() - torch.tensor(ends).log()
    interval = bootstrap_interval(gains, generator=generator)
    yield exceeds(f"depth {depth}: logarithm of the residual lost from step {marks[0]} to {steps}", interval, 0, draws=draws)
    yield control(f"depth {depth}: residuals grow", exceeds("", bootstrap_interval(-gains, generator=generator), 0))
    yield Note(f"depth {depth}: median residual {np.median(early):.2g} at step {marks[0]}, {np.median(ends):.2g} at step {steps}")


if __name__ == "__main__":
    main(claim)
