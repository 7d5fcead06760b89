"""Training of classifiers: a loop by hand, the plateau rule of torch, laws of augmentation, exact resumption after kills, bad input."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from torch import nn

from linconv.checkpoints import load_checkpoint, save_checkpoint
from linconv.classifiers import ClassifierRun, accuracy, shuffled_labels, train_classifier
from linconv.network import LinearCNN
from linconv.sgd import Descent, Plateau, augment, parameter_groups
from linconv.training import train

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Convolution, batch normalisation, dropout and readout, drawn without touching the global generator."""

    def __init__(self, grid=(6, 5), seed=0, dtype=F64, dropout=0.0, activation=nn.ReLU, normalise=True, classes=2):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            convolution, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[len(grid)]
            self.first = convolution(2, 4, 3, padding=1)
            self.norm = norm(4) if normalise else nn.Identity()
            self.activation, self.drop = activation(), nn.Dropout(dropout)
            self.readout = nn.Linear(4 * math.prod(grid), classes)
        self.to(dtype)

    def forward(self, x):
        return self.readout(self.drop(self.activation(self.norm(self.first(x)))).flatten(1))


def data(n=30, grid=(6, 5), dtype=F64, seed=1, shift=0.5, classes=2):
    generator = seeded(seed)
    labels = torch.arange(n) % classes
    return (torch.randn(n, 2, *grid, dtype=F64, generator=generator) + shift * labels.view(-1, *[1] * (1 + len(grid)))).to(dtype), labels


def text_only(value):
    """The name of a test by what is text in it: other things may have addresses, which differ from worker to worker."""
    return value if isinstance(value, str) else ""


def plain(**changes):
    """Arguments of a short run."""
    return {"epochs": 3, "batch_size": 8, "step_size": 0.02, "weight_decay": 0.01, "translations": 1, "generator": seeded(7)} | changes


