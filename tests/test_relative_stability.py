"""The claim on relative stability: planted records of runs, judged as they were planted; one tiny run; its figure."""

import math

import pytest
import torch

from linconv.claims import exceeds
from linconv.statistics import Interval
from verification._figure_stability import figure
from verification._stability_presets import PRESETS, Architecture, tasks_of
from verification._stability_runs import layer_names, logarithms, run
from verification.relative_stability import course_checks, error_checks, grouped, judged, module_checks, table

ARCHITECTURES = [Architecture("myrtle", depth, 8) for depth in range(6)]


def planted(architecture, seed, *, before=1.0, after=0.01, error=0.02, alive=True, labels="true"):
    """A record with R `before` and `after`, one tenth more or less by seed."""
    jitter = 1.1 ** (seed - 0.5)
    r = [before * jitter, math.sqrt(before * after), after * jitter]
    result = {
        "alive": alive,
        "R": r,
        "D": [0.1, 0.05, 0.01],
        "G": [0.1 * jitter, 0.1, 1.0],
        "epochs": [0, 1, 3],
        "again": {"R": before / jitter, "G": 0.1 / jitter},
        "layers": [[before, before], [1.0, after]],
        "test_accuracy": 1 - error,
    }
    return {"parameters": architecture._asdict() | {"labels": labels, "seed": seed}, "result": result}


def groups(line=0.2, **options):
    """Two runs of each architecture, R after training from 10⁻¹ to 10⁻³, errors on a line."""
    records = []
    for i, architecture in enumerate(ARCHITECTURES):
        after = 10 ** (-1 - 0.4 * i)
        for seed in (0, 1):
            records.append(planted(architecture, seed, **({"after": after, "error": line * math.sqrt(after)} | options)))
    return grouped(records, "true")


def outcomes(checks):
    return {check.name: check.outcome for check in checks if hasattr(check, "outcome")}


def seeded():
    return torch.Generator().manual_seed(0)


def test_what_was_published_is_found_where_it_is_planted():
    found = outcomes(course_checks(groups(), True)) | outcomes(error_checks(groups(), True))
    statements = [name for name in found if "log₁₀" in name or "decades" in name or "correlation" in name]
    assert len(statements) == 4
    assert all(found[name] == "pass" for name in statements)
    controls = [name for name in found if name not in statements]
    assert len(controls) == 4
    assert all(found[name] == "fail" for name in controls)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"before": 0.1}, "above that of ½"), ({"before": 10.0}, "above that of 2"), ({"after": 1.0}, "decades by which")],
)
def test_other_courses_are_refuted_at_full_size_and_left_open_below(options, words):
    for decided, expected in ((True, "fail"), (False, "inconclusive")):
        found = outcomes(course_checks(groups(**options), decided))
        name = next(name for name in found if words in name and found[name] != "pass")
        assert found[name] == expected


def test_errors_that_fall_with_r_are_refuted():
    records = [planted(a, s, after=10 ** (-1 - 0.4 * i), error=0.01 * (i + 1)) for i, a in enumerate(ARCHITECTURES) for s in (0, 1)]
    found = outcomes(error_checks(grouped(records, "true"), True))
    assert found["(b) 3: correlation of test error and √R, logarithms, over architectures"] == "fail"


def test_few_architectures_have_no_correlation():
    few = dict(list(groups().items())[:3])
    found = outcomes(error_checks(few, False))
    assert found["(b) 3: correlation of test error and √R, logarithms, over architectures"] == "inconclusive"


def test_the_published_line_has_a_ratio_of_one():
    notes = [note.text for note in error_checks(groups(), True) if hasattr(note, "text")]
    assert "0.2 √R: 1.00 (" in notes[0]
    assert all("0.2 √R = " in note.text for note in table(groups(), {}))


def test_an_architecture_with_a_dead_run_is_left_out():
    records = [planted(ARCHITECTURES[0], 0), planted(ARCHITECTURES[0], 1, alive=False), planted(ARCHITECTURES[1], 0)]
    assert list(grouped(records, "true")) == [ARCHITECTURES[1]]
    assert logarithms(records[:1], "R", 0).shape == (1,)


def test_judged_keeps_the_reason():
    check = judged(exceeds("a fall", Interval(-1.0, -1.2, -0.8, 0.95), 0.3), False)
    assert check.outcome == "inconclusive"
    assert "not found here: -1 against the bound 0.3" in check.note


def test_modules_on_planted_images():
    x = torch.randn(12, 3, 12, 12, dtype=torch.float64, generator=seeded()).cumsum(2).cumsum(3)
    found = outcomes(module_checks(x, seeded()))
    assert sorted(found.values()) == ["fail", "pass", "pass"]


def test_presets():
    for name, p in PRESETS.items():
        tasks = tasks_of(name, "cifar10", 3)
        assert len(tasks) == p.seeds * (len(p.architectures) + 1)
        assert {task["seed"] for task in tasks} == set(range(3, 3 + p.seeds))
        assert [task["labels"] for task in tasks].count("shuffled") == p.seeds


def test_one_tiny_run():
    task = tasks_of("tiny", "photos", 0)[0] | {"samples": 40, "epochs": 3, "probes": 6, "draws": 1}
    result = run(**task)
    assert result["alive"]
    assert result["epochs"] == [0, 1, 2, 3]
    assert all(len(result[key]) == 4 for key in "RDG")
    # After the same images, fields and noise D/G is R; the layers are the activation and the output.
    assert all(r == pytest.approx(d / g, rel=1e-6) for r, d, g in zip(*(result[key] for key in "RDG"), strict=True))
    assert [len(layers) for layers in result["layers"]] == [2, 2]
    assert result["layers"][0][-1] == result["R"][0]
    assert result["again"]["R"] != result["R"][0]


def test_layers_along_the_trunk():
    from verification._sensitivity_runs import build

    for family, depth, least in (("myrtle", 5, 5), ("resnet", 8, 5), ("vgg", 11, 9), ("conv", 2, 2), ("linear", 2, 1)):
        names = layer_names(build(family, depth, 4, 3, 5, 32, 0))
        assert len(names) >= least, family
        assert names[-1] == ""
        assert len(set(names)) == len(names)


def test_its_figure():
    shuffled = grouped([planted(ARCHITECTURES[0], s, labels="shuffled") for s in (0, 1)], "shuffled")
    drawn = figure(groups(), shuffled, "title")
    assert len(drawn.axes) == 4
    assert len(drawn.axes[0].lines) == 8  # six architectures, one of them on shuffled labels too, and R = 1
