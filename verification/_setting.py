"""Images, targets and weight decay for a claim about weight-decayed linear CNNs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from linconv import images
from linconv.claims import UsageError
from linconv.losses import LossName, loss_of


@dataclass(frozen=True)
class Setting:
    """A regression: images `(N, C, *grid)`, targets `(N, K)`, depth, hidden width, weight decay and loss.

    `decoupled`: squared error of images whose second moment is s_u·I at each frequency, without cross-frequency terms, by construction.
    `raw` are the images before whitening.
    """

    x: Float[Tensor, "N C *grid"]
    y: Float[Tensor, "N K"]
    raw: Float[Tensor, "N C *grid"]
    depth: int
    hidden: int
    weight_decay: float
    decoupled: bool
    source: str
    loss: LossName = "squared"

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.x.shape[2:])

    @property
    def sites(self) -> int:
        return math.prod(self.grid)

    @property
    def rank(self) -> int:
        """The largest rank a block can have: min(K, C, hidden widths)."""
        largest = min(self.x.shape[1], self.y.shape[1])
        return largest if self.depth == 1 else min(largest, self.hidden)

    def describe(self) -> str:
        n, channels, *_ = self.x.shape
        loss = "" if self.loss == "squared" else f"{self.loss}, "
        return (
            f"{n} {self.source}, {channels} channels, grid {'×'.join(map(str, self.grid))}, {self.y.shape[1]} outputs, {loss}"
            f"weight decay {self.weight_decay:.3g}"
        )


def prepare(
    data: str,
    *,
    grid: tuple[int, ...],
    samples: int,
    channels: int | None,
    outputs: int | None,
    depth: int,
    hidden: int,
    weight_decay: float | None,
    whiten: bool,
    generator: torch.Generator,
    loss: LossName = "squared",
) -> Setting:
    """Load or design the data. Raises `UsageError`, one line, for a set that is missing or does not fit the parameters."""
    if loss == "cross-entropy" and outputs == 1:
        raise UsageError("outputs: cross-entropy tells at least 2 classes apart, got 1; use --loss logistic for one answer")
    try:
        if data == "designed":
            raw, y = _designed(grid, samples, 3 if channels is None else channels, 4 if outputs is None else outputs, loss, generator)
        else:
            raw, y = _photographs(data, grid, samples, channels, outputs, loss, generator)
        loss_of(loss).validate(y)
        x = images.whiten(raw) if whiten and data != "designed" else raw
    except OSError as error:
        raise UsageError(f"data: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    decay = contested_decay(x, y, depth, loss) if weight_decay is None else weight_decay
    decoupled = loss == "squared" and (whiten or data == "designed")
    kind = "designed images" if data == "designed" else f"{'whitened' if whiten else 'centred'} images of {data}"
    return Setting(x, y, raw, depth, hidden, decay, decoupled, kind, loss)


def _photographs(
    data: str,
    grid: tuple[int, ...],
    samples: int,
    channels: int | None,
    outputs: int | None,
    loss: LossName,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Centred images of a labelled set and indicators of the first `outputs` classes: centred for squared error.

    For cross-entropy the last output stands for all classes that have none of their own, so that rows are distributions.
    """
    loaded = images.load(data, samples=samples, grid=grid, greyscale=channels == 1, generator=generator)
    if len(loaded.classes) < 2:
        only = loaded.classes[0]
        raise ValueError(f"data: expected at least two classes, {data} has only {only!r}; the subfolders of a folder are its classes")
    if channels not in (None, loaded.images.shape[1]):
        raise ValueError(f"channels: {data} has {loaded.images.shape[1]}, or 1 made grey, got {channels}")
    count = len(loaded.classes) if outputs is None else outputs
    if count > len(loaded.classes):
        raise ValueError(f"outputs: {data} has {len(loaded.classes)} classes, one an output, got {count}")
    indicators = loaded.one_hot()
    if loss == "squared":
        indicators = indicators - indicators.mean(0)
    if loss == "cross-entropy":
        indicators = torch.cat([indicators[:, : count - 1], indicators[:, count - 1 :].sum(1, keepdim=True)], 1)
    return images.center(loaded.images), indicators[:, :count]


