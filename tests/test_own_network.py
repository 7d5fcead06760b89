"""The audit of a user's own network, and theorem 4.10 on it: HOLDS, NOT APPLICABLE by name with the nearest form, or exit 2."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import linconv as lc
from linconv.claims import Check, Verdict
from linconv.claims.subject import subject_of
from linconv.hypotheses import audit, hidden_kernel
from verification import balancedness, wrapped_singular_values

SHAPE = (2, 4, 3)
HYPOTHESES = ["bias-free", "stride 1", "same size", "circular", "full kernel", "dense"]


def conv(inputs: int, outputs: int, kernel: tuple[int, int] = (4, 3), **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": "same", "padding_mode": "circular", "bias": False} | options)  # type: ignore[arg-type]


def network(hidden: nn.Module, *, width: int = 2, rest: tuple[nn.Module, ...] = (), bias: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(hidden, nn.Flatten(), *rest, nn.Linear(width * 12, 3, bias=bias)).double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)  # of torch's own layers, whose initialisation takes no generator


def failing(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> list[str]:
    return [f"{found.name} at {found.layer}" for found in audit(module, shape) if not found.holds]


def test_a_full_network_meets_every_hypothesis_and_each_is_named() -> None:
    found = audit(network(conv(2, 2)), SHAPE)
    assert [h.name for h in found if h.layer == "layer 0 (Conv2d)"] == HYPOTHESES
    assert all(h.holds for h in found)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"bias": True}, "bias-free"),
        ({"stride": 2, "padding": 0}, "stride 1"),
        ({"padding": 0}, "same size"),
        ({"padding_mode": "zeros"}, "circular"),
        ({"kernel": (3, 3)}, "full kernel"),
        ({"kernel": (5, 3)}, "full kernel"),  # wider than the grid: its taps meet, and Σ‖w‖² is not that of the folded kernel
        ({"kernel": (2, 2), "dilation": 2}, "full kernel"),
        ({"groups": 2}, "dense"),
    ],
)
def test_each_hypothesis_is_found_missing_where_it_is(options: dict[str, object], name: str) -> None:
    assert f"{name} at layer 0 (Conv2d)" in failing(network(conv(2, 2, **options)))  # type: ignore[arg-type]


def test_all_failures_are_listed_and_not_the_first_alone() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), conv(2, 2), nn.Flatten(), nn.Linear(24, 3), nn.Sigmoid())
    names = failing(net)
    assert names[:3] == [f"{name} at layer 0 (Conv2d)" for name in ("bias-free", "same size", "circular")]
    assert {"a convolution at layer 1 (ReLU)", "bias-free at layer 4 (Linear)", "linear at layer 5 (Sigmoid)"} <= set(names)


def test_readouts_that_are_not_free() -> None:
    pooled = nn.Sequential(conv(2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3, bias=False))
    assert failing(pooled) == ["free readout at the end"]
    shared = conv(2, 2)
    assert failing(network(nn.Sequential(shared, shared))) == ["own weights at network"]


def test_linear_cnns_are_audited_too() -> None:
    assert failing(lc.LinearCNN(2, (2,), 3, (4, 3))) == []
    assert failing(lc.LinearCNN(2, (2, 2), 3, (4, 3), kernel_size=3)) == ["full kernel at layer 0", "full kernel at layer 1"]
    assert failing(lc.LinearCNN(2, (2,), 3, (4, 4))) == ["grid at network"]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_names_the_argument() -> None:
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int; pass the network"):
        audit(3, SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"input_shape: expected \(C, \*grid\).*leave out the batch"):
        audit(nn.Identity(), (8, 3, 4, 3, 2))


def test_hidden_kernels_cover_every_layer() -> None:
    net = nn.Sequential(conv(2, 2, (3, 1)), conv(2, 2, (2, 2), dilation=2), nn.Flatten(), nn.Linear(24, 3, bias=False))
    assert hidden_kernel(net, SHAPE) == (3, 3)
    assert hidden_kernel(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)), SHAPE) == (4, 3)
    assert hidden_kernel(lc.LinearCNN(2, (2,), 3, (4, 3), kernel_size=(2, 3)), SHAPE) == (2, 3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: network(conv(2, 2)),
        lambda: network(nn.Sequential(conv(2, 5), conv(5, 2))).float(),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3, bias=False)),
        lambda: lc.LinearCNN(2, (3, 3), 3, (4, 3)),
        lambda: nn.Sequential(
            nn.Conv1d(2, 2, 7, padding="same", padding_mode="circular", bias=False), nn.Flatten(), nn.Linear(14, 2, bias=False)
        ),
    ],
)
def test_the_theorem_holds_on_networks_that_meet_its_hypotheses(build: Callable[[], nn.Module]) -> None:
    net = build()
    one_dimensional = isinstance(net, nn.Sequential) and isinstance(net[0], nn.Conv1d)
    verdict = lc.check("theorem410", net=net, input_shape=(2, 7) if one_dimensional else SHAPE)
    assert verdict.holds, verdict
    assert "of the given network" in verdict.scope


def test_the_network_is_left_as_it_was() -> None:
    net = network(conv(2, 2))
    before = [p.detach().clone() for p in net.parameters()]
    lc.check("theorem410", net=net, input_shape=SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_small_kernels_are_not_applicable_and_get_the_bounds_of_restricted_kernels() -> None:
    net = network(conv(2, 2, (2, 1)))
    verdict = lc.check("theorem410", net=net, input_shape=SHAPE)
    assert verdict.verdict == "NOT APPLICABLE"
    assert "layer 0 (Conv2d): not full kernel (2×1 on a grid of 4×3)" in verdict.reason
    nearest = next(check for check in verdict.checks if check.name.startswith("nearest form"))
    beta = lc.frequency_blocks(lc.from_torch(net, SHAPE)).predictor().detach()
    bounds = lc.representation_cost(beta, 2, kernel_size=(2, 1))
    assert nearest.passed
    assert nearest.observed == pytest.approx(bounds.lower, rel=1e-9)
    assert bounds.lower > 1.0001 * lc.representation_cost(beta, 2).lower  # the restricted bound says more than the full one


def test_pooled_readouts_are_bounded_without_a_surviving_control() -> None:
    net = nn.Sequential(conv(2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3, bias=False)).double()
    assert lc.check("theorem410", net=net, input_shape=SHAPE).verdict == "NOT APPLICABLE"


def test_taps_that_wrap_around_cost_less_than_the_bound() -> None:
    """Two taps of 1 on one site are one of 2: Σ‖w‖² = 3, and the least over full kernels is 4. The bound must not be claimed."""
    folded = lc.LinearCNN.from_weights([torch.ones(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)], (1,))
    assert failing(folded, (1, 1)) == ["within the grid at layer 0", "full kernel at layer 0"]
    assert lc.representation_cost(lc.frequency_blocks(folded).predictor().detach(), 2).lower == pytest.approx(4)
    for net, shape in ((folded, (1, 1)), (network(conv(2, 2, (2, 2), dilation=3)), SHAPE), (network(conv(2, 2, (5, 3))), SHAPE)):
        verdict = lc.check("theorem410", net=net, input_shape=shape)
        assert verdict.verdict == "NOT APPLICABLE"
        assert not any(check.name.startswith("nearest form") for check in verdict.checks)


@pytest.mark.parametrize("rest", [(nn.Linear(24, 24, bias=False),), ()])
def test_no_nearer_form_where_layers_are_counted_otherwise(rest: tuple[nn.Module, ...]) -> None:
    shared = conv(2, 2)
    net = network(conv(2, 2), rest=rest) if rest else network(nn.Sequential(shared, shared))
    verdict = lc.check("theorem410", net=net, input_shape=SHAPE)
    assert verdict.verdict == "NOT APPLICABLE"
    assert not any(check.name.startswith("nearest form") for check in verdict.checks)


def nearest(verdict: Verdict) -> list[Check]:
    return [check for check in verdict.checks if "nearest form" in check.name]


@pytest.mark.parametrize("name", ["theorem410", "convolution_theorem", "rank_limit", "kernel_size", "linear_relative_stability"])
def test_with_biases_a_theorem_speaks_of_the_value_less_that_at_0(name: str) -> None:
    verdict = lc.check(name, net=network(conv(2, 2, bias=True), bias=True), input_shape=SHAPE)
    assert verdict.verdict == "NOT APPLICABLE"
    assert verdict.reason.count("not bias-free") == 2
    names = [check.name for check in verdict.checks]
    assert "f(x) − f(0) without biases" in names
    assert len(names) > names.index("the module computes ⟨β, x⟩") + 2  # what the theorem checks of the weights alone
    assert all(check.outcome in ("pass", "not applicable") for check in verdict.checks)


def usual() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.LeakyReLU(0.1), nn.MaxPool2d((2, 1)), conv(4, 6, (1, 2), groups=2, bias=True))
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()


def test_channels_of_rectified_networks_are_balanced_along_their_own_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Du, Hu, Lee: with strides, zeros around the image, groups, biases and pooling."""
    found = lc.check("balancedness", net=usual(), input_shape=SHAPE)
    assert found.verdict == "NOT APPLICABLE"
    assert [check.passed for check in nearest(found)] == [True, True]
    # The outgoing weights in the order of another group: the law does not hold of the wrong channels.
    right = balancedness.outgoing
    monkeypatch.setattr(balancedness, "outgoing", lambda *arguments: right(*arguments).roll(1))
    wrong = lc.check("balancedness", net=usual(), input_shape=SHAPE)
    assert all(check.outcome == "fail" and check.violation > 1e3 for check in nearest(wrong))


