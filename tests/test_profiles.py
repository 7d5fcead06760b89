"""Patch spectra, energy profiles, exact gradient descent and fits, against NumPy loops, torch's gradients and many digits."""

import dataclasses
import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linconv import images as image_sets
from linconv import patches as patches_module
from linconv.models import conv_actually, myrtle, resnet, vgg
from linconv.network import LinearCNN, circular_convolution
from linconv.patches import energy_profile, first_filters, mean_patches, patch_spectrum
from linconv.profile_fits import EXPONENTS, fit_published
from linconv.profiles import (
    aligned_mode,
    balance_change,
    exact_dynamics,
    joint_step,
    learned,
    moments,
    predicted_profile,
    published,
    small_start_limit,
)
from linconv.strategies import grids

F64 = torch.float64
EPS = torch.finfo(F64).eps
NUMPY_PADDING = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def coloured(n, channels, grid, seed=0):
    """Images with correlated neighbours and a mean that is not zero."""
    x = normal(n, channels, *grid, seed=seed)
    for dim in range(2, x.ndim):
        x = x + 0.7 * x.roll(1, dim)
    return x + 0.3


def patch_rows(images, kernel, stride=None, padding="valid"):
    """All patches, image by image, cut one at a time in NumPy: (N, J, P)."""
    x = images.detach().double().numpy()
    stride = stride or (1,) * len(kernel)
    if padding != "valid":
        x = np.pad(x, [(0, 0), (0, 0), *(((k - 1) // 2, k // 2) for k in kernel)], mode=NUMPY_PADDING[padding])
    starts = [range(0, n - k + 1, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    cuts = [tuple(slice(i, i + k) for i, k in zip(site, kernel, strict=True)) for site in product(*starts)]
    return np.stack([x[(slice(None), slice(None), *cut)].reshape(len(x), -1) for cut in cuts], axis=1)


@st.composite
def settings_of_patches(draw):
    grid = draw(grids(max_side=6, max_sites=40))
    kernel = tuple(draw(st.integers(1, min(n, 3))) for n in grid)
    stride = tuple(draw(st.integers(1, 3)) for _ in grid)
    padding = draw(st.sampled_from(["valid", "valid", *NUMPY_PADDING]))
    return draw(st.integers(2, 5)), draw(st.integers(1, 3)), grid, kernel, stride, padding, draw(st.booleans()), draw(st.integers(0, 999))


# --- The spectrum of patches -------------------------------------------------------------------------------------------


@given(settings_of_patches())
def test_the_spectrum_is_that_of_patches_cut_one_by_one(drawn):
    n, channels, grid, kernel, stride, padding, center, seed = drawn
    images = coloured(n, channels, grid, seed)
    spectrum = patch_spectrum(images, kernel, stride=stride, padding=padding, center=center)
    rows = patch_rows(images, kernel, stride, padding)
    flat = rows.reshape(-1, rows.shape[-1])
    mean = flat.mean(0) if center else np.zeros(flat.shape[1])
    rows, flat = rows - mean, flat - mean
    size = np.abs(rows).max() ** 2
    moment = torch.from_numpy(flat.T @ flat / len(flat))
    u, lam = spectrum.components, spectrum.lambdas
    # A sum of n terms is wrong by √n rounding units or so; the cut of small λ² at P·ε adds as much.
    allowed = 100 * EPS * flat.shape[1] * size
    assert (u.T @ (lam.square()[:, None] * u) - moment).abs().max() <= allowed
    of_means = torch.from_numpy(rows.mean(1).T @ rows.mean(1) / n)
    assert (spectrum.mean_patch_covariance - of_means).abs().max() <= allowed
    assert np.abs(spectrum.mean.numpy() - mean).max() <= 100 * EPS * math.sqrt(size)
    assert (u @ u.T - torch.eye(len(u))).abs().max() < 1e-13
    assert bool((lam.diff() <= 0).all())
    assert (spectrum.n_images, spectrum.patches_per_image, spectrum.patch_shape) == (n, rows.shape[1], (channels, *kernel))


@pytest.mark.parametrize(("grid", "kernel"), [((9,), (4,)), ((6, 7), (3, 2)), ((4, 3, 5), (2, 2, 3))])
def test_a_convolution_with_a_component_answers_with_variance_lambda_squared(grid, kernel):
    images = coloured(7, 2, grid)
    spectrum = patch_spectrum(images, kernel, center=False)
    conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(grid)]
    answers = conv(images, spectrum.components.unflatten(1, spectrum.patch_shape)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(answers.square().mean(1).sqrt(), spectrum.lambdas, rtol=1e-10, atol=1e-10)
    second = answers @ answers.T / answers.shape[1]
    assert (second - second.diagonal().diag()).abs().max() < 1e-12 * second.max()


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_is_that_of_torch(padding, kernel):
    images = coloured(4, 2, (5, 6))
    conv = nn.Conv2d(2, 3, kernel, padding="same", padding_mode=padding, bias=False).double()
    spectrum = patch_spectrum(images, kernel, padding=padding, center=False)
    moment = spectrum.components.T @ (spectrum.lambdas.square()[:, None] * spectrum.components)
    w = first_filters(conv).flatten(1)
    with torch.no_grad():
        answers = conv(images).square().mean((0, 2, 3))
    torch.testing.assert_close(((w @ moment) * w).sum(1), answers, rtol=1e-12, atol=0)


def test_pieces_and_batches_do_not_matter(monkeypatch):
    images = coloured(11, 3, (7, 8))
    whole = patch_spectrum(images, (3, 2), stride=2)
    monkeypatch.setattr(patches_module, "CHUNK", 40)
    by_rows, by_batches = patch_spectrum(images, (3, 2), stride=2), patch_spectrum(iter(images.split(4)), (3, 2), stride=2)
    for other in (by_rows, by_batches):
        for name in ("components", "lambdas", "mean_patch_covariance", "mean"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=1e-12, atol=1e-13)
        assert (other.n_images, other.windows) == (11, whole.windows)
    torch.testing.assert_close(mean_patches(whole, images).T @ mean_patches(whole, images) / 11, whole.mean_patch_covariance)


class Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes, views aside."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given_storages = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
        made = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *(storage.nbytes() for storage in made if storage.data_ptr() not in given_storages)])
        return out


@pytest.mark.parametrize("padding", ["valid", "zeros"])
def test_the_images_are_not_copied(padding):
    """60,000 CIFAR-10 images of single precision are .7 GiB, twice as much in double: with a copy more than 2 GiB in all."""
    images = torch.rand(400, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(10, 1, 1, 1)
    with Allocations() as seen:
        patch_spectrum(images, 3, padding=padding)
    assert seen.largest < images.nbytes / 8


def test_a_large_mean_costs_no_digits():
    images = coloured(20, 2, (6, 6))
    near, far = patch_spectrum(images, 2), patch_spectrum(images + 2.0**20, 2)
    # Adding 2²⁰ rounds every pixel by at most 2⁻³³; a second moment about zero would be wrong by 2⁴⁰·2⁻⁵³ in λ².
    assert (near.lambdas - far.lambdas).abs().max() <= 8 * 2.0**-33
    assert (near.mean_patch_covariance - far.mean_patch_covariance).abs().max() <= 2.0**-30
    torch.testing.assert_close(far.mean - 2.0**20, near.mean, rtol=0, atol=2.0**-32)


def test_the_result_has_the_dtype_of_the_images(dtype):
    spectrum = patch_spectrum(normal(5, 1, 6, dtype=dtype), 3)
    for value in (spectrum.components, spectrum.lambdas, spectrum.mean_patch_covariance, spectrum.mean):
        assert value.dtype == dtype
    double = patch_spectrum(normal(5, 1, 6, dtype=dtype).double(), 3)
    torch.testing.assert_close(spectrum.lambdas, double.lambdas.to(dtype), rtol=0, atol=0)


def test_equal_channels_leave_exact_zeros():
    spectrum = patch_spectrum(coloured(30, 1, (8, 8)).expand(-1, 3, -1, -1), 3)
    assert int((spectrum.lambdas == 0).sum()) == 18
    assert float(spectrum.lambdas[8]) > 0.01


def test_circular_patches_have_the_same_mean_everywhere():
    spectrum = patch_spectrum(coloured(20, 3, (5, 6)), 3, padding="circular", center=False)
    assert int(torch.linalg.matrix_rank(spectrum.mean_patch_covariance, hermitian=True)) == 3
    assert int(torch.linalg.matrix_rank(patch_spectrum(coloured(40, 3, (5, 6)), 3).mean_patch_covariance, hermitian=True)) == 27


def test_one_image_has_a_spectrum():
    images = coloured(1, 1, (6, 5))
    spectrum = patch_spectrum(images, 2)
    assert float(spectrum.mean_patch_covariance.abs().max()) < 1e-30  # its mean patch is the mean of all
    assert float(spectrum.lambdas[0]) > 0.1


# --- Energies of filters -----------------------------------------------------------------------------------------------


@given(settings_of_patches(), st.integers(1, 40))
def test_energies_add_up_to_the_norm_and_do_not_see_signs(drawn, k):
    n, channels, grid, kernel, *_, seed = drawn
    components = patch_spectrum(coloured(n, channels, grid, seed), kernel, center=False).components
    w = normal(k, channels, *kernel, seed=seed + 1)
    e = energy_profile(w, components)
    assert float(e.square().sum()) == pytest.approx(float(w.square().sum()) / k, rel=1e-12)
    torch.testing.assert_close(energy_profile(-w.flip(0), -components), e, rtol=1e-13, atol=0)
    loops = [math.sqrt(sum(float(np.dot(f, u)) ** 2 for f in w.flatten(1).numpy()) / k) for u in components.numpy()]
    np.testing.assert_allclose(e.numpy(), loops, rtol=1e-11, atol=1e-14)


def test_filters_are_found_in_a_module(dtype):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU()), nn.Conv2d(4, 5, 3)).to(dtype)
    components = patch_spectrum(coloured(5, 2, (6, 6)), 3).components
    e = energy_profile(model, components)
    assert e.dtype == dtype
    assert not e.requires_grad
    torch.testing.assert_close(e, energy_profile(model[0][0].weight, components))
    assert first_filters(model, "1").shape == (5, 4, 3, 3)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 99))
def test_filters_of_groups_and_dilated_ones_are_those_that_torch_applies(dims, groups, per_group, k, seed):
    """Energies of responses, ⟨w, M w⟩ with M the second moment of whole patches, are what torch's own layer answers."""
    kernel, dilation = ((2, 3, 1)[:dims], (2, 1, 3)[:dims])
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = conv(groups * per_group, groups * k, kernel, dilation=dilation, groups=groups, bias=False).double()
    layer.weight = nn.Parameter(normal(*layer.weight.shape, seed=seed), requires_grad=False)
    images = coloured(4, groups * per_group, (5, 4, 3)[:dims], seed)
    whole = first_filters(layer)
    spectrum = patch_spectrum(images, whole.shape[2:], center=False)
    moment = spectrum.components.T @ (spectrum.lambdas.square()[:, None] * spectrum.components)
    w = whole.flatten(1)
    answers = layer(images).square().transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(((w @ moment) * w).sum(1), answers, rtol=1e-10, atol=1e-12)
    assert float(energy_profile(layer, spectrum.components).square().sum()) == pytest.approx(
        float(layer.weight.square().sum()) / len(w), rel=1e-12
    )


def test_the_first_layer_of_every_family_of_models_is_found(generator):
    x = coloured(5, 3, (8, 9))
    convolution = conv_actually(3, 2, (8, 9), depth=3, width=4, bias=False, generator=generator)
    filters = first_filters(convolution)
    # True circular convolutions: of flipped filters the responses are those of patches as large as the image.
    rows = torch.from_numpy(patch_rows(x, (8, 9), padding="circular")).flatten(0, 1)
    answers = convolution.features[0](x).square().mean((0, 2, 3))
    torch.testing.assert_close((rows @ filters.flatten(1).T).square().mean(0), answers.detach(), rtol=1e-10, atol=0)
    for net in (
        vgg(11, 3, 2, width=2, generator=generator),
        resnet(8, 3, 2, width=2, generator=generator),
        myrtle(3, 2, generator=generator),
    ):
        assert torch.equal(first_filters(net), net.features[0].weight.detach())


def test_a_linear_cnn_is_flipped_because_it_convolves():
    images = coloured(6, 2, (5, 4))
    net = LinearCNN(2, (3,), 2, (5, 4), kernel_size=(3, 2), generator=torch.Generator().manual_seed(0))
    spectrum = patch_spectrum(images, (3, 2), padding="circular", center=False)
    energies = circular_convolution(images, net.weights[0].detach()).square().mean((0, 2, 3))
    moment = spectrum.components.T @ (spectrum.lambdas.square()[:, None] * spectrum.components)
    w, unflipped = first_filters(net).flatten(1), net.weights[0].detach().flatten(1)
    torch.testing.assert_close(((w @ moment) * w).sum(1), energies, rtol=1e-12, atol=0)
    assert (((unflipped @ moment) * unflipped).sum(1) / energies - 1).abs().max() > 1e-3
    readout = LinearCNN(2, (), 2, (5, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(first_filters(readout), readout.weights[0].detach())


# --- Exact gradient descent --------------------------------------------------------------------------------------------


@given(st.floats(0, 2, exclude_max=True, allow_subnormal=False), st.integers(0, 10**12))
def test_what_is_learned_is_right_to_rounding(rate, steps):
    with mpmath.workdps(60):
        x = mpmath.mpf(rate)
        exact = -mpmath.expm1(steps * mpmath.log1p(-x)) if x < 1 else 1 - (1 - x) ** steps
        error = abs(mpmath.mpf(float(learned(torch.tensor([rate], dtype=F64), steps))) - exact)
        # log1p, the product and expm1 are each right to 2 ulp; beyond 1 the result is 1 minus a power of modulus at most 1.
        assert error <= 8 * EPS * (abs(exact) if rate <= 1 else 2) + mpmath.mpf(2) ** -1074


def test_infinite_time_learns_everything_but_what_has_no_rate():
    rate = torch.tensor([0.0, 1e-300, 0.5, 1.0, 1.5, 2 - EPS], dtype=F64)
    assert learned(rate, math.inf).tolist() == [0, 1, 1, 1, 1, 1]
    assert learned(rate, 0).tolist() == [0] * 6
    assert learned(rate, torch.tensor([[1.0], [2.0]], dtype=F64))[1, 4].item() == pytest.approx(0.75, rel=1e-15)


def descend(rows, targets, filters, head, eta, steps):
    """Plain gradient descent in NumPy on (1/N) Σ_n ‖y_n − V Σ_j W p_nj / J‖², image by image."""
    w = filters.copy()
    for _ in range(steps):
        gradient = np.zeros_like(w)
        for image, y in zip(rows, targets, strict=True):
            answers = np.mean([w @ p for p in image], axis=0)
            gradient += np.outer(head.T @ (head @ answers - y), image.mean(0)) * 2 / len(rows)
        w = w - eta * gradient
    return w


@st.composite
def descents(draw):
    n, channels, grid, kernel, stride, padding, center, seed = draw(settings_of_patches())
    # One image, more filters than components, patches that occur twice: all of them are allowed.
    n = draw(st.integers(1, 4))
    images = coloured(max(n, 2), channels, grid, seed)[:n]
    images = torch.cat([images, images]) if draw(st.booleans()) else images
    spectrum = patch_spectrum(coloured(6, channels, grid, seed + 1), kernel, stride=stride, padding=padding, center=center)
    k, m = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    filters, head = normal(k, channels, *kernel, seed=seed + 2), normal(m, k, seed=seed + 3) if m else None
    if m > 1 and draw(st.booleans()):
        head[1] = head[0]  # a head of lower rank
    targets = normal(len(images), m, seed=seed + 4) if m else normal(len(images), seed=seed + 4)
    return spectrum, images, targets, filters, head, draw(st.floats(0.05, 0.95)), draw(st.integers(0, 12))


def largest_step(spectrum, images, filters, head):
    rows = mean_patches(spectrum, images)
    v = torch.ones(1, len(filters), dtype=F64) if head is None else head
    return float(len(rows) / (torch.linalg.matrix_norm(rows, 2) * torch.linalg.matrix_norm(v, 2)).square())


@settings(max_examples=40)
@given(descents())
def test_exact_dynamics_are_those_of_numpy_gradient_descent(drawn):
    spectrum, images, targets, filters, head, share, steps = drawn
    eta = share * largest_step(spectrum, images, filters, head)
    windows = spectrum.windows
    rows = patch_rows(images, windows.kernel, windows.stride, windows.padding) - spectrum.mean.numpy()
    v = np.ones((1, len(filters))) if head is None else head.numpy()
    y = targets.numpy().reshape(len(images), -1)
    found = descend(rows, y, filters.flatten(1).numpy(), v, eta, steps)
    exact = exact_dynamics(spectrum, images, targets, filters, step_size=eta, head=head).at(steps).flatten(1).numpy()
    # Where two images of the batch are nearly alike a weak mode of size s is moved by η s V y: a step's rounding is ε of what it adds.
    allowed = 1e3 * EPS * (steps + 1) * max(1.0, np.abs(found).max())
    assert np.abs(exact - found).max() <= allowed
    if head is None:
        predicted = predicted_profile(
            spectrum, step_size=eta, steps=steps, form="exact", images=images, targets=targets, filters=filters
        ).numpy()
        u = spectrum.components.numpy()
        start, end = filters.flatten(1).numpy() @ u.T, found @ u.T
        conserved = ((start - start.mean(0)) ** 2).mean(0)
        np.testing.assert_allclose(predicted**2, conserved + end.mean(0) ** 2, rtol=0, atol=10 * allowed * max(1.0, np.abs(found).max()))


@settings(max_examples=40)
@given(descents(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_times_add(drawn, first, second):
    spectrum, images, targets, filters, head, share, _ = drawn
    eta = share * largest_step(spectrum, images, filters, head)

    def after(steps, w):
        return exact_dynamics(spectrum, images, targets, w, step_size=eta, head=head).at(steps)

    once, twice = after(first + second, filters), after(second, after(first, filters))
    assert (once - twice).abs().max() <= 1e3 * EPS * max(1.0, float(once.abs().max()))


def test_any_time_costs_no_accuracy():
    """One pixel, one filter: w_t = w_∞ + (1 − 2ηα)^t (w_0 − w_∞), in 60 digits, where 2ηαt is about 1 at t = 1e12."""
    spectrum = patch_spectrum(normal(9, 1, 4), 1, center=False)
    x, y, w = torch.full((1, 1, 1), 3e-7, dtype=F64), torch.tensor([2.0], dtype=F64), torch.tensor([[[0.5]]], dtype=F64)
    for steps in (1, 10**6, 10**12):
        found = float(exact_dynamics(spectrum, x, y, w, step_size=5.0, head=None).at(steps))
        with mpmath.workdps(60):
            pixel = mpmath.mpf(3e-7)
            limit = 2 / pixel
            exact = limit + (1 - 10 * pixel**2) ** steps * (mpmath.mpf(0.5) - limit)
            assert abs((found - exact) / exact) < 16 * EPS


@pytest.mark.parametrize("form", ["exact", "random-labels"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mean_patches_that_are_alike_write_nothing_at_any_time(form, offset, dtype):
    """One image less its own mean: what rounding leaves of its mean patch would be blown up by its inverse."""
    images, w = (coloured(1, 2, (6, 5)) + offset).to(dtype), normal(3, 2, 2, 2, dtype=dtype)
    spectrum, targets = patch_spectrum(images, 2), torch.ones(1, dtype=dtype)
    start = energy_profile(w, spectrum.components)
    for steps in (10**9, math.inf):
        for given_images in (images, None) if form == "random-labels" else (images,):
            found = predicted_profile(spectrum, step_size=1e-3, steps=steps, form=form, images=given_images, targets=targets, filters=w)
            torch.testing.assert_close(found, start, rtol=1e-4, atol=0)


@given(st.integers(1, 3), st.integers(0, 3), st.integers(1, 8), st.floats(0.05, 0.95), st.integers(0, 60), st.integers(0, 99))
def test_repeated_and_zero_eigenvalues(repeats, silent, filters, share, steps, seed):
    """Images of one patch, ± the rows of an orthogonal matrix: A is a projection, and any basis of its eigenspaces is as good."""
    q = torch.linalg.qr(normal(4, 4, seed=seed))[0][: 4 - silent]
    images = torch.cat([q, -q] * repeats).reshape(-1, 1, 2, 2)
    spectrum = patch_spectrum(images, 2)
    assert int((spectrum.lambdas > 0).sum()) == 4 - silent
    w, y = normal(filters, 1, 2, 2, seed=seed + 1), normal(len(images), seed=seed + 2)
    eta = share * largest_step(spectrum, images, w, None)
    rows, head = images.flatten(1).numpy()[:, None], np.ones((1, filters))
    found = descend(rows, y.numpy()[:, None], w.flatten(1).numpy(), head, eta, steps)
    exact = predicted_profile(spectrum, step_size=eta, steps=steps, form="exact", images=images, targets=y, filters=w)
    witness = np.sqrt(np.mean((found @ spectrum.components.numpy().T) ** 2, axis=0))
    np.testing.assert_allclose(exact.numpy(), witness, rtol=0, atol=1e3 * EPS * (steps + 1) * max(1.0, np.abs(found).max()))


def test_a_head_of_several_outputs_has_a_profile():
    images, y, w, head = coloured(30, 2, (5, 6)), normal(30, 3, seed=1), normal(4, 2, 2, 2, seed=2), normal(3, 4, seed=3)
    spectrum = patch_spectrum(images, 2)
    eta = 0.4 * largest_step(spectrum, images, w, head)
    rows = patch_rows(images, (2, 2)) - spectrum.mean.numpy()
    found = descend(rows, y.numpy(), w.flatten(1).numpy(), head.numpy(), eta, 15)
    given_data = {"images": images, "targets": y, "filters": w, "head": head}
    exact = predicted_profile(spectrum, step_size=eta, steps=15, form="exact", **given_data)
    np.testing.assert_allclose(exact.numpy(), np.sqrt(np.mean((found @ spectrum.components.numpy().T) ** 2, axis=0)), rtol=1e-11)


def test_infinite_time_is_least_squares():
    images, y, w = coloured(60, 2, (5, 6)), normal(60, 2, seed=1), normal(4, 2, 2, 2, seed=2)
    spectrum, head = patch_spectrum(images, 2), normal(2, 4, seed=3)
    limit = exact_dynamics(spectrum, images, y, w, step_size=1e-3, head=head).at(math.inf).flatten(1)
    rows = mean_patches(spectrum, images).numpy()
    theta = np.linalg.lstsq(rows, y.numpy(), rcond=None)[0].T
    np.testing.assert_allclose((head @ limit).numpy(), theta, rtol=0, atol=1e-11 * np.abs(theta).max())
    # What the head does not see stays.
    unseen = torch.eye(4, dtype=F64) - torch.linalg.pinv(head) @ head
    torch.testing.assert_close(unseen @ limit, unseen @ w.flatten(1), rtol=0, atol=1e-11)


def test_a_float32_spectrum_gives_a_float32_profile(dtype):
    images, y, w = (t.to(dtype) for t in (coloured(9, 1, (5, 5)), normal(9, seed=1), normal(2, 1, 2, 2, seed=2)))
    spectrum = patch_spectrum(images, 2)
    data = {"images": images, "targets": y, "filters": w}
    for form, given_data in (("published", {}), ("exact", data), ("random-labels", data)):
        e = predicted_profile(spectrum, step_size=1e-2, steps=5, form=form, **given_data)
        assert e.dtype == dtype
        assert bool((e >= 0).all())


# --- Random labels, the published formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 10**9, math.inf])
@pytest.mark.parametrize("started", [False, True])
def test_random_labels_are_averaged_exactly(steps, started):
    """W is affine in the labels, so that the expectation is a sum over the images of the answers to a single label of one."""
    images = coloured(12, 1, (4, 5))
    spectrum = patch_spectrum(images, 2)
    w = normal(3, 1, 2, 2, seed=1) if started else torch.zeros(3, 1, 2, 2, dtype=F64)
    labels = normal(12, seed=2)
    common = {"step_size": 0.3 * largest_step(spectrum, images, w, None), "steps": steps, "images": images}
    exact = [predicted_profile(spectrum, form="exact", targets=y, filters=w, **common) for y in torch.zeros(1, 12, dtype=F64)]
    alone = [predicted_profile(spectrum, form="exact", targets=y, filters=0 * w, **common) for y in torch.eye(12, dtype=F64)]
    variance = labels.square().mean()
    summed = (exact[0].square() + variance * torch.stack(alone).square().sum(0)).sqrt()
    found = predicted_profile(spectrum, form="random-labels", targets=labels, filters=w, **common)
    torch.testing.assert_close(found, summed, rtol=1e-9, atol=1e-12)
    from_spectrum = predicted_profile(spectrum, form="random-labels", targets=labels, filters=w, **common | {"images": None})
    torch.testing.assert_close(from_spectrum, found, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10**9), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_published_formula_is_exact_where_an_image_is_one_patch(steps, share, seed):
    """J = 1 makes A the covariance of patches, so that e_i = σ/√N · [1 − (1 − 2ηλ²)^t]/λ: the published shape with η' = 2η."""
    images = coloured(15, 1, (2, 2), seed)
    spectrum = patch_spectrum(images, 2)
    eta = share / float(spectrum.lambdas[0]) ** 2
    exact = predicted_profile(spectrum, step_size=eta, steps=steps, form="random-labels", images=images)
    printed = predicted_profile(spectrum, step_size=2 * eta, steps=steps)
    torch.testing.assert_close(exact * math.sqrt(15) / (2 * eta) ** 2, printed, rtol=1e-6, atol=1e-9 * float(printed.max()))


def test_the_published_formula_as_printed():
    lambdas = [2.0, 1.0, 0.3, 1e-4, 0.0]
    for steps in (0, 1, 3, 1000):
        found = predicted_profile(torch.tensor(lambdas, dtype=F64), step_size=0.3, steps=steps)
        with mpmath.workdps(40):
            eta = mpmath.mpf(0.3)
            printed = [abs(1 - (1 - eta * v * v) ** steps) / (eta**2 * v * v) * v if v else 0 for v in map(mpmath.mpf, lambdas)]
        np.testing.assert_allclose(found.numpy(), np.array(printed, dtype=float), rtol=1e-13, atol=0)
    spectrum = patch_spectrum(coloured(9, 2, (5, 5)), 2)
    assert torch.equal(predicted_profile(spectrum, step_size=0.1, steps=9), predicted_profile(spectrum.lambdas, step_size=0.1, steps=9))


@pytest.mark.parametrize(("eta", "lam", "steps"), [(1e-300, 1.0, 1), (1e-300, 1e-20, 7), (1.0, 1e-160, math.inf), (0.5, 1e-150, 10**9)])
def test_rates_below_the_normal_numbers_are_no_exception(eta, lam, steps):
    found = float(predicted_profile(torch.tensor([lam], dtype=F64), step_size=eta, steps=steps))
    with mpmath.workdps(700):
        e, v = mpmath.mpf(eta), mpmath.mpf(lam)
        printed = (1 if steps == math.inf else 1 - (1 - e * v * v) ** mpmath.mpf(steps)) / (e * e * v)
        assert abs(found / printed - 1) < 1e-14


@pytest.mark.parametrize("steps", [0.0, 3.0, math.inf])
@pytest.mark.parametrize("scalar", [torch.tensor, np.float32, np.array])
@pytest.mark.usefixtures("unchecked")
def test_steps_may_be_a_tensor_without_dimensions(steps, scalar):
    lambdas = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    found, expected = (predicted_profile(lambdas, step_size=0.1, steps=t) for t in (scalar(steps), steps))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("steps", [100, math.inf])
def test_the_mean_of_images_in_single_precision_loses_no_digits(steps):
    """Rounding the mean to single precision moves all mean patches alike: a direction that weak modes would learn, by 1 % at t = ∞."""
    x = image_sets.load("photos", grid=(15, 15), samples=600, generator=torch.Generator().manual_seed(0)).images.float()
    rows, single = mean_patches(patch_spectrum(x.double(), 3), x.double()), patch_spectrum(x, 3)
    torch.testing.assert_close(mean_patches(single, x), rows, rtol=0, atol=1e-14)
    flat = patch_rows(x, (3, 3)).reshape(-1, 27)
    assert np.abs(single.precise_mean.numpy() - flat.mean(0)).max() < 1e-14
    common = {"step_size": 0.01, "steps": steps, "form": "exact"}
    found, double = (
        predicted_profile(patch_spectrum(z, 3), images=z, targets=normal(600, dtype=z.dtype), filters=z.new_zeros(1, 3, 3, 3), **common)
        for z in (x, x.double())
    )
    torch.testing.assert_close(found.double(), double, rtol=2e-3, atol=0)


# --- Both layers trained -----------------------------------------------------------------------------------------------


def two_layers(seed=0, m=3, k=4, p=5, n=30):
    return normal(m, k, seed=seed), normal(k, p, seed=seed + 1), normal(n, p, seed=seed + 2), normal(n, m, seed=seed + 3)


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.floats(1e-3, 1.0))
@pytest.mark.filterwarnings("ignore:step_size. gradient descent on one layer:RuntimeWarning")
def test_a_joint_step_is_torchs_and_its_balance_is_exact(seed, m, k, p, eta):
    head, filters, rows, y = two_layers(seed, m, k, p, 8)
    a, b = moments(rows, y)
    v, w = head.clone().requires_grad_(), filters.clone().requires_grad_()
    ((rows @ w.T @ v.T - y).square().sum() / len(rows)).backward()
    new_head, new_filters = joint_step(head, filters, a, b, eta)
    largest = max(1.0, float(new_head.abs().max()), float(new_filters.abs().max()))
    assert (new_head - (head - eta * v.grad)).abs().max() <= 1e3 * EPS * largest
    assert (new_filters - (filters - eta * w.grad)).abs().max() <= 1e3 * EPS * largest
    change = (new_head.T @ new_head - new_filters @ new_filters.T) - (head.T @ head - filters @ filters.T)
    assert (change - balance_change(head, filters, a, b, eta)).abs().max() <= 1e3 * EPS * largest**2


def test_the_small_start_limit_is_the_balanced_factor_of_the_least_squares_map():
    _, _, rows, y = two_layers(n=40)
    theta = np.linalg.lstsq(rows.numpy(), y.numpy(), rcond=None)[0].T
    gram = small_start_limit(rows, y).numpy()
    np.testing.assert_allclose(gram @ gram, theta.T @ theta, atol=1e-12 * np.abs(theta.T @ theta).max())
    assert np.linalg.eigvalsh(gram).min() > -1e-12 * np.abs(gram).max()
    np.testing.assert_allclose(gram, gram.T, atol=1e-14 * np.abs(gram).max())


def test_joint_training_from_a_small_start_ends_at_the_limit():
    """Off by the balance that discrete steps lose, which is of first order in η; the start's own size, squared, is below that."""
    _, _, rows, y = two_layers(n=40)
    a, b = moments(rows, y)
    limit, errors = small_start_limit(rows, y), []
    basis = torch.linalg.qr(normal(4, 4, seed=9))[0]
    for eta in (0.1, 0.05):
        head, filters = 1e-3 * basis[:3], 1e-3 * torch.cat([basis[:3].T, torch.zeros(4, 2, dtype=F64)], 1)  # VᵀV = WWᵀ
        for _ in range(5000):
            head, filters = joint_step(head, filters, a, b, eta)
        assert (head @ filters @ a - b).abs().max() < 1e-13
        errors.append(float((filters.T @ filters - limit).norm() / limit.norm()))
    assert errors[0] < 0.1**2
    assert 0.4 < errors[1] / errors[0] < 0.6


@given(st.floats(0, 3), st.floats(0, 3), st.floats(1e-3, 2), st.integers(0, 60))
def test_an_aligned_mode_solves_its_equation(alpha, beta, start, steps):
    found = float(aligned_mode(*(torch.tensor([v], dtype=F64) for v in (alpha, beta, start)), step_size=0.01, steps=steps))
    with mpmath.workdps(30):
        al, be, a0, t = mpmath.mpf(alpha), mpmath.mpf(beta), mpmath.mpf(start), 4 * mpmath.mpf(0.01) * steps
        # The equation is that of 1/a: d(1/a)/dt = α − β/a, which is linear.
        inverse = mpmath.exp(-be * t) / a0 + al * (-mpmath.expm1(-be * t) / be if be else t)
        assert abs(found * inverse - 1) < 1e-12


def test_an_aligned_mode_that_starts_at_zero_stays_and_others_converge():
    alpha, beta, start = (torch.tensor(v, dtype=F64) for v in ([2.0, 2.0], [3.0, 3.0], [0.0, 1e-9]))
    assert aligned_mode(alpha, beta, start, step_size=0.1, steps=math.inf).tolist() == pytest.approx([0.0, 1.5], rel=4 * EPS)
    # Without drive a mode decays for ever, and without drive or decay it stays.
    alpha, beta, start = (torch.tensor(v, dtype=F64) for v in ([1.0, 0.0], [0.0, 0.0], [0.01, 0.01]))
    assert aligned_mode(alpha, beta, start, step_size=0.1, steps=math.inf).tolist() == [0.0, 0.01]


@pytest.mark.parametrize("steps", [40, 10_000, math.inf])
def test_random_labels_on_images_in_single_precision(steps):
    """The spectrum alone tells as much as the images: A is not rounded to their dtype."""
    x = image_sets.load("photos", grid=(12, 12), samples=60, generator=torch.Generator().manual_seed(0)).images
    double, single = (
        predicted_profile(patch_spectrum(x.to(kind), 3, padding="zeros"), step_size=0.1, steps=steps, form="random-labels")
        for kind in (F64, torch.float32)
    )
    torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=0)


def test_the_small_start_limit_of_singular_patches_in_single_precision():
    rows, y = normal(50, 3) @ normal(3, 6, seed=1), normal(50, 2, seed=2)
    double = small_start_limit(rows, y)
    single = small_start_limit(rows.float(), y.float())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4 * float(double.abs().max()))


# --- The fit and its null ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_units_of_the_energies_do_not_matter(unit):
    lambdas = torch.linspace(3, 0.1, 27, dtype=F64)
    energies = published(lambdas, 0.05, 3) * (1 + 0.1 * normal(27).tanh())
    one, other = (
        fit_published(e, lambdas, step_size=0.05, generator=torch.Generator().manual_seed(0), draws=50) for e in (energies, unit * energies)
    )
    assert (one.steps, one.p_value) == (other.steps, other.p_value)
    assert one.correlation == pytest.approx(other.correlation, abs=1e-12)
    torch.testing.assert_close(unit * one.profile, other.profile, rtol=1e-9, atol=0)


@pytest.mark.parametrize("unit", [1e-120, 1e140])
def test_units_of_the_images_do_not_matter_to_a_fit(unit):
    lambdas = torch.linspace(3, 0.1, 27, dtype=F64)
    energies = published(lambdas, 0.05, 3) * (1 + 0.1 * normal(27).tanh())
    one, other = (
        fit_published(energies, lambdas * u, step_size=0.05 / u / u, generator=torch.Generator().manual_seed(0), draws=50)
        for u in (1.0, unit)
    )
    assert (one.steps, one.p_value) == (other.steps, other.p_value)
    assert one.correlation == pytest.approx(other.correlation, abs=1e-12)
    assert one.log_rms == pytest.approx(other.log_rms, rel=1e-9)


@pytest.mark.parametrize(("dtype", "unit"), [(F64, 1e200), (F64, 1e-200), (torch.float32, 1e37), (torch.float32, 1e-30)])
def test_energies_have_any_unit(dtype, unit):
    components, w = SPECTRUM.components.to(dtype), normal(4, 2, 2, 2).to(dtype)
    torch.testing.assert_close(energy_profile(unit * w, components) / unit, energy_profile(w, components), rtol=1e-6, atol=0)
    assert energy_profile(0 * w, components).tolist() == [0] * 8


@pytest.mark.parametrize(("least", "eta"), [(1e-155, 0.1), (1e-170, 0.1), (0.3, 1e-200)])
def test_a_rate_that_vanishes_is_no_evidence(least, eta, generator):
    lambdas = torch.tensor([1.0, 0.5, 0.3, least], dtype=F64)
    with pytest.raises(ValueError, match="step_size: expected η λ² of at least 1e-100"):
        fit_published(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64), lambdas, step_size=eta, generator=generator, draws=99)


def test_the_formula_fits_itself_and_says_so(generator):
    lambdas = torch.linspace(3, 0.1, 27, dtype=F64)
    fit = fit_published(7 * published(lambdas, 0.05, 3), lambdas, step_size=0.05, generator=generator)
    assert fit.steps == 3
    assert fit.correlation == pytest.approx(1, abs=1e-12)
    assert fit.log_rms < 1e-12
    torch.testing.assert_close(fit.profile, 7 * published(lambdas, 0.05, 3))
    assert fit.p_value == max(fit.p_decreasing, fit.p_powers) == 1 / 1001
    assert fit.verdict.endswith(": evidence for the formula.")


def test_whitening_is_found_at_infinite_time(generator):
    lambdas = torch.linspace(3, 0.1, 27, dtype=F64)
    assert fit_published(1 / lambdas, lambdas, step_size=0.05, generator=generator).steps > 1e4


def test_random_decreasing_profiles_get_p_values_that_are_uniform():
    """The measured profile drawn from the null itself: p-values below 1/4 in about a quarter of the cases."""
    lambdas = torch.logspace(0.5, -1.5, 20, dtype=F64)
    source = torch.Generator().manual_seed(1)
    draws = torch.rand(80, 20, dtype=F64, generator=source).sort(descending=True).values
    p = torch.tensor([fit_published(e, lambdas, step_size=0.05, generator=source, draws=99).p_decreasing for e in draws])
    # A binomial count of 80 at 1/4: mean 20, standard deviation 3.9.
    assert 20 - 4 * 3.9 < int((p <= 0.25).sum()) < 20 + 4 * 3.9
    assert float(p.min()) >= 0.01


def test_a_fit_has_to_beat_both_families(generator):
    """λ^0.9 is fitted better than random decreasing profiles, but not better than other powers of λ."""
    lambdas = torch.logspace(0, -2, 27, dtype=F64)
    fit = fit_published(lambdas**0.9, lambdas, step_size=0.1, generator=generator)
    assert fit.p_decreasing < 0.05 < fit.p_powers == fit.p_value
    assert fit.verdict.endswith("no evidence for the formula.")


def test_the_fit_does_not_depend_on_units_and_order(generator):
    lambdas = torch.logspace(0, -2, 12, dtype=F64)
    energies = normal(12, seed=3).abs() + 1
    one = fit_published(energies, lambdas, step_size=0.5, generator=torch.Generator().manual_seed(4))
    order = torch.randperm(12, generator=generator)
    other = fit_published(1e3 * energies[order], lambdas[order], step_size=0.5, generator=torch.Generator().manual_seed(4))
    assert (one.steps, one.log_rms) == (other.steps, pytest.approx(other.log_rms, rel=1e-10))
    assert one.correlation == pytest.approx(other.correlation, rel=1e-12)
    torch.testing.assert_close(one.null_decreasing.sort().values, other.null_decreasing.sort().values)


def test_components_without_variance_are_left_out_and_zero_energies_have_no_logarithm(generator):
    lambdas, energies = torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=F64), torch.tensor([3.0, 2.0, 0.0, 9.0], dtype=F64)
    fit = fit_published(energies, lambdas, step_size=0.1, generator=generator, draws=5)
    assert fit.log_rms == math.inf
    assert float(fit.profile[3]) == 0
    assert bool(torch.isfinite(fit.profile).all())


def test_power_laws_of_the_null_lie_in_their_range(generator):
    """The worst fit of the family is no worse than the worst on a fine grid of exponents q; q = 1 is t = 1, q = −1 is t = ∞."""
    lambdas = torch.logspace(0, -1.5, 27, dtype=F64)
    fit = fit_published(lambdas, lambdas, step_size=0.1, generator=generator)
    exponents = [q for q in np.linspace(*EXPONENTS, 60) if abs(q) > 1e-3]
    best = [fit_published(lambdas**q, lambdas, step_size=0.1, generator=generator, draws=1).correlation for q in exponents]
    assert min(best) - 1e-3 < float(fit.null_powers.min())
    assert best[0] == pytest.approx(1, abs=1e-12)
    assert float(fit.null_powers.max()) <= 1 + 1e-12


def test_nothing_global_changes(generator):
    state = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    fit_published(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 2.0, 1.0]), step_size=0.1, generator=generator, draws=3)
    patch_spectrum(normal(3, 1, 5), 2)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (torch.get_default_dtype(), torch.get_num_threads())


