"""Parameter sweeps that can be killed at any moment: every finished job is one line of a file, and no job runs twice.

A job is a function of named parameters that returns a mapping of JSON values.  Its identity is the SHA-256 of its qualified name and of the
canonical JSON of its parameters, floats by `repr`, so that equal jobs are found again in the store bit for bit.  Only the calling process
writes, under a lock, one line at a time.  How to use it: docs/sweeps.md.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from linconv.sweeps.engines import Engine, choose_engine
from linconv.sweeps.store import Record, open_store, read_store, store_path
from linconv.sweeps.tasks import Job, Task, tasks_of

__all__ = ["read_store", "sweep"]


def sweep(
    job: Job,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    store: str | os.PathLike[str],
    engine: Literal["loky", "dask"] = "loky",
    scheduler: str | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> Iterator[Record]:
    """Run `job(**parameters)` for what is not yet in the store, append each result as it arrives, and yield the records.

    `job` is a function with a name of its own (no lambda) that returns a mapping of JSON values; NaN and infinity are kept.  `grid` maps
    each parameter to a sequence of values, of which all combinations run, or is a sequence of mappings, one a job; equal jobs run once.
    NumPy and torch scalars become Python's, tuples lists: the job receives what the store records.  NaN is no parameter.

    A record has the keys `id`, `job`, `parameters`, `result`, `seconds` (of the job) and `version` (of linconv).  Those in the store
    come first, in the order of the grid, then the others as they finish.  A job that raises, or whose worker dies twice, is yielded with
    `error`, the exception, instead of `result`; it is not stored, and runs again next time.  At the end all errors are raised together.
    Nothing runs before the first record is asked for; from then on jobs go on, and are stored, whatever the caller does meanwhile.

    `engine="loky"`: `n_jobs` processes (default: all cores) with one BLAS and torch thread each; `n_jobs=1` runs in this process, with its
    threads.  `engine="dask"`: the workers of the `scheduler` with this address; without one, a local cluster of `n_jobs` processes.
    `progress` shows a bar on stderr.

    Raises, before anything runs, `TypeError` or `ValueError` for bad arguments and damaged stores; at the first record `BlockingIOError` if
    another sweep writes to the store, and `ConnectionError` if the scheduler does not answer; at the end an `ExceptionGroup` of the errors
    of the jobs.  Derived here.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = f"{folder.name}/results.jsonl"
    >>> [entry["result"] for entry in sweep(dict, {"depth": [1, 2], "seed": [0]}, store=store, n_jobs=1)]
    [{'depth': 1, 'seed': 0}, {'depth': 2, 'seed': 0}]
    >>> [record["parameters"]["depth"] for record in read_store(store)]
    [1, 2]
    >>> folder.cleanup()
    """
    tasks = tasks_of(job, grid)
    path = store_path(store)
    if path.exists():
        read_store(path)
    return _sweep(tasks, path, choose_engine(engine, job, scheduler, n_jobs), progress)


def _sweep(tasks: list[Task], path: Path, engine: Engine, progress: bool) -> Iterator[Record]:
    errors = []
    with open_store(path) as (records, append):
        pending = [task for task in tasks if task.id not in records]
        with _bar(progress, tasks[0].job, len(tasks), len(tasks) - len(pending)) as advance:
            yield from (records[task.id] for task in tasks if task.id in records)
            with closing(engine(pending, append)) as entries:
                for entry in entries:
                    advance()
                    if "error" in entry:
                        entry["error"].add_note(f"in {entry['job']} with {entry['parameters']}")
                        errors.append(entry["error"])
                    yield entry
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(tasks)} jobs failed, the others are in {path}; run the sweep again to retry", errors)


@contextmanager
def _bar(shown: bool, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # stdout stays the caller's own: it may go to a file.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda: bar.advance(task)