@pytest.mark.parametrize("between", [nn.Sigmoid(), nn.BatchNorm2d(2), nn.Softplus()])
def test_no_law_is_claimed_where_a_layer_between_does_not_commute_with_factors(between: nn.Module) -> None:
    found = lc.check("balancedness", net=nn.Sequential(conv(2, 2), between, nn.Flatten(), nn.Linear(24, 3)), input_shape=SHAPE)
    assert found.verdict == "NOT APPLICABLE"
    assert not nearest(found)
    assert any("none is known" in note.text for note in found.notes)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 0}, {"padding": 1, "stride": 2}, {"padding": (2, 0), "dilation": (1, 2)}])
@pytest.mark.parametrize("groups", [1, 2])
def test_padded_convolutions_are_parts_of_wrapped_ones(options: dict[str, object], groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, (3, 2), groups=groups, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))  # type: ignore[arg-type]
    net(torch.zeros(1, 2, 6, 5))
    (check,) = nearest(lc.check("wrapped_singular_values", net=net, input_shape=(2, 6, 5)))
    assert check.passed
    right = wrapped_singular_values.on_larger_grid
    monkeypatch.setattr(wrapped_singular_values, "on_larger_grid", lambda layer, grid: (0.3 * right(layer, grid)[0], grid))
    (check,) = nearest(lc.check("wrapped_singular_values", net=net, input_shape=(2, 6, 5)))
    assert check.outcome == "fail"


