"""Arguments that are no flags: tensors, networks, and tuples or frozen records of them.

They can be taken apart into tensors and put together again, compared with what they were, written as JSON and as Python source.
A network is any `torch.nn.Module` with `weights`, `grid` and a constructor `from_weights(weights, grid)`, the last weight as wide as
the grid.  Nothing is pickled: a record says which class of which module it belongs to.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDE_OPEN = 64  # entries from which a tensor of zeros is written as torch.zeros


def is_network(value: object) -> bool:
    return isinstance(value, nn.Module) and callable(getattr(type(value), "from_weights", None)) and hasattr(value, "weights")


def is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors inside an argument, in a fixed order: the weights of a network, the entries of a tuple, the fields of a record."""
    if isinstance(value, Tensor):
        return [value]
    if is_network(value):
        return list(value.weights)
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    parts = value if isinstance(value, tuple | list) else list(fields_of(value).values()) if is_record(value) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def rebuilt(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The argument with other tensors in the places of its own; a network takes its grid from its last weight.

    `TypeError` for a module that cannot be made from weights.
    """
    fresh = iter(tensors)

    def build(part: Any) -> Any:
        if isinstance(part, Tensor):
            return next(fresh)
        if is_network(part):
            weights = [next(fresh) for _ in part.weights]
            return type(part).from_weights(weights, tuple(weights[-1].shape[2:]))
        if isinstance(part, nn.Module):
            raise TypeError(f"a {type(part).__name__} cannot be made from weights")
        if isinstance(part, tuple | list):
            return type(part)(map(build, part))
        return dataclasses.replace(part, **{name: build(entry) for name, entry in fields_of(part).items()}) if is_record(part) else part

    return build(value)


def is_rebuildable(value: Any) -> bool:
    """Whether `rebuilt` can make others like it: no module inside that hides its weights."""
    if isinstance(value, nn.Module):
        return is_network(value)
    if isinstance(value, tuple | list) and type(value) not in (tuple, list):
        return False
    parts = value if isinstance(value, tuple | list) else list(fields_of(value).values()) if is_record(value) else []
    return all(map(is_rebuildable, parts))


def snapshot(arguments: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Copies of all tensors and arrays among the arguments, for `changed`."""
    return {name: [tensor.detach().clone() for tensor in found] for name, value in arguments.items() if (found := _watched(value))}


def changed(arguments: Mapping[str, Any], before: Mapping[str, list[Tensor]]) -> str:
    """The name of the first argument whose numbers are not what they were; empty where there is none."""
    for name, copies in before.items():
        found = _watched(arguments[name])
        if len(found) != len(copies) or not all(_same(now, then) for now, then in zip(found, copies, strict=True)):
            return name
    return ""


def restore(arguments: Mapping[str, Any], before: Mapping[str, list[Tensor]]) -> None:
    """Give all tensors and arrays among the arguments the numbers back that they had at the snapshot."""
    for name, copies in before.items():
        for now, then in zip(_watched(arguments[name]), copies, strict=False):  # an entry that was taken out of a list stays out
            if now.shape == then.shape and now.dtype == then.dtype and 0 not in now.stride():  # an expanded tensor has no place for each
                now.detach().copy_(then)
            else:
                now.data = then.clone()


def _watched(value: Any) -> list[Tensor]:
    return [torch.from_numpy(value)] if isinstance(value, np.ndarray) and value.dtype.kind in "fcib" else tensors_of(value)


def _same(now: Tensor, then: Tensor) -> bool:
    if now.shape != then.shape or now.dtype != then.dtype:
        return False
    now = now.detach()
    return bool(((now == then) | ((now != now) & (then != then))).all())  # NaN is NaN


def written(value: Any) -> Any:
    """A JSON value from which `read` makes the argument again, bit for bit.  `TypeError` where there is none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Tensor):
        return _written_tensor(value)
    if is_network(value):
        return {"network": _name(type(value)), "grid": list(value.grid), "weights": [_written_tensor(weight) for weight in value.weights]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [written(part) for part in value]} if type(value) in (tuple, list) else _refuse(value)
    if is_record(value) and not isinstance(value, nn.Module):
        return {"record": _name(type(value)), "fields": {name: written(part) for name, part in fields_of(value).items()}}
    return _refuse(value)


def _refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} cannot be written down")


def _written_tensor(tensor: Tensor) -> dict[str, Any]:
    flat = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "entries": flat.flatten().tolist()}


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def read(document: Any) -> Any:
    """What `written` wrote."""
    if not isinstance(document, dict):
        return document
    if "entries" in document:
        return _read_tensor(document)
    if "path" in document:
        return Path(document["path"])
    if "network" in document:
        return _class(document["network"]).from_weights([_read_tensor(weight) for weight in document["weights"]], tuple(document["grid"]))
    if "record" in document:
        return _class(document["record"])(**{name: read(part) for name, part in document["fields"].items()})
    name, parts = next(iter(document.items()))
    return {"tuple": tuple, "list": list}[name](map(read, parts))


def _read_tensor(document: Mapping[str, Any]) -> Tensor:
    dtype = getattr(torch, document["dtype"])
    entries = [float(entry) if isinstance(entry, str) else entry for entry in document["entries"]]  # "NaN", "Infinity"
    flat = torch.tensor(entries, dtype=dtype.to_real() if dtype.is_complex else dtype)
    return (torch.view_as_complex(flat.reshape(-1, 2)) if dtype.is_complex else flat).reshape(document["shape"])


def _class(name: str) -> Any:
    module, _, qualified = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def source(value: Any, modules: set[str]) -> str:
    """The argument as a Python expression; the modules that it needs are added to `modules`."""
    if isinstance(value, Tensor):
        return _tensor_source(value, modules)
    if is_network(value):
        weights = ", ".join(_tensor_source(weight, modules) for weight in value.weights)
        return f"{_public(type(value), modules)}.from_weights([{weights}], {tuple(value.grid)})"
    if isinstance(value, Path):
        return repr(str(value))
    if type(value) in (tuple, list):
        inner = ", ".join(source(part, modules) for part in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if is_record(value):
        given = ", ".join(f"{name}={source(part, modules)}" for name, part in fields_of(value).items())
        return f"{_public(type(value), modules)}({given})"
    return repr(value)


def _tensor_source(tensor: Tensor, modules: set[str]) -> str:
    modules.add("torch")
    tensor = tensor.detach()
    if tensor.numel() == 0 or (tensor.numel() >= WIDE_OPEN and not bool(tensor.any())):
        return f"torch.zeros({tuple(tensor.shape)}, dtype={tensor.dtype})"
    listed = repr(tensor.tolist())
    for word in ("nan", "inf"):
        listed = listed.replace(word, f"float('{word}')")
    return f"torch.tensor({listed}, dtype={tensor.dtype})"


def _public(kind: type, modules: set[str]) -> str:
    """The name under which a user imports a class: that of the outermost package that has it."""
    package = kind.__module__.partition(".")[0]
    home = package if getattr(importlib.import_module(package), kind.__name__, None) is kind else kind.__module__
    modules.add(home)
    return f"{home}.{kind.__qualname__}"


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The argument with a function applied to each of its tensors."""
    return rebuilt(value, [function(tensor.detach()) for tensor in tensors_of(value)])
