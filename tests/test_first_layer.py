"""The claim about first layers: what is measured is what it says, and wrong agreement is not taken for agreement."""

import json
import os

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from PIL import Image

from linconv.claims import Check, Figure, Note, UsageError
from linconv.patches import patch_spectrum
from verification import _first_layer_runs as runs
from verification import first_layer_consistency as claim


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_agreement_is_the_mean_correlation_of_pairs():
    a, b = noise(3, 27), noise(2, 27, seed=1)
    found = claim.agreement(a, b, torch.Generator().manual_seed(0))
    expected = np.mean([np.corrcoef(u, v)[0, 1] for u in a for v in b])
    assert found.estimate == pytest.approx(expected)
    assert found.low < expected < found.high
    alone = claim.agreement(a, None, torch.Generator().manual_seed(0))
    assert alone.estimate == pytest.approx(np.mean([np.corrcoef(a[i], a[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]))


@pytest.mark.parametrize("shift", [(1, 0), (0, 2)])
def test_autocorrelation_is_that_of_the_responses(shift):
    x = noise(4, 1, 12, 12)
    delta = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    delta[0, 0, 1, 1] = 1.0
    smooth = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    white, blurred = runs.autocorrelation(delta, x), runs.autocorrelation(smooth, noise(40, 1, 32, 32))
    assert white[0] == 1
    assert max(abs(value) for value in white[1:]) < 0.25  # white noise, 400 sites
    # Two 3×3 means at distance d < 3 share 3·(3 − d) of 9 pixels.
    assert blurred == pytest.approx([1, 2 / 3, 1 / 3, 0, 0], abs=0.05)
    moved = torch.roll(x, shift, (2, 3))
    assert runs.autocorrelation(smooth, torch.cat([x, moved]))[0] == 1


def test_spatial_frequencies_of_waves():
    x = torch.arange(16, dtype=torch.float64)
    images = torch.cos(2 * torch.pi * 0.25 * x + torch.arange(8, dtype=torch.float64)[:, None])[:, None, None, :].expand(8, 1, 16, 16)
    spectrum = patch_spectrum(images + 1e-3 * noise(8, 1, 16, 16), 7)
    mean, spread = runs.spatial_frequencies(spectrum)
    assert mean[:2].tolist() == pytest.approx([0.25, 0.25], abs=0.06)  # resolution of 7 pixels
    assert (spread > 0).all()


def test_groups_differ_from_the_base_in_one_respect():
    grid = runs.grid_of_runs("smoke", "photos", "zeros", 5)
    for reference, name, changed in (
        ("base", "width", {"width"}),
        ("base", "frozen", {"frozen"}),
        ("base", "architecture", {"network", "width"}),
        ("base", "few", {"few", "epochs", "augmented"}),
        ("few", "labels", {"labels"}),
    ):
        for base, other in zip(grid[reference], grid[name], strict=True):
            assert {key for key in base if base[key] != other[key]} == changed
    assert [task["seed"] for task in grid["base"]] == [5, 6]


def test_images_of_one_colour_are_a_usage_error(tmp_path):
    for n in range(350):
        folder = tmp_path / f"class{n % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (90, 100, 110)).save(folder / f"{n}.png")
    with pytest.raises(UsageError, match=r"data: expected images that vary, those of .* have one colour; take other images"):
        list(claim.claim(data=str(tmp_path)))


def test_a_channel_that_does_not_vary_is_zero(tmp_path):
    for n in range(350):
        folder = tmp_path / f"class{n % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (n % 256, 100, 255 - n % 256)).save(folder / f"{n}.png")
    train, _ = runs.prepare(str(tmp_path), 250)
    assert train.images.isfinite().all()
    assert train.images.abs().amax((0, 2, 3)).gt(1).tolist() == [True, False, True]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A preset of seconds, its store and what the claim yields: no verdict, which a fresh process would replay at the preset's own size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.PRESETS, "smoke", runs.Preset(4, 6, 2, 60, 2, 40, 3, 2, 20))
        store = tmp_path_factory.mktemp("runs") / "store.jsonl"
        yield store, list(claim.claim(preset="smoke", jobs=1, store=str(store)))


def test_a_tiny_run_is_decided_and_kept(tiny):
    store, events = tiny
    checks = [event for event in events if isinstance(event, Check)]
    assert sum(c.required for c in checks) == 5
    assert [c.outcome for c in checks if c.control and "shrinks" in c.name] == ["fail"]  # of two epochs nothing else is expected
    assert isinstance(next(event for event in events if isinstance(event, Figure)).draw(), Drawing)
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        result = line["result"]
        if line["parameters"]["frozen"]:
            assert max(result["change"]) == 0
        else:
            assert max(result["change"]) > 0
        met = [40, 80, 120] if line["parameters"]["few"] else [60, 120]
        assert [count for count, _ in result["growth"]] == met
        assert 0 <= result["test_accuracy"] <= 1


def test_the_formula_is_fitted_to_the_change_and_to_the_weights(tiny):
    texts = [event.text for event in tiny[1] if isinstance(event, Note)]
    assert [sum(f"formula fitted to {kind}: correlation " in text for text in texts) for kind in ("W − W₀", "W")] == [1, 1]


def test_no_text_of_the_table_overruns_its_cell_or_the_figure(tiny):
    drawing = next(event for event in tiny[1] if isinstance(event, Figure)).draw()
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    (table,) = drawing.axes[2].tables
    cells = table.get_celld()
    assert all(cell.get_text().get_text() for cell in cells.values())  # none is empty
    for cell in cells.values():
        text, box = cell.get_text().get_window_extent(), cell.get_window_extent()
        assert box.x0 <= text.x0
        assert text.x1 <= box.x1
    whole = table.get_window_extent(canvas.get_renderer())
    assert drawing.axes[1].get_window_extent().x1 < whole.x0
    assert whole.x1 <= drawing.bbox.x1


def test_a_second_run_takes_everything_from_the_store(tiny, monkeypatch):
    store, events = tiny
    before = store.read_bytes()
    monkeypatch.setattr(runs, "train_classifier", None)  # would raise
    again = list(claim.claim(preset="smoke", jobs=1, store=str(store)))
    assert [e for e in again if isinstance(e, Note)] == [e for e in events if isinstance(e, Note)]
    assert store.read_bytes() == before


@pytest.mark.skipif("LINCONV_DATA" not in os.environ, reason="LINCONV_DATA is unset: the real image sets are not here")
@pytest.mark.parametrize(("network", "labels", "frozen"), [("vgg11", "true", True), ("resnet20", "random", False)])
def test_fashion_mnist_has_one_channel_and_nine_components(network, labels, frozen):
    task = runs.grid_of_runs("smoke", "fashion-mnist", "circular", 0)["base"][0]
    small = {"samples": 60, "epochs": 1, "width": 2, "network": network, "labels": labels, "frozen": frozen}
    result = runs.run(**task | small)
    assert [len(result[name]) for name in ("lambdas", "initial", "trained", "change")] == [9] * 4
    assert (max(result["change"]) == 0) is frozen