def parts(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(one, other):
    """Bit by bit, NaNs included."""
    assert one.keys() == other.keys()
    return all(one[name].shape == other[name].shape and one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)


def history(run):
    return {name: getattr(run, name) for name in ("losses", "train_accuracies", "test_accuracies", "step_sizes")}


# --- Against a loop by hand --------------------------------------------------------------------------------------------


def by_hand(net, x, y, *, epochs, batch_size, step_size, momentum, weight_decay, generator, decays=lambda name: name.endswith("weight")):
    """Momentum from its formula, v ← μv + g + decay·w and w ← w − ηv, with cross-entropy from its formula."""
    losses, hits, velocity = [], [], {}
    for _ in range(epochs):
        torch.randint(2**63 - 1, (), generator=generator)  # the seed of dropout
        losses.append(0.0)
        hits.append(0)
        order = torch.randperm(len(x), generator=generator).tolist()
        for begin in range(0, len(x), batch_size):
            rows = order[begin : begin + batch_size]
            outputs = net(x[rows])
            each = torch.logsumexp(outputs, 1) - outputs[range(len(rows)), y[rows]]
            gradients = torch.autograd.grad(each.mean(), list(net.parameters()))
            for (name, w), g in zip(net.named_parameters(), gradients, strict=True):
                g = g + weight_decay * w.detach() * decays(name)
                velocity[name] = momentum * velocity[name] + g if name in velocity else g
                w.data -= step_size * velocity[name]
            losses[-1] += float(each.detach().sum()) / len(x)
            hits[-1] += int((outputs.argmax(1) == y[rows]).sum())
    return losses, [count / len(x) for count in hits]


OPTIONS = {"epochs": 3, "batch_size": 8, "step_size": 0.02, "momentum": 0.8, "weight_decay": 0.1}
# Twelve steps of some ten operations each: their rounding errors, 100 ε, grow by less than 100 in so few and small steps.
ACCURACY = {torch.float32: 1e4 * torch.finfo(torch.float32).eps, F64: 1e4 * torch.finfo(F64).eps}


def distance(net, other):
    pairs = list(zip(net.parameters(), other.parameters(), strict=True))
    return max(float((a - b).detach().norm() / (1 + b.detach().norm())) for a, b in pairs)


@pytest.mark.parametrize("grid", [(5,), (6, 5), (2, 3, 2)], ids=str)
def test_equals_a_loop_by_hand(grid, dtype):
    x, y = data(grid=grid, dtype=dtype)
    net, other = Net(grid, dtype=dtype, normalise=False), Net(grid, dtype=dtype, normalise=False)
    run = train_classifier(net, x, y, flips=False, translations=0, generator=seeded(3), **OPTIONS)
    losses, hits = by_hand(other, x, y, generator=seeded(3), **OPTIONS)
    assert distance(net, other) < ACCURACY[dtype]
    assert run.losses.tolist() == pytest.approx(losses, rel=ACCURACY[dtype])
    assert run.train_accuracies.tolist() == hits
    assert (run.stop_reason, run.step_sizes.tolist(), run.test_accuracies.tolist()) == ("epochs", [0.02] * 3, [])
    assert all(w.grad is None for w in net.parameters())


WRONG = {
    "all decays": {"decays": lambda name: True},
    "readout alone decays": {"decays": lambda name: name == "readout.weight"},
    "twice the decay": {"weight_decay": 0.2},
    "half the decay": {"weight_decay": 0.05},
    "no momentum": {"momentum": 0.0},
    "more momentum": {"momentum": 0.9},
    "smaller batches": {"batch_size": 7},
    "damped steps": {"step_size": 0.02 * 0.2},
    "other order": {"generator": 4},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_loops_differ(wrong):
    x, y = data()
    net, other = Net(normalise=False), Net(normalise=False)
    train_classifier(net, x, y, flips=False, translations=0, generator=seeded(3), **OPTIONS)
    by_hand(other, x, y, **OPTIONS | WRONG[wrong] | {"generator": seeded(WRONG[wrong].get("generator", 3))})
    assert distance(net, other) > 1e4 * ACCURACY[F64]


def test_weight_decay_is_twice_that_of_train(dtype):
    """Steps with all images at once are those of `train`, in whose objective stands λ Σ‖w‖²."""
    x, y = data(dtype=dtype)
    nets = [LinearCNN(2, (3,), 2, (6, 5), dtype=dtype, generator=seeded(1)) for _ in range(3)]
    train(nets[0], x, nn.functional.one_hot(y).to(dtype), weight_decay=0.3, steps=5, loss="cross-entropy", step_size=0.05, momentum=0.9)
    for net, decay in zip(nets[1:], (0.6, 0.3), strict=True):
        options = plain(epochs=5, batch_size=30, step_size=0.05, weight_decay=decay, flips=False, translations=0)
        train_classifier(net, x, y, **options)
    assert distance(nets[1], nets[0]) < ACCURACY[dtype]
    assert distance(nets[2], nets[0]) > 1e-2


@pytest.mark.parametrize("size", [1, 7, 30, 100])
def test_every_image_is_met_once_an_epoch_in_batches(size):
    x, y = data()
    seen, net = [], Net(normalise=False)
    net.first.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()) if module.training else None)
    train_classifier(net, x, y, **plain(epochs=2, batch_size=size, flips=False, translations=0))
    expected = [min(size, 30)] * (30 // min(size, 30)) + [30 % size] * (size < 30 and 30 % size > 0)
    assert [len(batch) for batch in seen] == expected * 2
    epochs = torch.cat(seen).split(30)
    assert all(sorted(epoch.flatten(1).tolist()) == sorted(x.flatten(1).tolist()) for epoch in epochs)
    assert not torch.equal(*epochs)


# --- What decays -------------------------------------------------------------------------------------------------------


def test_parameter_groups():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.layer, self.group, self.slope = nn.LayerNorm((3, 4)), nn.GroupNorm(1, 4), nn.PReLU(4)
            self.bias_map, self.tied = nn.Parameter(torch.zeros(4, 3, 3)), self.net.readout
            self.matrix = nn.Parameter(torch.zeros(2, 2))
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    net = Odd()
    names = {id(w): name for name, w in net.named_parameters()}
    decaying, others = ([names[id(w)] for w in group["params"]] for group in parameter_groups(net, 0.3))
    assert sorted(decaying) == ["matrix", "net.first.weight", "net.readout.weight"]
    assert len(decaying) + len(others) == len(names) - 2
    assert [group["weight_decay"] for group in parameter_groups(net, 0.3)] == [0.3, 0.0]


def test_decay_touches_weights_only_and_is_that_of_torch():
    """One step from the same start: the difference that decay makes is −η · weight_decay · w on weights and nothing elsewhere."""
    x, y = data()
    start, nets = parts(Net()), [Net(), Net()]
    for net, decay in zip(nets, (0.0, 0.5), strict=True):
        train_classifier(net, x, y, **plain(epochs=1, batch_size=30, step_size=0.1, weight_decay=decay))
    without, with_decay = map(parts, nets)
    for name, before in start.items():
        if name in ("first.weight", "readout.weight"):
            assert torch.allclose(with_decay[name] - without[name], -0.1 * 0.5 * before, rtol=0, atol=1e-15)
        else:
            assert torch.equal(with_decay[name], without[name])


@pytest.mark.parametrize("frozen", [["first"], ["readout"], ["first", "norm"]])
def test_frozen_parameters_stay(frozen):
    x, y = data()
    net = Net(normalise="norm" in frozen)  # normalisation would take all influence from the bias before it
    for name in frozen:
        getattr(net, name).requires_grad_(False)
    before = parts(net)
    train_classifier(net, x, y, **plain(weight_decay=0.5))
    for name, w in net.named_parameters():
        assert torch.equal(w, before[name]) == (name.partition(".")[0] in frozen)
        assert w.requires_grad == (name.partition(".")[0] not in frozen)


# --- The step size -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 4) | st.sampled_from([1.0, 0.99, 0.9900000000000001, math.inf]), min_size=1, max_size=60),
    st.integers(0, 4),
    st.sampled_from([0.1, 1e-2, 1e-4, 0.3]),
)
def test_plateau_is_that_of_torch(losses, patience, step_size):
    ours = Plateau(step_size, patience)
    rule = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=step_size)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(rule, factor=0.1, patience=patience, threshold=0.01, eps=0.0)
    for loss in losses:
        go_on = ours.go_on(loss)
        theirs.step(loss)
        assert rule.param_groups[0]["lr"] == ours.step_size
        assert go_on == (ours.step_size > 0.9e-6)
        if not go_on:
            break


