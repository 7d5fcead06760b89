"""Laplacian energies, shuffled channels and overlaps: laws, a dense Laplacian as witness, the slides' rotated input, bad input."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from linconv import models
from linconv.filter_energies import convolutions, distinct_filters, filter_overlap, laplacian_energies, path_laplacian, shuffle_channels
from linconv.network import LinearCNN
from linconv.witnesses import dense_fourier

F64 = torch.float64
KERNELS = [(1,), (2,), (3,), (8,), (3, 3), (2, 5), (1, 4), (4, 4), (2, 3, 2), (3, 3, 3)]
kernels = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def dense_laplacian(kernel):
    """Degree less adjacency of the grid graph, built edge by edge."""
    sites = list(itertools.product(*map(range, kernel)))
    matrix = np.zeros((len(sites), len(sites)))
    for i, j in itertools.combinations(range(len(sites)), 2):
        if sum(abs(a - b) for a, b in zip(sites[i], sites[j], strict=True)) == 1:
            matrix[i, j] = matrix[j, i] = -1
    return np.diag(-matrix.sum(0)) + matrix


def dense_energies(weight):
    """Projections on the eigenspaces of the dense Laplacian, as numpy.linalg.eigh finds them."""
    values, vectors = np.linalg.eigh(dense_laplacian(weight.shape[2:]))
    squares = np.square(weight.double().flatten(2).numpy() @ vectors).mean((0, 1))
    distinct = np.unique(values.round(9))
    return distinct, np.array([squares[np.abs(values - value) < 1e-8].sum() for value in distinct])


# Energies on the Laplacian.


@pytest.mark.parametrize("kernel", KERNELS)
def test_energies_are_those_of_a_dense_laplacian(kernel):
    weight = normal(3, 2, *kernel)
    eigenvalues, energies = laplacian_energies(weight)
    values, expected = dense_energies(weight)
    assert eigenvalues.shape == energies.shape == values.shape
    np.testing.assert_allclose(eigenvalues, values, atol=1e-8)
    np.testing.assert_allclose(energies, expected, rtol=1e-10, atol=1e-12)


def test_the_eigenvalues_of_three_by_three():
    eigenvalues, _ = laplacian_energies(normal(1, 1, 3, 3))
    torch.testing.assert_close(eigenvalues, torch.tensor([0.0, 1, 2, 3, 4, 6], dtype=F64), rtol=0, atol=1e-14)
    sums = sorted(a + b for a in (0, 1, 3) for b in (0, 1, 3))
    assert sums == [0, 1, 1, 2, 3, 3, 4, 4, 6]


def test_large_kernels_have_one_entry_for_each_unordered_pair_or_less():
    """Sums of two of n numbers: n(n+1)/2 unordered pairs, fewer where two sums coincide, as j and k − j give 4 for every j."""
    for k in (7, 16, 31, 64):
        eigenvalues, _ = laplacian_energies(normal(1, 1, k, k))
        assert len(eigenvalues) <= k * (k + 1) // 2 - (k - 1) // 2 + 1
        assert float(eigenvalues.diff().min()) > 1e-9


@given(kernel=kernels, seed=st.integers(0, 99))
def test_parseval(kernel, seed):
    weight = normal(2, 3, *kernel, seed=seed)
    eigenvalues, energies = laplacian_energies(weight)
    assert bool((eigenvalues.diff() > 0).all())
    assert float(eigenvalues[0]) == 0
    torch.testing.assert_close(energies.sum(), weight.square().sum() / 6, rtol=1e-12, atol=0)


@given(kernel=kernels, seed=st.integers(0, 99))
def test_the_mean_eigenvalue_is_the_sum_of_squared_differences_of_neighbours(kernel, seed):
    """wᵀΔw = Σ over edges of (w_i − w_j)²: the one number that needs no eigenvectors."""
    weight = normal(2, 2, *kernel, seed=seed)
    eigenvalues, energies = laplacian_energies(weight)
    edges = sum(weight.diff(dim=dim).square().sum() for dim in range(2, weight.ndim)) / 4
    torch.testing.assert_close((eigenvalues * energies).sum(), torch.as_tensor(edges, dtype=F64), rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 99))
def test_rotations_and_reflections_of_filters_keep_the_energies(seed):
    """They commute with the Laplacian, and mix eigenvectors only within an eigenvalue; single ones would change."""
    weight = normal(4, 3, 3, 3, seed=seed)
    expected = laplacian_energies(weight)[1]
    for turned in (weight.rot90(1, (2, 3)), weight.flip(2), weight.mT):
        torch.testing.assert_close(laplacian_energies(turned)[1], expected, rtol=1e-12, atol=1e-14)
    _, vectors = path_laplacian(3)
    single = (weight * torch.outer(vectors[:, 0], vectors[:, 1])).sum((2, 3)).square().mean()
    turned = (weight.rot90(1, (2, 3)) * torch.outer(vectors[:, 0], vectors[:, 1])).sum((2, 3)).square().mean()
    assert abs(float(single - turned)) > 1e-6


def test_white_filters_have_energy_by_multiplicity():
    """E⟨w, Ψ⟩² = 1 for each of the 9 eigenvectors; the error of a mean of n squares is √(2m/n), five of them are allowed."""
    pairs = 40000
    _, energies = laplacian_energies(normal(200, 200, 3, 3))
    multiplicity = torch.tensor([1.0, 2, 1, 2, 2, 1], dtype=F64)
    assert bool(((energies - multiplicity).abs() < 5 * (2 * multiplicity / pairs).sqrt()).all())


@pytest.mark.parametrize(("position", "value"), [(0, 1.0), (1, -1.0)])
def test_smooth_and_alternating_filters_lie_at_the_ends(position, value):
    weight = torch.tensor([1.0, value] * 4, dtype=F64).expand(1, 1, 8)
    _, energies = laplacian_energies(weight)
    assert int(energies.argmax()) == (0 if position == 0 else 7)


def test_dtypes_and_gradients(dtype):
    weight = normal(2, 2, 3, 3, dtype=dtype).requires_grad_()
    eigenvalues, energies = laplacian_energies(weight)
    assert eigenvalues.dtype == energies.dtype == dtype
    energies.sum().backward()
    torch.testing.assert_close(weight.grad, weight.detach() / 2, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [1e-150, 1e-20, 1.0, 1e20, 1e150])
def test_energies_scale_with_the_square(size):
    weight = normal(2, 2, 2, 3)
    torch.testing.assert_close(laplacian_energies(weight * size)[1], laplacian_energies(weight)[1] * size**2, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("weight", "kind", "words"),
    [
        ([[1.0]], TypeError, "weight: expected a torch tensor"),
        (torch.ones(2, 2), ValueError, r"weight: expected filters .*got shape \(2, 2\)"),
        (torch.ones(1, 1, 1, 1, 1, 1), ValueError, "weight: expected filters"),
        (torch.ones(1, 0, 3), ValueError, "weight: expected data"),
        (torch.ones(1, 1, 3, dtype=torch.int64), TypeError, "weight: expected dtype float32 or float64"),
        (torch.tensor([[[1.0, math.nan]]]), ValueError, "weight: expected finite numbers"),
    ],
)
def test_wrong_weights_are_refused(weight, kind, words):
    with pytest.raises(kind, match=words):
        laplacian_energies(weight)


# Shuffled channels.


def weights_of(net):
    return [entry.weight.detach() for entry in convolutions(net)]


def rows(weight, dim=1):
    """The slices along the channels, as a sorted list of tuples: what a permutation keeps."""
    return sorted(map(tuple, weight.movedim(dim, 0).flatten(1).tolist()))


CONVOLUTIONS = {
    "1-D": lambda: nn.Conv1d(5, 3, 3),
    "2-D": lambda: nn.Conv2d(4, 6, (3, 2)),
    "3-D": lambda: nn.Conv3d(6, 2, 2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "full": lambda: models.FullConvolution(5, 4, (4, 3)),
}


@pytest.fixture
def frozen_torch():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("frozen_torch")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_filters_of_each_input_channel_stay_together(kind, seed):
    layer = nn.Sequential(CONVOLUTIONS[kind]())
    nn.init.normal_(layer[0].weight, generator=seeded(seed))
    before = copy.deepcopy(layer.state_dict())
    shuffled = shuffle_channels(layer, seeded(seed))
    dim = 0 if kind == "transposed" else 1
    assert rows(shuffled[0].weight, dim) == rows(layer[0].weight, dim)
    assert not torch.equal(shuffled[0].weight, layer[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items()), "the original was changed"
    assert torch.equal(shuffled[0].bias if shuffled[0].bias is not None else torch.zeros(1), before.get("0.bias", torch.zeros(1)))


@pytest.mark.usefixtures("frozen_torch")
def test_it_is_a_permutation_of_the_activations_that_arrive():
    """y = conv(x) with permuted weights is the old layer on permuted channels: checked on the map, not on the weights."""
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    shuffled = shuffle_channels(layer, seeded(2))
    x = normal(2, 4, 5, 6)
    candidates = [order for order in itertools.permutations(range(4)) if torch.allclose(layer(x[:, order]), shuffled(x), atol=1e-12)]
    assert len(candidates) == 1
    assert candidates[0] != (0, 1, 2, 3)


@pytest.mark.usefixtures("frozen_torch")
@pytest.mark.parametrize("transposed", [False, True])
def test_groups_keep_their_channels(transposed):
    make = nn.ConvTranspose1d if transposed else nn.Conv1d
    layer = make(12, 6, 3, groups=3).double()
    differ = set()
    for seed in range(5):
        weight = shuffle_channels(layer, seeded(seed)).weight.detach()
        for group, (new, old) in enumerate(zip(weight.chunk(3), layer.weight.detach().chunk(3), strict=True)):
            dim = 0 if transposed else 1
            assert rows(new, dim) == rows(old, dim)
            differ.add(group) if not torch.equal(new, old) else None
    assert differ == {0, 1, 2}


def test_each_group_has_a_permutation_of_its_own():
    layer = nn.utils.skip_init(nn.Conv1d, 12, 3, 1, groups=3, bias=False)
    layer.weight.data.copy_(torch.arange(4.0).expand(3, 4)[..., None])
    found = [shuffle_channels(layer, seeded(seed)).weight.detach()[..., 0].unique(dim=0) for seed in range(5)]
    assert max(map(len, found)) == 3


@pytest.mark.usefixtures("frozen_torch")
def test_depthwise_and_single_channels_stay_as_they_are():
    for layer in (nn.Conv1d(6, 6, 3, groups=6), nn.Conv2d(1, 8, 3)):
        assert torch.equal(shuffle_channels(layer, seeded()).weight, layer.weight)


def test_all_permutations_are_as_frequent():
    """3! = 6 permutations in 600 draws: a χ² of 5 degrees exceeds 20.5 once in a thousand."""
    layer = models.FullConvolution(3, 1, (1,), bias=False)
    layer.weight.data.copy_(torch.arange(3.0).reshape(1, 3, 1))
    generator = seeded(5)
    found = [tuple(shuffle_channels(layer, generator).weight.flatten().tolist()) for _ in range(600)]
    counts = [found.count(order) for order in itertools.permutations((0.0, 1.0, 2.0))]
    assert sum(counts) == 600
    assert sum((count - 100) ** 2 / 100 for count in counts) < 20.5


def test_linear_networks_keep_their_readout():
    net = LinearCNN(3, (5, 4), 2, (4, 3), generator=seeded())
    shuffled = shuffle_channels(net, seeded(1))
    assert torch.equal(shuffled.weights[-1], net.weights[-1])
    assert not torch.equal(shuffled.weights[0], net.weights[0])
    assert not torch.equal(shuffled.weights[1], net.weights[1])


@pytest.mark.usefixtures("frozen_torch")
def test_a_shared_weight_is_permuted_once():
    layer = nn.Conv1d(3, 3, 3)
    other = nn.Conv1d(3, 3, 3)
    other.weight = layer.weight
    assert len(list(convolutions(nn.Sequential(layer, layer, other)))) == 1
    once, twice = shuffle_channels(layer, seeded(3)), shuffle_channels(nn.Sequential(layer, nn.ReLU(), layer, other), seeded(3))
    assert torch.equal(once.weight, twice[0].weight)
    assert twice[0].weight is twice[3].weight


def test_energies_of_filters_do_not_see_the_shuffle():
    net = models.vgg(11, 3, 4, width=2, generator=seeded())
    shuffled = shuffle_channels(net, seeded())
    for a, b in zip(weights_of(net), weights_of(shuffled), strict=True):
        torch.testing.assert_close(laplacian_energies(a)[1], laplacian_energies(b)[1], rtol=1e-13, atol=0)
    x = normal(3, 3, 32, 32)
    assert not torch.allclose(net.eval()(x), shuffled.eval()(x))


def test_mode_dtype_and_global_state_stay(dtype):
    net = models.myrtle(3, 4, width=2, dtype=dtype, generator=seeded()).eval()
    state = torch.get_rng_state()
    shuffled = shuffle_channels(net, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert not shuffled.training
    assert {w.dtype for w in shuffled.parameters()} == {dtype}
    assert torch.equal(weights_of(shuffle_channels(net, seeded(4)))[2], weights_of(shuffle_channels(net, seeded(4)))[2])


def test_the_expectation_over_permutations_of_two_layers():
    """E[P A Pᵀ] = (a − b) I + b 11ᵀ, here of ‖V₂ P V₁‖² at each frequency and all permutations of three channels."""
    generator = seeded(1)
    first, second = (torch.randn(a, b, 5, dtype=F64, generator=generator) for a, b in ((3, 1), (2, 3)))
    fourier = torch.from_numpy(dense_fourier((5,)))
    v1, v2 = (torch.einsum("abn,un->uab", w.to(fourier.dtype), fourier) for w in (first, second))
    orders = list(itertools.permutations(range(3)))
    mean = sum((v2[:, :, list(p)] @ v1).abs().square().sum((1, 2)) for p in orders) / 6
    inner = v1 @ v1.mH
    a = inner.diagonal(dim1=1, dim2=2).sum(1) / 3
    b = (inner.sum((1, 2)) - 3 * a) / 6
    expected = (a - b) * v2.abs().square().sum((1, 2)) + b * (v2.sum(2).abs().square().sum(1))
    torch.testing.assert_close(mean, expected.real, rtol=1e-12, atol=1e-12)


# The slides' example: filters that are rotations of one another, summed, answer alike to an input and to its rotation.


def rotated_pooling(coupled):
    """Four filters, then a 1×1 layer whose outputs each sum four channels; the second four are another filter and its rotations."""
    patterns = normal(2, 3, 3, seed=4)
    orbit = [[p.rot90(turn if coupled else 0, (0, 1)) for turn in range(4)] for p in patterns]
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False)).double()
    net[0].weight.data.copy_(torch.stack([f for some in orbit for f in some])[:, None])
    net[2].weight.data.copy_(torch.eye(2, dtype=F64).repeat_interleave(4, 1)[:, :, None, None])
    return net


@torch.no_grad()
def pooled(net, x):
    return net(x).sum((2, 3))


def test_the_slides_rotated_input():
    """Half a turn exchanges the responses 1.0 and 0.2 of two filters that are half a turn apart: the sum stays 1.2."""
    pattern, x = torch.tensor([[1.0, 0.0], [0.0, 0.2]], dtype=F64), torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64)
    stranger = torch.tensor([[0.2, 0.0], [0.0, 0.1]], dtype=F64)

    def responses(second, image):
        return [round(float((w * image).sum()), 12) for w in (pattern, second)]

    turned = x.rot90(2)
    coupled = pattern.rot90(2)
    assert (responses(coupled, x), responses(coupled, turned)) == ([1.0, 0.2], [0.2, 1.0])
    assert (responses(stranger, x), responses(stranger, turned)) == ([1.0, 0.2], [0.2, 0.1])


@pytest.mark.usefixtures("frozen_torch")
def test_coupled_filters_keep_the_sum_and_shuffling_loses_it():
    x = normal(3, 1, 8, 8, seed=1)
    net = rotated_pooling(coupled=True)
    for turn in (1, 2, 3):
        torch.testing.assert_close(pooled(net, x.rot90(turn, (2, 3))), pooled(net, x), rtol=1e-12, atol=1e-12)
    separate = rotated_pooling(coupled=False)
    assert not torch.allclose(pooled(separate, x.rot90(1, (2, 3))), pooled(separate, x), rtol=1e-2)
    lost = [shuffle_channels(net, seeded(seed)) for seed in range(5)]
    changes = [float((pooled(n, x.rot90(1, (2, 3))) - pooled(n, x)).abs().max()) for n in lost]
    assert min(changes) > 0.1
    for n in lost:
        torch.testing.assert_close(laplacian_energies(n[0].weight)[1], laplacian_energies(net[0].weight)[1], rtol=1e-13, atol=0)


@pytest.mark.usefixtures("frozen_torch")
def test_filter_pooling_survives_the_shuffle():
    """Channels that all carry the same pooled map may be permuted: the network computes the same."""
    net = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv1d(4, 3, 3)).double()
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.zero_()
    x = normal(2, 1, 9)
    torch.testing.assert_close(shuffle_channels(net, seeded(1))(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("unchecked", "frozen_torch")
def test_wrong_models_are_refused():
    with pytest.raises(TypeError, match="model: expected a torch module"):
        shuffle_channels("vgg", seeded())
    with pytest.raises(TypeError, match="generator: expected"):
        shuffle_channels(nn.Conv1d(2, 2, 3), 0)
    with pytest.raises(ValueError, match="model: expected a module with convolutions"):
        shuffle_channels(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), seeded())
    for layer in (nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3)), nn.utils.parametrizations.spectral_norm(nn.Conv1d(2, 2, 3))):
        with pytest.raises(ValueError, match="model: the weight of 0 is computed from other parameters"):
            shuffle_channels(nn.Sequential(layer), seeded())
    with pytest.raises(ValueError, match="model: the module has no weight yet"):
        shuffle_channels(nn.LazyConv1d(2, 3), seeded())


# Overlaps.


@given(seed=st.integers(0, 99), count=st.integers(1, 4), kernel=kernels)
def test_overlaps_lie_between_the_best_single_template_and_one(seed, count, kernel):
    weight, templates = normal(3, 2, *kernel, seed=seed), normal(count, *kernel, seed=seed + 1)
    overlap = float(filter_overlap(weight, templates))
    single = max(float(filter_overlap(weight, template[None])) for template in templates)
    assert single * (1 - 1e-12) <= overlap <= 1 + 1e-12


@given(seed=st.integers(0, 99), size=st.sampled_from([1e-150, 1.0, 1e150]), sign=st.sampled_from([1, -1]))
def test_overlaps_know_neither_size_nor_sign(seed, size, sign):
    weight, templates = normal(3, 2, 3, seed=seed), normal(2, 3, seed=seed + 1)
    expected = float(filter_overlap(weight, templates))
    assert math.isclose(float(filter_overlap(weight * size * sign, templates)), expected, rel_tol=1e-12)
    assert math.isclose(float(filter_overlap(weight, templates * size * sign)), expected, rel_tol=1e-12)


def test_overlap_with_the_eigenvectors_of_an_eigenvalue_of_one():
    """With one template the overlap is that eigenvector's share of the energy."""
    weight = normal(5, 4, 3, 3)
    _, energies = laplacian_energies(weight)
    box = torch.ones(1, 3, 3, dtype=F64)
    torch.testing.assert_close(filter_overlap(weight, box), energies[0] / energies.sum(), rtol=1e-12, atol=0)


