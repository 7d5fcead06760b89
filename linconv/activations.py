"""Outputs of a torch module and of its layers by name, chunk by chunk, and nothing left behind: no hook, no gradient, no mode changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.sgd import mode
from linconv.validation import validate_tensor

# Bytes that a chunk of images may take: on a CPU for each thread near the size of its cache, elsewhere enough to fill the device.
MEMORY_A_THREAD, MEMORY_ELSEWHERE = 2**24, 2**31

Run = Callable[[Tensor], dict[str, Tensor]]


@contextmanager
def layer_outputs(model: nn.Module, layers: Sequence[str]) -> Iterator[Run]:
    """`run(images)`: the outputs of these layers by name, each `(n, K)`, flattened; "" is the model itself.

    In evaluation mode and without gradients while the context lasts; modes and hooks are as before afterwards.  Layers are named as in
    `named_modules`.  Raises `ValueError` or `TypeError` for names that are not there, layers that are not met exactly once in a pass,
    and outputs that are no real tensor with one row an image, or not finite.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in layers:
        if name not in modules:
            raise ValueError(f"layer: expected one of {', '.join(repr(there) for there in modules if there)}, got {name!r}")
    met: dict[str, list[object]] = {name: [] for name in layers}

    def noted(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            # A copy: a layer that works in place, as a ReLU may, would change it afterwards.
            met[name].append(output.detach().clone() if isinstance(output, Tensor) else output)

        return note

    def run(images: Tensor) -> dict[str, Tensor]:
        for outputs in met.values():
            outputs.clear()
        _pass(model, images)
        return {name: _rows(name, outputs, len(images)) for name, outputs in met.items()}

    with ExitStack() as stack:
        for name in layers:
            handle = modules[name].register_forward_hook(noted(name))
            stack.callback(handle.remove)
        stack.enter_context(mode(model, training=False))
        stack.enter_context(torch.no_grad())
        yield run


def home_of(model: nn.Module, images: Float[Tensor, "N C *grid"]) -> torch.device:
    """The device on which a module computes, that of its weights or else of the images; raises where the images are not fit for it."""
    weight = next((w for w in chain(model.parameters(), model.buffers()) if w.is_floating_point()), images)
    if images.dtype != weight.dtype:
        raise TypeError(f"images: expected {weight.dtype} as the model has, got {images.dtype}; convert one of them with .to(...)")
    if images.device.type not in ("cpu", weight.device.type):
        raise ValueError(f"images: expected images on the CPU or, as the model, on {weight.device}, got {images.device}; use .to(...)")
    return weight.device


def chunk_size(model: nn.Module, image: Float[Tensor, "1 C *grid"], layers: Sequence[str]) -> int:
    """How many images to take at once: alive together are the input and output of the widest layer, and what is noted."""
    names = {module: name for name, module in model.named_modules()}
    sizes: dict[str, int] = {"": image.nbytes}

    def measure(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes[names[module]] = output.nbytes

    with ExitStack() as stack:
        for module in names:
            handle = module.register_forward_hook(measure)
            stack.callback(handle.remove)
        stack.enter_context(mode(model, training=False))
        stack.enter_context(torch.no_grad())
        _pass(model, image)
    each = 2 * max(sizes.values()) + 3 * sum(sizes.get(name, 0) for name in layers) + 8 * image.nbytes
    budget = MEMORY_A_THREAD * torch.get_num_threads() if image.device.type == "cpu" else MEMORY_ELSEWHERE
    return max(1, budget // each)


def _pass(model: nn.Module, images: Tensor) -> None:
    """One forward pass on a copy, so that a model may work in place."""
    try:
        model(images.clone())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"images: expected some that the model takes, got {tuple(images.shape)}: {reason}") from error


def _rows(name: str, outputs: list[object], count: int) -> Float[Tensor, "n K"]:
    subject = f"layer {name!r}" if name else "model"
    if len(outputs) != 1:
        raise ValueError(f"{subject}: expected a layer that is met once in a pass, got {len(outputs)} times; name another one")
    output = validate_tensor(f"{subject}: output", outputs[0])
    if output.ndim == 0 or len(output) != count:
        raise ValueError(f"{subject}: expected an output with one row an image, got {tuple(output.shape)} for {count} images")
    return output.flatten(1) if output.ndim > 1 else output[:, None]
