"""The same numbers on a GPU as on the CPU, and results that stay where the arguments are."""

import pytest
import torch

import linconv as lc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(80, 2, 3, 4, dtype=torch.float64, generator=generator),
        torch.randn(80, 3, dtype=torch.float64, generator=generator),
    )


def test_one_seed_gives_one_network_on_every_device():
    here, there = (
        lc.LinearCNN(2, (3,), 4, (5, 4), device=device, generator=torch.Generator().manual_seed(1)) for device in ("cpu", "cuda")
    )
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here.weights, there.weights, strict=True))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (1, 3), (7, 9)])
def test_blocks_and_singular_values(kernel_size):
    net = lc.LinearCNN(2, (3,), 4, (5, 4), kernel_size=kernel_size, generator=torch.Generator().manual_seed(1))
    there = lc.LinearCNN.from_weights([w.cuda() for w in net.weights], (5, 4))
    x = torch.randn(6, 2, 5, 4, dtype=torch.float64)
    assert torch.allclose(net(x), there(x.cuda()).cpu(), atol=1e-12)
    assert there(x.cuda()).is_cuda
    assert lc.frequency_blocks(there).values.is_cuda
    assert torch.allclose(lc.frequency_blocks(net).values, lc.frequency_blocks(there).values.cpu(), atol=1e-12)
    with torch.no_grad():  # in chunks here, at once there
        assert torch.allclose(lc.frequency_blocks(net).values, lc.frequency_blocks(there).values.cpu(), atol=1e-12)
        assert torch.allclose(lc.frequency_blocks(net).singular_values(), lc.frequency_blocks(there).singular_values().cpu(), atol=1e-12)
    w = net.weights[0].detach()
    assert torch.allclose(lc.conv_singular_values(w, (5, 4)), lc.conv_singular_values(w.cuda(), (5, 4)).cpu(), atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cost_fit_and_training(problem, depth):
    x, y = problem
    here = lc.fit(x, y, depth=depth, weight_decay=0.05)
    there = lc.fit(x.cuda(), y.cuda(), depth=depth, weight_decay=0.05)
    assert there.predictor.is_cuda
    assert there.objective == pytest.approx(here.objective, rel=1e-7)
    assert there.lower_bound <= there.objective * (1 + 1e-12)
    net = lc.minimal_network(there.predictor, depth)
    assert all(w.is_cuda for w in net.weights)
    assert lc.representation_cost(there.predictor, depth).lower == pytest.approx(lc.representation_cost(there.predictor.cpu(), depth).lower)
    run = lc.train(net, x.cuda(), y.cuda(), weight_decay=0.05, steps=5)
    assert float(run.objectives[-1]) <= there.objective * (1 + 1e-9)
