"""Ends before the goal: a time limit, a callback that says stop, an interrupt. What is returned is a bracket all the same."""

import time
from functools import cache
from itertools import pairwise

import pytest
import torch

from linconv import fit
from linconv.solvers import descents, networks
from linconv.solvers import monitor as monitor_module
from linconv.solvers.descents import Frequencies
from linconv.solvers.monitor import Monitor
from linconv.solvers.portfolio import portfolio
from linconv.solvers.problem import Problem, Solution

pytestmark = pytest.mark.usefixtures("hasty")
F64 = torch.float64
MORE = 12  # gradients after a deadline: a step of each of the six powers of a continuation, and what objectives cost


def problem(seed=0, samples=12, outputs=2, grid=(3, 3)):
    """Images with a spectrum over two decades, on which depth 2 takes hundreds of steps to a small gap."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 2, *grid, dtype=F64, generator=g)
    axes = [torch.fft.fftfreq(n, 1 / n, dtype=F64) ** 2 for n in grid]
    decay = 1 + torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
    x = torch.fft.ifftn(torch.fft.fftn(noise, dim=(2, 3)) / decay, dim=(2, 3)).real
    return x, torch.randn(samples, outputs, dtype=F64, generator=g)


def targets(y, loss):
    return torch.softmax(3 * y, 1) if loss == "cross-entropy" else y


class Clock:
    """Moves on by one second every time it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


CASES = [(2, "squared"), (2, "cross-entropy"), (4, "squared")]


@cache
def best_of(depth, loss):
    """What a run to the end finds; the same for all tests, and before any of them touches the clock."""
    x, y = problem()
    return fit(x, targets(y, loss), depth=depth, weight_decay=0.003, loss=loss, tol=1e-9)


@pytest.mark.parametrize(("depth", "loss"), CASES)
@pytest.mark.parametrize("calls", [1, 3])
def test_a_callback_ends_with_a_true_bracket(depth, loss, calls):
    x, y = problem()
    y = targets(y, loss)
    seen = []

    def stop(solution):
        seen.append(solution)
        return len(seen) < calls

    best = best_of(depth, loss)
    early = fit(x, y, depth=depth, weight_decay=0.003, loss=loss, tol=1e-9, on_progress=stop)
    assert 1 <= len(seen) <= calls  # it may be done sooner
    assert all(isinstance(found, Solution) for found in seen)
    for found in [*seen, early]:
        assert found.lower_bound <= best.objective * (1 + 1e-12)
        assert found.objective >= best.lower_bound * (1 - 1e-12)
    assert early.objective <= seen[-1].objective * (1 + 1e-12)


@pytest.mark.parametrize(("depth", "loss"), CASES)
@pytest.mark.parametrize("limit", [0.5, 3.5])
def test_a_short_time_limit_returns_a_true_bracket(depth, loss, limit, monkeypatch):
    x, y = problem()
    y = targets(y, loss)
    best = best_of(depth, loss)
    monkeypatch.setattr(monitor_module, "time", Clock())
    early = fit(x, y, depth=depth, weight_decay=0.003, loss=loss, tol=1e-12, time_limit=limit)
    assert early.lower_bound <= best.objective * (1 + 1e-12)
    assert early.objective >= best.lower_bound * (1 - 1e-12)
    assert torch.isfinite(early.predictor).all()


@pytest.mark.parametrize(("depth", "loss"), CASES)
def test_watching_changes_nothing(depth, loss, monkeypatch):
    x, y = problem() if depth == 2 else problem(samples=6, grid=(1, 3))  # branch and bound has to grow two nodes
    y = targets(y, loss)
    options = {"depth": depth, "weight_decay": 0.003, "loss": loss, "max_nodes": 2}  # a limit alone would search on until then

    def forbidden():
        raise AssertionError("the clock was read without a time limit")

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", forbidden)
        alone = fit(x, y, **options)
    watched = fit(x, y, **options, time_limit=1e6, on_progress=lambda solution: None)
    assert torch.equal(alone.predictor, watched.predictor)
    assert (alone.objective, alone.lower_bound) == (watched.objective, watched.lower_bound)