def test_multiples_of_templates_overlap_fully(dtype):
    templates = torch.eye(3, dtype=dtype)
    weight = torch.tensor([[[0.0, -2.0, 0.0], [0.0, 0.0, 0.0]], [[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=dtype)
    overlap = filter_overlap(weight, templates)
    assert overlap.dtype == dtype
    assert float(overlap) == 1
    assert float(filter_overlap(torch.ones(1, 1, 3, dtype=dtype), templates)) == pytest.approx(1 / 3, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("weight", "templates", "words"),
    [
        (torch.zeros(1, 1, 3), torch.ones(1, 3), "weight: expected filters that are not all zero"),
        (torch.ones(1, 1, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "templates: expected filters that are not zero"),
        (torch.ones(1, 1, 3), torch.ones(1, 5), r"templates: expected kernels of \(3,\) taps"),
        (torch.ones(1, 1, 3), torch.ones(1, 1, 3), r"templates: expected filters \(T, \*kernel\)"),
    ],
)
def test_wrong_templates_are_refused(weight, templates, words):
    with pytest.raises(ValueError, match=words):
        filter_overlap(weight, templates)


def test_distinct_filters_of_a_module():
    net = nn.Sequential(models.FullConvolution(2, 2, (3,)), nn.ReLU(), models.FullConvolution(2, 1, (3,))).double()
    net[0].weight.data.copy_(torch.tensor([[[1.0, 1, 1], [0, 0, 0]], [[-3.0, -3, -3], [1e-9, 0, 0]]]))
    net[2].weight.data.copy_(torch.tensor([[[5.0, 0, 0], [1.0, -1, 0]]]))
    found = distinct_filters(net)
    assert found.shape == (3, 3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=F64), rtol=1e-14, atol=0)
    assert all(float(filter_overlap(entry.weight.detach(), found)) == pytest.approx(1) for entry in convolutions(net))


@pytest.mark.usefixtures("unchecked", "frozen_torch")
def test_modules_without_filters_of_one_size_are_refused():
    with pytest.raises(ValueError, match=r"kernels of one size, got \[\(3,\), \(5,\)\]"):
        distinct_filters(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 5)))
    with pytest.raises(ValueError, match="kernels of one size, got none"):
        distinct_filters(nn.Flatten())
    zero = nn.Conv1d(1, 1, 3)
    zero.weight.data.zero_()
    with pytest.raises(ValueError, match="not all zero"):
        distinct_filters(zero)
