"""Runs for `lazy_feature`: one draw of spherical data in both limits, networks of finite width between them, one draw of images."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.integrate import quad
from torch import Tensor

from linconv import images
from linconv.deformation import sample_displacements, temperature_range, warp
from linconv.sphere import (
    MinimalVariation,
    ShallowNetwork,
    descend,
    expected_kernel_error,
    kernel_regression,
    min_total_variation,
    rotated,
    sphere_data,
    tangent_kernel,
)

ANGLE = 0.1  # of rotations, radians
TESTS = 4000
CROSSINGS = 8  # shifts of the points against their coefficients: the error of a single one is anything from small to huge
SMALL, LARGE = 0.01, 100.0  # scales of images' networks: neurons forget, or hardly move from, where they began
CUTOFF, COOL = 3, 4  # of deformations; the published greatest temperature over this has hardly a fold
SHUFFLES = 50  # of pixels, behind a mean
WIDTH = 512  # of networks on the sphere
MOMENTUM = 0.95


class Limits(NamedTuple):
    """One draw of spherical data at one size: test error and rotation stability of both limits, and the feature limit itself."""

    lazy_error: float
    feature_error: float
    lazy_stability: float
    feature_stability: float
    crossed_error: float
    signs_error: float
    feature: MinimalVariation


def limits(dim: int, size: int, seed: int, tol: float) -> Limits:
    """Both limits on one draw with y = 1; and kernel regression with its coefficients at other points, and of random signs."""
    generator = torch.Generator().manual_seed(seed)
    test, points = sphere_data(TESTS, dim, generator=generator), sphere_data(size, dim, generator=generator)
    y = torch.ones(size, dtype=torch.float64)
    lazy = kernel_regression(points, y)
    feature = min_total_variation(points, y, generator=generator, tol=tol)

    def error(outputs: Tensor) -> float:
        return float((outputs - 1).square().mean())

    signs = 1 - 2 * torch.randint(2, (size,), generator=generator).double()
    kernel = tangent_kernel(test, points)
    crossed = [error(kernel.roll(shift, 1) @ lazy.coefficients) for shift in range(1, CROSSINGS + 1)]

    def stability(f: Any) -> float:
        turned = rotated(test, ANGLE, generator=torch.Generator().manual_seed(seed))
        return float((f(test) - f(turned)).square().mean())

    return Limits(
        error(lazy(test)),
        error(feature(test)),
        stability(lazy),
        stability(feature),
        sum(crossed) / CROSSINGS,
        error(kernel_regression(points, signs)(test)),
        feature,
    )


def curse(dim: int, sizes: tuple[int, ...], seed: int, tests: int) -> Float[Tensor, " sizes"]:
    """The expected error of kernel regression on a field whose covariance is Θ itself, by number of points: no field is drawn."""
    generator = torch.Generator().manual_seed(seed)
    test, points = sphere_data(tests, dim, generator=generator), sphere_data(max(sizes), dim, generator=generator)
    return torch.stack([expected_kernel_error(points[:n], test, covariance=tangent_kernel).mean() for n in sizes])


def kernel_by_quadrature(angle: float) -> float:
    """E σ(w·x)σ(w·z) + cos θ · E σ'σ' for unit vectors at an angle: w in their plane is r(cos φ, sin φ), E r² = 2."""
    bounds = angle - math.pi / 2, math.pi / 2  # where both products are positive
    smooth = quad(lambda phi: 2 * math.cos(phi) * math.cos(phi - angle), *bounds, epsabs=1e-13)[0]
    return float((smooth + math.cos(angle) * (math.pi - angle)) / (2 * math.pi))


class Between(NamedTuple):
    """Networks of finite width on one draw: distances of functions, root mean square over the sphere, and total variations."""

    widths: Float[Tensor, " widths"]  # from regression with the network's own kernel to regression with Θ
    scales: Float[Tensor, " scales"]  # from the trained network to regression with its own kernel
    excess: float  # total variation over the certified minimum, less 1: small scale, no weight decay
    excesses: tuple[float, float]  # the same over the bound for what the network computes on its points: without, and with weight decay
    bound: float  # the certified bound for exactly what that network computes on its points
    total_variation: float
    decayed: tuple[float, float]  # with weight decay: objective, and the certified lower bound of all networks' objectives
    to_feature: tuple[float, float]  # distance to the feature limit: small scale without, and with weight decay
    to_lazy: tuple[float, float]  # distance to the lazy limit: the same two
    proved: bool  # both bounds are, since the maximum over the sphere is


def between(dim: int, size: int, seed: int, widths: tuple[int, ...], scales: tuple[float, ...], decay: float, steps: int) -> Between:
    generator = torch.Generator().manual_seed(seed)
    points, test = sphere_data(size, dim, generator=generator), sphere_data(500, dim, generator=generator)
    y = torch.ones(size, dtype=torch.float64)
    lazy, feature = kernel_regression(points, y), min_total_variation(points, y, generator=generator, tol=1e-3)

    def network(width: int, scale: float) -> ShallowNetwork:
        return ShallowNetwork(dim, width, scale=scale, generator=generator)

    def distance(f: Any, g: Any) -> float:
        apart = f(test).detach().reshape(-1) - g(test).detach().reshape(-1)
        return float(apart.square().mean().sqrt())

    by_width = [distance(kernel_regression(points, y, kernel=network(h, 1.0).tangent_kernel), lazy) for h in widths]
    by_scale = []
    for scale in scales:
        net = network(WIDTH, scale)
        own = kernel_regression(points, y, kernel=net.tangent_kernel)
        descend(net, points, y[:, None], tol=1e-12, max_steps=steps)
        by_scale.append(distance(net, own))
    free, kept = network(WIDTH, SMALL), network(WIDTH, SMALL)
    descend(free, points, y[:, None], tol=1e-8, max_steps=steps)
    ended = descend(kept, points, y[:, None], tol=1e-12, max_steps=steps, weight_decay=decay, momentum=MOMENTUM)
    objective = ended.loss + decay / 2 * float((kept.inner.square().sum(1) + kept.outer.square().sum(1)).detach().mean())
    return Between(
        torch.tensor(by_width, dtype=torch.float64),
        torch.tensor(by_scale, dtype=torch.float64),
        free.total_variation() / feature.bound_found - 1,
        (excess(free, feature, points), excess(kept, feature, points)),
        float(feature.feasible_dual @ outputs_with_start(free, points)),
        free.total_variation(),
        (objective, decayed_bound(feature, y + start(kept, points), decay)),
        (distance(free, feature), distance(kept, feature)),
        (distance(free, lazy), distance(kept, lazy)),
        feature.proved,
    )


def start(net: ShallowNetwork, x: Float[Tensor, "P d"]) -> Float[Tensor, " P"]:
    """What a network's first neurons compute, which its outputs leave out."""
    return (torch.relu(x @ net.first_inner.T) @ net.first_outer)[:, 0] / len(net.first_inner)


