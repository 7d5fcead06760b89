"""What the claims on trained networks share: images of two classes at least, runs that a store keeps, statements over seeds."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from linconv import images
from linconv.claims import Check, Note, Progress, UsageError, exceeds, inconclusive
from linconv.images.files import split_folder
from linconv.statistics import Interval, mean_interval
from linconv.sweeps import read_store, sweep
from linconv.sweeps.tasks import tasks_of

NAMED = ("photos", "cifar10", "fashion-mnist")
Parameters = dict[str, Any]
Record = dict[str, Any]


def train_all(
    run: Callable[..., Mapping[str, Any]],
    tasks: list[Parameters],
    store: str,
    jobs: int,
    engine: Literal["loky", "dask", "none"],
    scheduler: str,
    records: list[Record],
) -> Iterator[Progress]:
    """Train what the store does not have yet, and put the records of all tasks into `records`, in the order of `identity`.

    `run(**task)` is a job of `linconv.sweeps.sweep`, whose errors of the store, of the engine and of the scheduler become a `UsageError`.
    An empty `store` keeps nothing; an empty `scheduler` is a cluster on this machine, of `jobs` processes.  With the engine "none" nothing
    is trained: `records` are those that the store has, also while another process trains the others.
    """
    if engine == "none":
        if scheduler:
            raise UsageError(f"scheduler: --engine none trains nothing, got {scheduler}; leave it out")
        records.extend(stored(run, tasks, store))
        return
    with ExitStack() as stack:
        path = Path(store) if store else Path(stack.enter_context(tempfile.TemporaryDirectory()), "runs.jsonl")
        try:
            found = sweep(run, tasks, store=path, engine=engine, scheduler=scheduler or None, n_jobs=None if scheduler else jobs)
            yield Progress(f"training, 0 of {len(tasks)} runs")
            for record in found:
                records.append(record)
                yield Progress(f"training, {len(records)} of {len(tasks)} runs", len(records) / len(tasks))
        except (ValueError, OSError, ImportError) as error:  # jobs that raise are an ExceptionGroup, and a fault of the claim
            raise UsageError(str(error)) from error
    records.sort(key=lambda record: identity(record["parameters"]))


def stored(run: Callable[..., Mapping[str, Any]], tasks: list[Parameters], store: str) -> list[Record]:
    """The records of these tasks that are in the store; a `UsageError` where there is none."""
    if not store:
        raise UsageError("store: --engine none trains nothing, it needs a file of finished runs; give --store FILE")
    try:
        found = {record["id"]: record for record in read_store(store)}
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    records = [found[task.id] for task in tasks_of(run, tasks) if task.id in found]
    if not records:
        raise UsageError(
            f"store: {store} has none of the {len(tasks)} runs of this preset, data and seed; give those that it was filled with"
        )
    return sorted(records, key=lambda record: identity(record["parameters"]))


def missing(tasks: list[Parameters], records: list[Record], *, by: tuple[str, ...]) -> str:
    """What of the tasks the records lack, counted by these parameters; empty where nothing does."""
    present = {identity(record["parameters"]) for record in records}
    absent = [task for task in tasks if identity(task) not in present]
    counts = Counter(" ".join(f"{name} {task[name]}" for name in by) for task in absent)
    listed = "; ".join(f"{count} of {what}" for what, count in counts.items())
    return f"{len(absent)} of {len(tasks)} runs are not in the store: {listed}" if absent else ""


def identity(parameters: Mapping[str, Any]) -> str:
    """The same text for the same parameters, in whichever order they stand."""
    return repr(sorted(parameters.items()))


def classified(data: str, load: Callable[[], images.ImageSet]) -> images.ImageSet:
    """What `load` reads of `data`; a `UsageError` where it cannot, and where there is nothing to tell apart."""
    try:
        loaded = load()
    except (ValueError, OSError) as error:
        raise UsageError(f"data: {error}") from error
    if len(loaded.classes) < 2:
        raise UsageError(f"data: expected at least two classes, {data} has only {loaded.classes[0]!r}")
    return loaded


def train_and_test(data: str, samples: int | None, side: int, seed: int) -> list[images.ImageSet]:
    """`samples` training images, or all, in single precision, and a quarter as many test images, 100 at least.

    Of a folder without a test part some images are held out: a fifth where all are taken.
    """
    tested = None if samples is None else max(samples // 4, 100)
    generator = torch.Generator().manual_seed(seed)
    shared: dict[str, Any] = {"grid": (side, side), "dtype": torch.float32, "generator": generator}
    folder = Path(data)
    if data in NAMED or not folder.is_dir() or split_folder(folder, "train")[0] != folder:
        return [_part(data, split, n, shared) for split, n in (("train", samples), ("test", tested))]
    whole = images.load(data, samples=None if samples is None or tested is None else samples + tested, **shared)
    # A drawn subset has its classes in turn; all images lie class by class.
    order = torch.randperm(len(whole), generator=generator) if samples is None else torch.arange(len(whole))
    parts = order.split([kept := samples or round(0.8 * len(whole)), len(whole) - kept])
    return [images.ImageSet(whole.images[part], whole.labels[part], whole.classes) for part in parts]


def _part(data: str, split: str, samples: int | None, options: dict[str, Any]) -> images.ImageSet:
    try:
        return images.load(data, split=split, samples=samples, **options)
    except ValueError as error:
        raise ValueError(f"{split} images: {error}") from error


def untrained(record: Record, least: float) -> str:
    """Why runs say nothing about trained networks; empty where they do."""
    found = torch.as_tensor(record["result"].get("train_accuracy", 0.0), dtype=torch.float64)
    reached = float(found.mean()) if found.numel() else 0.0
    return "" if reached >= least else f"the networks did not learn: accuracy {reached:.2f} in training, below {least:.2f}"


def judged(entries: Iterator[Check | Note], why: str) -> Iterator[Check | Note]:
    """Statements about trained networks are open where there are none; their controls and notes stay."""
    for entry in entries:
        open_now = why and isinstance(entry, Check) and not entry.control
        yield inconclusive(entry.name, why, required=entry.required) if open_now and isinstance(entry, Check) else entry


def over_seeds(values: Float[Tensor, " seeds"]) -> Interval | None:
    """Interval of the mean over the seeds that have a number, None where fewer than two do."""
    finite = values[values.isfinite()]
    return mean_interval(finite) if len(finite) > 1 else None


def decided(name: str, values: Float[Tensor, " seeds"], bound: float, *, required: bool = True) -> Check:
    interval = over_seeds(values)
    if interval is None:
        return inconclusive(name, "fewer than two seeds have a finite value", required=required)
    return exceeds(name, interval, bound, draws=int(values.isfinite().sum()), required=required)


def shown(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{float(interval.estimate):.2f} ({float(interval.low):.2f} to {float(interval.high):.2f})"
