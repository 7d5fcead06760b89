"""The same numbers on a GPU as on the CPU, and results that stay where the arguments are."""

import pytest
import torch

import linconv as lc
from linconv.classifiers import accuracy, train_classifier
from linconv.models import vgg
from linconv.patches import first_filters
from linconv.profile_fits import fit_published
from linconv.spectra import standardise

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_prox_and_enclosures(dtype):
    blocks = torch.randn(7, 4, 3, dtype=dtype, generator=torch.Generator().manual_seed(2))
    for p in (1.0, 2 / 3, 1 / 3):
        there = lc.Schatten(p).prox(blocks.cuda(), 0.3)
        assert there.is_cuda
        assert torch.allclose(lc.Schatten(p).prox(blocks, 0.3), there.cpu(), atol=1e-12)
    w = blocks.real[:5].contiguous()
    bounds = lc.conv_singular_values(w.cuda(), (5,), enclose=True)
    assert bounds.lower.is_cuda
    values = lc.conv_singular_values(w, (5,))
    assert bool(((bounds.lower.cpu() <= values + 1e-12) & (values - 1e-12 <= bounds.upper.cpu())).all())


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


@pytest.mark.parametrize("padding", ["valid", "zeros", "circular"])
def test_patches_profiles_and_laws(padding):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(40, 3, 9, 8, dtype=torch.float64, generator=generator)
    labels = torch.randn(40, dtype=torch.float64, generator=generator)
    filters = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=generator)
    here, there = (lc.patch_spectrum(x, 3, padding=padding) for x in (images, images.cuda()))
    assert there.components.is_cuda
    assert torch.allclose(here.lambdas, there.lambdas.cpu(), atol=1e-12)
    assert torch.allclose(here.mean_patch_covariance, there.mean_patch_covariance.cpu(), atol=1e-12)
    # Components are unique up to signs, which energies do not see.
    energies = [lc.energy_profile(w, s.components) for w, s in ((filters, here), (filters.cuda(), there))]
    assert energies[1].is_cuda
    assert torch.allclose(energies[0], energies[1].cpu(), atol=1e-9)
    options = {"step_size": 0.05, "steps": 30}
    for form, more in (("published", {}), ("random-labels", {}), ("exact", {"images": images, "targets": labels, "filters": filters})):
        moved = {name: value.cuda() for name, value in more.items()}
        profiles = lc.predicted_profile(here, form=form, **options, **more), lc.predicted_profile(there, form=form, **options, **moved)
        assert profiles[1].is_cuda
        assert torch.allclose(profiles[0], profiles[1].cpu(), atol=1e-9)
    fits = [
        fit_published(e, spectrum, step_size=0.05, generator=torch.Generator().manual_seed(0), draws=50)
        for e, spectrum in zip(energies, (here, there), strict=True)
    ]
    assert fits[0].correlation == pytest.approx(fits[1].correlation, abs=1e-9)


def test_a_network_is_trained_and_its_sensitivity_and_first_layer_measured():
    """Data stay on the CPU; half precision is on, as is usual there."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = standardise(torch.rand(64, 3, 32, 32, generator=generator) + 0.5 * labels[:, None, None, None])
    net = vgg(11, 3, 2, width=4, dtype=torch.float32, device="cuda", generator=generator)
    start = first_filters(net).clone()
    run = train_classifier(net, images, labels, epochs=4, batch_size=16, step_size=0.02, generator=generator)
    assert float(run.losses[-1]) < float(run.losses[0])
    assert accuracy(net, images, labels) > 0.5
    assert float((first_filters(net) - start).norm()) > 0
    sensitivity = lc.frequency_sensitivity(net, images[:8])
    assert sensitivity.is_cuda
    on_cpu = lc.frequency_sensitivity(net.cpu(), images[:8])
    assert torch.allclose(sensitivity.cpu(), on_cpu, rtol=1e-2, atol=1e-3 * float(on_cpu.max()))
