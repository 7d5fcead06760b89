"""Where the jobs of a sweep run: in this process, in processes of this machine, on the workers of a Dask cluster."""

import asyncio
import copy
import functools
import importlib.util
import math
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing
from importlib.metadata import version
from typing import Any

import torch
from joblib import cpu_count
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor, process_executor

from linconv.sweeps.store import Append, Record
from linconv.sweeps.tasks import Job, Task, plain
from linconv.validation import validate_size

Run = Callable[[Task], Record]
Records = Generator[Record, None, None]
Engine = Callable[[list[Task], Append], Records]
POLL = 0.1  # seconds until an interrupted sweep stops its workers
TIMEOUT = 5  # seconds in which a scheduler has to answer
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


def choose_engine(name: object, job: Job, scheduler: object, n_jobs: object) -> Engine:
    """What runs a list of tasks and yields their records as they are stored; raises for a combination that is none."""
    if name not in ("loky", "dask"):
        raise ValueError(f"engine: expected 'loky' or 'dask', got {name!r}")
    if scheduler is not None and (name == "loky" or not isinstance(scheduler, str) or not scheduler):
        raise ValueError(f"scheduler: expected an address such as 'tcp://host:8786', with engine='dask', got {scheduler!r}, {name!r}")
    if scheduler is not None and n_jobs is not None:
        raise ValueError(f"n_jobs: the cluster decides how many workers a scheduler has, got {n_jobs}; leave it out")
    if name == "dask" and importlib.util.find_spec("distributed") is None:
        raise ImportError("engine: 'dask' needs the package distributed; install linconv[dask]")
    count = cpu_count() if n_jobs is None else validate_size("n_jobs", n_jobs)
    run = functools.partial(run_job, job)
    if name == "dask":
        return functools.partial(run_ahead, functools.partial(by_dask, run, scheduler, count))
    if count == 1:
        return functools.partial(run_here, run)
    return functools.partial(run_ahead, functools.partial(by_processes, run, count))


def run_job(job: Job, task: Task) -> Record:
    """The record of one job, made where the job runs; an error takes the place of the result."""
    start = time.perf_counter()
    try:
        result = job(**copy.deepcopy(task.parameters))
        if not isinstance(result, Mapping):
            raise TypeError(f"result: expected a mapping such as {{'error': 0.1}}, got {type(result).__name__}")
        outcome: Record = {"result": plain(result, "result", nan=True)}
    except (Exception, SystemExit) as error:
        outcome = {"error": _portable(error)}
    return {**task._asdict(), **outcome, "seconds": time.perf_counter() - start, "version": _version()}


@functools.cache
def _version() -> str:
    return version("linconv")  # reads a file


def _failure(task: Task, error: BaseException) -> Record:
    """The record of a job that could not be run, or whose result could not be brought here."""
    return {**task._asdict(), "error": _portable(error), "seconds": math.nan, "version": _version()}


def _portable(error: BaseException) -> Exception:
    """The error with its traceback as a note, in a form that reaches the caller from another process."""
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class raises when it is pickled
        copied = None
    if isinstance(copied, Exception):
        return copied
    replaced = RuntimeError(f"{type(error).__name__}: {error}")
    replaced.add_note(error.__notes__[-1])
    return replaced


def run_here(run: Run, tasks: list[Task], append: Append) -> Records:
    for task in tasks:
        yield append(run(task))


def run_ahead(engine: Callable[[list[Task], threading.Event], Records], tasks: list[Task], append: Append) -> Records:
    """The records as they are stored by a thread, which does not wait for the caller to ask for the next one."""
    entries: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def pump() -> None:
        try:
            with closing(engine(tasks, stopped)) as finished:
                for entry in finished:
                    entries.put(append(entry))
            entries.put(None)
        except BaseException as error:  # raised again in the caller's thread
            entries.put(error)

    if not tasks:
        return
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        while (entry := entries.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stopped.set()
        thread.join()


def by_processes(run: Run, count: int, tasks: list[Task], stopped: threading.Event) -> Records:
    """Each job in one of `count` processes.

    Every process is a loky pool of its own: one that dies takes no other job with it, and it is known which job it had.  `joblib.Parallel`
    would give up all jobs in hand, and those that are finished but not yet asked for.
    """
    waiting, running, died = list(reversed(tasks)), dict[Future[Record], tuple[ProcessPoolExecutor, Task]](), set[str]()
    idle: list[ProcessPoolExecutor] = []
    try:
        while (waiting or running) and not stopped.is_set():
            while waiting and len(running) < count:
                pool = idle.pop() if idle else ProcessPoolExecutor(1, initializer=_enter_worker, initargs=(os.getpid(),), env=ONE_THREAD)
                try:
                    running[pool.submit(run, waiting[-1])] = pool, waiting[-1]
                except BrokenProcessPool:  # it died between two jobs
                    pool.shutdown(kill_workers=True)
                else:
                    waiting.pop()
            for future in wait(running, POLL, FIRST_COMPLETED).done:
                pool, task = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    pool.shutdown(kill_workers=True)
                    if task.id not in died:
                        died.add(task.id)
                        waiting.append(task)
                        continue
                else:
                    idle.append(pool)
                yield future.result() if error is None else _failure(task, error)
    finally:
        for pool in [*idle, *(pool for pool, _ in running.values())]:
            pool.shutdown(kill_workers=True)


def _enter_worker(parent: int) -> None:
    """One thread; Ctrl-C is the parent's affair; and no work for a parent that is dead, which loky would go on with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # With psutil, loky replaces a worker that grew by 300 MB and warns of a leak, even if it only keeps what the next job needs.
    process_executor._USE_PSUTIL = False

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def by_dask(run: Run, scheduler: str | None, count: int, tasks: list[Task], stopped: threading.Event) -> Records:
    """Each job a Dask future.  With joblib's Dask backend one lost job would end the sweep; futures fail, and are repeated, one by one."""
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        address = scheduler
        if address is None:
            cluster = LocalCluster(n_workers=min(count, len(tasks)), threads_per_worker=1, dashboard_address=":0")
            address = stack.enter_context(cluster).scheduler_address
        asyncio.run(_reach(address))
        client = stack.enter_context(Client(address, timeout=TIMEOUT, set_as_default=False))
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        futures = {future.key: (future, task) for future, task in zip(client.map(run, tasks, pure=False), tasks, strict=True)}
        for future, _ in futures.values():
            future.add_done_callback(finished.put)
        while futures and not stopped.is_set():
            try:
                future = finished.get(timeout=POLL)
            except queue.Empty:
                continue
            if future.cancelled():
                raise ConnectionError(f"scheduler: {address} is gone; finished jobs are stored, run the sweep again when it is back")
            task, error = futures.pop(future.key)[1], future.exception()
            entry = future.result() if error is None else _failure(task, error)
            future.release()  # else the cluster would repeat the job if the worker that keeps the result is lost
            yield entry


async def _reach(address: str) -> None:
    """Raise `ConnectionError` if no scheduler answers; a `Client` would say so too, but print tracebacks when it is collected."""
    from distributed.comm import connect
    from distributed.security import Security

    try:
        comm = await connect(address, timeout=TIMEOUT, **Security().get_connection_args("client"))
        await comm.close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"scheduler: none answers at {address} ({error}); start one with `dask scheduler`") from None
