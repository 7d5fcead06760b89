r"""Stochastic gradient descent of classifiers: steps with momentum, epochs, a falling step size, moved and mirrored images.

What changes during a run is in one place, `Descent`, and so can be kept and taken up again exactly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from linconv.checkpoints import load_checkpoint, save_checkpoint

Reason = Literal["plateau", "diverged"]
FACTOR, THRESHOLD, LEAST_STEP_SIZE = 0.1, 0.01, 1e-6
NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
FORMAT = "linconv classifier 1"


@dataclass
class Plateau:
    """The step size, divided by 10 once the loss has not fallen by 1 % for more than `patience` epochs in a row.

    The same as torch's `ReduceLROnPlateau(factor=0.1, patience=patience, threshold=0.01)`, which clamps at its `min_lr` where this stops.
    """

    step_size: float
    patience: int
    best: float = math.inf
    bad: int = 0

    def go_on(self, loss: float) -> bool:
        """Take note of the loss of an epoch; False once the step size has fallen below 1e-6, up to rounding."""
        if loss < self.best * (1 - THRESHOLD):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.step_size, self.bad = self.step_size * FACTOR, 0
            return self.step_size >= LEAST_STEP_SIZE * (1 - 1e-9)
        return True


def augment(
    images: Float[Tensor, "N C *grid"], *, flips: bool, translations: int, generator: torch.Generator
) -> Float[Tensor, "N C *grid"]:
    """Each image mirrored in its last dimension with probability ½, then moved by up to `translations` pixels in every dimension.

    Flips and moves are independent and uniform, one draw an image, the same for its channels; what moves in is zero.
    """
    count, grid, device = len(images), images.shape[2:], images.device
    padded = F.pad(images, (translations, translations) * len(grid))
    sites = torch.zeros(count, 1, dtype=torch.long, device=device)  # in each padded image, flattened, those that are kept
    for axis, n in enumerate(grid):
        along = torch.arange(n, device=device).expand(count, n)
        if flips and axis == len(grid) - 1:
            mirrored = torch.randint(2, (count, 1), generator=generator, device=generator.device).to(device)
            along = torch.where(mirrored == 1, along.flip(1), along)
        if translations:
            along = along + torch.randint(2 * translations + 1, (count, 1), generator=generator, device=generator.device).to(device)
        sites = (sites[:, :, None] * padded.shape[2 + axis] + along[:, None]).flatten(1)
    return padded.flatten(2).gather(2, sites[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups for a torch optimiser: weights, which decay, and all others, which do not.

    Others are parameters of normalisation layers, those whose name begins with "bias", and those of fewer than two dimensions.
    """
    normalising = {id(w) for module in net.modules() if isinstance(module, NORMALISATION) for w in module.parameters(recurse=False)}
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, w in net.named_parameters():
        if w.requires_grad:
            plain = w.ndim < 2 or id(w) in normalising or name.rpartition(".")[2].startswith("bias")
            (others if plain else weights).append(w)
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class Descent:
    """All that changes during a run, and so all that a checkpoint has to keep."""

    def __init__(
        self,
        net: nn.Module,
        groups: list[dict[str, Any]],
        momentum: float,
        plateau: Plateau,
        *,
        flips: bool,
        translations: int,
        generator: torch.Generator,
        half: bool,
    ):
        self.net, self.plateau, self.generator, self.half = net, plateau, generator, half
        self.flips, self.translations = flips, translations
        self.device = next(net.parameters()).device
        self.rule = torch.optim.SGD(groups, lr=plateau.step_size, momentum=momentum)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.history: dict[str, list[float]] = {"losses": [], "train_accuracies": [], "test_accuracies": [], "step_sizes": []}
        self.reason: Reason | None = None

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.history["losses"])

    def settings(self) -> dict[str, object]:
        """The numbers that decide on a run from its start."""
        return {
            "step_size": self.plateau.step_size,
            "momentum": self.rule.defaults["momentum"],
            "weight_decay": self.rule.param_groups[0]["weight_decay"],
            "patience": self.plateau.patience,
            "flips": self.flips,
            "translations": self.translations,
            "half precision": self.half,
        }

    def epoch(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        """All images once, in a new order."""
        for group in self.rule.param_groups:
            group["lr"] = self.plateau.step_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with drawing_from(self.generator, self.device):
            order = torch.randperm(len(images), generator=self.generator, device=self.generator.device).to(images.device)
            for rows in order.split(batch_size):
                batch = images[rows].detach().to(self.device)
                batch = augment(batch, flips=self.flips, translations=self.translations, generator=self.generator)
                sums += self.step(batch, labels[rows.to(labels.device)].to(self.device))
        loss, hits = (sums / len(images)).tolist()
        self.history["losses"].append(math.nan if math.isnan(loss) else loss)  # the one NaN that JSON knows, without sign
        self.history["train_accuracies"].append(hits)
        self.history["step_sizes"].append(self.plateau.step_size)
        if not math.isfinite(loss):
            self.reason = "diverged"
        elif not self.plateau.go_on(loss):
            self.reason = "plateau"

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the sums over the batch of losses and of right answers."""
        self.rule.zero_grad()
        with torch.autocast(self.device.type, enabled=self.half, dtype=torch.float16):
            logits = self._logits(images)
            loss = F.cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.rule)
        self.scaler.update()
        hits = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(images), hits.double()])

    def _logits(self, images: Tensor) -> Tensor:
        try:
            logits: object = self.net(images)
        except ValueError as error:  # batch normalisation of one image
            raise ValueError(f"batch_size: expected batches that net can be trained on, got one of {len(images)}: {error}") from error
        if not isinstance(logits, Tensor):
            kind = type(logits).__name__
            raise TypeError(
                f"net: expected outputs in one tensor (N, K) in training mode too, got {kind}; wrap net to return the logits alone"
            )
        return logits

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the run by name."""
        named = dict(self.net.named_parameters())
        momenta = {name: self.rule.state[w].get("momentum_buffer") for name, w in named.items() if w in self.rule.state}
        return (
            {f"net.{name}": w for name, w in (named | dict(self.net.named_buffers())).items()}
            | {f"momentum.{name}": v for name, v in momenta.items() if v is not None}
            | {"generator": self.generator.get_state()}
        )

    def save(self, path: Path, fingerprint: dict[str, object]) -> None:
        facts = {"history": self.history, "plateau": asdict(self.plateau), "scaler": self.scaler.state_dict(), "reason": self.reason}
        save_checkpoint(path, self.state(), {"format": FORMAT, "fingerprint": fingerprint, **facts})

    @torch.no_grad()
    def resume(self, path: Path, fingerprint: dict[str, object], epochs: int) -> None:
        """Go to where the file says; nothing is changed where it is damaged or of another run."""
        tensors, facts = load_checkpoint(path)
        stored: Any = facts
        if stored.get("format") != FORMAT:
            raise ValueError(f"checkpoint: expected a file of train_classifier, got {path}, a file of something else; name another one")
        if differences := differing(stored["fingerprint"], fingerprint):
            raise ValueError(
                f"checkpoint: {path} is of another run: {'; '.join(differences)}; repeat the arguments of that run, net and generator "
                "as they were before it, or name another file"
            )
        if len(stored["history"]["losses"]) > epochs:
            raise ValueError(f"epochs: expected at least the {len(stored['history']['losses'])} that {path} has behind it, got {epochs}")
        for name, w in (dict(self.net.named_parameters()) | dict(self.net.named_buffers())).items():
            w.copy_(tensors[f"net.{name}"])
            if f"momentum.{name}" in tensors:
                self.rule.state[w]["momentum_buffer"] = tensors[f"momentum.{name}"].to(self.device)
        self.generator.set_state(tensors["generator"])
        self.history, self.plateau, self.reason = stored["history"], Plateau(**stored["plateau"]), stored["reason"]
        self.scaler.load_state_dict(stored["scaler"])


def differing(stored: dict[str, Any], present: dict[str, object]) -> list[str]:
    """In words, what two fingerprints differ in; digests are not worth printing."""
    return [
        f"other {name}" if isinstance(value, str) else f"{name} was {stored.get(name)}, is {value}"
        for name, value in present.items()
        if stored.get(name) != value
    ]


@contextmanager
def mode(net: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole module in training or evaluation mode, and every part in its own again afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Layers that draw, as dropout does, use torch's global generators: give them a seed from ours, and their state back afterwards."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for where in cuda:
            with torch.cuda.device(where):
                torch.cuda.manual_seed(seed)
        yield