# --- Bad input ---------------------------------------------------------------------------------------------------------


def spoiled(images, value):
    images = images.clone()
    images[0, 0, 0] = value
    return images


X = coloured(6, 2, (5, 6))
WRONG_PATCHES = [
    ({"kernel_size": 6}, ValueError, "kernel_size: expected patches that fit into images of \\(5, 6\\) pixels, got \\(6, 6\\)"),
    ({"kernel_size": 0}, ValueError, "kernel_size: expected a positive integer"),
    ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: expected 2 positive integers"),
    ({"kernel_size": 2.5}, TypeError, "kernel_size"),
    ({"stride": 0}, ValueError, "stride: expected a positive integer"),
    ({"padding": "same"}, ValueError, "padding: expected one of valid, zeros"),
    ({"images": X[:, :, 0, 0]}, ValueError, "images: expected images \\(N, C, \\*grid\\), got shape \\(6, 2\\)"),
    ({"images": X.long()}, TypeError, "images: expected dtype float32 or float64"),
    ({"images": spoiled(X, math.nan)}, ValueError, "images: expected finite numbers, got NaN or infinity"),
    ({"images": X[:0]}, ValueError, "images: expected data"),
    ({"images": []}, ValueError, "images"),
    ({"images": [(X, X)]}, TypeError, "images\\[0\\]: expected a tensor of images, got a tuple; pass \\(batch\\[0\\] for batch in loader"),
    ({"images": [X, [X]]}, TypeError, "images\\[1\\]: expected a tensor of images, got a list"),
    ({"images": 3}, TypeError, "images: expected a torch tensor \\(N, C, \\*grid\\) or an iterable"),
    ({"images": [X, X[:, :1]]}, ValueError, "images\\[1\\]: expected images \\(2, 5, 6\\) as in the first batch, got \\(1, 5, 6\\)"),
    ({"images": [X, spoiled(X, math.inf)]}, ValueError, "images\\[1\\]: expected finite numbers"),
    ({"images": torch.full((4, 1, 5, 5), 0.1, dtype=F64)}, ValueError, "images: expected patches that vary, got constant ones"),
    ({"images": 1e160 * X}, ValueError, "images: expected pixels whose squares torch.float64 holds, got larger ones; rescale"),
    ({"images": (1e25 * X).float()}, ValueError, "images: expected pixels whose squares torch.float32 holds"),
    ({"images": torch.zeros(4, 1, 5, 5), "center": False}, ValueError, "images: expected patches that vary"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_PATCHES)
@pytest.mark.usefixtures("unchecked")
def test_wrong_patches_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        patch_spectrum(**({"images": X, "kernel_size": 2} | wrong))


def test_constant_images_that_are_not_zero_have_a_spectrum_uncentred():
    spectrum = patch_spectrum(torch.full((4, 1, 5, 5), 0.1, dtype=F64), 2, center=False)
    assert spectrum.lambdas.tolist() == pytest.approx([0.2, 0, 0, 0], rel=1e-12)


SPECTRUM = patch_spectrum(X, 2)
RIGHT = {
    "spectrum": SPECTRUM,
    "step_size": 1e-3,
    "steps": 3,
    "form": "exact",
    "images": X,
    "targets": normal(6),
    "filters": normal(2, 2, 2, 2),
}
PRINTED = {"form": "published", "images": None, "targets": None, "filters": None}
WRONG_PROFILES = [
    ({"step_size": 1e3}, ValueError, "step_size: gradient descent diverges at 1000; expected less than "),
    ({"step_size": 1e3, "form": "random-labels"}, ValueError, "step_size: gradient descent diverges at 1000; expected less than "),
    (PRINTED | {"step_size": 1e3}, ValueError, "step_size: the published formula diverges at 1000; expected less than "),
    ({"step_size": -1.0}, ValueError, "step_size: expected a finite number > 0"),
    ({"step_size": "fast"}, TypeError, "step_size: expected a number"),
    ({"steps": -1}, ValueError, "steps: expected a finite number ≥ 0, got -1"),
    ({"steps": 1.5}, ValueError, "steps: expected a whole number ≥ 0 or math.inf, got 1.5"),
    ({"steps": math.nan}, ValueError, "steps: expected a finite number"),
    ({"form": "fitted"}, ValueError, "form: expected 'published', 'exact' or 'random-labels', got 'fitted'"),
    ({"targets": None}, ValueError, "images, targets, filters: the form 'exact' needs all three"),
    ({"targets": normal(5)}, ValueError, "targets: expected 6, one an image, got 5"),
    ({"targets": normal(6, 1)}, ValueError, "targets: expected \\(N,\\)"),
    ({"targets": normal(5), "form": "random-labels"}, ValueError, "targets: expected 6, one an image, got 5"),
    ({"targets": normal(7), "form": "random-labels", "images": None}, ValueError, "targets: expected 6, one an image, got 7"),
    ({"targets": normal(6, 2), "form": "random-labels"}, ValueError, "targets: expected \\(N,\\), one label an image"),
    ({"head": normal(3, 2), "form": "random-labels"}, ValueError, "head: expected none for the form 'random-labels'"),
    ({"head": normal(3, 2)}, ValueError, "targets: expected .*\\(N, M\\) with a head"),
    ({"filters": normal(2, 2, 3, 3)}, ValueError, "filters: expected \\(K, 2, 2, 2\\) as the spectrum's patches, got \\(2, 2, 3, 3\\)"),
    ({"filters": normal(2, 8)}, ValueError, "filters: expected filters \\(K, 2, 2, 2\\), got shape \\(2, 8\\)"),
    ({"images": X[:, :1]}, ValueError, "images: expected 2 channels as the spectrum has"),
    ({"images": X[:, :, :1]}, ValueError, "kernel_size: expected patches that fit"),
    ({"spectrum": SPECTRUM.lambdas}, TypeError, "spectrum: the form 'exact' needs a PatchSpectrum"),
    (PRINTED | {"spectrum": -SPECTRUM.lambdas}, ValueError, "spectrum: expected λ_i ≥ 0"),
    (PRINTED | {"spectrum": X}, ValueError, "spectrum: expected a PatchSpectrum or its lambdas"),
    (PRINTED | {"images": X}, ValueError, "images: expected none for the form 'published', which sees λ alone"),
    (PRINTED | {"targets": normal(6)}, ValueError, "targets: expected none for the form 'published'"),
    (PRINTED | {"filters": normal(2, 2, 2, 2)}, ValueError, "filters: expected none for the form 'published'"),
    (
        PRINTED | {"step_size": 1e-300, "steps": 10**12},
        ValueError,
        "step_size: the published factor 1/η² leaves the range of torch.float64",
    ),
    ({"steps": torch.tensor(-math.inf)}, ValueError, "steps: expected a finite number ≥ 0"),
    ({"steps": torch.tensor(math.nan)}, ValueError, "steps: expected a finite number ≥ 0"),
    ({"steps": torch.tensor([1.0, math.inf])}, TypeError, "steps: expected a number"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_PROFILES)
@pytest.mark.usefixtures("unchecked")
def test_wrong_profiles_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        predicted_profile(**(RIGHT | wrong))


@pytest.mark.parametrize(
    ("head", "targets", "message"),
    [
        (normal(3, 5), normal(6, 3), "head: expected \\(3, 2\\), outputs by filters, got \\(3, 5\\)"),
        (normal(4, 2), normal(6, 3), "head: expected \\(3, 2\\), outputs by filters, got \\(4, 2\\)"),
        (normal(3, 2), normal(6), "targets: expected \\(N,\\) for the head that sums, \\(N, M\\) with a head"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_heads_are_refused(head, targets, message):
    with pytest.raises(ValueError, match=message):
        exact_dynamics(SPECTRUM, X, targets, RIGHT["filters"], step_size=1e-3, head=head)


@pytest.mark.usefixtures("unchecked")
def test_wrong_filters_and_layers_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.LazyConv2d(4, 3), nn.Flatten())
    with pytest.raises(ValueError, match="layer: '1' is lazy and has no weights yet; run the model on one batch"):
        first_filters(model, "1")
    for layer in ("2", "features.0"):
        with pytest.raises(ValueError, match=f"layer: expected the name of a convolution of the model, got '{layer}'; it has '0', '1'"):
            first_filters(model, layer)
    with pytest.raises(ValueError, match="it has none; or pass the filters"):
        first_filters(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="model: expected a torch"):
        first_filters(X)
    with pytest.raises(ValueError, match="filters: expected 8 weights a filter"):
        energy_profile(normal(2, 2, 3, 3), SPECTRUM.components)
    with pytest.raises(ValueError, match="filters: expected finite numbers"):
        energy_profile(normal(2, 2, 2, 2) * math.nan, SPECTRUM.components)
    with pytest.raises(ValueError, match="layer: expected none beside filters, which have no layers, got 'conv1'; pass the module"):
        energy_profile(normal(2, 2, 2, 2), SPECTRUM.components, layer="conv1")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"energies": normal(5).abs()}, ValueError, "energies: expected 8 numbers, one a component, got 5"),
        ({"energies": -normal(8).abs()}, ValueError, "energies: expected numbers ≥ 0"),
        ({"energies": torch.ones(8)}, ValueError, "energies: expected three or more components with λ > 0, not all alike"),
        ({"spectrum": torch.ones(8)}, ValueError, "spectrum: expected three or more components"),
        ({"draws": 0}, ValueError, "draws: expected a positive integer"),
        ({"step_size": 1e3}, ValueError, "step_size: the published formula diverges"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_fits_are_refused(wrong, error, message, generator):
    right = {"energies": normal(8).abs(), "spectrum": SPECTRUM, "step_size": 1e-3, "generator": generator, "draws": 3}
    with pytest.raises(error, match=message):
        fit_published(**(right | wrong))


@pytest.mark.usefixtures("unchecked")
def test_wrong_modes_and_moments_are_refused():
    one = torch.ones(2, dtype=F64)
    with pytest.raises(ValueError, match="beta: expected numbers ≥ 0, got -1"):
        aligned_mode(one, -one, one, step_size=0.1, steps=1)
    for function in (moments, small_start_limit):
        for targets in (normal(4, 2), normal(5)):
            with pytest.raises(ValueError, match="targets: expected \\(N, M\\) with N = 5, one row a mean patch, got \\("):
                function(normal(5, 3), targets)
    with pytest.raises(ValueError, match="alpha, beta, start: expected one shape, got \\(2,\\), \\(1,\\), \\(2,\\)"):
        aligned_mode(one, one[:1], one, step_size=0.1, steps=1)
    right = {"head": normal(2, 3), "filters": normal(3, 4), "a": normal(4, 4), "b": normal(2, 4)}
    for name, wrong in (("head", normal(2, 5)), ("filters", normal(3, 5)), ("a", normal(4)), ("b", normal(1, 4))):
        for step in (joint_step, balance_change):
            with pytest.raises(ValueError, match="head, filters, a, b: expected \\(M, K\\), \\(K, P\\), \\(P, P\\), \\(M, P\\), got "):
                step(**(right | {name: wrong}), step_size=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [joint_step, balance_change])
def test_the_joint_law_refuses_what_is_not_finite_or_of_one_kind(function):
    head, filters, rows, y = two_layers()
    a, b = moments(rows, y)
    right = {"head": head, "filters": filters, "a": a, "b": b, "step_size": 1e-3}
    for name in ("head", "filters", "a", "b"):
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers"):
            function(**right | {name: right[name] * math.nan})
        with pytest.raises(TypeError, match=f"{name}: expected dtype float32 or float64, got torch.int64"):
            function(**right | {name: right[name].long()})
        with pytest.raises(TypeError, match=r"head, filters, a, b: expected one dtype and device, got .*; convert with .to\(torch.float64"):
            function(**right | {name: right[name].float()})
    for step, error in ((0.0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("fast", TypeError)):
        with pytest.raises(error, match="step_size: expected a"):
            function(**right | {"step_size": step})


@pytest.mark.usefixtures("unchecked")
def test_moments_and_limits_refuse_what_is_not_finite_or_of_one_kind():
    rows, y = normal(5, 3), normal(5, 2)
    for function in (moments, small_start_limit):
        for name in ("patches", "targets"):
            right = {"patches": rows, "targets": y}
            with pytest.raises(ValueError, match=f"{name}: expected finite numbers"):
                function(**right | {name: right[name] * math.inf})
            with pytest.raises(TypeError, match=f"{name}: expected dtype float32 or float64"):
                function(**right | {name: right[name].long()})
            with pytest.raises(TypeError, match="patches, targets: expected one dtype and device"):
                function(**right | {name: right[name].float()})
        with pytest.raises(ValueError, match=r"patches: expected mean patches \(N, P\), got shape \(5,\)"):
            function(rows[:, 0], y)
    one = torch.ones(2, dtype=F64)
    with pytest.raises(TypeError, match="alpha, beta, start: expected one dtype and device"):
        aligned_mode(one, one.float(), one, step_size=0.1, steps=1)
    with pytest.raises(ValueError, match="start: expected finite numbers"):
        aligned_mode(one, one, one * math.nan, step_size=0.1, steps=1)


@given(st.integers(0, 99))
def test_a_joint_step_warns_from_where_one_layer_alone_diverges(seed):
    """The bound is that of NumPy: the error of one layer, the other held, grows along its largest direction exactly beyond it."""
    head, filters, rows, y = two_layers(seed)
    a, b = moments(rows, y)
    v, w, m = head.numpy(), filters.numpy(), a.numpy()
    bound = 1 / max(np.linalg.eigvalsh(np.kron(v.T @ v, m))[-1], np.linalg.eigvalsh(w @ m @ w.T)[-1])
    joint_step(head, filters, a, b, 0.999 * bound)  # warnings are errors
    with pytest.warns(RuntimeWarning, match=rf"step_size: gradient descent on one layer alone diverges at .* take less than {bound:.4g}"):
        joint_step(head, filters, a, b, 1.001 * bound)
    with pytest.raises(ValueError, match=r"step_size: the step of both layers at 1e\+308 leaves the range of torch.float64"):
        joint_step(1e3 * head, filters, a, b, 1e308)


def test_both_joint_laws_give_the_energies_of_a_spectrum_in_a_line():
    """Θ has orthogonal columns along the eigenvectors of A: modes are aligned, and late they are the small-start limit."""
    images = coloured(40, 1, (5, 5))
    spectrum = patch_spectrum(images, 2)
    rows, (alpha, q) = mean_patches(spectrum, images), torch.linalg.eigh(spectrum.precise_covariance)
    theta = torch.linalg.qr(normal(4, 4))[0] @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)) @ q.T
    targets = rows @ theta.T
    u = spectrum.components
    limit = ((u @ small_start_limit(rows, targets)) * u).sum(1).div(6).sqrt()
    a, b = moments(rows, targets)
    beta, eta = (b @ q).norm(dim=0), 1e-3
    late = aligned_mode(alpha, beta, torch.full_like(beta, 1e-3), step_size=eta, steps=math.inf)
    torch.testing.assert_close(((u @ q).square() @ late / 6).sqrt(), limit, rtol=1e-9, atol=0)
    # NumPy's descent from the aligned balanced start, V = R a^½, W = a^½ qᵀ, with its first-order error in η.
    r = (b @ q / beta).numpy()
    v, w = 0.1 * r, 0.1 * q.T.numpy()
    for _ in range(300):
        error = v @ w @ a.numpy() - b.numpy()
        v, w = v - 2 * eta * error @ w.T, w - 2 * eta * v.T @ error
    strength = aligned_mode(alpha, beta, torch.full_like(beta, 0.01), step_size=eta, steps=300)
    found = energy_profile(torch.from_numpy(w).unflatten(1, spectrum.patch_shape), u)
    torch.testing.assert_close(((u @ q).square() @ strength / 4).sqrt(), found, rtol=0.05, atol=0)


# --- Wrong variants that these tests must tell from the truth -------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_rate_is_not_gradient_descent(factor):
    """The rate is 2ηKα: without the 2, or without K = 2, the profile is another."""
    law = exact_dynamics(**{k: RIGHT[k] for k in ("spectrum", "images", "targets", "filters")}, step_size=0.02)
    rows = patch_rows(X, (2, 2)) - SPECTRUM.mean.numpy()
    found = descend(rows, RIGHT["targets"].numpy()[:, None], RIGHT["filters"].flatten(1).numpy(), np.ones((1, 2)), 0.02, 5)
    right, wrong = law.at(5).flatten(1).numpy(), dataclasses.replace(law, rates=factor * law.rates).at(5).flatten(1).numpy()
    assert np.abs(right - found).max() < 1e-13
    assert np.abs(wrong - found).max() > 1e-3


def test_patches_centred_on_one_side_only_are_seen():
    """A of uncentred patches beside a model that sees centred ones is another matrix."""
    both = patch_spectrum(X, 2, center=False).mean_patch_covariance
    rows = mean_patches(SPECTRUM, X)
    assert (both - rows.T @ rows / len(rows)).abs().max() > 0.05
