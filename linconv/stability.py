r"""Relative stability of any torch module: how much deformations of its input change it, against noise of the same size.

    D_f = ⟨‖f(τx) − f(x)‖²⟩ / ⟨‖f(x₁) − f(x₂)‖²⟩,   G_f = ⟨‖f(x + η) − f(x)‖²⟩ / ⟨‖f(x₁) − f(x₂)‖²⟩,   R_f = D_f / G_f,

τ a maximum-entropy deformation (`linconv.deformation`), η isotropic noise as large as τx − x, x₁ and x₂ different images.
Definitions: Petrini et al., arXiv 2105.02468, and the code published with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int32
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from linconv.activations import chunk_size, home_of, layer_outputs
from linconv.deformation import beyond_range, validate_cutoff, warn_of_folds
from linconv.interpolation import Interpolation
from linconv.responses import MEDIANS, Estimator, Noise, Setting, Squares, joined, measured, spreads
from linconv.statistics import Interval, bootstrap_interval
from linconv.statistics.resampling import Array, checked_level
from linconv.validation import validate_generator, validate_module, validate_number, validate_size, validate_tensor

PILOT, MOST_DRAWS = 8, 4096  # draws from which their number is planned, and the largest number that is planned


@dataclass(frozen=True)
class RelativeStability:
    """R = D/G of one layer with confidence intervals over images; draws an image; share of their fields that fold; outputs looked at."""

    R: Interval
    D: Interval
    G: Interval
    n_draws: int
    fold_fraction: float
    n_outputs: int


def relative_stability(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    *,
    temperature: float,
    cutoff: int = 3,
    noise: Noise = "sample",
    estimator: Estimator = "mean",
    n_draws: int | None = None,
    generator: torch.Generator,
    layer: str | None = None,
    precision: float = 0.02,
    interpolation: Interpolation = "linear",
    level: float = 0.95,
    resamples: int = 2000,
    batch_size: int | None = None,
    progress: bool = False,
) -> RelativeStability:
    r"""D, G and R = D/G of a module, or of one of its layers, on images `(N, C, H, W)`, N ≥ 2.

    Every draw moves each image by a field of its own (`temperature` > 0, `cutoff`, `interpolation` as in `sample_displacements` and `warp`,
    clamped), and adds noise of uniform direction to it, whose norm `noise` chooses:

    * "sample": ‖τx − x‖ of that image, as in the published code;
    * "average": the mean of ‖τx − x‖ over the images of the draw, as the paper says;
    * "rms": its root mean square there, as `linear_relative_stability` supposes.

    `estimator`: with "mean" the brackets ⟨…⟩ are means, over images and draws, and over all pairs of different images.  With "median"
    they are, as in the published code, the sum over outputs k of the median over images and draws of |f_k(τx) − f_k(x)|², over the median
    over pairs of ‖f(x₁) − f(x₂)‖²; of an even number of values torch's median is the lower one.  The denominator drops out of R.  Of a
    layer with more than 256 outputs both are over 256 of them, drawn at random from `generator`; `.n_outputs` tells.

    `n_draws=None`: 8, and then as many as make the relative standard error of R that draws leave at most `precision`, judged by the spread
    of R over the first 8.  Intervals at `level` are bootstraps over images with all their draws, `resamples` of them: BCa for means (in the
    denominator an image stands with its squared distance to the mean image, twice whose mean is that of pairs), percentiles for medians,
    which resample the outputs too where these were drawn, and are extended to the estimate where they miss it.  Medians of few images are
    biased: behind a ReLU, intervals at 95 % covered what 400 photographs give in 78 to 80 % of cases for 20 of them, 80 to 93 % for 60.

    `layer`: a name as in `model.named_modules()`; None is the output.  The model runs in evaluation mode, without gradients, `batch_size`
    images at a time on its own device (default: by memory), and is left as it was.  Memory is that of a chunk and, for medians, of a number
    for each draw, image and output looked at: more than 2 GiB are refused.  The same generator gives the same numbers, whatever the chunks
    and the layers.  `progress`: a bar on stderr.

    Warns where the temperature is above the published range and fields fold.  Raises `ValueError` or `TypeError` naming the argument, for
    an unknown layer with those there are, and for outputs that are the same for all images or that noise does not change.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(6)).double()
    >>> images = torch.randn(20, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> found = relative_stability(net, images, temperature=1e-3, generator=torch.Generator().manual_seed(1))
    >>> found.R.low < found.R.estimate < found.R.high, found.n_draws >= 8
    (True, True)
    """
    name = "" if layer is None else layer
    if not isinstance(name, str):
        raise TypeError(f"layer: expected the name of one, got {layer!r}; use layer_stabilities for several")
    return layer_stabilities(
        model,
        images,
        [name],
        temperature=temperature,
        cutoff=cutoff,
        noise=noise,
        estimator=estimator,
        n_draws=n_draws,
        generator=generator,
        precision=precision,
        interpolation=interpolation,
        level=level,
        resamples=resamples,
        batch_size=batch_size,
        progress=progress,
    )[name]


def layer_stabilities(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    layers: Sequence[str],
    *,
    temperature: float,
    cutoff: int = 3,
    noise: Noise = "sample",
    estimator: Estimator = "mean",
    n_draws: int | None = None,
    generator: torch.Generator,
    precision: float = 0.02,
    interpolation: Interpolation = "linear",
    level: float = 0.95,
    resamples: int = 2000,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[str, RelativeStability]:
    """`relative_stability` of several layers by name, from the same passes; arguments and errors as there.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).double()
    >>> images = torch.randn(20, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> list(layer_stabilities(net, images, ["0", "1"], temperature=1e-3, generator=torch.Generator().manual_seed(1)))
    ['0', '1']
    """
    names = _layer_names(layers)
    setting = _setting(model, images, temperature, cutoff, noise, estimator, interpolation, generator, batch_size, names)
    wanted = None if n_draws is None else validate_size("n_draws", n_draws)
    aim = validate_number("precision", precision, positive=True)
    confidence, count = checked_level(level), validate_size("resamples", resamples)
    bar = Progress(console=Console(stderr=True), transient=True, disable=not progress)
    with bar, layer_outputs(model, names) as run:
        task = bar.add_task("relative stability", total=(wanted or PILOT) * len(images))
        found = measured(run, images, setting, wanted or PILOT, lambda n: bar.advance(task, n))
        more = 0 if wanted else max(_further_draws(name, x, aim) for name, x in found.layers.items())
        if more:
            bar.update(task, total=(PILOT + more) * len(images))
            found = joined(found, measured(run, images, setting, more, lambda n: bar.advance(task, n)))
        apart = spreads(run, images, setting)
    if beyond_range(setting.temperature, setting.cutoff):
        warn_of_folds(found.fold_fraction, setting.temperature, setting.cutoff)
    results = {}
    for name, x in found.layers.items():
        size = found.sizes[name]
        if setting.estimator == "mean":
            intervals = _of_means(name, x, apart[name], confidence, count, generator)
        else:
            intervals = _of_medians(name, x, apart[name], confidence, count, generator, drawn=size > MEDIANS)
            size = min(size, MEDIANS)
        results[name] = RelativeStability(*intervals, found.draws, found.fold_fraction, size)
    return results


def _further_draws(name: str, squares: Squares, precision: float) -> int:
    """How many draws after the first PILOT make the relative standard error of R that draws leave at most `precision`."""
    moved, noisy = (x.mean(1) if x.ndim == 2 else x.median(1).values.sum(1) for x in squares)
    if not bool((noisy > 0).all()):
        raise ValueError(f"{_subject(name)}: expected outputs that noise changes, got the same ones; is it piecewise constant, or dead?")
    ratios = moved / noisy
    if not bool((mean := ratios.mean()) > 0):
        return 0
    needed = math.ceil(float((ratios.std() / mean / precision) ** 2))
    if needed > MOST_DRAWS:
        raise ValueError(
            f"precision: expected one within {MOST_DRAWS} draws, got {precision:g}, which takes about {needed} for {_subject(name)}; "
            "allow a larger one, give more images, or give n_draws"
        )
    return max(needed - PILOT, 0)


def _of_means(
    name: str, squares: Squares, apart: Float[Tensor, " N"], level: float, resamples: int, generator: torch.Generator
) -> tuple[Interval, Interval, Interval]:
    """R, D and G of means, with BCa intervals over images."""
    moved, noisy = (x.mean(0) for x in squares)
    _refuse_zeros(name, float(noisy.sum()), float(apart.sum()))
    r, d, g = (
        bootstrap_interval(pair, _ratio_of_means, generator=generator, level=level, resamples=resamples)
        for pair in ((moved, noisy), (moved, apart), (noisy, apart))
    )
    return r, d, g


def _ratio_of_means(a: Array, b: Array, axis: int) -> Array:
    return np.asarray(a.mean(axis) / b.mean(axis))


def _of_medians(
    name: str, squares: Squares, apart: Float[Tensor, "N N"], level: float, resamples: int, generator: torch.Generator, *, drawn: bool
) -> tuple[Interval, Interval, Interval]:
    """R, D and G of medians, with percentile intervals over images, and over outputs where these were `drawn`."""
    n, sides = len(apart), [_Sorted.of(x) for x in squares]

    def of(images: Tensor, outputs: Tensor) -> tuple[float, float, float]:
        counts = torch.bincount(images, minlength=n).to(torch.int32)
        moved, noisy = (float(side.medians(counts)[outputs].sum()) for side in sides)
        pairs = float(apart[images[:, None], images][images[:, None] != images].median())  # an image drawn twice is no pair with itself
        return moved / noisy if noisy else math.nan, moved / pairs if pairs else math.nan, noisy / pairs if pairs else math.nan

    every, each = torch.arange(n), torch.arange(len(sides[0].values))
    noisy = float(sides[1].medians(torch.ones(n, dtype=torch.int32)).sum())
    _refuse_zeros(name, noisy, float(apart[every[:, None] != every].median()))

    def resampled(size: int) -> Tensor:
        return torch.randint(size, (resamples, size), generator=generator, device=generator.device).cpu()

    rows, columns = resampled(n), resampled(len(each)) if drawn else each.expand(resamples, -1)
    values = np.array([of(row, column) for row, column in zip(rows, columns, strict=True) if int(row.min()) < int(row.max())])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    r, d, g = (Interval(x, min(float(a), x), max(float(b), x), level) for x, a, b in zip(of(every, each), low, high, strict=True))
    return r, d, g


class _Sorted(NamedTuple):
    """Squares of each output in ascending order, `(K, draws · N)`, and the images they are of: sorted once for all resamples."""

    values: Tensor
    owners: Tensor

    @classmethod
    def of(cls, squares: Float[Tensor, "draws N K"]) -> "_Sorted":
        values, order = squares.permute(2, 0, 1).flatten(1).sort(1)
        return cls(values, order % squares.shape[1])

    def medians(self, counts: Int32[Tensor, " N"]) -> Float[Tensor, " K"]:
        """The median of each output where image i stands `counts[i]` times; of an even number of values the lower one."""
        reached = counts[self.owners].cumsum(1, dtype=torch.int32)
        half = (reached[:, -1:] + 1) // 2
        return self.values.gather(1, torch.searchsorted(reached, half))[:, 0]


def _refuse_zeros(name: str, noisy: float, apart: float) -> None:
    if noisy == 0:
        raise ValueError(f"{_subject(name)}: expected outputs that noise changes, got the same ones; is it piecewise constant, or dead?")
    if apart == 0:
        raise ValueError(f"{_subject(name)}: expected outputs that differ from image to image, got the same for all, or for most of them")


def _subject(name: str) -> str:
    return f"layer {name!r}" if name else "model"


def _layer_names(layers: object) -> tuple[str, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layers: expected a sequence of names, got {layers!r}; use relative_stability for one")
    if not layers:
        raise ValueError("layers: expected at least one name, got none")
    return tuple(dict.fromkeys(layers))


def _setting(
    model: object,
    images: Tensor,
    temperature: object,
    cutoff: object,
    noise: Noise,
    estimator: Estimator,
    interpolation: Interpolation,
    generator: object,
    batch_size: object,
    layers: tuple[str, ...],
) -> Setting:
    """The arguments, checked."""
    module = validate_module("model", model)
    validate_tensor("images", images, ndim=(4,), shape="(N, C, H, W)")
    if len(images) < 2:
        raise ValueError(f"images: expected at least two, got {len(images)}; distances between images are what outputs are compared with")
    for label, value, allowed in (
        ("noise", noise, Noise),
        ("estimator", estimator, Estimator),
        ("interpolation", interpolation, Interpolation),
    ):
        if value not in get_args(allowed):
            raise ValueError(f"{label}: expected one of {', '.join(map(repr, get_args(allowed)))}, got {value!r}")
    if not (t := validate_number("temperature", temperature)):
        raise ValueError("temperature: expected a number > 0, got 0, at which nothing moves")
    c, source, device = validate_cutoff(cutoff), validate_generator(generator), home_of(module, images)
    size = chunk_size(module, images[:1].to(device), layers) if batch_size is None else validate_size("batch_size", batch_size)
    choice = int(torch.randint(2**62, (), generator=source, device=source.device)) if estimator == "median" else 0
    return Setting(t, c, noise, estimator, interpolation, source, device, size, choice)
