"""Sweeps that are rerun, extended, killed and damaged; jobs are counted through a file, since they run in other processes."""

import hashlib
import importlib.util
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linconv.sweeps import engines, read_store, sweep
from linconv.sweeps.store import parse
from linconv.sweeps.tasks import tasks_of

needs_dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="the package distributed is not installed")


def noted(log, a, b=0):
    """a + b, and a line in the log for each call."""
    with open(log, "a") as file:
        file.write(f"{a}\n")
    return {"sum": a + b, "pid": os.getpid(), "threads": torch.get_num_threads(), "environment": os.environ.get("OMP_NUM_THREADS")}


def noted_too(log, a, b=0):
    return noted(log, a, b)


def echo(value):
    return {"value": value}


def slow(log, a):
    time.sleep(0.1)
    return noted(log, a)


class StubbornError(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


def moody(log, a):
    noted(log, a)
    if Path(log).with_suffix(".well").exists() or a == 0:
        return {"a": a}
    if a == 1:
        raise KeyError("one")
    if a == 2:
        sys.exit(3)
    if a == 3:
        raise StubbornError("three", None)
    return {2: "two"} if a == 4 else [a]


def mortal(log, a):
    """Kills its worker: a = 1 the first time, a = 2 always."""
    noted(log, a)
    if a == 2 or (a == 1 and calls(log).count("1") == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"a": a}


def calls(log):
    return Path(log).read_text().split() if Path(log).exists() else []


def results(records):
    """What a sweep found, by parameters: all of a record that does not depend on the clock or the process."""
    return {json.dumps(record["parameters"], sort_keys=True): record["result"]["sum"] for record in records}


def running(pid):
    """Whether a process is alive; one that only waits to be collected is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def log(tmp_path):
    return str(tmp_path / "calls.log")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store.jsonl"


# Identity


def test_records_have_the_documented_form(store, log):
    (record,) = sweep(noted, {"log": [log], "a": [0.1], "b": [2]}, store=store, n_jobs=1)
    text = f'{{"job":"tests.test_sweeps.noted","parameters":{{"a":0.1,"b":2,"log":{json.dumps(log)}}}}}'
    assert record["id"] == hashlib.sha256(text.encode()).hexdigest()
    assert record["job"] == "tests.test_sweeps.noted"
    assert record["parameters"] == {"log": log, "a": 0.1, "b": 2}
    assert record["result"]["sum"] == 2.1
    assert record["version"] == version("linconv")
    assert record["seconds"] >= 0
    assert [json.loads(line) for line in store.read_text().splitlines()] == [record] == read_store(store)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1, np.float64(0.1)),
        (float(np.float32(0.1)), np.float32(0.1)),
        (2, np.int64(2)),
        (2, np.array(2)),
        (2, torch.tensor(2)),
        (0.5, torch.tensor(0.5, requires_grad=True)),
        (True, np.bool_(True)),
        ("a", np.str_("a")),
        ([4, [5, None]], (4, (5, None))),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}),
        (math.inf, np.inf),
    ],
)
def test_equal_parameters_are_one_job(one, other):
    (task,) = tasks_of(echo, {"value": [one, other]})
    assert type(task.parameters["value"]) is type(one)
    assert tasks_of(echo, [{"value": other}]) == [task]


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), (0.1, math.nextafter(0.1, 1)), ("1", 1), (None, 0), ([], {})])
def test_different_parameters_are_different_jobs(one, other):
    assert len({task.id for task in tasks_of(echo, {"value": [one, other]})}) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON, min_size=1, max_size=4))
def test_jobs_receive_what_the_store_records_and_the_store_returns_it(values):
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        first = list(sweep(echo, {"value": values}, store=store, n_jobs=1))
        assert all(record["result"] == record["parameters"] for record in first)
        # repr tells 1 from True and 0.0 from -0.0.
        assert list(dict.fromkeys(map(repr, values))) == [repr(record["result"]["value"]) for record in first]
        assert repr(read_store(store)) == repr(first) == repr(list(sweep(echo, {"value": values}, store=store, n_jobs=1)))


def test_all_combinations_run_in_order_and_mappings_are_the_same_jobs(store, log):
    product = list(sweep(noted, {"log": [log], "a": range(2), "b": np.array([0.5, 1.5])}, store=store, n_jobs=1))
    assert [record["result"]["sum"] for record in product] == [0.5, 1.5, 1.5, 2.5]
    rows = [{"b": b, "a": a, "log": log} for a in (0, 1) for b in (0.5, 1.5)]
    assert list(sweep(noted, rows, store=store, n_jobs=1)) == product
    assert len(calls(log)) == 4


# What runs


def test_a_rerun_does_nothing_and_added_values_run_alone(store, log):
    first = list(sweep(noted, {"log": [log], "a": [1, 2]}, store=store, n_jobs=1))
    content = store.read_bytes()
    assert list(sweep(noted, {"log": [log], "a": [1, 2]}, store=store, n_jobs=1)) == first
    assert calls(log) == ["1", "2"]
    assert store.read_bytes() == content
    more = list(sweep(noted, {"log": [log], "a": [3, 2, 1, 0]}, store=store, n_jobs=1))
    assert calls(log) == ["1", "2", "3", "0"]
    assert [record["parameters"]["a"] for record in more] == [2, 1, 3, 0]  # the stored first, both in the order of the grid
    assert store.read_bytes().startswith(content)


def test_another_function_is_another_job(store, log):
    for job in (noted, noted_too, noted):
        list(sweep(job, {"log": [log], "a": [1]}, store=store, n_jobs=1))
    assert len(calls(log)) == 2
    assert [record["job"].rpartition(".")[2] for record in read_store(store)] == ["noted", "noted_too"]


def test_nothing_runs_before_the_first_record_is_asked_for(store, log):
    records = sweep(noted, {"log": [log], "a": [1]}, store=store, n_jobs=1)
    assert calls(log) == []
    assert not store.exists()
    next(records)
    assert calls(log) == ["1"]


def test_failed_jobs_leave_the_others_alone_and_are_tried_again(store, log):
    grid = {"log": [log], "a": range(6)}
    entries = []
    with pytest.raises(ExceptionGroup, match=r"5 of 6 jobs failed.*again to retry") as caught:
        entries.extend(sweep(moody, grid, store=store, n_jobs=1))  # what came before the error is kept
    failed = {entry["parameters"]["a"]: entry["error"] for entry in entries if "error" in entry}
    assert [type(failed[a]) for a in range(1, 6)] == [KeyError, RuntimeError, RuntimeError, TypeError, TypeError]
    assert [str(failed[a]) for a in (1, 2, 3)] == ["'one'", "SystemExit: 3", "StubbornError: three"]
    assert "result: expected names as keys, got 2" in str(failed[4])
    assert "result: expected a mapping" in str(failed[5])
    assert "in moody" in failed[3].__notes__[0]
    assert failed[3].__notes__[-1] == f"in tests.test_sweeps.moody with {{'log': {log!r}, 'a': 3}}"
    assert [str(error) for error in caught.value.exceptions] == [str(failed[a]) for a in range(1, 6)]
    assert [record["parameters"]["a"] for record in read_store(store)] == [0]
    Path(log).with_suffix(".well").touch()
    assert len(list(sweep(moody, grid, store=store, n_jobs=1))) == 6
    assert calls(log) == [*"012345", *"12345"]


def test_results_that_are_not_finite_are_kept(store):
    values = [math.inf, -math.inf]
    list(sweep(echo, {"value": values}, store=store, n_jobs=1))
    assert [record["result"]["value"] for record in read_store(store)] == values
    (record,) = sweep(dict, [{"loss": 1.0}], store=store, n_jobs=1)
    assert record["result"] == {"loss": 1.0}


def undefined(a):
    return {"loss": math.nan, "weights": np.float64(a)}


def unsuitable(a):
    return {"loss": [a, torch.ones(2)]}


def test_results_are_numbers_lists_and_mappings(store):
    (record,) = sweep(undefined, {"a": [2.0]}, store=store, n_jobs=1)
    assert math.isnan(record["result"]["loss"])
    assert math.isnan(read_store(store)[0]["result"]["loss"])
    with pytest.raises(ExceptionGroup) as caught:
        list(sweep(unsuitable, {"a": [2.0]}, store=store, n_jobs=1))
    assert "result 'loss' [1]: expected a value that JSON has, got torch.Tensor" in str(caught.value.exceptions[0])


def altering(values):
    values.append(1)
    return {"values": values}


def test_a_job_that_alters_its_parameters_does_not_alter_the_record(store):
    (record,) = sweep(altering, {"values": [[0]]}, store=store, n_jobs=1)
    assert (record["parameters"], record["result"]) == ({"values": [0]}, {"values": [0, 1]})
    assert list(sweep(altering, {"values": [[0]]}, store=store, n_jobs=1)) == [record]


# The store


def test_a_line_torn_anywhere_costs_its_job_alone(store, log):
    grid = {"log": [log], "a": [1, 2, 3]}
    records = list(sweep(noted, grid, store=store, n_jobs=1))
    content = store.read_bytes()
    start = content[:-1].rindex(b"\n") + 1
    for cut in range(start, len(content)):
        whole = cut == len(content) - 1  # only the line break is missing
        store.write_bytes(content[:cut])
        assert read_store(store) == records[: 3 if whole else 2]
        if cut % 20 == 0 or cut >= len(content) - 2:
            before = len(calls(log))
            again = list(sweep(noted, grid, store=store, n_jobs=1))
            assert len(calls(log)) - before == (not whole)
            assert results(again) == results(records)
            assert len(store.read_bytes().splitlines()) == 3
            assert store.read_bytes().endswith(b"\n")  # else the next record would be torn with this one
            assert read_store(store) == again


def damages(line):
    record = json.loads(line)
    yield b"{"
    yield b""
    yield b"[1, 2]"
    yield b"\xff\x00"
    yield line[:-5]
    for field in record:
        yield json.dumps({key: value for key, value in record.items() if key != field}).encode()
    for changed in ({"parameters": {"a": 7}}, {"job": "other"}, {"id": "0"}, {"seconds": "1"}, {"result": [1]}, {"more": 1}):
        yield json.dumps(record | changed).encode()


def test_a_damaged_line_is_named_and_nothing_runs_or_is_written(store, log):
    grid = {"log": [log], "a": [1, 2, 3, 4]}
    list(sweep(noted, {**grid, "a": [1, 2, 3]}, store=store, n_jobs=1))
    lines = store.read_bytes().splitlines()
    for damage in damages(lines[1]):
        store.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
        before = store.read_bytes()
        for act in (lambda: read_store(store), lambda: sweep(noted, grid, store=store, n_jobs=1)):
            with pytest.raises(ValueError, match=rf"store: line 2 of {re.escape(str(store))} .*delete the line"):
                act()
        assert store.read_bytes() == before
    assert len(calls(log)) == 3
    store.write_bytes(b"\n".join([lines[0], lines[2], b""]))  # the remedy that the error names
    assert len(list(sweep(noted, grid, store=store, n_jobs=1))) == 4
    assert calls(log)[3:] == ["2", "4"]


@pytest.mark.parametrize("content", [b"\\documentclass{article}", b'{"name": "mine"', b'{"name": "mine"}', b"{}", b"7", b"\x00\x00"])
def test_a_file_that_is_no_store_is_not_touched(store, content):
    store.write_bytes(content)
    with pytest.raises(ValueError, match=r"store: line 1 .* is no record"):
        list(sweep(echo, {"value": [1]}, store=store, n_jobs=1))
    assert store.read_bytes() == content


def test_stores_can_be_joined(store, log, tmp_path):
    for a in ([1, 2], [2, 3]):
        part = tmp_path / f"{a}.jsonl"
        list(sweep(noted, {"log": [log], "a": a}, store=part, n_jobs=1))
        store.write_bytes((store.read_bytes() if store.exists() else b"") + part.read_bytes())
    assert [record["parameters"]["a"] for record in read_store(store)] == [1, 2, 3]
    assert parse(store.read_bytes(), store)[1] == len(store.read_bytes())


def test_a_store_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("linconv.sweeps.store.os.open", refused)
    with pytest.raises(
        PermissionError, match=r"^store: .*x\.jsonl cannot be opened for writing \(Permission denied\); give a file in a folder"
    ):
        list(sweep(dict, {"a": [1]}, store=tmp_path / "x.jsonl", n_jobs=1))


def test_two_sweeps_do_not_share_a_store(store, log):
    first = sweep(noted, {"log": [log], "a": [1, 2]}, store=store, n_jobs=1)
    next(first)
    second = sweep(noted, {"log": [log], "a": [3]}, store=store, n_jobs=1)
    with pytest.raises(BlockingIOError, match=r"store: .* is in use by another sweep; wait"):
        next(second)
    assert len(read_store(store)) == 1  # reading is free
    first.close()
    assert len(list(sweep(noted, {"log": [log], "a": [3]}, store=store, n_jobs=1))) == 1
    assert calls(log) == ["1", "3"]


def test_a_full_disk_is_an_error_and_the_torn_line_is_repaired(store, log, monkeypatch):
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        with pytest.raises(OSError, match="free space"):
            list(sweep(noted, {"log": [log], "a": [1]}, store=store, n_jobs=1))
    assert read_store(store) == []
    assert len(list(sweep(noted, {"log": [log], "a": [1]}, store=store, n_jobs=1))) == len(read_store(store)) == 1


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"value": [1.0, math.nan]}, ValueError, "parameter 'value': NaN"),
        ({"value": [[1, {"x": np.float32("nan")}]]}, ValueError, r"parameter 'value' \[1\] 'x': NaN"),
        ({"value": [torch.ones(2)]}, TypeError, r"parameter 'value': .* got torch.Tensor .*tolist"),
        ({"value": [1j]}, TypeError, "parameter 'value': .* got builtins.complex"),
        ({"value": [torch.float32]}, TypeError, "parameter 'value': .* got torch.dtype"),
        ({"value": [b"a"]}, TypeError, "parameter 'value': .* got builtins.bytes"),
        ({"value": [{1: 2}]}, TypeError, "parameter 'value': expected names as keys, got 1"),
        ({"value": "abc"}, TypeError, r"grid\['value'\]: expected a sequence of values, got 'abc'; put"),
        ({"value": 3}, TypeError, r"grid\['value'\]: expected a sequence"),
        ({"value": {1, 2}}, TypeError, r"grid\['value'\]: expected a sequence"),
        ({"value": np.ones((2, 2))}, TypeError, r"grid\['value'\]: expected a sequence"),
        ({"value": (v for v in [1])}, TypeError, r"grid\['value'\]: expected a sequence"),
        ({"value": []}, ValueError, "grid: expected at least one job"),
        ({}, ValueError, "grid: expected at least one job"),
        ([], ValueError, "grid: expected at least one job"),
        (3, TypeError, "grid: expected a mapping of names to sequences"),
        ([3], TypeError, "grid: expected a mapping of parameters for each job, got 3"),
        ({"wrong": [1]}, TypeError, r"grid: the parameters \['wrong'\] are not those of tests.test_sweeps.echo: missing"),
        ({"value": [1], "more": [2]}, TypeError, "grid: the parameters .* unexpected keyword argument 'more'"),
        ([{"value": 1}, {}], TypeError, r"grid: the parameters \[\] are not those"),
    ],
)
def test_bad_grids(store, grid, error, message):
    with pytest.raises(error, match=message):
        sweep(echo, grid, store=store)
    assert not store.exists()


class Holder:
    def method(self, value):
        return {"value": value}

    def __call__(self, value):
        return {"value": value}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("job", [lambda value: {}, Holder().method, Holder(), partial(echo), 3, [].append])
def test_bad_jobs(store, job):
    with pytest.raises(TypeError, match="job: expected a function with a name at the top of a module, got"):
        sweep(job, {"value": [1]}, store=store)

    def local(value):
        return {"value": value}

    with pytest.raises(TypeError, match="job: expected a function with a name"):
        sweep(local, {"value": [1]}, store=store)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "mpi"}, ValueError, "engine: expected 'loky' or 'dask', got 'mpi'"),
        ({"engine": "loky", "scheduler": "tcp://host:1"}, ValueError, "scheduler: .* with engine='dask'"),
        ({"engine": "dask", "scheduler": ""}, ValueError, "scheduler: expected an address"),
        ({"engine": "dask", "scheduler": 8786}, ValueError, "scheduler: expected an address"),
        ({"engine": "dask", "scheduler": "tcp://host:1", "n_jobs": 2}, ValueError, "n_jobs: the cluster decides"),
        ({"n_jobs": 0}, ValueError, "n_jobs: expected a positive integer"),
        ({"n_jobs": -1}, ValueError, "n_jobs: expected a positive integer"),
        ({"n_jobs": 1.5}, TypeError, "n_jobs: expected a positive integer"),
        ({"store": 3}, TypeError, "store: expected the path of a file, got 3"),
        ({"store": "."}, ValueError, "store: expected the path of a file, . is a folder"),
        ({"store": "no/such/folder/x.jsonl"}, ValueError, "store: .* that does not exist"),
    ],
)
def test_bad_options(store, options, error, message):
    with pytest.raises(error, match=message):
        sweep(echo, {"value": [1]}, **{"store": store, **options})
    assert not store.exists()


def test_dask_that_is_not_installed(store, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install linconv\[dask\]"):
        sweep(echo, {"value": [1]}, store=store, engine="dask")


def test_a_store_that_is_not_there(store):
    with pytest.raises(FileNotFoundError, match=r"store: there is no file .*; run the sweep first"):
        read_store(store)


# Progress


def test_progress_goes_to_stderr(store, capfd):
    list(sweep(echo, {"value": [1, 2]}, store=store, n_jobs=1))
    assert capfd.readouterr() == ("", "")
    list(sweep(echo, {"value": [1, 2, 3]}, store=store, n_jobs=1, progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert "3/3" in err
    assert "echo" in err


# Processes


def test_processes_agree_with_the_serial_run_and_have_one_thread_each(store, log, tmp_path):
    grid = {"log": [log], "a": range(6), "b": [0.1]}
    serial = list(sweep(noted, grid, store=tmp_path / "serial", n_jobs=1))
    parallel = list(sweep(noted, grid, store=store, n_jobs=2))
    assert results(parallel) == results(serial)
    assert sorted(calls(log)) == sorted([*"012345"] * 2)
    assert {record["result"]["threads"] for record in parallel} == {1}
    assert {record["result"]["environment"] for record in parallel} == {"1"}
    workers = {record["result"]["pid"] for record in parallel}
    assert os.getpid() not in workers
    assert len(workers) <= 2
    assert {record["result"]["pid"] for record in serial} == {os.getpid()}
    assert not any(map(running, workers))
    assert parallel == read_store(store)
    # What keeps loky from replacing workers, with a warning, is not in its documentation.
    assert "_USE_PSUTIL" in vars(engines.process_executor)


def test_errors_and_killed_workers_cost_no_other_job(store, log):
    entries = []
    with pytest.raises(ExceptionGroup, match="1 of 6 jobs failed") as caught:
        entries.extend(sweep(mortal, {"log": [log], "a": range(6)}, store=store, n_jobs=2))
    assert "SIGKILL" in str(caught.value.exceptions[0])
    assert [entry["parameters"]["a"] for entry in entries if "error" in entry] == [2]
    assert sorted(record["parameters"]["a"] for record in read_store(store)) == [0, 1, 3, 4, 5]
    assert sorted(calls(log)) == sorted([*"011223456"[:-1]])


def test_jobs_go_on_while_the_caller_is_busy_and_leaving_stops_them(store, log):
    records = sweep(slow, {"log": [log], "a": range(400)}, store=store, n_jobs=2)
    pid = next(records)["result"]["pid"]
    wait_until(lambda: len(read_store(store)) >= 5)
    records.close()
    stored = read_store(store)
    assert 5 <= len(stored) < 400
    assert not running(pid)
    # A worker may be stopped in a job; whatever came to its end is stored.
    assert len(stored) <= len(calls(log)) <= len(stored) + 2
    again = sweep(slow, {"log": [log], "a": range(400)}, store=store, n_jobs=2)
    assert [next(again) for _ in stored] == sorted(stored, key=lambda record: record["parameters"]["a"])
    again.close()


SCRIPT = """
import os, signal, sys, time
from linconv.sweeps import sweep

def job(log, a):
    with open(log, "a") as file:
        file.write(f"{a} {os.getpid()}\\n")
    time.sleep(0.05)
    return {"sum": a}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    for record in sweep(job, {"log": [sys.argv[1]], "a": range(int(sys.argv[3]))}, store=sys.argv[2], n_jobs=2):
        pass
    print("finished", flush=True)
"""


def test_a_sweep_killed_twice_goes_on_where_it_was(store, log, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(count):
        # A session of its own, so that nothing sent to this process reaches it.
        command = [sys.executable, "-W", "error", str(script), log, str(store), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def stored():
        return read_store(store) if store.exists() else []

    before: list = []
    for send in (lambda process: process.kill(), lambda process: process.send_signal(signal.SIGINT)):
        with start(2000) as process:
            try:
                wait_until(lambda: len(stored()) >= len(before) + 5 or process.poll() is not None, 300)  # noqa: B023
            finally:  # else it would be waited for to the end of its sweep
                send(process)
            stdout, stderr = process.communicate(timeout=300)
        assert stdout == ""
        assert (process.returncode, stderr) == (-signal.SIGKILL, "") or stderr.rstrip().endswith("KeyboardInterrupt")
        assert len(stored()) >= len(before) + 5
        assert stored()[: len(before)] == before
        before = stored()
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert 10 <= len(before) < 2000
    started = [line.split() for line in Path(log).read_text().splitlines()]
    assert len(started) <= len(before) + 2 * 2 + 1  # what two workers had in hand at each kill, and one job between its end and the file
    job = runpy.run_path(str(script), run_name="script")["job"]  # of the same name as in a process that runs the file
    grid = {"log": [log], "a": range(len(before) + 3)}
    assert len(list(sweep(job, grid, store=store, n_jobs=1))) == len(before) + 3
    after = stored()
    assert after[: len(before)] == before
    assert {record["job"] for record in after} == {"script.job"}
    assert {record["parameters"]["a"] for record in after} >= set(range(len(before) + 3))
    wait_until(lambda: not any(running(int(pid)) for _, pid in started), 10)  # no worker outlives its sweep


def test_the_page_on_sweeps_runs(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "sweep.py").write_text(script)
    done = subprocess.run([sys.executable, "sweep.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.count("True") == 6
    assert done.stdout.endswith("6 results\n")
    assert "6/6" in done.stderr
    assert {record["job"] for record in read_store(tmp_path / "gap.jsonl")} == {"sweep.gap"}


# Dask


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@needs_dask
def test_dask_agrees_with_the_serial_run(cluster, store, log, tmp_path):
    grid = {"log": [log], "a": range(8), "b": [0.1]}
    serial = list(sweep(noted, grid, store=tmp_path / "serial", n_jobs=1))
    records = list(sweep(noted, grid, store=store, engine="dask", scheduler=cluster))
    assert results(records) == results(serial)
    assert {record["result"]["threads"] for record in records} == {1}
    assert os.getpid() not in {record["result"]["pid"] for record in records}
    assert list(sweep(noted, {**grid, "a": [7]}, store=store, engine="dask", scheduler="tcp://nobody:1")) == [
        record for record in records if record["parameters"]["a"] == 7
    ]
    assert len(calls(log)) == 16


@needs_dask
def test_a_killed_dask_worker_costs_no_finished_job(cluster, store, log):
    records = list(sweep(mortal, {"log": [log], "a": [0, 1, 3, 4, 5, 6]}, store=store, engine="dask", scheduler=cluster))
    assert sorted(record["parameters"]["a"] for record in records) == [0, 1, 3, 4, 5, 6]
    assert sorted(map(str, records)) == sorted(map(str, read_store(store)))
    assert calls(log).count("1") >= 2  # it was killed once
    first = [record for record in records if record["parameters"]["a"] == 0]
    assert records[0] in first or calls(log).count("0") <= 2


@needs_dask
def test_errors_on_dask_workers_are_raised_at_the_end(cluster, store, log):
    with pytest.raises(ExceptionGroup, match="3 of 4 jobs failed") as caught:
        list(sweep(moody, {"log": [log], "a": range(4)}, store=store, engine="dask", scheduler=cluster))
    assert {str(error) for error in caught.value.exceptions} == {"'one'", "SystemExit: 3", "StubbornError: three"}
    assert [record["result"] for record in read_store(store)] == [{"a": 0}]


@needs_dask
def test_leaving_a_dask_sweep_keeps_what_is_finished(cluster, store, log):
    records = sweep(slow, {"log": [log], "a": range(200)}, store=store, engine="dask", scheduler=cluster)
    next(records)
    records.close()
    stored = read_store(store)
    assert 1 <= len(stored) < 200
    assert len(list(sweep(slow, {"log": [log], "a": range(8)}, store=store, engine="dask", scheduler=cluster))) == 8
    assert len(calls(log)) < 30


@needs_dask
def test_a_local_dask_cluster(store, log):
    records = list(sweep(noted, {"log": [log], "a": range(2)}, store=store, engine="dask", n_jobs=1))
    assert sorted(record["result"]["sum"] for record in records) == [0, 1]


@needs_dask
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "foo://127.0.0.1:8786"])
def test_a_scheduler_that_does_not_answer_is_one_line(store, monkeypatch, capfd, address):
    monkeypatch.setattr(engines, "TIMEOUT", 1)
    with pytest.raises(ConnectionError, match=rf"scheduler: none answers at {address} \(.*\); start one") as caught:
        list(sweep(echo, {"value": [1]}, store=store, engine="dask", scheduler=address))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert read_store(store) == []
