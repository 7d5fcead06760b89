r"""Spectra of the gradients of a module's outputs in its input, image by image: the engine of `linconv.sensitivity`.

One forward pass a chunk of images, one backward pass an output, all images of the chunk at once, one Fourier transform of each gradient.
This loop was the fastest of the equivalent forms in every setting measured (benchmarks/sensitivity.py): batched gradients (vmap)
take 1.2 to 2 times as long, repeated inputs with one backward pass 2 to 4 times.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from linconv.sgd import mode
from linconv.validation import validate_module, validate_size, validate_tensor

# Bytes that a chunk of images may take: on a CPU for each thread near the size of its cache, elsewhere enough to fill the device.
MEMORY_A_THREAD, MEMORY_ELSEWHERE = 2**24, 2**31


class Seen(NamedTuple):
    """What `visit_spectra` has gone through: spatial sizes, dtype of the images, their number N, the number of outputs K."""

    grid: tuple[int, ...]
    dtype: torch.dtype
    images: int
    outputs: int


Visitor = Callable[[Float[Tensor, "n C *half"], tuple[int, ...]], object]


def visit_spectra(
    model: nn.Module,
    images: Float[Tensor, "N C *grid"] | Iterable[Any],
    visit: Visitor,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Seen:
    r"""Call `visit(norms, grid)` for one chunk of images after the other.

    `norms` `(n, C, *half)`, float64 on the model's device, are $(\sum_k |\hat g_{k,c,u}|^2)^{1/2}$ for $g_k = \partial f_k/\partial x$ and
    the orthonormal DFT, on half of the frequencies (last dimension 0 … n//2; the others are the same at −u).  Arguments and errors as in
    `frequency_sensitivity`.
    """
    validate_module("model", model)
    wanted = None if batch_size is None else validate_size("batch_size", batch_size)
    home = _home(model)
    batches = _batches(images, home)
    first = next(batches, None)
    if first is None:
        raise ValueError("images: expected at least one batch, got none")
    grid, device = tuple(first.shape[2:]), (first if home is None else home).device
    total = len(images) if isinstance(images, Tensor) else None
    bar = Progress(console=Console(stderr=True), transient=True, disable=not progress)
    with bar, mode(model, training=False), torch.inference_mode(False), torch.enable_grad():
        alone, kept = _probe(model, first[:1].to(device))
        budget = MEMORY_A_THREAD * torch.get_num_threads() if device.type == "cpu" else MEMORY_ELSEWHERE
        size = wanted or max(1, budget // kept)
        task, count = bar.add_task("sensitivity", total=total), 0
        for chunk in chain.from_iterable(batch.split(size) for batch in chain([first], batches)):
            visit(_chunk_norms(model, chunk.to(device), count, alone), grid)
            count += len(chunk)
            bar.advance(task, len(chunk))
    return Seen(grid, first.dtype, count, alone.shape[1])


def _chunk_norms(
    model: nn.Module, images: Float[Tensor, "n C *grid"], before: int, alone: Float[Tensor, "1 K"]
) -> Float[Tensor, "n C *half"]:
    """Those of one chunk, `before` images after the first, whose outputs `alone` are known."""
    x = _leaf(images)
    outputs = _outputs(model, x, before)
    if outputs.shape[1] != alone.shape[1]:
        raise ValueError(f"model: expected {alone.shape[1]} outputs as for one image alone, got {outputs.shape[1]} for {len(x)} images")
    if before == 0:
        _check_that_images_are_apart(outputs, alone)
    norms = _norms(outputs, x)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError(f"model: expected finite gradients, got NaN or infinity {_where(norms, before)}; is it differentiable there?")
    return norms


def _norms(outputs: Float[Tensor, "n K"], x: Float[Tensor, "n C *grid"]) -> Float[Tensor, "n C *half"]:
    """The 2-norms over outputs of the spectra of the gradients in x, in float64.

    Squares are those of the gradients of an image over their largest entry so far, which neither overflow nor vanish; real and imaginary
    parts are summed apart.
    """
    dims = tuple(range(2, x.ndim))
    scale = x.new_full((len(x),), torch.finfo(x.dtype).tiny)
    squares = x.new_zeros(*x.shape[:-1], x.shape[-1] // 2 + 1, 2)
    for k in range(outputs.shape[1]):
        gradient = _gradient(outputs[:, k].sum(), x, last=k + 1 == outputs.shape[1])
        low, high = torch.aminmax(gradient.flatten(1), dim=1)
        largest = torch.maximum(scale, torch.maximum(-low, high))
        parts = torch.view_as_real(torch.fft.rfftn(gradient / _beside(largest, gradient), dim=dims, norm="ortho"))
        squares.mul_(_beside((scale / largest).square(), squares)).addcmul_(parts, parts)
        scale = largest
    norms = squares.sum(-1).to(torch.float64).sqrt()
    return norms * _beside(scale.to(torch.float64), norms)


def _beside(numbers: Float[Tensor, " n"], tensor: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *ones"]:
    """One number an image, in a shape that broadcasts."""
    return numbers.reshape(-1, *[1] * (tensor.ndim - 1))


def _gradient(output: Float[Tensor, ""], x: Float[Tensor, "n C *grid"], *, last: bool) -> Float[Tensor, "n C *grid"]:
    try:
        (gradient,) = torch.autograd.grad(output, x, retain_graph=not last, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"model: torch cannot differentiate it: {_first_line(error)}") from error
    if gradient is None:
        raise ValueError("model: expected outputs that depend on the images, got none; is there a .detach() or torch.no_grad() inside?")
    return gradient


def _outputs(model: nn.Module, x: Float[Tensor, "n C *grid"], before: int) -> Float[Tensor, "n K"]:
    """Checked outputs; x is copied, so that a model may work in place."""
    try:
        outputs: object = model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        layer = next((part for part in model.modules() if not list(part.children()) and list(part.parameters())), None)
        begins = "" if layer is None else f"; its first layer is {layer}"
        raise ValueError(f"images: expected some that the model takes, got {tuple(x.shape)}: {_first_line(error)}{begins}") from error
    if not isinstance(outputs, Tensor):
        raise TypeError(f"model: expected outputs in one tensor (N, K), got {type(outputs).__name__}; wrap it to return the logits alone")
    if outputs.ndim != 2 or len(outputs) != len(x) or outputs.numel() == 0:
        raise ValueError(f"model: expected outputs (N, K), got {tuple(outputs.shape)} for {len(x)} images; flatten or unsqueeze them")
    if not outputs.requires_grad or not outputs.is_floating_point():
        raise ValueError(
            f"model: expected real outputs with a gradient, got {outputs.dtype} without; "
            "is there an argmax, .detach() or torch.no_grad() inside?"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError(f"model: expected finite outputs, got NaN or infinity {_where(outputs, before)}; look at its weights")
    return outputs


def _probe(model: nn.Module, image: Float[Tensor, "1 C *grid"]) -> tuple[Float[Tensor, "1 K"], int]:
    """The outputs of one image, and the bytes that its passes will take: what autograd keeps, and the transforms of a gradient."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = _outputs(model, _leaf(image), 0)
    for weight in (w for w in chain(model.parameters(), model.buffers()) if w.layout == torch.strided):
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return outputs.detach(), sum(kept.values()) + 8 * image.nbytes


def _check_that_images_are_apart(outputs: Float[Tensor, "n K"], alone: Float[Tensor, "1 K"]) -> None:
    """Raise where the first image has other outputs in its batch than alone, by far more than rounding or TF32 can do."""
    error, size = (outputs[:1] - alone).detach().abs().max(), outputs.detach().abs().max()
    if bool(error > torch.finfo(outputs.dtype).eps ** 0.25 * size):
        raise ValueError(
            f"model: expected outputs of each image that depend on nothing else, got a change by {float(error):.2g} in another batch; "
            "does a layer use batch statistics (track_running_stats=False) or random numbers in evaluation mode?"
        )


def _leaf(images: Tensor) -> Tensor:
    """Something new to differentiate in, whatever the mode that the images were made in."""
    return images.clone().detach().requires_grad_()


def _batches(images: object, home: Tensor | None) -> Iterator[Float[Tensor, "n C *grid"]]:
    """The batches in turn, each checked to hold images like the first, and like the model's weights."""
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected a torch tensor (N, C, *grid) or an iterable of them, got {type(images).__name__}")
    like: Tensor | None = None
    for i, given in enumerate([images] if isinstance(images, Tensor) else images):
        name = "images" if isinstance(images, Tensor) else f"images[{i}]"
        batch = given[0] if isinstance(given, tuple | list) and given else given
        batch = validate_tensor(name, batch, ndim=(3, 4, 5), shape="(N, C, *grid) with 1 to 3 dimensions of space")
        like, weight = (batch if like is None else like), (batch if home is None else home)
        if batch.shape[1:] != like.shape[1:] or batch.dtype != like.dtype:
            got, expected = ((tuple(x.shape[1:]), x.dtype) for x in (batch, like))
            raise ValueError(f"{name}: expected images {expected} as in the first batch, got {got}")
        if batch.dtype != weight.dtype:
            raise TypeError(f"{name}: expected {weight.dtype} as the model has, got {batch.dtype}; convert one of them with .to(...)")
        if batch.device.type not in ("cpu", weight.device.type):
            raise ValueError(f"{name}: expected images on the CPU or, as the model, on {weight.device}, got {batch.device}; use .to(...)")
        yield batch


def _home(model: nn.Module) -> Tensor | None:
    """The first real weight or buffer of a module: where it lives and in what dtype it computes."""
    return next((w for w in chain(model.parameters(), model.buffers()) if w.is_floating_point()), None)


def _where(values: Float[Tensor, "n *rest"], before: int) -> str:
    return f"for image {before + int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
