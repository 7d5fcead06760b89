"""Linear CNNs with one convolution, global average pooling and a fixed head, trained by torch; images for them."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv import images
from linconv.claims import UsageError
from linconv.patches import PatchSpectrum, patch_spectrum

SIGMAS = 4.5  # of a normal deviate: the largest of a few dozen exceeds it once in some thousand runs
EPSILON = torch.finfo(torch.float64).eps


class Data(NamedTuple):
    """Images, how patches are cut from them, and their patch spectrum."""

    x: Float[Tensor, "N C H W"]
    stride: int
    spectrum: PatchSpectrum

    def moment(self) -> Float[Tensor, "P P"]:
        """A in the basis of the components."""
        u = self.spectrum.components
        return u @ self.spectrum.mean_patch_covariance @ u.T

    def spread(self) -> Float[Tensor, " P"]:
        """J·A_ii/λ_i² in the basis of components: 1 where the patches of an image are uncorrelated."""
        lambdas = self.spectrum.lambdas
        kept = lambdas > 0
        return self.spectrum.patches_per_image * self.moment().diagonal()[kept] / lambdas[kept].square()

    def rate_ratios(self) -> Float[Tensor, " P"]:
        """J·α_i/λ_i², α_i the eigenvalues of A, descending as λ: the rates of descent over the published ones, by rank."""
        lambdas = self.spectrum.lambdas
        alpha = torch.linalg.eigvalsh(self.spectrum.precise_covariance).flip(0)
        return (self.spectrum.patches_per_image * alpha / lambdas.square())[lambdas > 0]


def load(data: str, samples: int, side: int, kernel: int, generator: torch.Generator) -> tuple[Data, Data, Float[Tensor, " N"]]:
    """Natural images with every patch of them; a bag of their tiles, shuffled over all images; labels of mean 0, variance 1."""
    try:
        loaded = images.load(data, samples=samples, grid=(side, side), generator=generator)
        x = loaded.images
        natural = Data(x, 1, patch_spectrum(x, kernel))
        bag = shuffled_tiles(x, kernel, generator)
        tiles = Data(bag, kernel, patch_spectrum(bag, kernel, stride=kernel))
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    labels = loaded.labels.to(torch.float64)
    if len(labels.unique()) < 2:
        raise UsageError(f"data: expected at least two classes, {data} has only {loaded.classes[0]!r}")
    labels = labels - labels.mean()
    return natural, tiles, labels / labels.square().mean().sqrt()


def shuffled_tiles(x: Float[Tensor, "N C H W"], side: int, generator: torch.Generator) -> Float[Tensor, "N C h w"]:
    """Images made of tiles drawn from all images without replacement: patches at this stride are uncorrelated within an image."""
    tiles = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
    n, rows, columns, channels = tiles.shape[:4]
    mixed = tiles.flatten(0, 2)[torch.randperm(n * rows * columns, generator=generator)]
    return mixed.reshape(n, rows, columns, channels, side, side).permute(0, 3, 1, 4, 2, 5).reshape(n, channels, rows * side, columns * side)


class PooledNetwork(nn.Module):
    """torch's convolution of patches less their mean, global average pooling, and a head that is not trained."""

    def __init__(self, data: Data, filters: Float[Tensor, "K C k k"], head: Float[Tensor, "M K"]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters.shape[1], len(filters), filters.shape[2], stride=data.stride, bias=False, dtype=filters.dtype)
        self.conv.weight.data.copy_(filters)
        self.mean, self.head = data.spectrum.mean, head

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N M"]:
        pooled = nn.functional.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
        return (pooled - self.conv.weight.flatten(1) @ self.mean) @ self.head.T


@torch.enable_grad()
def descend(
    data: Data,
    x: Float[Tensor, "N C H W"],
    targets: Float[Tensor, "N M"],
    filters: Float[Tensor, "K C k k"],
    head: Float[Tensor, "M K"],
    step_size: float,
    steps: int,
) -> Float[Tensor, "K C k k"]:
    """The filters after torch's plain gradient descent on (1/N) Σ ‖y − f‖²."""
    net = PooledNetwork(data, filters, head)
    rule = torch.optim.SGD([net.conv.weight], lr=step_size)
    for _ in range(steps):
        rule.zero_grad()
        ((net(x) - targets).square().sum() / len(x)).backward()
        rule.step()
    return net.conv.weight.detach()