@pytest.mark.parametrize(("patience", "step_size", "sizes"), [(0, 1e-5, [1e-5, 1e-5, 1e-6]), (1, 1e-6, [1e-6] * 3), (2, 5e-6, [5e-6] * 4)])
def test_a_plateau_ends_the_run(patience, step_size, sizes):
    """Steps so small that the loss does not fall by one per cent: the first epoch is the best, and `patience` + 1 later one divides."""
    x, y = data()
    run = train_classifier(
        Net(), x, y, **plain(epochs=50, patience=patience, step_size=step_size, batch_size=30, flips=False, translations=0)
    )
    assert run.step_sizes.tolist() == pytest.approx(sizes)
    assert run.stop_reason == "plateau"


def test_divergence_ends_the_run():
    x, y = data(dtype=torch.float32)
    run = train_classifier(Net(dtype=torch.float32, normalise=False), x, y, **plain(epochs=50, step_size=1e20))
    assert run.stop_reason == "diverged"
    assert len(run.losses) < 50
    assert torch.isfinite(run.losses).tolist() == [True] * (len(run.losses) - 1) + [False]


# --- Mirrored and moved images -----------------------------------------------------------------------------------------

GRIDS = [(7,), (4, 5), (5, 4), (3, 3, 3)]


def variants(image, translations):
    """Every image that `augment` may make of one, `(C, *grid)`, by NumPy, with its flip and move."""
    grid = image.shape[1:]
    for flip, *moves in product([False, True], *[range(-translations, translations + 1)] * len(grid)):
        source, result = (np.flip(image, -1) if flip else image), np.zeros_like(image)
        into = tuple(slice(max(m, 0), n + min(m, 0)) for m, n in zip(moves, grid, strict=True))
        out_of = tuple(slice(max(-m, 0), n + min(-m, 0)) for m, n in zip(moves, grid, strict=True))
        result[(slice(None), *into)] = source[(slice(None), *out_of)]
        yield (flip, *moves), result


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("flips", "translations"), [(False, 0), (True, 0), (False, 1), (True, 1), (True, 2)])
def test_augmentation_is_uniform_over_flips_and_moves(grid, flips, translations, dtype):
    """Pixels that all differ tell which flip and move an image had, the same in both channels; all are equally frequent."""
    count, image = 6000, torch.arange(1, 2 * math.prod(grid) + 1, dtype=dtype).view(2, *grid)
    images = image.expand(count, 2, *grid).clone()
    moved = augment(images, flips=flips, translations=translations, generator=seeded(5))
    assert moved.dtype == dtype
    assert torch.equal(images, image.expand_as(images))
    known = {made.tobytes(): key for key, made in variants(image.numpy(), translations)}
    seen = [known[one.numpy().tobytes()] for one in moved]
    possible = (1 + flips) * (2 * translations + 1) ** len(grid)
    counts = np.array([seen.count(key) for key in set(seen)])
    assert len(counts) == possible
    if possible > 1:  # chi squared of k − 1 degrees of freedom: mean k − 1, variance 2(k − 1)
        chi = float(((counts - count / possible) ** 2).sum() / (count / possible))
        assert chi < possible - 1 + 6 * math.sqrt(2 * (possible - 1))


@given(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 2**32))
def test_flips_keep_the_pixels_of_each_row(count, grid, seed):
    images = torch.randn(count, 2, *grid, generator=seeded(seed))
    flipped = augment(images, flips=True, translations=0, generator=seeded(seed))
    assert torch.equal(flipped.sort(-1).values, images.sort(-1).values)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True))
    assert torch.equal(augment(images, flips=False, translations=0, generator=seeded(seed)), images)


