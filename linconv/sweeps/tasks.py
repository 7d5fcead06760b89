"""Jobs of a sweep and what identifies them: the qualified name of the function and the canonical JSON of its parameters."""

import hashlib
import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Job = Callable[..., Mapping[str, Any]]


class Task(NamedTuple):
    id: str
    job: str
    parameters: dict[str, Any]


def _qualified_name(job: Job) -> str:
    """Module and name of the job: half of its identity, so it must be the same in every run."""
    module, name = getattr(job, "__module__", None), getattr(job, "__qualname__", "<none>")
    if not callable(job) or inspect.ismethod(job) or not isinstance(module, str) or "<" in name:
        raise TypeError(
            f"job: expected a function with a name at the top of a module, got {job!r}; its name is half of what a store knows it by"
        )
    if module == "__main__":  # the same name whether the file is run or imported
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{module}.{name}"


def tasks_of(job: Job, grid: object) -> list[Task]:
    """The jobs of a grid, each once."""
    name = _qualified_name(job)
    if isinstance(grid, Mapping):
        columns = {key: _values(key, values) for key, values in grid.items()}
        rows: Iterable[Any] = (dict(zip(columns, row, strict=True)) for row in itertools.product(*columns.values())) if columns else ()
    else:
        rows = _values("", grid)
    tasks = [_task(job, name, row) for row in rows]
    if not tasks:
        raise ValueError("grid: expected at least one job, got none; give each parameter a value")
    return list({task.id: task for task in tasks}.values())


def _values(name: str, values: object) -> Sequence[Any]:
    where = f"grid[{name!r}]" if name else "grid"
    if isinstance(values, np.ndarray | torch.Tensor) and values.ndim == 1:
        return list(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        wanted = "a sequence of values" if name else "a mapping of names to sequences, or a sequence of mappings"
        raise TypeError(f"{where}: expected {wanted}, got {values!r}; put a single value into a list")
    return values


def _task(job: Job, name: str, row: object) -> Task:
    if not isinstance(row, Mapping):
        raise TypeError(f"grid: expected a mapping of parameters for each job, got {row!r}; write {{name: value}}")
    parameters = plain(row, "parameter", nan=False)
    try:
        inspect.signature(job).bind(**parameters)
    except TypeError as error:
        raise TypeError(f"grid: the parameters {sorted(parameters)} are not those of {name}: {error}") from None
    except ValueError:  # a built-in without a signature
        pass
    return Task(identity(name, parameters), name, parameters)


def identity(name: str, parameters: dict[str, Any]) -> str:
    canonical = json.dumps({"job": name, "parameters": parameters}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def plain(value: object, where: str, *, nan: bool) -> Any:
    """`value` as JSON reads it back: built-in scalars, lists and dicts; raises naming the entry that is none of these."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: expected names as keys, got {key!r}; write str({key!r})")
        return {str.__str__(key): plain(entry, f"{where} {key!r}", nan=nan) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where} [{i}]", nan=nan) for i, entry in enumerate(value)]
    if isinstance(value, float) and math.isnan(value) and not nan:
        raise ValueError(f"{where}: NaN is equal to nothing, so it identifies no job; use None")
    if value is not None and not isinstance(value, str | int | float):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where}: expected a value that JSON has, got {kind} {value!r}; pass numbers, strings or lists (array.tolist())")
    return json.loads(json.dumps(value))
