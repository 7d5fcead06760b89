"""Frequency sensitivity: the definition by Jacobians and a DFT matrix, closed form, laws, wrong variants, what is left as it was."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from linconv.gradient_spectra import visit_spectra
from linconv.network import LinearCNN
from linconv.sensitivity import frequency_sensitivity, sensitivity_curves, sensitivity_interval, sensitivity_maps
from linconv.spectra import radial_average
from linconv.spectrum import frequency_blocks
from linconv.statistics import crossed_interval
from linconv.strategies import linear_cnns
from linconv.witnesses import dense_fourier

F64 = torch.float64
GRIDS = [(5,), (6,), (4, 4), (5, 4), (3, 5), (3, 2, 4)]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def drawn(net, seed=0):
    """The network with normal weights over √fan-in, and statistics of batch norm that are not the identity."""
    generator = seeded(seed)
    for w in net.parameters():
        w.data.copy_(torch.randn(w.shape, dtype=F64, generator=generator) / math.sqrt(max(1, w[0].numel())))
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            mean = torch.rand(buffer.shape, dtype=F64, generator=generator)
            buffer.copy_(mean + 0.5 if "var" in name else mean)
    return net


def small_cnn(grid, channels=2, outputs=3, dtype=F64, seed=0):
    dims = len(grid)
    layers = [CONVOLUTIONS[dims](channels, 4, 3, padding=1, padding_mode="circular"), NORMS[dims](4), nn.Tanh(), nn.Dropout(0.5)]
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * math.prod(grid), outputs)), seed).to(dtype)


def smooth_cnn(grid, channels=2, outputs=3):
    """Pooled over the grid, so that its outputs do not change when images are shifted."""
    dims = len(grid)
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](1)
    layers = [CONVOLUTIONS[dims](channels, 4, 3, padding="same", padding_mode="circular"), nn.Tanh(), pool, nn.Flatten()]
    return drawn(nn.Sequential(*layers, nn.Linear(4, outputs)).double())


def defined_maps(net, images):
    """|∂f_k/∂x̂_{c,u}| of every image, (N, K, C, D): a Jacobian a sample times an explicit orthonormal DFT matrix, in NumPy."""
    grid, net = images.shape[2:], copy.deepcopy(net).eval()
    fourier = dense_fourier(tuple(grid)) / math.sqrt(math.prod(grid))
    jacobians = [torch.autograd.functional.jacobian(lambda x: net(x[None])[0], image) for image in images]
    return np.abs(np.stack([j.flatten(2).double().numpy() for j in jacobians]) @ fourier.T)


def defined_sensitivity(net, images, statistic="mean"):
    squares = np.square(defined_maps(net, images))
    means = np.sqrt(squares.sum(1)).mean(0) if statistic == "mean" else np.sqrt(squares.mean((0, 1)))
    return torch.from_numpy(means.reshape(images.shape[1:]))


def agree(a, b, dtype=F64):
    """Equal up to rounding: gradients of these small networks are sums of a few hundred products of numbers of order one."""
    error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    return error <= 1000 * torch.finfo(dtype).eps


# The definition


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("statistic", ["mean", "rms"])
def test_it_is_what_its_definition_says(grid, statistic, dtype):
    net, images = small_cnn(grid, dtype=dtype), normal(5, 2, *grid, dtype=dtype)
    found = frequency_sensitivity(net, images, statistic=statistic)
    assert found.dtype == dtype
    assert found.shape == (2, *grid)
    assert agree(found, defined_sensitivity(net, images, statistic), dtype)


@given(st.integers(0, 10**6), st.sampled_from(GRIDS), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7))
@settings(max_examples=25)
def test_the_definition_at_random_sizes_and_chunks(seed, grid, channels, outputs, count, chunk):
    net, images = small_cnn(grid, channels, outputs, seed=seed), normal(count, channels, *grid, seed=seed)
    statistic = "mean" if seed % 2 else "rms"
    found = frequency_sensitivity(net, images, statistic=statistic, batch_size=chunk)
    assert agree(found, defined_sensitivity(net, images, statistic))


def test_directional_derivatives_in_frequency_space():
    # A change of x̂_u by t alone changes x by Re ifft, and f by t Re g_u: finite differences, and no derivative of torch.
    net, x, t = small_cnn((4, 5)).eval(), normal(1, 2, 4, 5), 1e-5
    expected = torch.zeros(2, 4, 5, dtype=F64)
    for position in np.ndindex(2, 4, 5):
        for unit in (1.0, 1.0j):
            x_hat = torch.zeros(1, 2, 4, 5, dtype=torch.complex128)
            x_hat[(0, *position)] = unit
            step = t * torch.fft.ifftn(x_hat, dim=(2, 3), norm="ortho").real
            expected[position] += ((net(x + step) - net(x - step)) / (2 * t)).square().sum().detach()
    # Central differences err by t² times a third derivative, and by ε/t.
    torch.testing.assert_close(frequency_sensitivity(net, x), expected.sqrt(), rtol=1e-8, atol=1e-8)


def derivative_in_coefficients(net, images, forwards, backwards):
    """The definition with coefficients z = forwards(x), x = backwards(z): 2-norm over outputs of ∂f/∂z, averaged over images."""
    norms = []
    for image in images:
        z = forwards(image[None]).detach().requires_grad_()
        gradients = torch.stack([torch.autograd.grad(f, z, retain_graph=True)[0][0] for f in net(backwards(z))[0]])
        norms.append(gradients.abs().square().sum(0).sqrt())
    return torch.stack(norms).mean(0)


@pytest.mark.parametrize("grid", [(6,), (5,), (4, 4)])
def test_wrong_parametrisations_differ(grid):
    net, images, dims = small_cnn(grid).eval(), normal(5, 2, *grid), tuple(range(2, len(grid) + 2))
    right, sites = frequency_sensitivity(net, images), math.prod(grid)

    def by(norm):
        def forwards(x):
            return torch.fft.fftn(x, dim=dims, norm=norm)

        return derivative_in_coefficients(net, images, forwards, lambda z: torch.fft.ifftn(z, dim=dims, norm=norm).real)

    assert agree(by("ortho"), right)
    assert agree(by("backward") * math.sqrt(sites), right)
    assert not agree(by("backward"), right)
    half = derivative_in_coefficients(
        net, images, lambda x: torch.fft.rfftn(x, dim=dims, norm="ortho"), lambda z: torch.fft.irfftn(z, s=grid, dim=dims, norm="ortho")
    )
    inside = slice(1, (grid[-1] + 1) // 2)
    assert agree(half[..., inside], 2 * right[..., inside])  # bins other than 0 and n/2 of the last dimension are doubled
    assert agree(half[..., 0], right[..., 0])


def test_wrong_averages_and_modes_differ():
    net, images = small_cnn((4, 4)), normal(5, 2, 4, 4)
    right, derivatives = frequency_sensitivity(net, images), torch.from_numpy(defined_maps(net, images)).unflatten(-1, (4, 4))
    assert agree(right, derivatives.square().sum(1).sqrt().mean(0))
    wrong = [derivatives.sum(1).mean(0), derivatives.square().sum(1).mean(0).sqrt(), derivatives.square().sum((0, 1)).sqrt()]
    # Training mode: the statistics of the batch instead of the running ones.
    x = images.clone().requires_grad_()
    with torch.random.fork_rng():
        outputs = net.train()(x).sum(0)
    gradients = torch.stack([torch.autograd.grad(f, x, retain_graph=True)[0] for f in outputs])
    wrong.append(torch.fft.fft2(gradients, norm="ortho").abs().square().sum(0).sqrt().mean(0))
    for other in [*wrong, right.roll(1, 2), torch.fft.fftshift(right, dim=(1, 2))]:
        assert float((other - right).abs().max() / right.max()) > 0.01


# The closed form


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("statistic", ["mean", "rms"])
def test_a_linear_network_has_a_closed_form(grid, statistic, dtype):
    net = LinearCNN(2, (3, 4), 3, grid, kernel_size=2, dtype=dtype, generator=seeded())
    closed, images = frequency_sensitivity(net, statistic=statistic), normal(3, 2, *grid, dtype=dtype)
    assert closed.shape == (2, *grid)
    assert closed.dtype == dtype
    assert not closed.requires_grad
    assert torch.equal(closed, frequency_sensitivity(net, images, statistic=statistic))
    assert agree(frequency_sensitivity(nn.Sequential(net), images, statistic=statistic), closed, dtype)
    assert agree(closed, defined_sensitivity(net, images, statistic), dtype)
    blocks = frequency_blocks(net).values.detach().abs().square().sum(-2).movedim(-1, 0) / math.prod(grid)
    assert agree(closed.square(), blocks / (3 if statistic == "rms" else 1), dtype)


@given(linear_cnns())
@settings(max_examples=20)
def test_closed_form_and_engine_agree_on_any_linear_network(net):
    images = normal(2, net.weights[0].shape[1], *net.grid, dtype=net.weights[0].dtype)
    closed, measured = frequency_sensitivity(net), frequency_sensitivity(nn.Sequential(net), images)
    # Rounding is relative to the product of the norms of the layers, not to the result, which may cancel.
    size = math.prod(float(w.detach().norm()) for w in net.weights) * math.sqrt(math.prod(net.grid)) ** (net.depth - 1)
    assert float((closed - measured).abs().max()) <= 1000 * torch.finfo(closed.dtype).eps * size


def test_a_subclass_that_does_something_else_is_measured():
    class Squashed(LinearCNN):
        def forward(self, x):
            return super().forward(x).tanh()

    net = Squashed(1, (2,), 2, (4,), generator=seeded())
    images = normal(4, 1, 4)
    assert agree(frequency_sensitivity(net, images), defined_sensitivity(net, images))
    assert not agree(frequency_sensitivity(net, images), frequency_sensitivity(LinearCNN.from_weights(net.weights, (4,))))


# Laws


@given(st.integers(0, 10**6), st.integers(-3, 3), st.integers(-3, 3))
@settings(max_examples=20)
def test_shifting_the_data_of_an_invariant_network_leaves_the_map(seed, down, right):
    net, images = smooth_cnn((4, 5)), normal(4, 2, 4, 5, seed=seed)
    assert agree(frequency_sensitivity(net, images.roll((down, right), (2, 3))), frequency_sensitivity(net, images))
    assert agree(frequency_sensitivity(net, images[[2, 0, 3, 1]]), frequency_sensitivity(net, images))


@given(st.integers(-8, 8), st.sampled_from(["mean", "rms"]))
@settings(max_examples=20)
def test_scaling(exponent, statistic):
    net, images, factor = small_cnn((4, 4)), normal(4, 2, 4, 4), 2.0**exponent
    plain = frequency_sensitivity(net, images, statistic=statistic)
    more = nn.Sequential(net, _Times(factor))
    assert torch.equal(frequency_sensitivity(more, images, statistic=statistic), abs(factor) * plain)
    within = nn.Sequential(_Times(factor), net)
    assert torch.equal(frequency_sensitivity(within, images / factor, statistic=statistic), abs(factor) * plain)


def test_maps_are_symmetric_and_repeat_with_the_data():
    net, images = small_cnn((4, 5)), normal(6, 2, 4, 5)
    found = frequency_sensitivity(net, images)
    mirrored = found.flip((1, 2)).roll((1, 1), (1, 2))
    assert agree(found, mirrored)
    assert agree(frequency_sensitivity(net, images.repeat(3, 1, 1, 1)), found)
    first, second = frequency_sensitivity(net, images[:4]), frequency_sensitivity(net, images[4:])
    assert agree((4 * first + 2 * second) / 6, found)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_parseval_and_the_order_of_the_statistics(seed):
    net, images = small_cnn((4, 3), seed=seed), normal(4, 2, 4, 3, seed=seed)
    rms, mean = (frequency_sensitivity(net, images, statistic=s) for s in ("rms", "mean"))
    jacobians = [torch.autograd.functional.jacobian(lambda x: net.eval()(x[None])[0], image) for image in images]
    squares = torch.stack(jacobians).square().sum((-2, -1)).mean((0, 1))  # of each channel
    assert agree(rms.square().sum((1, 2)), squares)
    assert bool((mean <= rms * math.sqrt(3) * (1 + 1e-12)).all())  # Jensen


@pytest.mark.parametrize("exponent", [-170, -25, 25, 170])
def test_gradients_of_any_size(exponent):
    # Their squares leave the range of float32, and from 10^±154 that of float64.
    for dtype in (torch.float32, F64) if abs(exponent) < 38 else (F64,):
        factor = float(10.0**exponent)
        net, images = small_cnn((4, 4), dtype=dtype), normal(4, 2, 4, 4, dtype=dtype)
        for statistic in ("mean", "rms"):
            plain = frequency_sensitivity(net, images, statistic=statistic)
            scaled = frequency_sensitivity(nn.Sequential(net, _Times(factor)), images, statistic=statistic, batch_size=2)
            assert agree(scaled.double() / factor, plain, dtype)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_the_closed_form_at_any_size(exponent):
    net = LinearCNN(2, (3,), 3, (4, 5), generator=seeded())
    scaled = LinearCNN.from_weights([w.detach() * 10.0**exponent for w in net.weights], (4, 5))
    for statistic in ("mean", "rms"):
        expected = frequency_sensitivity(net, statistic=statistic)
        assert agree(frequency_sensitivity(scaled, statistic=statistic) / 10.0 ** (2 * exponent), expected)


def test_outputs_of_very_different_size_and_of_size_zero():
    net, images = small_cnn((4, 4)), normal(3, 2, 4, 4)
    scales = torch.tensor([0.0, 1e-180, 1e180], dtype=F64)
    found = frequency_sensitivity(nn.Sequential(net, _Times(scales)), images)
    one = frequency_sensitivity(nn.Sequential(net, _Times(torch.tensor([0.0, 0.0, 1.0], dtype=F64))), images)
    assert agree(found / 1e180, one)
    assert torch.equal(frequency_sensitivity(nn.Sequential(net, _Times(0.0)), images), torch.zeros(2, 4, 4, dtype=F64))


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


# Maps, curves, intervals


def test_maps_and_curves_of_single_images():
    net, images = small_cnn((5, 4)), normal(6, 2, 5, 4)
    maps, (radii, curves) = sensitivity_maps(net, images, batch_size=4), sensitivity_curves(net, images, batch_size=5)
    assert maps.shape == (6, 2, 5, 4)
    for n in range(6):
        assert agree(maps[n], frequency_sensitivity(net, images[n : n + 1]))
        assert agree(curves[n], radial_average(maps[n])[1])
    assert torch.equal(radii, radial_average(maps[0])[0])
    assert agree(curves.mean(0), radial_average(frequency_sensitivity(net, images))[1])


@pytest.mark.parametrize("statistic", ["mean", "rms"])
def test_intervals_over_images(statistic, dtype):
    net, images = small_cnn((5, 4), dtype=dtype), normal(30, 2, 5, 4, dtype=dtype)
    radii, band = sensitivity_interval(net, images, statistic=statistic, generator=seeded(), resamples=300)
    expected_radii, curve = radial_average(frequency_sensitivity(net, images, statistic=statistic))
    assert torch.equal(radii, expected_radii)
    assert agree(band.estimate, curve, dtype)
    assert bool((band.low < band.estimate).all() and (band.estimate < band.high).all())
    again = sensitivity_interval(net, images, statistic=statistic, generator=seeded(), resamples=300)[1]
    assert torch.equal(band.low, again.low)
    wider = sensitivity_interval(net, images, statistic=statistic, generator=seeded(), resamples=300, level=0.99)[1]
    assert bool((wider.high - wider.low > band.high - band.low).all())


@pytest.mark.parametrize("statistic", ["mean", "rms"])
def test_the_band_is_as_wide_as_the_jackknife_says(statistic):
    net, images = small_cnn((4, 4)), normal(200, 2, 4, 4)
    maps = sensitivity_maps(net, images)
    kept = [torch.cat([maps[:n], maps[n + 1 :]]) for n in range(200)]
    averages = [part.mean(0) if statistic == "mean" else (part.square().mean(0) / 3).sqrt() for part in kept]
    curves = torch.stack([radial_average(average)[1] for average in averages])
    errors = ((curves - curves.mean(0)).square().sum(0) * 199 / 200).sqrt()
    _, band = sensitivity_interval(net, images, statistic=statistic, generator=seeded())
    # 2000 resamples know a 2.5 % quantile to √(.025·.975/2000)/φ(1.96) = .06 standard errors; five of these at each end.
    assert bool((((band.high - band.low) / errors - 2 * 1.96).abs() < 2 * 5 * 0.06).all())


def test_curves_of_runs_have_a_band():
    images = normal(12, 2, 4, 4)
    runs = torch.stack([sensitivity_curves(small_cnn((4, 4), seed=seed), images)[1] for seed in range(5)])
    band = crossed_interval(runs)
    assert bool((band.low < runs.mean((0, 1))).all() and (runs.mean((0, 1)) < band.high).all())


# What is left as it was


def state_of(net):
    tensors = {name: w.clone() for name, w in net.state_dict().items()}
    gradients = {name: (w.requires_grad, w.grad, w._version) for name, w in net.named_parameters()}
    versions = {name: b._version for name, b in net.named_buffers()}
    return tensors, gradients, versions, [part.training for part in net.modules()], torch.is_grad_enabled(), torch.get_rng_state()


def assert_same_state(a, b):
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    for name in a[1]:
        assert a[1][name][0] == b[1][name][0]
        assert a[1][name][1] is b[1][name][1]
        assert a[1][name][2] == b[1][name][2]
    assert a[2:5] == b[2:5]
    assert torch.equal(a[5], b[5])


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_model_and_the_modes_are_left_as_found(grad_mode):
    net, images = small_cnn((4, 4)), normal(5, 2, 4, 4)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    plain, kept, before = frequency_sensitivity(net, images), images.clone(), None
    with grad_mode():
        before = state_of(net)
        inside = frequency_sensitivity(net, images * 1.0)
        curves = sensitivity_curves(net, images)[1]
        assert_same_state(before, state_of(net))
        assert torch.is_inference_mode_enabled() == (grad_mode is torch.inference_mode)
    assert torch.equal(inside, plain)
    assert not inside.requires_grad
    assert not curves.requires_grad
    assert torch.equal(images, kept)
    assert images.grad is None
    assert net.training
    assert not net[1].training


def test_the_model_is_left_as_found_by_an_exception():
    class Failing(nn.Module):
        def __init__(self, net, calls):
            super().__init__()
            self.net, self.calls = net, calls

        def forward(self, x):
            self.calls -= 1
            if self.calls == 0:
                raise KeyError("broken")
            return self.net(x)

    images = normal(6, 2, 4, 4)
    for calls in (1, 2, 3):
        net = Failing(small_cnn((4, 4)), calls)
        net.net[0].eval()
        before = state_of(net)
        with torch.no_grad(), pytest.raises(KeyError, match="broken"):
            frequency_sensitivity(net, images, batch_size=2)
        assert_same_state(before, state_of(net))


def test_images_that_need_gradients_and_models_that_work_in_place():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(3).relu_().sum((2, 3))

    images = normal(4, 2, 3, 3).requires_grad_()
    kept = images.detach().clone()
    found = frequency_sensitivity(InPlace(), images)
    assert torch.equal(images.detach(), kept)
    assert images.grad is None
    assert agree(found, defined_sensitivity(_Function(lambda x: (3 * x).relu().sum((2, 3))), kept))


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_module_without_parameters_takes_the_dtype_of_the_images(dtype):
    # The sum of squares of pixels has gradient 2x, and so 2|x̂|.
    images = normal(1, 2, 4, 5, dtype=dtype)
    found = frequency_sensitivity(_Function(lambda x: x.square().sum((1, 2, 3))[:, None]), images)
    assert found.dtype == dtype
    assert agree(found, 2 * torch.fft.fft2(images[0].double(), norm="ortho").abs(), dtype)


# Chunks


def test_chunks_are_as_large_as_memory_allows(monkeypatch):
    sizes = []
    net = nn.Sequential(_Function(lambda x: (sizes.append(len(x)), x)[1]), small_cnn((8, 8)))
    images = normal(40, 2, 8, 8)
    whole = frequency_sensitivity(net, images)
    assert sizes == [1, 40]
    sizes.clear()
    # An image takes 8 times its size for transforms, and what autograd keeps: at least the 4×8×8 outputs of Tanh and inputs of batch norm.
    monkeypatch.setattr("linconv.gradient_spectra.MEMORY_A_THREAD", 10 * 8 * (8 * 128 + 512) // torch.get_num_threads())
    split = frequency_sensitivity(net, images)
    assert max(sizes) <= 10
    assert sum(sizes) == 41
    assert agree(split, whole)
    sizes.clear()
    monkeypatch.setattr("linconv.gradient_spectra.MEMORY_A_THREAD", 1)
    frequency_sensitivity(net, images[:3])
    assert sizes == [1, 1, 1, 1]
    sizes.clear()
    frequency_sensitivity(net, images, batch_size=25)
    assert sizes == [1, 25, 15]


def test_weights_do_not_count_as_memory_of_an_image(monkeypatch):
    sizes = []
    wide = drawn(nn.Sequential(nn.Flatten(), nn.Linear(128, 64)).double())  # 64 KiB of weights, images of 1 KiB
    net = nn.Sequential(_Function(lambda x: (sizes.append(len(x)), x)[1]), wide)
    monkeypatch.setattr("linconv.gradient_spectra.MEMORY_A_THREAD", 10 * 8 * 1024 // torch.get_num_threads())
    frequency_sensitivity(net, normal(20, 2, 8, 8))
    # A linear layer keeps its weights, which all images share, and its input, where the weights need gradients.
    assert max(sizes) >= 8


def test_batches_from_a_loader():
    net, images = small_cnn((4, 4)), normal(10, 2, 4, 4)
    labels = torch.arange(10)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    whole = frequency_sensitivity(net, images)
    assert agree(frequency_sensitivity(net, loader), whole)
    assert agree(frequency_sensitivity(net, iter(images.split(3)), statistic="mean", batch_size=2), whole)
    assert sensitivity_curves(net, loader)[1].shape[0] == 10


def test_one_forward_pass_a_chunk_and_one_backward_pass_an_output():
    calls = []
    net, images = small_cnn((4, 4)), normal(8, 2, 4, 4)
    spy = nn.Sequential(_Function(lambda x: x * 1), net)
    spy[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    spy[0].register_forward_hook(lambda *_: calls.append("forward"))
    visit_spectra(spy, images, lambda norms, _: calls.append(tuple(norms.shape)), batch_size=4)
    chunk = ["forward", *["backward"] * 3, (4, 2, 4, 3)]
    assert calls == ["forward", *chunk, *chunk]


def test_progress_goes_to_stderr(capsys):
    frequency_sensitivity(small_cnn((4, 4)), normal(3, 2, 4, 4), progress=True)
    shown = capsys.readouterr()
    assert shown.err
    assert shown.out == ""


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), "model: expected outputs in one tensor .*tuple"),
        (lambda x: x.sum((1, 2, 3)), r"model: expected outputs \(N, K\), got \(1,\)"),
        (lambda x: x, r"model: expected outputs \(N, K\)"),
        (lambda x: x.flatten(1)[:, :0], r"model: expected outputs \(N, K\)"),
        (lambda x: x.flatten(1).repeat(2, 1), r"model: expected outputs \(N, K\), got \(2, 32\) for 1"),
        (lambda x: x.flatten(1).detach(), "model: expected real outputs with a gradient"),
        (lambda x: x.flatten(1).argmax(1, keepdim=True), "model: expected real outputs with a gradient, got torch.int64"),
        (lambda x: torch.fft.fft(x.flatten(1)), "model: expected real outputs with a gradient, got torch.complex128"),
        (lambda x: torch.zeros(len(x), 2, requires_grad=True), "model: expected outputs that depend on the images"),
        (
            lambda x: (x.flatten(1) - x.flatten(1).mean(0)) * 1e3 + x.flatten(1),
            "model: expected outputs of each image that depend on nothing",
        ),
        (lambda x: x.flatten(1) @ x.flatten(1).T, "model: expected 1 outputs as for one image alone, got 4"),
        (lambda x: x.flatten(1) * torch.rand(()), "model: expected outputs of each image that depend on nothing"),
        (lambda x: x.flatten(1).log(), "model: expected finite outputs, got NaN or infinity for image 0"),
        (lambda x: (x - x).flatten(1).sqrt(), "model: expected finite gradients, got NaN or infinity for image 0"),
        (lambda x: _overwritten(x), "model: torch cannot differentiate it: .*inplace"),
    ],
)
def test_models_that_cannot_be_measured(function, message):
    with pytest.raises((ValueError, TypeError), match=message):
        frequency_sensitivity(_Function(function), -normal(4, 2, 4, 4).abs())


def _overwritten(x):
    y = x.flatten(1).exp()
    z = y.square()
    y.add_(1)
    return z


def test_a_lack_of_memory_is_no_fault_of_the_arguments():
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.flatten(1)

        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError("backward")

    def greedy(x):
        raise torch.OutOfMemoryError("forward")

    for function, message in ((greedy, "forward"), (Greedy.apply, "backward")):
        with pytest.raises(torch.OutOfMemoryError, match=message):
            frequency_sensitivity(_Function(function), normal(2, 2, 4, 4))


@pytest.mark.usefixtures("unchecked")
def test_the_image_that_is_not_finite_is_named():
    images = normal(7, 2, 4, 4).abs()
    images[5, 0, 0, 0] = -1
    with pytest.raises(ValueError, match="for image 5"):
        frequency_sensitivity(_Function(lambda x: x.flatten(1).log()), images, batch_size=2)
    images[5, 0, 0, 0] = 0
    with pytest.raises(ValueError, match=r"gradients.* for image 5"):
        frequency_sensitivity(_Function(lambda x: x.flatten(1).sqrt()), images, batch_size=3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (normal(4, 3, 4, 4), r"images: expected some that the model takes, got \(1, 3, 4, 4\): .*first layer is Conv2d\(2, 4"),
        (normal(4, 2, 5, 4), r"images: expected some that the model takes, got \(1, 2, 5, 4\)"),
        (normal(4, 2, 4, 4, dtype=torch.float32), "images: expected torch.float64 as the model has, got torch.float32"),
        (normal(2, 4), "images: expected .*1 to 3 dimensions of space"),
        (torch.zeros(0, 2, 4, 4, dtype=F64), "images: expected data"),
        (torch.full((1, 2, 4, 4), math.nan, dtype=F64), "images: expected finite numbers"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.int64), "images: expected dtype"),
        ([], "images: expected at least one batch"),
        (iter([]), "images: expected at least one batch"),
        (3, "images: expected a torch tensor"),
        (None, "images: expected some for a Sequential"),
        ([normal(2, 2, 4, 4), normal(2, 2, 4, 5)], r"images\[1\]: expected images .* as in the first batch"),
        (["a"], r"images\[0\]: expected a torch tensor"),
    ],
)
def test_images_that_the_model_does_not_take(images, message):
    with pytest.raises((ValueError, TypeError), match=message):
        frequency_sensitivity(small_cnn((4, 4)), images)


@pytest.mark.usefixtures("unchecked")
def test_other_arguments():
    net, images = small_cnn((4, 4)), normal(2, 2, 4, 4)
    with pytest.raises(ValueError, match="statistic: expected 'mean' or 'rms', got 'max'"):
        frequency_sensitivity(net, images, statistic="max")
    with pytest.raises(ValueError, match="batch_size"):
        frequency_sensitivity(net, images, batch_size=0)
    with pytest.raises(TypeError, match="model: expected a torch module, got function"):
        frequency_sensitivity(lambda x: x, images)
    with pytest.raises(ValueError, match="samples: expected at least two"):
        sensitivity_interval(net, images[:1], generator=seeded())
    with pytest.raises(ValueError, match=r"model: expected weights, got a module whose .* has no data, on the device meta"):
        frequency_sensitivity(small_cnn((4, 4)).to("meta"), images)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"model: expected weights, got a lazy module whose 0\.weight has none yet"):
        frequency_sensitivity(nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()), images)
    assert torch.equal(before, torch.get_rng_state())
    linear = LinearCNN(2, (), 3, (4, 4), generator=seeded())
    broken = copy.deepcopy(linear)
    broken.weights[0].data[1, 0, 2, 2] = math.inf
    with pytest.raises(ValueError, match="model: expected finite weights"):
        frequency_sensitivity(broken)
    with pytest.raises(ValueError, match=r"images: expected \(N, 2, 4, 4\) as the model takes, got \(2, 2, 4, 5\)"):
        frequency_sensitivity(linear, normal(2, 2, 4, 5))
    with pytest.raises(TypeError, match=r"images: expected torch.float64 as"):
        frequency_sensitivity(linear, normal(2, 2, 4, 4, dtype=torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    net, images = small_cnn((4, 4)), normal(9, 2, 4, 4)
    here = frequency_sensitivity(net, images)
    there = frequency_sensitivity(copy.deepcopy(net).cuda(), images, batch_size=4)
    assert there.is_cuda
    assert agree(there.cpu(), here)
    with pytest.raises(ValueError, match="images: expected images on the CPU"):
        frequency_sensitivity(net, images.cuda())