def _designed(
    grid: tuple[int, ...], samples: int, channels: int, outputs: int, loss: LossName, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images with second moment exactly s_u·I, s_u ∝ 1/(1 + |u|²) as in photographs, and noisy linear targets.

    Cross-entropy and the logistic loss take the largest target of each image, or the signs of all, as its labels.
    """
    noise = images.whiten(torch.randn(samples, channels, *grid, dtype=torch.float64, generator=generator))
    spatial = tuple(range(2, 2 + len(grid)))
    x = torch.fft.ifftn(torch.fft.fftn(noise, dim=spatial) / (1 + squared_frequencies(grid)).sqrt(), dim=spatial).real
    teacher = torch.randn(outputs, x[0].numel(), dtype=torch.float64, generator=generator) / math.sqrt(x[0].numel())
    targets = x.flatten(1) @ teacher.T + 0.3 * torch.randn(samples, outputs, dtype=torch.float64, generator=generator)
    if loss == "cross-entropy":
        return x, torch.nn.functional.one_hot(targets.argmax(1), outputs).to(torch.float64)
    return x, (targets > 0).to(torch.float64) if loss == "logistic" else targets


def squared_frequencies(grid: tuple[int, ...]) -> Float[Tensor, "*grid"]:
    """|u|² with u in cycles per image, in FFT order."""
    axes = [torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) ** 2 for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


def contested_decay(x: Float[Tensor, "N C *grid"], y: Float[Tensor, "N K"], depth: int, loss: LossName = "squared") -> float:
    """A weight decay that about half of the least-squares components survive at the optimum, so that survival is put to the test.

    A loss other than squared error stands here for its second-order expansion at outputs of 0: the targets are minus its gradient
    there, and its mean curvature along them, 1/K for cross-entropy and ¼ for the logistic loss, multiplies s.

    A component m of the least-squares block survives depth L ≥ 3 while m > D^{-1/2} (L−1)/(L−2) (2λ(L−2)/s)^{L/(2(L−1))};
    depth 2 is the limit m > 2λ/(s√D).  At depth 1 nothing is dropped: the decay halves the median component.
    """
    grid = tuple(x.shape[2:])
    spatial = tuple(range(2, x.ndim))
    spectrum = torch.fft.fftn(x, dim=spatial, norm="ortho").flatten(2)
    s = spectrum.abs().square().mean((0, 1)) * {"squared": 1.0, "cross-entropy": 1 / y.shape[1], "logistic": 0.25}[loss]
    y = -loss_of(loss).gradient(torch.zeros_like(y), y)
    cross = torch.einsum("nk,ncu->ukc", y.to(spectrum.dtype), spectrum.conj()) / len(x)
    m = torch.linalg.svdvals(cross) / s[:, None]
    if depth == 1:
        return float(s.median()) / 2
    scaled = m * math.sqrt(math.prod(grid))
    if depth == 2:
        thresholds = s[:, None] * scaled / 2
    else:
        thresholds = s[:, None] / (2 * (depth - 2)) * (scaled * (depth - 2) / (depth - 1)) ** (2 * (depth - 1) / depth)
    ordered = thresholds[m > 1e-9 * m.max()].sort().values
    # In the widest gap near the middle: at a component's own threshold two predictors would share the optimum.
    low, high = len(ordered) // 3, max(2 * len(ordered) // 3, len(ordered) // 3 + 2)
    middle = ordered[low:high]
    if len(middle) < 2:
        return float(f"{float(ordered[0]) / 2:.3g}")
    widest = int((middle[1:] / middle[:-1]).argmax())
    return float(f"{math.sqrt(float(middle[widest] * middle[widest + 1])):.3g}")