class Deadline(Monitor):
    """Time is up after a number of gradients; `action` is done when that is noticed."""

    def __init__(self, gradients, limit, action=lambda: None):
        super().__init__(time_limit=1e6)
        self.gradients, self.limit, self.action = gradients, limit, action

    def late(self):
        if len(self.gradients) >= self.limit:
            self.action()
            self.stopped = True
        return self.stopped


@pytest.fixture
def gradients(monkeypatch):
    """A list that grows by one with every gradient of the portfolio."""
    made = []
    original = Frequencies.data_term

    def counted(self, blocks):
        made.append(len(blocks))
        return original(self, blocks)

    monkeypatch.setattr(Frequencies, "data_term", counted)
    return made


@pytest.mark.usefixtures("unchecked")
def test_every_member_ends_within_few_gradients_of_its_deadline(gradients, monkeypatch):
    """Whatever the portfolio is doing when time is up; the objective is that of the predictor, and no higher than an earlier end's."""
    x, y = problem()
    data = Problem(x, y, 3, 0.01)
    monkeypatch.setattr("linconv.solvers.portfolio.SMALL", 10)  # with the members of large problems
    whole, total = portfolio(data), len(gradients)
    assert total > 20 * MORE
    members, values = set(), []
    for limit in [1, 2, *range(10, total - MORE, total // 10)]:
        gradients.clear()
        found = portfolio(data, Deadline(gradients, limit))
        assert limit <= len(gradients) <= limit + MORE
        assert found.objective == data.objective(found.predictor) >= whole.objective * (1 - 1e-9)
        members.add(tuple(found.members))
        values.append(found.objective)
    assert len(members) >= 4  # deadlines in most members
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", [descents.proximal_gradient, descents.continuation, descents.reweighting, networks.descend_networks])
def test_a_descent_that_is_late_ends_at_once(gradients, family):
    x, y = problem()
    data = Problem(x, y, 3, 0.01)
    space = Frequencies(data)
    start = space.restrict(data.cross_moment)[None]
    patient = family(space, start, 100)
    assert len(gradients) > 5 * MORE
    gradients.clear()
    hurried = family(space, start, 100, late=lambda: True)
    assert len(gradients) <= MORE
    assert hurried.shape == patient.shape
    assert not torch.equal(hurried, patient)


@pytest.mark.usefixtures("unchecked")
def test_an_interrupt_within_a_member_propagates(gradients):
    x, y = problem()

    def interrupt():
        raise KeyboardInterrupt

    for limit in (1, 20, 200):
        gradients.clear()
        with pytest.raises(KeyboardInterrupt):
            portfolio(Problem(x, y, 3, 0.01), Deadline(gradients, limit, interrupt))


@pytest.mark.parametrize("depth", [2, 3])
def test_an_interrupt_propagates(depth):
    x, y = problem()

    def interrupt(solution):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(x, y, depth=depth, weight_decay=0.003, on_progress=interrupt)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "soon"])
def test_bad_limits_are_named(unchecked, limit):
    x, y = problem()
    with pytest.raises((ValueError, TypeError), match=r"^time_limit: expected .* got "):
        fit(x, y, depth=2, weight_decay=0.1, time_limit=limit)


def test_a_monitor_remembers_that_it_was_stopped():
    answers = iter([True, False, True])
    monitor = Monitor(on_progress=lambda solution: next(answers))
    nothing = Solution(torch.zeros(1, 1, 1, dtype=F64), 0.0, 0.0, "zero")
    assert [monitor(nothing), monitor.late(), monitor(nothing), monitor.late()] == [True, False, False, True]
    assert monitor.attentive
    assert not Monitor().attentive