def outputs_with_start(net: ShallowNetwork, x: Float[Tensor, "P d"]) -> Float[Tensor, " P"]:
    return net(x)[:, 0].detach() + start(net, x)


def excess(net: ShallowNetwork, feature: MinimalVariation, x: Float[Tensor, "P d"]) -> float:
    """By how much, relatively, the total variation is above λ·f, which no network with these outputs f falls below."""
    return net.total_variation() / float(feature.feasible_dual @ outputs_with_start(net, x)) - 1


def decayed_bound(feature: MinimalVariation, goals: Float[Tensor, " P"], decay: float) -> float:
    """No network has ½ mean (f − y)² + decay · (total variation) below max_t t·λ·y − ½P t²|λ|² over t ≤ decay, with |g_λ| ≤ 1."""
    dual = feature.feasible_dual
    linear, square = float(dual @ goals), len(goals) * float(dual.square().sum())
    t = min(decay, linear / square)
    return t * linear - t**2 * square / 2


def roughness(weights: Float[Tensor, "H C y x"]) -> float:
    """The Laplacian form Σ (difference of neighbours)² over Σ w²: 2(1 − 1/n) a dimension for white weights, 0 for constant ones."""
    rows, columns = weights.diff(dim=-2), weights.diff(dim=-1)
    return float((rows.square().sum() + columns.square().sum()) / weights.square().sum())