def test_augmentation_draws_from_its_generator_alone():
    images, state = torch.randn(20, 1, 6, 6, generator=seeded()), torch.get_rng_state()
    one, again, other = (augment(images, flips=True, translations=2, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


# --- What is learnt ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(8,), (6, 5)], ids=str)
def test_separable_classes_are_learnt_and_shuffled_labels_do_not_generalise(grid, dtype):
    x, y = data(90, grid, dtype, shift=2.0, classes=3)
    held_out = data(300, grid, dtype, seed=2, shift=2.0, classes=3)
    net = Net(grid, dtype=dtype, classes=3)
    run = train_classifier(net, x, y, **plain(epochs=15, test=held_out))
    assert float(run.test_accuracies[-1]) == accuracy(net, *held_out) > 0.9
    assert float(run.losses[-1]) < 0.5 * float(run.losses[0])
    net = Net(grid, dtype=dtype, classes=3)
    run = train_classifier(net, x, shuffled_labels(y, seeded()), **plain(epochs=15, test=held_out))
    assert float(run.test_accuracies[-1]) < 0.7


def test_accuracy_counts_right_answers_and_leaves_the_network_as_it_was(dtype):
    x, y = data(dtype=dtype)
    net = Net(dtype=dtype, dropout=0.5)
    train_classifier(net, x, y, **plain(epochs=1))
    before = parts(net)
    net.train()
    net.norm.eval()
    values = [accuracy(net, x, y, batch_size=size) for size in (1, 7, 30, 1000)]
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert same(parts(net), before)
    with torch.no_grad():
        expected = float((net.eval()(x).numpy().argmax(1) == y.numpy()).mean())
    assert values == [expected] * 4
    assert accuracy(net, x, 1 - y) == pytest.approx(1 - expected)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 2**32))
def test_shuffling_keeps_the_classes(labels, seed):
    given_labels = torch.tensor(labels)
    shuffled = shuffled_labels(given_labels, seeded(seed))
    assert sorted(shuffled.tolist()) == sorted(labels)
    assert given_labels.tolist() == labels


def global_state():
    numpy_state = str(np.random.get_state())  # noqa: NPY002 (the global state is what is watched)
    return torch.get_rng_state().tolist(), numpy_state, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()


# --- Determinism and global state --------------------------------------------------------------------------------------


def test_one_seed_gives_one_network_and_nothing_global_changes():
    x, y = data()
    state = global_state()
    results = []
    for seed in (5, 5, 6):
        net = Net(dropout=0.5)
        net.norm.eval()
        run = train_classifier(net, x, y, **plain(generator=seeded(seed)))
        assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
        results.append(parts(net) | history(run))
    assert same(*results[:2])
    assert not same(*results[1:])
    assert global_state() == state


def test_the_global_generator_has_no_say():
    x, y = data()
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = Net(dropout=0.5)
            train_classifier(net, x, y, **plain())
        results.append(parts(net))
    assert same(*results)


def test_training_inside_no_grad():
    x, y = data()
    net, other = Net(), Net()
    with torch.no_grad():
        train_classifier(net, x, y, **plain())
    train_classifier(other, x, y, **plain())
    assert same(parts(net), parts(other))


def test_images_get_no_gradient():
    x, y = data()
    x.requires_grad_()
    train_classifier(Net(), x, y, **plain())
    assert x.grad is None


def test_on_epoch_and_progress(capsys):
    x, y = data()
    seen = []

    def on_epoch(run: ClassifierRun) -> bool:
        seen.append((len(run.losses), run.stop_reason))
        return len(run.losses) < 2

    run = train_classifier(Net(), x, y, **plain(on_epoch=on_epoch, progress=True))
    assert (run.stop_reason, len(run.losses)) == ("stopped", 2)
    assert seen == [(1, "epochs"), (2, "epochs")]
    assert capsys.readouterr().out == ""


# --- Resumption --------------------------------------------------------------------------------------------------------


def everything(net, run, generator):
    """All that a resumed run must reproduce."""
    return parts(net) | history(run) | {"generator": generator.get_state(), "reason": torch.tensor([len(run.stop_reason)])}


def whole(epochs=6, interrupt=None, path=None, frozen=False, dtype=F64, **changes):
    """A run with everything in it that has a state; with `interrupt` it is stopped by Ctrl-C once so many epochs are done."""
    (x, y), net = changes.pop("data", data(dtype=dtype)), changes.pop("net", Net(dropout=0.5, dtype=dtype))
    if frozen:
        net.first.requires_grad_(False)

    def on_epoch(run):
        if len(run.losses) == interrupt:
            raise KeyboardInterrupt

    options = plain(epochs=epochs, test=data(20, seed=4, dtype=dtype), checkpoint=path, on_epoch=on_epoch) | changes
    return everything(net, train_classifier(net, x, y, **options), options["generator"])


# What changes the parts that a state has: a falling step size, no momentum, no file in odd epochs, parameters that do not move.
KINDS = {
    "all": {},
    "falling step": {"patience": 0, "step_size": 1e-3},
    "no momentum": {"momentum": 0.0, "translations": 0},
    "every second": {"checkpoint_every": 2},
    "frozen": {"frozen": True},
    "float32": {"dtype": torch.float32},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [[1], [6], [2, 3, 5]], ids=str)