def pooled_patches(data: Data) -> Float[Tensor, "N P"]:
    """What the pooled convolution sees, from torch's own unfolding: the mean patch of each image less that of all."""
    kernel, stride = data.spectrum.windows.kernel, data.stride
    means = [nn.functional.unfold(part, kernel, stride=stride).mean(-1) for part in data.x.split(1000)]
    return torch.cat(means) - data.spectrum.mean


@torch.enable_grad()
def descend_pooled(
    patches: Float[Tensor, "N P"],
    targets: Float[Tensor, "N M"],
    filters: Float[Tensor, "K P"],
    head: Float[Tensor, "M K"],
    step_size: float,
    steps: int,
    *,
    both: bool,
) -> tuple[Float[Tensor, "M K"], Float[Tensor, "K P"]]:
    """Head and filters after torch's gradient descent on mean patches, on the filters alone or on both layers at once."""
    v, w = head.clone().requires_grad_(both), filters.clone().requires_grad_()
    rule = torch.optim.SGD([v, w] if both else [w], lr=step_size)
    for _ in range(steps):
        rule.zero_grad()
        ((patches @ w.T @ v.T - targets).square().sum() / len(patches)).backward()
        rule.step()
    return v.detach(), w.detach()


@torch.enable_grad()
def descend_outputs(
    patches: Float[Tensor, "N P"], targets: Float[Tensor, "N M"], step_size: float, steps: int, start: Float[Tensor, "M P"] | None = None
) -> Float[Tensor, "M P"]:
    """M filters after torch's gradient descent on mean patches, each a network of its own with one output, from zero or from `start`."""
    w = torch.zeros(targets.shape[1], patches.shape[1], dtype=patches.dtype) if start is None else start.clone()
    rule = torch.optim.SGD([w.requires_grad_()], lr=step_size)
    for _ in range(steps):
        rule.zero_grad()
        ((patches @ w.T - targets).square().sum() / len(patches)).backward()
        rule.step()
    return w.detach()


def descend_by_doubling(
    patches: Float[Tensor, "N P"], targets: Float[Tensor, "N M"], step_size: float, doublings: int
) -> Float[Tensor, "M P"]:
    """The filters of `descend_outputs` from zero after 2^doublings steps: torch's step is affine, and is composed with itself so often."""
    size = patches.shape[1]
    kept = descend_outputs(patches, targets.new_zeros(len(patches), size), step_size, 1, torch.eye(size, dtype=patches.dtype))
    filters = descend_outputs(patches, targets, step_size, 1)
    for _ in range(doublings):
        filters, kept = filters + filters @ kept, kept @ kept
    return filters


def condensed(patches: Float[Tensor, "N P"], targets: Float[Tensor, "N M"]) -> tuple[Float[Tensor, "r P"], Float[Tensor, "r r"]]:
    """Fewer patches and outputs on which both layers train alike: rotated, r = min(N, P, M) are not zero.

    The loss differs by a constant, gradients by the rotation of the outputs.
    """
    turned, few = torch.linalg.qr(patches)
    _, labels = torch.linalg.qr((turned.T @ targets).T)
    scale = math.sqrt(len(few) / len(patches))
    return scale * few, scale * labels.T


def chi_spread(degrees: int) -> float:
    """Standard deviation over mean of the root of a χ² variable: √(π/2 − 1) for one degree of freedom, 1/√(2M) for many."""
    mean_squared = 2 * math.exp(2 * (math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)))
    return math.sqrt(degrees / mean_squared - 1)


def rounding(steps: int) -> dict[str, Any]:
    return {"tolerance": 100 * steps * EPSILON, "reason": "rounding of gradient descent, 100·ε a step"}


def stable_step(patches: Float[Tensor, "N P"], gain: float = 1.0) -> float:
    """1/(2s²α), half of the largest stable step: the fastest mode needs one."""
    return 0.5 * len(patches) / (gain * float(torch.linalg.matrix_norm(patches, 2)) ** 2)


def normal(generator: torch.Generator, *shape: int) -> Float[Tensor, "..."]:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)