def test_the_norm_of_a_large_padded_convolution_is_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    few = nearest(lc.check("wrapped_singular_values", net=usual(), input_shape=SHAPE))
    monkeypatch.setattr("verification.wrapped_singular_values.DENSE", 0)
    one = nearest(lc.check("wrapped_singular_values", net=usual(), input_shape=SHAPE))
    assert len(one) == len(few) == 2
    assert all(check.passed for check in one)


def test_circular_padding_beyond_the_reach_of_the_kernel_has_no_bound() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1, padding=2, padding_mode="circular"), nn.Flatten(), nn.Linear(112, 3)).double()
    found = lc.check("wrapped_singular_values", net=net, input_shape=SHAPE)
    assert found.verdict == "NOT APPLICABLE"
    assert any("none is known" in note.text for note in found.notes)


def test_at_other_depths_brackets_of_nested_kernels_are_in_order() -> None:
    found = lc.check("kernel_size", net=network(nn.Sequential(conv(2, 2, (2, 1)), conv(2, 2, (2, 1)))), input_shape=SHAPE)
    assert found.verdict == "NOT APPLICABLE"
    (check,) = nearest(found)
    assert check.passed
    assert len(check.observed) == 2
    assert sum("taps: " in note.text for note in found.notes) == 3


def test_large_images_have_the_checks_that_are_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (
        ("kernel_size", "kernel_size.MOST_ROWS"),
        ("convolution_theorem", "_convolutions.MOST_IMPULSES"),
        ("linear_relative_stability", "_linear_stability_setting.MOST_IMPULSES"),
    ):
        monkeypatch.setattr(f"verification.{limit}", 3)
        verdict = lc.check(name, net=network(conv(2, 2)), input_shape=SHAPE)
        assert verdict.holds, verdict
    assert "one tap and full kernels alone" in lc.check("kernel_size", net=network(conv(2, 2)), input_shape=SHAPE).scope