def test_interrupted_runs_end_as_if_they_had_not_been(tmp_path, kind, stops):
    path = tmp_path / "run.safetensors"
    expected = whole(**KINDS[kind])
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            whole(path=path, interrupt=stop, **KINDS[kind])
    assert same(whole(path=path, **KINDS[kind]), expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.safetensors"]


def test_a_finished_run_is_only_read(tmp_path):
    path = tmp_path / "run.safetensors"
    expected = whole(path=path)
    written = path.read_bytes()
    assert same(whole(path=path, interrupt=6), expected)
    assert path.read_bytes() == written


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    whole(3, path=path)
    assert same(whole(6, path=path), whole(6))
    with pytest.raises(ValueError, match=r"epochs: expected at least the 6 that .*run\.safetensors has behind it, got 5"):
        whole(5, path=path)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path = tmp_path / "run.safetensors"
    whole(path=path, on_epoch=lambda run: len(run.losses) < 3, checkpoint_every=5)
    assert len(load_checkpoint(path)[1]["history"]["losses"]) == 3
    assert same(whole(path=path), whole())


@pytest.mark.parametrize(("changes", "reason"), [({"step_size": 1e20}, "diverged"), ({"step_size": 1e-6, "patience": 0}, "plateau")])
def test_ends_other_than_the_number_of_epochs_are_kept(tmp_path, changes, reason):
    x, y = data()
    options = plain(epochs=40, checkpoint=tmp_path / "run.safetensors", checkpoint_every=30, **changes)
    first = train_classifier(Net(normalise=False), x, y, **options)
    again = train_classifier(Net(normalise=False), x, y, **options | {"generator": seeded(7)})
    assert first.stop_reason == again.stop_reason == reason
    assert len(first.losses) < 40
    assert same(history(first), history(again))


SCRIPT = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from tests.test_classifiers import whole

def life(path, target, tell):
    end = whole(40, path=path, on_epoch=lambda run: tell and os.write(tell, b".") and None)
    save_file(end, target)
    os._exit(0)

path, target, lone = sys.argv[1:]
whole(1)  # what torch loads at first use, once for all lives
if os.fork() == 0:
    life(None, lone, None)
assert os.wait()[1] == 0
draw, killed = random.Random(0), 0
for attempt in range(30):
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        life(path, target, tell)
    os.close(tell)
    if attempt < 8:
        if attempt:  # once in every life but the first one epoch is got through
            os.read(hear, 1)
        time.sleep(draw.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(hear)
    killed += os.WIFSIGNALED(status)
    if status == 0:
        print(killed)
        sys.exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL at random moments, the writing of a file among them, by a process that imports torch once and forks each life."""
    paths = [str(tmp_path / name) for name in ("run.safetensors", "end", "expected")]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert same(load_file(paths[1]), load_file(paths[2]))


@pytest.mark.parametrize("moment", ["save_file", "os.fsync", "os.replace"])
def test_a_failure_while_writing_leaves_the_last_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "run.safetensors"
    whole(3, path=path)
    written = path.read_bytes()

    def fail(*args, **options):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(f"linconv.checkpoints.{moment}", fail)
        with pytest.raises(OSError, match="disk full"):
            whole(6, path=path)
    assert path.read_bytes() == written
    assert same(whole(6, path=path), whole(6))
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def other_data(bit=False):
    x, y = data()
    if bit:
        x.view(-1)[17] = torch.nextafter(x.view(-1)[17], torch.tensor(9.0, dtype=F64))
    else:
        y = y.roll(1)
    return x, y


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "batch_size was 8, is 9"),
        ({"step_size": 0.03}, r"step_size was 0\.02, is 0\.03"),
        ({"momentum": 0.8}, r"momentum was 0\.9, is 0\.8"),
        ({"weight_decay": 0.0}, r"weight_decay was 0\.01, is 0\.0"),
        ({"patience": 3}, "patience was 20, is 3"),
        ({"flips": False}, "flips was True, is False"),
        ({"translations": 2}, "translations was 1, is 2"),
        ({"generator": seeded(8)}, "run: other generator;"),
        ({"test": None}, "run: other test;"),
        ({"test": data(20, seed=5)}, "run: other test;"),
        ({"data": other_data(bit=True)}, "run: other images;"),
        ({"data": other_data()}, "run: other labels;"),
        ({"net": Net(dropout=0.5, seed=1)}, "run: other initial weights;"),
        ({"net": Net(dropout=0.5, activation=nn.Identity)}, "run: other architecture;"),
        ({"net": Net(dropout=0.4)}, "run: other architecture;"),
        ({"net": Net(dropout=0.5, normalise=False)}, "run: other architecture; other initial weights;"),
        ({"frozen": True}, "run: other architecture;"),
        ({"dtype": torch.float32}, "run: other images; other test; other architecture; other initial weights;"),
        ({"batch_size": 9, "patience": 3}, "batch_size was 8, is 9; patience was 20, is 3; repeat the arguments .* or name another file"),
    ],
    ids=text_only,
)
def test_another_run_is_refused_by_what_differs(tmp_path, changes, message):
    path = tmp_path / "run.safetensors"
    whole(2, path=path)
    written, net = path.read_bytes(), changes.get("net", Net(dropout=0.5, dtype=changes.get("dtype", F64)))
    before = parts(net)
    with pytest.raises(ValueError, match=rf"checkpoint: .*run\.safetensors is of another run: .*{message.removeprefix('run: ')}"):
        whole(4, path=path, **changes | {"net": net})
    assert path.read_bytes() == written
    assert same(parts(net), before)


# --- Files -------------------------------------------------------------------------------------------------------------

TENSORS = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
FACTS = st.dictionaries(st.text(), st.none() | st.floats() | st.integers() | st.booleans() | st.text() | st.lists(st.floats()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(content=st.dictionaries(st.text("abc.é", min_size=1), TENSORS, max_size=3), facts=FACTS)
def test_files_give_back_what_was_written(folder, content, facts):
    tensors = {name: torch.from_numpy(value.copy()) for name, value in content.items()}
    save_checkpoint(folder / "round", tensors, facts)
    loaded, found = load_checkpoint(folder / "round")
    assert same(loaded, tensors)
    assert json.dumps(found, sort_keys=True) == json.dumps(facts, sort_keys=True)


def test_views_and_shared_storage_can_be_written(folder):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "part": base[1], "turned": base.T, "again": base}
    save_checkpoint(folder / "views", tensors, {})
    assert same(load_checkpoint(folder / "views")[0], {name: value.contiguous() for name, value in tensors.items()})


@given(st.data())
def test_damage_anywhere_is_found(folder, draws):
    whole_file = folder / "whole"
    if not whole_file.exists():
        save_checkpoint(whole_file, {"a": torch.arange(9.0), "b": torch.zeros(3, dtype=torch.uint8)}, {"epoch": 3, "x": math.inf})
    content = bytearray(whole_file.read_bytes())
    at = draws.draw(st.integers(0, len(content) - 1))
    if draws.draw(st.booleans()):
        content[at] ^= draws.draw(st.integers(1, 255))
    else:
        content = content[:at]
    damaged = folder / "damaged"
    damaged.write_bytes(content)
    message = rf"checkpoint: expected a whole file that a run of linconv has written, got {damaged}: .*; delete it or name another file"
    if content.split() == whole_file.read_bytes().split():  # white space for white space in the padding of the header
        assert load_checkpoint(damaged)[1] == load_checkpoint(whole_file)[1]
    else:
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_checkpoint(damaged)


def spring():
    pytest.fail("unpickled")


class Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (spring, ())


def test_nothing_is_unpickled_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    torch.save({"trap": Trap()}, path)
    with pytest.raises(ValueError, match=r"whole file that a run of linconv has written, got .*run\.safetensors"):
        whole(path=path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="whole file that a run of linconv has written"):
        whole(path=path)
    save_checkpoint(path, {"a": torch.zeros(2)}, {"format": "something else"})
    with pytest.raises(ValueError, match=r"expected a file of train_classifier, got .*run\.safetensors"):
        whole(path=path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="whole file that a run of linconv has written"):
        whole(path=path)


# --- Bad input ---------------------------------------------------------------------------------------------------------


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Broken(Net):
    def forward(self, x):
        return super().forward(x) / 0


class Maps(Net):
    def forward(self, x):
        return self.first(x)


def bad(value):
    """Images with one entry that is no number."""
    x, _ = data()
    x[3, 1, 2, 2] = value
    return x


X, Y = data()
BAD = [
    ({"net": "net"}, TypeError, "net: expected a torch module, got str"),
    ({"net": nn.Flatten()}, ValueError, "net: expected a module with parameters"),
    ({"net": Pair()}, TypeError, "net: expected outputs in one tensor .*, got tuple; wrap net"),
    ({"net": Maps()}, ValueError, r"net: expected outputs \(N, K\), got \(1, 4, 6, 5\)"),
    ({"net": Broken()}, ValueError, "net: expected finite outputs before training, got NaN or infinity for image 0; look at its weights"),
    ({"net": Net().requires_grad_(False)}, ValueError, "net: expected parameters to train"),
    ({"images": X.numpy()}, TypeError, "images: expected a torch tensor"),
    ({"images": X.float()}, TypeError, r"images: expected torch.float64 as the weights have, got torch.float32; use \.to"),
    ({"images": X.to(torch.uint8)}, TypeError, "images: expected dtype float32 or float64, got torch.uint8"),
    ({"images": X.to("meta")}, ValueError, "images: expected images on the CPU or, as the weights, on cpu, got meta"),
    ({"images": bad(math.nan)}, ValueError, "images: expected finite numbers"),
    ({"images": bad(-math.inf)}, ValueError, "images: expected finite numbers"),
    ({"images": X[:0], "labels": Y[:0]}, ValueError, "images: expected data, got the empty shape"),
    ({"images": X[0]}, ValueError, r"labels: expected 2 labels, one an image, got 30|images: expected"),
    ({"images": X[:, 0, 0]}, ValueError, r"images: expected \(N, C, \*grid\), got shape \(30, 5\)"),
    ({"images": X[:, :1]}, ValueError, r"images: expected images that net accepts, got \(N, 1, 6, 5\): .*2 channels"),
    ({"images": X[..., :4]}, ValueError, r"images: expected images that net accepts, got \(N, 2, 6, 4\)"),
    ({"labels": Y.tolist()}, TypeError, r"labels: expected a torch tensor \(N,\) of dtype int64, got list"),
    ({"labels": Y.int()}, TypeError, "labels: expected .* int64, got torch.int32"),
    ({"labels": Y.to("meta")}, ValueError, "labels: expected data, got a tensor on the device meta"),
    ({"labels": Y.double()}, TypeError, "labels: expected .* int64, got torch.float64"),
    ({"labels": nn.functional.one_hot(Y)}, ValueError, r"labels: expected one class an image, \(N,\), got shape \(30, 2\)"),
    ({"labels": Y[:-1]}, ValueError, "labels: expected 30 labels, one an image, got 29"),
    ({"labels": Y + 1}, ValueError, "labels: expected classes from 0 to 1, as net has 2 outputs, got 1 to 2"),
    ({"labels": Y - 1}, ValueError, "labels: expected classes from 0 to 1, as net has 2 outputs, got -1 to 0"),
    ({"labels": 0 * Y}, ValueError, "labels: expected two classes or more, got only class 0 of 2"),
    ({"epochs": 0}, ValueError, "epochs: expected a positive integer"),
    ({"epochs": 1.5}, TypeError, "epochs: expected a positive integer"),
    ({"batch_size": 0}, ValueError, "batch_size: expected a positive integer"),
    ({"batch_size": -3}, ValueError, "batch_size: expected a positive integer"),
    ({"step_size": 0.0}, ValueError, "step_size: expected a finite number > 0"),
    ({"step_size": math.nan}, ValueError, "step_size: expected a finite number > 0"),
    ({"momentum": 1.0}, ValueError, "momentum: expected a number below 1, got 1.0"),
    ({"momentum": -0.5}, ValueError, "momentum: expected a finite number ≥ 0"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay: expected a finite number ≥ 0"),
    ({"patience": -1}, ValueError, "patience: expected"),
    ({"patience": False}, TypeError, "patience: expected"),
    ({"flips": 1}, TypeError, "flips: expected True or False, got 1"),
    ({"amp": None}, TypeError, "amp: expected True or False, got None"),
    ({"translations": -1}, ValueError, "translations: expected"),
    ({"translations": 0.5}, TypeError, "translations: expected"),
    ({"translations": 5}, ValueError, r"translations: expected fewer pixels than images of \(6, 5\) have, got 5; pass 0 for none"),
    ({"generator": 3}, TypeError, "generator: expected a torch.Generator, got 3"),
    ({"test": X}, TypeError, r"test: expected a pair \(images, labels\), got Tensor"),
    ({"test": (X, Y + 1)}, ValueError, r"test\[1\]: expected classes from 0 to 1"),
    ({"test": (bad(math.nan), Y)}, ValueError, r"test\[0\]: expected finite numbers"),
    ({"test": (X[:, :1], Y)}, ValueError, r"test\[0\]: expected images that net accepts"),
    ({"checkpoint": 3}, TypeError, "checkpoint: expected the path of a file, got 3"),
    (
        {"checkpoint": "/nowhere/at/all"},
        ValueError,
        "checkpoint: expected a file in a folder that can be written, got /nowhere/at/all; make",
    ),
    ({"checkpoint": "."}, ValueError, "checkpoint: expected the path of a file, got the folder"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every: expected a positive integer"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=text_only)
def test_bad_input_is_named_and_nothing_changes(tmp_path, changes, error, message):
    options = plain(checkpoint=tmp_path / "run.safetensors") | changes
    net, x, y = options.pop("net", Net()), options.pop("images", X), options.pop("labels", Y)
    before = parts(net) if isinstance(net, nn.Module) else {}
    with pytest.raises(error, match=message):
        train_classifier(net, x, y, **options)
    assert list(tmp_path.iterdir()) == []
    assert not before or same(parts(net), before)


@pytest.mark.usefixtures("unchecked")
def test_weights_that_are_not_there():
    with pytest.raises(ValueError, match=r"net: expected weights, got a module whose first\.weight has no data, on the device meta"):
        train_classifier(Net().to("meta"), X, Y, **plain())
    with pytest.raises(ValueError, match=r"net: expected weights, got a lazy module whose 0\.weight has none yet"):
        train_classifier(nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()), X, Y, **plain())


@pytest.mark.usefixtures("unchecked")
def test_bad_input_of_the_small_functions():
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 1"):
        accuracy(Net(), X, Y + 1)
    with pytest.raises(ValueError, match="batch_size: expected a positive integer"):
        accuracy(Net(), X, Y, batch_size=0)
    with pytest.raises(TypeError, match="net: expected a torch module"):
        accuracy(None, X, Y)
    with pytest.raises(TypeError, match="labels: expected"):
        shuffled_labels([0, 1], seeded())
    with pytest.raises(ValueError, match="labels: expected"):
        shuffled_labels(Y[:0], seeded())
    with pytest.raises(TypeError, match="generator: expected"):
        shuffled_labels(Y, 0)


def test_a_batch_of_one_image_that_cannot_be_normalised():
    x, y = data(9, (1, 1))
    net = Net((1, 1))
    net.eval()
    with pytest.raises(ValueError, match=r"batch_size: expected batches that net can be trained on, got one of 1: .*more than 1 value"):
        train_classifier(net, x, y, **plain(translations=0))
    assert not any(module.training for module in net.modules())


class Auxiliary(Net):
    """In training mode it has two outputs, as networks with auxiliary classifiers do."""

    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


def test_failures_in_an_epoch_restore_flags_and_global_generator():
    state, net = global_state(), Auxiliary(dropout=0.5)
    net.norm.eval()
    with pytest.raises(TypeError, match=r"net: expected outputs in one tensor .* in training mode too, got tuple"):
        train_classifier(net, X, Y, **plain())
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert global_state() == state


# --- Half precision ----------------------------------------------------------------------------------------------------


def test_half_precision_means_nothing_on_a_cpu(dtype):
    x, y = data(dtype=dtype)
    nets = [Net(dtype=dtype) for _ in range(2)]
    runs = [train_classifier(net, x, y, **plain(amp=amp)) for net, amp in zip(nets, (True, False), strict=True)]
    assert same(*map(parts, nets))
    assert same(*map(history, runs))


def one_step(half, size=1.0):
    """A step of the code that a GPU runs in half precision, on the CPU: the change of the weights, and the descent afterwards."""
    x, y = data(16, dtype=torch.float32)
    net = Net(dtype=torch.float32, normalise=False)
    before = parts(net)
    groups = parameter_groups(net, 0.01)
    descent = Descent(net, groups, 0.9, Plateau(0.1, 5), flips=False, translations=0, generator=seeded(), half=half)
    loss, hits = descent.step(size * x, y).tolist()
    return {name: w - before[name] for name, w in parts(net).items()}, descent, loss, hits


def test_a_step_in_half_precision_is_that_in_single_precision_up_to_rounding():
    """Half precision rounds to 5e-4; a forward and a backward pass through three layers add up some ten such errors."""
    single, half = one_step(False), one_step(True)
    assert half[1].scaler.is_enabled()
    assert not single[1].scaler.is_enabled()
    assert half[2] == pytest.approx(single[2], rel=5e-3)
    assert abs(half[3] - single[3]) <= 1
    for name, change in single[0].items():
        assert 0 < float((half[0][name] - change).norm()) < 5e-3 * float(change.norm())
    assert all(w.dtype == torch.float32 for w in half[0].values())


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved():
    change, descent, *_ = one_step(True, 1e5)  # half precision ends at 65504
    assert not any(w.any() for w in change.values())
    assert descent.scaler.get_scale() == 2.0**15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "amp"), [(F64, True), (torch.float32, False), (torch.float32, True)])
def test_on_a_gpu(tmp_path, dtype, amp):
    """The same run as on the CPU, up to rounding (half precision: 1e-3 an operation), and resumed as it was."""
    x, y = data(dtype=dtype)
    here, there = Net(dtype=dtype), Net(dtype=dtype).cuda()
    expected = train_classifier(here, x, y, **plain(test=(x, y), amp=amp))
    run = train_classifier(there, x, y, **plain(test=(x, y), amp=amp))
    tolerance = 0.05 if amp and dtype != F64 else ACCURACY[dtype]
    assert run.losses.tolist() == pytest.approx(expected.losses.tolist(), rel=tolerance)
    options = plain(amp=amp, checkpoint=tmp_path / "run.safetensors")
    first = train_classifier(Net(dtype=dtype).cuda(), x.cuda(), y.cuda(), **options)
    again = train_classifier(Net(dtype=dtype).cuda(), x.cuda(), y.cuda(), **options | {"generator": seeded(7)})
    assert same(history(first), history(again))