def contrast(weights: Float[Tensor, "H C y x"]) -> float:
    """Geary's C: mean squared difference of neighbours over that of any two pixels of a filter; 1 on average where pixels are shuffled."""
    y, x = weights.shape[2:]
    neighbours = roughness(weights) * weights.square().sum() / (2 * y * x - y - x)
    apart = 2 * (weights - weights.mean((2, 3), keepdim=True)).square().sum() / (y * x - 1)
    return float(neighbours / apart)


def shuffled_contrast(weights: Float[Tensor, "H C y x"], generator: torch.Generator) -> float:
    """The same after permutations of the pixels, one for all filters, averaged over `SHUFFLES` of them."""
    flat, pixels = weights.flatten(2), weights[0, 0].numel()
    orders = (torch.randperm(pixels, generator=generator) for _ in range(SHUFFLES))
    return sum(contrast(flat[:, :, order].reshape(weights.shape)) for order in orders) / SHUFFLES


def pictures(data: str, split: str, samples: int, side: int, generator: torch.Generator) -> images.ImageSet:
    return images.load(data, split=split, samples=samples, grid=(side, side), dtype=torch.float32, generator=generator)


def image_run(data: str, side: int, samples: int, width: int, steps: int, seed: int) -> dict[str, float]:
    """One draw of images, two networks from small and from large scale: errors, relative stabilities, roughness of first layers."""
    generator = torch.Generator().manual_seed(seed)
    train, test = (pictures(data, split, n, side, generator) for split, n in (("train", samples), ("test", 2 * samples)))
    mean = train.images.mean(0)
    size = (train.images - mean).square().sum((1, 2, 3)).mean().sqrt()
    x, z = (train.images - mean) / size, (test.images - mean) / size
    y, truth = (s.one_hot() - 1 / len(s.classes) for s in (train, test))
    temperature = temperature_range(side, CUTOFF)[1] / COOL
    fields = sample_displacements(len(z), (side, side), temperature=temperature, cutoff=CUTOFF, generator=generator)
    moved = warp(z, fields.to(z.dtype))
    noise = torch.randn(z.shape, generator=generator)
    noise = noise * ((moved - z).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1))[:, None, None, None]

    def relative(f: Any) -> float:
        here = f(z).detach()
        return float((f(moved).detach() - here).square().sum() / (f(z + noise).detach() - here).square().sum())

    found: dict[str, float] = {"images": roughness(x)}
    for name, scale in (("feature", SMALL), ("lazy", LARGE)):
        net = ShallowNetwork(x[0].numel(), width, y.shape[1], scale=scale, generator=generator, dtype=torch.float32)
        first = net.first_inner.reshape(width, *x.shape[1:])
        found[f"{name} R at the start"] = relative(lambda u, net=net: torch.relu(u.flatten(1) @ net.first_inner.T) @ net.first_outer)
        run = descend(net, x, y, tol=1e-2, max_steps=steps, momentum=MOMENTUM)
        now = net.inner.detach().reshape(first.shape)
        found |= {
            f"{name} loss": run.loss / run.first_loss,
            f"{name} R": relative(net),
            f"{name} error": float((net(z).detach() - truth).square().sum(1).mean()),
            f"{name} accuracy": float((net(z).detach().argmax(1) == test.labels).float().mean()),
            f"{name} roughness before": roughness(first),
            f"{name} roughness after": roughness(now),
            f"{name} roughness of the change": roughness(now - first),
            f"{name} contrast of the change": contrast(now - first),
            f"{name} contrast, pixels shuffled": shuffled_contrast(now - first, torch.Generator().manual_seed(seed)),
        }
        if name == "lazy":
            wrong = ShallowNetwork(x[0].numel(), width, y.shape[1], scale=scale, generator=generator, dtype=torch.float32)
            descend(wrong, x, y[torch.randperm(len(y), generator=generator)], tol=1e-2, max_steps=steps, momentum=MOMENTUM)
            found["shuffled error"] = float((wrong(z).detach() - truth).square().sum(1).mean())
    return found
