"""The file of a sweep: one JSON line a finished job, written under a lock, readable after any kill."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from linconv.sweeps.tasks import identity

Record = dict[str, Any]
Append = Callable[[Record], Record]
FIELDS = {"id": str, "job": str, "parameters": dict, "result": dict, "seconds": float, "version": str}
BEGINNING = b'{"id": "'  # of every line that is written here


def read_store(store: str | os.PathLike[str]) -> list[Record]:
    """The records of a store in the order in which they finished, each once, for tables and figures; a line torn by a kill is left out.

    The keys are those of `sweep`.  Raises `FileNotFoundError` where there is no store, `ValueError` with the line for a damaged one.
    """
    path = store_path(store)
    if not path.exists():
        raise FileNotFoundError(f"store: there is no file {path}; run the sweep first")
    return list(parse(path.read_bytes(), path)[0].values())


def store_path(store: object) -> Path:
    if not isinstance(store, str | os.PathLike):
        raise TypeError(f"store: expected the path of a file, got {store!r}; for instance 'results.jsonl'")
    path = Path(os.fsdecode(store))
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"lies in a folder {path.parent} that does not exist"
        raise ValueError(f"store: expected the path of a file, {path} {problem}; give one such as 'results.jsonl' in an existing folder")
    return path


@contextmanager
def open_store(path: Path) -> Iterator[tuple[dict[str, Record], Append]]:
    """The records of the store and the function that adds to it, under a lock that ends with this process at the latest."""
    import fcntl  # POSIX only: the library itself can be imported anywhere

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise type(error)(f"store: {path} cannot be opened for writing ({error.strerror}); give a file in a folder of yours") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"store: {path} is in use by another sweep; wait until it ends, or give another store") from None
        content = path.read_bytes()
        records, whole = parse(content, path)
        os.ftruncate(descriptor, whole)
        if whole and content[whole - 1 : whole] != b"\n":  # a record to its last brace
            os.write(descriptor, b"\n")
        yield records, functools.partial(_append, descriptor)
    finally:
        os.close(descriptor)


def _append(descriptor: int, entry: Record) -> Record:
    """Add a finished job to the store, in one write that is on the disk before the record is seen by anyone."""
    if "result" in entry:
        line = json.dumps({field: entry[field] for field in FIELDS}).encode() + b"\n"
        if os.write(descriptor, line) < len(line):
            raise OSError("store: a line could not be written to its end; free space on the disk and run the sweep again")
        os.fsync(descriptor)
    return entry


def parse(content: bytes, path: Path) -> tuple[dict[str, Record], int]:
    """The records by id, and how many bytes are whole: all but a last line that was torn when the process was killed."""
    *lines, last = content.split(b"\n")
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, 1):
        record = _record(line, number, path)
        records.setdefault(record["id"], record)
    if not last:
        return records, len(content)
    try:
        json.loads(last)
    except ValueError:
        # Only what this module began to write may be cut off.
        if last.startswith(BEGINNING) or BEGINNING.startswith(last):
            return records, len(content) - len(last)
    record = _record(last, len(lines) + 1, path)
    records.setdefault(record["id"], record)
    return records, len(content)


def _record(line: bytes, number: int, path: Path) -> Record:
    try:
        record = json.loads(line)
        fields = {name: type(value) for name, value in record.items()}
        intact = fields == FIELDS and record["id"] == identity(record["job"], record["parameters"])
    except (ValueError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(
            f"store: line {number} of {path} is no record of a sweep; delete the line and its job runs again, or give another store"
        )
    return record
