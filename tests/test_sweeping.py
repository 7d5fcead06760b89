"""What the claims on trained networks share: runs from a store, data that fit, and one line for what does not."""

import pytest
import torch
from PIL import Image

from linconv.claims import Progress, UsageError, check
from linconv.images import ImageSet
from linconv.sweeps.store import open_store
from verification import first_layer_consistency, frequency_sensitivity
from verification._sweeping import classified, identity, missing, train_all, train_and_test

CLAIMS = [frequency_sensitivity, first_layer_consistency]
every_claim = pytest.mark.parametrize("module", CLAIMS, ids=[module.__name__.rpartition(".")[2] for module in CLAIMS])


def square(*, number, fails=False):
    if fails:
        raise ArithmeticError("no square")
    return {"square": number**2}


def trained(tasks, store="", jobs=1, engine="loky", scheduler=""):
    records = []
    return list(train_all(square, tasks, store, jobs, engine, scheduler, records)), records


def test_all_tasks_are_run_and_told_of(tmp_path):
    tasks = [{"number": n} for n in (3, 1, 2)]
    for store in ("", str(tmp_path / "runs.jsonl")):
        events, records = trained(tasks, store)
        assert [r["result"]["square"] for r in records] == [1, 4, 9]  # in the order of their parameters, however they were given
        assert all(isinstance(event, Progress) for event in events)
        assert [event.name for event in events] == [f"training, {n} of 3 runs" for n in range(4)]
        assert [event.fraction for event in events][1:] == pytest.approx([1 / 3, 2 / 3, 1])
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3


def test_a_second_call_runs_only_what_is_missing(tmp_path):
    store = tmp_path / "runs.jsonl"
    trained([{"number": 1}], str(store))
    first = store.read_text()
    _, records = trained([{"number": 1}, {"number": 2}], str(store))
    assert [r["result"]["square"] for r in records] == [1, 4]
    assert store.read_text().startswith(first)
    assert len(store.read_text().splitlines()) == 2


def test_a_run_that_raises_is_a_fault_of_the_claim():
    """Not a usage error: the verdict is INVALID, and the others are kept."""
    with pytest.raises(ExceptionGroup, match="1 of 2 jobs failed"):
        trained([{"number": 1}, {"number": 2, "fails": True}])


def test_the_store_alone_is_read_while_another_sweep_writes_to_it(tmp_path):
    store = tmp_path / "runs.jsonl"
    trained([{"number": n} for n in (2, 1, 7)], str(store))
    content = store.read_bytes()
    with open_store(store):
        events, records = trained([{"number": n} for n in range(4)], str(store), engine="none")
    assert events == []
    assert [r["result"]["square"] for r in records] == [1, 4]
    assert store.read_bytes() == content
    text = missing([{"number": n} for n in (0, 1, 3, 3.0)], records, by=("number",))
    assert text == "3 of 4 runs are not in the store: 1 of number 0; 1 of number 3; 1 of number 3.0"
    assert missing([{"number": 1}], records, by=("number",)) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^store: --engine none trains nothing, it needs a file"),
        ({"store": "no/such.jsonl"}, "^store: .* does not exist"),
        ({"store": "no.jsonl"}, r"^store: there is no file no.jsonl"),
        ({"store": "damaged.jsonl"}, "^store: line 1 of damaged.jsonl is no record"),
        ({"store": "x.jsonl", "scheduler": "tcp://host:1"}, "^scheduler: --engine none trains nothing, got tcp://host:1"),
    ],
)
def test_a_store_that_cannot_be_shown_is_a_usage_error(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=message):
        trained([{"number": 1}], engine="none", **options)


def test_the_order_of_parameters_does_not_matter():
    assert identity({"a": 1, "b": 2.5}) == identity({"b": 2.5, "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


def test_one_class_is_nothing_to_tell_apart():
    alone = ImageSet(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), ("cats",))
    with pytest.raises(UsageError, match="data: expected at least two classes, here has only 'cats'"):
        classified("here", lambda: alone)


@every_claim
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"data": "no/such/folder"}, "^data: .*no such folder"),
        ({"store": "/no/such/folder/x.jsonl"}, "^store: "),
        ({"engine": "loky", "scheduler": "tcp://host:1"}, "scheduler: .* with engine='dask'"),
    ],
)
def test_bad_parameters_are_usage_errors(module, parameters, message):
    with pytest.raises(UsageError, match=message):
        check(module.claim, **parameters)


@every_claim
def test_a_folder_of_one_class_is_refused(module, tmp_path):
    for split, count in (("train", 300), ("val", 100)):
        (tmp_path / split / "cats").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6, 6), (i % 255, 1, 2)).save(tmp_path / split / "cats" / f"{i}.png")
    with pytest.raises(UsageError, match=r"^data: expected at least two classes, .* has only 'cats'"):
        check(module.claim, data=str(tmp_path))


@every_claim
def test_an_unreachable_scheduler_is_a_usage_error(module):
    """At the command line one line and exit code 2."""
    pytest.importorskip("distributed", reason="Dask is an extra")
    with pytest.raises(UsageError, match=r"^scheduler: none answers at tcp://127.0.0.1:9"):
        check(module.claim, engine="dask", scheduler="tcp://127.0.0.1:9")


def pictures(folder, count, first=0):
    """Two classes, each picture of a grey of its own."""
    for n in range(count):
        path = folder / ("light" if n % 2 else "dark")
        path.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), first + n).save(path / f"{n}.png")


def greys(part):
    return sorted((255 * part.images[:, 0, 0, 0]).round().long().tolist())


@pytest.mark.parametrize("samples", [40, None])
def test_a_folder_without_a_test_part_gives_one(tmp_path, samples):
    pictures(tmp_path, 150)
    train, test = train_and_test(str(tmp_path), samples, 4, 0)
    assert (len(train), len(test)) == ((40, 100) if samples else (120, 30))
    assert set(greys(train)).isdisjoint(greys(test))
    assert train.classes == test.classes == ("dark", "light")
    for part in (train, test):
        assert greys(part) == sorted(set(greys(part)))
        assert min(part.labels.bincount(minlength=2).tolist()) > 10
    again = train_and_test(str(tmp_path), samples, 4, 0)
    assert torch.equal(again[0].images, train.images)


def test_a_folder_with_a_test_part_keeps_it(tmp_path):
    pictures(tmp_path / "train", 60)
    pictures(tmp_path / "val", 10, first=200)
    train, test = train_and_test(str(tmp_path), None, 4, 0)
    assert greys(train) == list(range(60))
    assert greys(test) == list(range(200, 210))


def test_a_folder_of_too_few_images_is_refused(tmp_path):
    pictures(tmp_path, 10)
    with pytest.raises(ValueError, match="samples: expected at most the 10 images there are, got 140; take fewer, or a larger set"):
        train_and_test(str(tmp_path), 40, 4, 0)