def test_ranks_that_cannot_be_told_have_a_bracket() -> None:
    weight = torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64))[:, :, None] * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    found = lc.check("rank_limit", net=lc.LinearCNN.from_weights([weight], (3,)))
    assert found.verdict == "NOT APPLICABLE"
    assert any("mean rank between 1 and 2" in note.text for note in found.notes)


def test_nonlinear_networks_are_not_applicable_by_name() -> None:
    verdict = lc.check("theorem410", net=network(nn.Sequential(conv(2, 2), nn.ReLU(), conv(2, 2)), bias=True), input_shape=SHAPE)
    assert verdict.verdict == "NOT APPLICABLE"
    assert "ReLU" in verdict.reason
    assert "bias of 3 numbers" in verdict.reason


FILE = """
from torch import nn
def build():
    hidden = nn.Conv2d(2, 2, (4, 3), padding="same", padding_mode="circular", bias=False)
    return nn.Sequential(hidden, nn.Flatten(), nn.Linear(24, 3, bias=False))
number = 3
def breaks():
    raise KeyError("gone")
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "verification.theorem410", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_line_reads_a_network_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    done = command("--module", f"{tmp_path}/mine.py:build", "--input-shape", "2", "4", "3")
    assert done.returncode == 0, done.stderr
    assert "layer 0 (Conv2d): bias-free ✓, stride 1 ✓, same size ✓, circular ✓, full kernel ✓, dense ✓" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("mine.py:build", (), "input_shape: expected the shape of one image"),
        ("mine.py:absent", ("2", "4", "3"), "module 'own_network_mine' has no attribute 'absent'"),
        ("mine.py:number", ("2", "4", "3"), "raised TypeError"),
        ("mine.py:breaks", ("2", "4", "3"), "raised KeyError: 'gone'"),
        ("leaves.py:build", ("2", "4", "3"), "raised SystemExit: 2"),
        ("none.py:build", ("2", "4", "3"), "expected a Python file"),
        ("broken.py:build", ("2", "4", "3"), "raised SyntaxError"),
        ("mine.py", ("2", "4", "3"), "expected path/to/file.py:name"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_module_that_cannot_be_read_is_a_usage_error_of_one_line(tmp_path: Path, name: str, shape: tuple[str, ...], says: str) -> None:
    from linconv.claims import UsageError

    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(UsageError) as caught:
        lc.check("theorem410", module=f"{tmp_path}/{name}", input_shape=tuple(map(int, shape)) or None)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_usage_error_ends_with_2(tmp_path: Path) -> None:
    done = command("--module", f"{tmp_path}/none.py:build")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


class Rectified(lc.LinearCNN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _, __, out: out**2)
    return module


@pytest.mark.parametrize(
    "build",
    [
        lambda: Rectified(2, (2,), 3, (4, 3)),
        lambda: hooked(lc.LinearCNN(2, (2,), 3, (4, 3))),
        lambda: hooked(network(conv(2, 2))),
        lambda: network(hooked(conv(2, 2))),
        lambda: lc.LinearCNN.from_weights([torch.zeros(3, 2, 4, 3, dtype=torch.float64)], (4, 3)),
    ],
)
def test_what_its_class_does_not_tell_is_never_held_against_the_theorem(build: Callable[[], nn.Module]) -> None:
    """A nonlinear module in the clothes of a linear one once refuted the theorem."""
    assert lc.check("theorem410", net=build(), input_shape=SHAPE).verdict == "NOT APPLICABLE"


@pytest.mark.usefixtures("unchecked")
def test_modules_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="module: expected weights, got a module some of which have none yet"):
        audit(nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()), SHAPE)
    with pytest.raises(ValueError, match="module: expected weights"):
        audit(nn.Sequential(nn.Conv2d(2, 2, 3, device="meta"), nn.Flatten()), SHAPE)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def of(*weights: torch.Tensor) -> lc.LinearCNN:
    return lc.LinearCNN.from_weights(list(weights), tuple(weights[-1].shape[2:]))


DELTA = torch.zeros(2, 2, 3, dtype=torch.float64)
DELTA[:, :, 0] = torch.eye(2)
EVEN = torch.tensor([[[3.0, 1.0, 0.5, 0.5, 1.0]]], dtype=torch.float64)
DEGENERATE = {
    "deltas": of(DELTA, DELTA),
    "balanced": lc.minimal_network(normal(2, 2, 3), 2),
    "real transforms": of(EVEN, EVEN),
    "one site": of(normal(2, 2, 1), normal(2, 2, 1)),
    "rank one, three dimensions": of(normal(1, 2, 2, 2, 1), normal(2, 1, 2, 3, 2)),
    "small": of(1e-6 * normal(2, 2, 4), 1e-3 * normal(2, 2, 4)),
    "one layer": of(normal(2, 2, 3)),
    "wider than the grid": of(normal(2, 2, 7), normal(2, 2, 4)),
}
GIVEN = ("convolution_theorem", "wrapped_singular_values", "rank_limit", "balancedness", "linear_relative_stability", "kernel_size")


@pytest.mark.parametrize("name", GIVEN)
def test_other_theorems_hold_on_given_networks(name: str) -> None:
    """On a module whose kernels are full, and whatever is degenerate about a network, no theorem is refuted and no control survives."""
    verdict = lc.check(name, net=network(conv(2, 2)).float(), input_shape=SHAPE)
    assert verdict.holds, verdict
    assert "of the given network" in verdict.scope
    assert "automatic" not in verdict.scope
    assert any(check.name == "the module computes ⟨β, x⟩" for check in verdict.checks)
    for kind, net in DEGENERATE.items():
        found = lc.check(name, net=net)
        assert found.verdict in ("HOLDS", "NOT APPLICABLE"), f"{kind}: {found}"


@pytest.mark.parametrize(
    ("name", "build", "says"),
    [
        ("balancedness", lambda: network(conv(2, 2, groups=2)), "layer 0 (Conv2d): not dense (2 groups)"),
        ("balancedness", lambda: network(conv(2, 2, bias=True)), "layer 0 (Conv2d): not bias-free"),
        ("kernel_size", lambda: network(nn.Sequential(conv(2, 2), conv(2, 2))), "depth 2: the network has 3 layers"),
        ("wrapped_singular_values", lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3, bias=False)), "depth: expected at least 2 layers"),
        ("rank_limit", lambda: network(nn.Sequential(conv(2, 2), nn.ReLU(), conv(2, 2))), "ReLU"),
    ],
)
def test_what_a_theorem_does_not_cover_is_named(name: str, build: Callable[[], nn.Module], says: str) -> None:
    verdict = lc.check(name, net=build(), input_shape=SHAPE)
    assert verdict.verdict == "NOT APPLICABLE"
    assert says in verdict.reason


def test_restricted_kernels_are_balanced_in_sum_alone_along_their_own_flow() -> None:
    """The import of two taps has zeros all around, which its own gradient would fill; the module's does not."""
    verdict = lc.check("balancedness", net=network(conv(2, 2, (2, 1))), input_shape=SHAPE)
    assert verdict.holds, verdict
    assert all("each frequency" not in check.name for check in verdict.checks)


