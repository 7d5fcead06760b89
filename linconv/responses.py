"""How the outputs of a module answer to deformations of its input and to noise of the same size, image by image and draw by draw.

What `linconv.stability` makes its estimates of, which checks the arguments.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from linconv.activations import Run
from linconv.deformation import draw_coefficients, expand_displacements, folds, warp
from linconv.interpolation import Interpolation
from linconv.validation import validate_memory

MEDIANS = 256  # outputs of a layer whose medians are taken: of more, that many drawn at random
LARGEST = 2**28  # squares that are kept for medians, 2 GiB

Noise = Literal["sample", "average", "rms"]
Estimator = Literal["mean", "median"]


class Setting(NamedTuple):
    temperature: float
    cutoff: int
    noise: Noise
    estimator: Estimator
    interpolation: Interpolation
    generator: torch.Generator
    device: torch.device
    size: int  # of a chunk of images
    choice: int  # seed of the outputs whose medians are taken


class Squares(NamedTuple):
    """|f(τx) − f(x)|² and |f(x + η) − f(x)|², `(draws, N)`, summed over outputs, or, for medians, `(draws, N, K)`; float64 on the CPU.

    K is the number of outputs, or `MEDIANS` where there are more.
    """

    moved: Tensor
    noisy: Tensor


class Measured(NamedTuple):
    layers: dict[str, Squares]
    sizes: dict[str, int]  # numbers of outputs
    draws: int
    fold_fraction: float


def measured(run: Run, images: Float[Tensor, "N C H W"], setting: Setting, draws: int, advance: Callable[[int], None]) -> Measured:
    """So many draws of all images.  Fields, and a seed of the noise for each image, are drawn first: nothing depends on the chunks."""
    source = setting.generator
    numbers = draw_coefficients(draws * len(images), setting.cutoff, source).unflatten(0, (draws, len(images)))
    seeds = torch.randint(2**62, (draws, len(images)), generator=source, device=source.device)
    norms = _common_norms(images, numbers, setting)
    moved: dict[str, list[Tensor]] = {}
    noisy: dict[str, list[Tensor]] = {}
    sizes: dict[str, int] = {}
    folded = 0
    chunks = (images.split(setting.size), numbers.split(setting.size, dim=1), seeds.split(setting.size, dim=1))
    for x, some, sown in zip(*chunks, strict=True):
        x = x.to(setting.device)
        clean = run(x)
        if not sizes:
            sizes = {name: f.shape[1] for name, f in clean.items()}
            if setting.estimator == "median":
                kept = sum(min(size, MEDIANS) for size in sizes.values())
                validate_memory("n_draws", 2 * draws * len(images) * kept, LARGEST)
        rows: list[dict[str, Squares]] = []
        for each, seed, norm in zip(some, sown.tolist(), norms, strict=True):
            tau = _fields(each, x, setting)
            folded += int(folds(tau).sum())
            y = warp(x, tau, interpolation=setting.interpolation)
            there, near = run(y), run(x + _noise(y - x, seed, norm, setting))
            rows.append({name: Squares(_square(there[name] - f, setting), _square(near[name] - f, setting)) for name, f in clean.items()})
            advance(len(x))
        for name in clean:
            moved.setdefault(name, []).append(torch.stack([row[name].moved for row in rows]))
            noisy.setdefault(name, []).append(torch.stack([row[name].noisy for row in rows]))
    layers = {name: Squares(torch.cat(moved[name], 1), torch.cat(noisy[name], 1)) for name in moved}
    return Measured(layers, sizes, draws, folded / (draws * len(images)))


def joined(a: Measured, b: Measured) -> Measured:
    layers = {name: Squares(*map(torch.cat, zip(x, b.layers[name], strict=True))) for name, x in a.layers.items()}
    draws = a.draws + b.draws
    return Measured(layers, a.sizes, draws, (a.draws * a.fold_fraction + b.draws * b.fold_fraction) / draws)


def _fields(numbers: Float[Tensor, "n 2 c c"], x: Float[Tensor, "n C H W"], setting: Setting) -> Float[Tensor, "n 2 H W"]:
    return expand_displacements(numbers.to(x.device), (x.shape[2], x.shape[3]), setting.temperature)


def _common_norms(images: Float[Tensor, "N C H W"], numbers: Float[Tensor, "S N 2 c c"], setting: Setting) -> list[float | None]:
    """For each draw the norm of the noise of all images, None where each has its own."""
    if setting.noise == "sample":
        return [None] * len(numbers)
    norms = []
    for x, some in zip(images.split(setting.size), numbers.split(setting.size, dim=1), strict=True):
        x = x.to(setting.device)
        moved = (warp(x, _fields(each, x, setting), interpolation=setting.interpolation) - x for each in some)
        norms.append(torch.stack([_norms(y) for y in moved]))
    every = torch.cat(norms, 1)
    return (every.mean(1) if setting.noise == "average" else every.square().mean(1).sqrt()).tolist()


def _noise(y: Float[Tensor, "n C H W"], seeds: list[int], norm: float | None, setting: Setting) -> Float[Tensor, "n C H W"]:
    """Uniform directions with the norms of y, or with this one, each from its own seed."""
    device = setting.generator.device
    each = (torch.randn(y.shape[1:], dtype=y.dtype, generator=torch.Generator(device).manual_seed(seed), device=device) for seed in seeds)
    eta = torch.stack(list(each)).to(y.device)
    sizes = _norms(y) if norm is None else torch.full((len(y),), norm, dtype=torch.float64)
    return eta * (sizes / _norms(eta)).to(y)[:, None, None, None]


def _norms(x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64).cpu()


def _square(difference: Float[Tensor, "n K"], setting: Setting) -> Tensor:
    """Squared norms `(n,)`, or, for medians, squares `(n, K)`, in double precision on the CPU."""
    return _norms(difference).square() if setting.estimator == "mean" else _chosen(difference, setting).square()


def _chosen(outputs: Float[Tensor, "n K"], setting: Setting) -> Float[Tensor, "n kept"]:
    """The outputs whose medians are taken, the same ones of all images and draws, in double precision on the CPU."""
    return outputs[:, _choice(outputs.shape[1], setting.choice).to(outputs.device)].cpu().to(torch.float64)


@lru_cache(maxsize=64)
def _choice(outputs: int, seed: int) -> Int64[Tensor, " kept"]:
    if outputs <= MEDIANS:
        return torch.arange(outputs)
    return torch.randperm(outputs, generator=torch.Generator().manual_seed(seed))[:MEDIANS].sort().values


def spreads(run: Run, images: Float[Tensor, "N C H W"], setting: Setting) -> dict[str, Tensor]:
    """What the denominator is made of: for each image 2N/(N−1) ‖f(x) − f̄‖² `(N,)`, or, for medians, all ‖f(x₁) − f(x₂)‖² `(N, N)`."""

    def passes() -> Iterator[dict[str, Tensor]]:
        return (run(x.to(setting.device)) for x in images.split(setting.size))

    n = len(images)
    if setting.estimator == "median":
        outputs: dict[str, list[Tensor]] = {}
        for rows in passes():
            for name, f in rows.items():
                outputs.setdefault(name, []).append(_chosen(f, setting))
        return {name: _pair_distances(torch.cat(parts)) for name, parts in outputs.items()}
    centres: dict[str, Tensor] = {}
    for rows in passes():
        for name, f in rows.items():
            centres[name] = centres.get(name, 0) + f.sum(0, dtype=torch.float64) / n
    squares: dict[str, list[Tensor]] = {}
    for rows in passes():
        for name, f in rows.items():
            squares.setdefault(name, []).append(_norms(f - centres[name]).square() * 2 * n / (n - 1))
    return {name: torch.cat(parts) for name, parts in squares.items()}


def _pair_distances(outputs: Float[Tensor, "N K"]) -> Float[Tensor, "N N"]:
    return torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist").square()
