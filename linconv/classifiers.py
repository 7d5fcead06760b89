r"""Training of classifiers as in the experiments of the papers: momentum, batches, a falling step size, moved and mirrored images.

Minimised is the mean of −log softmax(f(x_n))_{y_n} plus ½ · weight_decay · Σ‖w‖², the sum over weights alone, neither over biases
nor over the parameters of normalisation layers.  `weight_decay` is that of the papers and of torch, **twice** the λ of `linconv.fit`
and `linconv.train` (docs/conventions.md).  Recipe: Godfrey et al., arXiv 2210.01257, section 5.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from linconv.checkpoints import digest, validate_checkpoint
from linconv.sgd import Descent, Plateau, mode, parameter_groups
from linconv.validation import validate_generator, validate_module, validate_number, validate_size, validate_tensor

StopReason = Literal["epochs", "plateau", "diverged", "stopped"]


@dataclass(frozen=True)
class ClassifierRun:
    """What a training run did, one number an epoch.

    `losses`: mean cross-entropy of the images as they were met, moved and mirrored, in training mode, without the weight decay.
    `train_accuracies`: share of them that was classified rightly, likewise.  `test_accuracies`: after the epoch, in evaluation mode;
    empty without `test`.  `step_sizes`: that of the epoch.  `stop_reason`: "epochs" (all were run), "plateau" (the step size would
    fall below 1e-6), "diverged" (the last loss is not finite), "stopped" (`on_epoch` returned False).
    """

    losses: Float[Tensor, " epochs"]
    train_accuracies: Float[Tensor, " epochs"]
    test_accuracies: Float[Tensor, " tested"]
    step_sizes: Float[Tensor, " epochs"]
    stop_reason: StopReason


def shuffled_labels(labels: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """The same labels in a random order: as many of each class, and nothing that the images tell about them.

    >>> sorted(shuffled_labels(torch.tensor([0, 0, 1, 2]), torch.Generator().manual_seed(0)).tolist())
    [0, 0, 1, 2]
    """
    _validate_labels("labels", labels)
    generator = validate_generator(generator)
    return labels[torch.randperm(len(labels), generator=generator, device=generator.device).to(labels.device)]


@torch.no_grad()
def accuracy(net: nn.Module, images: Float[Tensor, "N C *grid"], labels: Int[Tensor, " N"], *, batch_size: int = 1000) -> float:
    """Share of the images on which the largest output is that of the label, in evaluation mode, without gradients.

    `images` `(N, C, *grid)` of the dtype of the weights, `labels` `(N,)` of dtype int64, from 0 to K − 1.  Batches are moved to the
    device of the weights one by one; modules are in their own mode again afterwards.

    Raises `ValueError` or `TypeError` naming the argument.
    """
    _validate_net(net)
    _validate_data(net, images, labels)
    return _accuracy(net, images, labels, validate_size("batch_size", batch_size))


def _accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    device = next(net.parameters()).device
    hits = torch.zeros((), dtype=torch.long, device=device)
    with torch.no_grad(), mode(net, training=False):
        for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            hits += (net(batch.to(device)).argmax(1) == targets.to(device)).sum()
    return int(hits) / len(images)


@torch.enable_grad()
def train_classifier(
    net: nn.Module,
    images: Float[Tensor, "N C *grid"],
    labels: Int[Tensor, " N"],
    *,
    epochs: int,
    batch_size: int = 128,
    step_size: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    patience: int = 20,
    flips: bool = True,
    translations: int = 2,
    generator: torch.Generator,
    test: tuple[Float[Tensor, "M C *grid"], Int[Tensor, " M"]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    amp: bool = True,
    on_epoch: Callable[[ClassifierRun], bool | None] | None = None,
    progress: bool = False,
) -> ClassifierRun:
    r"""Train a torch module in place to tell classes apart, by stochastic gradient descent with momentum on the cross-entropy.

    `net` `(N, C, *grid) → (N, K)`, `images` of the dtype of its weights, one to three dimensions of space, `labels` `(N,)` of dtype
    int64, from 0 to K − 1.  Data stay where they are and are moved to the device of the weights batch by batch; `test` is such a pair.

    `weight_decay` is torch's (and the papers'): it adds weight_decay · w to the gradient, which is ½ · weight_decay · Σ‖w‖² in the
    objective, so that it is 2λ of `linconv.train`.  Only weights decay (`linconv.sgd.parameter_groups`).  Parameters with
    `requires_grad=False` stay as they are; running statistics of normalisation layers are no parameters, and go on.

    The step size is divided by 10 when the training loss has not fallen by 1 % for more than `patience` epochs, and the run ends
    when it would fall below 1e-6.  With `flips` each image is mirrored in its last dimension half of the time; it is moved by up to
    `translations` pixels in every dimension, zeros moving in.  `amp`: half precision in the forward pass where it helps, on CUDA with
    float32 weights; elsewhere it means nothing.

    All random numbers come from `generator`, those of dropout too: on the CPU, with one thread, the same state gives the same weights bit
    by bit.  `checkpoint` names a safetensors file, written every `checkpoint_every` epochs and at the end, from which a call with
    the same arguments (net and generator as before the first run; `epochs` may be larger) goes on, and ends bit by bit as if it had
    never been killed.  `on_epoch(run so far)` may return False to stop; an exception leaves the file of the last checkpoint.

    Raises `ValueError` or `TypeError` naming the argument, also where the file is damaged or of another run.

    >>> g = torch.Generator().manual_seed(0)
    >>> labels = torch.arange(40) % 2
    >>> images = torch.randn(40, 1, 8, generator=g) + 2 * labels[:, None, None]
    >>> with torch.random.fork_rng([]):
    ...     net = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    >>> run = train_classifier(net, images, labels, epochs=10, batch_size=10, step_size=0.01, translations=1, generator=g)
    >>> run.stop_reason, bool(run.losses[-1] < run.losses[0]), accuracy(net, images, labels) > 0.9
    ('epochs', True, True)
    """
    path, every = None if checkpoint is None else validate_checkpoint(checkpoint), validate_size("checkpoint_every", checkpoint_every)
    epochs, size, generator = validate_size("epochs", epochs), validate_size("batch_size", batch_size), validate_generator(generator)
    descent = _descent(net, images, labels, step_size, momentum, weight_decay, patience, flips, translations, generator, amp)
    if test is not None:
        _validate_test(net, test)
    fingerprint: dict[str, object] = {}
    if path is not None:
        fingerprint = {"batch_size": size} | descent.settings() | _fingerprint(net, images, labels, test, generator)
        if path.exists():
            descent.resume(path, fingerprint, epochs)
    stopped = False
    with mode(net, training=True), Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("training", total=epochs, completed=descent.epochs)
        while descent.epochs < epochs and descent.reason is None and not stopped:
            descent.epoch(images, labels, size)
            if test is not None:
                descent.history["test_accuracies"].append(_accuracy(net, *test, size))
            if path is not None and (descent.epochs % every == 0 or descent.epochs == epochs or descent.reason is not None):
                descent.save(path, fingerprint)
            bar.update(task, completed=descent.epochs, description=f"training, loss {descent.history['losses'][-1]:.4g}")
            stopped = on_epoch is not None and on_epoch(_run(descent, "epochs")) is False
    if path is not None and stopped:
        descent.save(path, fingerprint)
    net.zero_grad()
    return _run(descent, "stopped" if stopped else "epochs")


def _run(descent: Descent, otherwise: StopReason) -> ClassifierRun:
    numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in descent.history.items()}
    return ClassifierRun(**numbers, stop_reason=descent.reason or otherwise)


def _descent(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    step_size: float,
    momentum: float,
    weight_decay: float,
    patience: int,
    flips: bool,
    translations: int,
    generator: torch.Generator,
    amp: bool,
) -> Descent:
    """The start of a run, after all checks of its arguments."""
    _validate_net(net)
    outputs = _validate_data(net, images, labels)
    if not bool(torch.isfinite(_outputs(net, images[:1].to(next(net.parameters()).device), "images")).all()):
        raise ValueError("net: expected finite outputs before training, got NaN or infinity for image 0; look at its weights")
    if len(labels.unique()) < 2:
        raise ValueError(f"labels: expected two classes or more, got only class {int(labels[0])} of {outputs}; a constant would be learnt")
    for name, flag in (("flips", flips), ("amp", amp)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    moves = _validate_count("translations", translations)
    if moves >= min(images.shape[2:]) and moves:
        raise ValueError(f"translations: expected fewer pixels than images of {tuple(images.shape[2:])} have, got {moves}; pass 0 for none")
    groups = parameter_groups(net, validate_number("weight_decay", weight_decay))
    if not any(group["params"] for group in groups):
        raise ValueError("net: expected parameters to train, all have requires_grad=False; set it to True where they should be trained")
    if (inertia := validate_number("momentum", momentum)) >= 1:
        raise ValueError(f"momentum: expected a number below 1, got {inertia}; 0.9 is usual")
    plateau = Plateau(validate_number("step_size", step_size, positive=True), _validate_count("patience", patience))
    weight = next(net.parameters())
    half = amp and weight.is_cuda and weight.dtype == torch.float32
    return Descent(net, groups, inertia, plateau, flips=flips, translations=moves, generator=generator, half=half)


def _fingerprint(
    net: nn.Module, images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor] | None, generator: torch.Generator
) -> dict[str, object]:
    """What a run starts from, as digests: every bit of the data, of the network and of the generator."""
    parts = [(name, tuple(w.shape), str(w.dtype), w.requires_grad) for name, w in chain(net.named_parameters(), net.named_buffers())]
    text = re.sub(r"0x[0-9a-f]+", "", f"{net}") + repr(parts)  # addresses of functions differ from process to process
    return {
        "images": digest(images),
        "labels": digest(labels),
        "test": digest(*(test or ())),
        "architecture": hashlib.sha256(text.encode()).hexdigest(),
        "initial weights": digest(*net.parameters(), *net.buffers()),
        "generator": digest(generator.get_state()),
    }


def _validate_net(net: object) -> None:
    if next(validate_module("net", net).parameters(), None) is None:
        raise ValueError("net: expected a module with parameters, got one without")


def _validate_count(name: str, value: object) -> int:
    return 0 if isinstance(value, Integral) and not isinstance(value, bool) and value == 0 else validate_size(name, value)


def _validate_labels(name: str, labels: object) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(
            f"{name}: expected a torch tensor (N,) of dtype int64, got {getattr(labels, 'dtype', type(labels).__name__)}; use .long()"
        )
    if labels.device.type == "meta":
        raise ValueError(f"{name}: expected data, got a tensor on the device meta; load it first")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"{name}: expected one class an image, (N,), got shape {tuple(labels.shape)}")


def _validate_test(net: nn.Module, test: object) -> None:
    if not isinstance(test, tuple) or len(test) != 2:
        raise TypeError(f"test: expected a pair (images, labels), got {type(test).__name__}")
    _validate_data(net, *test, names=("test[0]", "test[1]"))


def _validate_data(net: nn.Module, images: Tensor, labels: Tensor, names: tuple[str, str] = ("images", "labels")) -> int:
    """The number of outputs of the network, once images and labels are fit for it."""
    weight = next(net.parameters())
    if isinstance(images, Tensor) and images.device.type not in ("cpu", weight.device.type):
        raise ValueError(f"{names[0]}: expected images on the CPU or, as the weights, on {weight.device}, got {images.device}; use .to")
    validate_tensor(names[0], images, ndim=(3, 4, 5), shape="(N, C, *grid)")
    if images.dtype != weight.dtype:
        raise TypeError(f"{names[0]}: expected {weight.dtype} as the weights have, got {images.dtype}; use .to({weight.dtype})")
    _validate_labels(names[1], labels)
    if len(labels) != len(images):
        raise ValueError(f"{names[1]}: expected {len(images)} labels, one an image, got {len(labels)}")
    outputs = _outputs(net, images[:1].to(weight.device), names[0]).shape[1]
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= outputs:
        raise ValueError(f"{names[1]}: expected classes from 0 to {outputs - 1}, as net has {outputs} outputs, got {low} to {high}")
    return outputs


def _outputs(net: nn.Module, image: Tensor, name: str) -> Float[Tensor, "1 K"]:
    try:
        with torch.no_grad(), mode(net, training=False):
            outputs: object = net(image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: expected images that net accepts, got (N, {', '.join(map(str, image.shape[1:]))}): {error}") from error
    if not isinstance(outputs, Tensor):
        raise TypeError(f"net: expected outputs in one tensor (N, K), got {type(outputs).__name__}; wrap net to return the logits alone")
    if outputs.ndim != 2 or len(outputs) != 1 or not outputs.numel():
        raise ValueError(f"net: expected outputs (N, K), got {tuple(outputs.shape)} for one image; flatten them")
    return outputs