def test_large_convolutions_are_iterated_in_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verification.wrapped_singular_values.DENSE", 0)
    verdict = lc.check("wrapped_singular_values", net=network(conv(2, 2)), input_shape=SHAPE)
    assert verdict.holds, verdict
    assert any(check.name == "layer 0: the largest singular value" for check in verdict.checks)
    right = wrapped_singular_values.hidden_layers
    monkeypatch.setattr(
        wrapped_singular_values, "hidden_layers", lambda given: [lambda x, layer=layer: 1.0001 * layer(x) for layer in right(given)]
    )
    assert lc.check("wrapped_singular_values", net=network(conv(2, 2)), input_shape=SHAPE).verdict != "HOLDS"


def test_networks_are_searched_where_none_is_given() -> None:
    found = lc.falsify("wrapped_singular_values", budget=8, draws=1, largest=3, in_channels=2, out_channels=2, seed=0)
    assert found.verdict == "HOLDS", found.reason
    assert "net: " in found.scope


def test_every_claim_about_networks_has_the_same_parameters() -> None:
    for name in (*GIVEN, "theorem410"):
        found = subject_of(import_module(f"verification.{name}").claim).parameters
        assert [name for name in ("module", "input_shape", "net") if found[name].domain.is_flag] == ["module", "input_shape"]
