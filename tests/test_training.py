"""Training: stop reasons, objectives against NumPy, balance and its laws under gradient flow, interrupts, bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from linconv import training
from linconv.cost import minimal_network
from linconv.network import LinearCNN
from linconv.solvers import fit
from linconv.training import imbalance, train
from linconv.witnesses import dense_network

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def data(n=20, channels=2, grid=(3, 2), outputs=2, dtype=F64):
    return normal(n, channels, *grid, dtype=dtype), normal(n, outputs, seed=1, dtype=dtype)


def network(depth=3, seed=2, dtype=F64, grid=(3, 2), **options):
    return LinearCNN(2, (3,) * (depth - 1), 2, grid, dtype=dtype, generator=torch.Generator().manual_seed(seed), **options)


def space_objective(net, x, y, decay):
    """F of a network from dense matrices in NumPy."""
    weights = [w.detach().double().numpy() for w in net.weights]
    outputs = x.double().flatten(1).numpy() @ dense_network(weights, tuple(x.shape[2:])).T
    return float(((outputs - y.double().numpy()) ** 2).sum() / (2 * len(x)) + decay * sum((w**2).sum() for w in weights))


def copies(net):
    return [w.detach().clone() for w in net.parameters()]


RULES = {
    "lbfgs": {"steps": 4},
    "gradient descent": {"steps": 20, "step_size": 0.05},
    "momentum": {"steps": 20, "step_size": 0.02, "momentum": 0.9, "optimizer": "sgd"},
    "minibatches": {"steps": 20, "step_size": 0.05, "batch_size": 7},
}


# --- What a run reports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_objectives_are_those_of_the_full_data(rule, dtype):
    x, y = data(dtype=dtype)
    net = network(dtype=dtype)
    first = space_objective(net, x, y, 0.02)
    run = train(net, x, y, weight_decay=0.02, generator=torch.Generator().manual_seed(0), **RULES[rule])
    accuracy = 1e-12 if dtype == F64 else 1e-5
    assert run.objectives.dtype == F64
    assert float(run.objectives[0]) == pytest.approx(first, rel=accuracy)
    assert float(run.objectives[-1]) == pytest.approx(space_objective(net, x, y, 0.02), rel=accuracy)
    assert float(run.objectives[-1]) < first
    assert (run.stop_reason, len(run.objectives)) == ("steps", RULES[rule]["steps"] + 1)
    assert all(w.grad is None or not w.grad.any() for w in net.parameters())
    assert run.imbalance[1] == imbalance(net)


@pytest.mark.parametrize("rule", RULES)
def test_runs_are_deterministic_and_leave_global_state_alone(rule):
    x, y = data()
    state = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    runs = []
    for _ in range(2):
        net = network()
        run = train(net, x, y, weight_decay=0.02, generator=torch.Generator().manual_seed(5), **RULES[rule])
        runs.append((run.objectives, copies(net)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (torch.get_num_threads(), torch.get_default_dtype())


def test_gradient_descent_takes_the_steps_it_should():
    x, y = data()
    net, by_hand = network(), network()
    run = train(net, x, y, weight_decay=0.02, steps=3, step_size=0.1, record_every=1)
    for step in range(1, 4):
        value = (by_hand(x) - y).square().sum() / (2 * len(x)) + 0.02 * sum(w.square().sum() for w in by_hand.weights)
        gradients = torch.autograd.grad(value, list(by_hand.weights))
        for weight, gradient in zip(by_hand.weights, gradients, strict=True):
            weight.data -= 0.1 * gradient
        for kept, weight in zip(run.weights[step], by_hand.weights, strict=True):
            torch.testing.assert_close(kept, weight.detach(), rtol=1e-12, atol=1e-14)
    assert list(run.weights) == [1, 2, 3]


def test_minibatches_see_every_image_once_an_epoch():
    """Linear labels of one site: with step 1/‖x‖² and one image a batch, the last weight remembers every image seen."""
    n = 5
    x = torch.eye(n, dtype=F64).reshape(n, n, 1)
    y = torch.arange(1.0, n + 1, dtype=F64)[:, None]
    net = LinearCNN.from_weights([torch.zeros(1, n, 1, dtype=F64)], (1,))
    generator = torch.Generator().manual_seed(0)
    train(net, x, y, weight_decay=0.0, steps=n, step_size=1.0, batch_size=1, generator=generator)
    assert net.weights[0].flatten().tolist() == [1, 2, 3, 4, 5]
    # A batch larger than the data is the data.
    whole, full = network(), network()
    x, y = data()
    train(whole, x, y, weight_decay=0.1, steps=3, step_size=0.1, batch_size=1000, generator=generator)
    train(full, x, y, weight_decay=0.1, steps=3, step_size=0.1)
    for a, b in zip(whole.weights, full.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_weights_are_recorded_as_copies():
    x, y = data()
    net = network()
    run = train(net, x, y, weight_decay=0.1, steps=5, step_size=0.01, record_every=2)
    assert list(run.weights) == [2, 4]
    again = LinearCNN.from_weights(run.weights[4], (3, 2))
    assert space_objective(again, x, y, 0.1) == pytest.approx(float(run.objectives[4]), rel=1e-12)
    assert train(net, x, y, weight_decay=0.1, steps=2, step_size=0.01).weights == {}


# --- Stop reasons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_lbfgs_goes_to_the_end_and_never_up(depth, dtype):
    x, y = data(dtype=dtype)
    net = network(depth, dtype=dtype)
    run = train(net, x, y, weight_decay=0.02, steps=200, tol=1e-12)
    assert run.stop_reason in ("converged", "stalled")
    rounding = 1e-14 if dtype == F64 else 1e-5
    assert bool((run.objectives.diff() <= rounding * run.objectives[:-1]).all())
    assert run.gradient_norm < (1e-5 if dtype == F64 else 1e-2)
    if depth <= 2:
        expected = fit(x, y, depth=depth, weight_decay=0.02).objective
        assert float(run.objectives[-1]) == pytest.approx(expected, rel=1e-8 if dtype == F64 else 1e-4)


def test_converged_and_stalled():
    x, y = data()
    assert train(network(2), x, y, weight_decay=0.1, steps=500, tol=1e-3).stop_reason == "converged"
    run = train(network(2), x, y, weight_decay=0.1, steps=500, step_size=0.1, tol=1e-2)
    assert run.stop_reason == "converged"
    assert run.gradient_norm <= 1e-2
    assert train(network(2), x, y, weight_decay=0.1, steps=500, tol=0.0).stop_reason == "stalled"


def test_weights_of_zero_are_stationary():
    x, y = data()
    net = LinearCNN.from_weights([torch.zeros_like(w) for w in network().weights], (3, 2))
    run = train(net, x, y, weight_decay=0.1, steps=5)
    assert (run.stop_reason, run.gradient_norm, run.imbalance) == ("converged", 0, (0, 0))
    assert not any(w.any() for w in net.weights)


def test_a_batch_without_a_gradient_does_not_end_the_run():
    x, y = data(n=4)
    x[:3] = 0  # three of four images have no gradient
    net = network()
    run = train(net, x, y, weight_decay=0.0, steps=12, step_size=0.01, batch_size=1, generator=torch.Generator().manual_seed(0))
    assert (run.stop_reason, len(run.objectives)) == ("steps", 13)


@pytest.mark.parametrize("steps", [1, 100])
def test_divergence(steps):
    x, y = data()
    run = train(network(), x, y, weight_decay=0.1, steps=steps, step_size=1e150)
    assert run.stop_reason == "diverged"
    assert not math.isfinite(float(run.objectives[-1]))


def test_on_step_stops_and_sees_every_objective():
    x, y = data()
    seen = []

    def watch(step, value):
        seen.append((step, value))
        return step < 3

    run = train(network(), x, y, weight_decay=0.1, steps=10, step_size=0.01, on_step=watch)
    assert run.stop_reason == "stopped"
    assert [step for step, _ in seen] == [1, 2, 3]
    assert [value for _, value in seen] == run.objectives[:3].tolist()
    assert train(network(), x, y, weight_decay=0.1, steps=2, step_size=0.01, on_step=lambda *_: None).stop_reason == "steps"


def test_an_interrupt_leaves_the_weights_of_the_last_step():
    x, y = data()
    net, other = network(), network()

    def interrupt(step, value):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(net, x, y, weight_decay=0.1, steps=10, step_size=0.05, on_step=interrupt)
    train(other, x, y, weight_decay=0.1, steps=3, step_size=0.05)
    assert all(torch.equal(a, b) for a, b in zip(net.weights, other.weights, strict=True))


def test_progress_goes_to_standard_error(capsys):
    x, y = data()
    train(network(), x, y, weight_decay=0.1, steps=2, step_size=0.01, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""


# --- Optimisers and modules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.LBFGS])
def test_optimizers_of_the_user(rule):
    x, y = data()
    net = network(2)
    run = train(net, x, y, weight_decay=0.05, steps=60, optimizer=rule(net.parameters(), lr=0.02 if rule is torch.optim.Adam else 1))
    assert float(run.objectives[-1]) == pytest.approx(space_objective(net, x, y, 0.05), rel=1e-12)
    assert float(run.objectives[-1]) < float(run.objectives[0])


def test_torch_modules_train():
    x, y = data(dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), padding="same", padding_mode="circular", bias=False), nn.Flatten(), nn.Linear(18, 2, bias=False)
        )
    first = float(((net(x) - y).square().sum() / 40 + 0.1 * sum(w.square().sum() for w in net.parameters())).detach())
    run = train(net, x, y, weight_decay=0.1, steps=50)
    assert float(run.objectives[0]) == pytest.approx(first, rel=1e-5)
    assert float(run.objectives[-1]) >= fit(x, y, depth=2, weight_decay=0.1).lower_bound * (1 - 1e-5)
    assert run.imbalance is None
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False), nn.Linear(3, 2, bias=False)).to(F64)
    frozen[1].weight.requires_grad_(False)
    before = frozen[1].weight.clone()
    train(frozen, *data(), weight_decay=0.1, steps=3, step_size=0.01)
    assert torch.equal(frozen[1].weight, before)


# --- Balance -----------------------------------------------------------------------------------------------------------


def lag_zero(weights):
    """Σ_u of upper†upper − lower lower† over D by hand: sums of products of kernels at equal sites."""
    lower, upper = (w.numpy().reshape(*w.shape[:2], -1) for w in weights)
    return np.einsum("kis,kjs->ij", upper, upper) - np.einsum("ics,jcs->ij", lower, lower)


def test_imbalance_by_hand():
    one = torch.tensor([[[2.0]]], dtype=F64)
    three = torch.tensor([[[3.0]]], dtype=F64)
    assert imbalance(LinearCNN.from_weights([one, three], (1,))) == pytest.approx((9 - 4) / (9 + 4))
    assert imbalance(LinearCNN.from_weights([one, one, three], (1,))) == pytest.approx(5 / 17)
    assert imbalance(LinearCNN.from_weights([one], (1,))) == 0
    # Two sites, a = (1, 2) and b = (3, 0): |â|² = (9, 1), |b̂|² = (9, 9), so that (1/D)Σ‖·‖ = (0 + 8)/2; Σw² = 14.
    a, b = torch.tensor([[[1.0, 2.0]]], dtype=F64), torch.tensor([[[3.0, 0.0]]], dtype=F64)
    assert imbalance(LinearCNN.from_weights([a, b], (2,))) == pytest.approx(8 / 2 / 14)
    # One tap on two sites: only the sum over frequencies counts, |b|² − |a|² at equal sites.
    tap = torch.tensor([[[2.0]]], dtype=F64)
    assert imbalance(LinearCNN.from_weights([tap, b], (2,))) == pytest.approx((9 - 4) / 13)
    weights = [normal(3, 2, 2), normal(2, 3, 5)]
    total = sum(float(w.square().sum()) for w in weights)
    assert imbalance(LinearCNN.from_weights(weights, (5,))) == pytest.approx(np.linalg.norm(lag_zero(weights)) / total)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_minimal_networks_are_balanced(depth):
    assert imbalance(minimal_network(normal(3, 2, 3, 4), depth)) < 1e-13


def differences(net, kernel=None):
    """The conserved quantities of gradient flow: per frequency for full kernels, summed over them for smaller ones."""
    dims = tuple(range(2, net.weights[0].ndim))
    spectra = [np.fft.fftn(w.detach().numpy(), s=net.grid, axes=dims) for w in net.weights]
    spectra[-1] = spectra[-1].conj()
    spectra = [np.moveaxis(s, (0, 1), (-2, -1)) for s in spectra]
    found = [np.conj(np.swapaxes(b, -1, -2)) @ b - a @ np.conj(np.swapaxes(a, -1, -2)) for a, b in pairwise(spectra)]
    return found if kernel is None else [f.sum(axis=tuple(range(f.ndim - 2))) for f in found]


@pytest.mark.parametrize("kernel", [None, 2])
def test_gradient_flow_conserves_the_imbalance(kernel):
    """The drift is of second order: half the step, half the drift over the same time."""
    x, y = data()
    drifts = []
    for steps in (100, 200):
        net = network(kernel_size=kernel, scale=1.0)
        before = differences(net, kernel)
        start = copies(net)
        train(net, x, y, weight_decay=0.0, steps=steps, step_size=0.5 / steps)
        moved = max(float((a - b).abs().max()) for a, b in zip(start, copies(net), strict=True))
        drifts.append(max(np.abs(a - b).max() for a, b in zip(before, differences(net, kernel), strict=True)))
        assert moved > 0.05
    assert drifts[0] < 0.05
    assert drifts[1] / drifts[0] == pytest.approx(0.5, abs=0.03)


def test_smaller_kernels_conserve_only_the_sum_over_frequencies():
    x, y = data()
    net = network(kernel_size=2, scale=1.0)
    before = differences(net)
    train(net, x, y, weight_decay=0.0, steps=200, step_size=0.0025)
    assert max(np.abs(a - b).max() for a, b in zip(before, differences(net), strict=True)) > 0.1


def test_weight_decay_shrinks_the_imbalance_exponentially():
    """λΣ‖w‖² adds −2λw to the flow of each weight, so that products of two of them shrink as e^{−4λt}."""
    x, y = data()
    net, decay, time, steps = network(scale=1.0), 0.2, 1.0, 300
    before = differences(net)
    train(net, x, y, weight_decay=decay, steps=steps, step_size=time / steps)
    for a, b in zip(before, differences(net), strict=True):
        assert np.linalg.norm(b - math.exp(-4 * decay * time) * a) < 0.02 * np.linalg.norm(a)
        assert np.linalg.norm(b - math.exp(-2 * decay * time) * a) > 0.1 * np.linalg.norm(a)  # not the rate of torch's weight_decay


def test_the_optimum_of_training_is_balanced():
    x, y = data()
    run = train(network(2), x, y, weight_decay=0.05, steps=200)
    assert run.imbalance[0] > 0.01
    assert run.imbalance[1] < 1e-6


# --- Helpers -----------------------------------------------------------------------------------------------------------


def test_objective_is_differentiable_and_counts_every_parameter():
    x, y = data()
    net = network()
    value = training.objective(net, x, y, 0.3)
    assert float(value.detach()) == pytest.approx(space_objective(net, x, y, 0.3), rel=1e-12)
    value.backward()
    assert all(w.grad is not None for w in net.parameters())
    assert float(training.sum_of_squares(nn.Linear(2, 1, bias=True).to(F64)).detach()) > 0


def test_the_scale_of_lbfgs_survives_a_zero_or_infinite_objective():
    x, y = data()
    net = LinearCNN.from_weights([torch.zeros(2, 2, 3, 2, dtype=F64)], (3, 2))
    assert training._lbfgs_scale(lambda x, y: training.objective(net, x, y, 0.1), x, 0 * y) == 1
    assert train(net, x, 0 * y, weight_decay=0.1, steps=3).objectives.tolist() == [0, 0]


# --- Bad input ---------------------------------------------------------------------------------------------------------


class Weightless(nn.Module):
    def forward(self, x):
        return x.flatten(1)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("net", None, TypeError),
        ("net", Weightless(), ValueError),
        ("x", np.ones((20, 2, 3, 2)), TypeError),
        ("x", torch.ones(20, 12, dtype=F64), ValueError),
        ("x", torch.ones(0, 2, 3, 2, dtype=F64), ValueError),
        ("x", torch.ones(20, 2, 3, 2), TypeError),
        ("x", torch.full((20, 2, 3, 2), math.nan, dtype=F64), ValueError),
        ("y", torch.ones(20, dtype=F64), ValueError),
        ("y", torch.ones(19, 2, dtype=F64), ValueError),
        ("y", torch.ones(20, 3, dtype=F64), ValueError),
        ("y", torch.ones(20, 2), TypeError),
        ("weight_decay", -1.0, ValueError),
        ("weight_decay", math.nan, ValueError),
        ("weight_decay", "0", TypeError),
        ("steps", 0, ValueError),
        ("steps", 1.5, TypeError),
        ("step_size", 0.0, ValueError),
        ("step_size", math.inf, ValueError),
        ("momentum", -0.5, ValueError),
        ("optimizer", "adam", ValueError),
        ("record_every", 0, ValueError),
        ("batch_size", 0, ValueError),
    ],
)
def test_bad_input_is_named_and_changes_nothing(unchecked, name, value, error):
    x, y = data()
    net = network()
    before = copies(net)
    generator = torch.Generator().manual_seed(0)
    good = {"net": net, "x": x, "y": y, "weight_decay": 0.1, "steps": 2, "step_size": 0.1, "generator": generator}
    with pytest.raises(error, match=f"^{name}: expected "):
        train(**{**good, name: value})
    assert all(torch.equal(a, b) for a, b in zip(before, copies(net), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "step_size: optimizer 'sgd' needs one"),
        ({"optimizer": "lbfgs", "step_size": 0.1}, "step_size: L-BFGS finds its own step"),
        ({"optimizer": "given", "step_size": 0.1}, "step_size: the given optimizer already has one"),
    ],
)
def test_options_that_contradict_each_other(unchecked, options, message):
    x, y = data()
    net = network()
    before = copies(net)
    if options.get("optimizer") == "given":
        options = {**options, "optimizer": torch.optim.Adam(net.parameters())}
    with pytest.raises(ValueError, match=f"^{message}"):
        train(net, x, y, weight_decay=0.1, steps=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, copies(net), strict=True))


def test_minibatches_need_a_generator(unchecked):
    x, y = data()
    for generator in (None, 3):
        with pytest.raises(TypeError, match=r"generator: expected a torch\.Generator"):
            train(network(), x, y, weight_decay=0.1, steps=2, step_size=0.1, batch_size=4, generator=generator)


def test_an_optimizer_over_other_parameters_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="optimizer: expected one over the parameters of net"):
        train(network(), x, y, weight_decay=0.1, steps=2, optimizer=torch.optim.Adam(network().parameters()))


def test_a_module_that_does_not_accept_the_images_is_refused():
    x, y = data()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, y.shape[1])).to(x.dtype)
    with pytest.raises(ValueError, match="x: expected images that net accepts"):
        train(net, x, y, weight_decay=0.1, steps=2)


def test_training_where_gradients_are_switched_off():
    x, y = data()
    with torch.no_grad():
        run = train(network(), x, y, weight_decay=0.1, steps=3)
    assert run.objectives[-1] < run.objectives[0]


# --- Other losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "functional"), [("cross-entropy", "cross_entropy"), ("logistic", "binary_cross_entropy_with_logits")])
def test_other_losses_are_those_of_torch_summed_over_outputs(loss, functional, dtype):
    x, _ = data(dtype=dtype)
    y = nn.functional.one_hot(torch.arange(len(x)) % 2, 2).to(dtype)
    net = network(dtype=dtype)
    expected = getattr(nn.functional, functional)(net(x), y, reduction="sum") / len(x) + 0.3 * training.sum_of_squares(net)
    torch.testing.assert_close(training.objective(net, x, y, 0.3, loss), expected, rtol=1e-13 if dtype == F64 else 1e-5, atol=0)
    run = train(net, x, y, weight_decay=0.02, steps=5, loss=loss)
    value = training.objective(net, x, y, 0.02, loss)
    assert float(run.objectives[-1]) == pytest.approx(float(value.detach()), rel=1e-13 if dtype == F64 else 1e-5)
    assert run.objectives[-1] < run.objectives[0]


@pytest.mark.parametrize("loss", ["cross-entropy", "logistic"])
@pytest.mark.parametrize("depth", [1, 2])
def test_training_on_another_loss_ends_at_its_certified_optimum(loss, depth):
    x, _ = data()
    y = nn.functional.one_hot(torch.arange(len(x)) % 2, 2).to(F64)
    best = fit(x, y, depth=depth, weight_decay=0.02, loss=loss, tol=1e-9)
    run = train(network(depth), x, y, weight_decay=0.02, steps=200, loss=loss, tol=1e-12)
    assert best.lower_bound * (1 - 1e-13) <= float(run.objectives[-1]) <= best.objective * (1 + 1e-8)
    assert run.imbalance[1] < 1e-6


def test_zero_weights_have_the_gradient_of_the_loss():
    """Outputs of 0 are equal, which is where a maximum has no derivative: descent from zero weights takes the right first step."""
    x, _ = data()
    y = nn.functional.one_hot(torch.arange(len(x)) % 2, 2).to(F64)
    for loss in ("cross-entropy", "logistic"):
        net = LinearCNN.from_weights([torch.zeros(2, 2, 3, 2, dtype=F64)], (3, 2))
        train(net, x, y, weight_decay=0.1, steps=1, step_size=1.0, loss=loss)
        expected = ((y - 0.5).T @ x.flatten(1) / len(x)).reshape(2, 2, 3, 2)
        torch.testing.assert_close(net.weights[0].detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "error"), [("hinge", "^loss: expected one of"), ("cross-entropy", "^y: cross-entropy"), ("logistic", "^y: the logistic loss")]
)
def test_targets_that_do_not_fit_the_loss_are_named_and_change_nothing(unchecked, loss, error):
    x, y = data()
    net = network()
    before = copies(net)
    with pytest.raises(ValueError, match=error):
        train(net, x, y, weight_decay=0.1, steps=2, loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(before, copies(net), strict=True))
