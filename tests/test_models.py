"""The networks of the papers against versions written by hand, published numbers of parameters, torch's own initialisation, and laws."""

import copy
import io
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

import linconv as lc
from linconv.models import FullConvolution, ImageNetwork, conv_actually, myrtle, resnet, vgg
from linconv.models.layers import Dropout
from linconv.network import circular_convolution
from linconv.strategies import grids, images, predictors
from linconv.witnesses import dense_convolution


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# One narrow network of each kind, from a seed and options: 3 channels, 5 classes, images of FAMILIES[…][1].
FAMILIES = {
    "conv_actually": (lambda seed=0, **o: conv_actually(3, 5, (6, 7), depth=3, width=4, generator=seeded(seed), **o), (6, 7)),
    "linear twin": (lambda seed=0, **o: conv_actually(3, 5, (6, 7), depth=3, width=4, linear=True, generator=seeded(seed), **o), (6, 7)),
    "myrtle": (lambda seed=0, **o: myrtle(3, 5, width=4, generator=seeded(seed), **o), (12, 9)),
    "myrtle, no batch norm": (lambda seed=0, **o: myrtle(3, 5, width=4, batch_norm=False, generator=seeded(seed), **o), (12, 9)),
    "vgg11": (lambda seed=0, **o: vgg(11, 3, 5, width=4, generator=seeded(seed), **o), (32, 32)),
    "vgg13, hidden layers": (lambda seed=0, **o: vgg(13, 3, 5, width=4, classifier_widths=(6, 7), generator=seeded(seed), **o), (32, 32)),
    "vgg16, large": (lambda seed=0, **o: vgg(16, 3, 5, width=1, grid=(64, 40), batch_norm=False, generator=seeded(seed), **o), (64, 40)),
    "resnet9": (lambda seed=0, **o: resnet(9, 3, 5, width=4, generator=seeded(seed), **o), (17, 16)),
    "resnet8": (lambda seed=0, **o: resnet(8, 3, 5, width=4, generator=seeded(seed), **o), (9, 12)),
    "resnet20": (lambda seed=0, **o: resnet(20, 3, 5, width=3, generator=seeded(seed), **o), (7, 8)),
}
family = pytest.mark.parametrize("name", FAMILIES)
PADDED = ["myrtle", "vgg11", "resnet9", "resnet8"]


def build(name: str, seed: int = 0, **options: object) -> ImageNetwork:
    return FAMILIES[name][0](seed, **options)


def draw_images(name: str, count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, *FAMILIES[name][1], generator=seeded(9), dtype=dtype)


# --- The full convolution ----------------------------------------------------------------------------------------------


def rounding(layer: FullConvolution, x: torch.Tensor) -> float:
    """How far the transforms and the sums may be from the exact convolution.

    An FFT of D sites has a relative error η ≤ 7 ε log₂ 2D in the 2-norm (Higham, Accuracy and Stability, theorem 24.2).  Two errors of
    that size in the product add up to 2η ‖w‖‖x‖ after the inverse transform, which adds η ‖y‖ ≤ η √D ‖w‖‖x‖ of its own; products and
    the dense witness sum C·D terms.
    """
    sites, eps = math.prod(x.shape[2:]), torch.finfo(x.dtype).eps
    eta = 7 * eps * math.log2(2 * sites)
    scale = float(layer.weight.detach().norm() * x.norm()) + float(0 if layer.bias is None else layer.bias.detach().norm())
    return (eta * (2 + math.sqrt(sites)) + eps * (x[0].numel() + 2)) * scale


def with_kernel(weight: torch.Tensor, bias: torch.Tensor | None = None) -> FullConvolution:
    layer = FullConvolution(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


@st.composite
def kernels_and_images(draw):
    grid = draw(grids(max_sites=30))
    weight = draw(predictors(grid=grid))
    return weight, draw(images(channels=weight.shape[1], grid=grid, dtype=weight.dtype))


@given(kernels_and_images())
def test_full_convolution_is_the_block_circulant_matrix(pair):
    weight, x = pair
    layer = with_kernel(weight, torch.arange(float(len(weight)), dtype=weight.dtype))
    matrix = torch.as_tensor(dense_convolution(weight.numpy().astype(float), tuple(x.shape[2:])))
    expected = (x.double().flatten(1) @ matrix.T).reshape(len(x), len(weight), *x.shape[2:])
    expected += torch.arange(len(weight)).reshape(-1, *[1] * (x.ndim - 2))
    got = layer(x).detach()
    assert got.dtype == x.dtype
    assert float((got - expected).abs().max()) <= rounding(layer, x)


@pytest.mark.parametrize("wrong", ["correlation", "shifted", "half spectrum of an even grid"])
def test_wrong_full_convolutions_are_told_apart(wrong, generator):
    """The tolerance above would not let a cross-correlation, another tap 0, or a wrong last side pass."""
    layer = with_kernel(torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=generator))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=generator)
    other = {
        "correlation": lambda: with_kernel(layer.weight.detach().flip((2, 3)).roll((1, 1), (2, 3)))(x),
        "shifted": lambda: layer(x).roll(1, 3),
        "half spectrum of an even grid": lambda: F.pad(
            torch.fft.irfftn(torch.fft.rfftn(layer(x), dim=(2, 3)), s=(5, 5), dim=(2, 3)), (0, 1)
        ),
    }[wrong]()
    assert float((other - layer(x)).abs().max().detach()) > 1e6 * rounding(layer, x)


@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 2), (1, 1)])
def test_gradients_of_the_full_convolution_are_those_of_the_direct_one(grid, generator):
    x = torch.randn(2, 2, *grid, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 2, *grid, dtype=torch.float64, generator=generator)
    layer, direct = with_kernel(weight), weight.clone().requires_grad_()
    outputs = layer(x), circular_convolution(x, direct)
    target = torch.randn(outputs[0].shape, dtype=torch.float64, generator=generator)
    ours = torch.autograd.grad((outputs[0] * target).sum(), (x, layer.weight))
    theirs = torch.autograd.grad((outputs[1] * target).sum(), (x, direct))
    for a, b in zip(ours, theirs, strict=True):  # each is a convolution again: at most 24 terms of size about 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_second_derivatives_of_the_full_convolution(generator):
    x = torch.randn(1, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    layer = with_kernel(torch.randn(1, 2, 3, dtype=torch.float64, generator=generator), torch.ones(1, dtype=torch.float64))

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradgradcheck(run, (x, layer.weight, layer.bias))


# --- ConvActually and its linear twin ----------------------------------------------------------------------------------


def as_torch_would_write_it(net: ImageNetwork, grid: tuple[int, ...]) -> nn.Sequential:
    """The bias-free network in torch's own layers: tap j of a centred cross-correlation is tap ⌊(n−1)/2⌋ − j of a convolution."""
    torch_class = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]
    layers = []
    for layer in net.features[::2]:
        c_out, c_in = layer.weight.shape[:2]
        conv = torch_class(c_in, c_out, grid, padding="same", padding_mode="circular", bias=False, dtype=layer.weight.dtype)
        dims = tuple(range(2, 2 + len(grid)))
        centred = layer.weight.detach().flip(dims).roll([(n - 1) // 2 + 1 for n in grid], dims)
        conv.weight.data.copy_(centred)
        layers.append(conv)
    old = net.classifier[1]
    readout = nn.Linear(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)
    readout.weight.data.copy_(old.weight.detach())
    return nn.Sequential(*layers, nn.Flatten(), readout)


@pytest.mark.parametrize("grid", [(7,), (6,), (4, 5), (3, 2, 4)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_linear_twin_is_a_linear_cnn(grid, depth, generator):
    net = conv_actually(2, 3, grid, depth=depth, width=4, linear=True, bias=False, generator=generator)
    convolutions, readout = [layer.weight for layer in net.features[::2]], net.classifier[1].weight
    ours = lc.LinearCNN.from_weights([*convolutions, readout.reshape(3, -1, *grid)], grid)
    imported = lc.from_torch(as_torch_would_write_it(net, grid), (2, *grid))
    blocks, expected = lc.frequency_blocks(ours).values, lc.frequency_blocks(imported).values
    assert ours.depth == depth
    torch.testing.assert_close(blocks, expected, rtol=0, atol=1e-13)  # blocks of norm about 1, sums of at most 100 terms: 1e-14
    x = torch.randn(4, 2, *grid, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(net(x), ours(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(net(x), imported(x), rtol=0, atol=1e-13)


def test_the_linear_twin_with_bias_is_affine_with_the_predictor_of_its_blocks(generator):
    """By superposition: f(x) − f(0) = ⟨β, x⟩, β from the images of unit pixels."""
    grid = (4, 3)
    net = conv_actually(2, 5, grid, depth=4, width=3, linear=True, generator=generator)
    units = torch.eye(24, dtype=torch.float64).reshape(24, 2, *grid)
    at_zero = net(torch.zeros(1, 2, *grid, dtype=torch.float64))
    beta = (net(units) - at_zero).T.reshape(5, 2, *grid)
    readout = net.classifier[1].weight.reshape(5, -1, *grid)
    linear = lc.LinearCNN.from_weights([*(layer.weight for layer in net.features[::2]), readout], grid)
    torch.testing.assert_close(beta, lc.frequency_blocks(linear).predictor(), rtol=0, atol=1e-14)
    assert float(at_zero.detach().abs().min()) > 1e-3  # the biases do something
    nonlinear = conv_actually(2, 5, grid, depth=4, width=3, generator=seeded())
    x = torch.randn(2, 2, *grid, dtype=torch.float64, generator=generator)
    ends = nonlinear(x) + nonlinear(-x) - 2 * nonlinear(torch.zeros_like(x))
    assert float(ends.detach().abs().max()) > 1e-3  # ReLUs are not affine


def test_a_network_and_its_linear_twin_exchange_weights():
    net, twin = build("conv_actually", 1), build("linear twin", 2)
    net.load_state_dict(twin.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(build("conv_actually").parameters(), build("linear twin").parameters(), strict=True))


# --- Every family against a version written by hand --------------------------------------------------------------------


def by_hand(name: str, net: ImageNetwork, x: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """The network in evaluation mode from its parameters in order, with running mean 0 and variance 1."""
    values = iter([p.detach() for p in net.parameters()])

    def conv(x, *, bias, norm=True, stride=1, relu=True):
        x = F.pad(x, (1, 1, 1, 1), mode="circular") if padding_mode == "circular" else F.pad(x, (1, 1, 1, 1))
        x = F.conv2d(x, next(values), next(values) if bias else None, stride=stride)
        if norm:
            x = x / math.sqrt(1 + 1e-5) * next(values)[:, None, None] + next(values)[:, None, None]
        return x.clamp(min=0) if relu else x

    def block(x, width, stride):
        short = x[:, :, ::stride, ::stride]
        short = torch.cat([short, short.new_zeros(len(x), width - x.shape[1], *short.shape[2:])], 1)
        return (short + conv(conv(x, bias=False, stride=stride), bias=False, relu=False)).clamp(min=0)

    if name.startswith("myrtle"):
        norm = "no" not in name
        x = conv(x, bias=not norm, norm=norm)
        for pool in (2, 2, None):
            x = conv(x, bias=not norm, norm=norm)
            x = F.max_pool2d(x, pool) if pool else x.amax((2, 3))
    elif name.startswith("vgg"):
        plan = {"vgg11": "1M1M2M2M2M", "vgg13": "2M2M2M2M2M", "vgg16": "2M2M3M3M3M", "vgg19": "2M2M4M4M4M"}[name[:5]]
        for step in plan:
            if step == "M":
                x = F.max_pool2d(x, 2)
            for _ in range(0 if step == "M" else int(step)):
                x = conv(x, bias=True, norm="large" not in name)
        x = F.adaptive_avg_pool2d(x, 7).flatten(1) if "large" in name else x.mean((2, 3))
        hidden = 2 if "large" in name or "hidden" in name else 0
        for _ in range(hidden):
            x = F.linear(x, next(values), next(values)).clamp(min=0)
    elif name == "resnet9":
        x = conv(x, bias=False)
        for residual in (True, False, True):
            x = F.max_pool2d(conv(x, bias=False), 2)
            x = x + conv(conv(x, bias=False), bias=False) if residual else x
        return x.amax((2, 3)) @ next(values).T * 0.125
    else:
        n = {"resnet8": 1, "resnet20": 3}[name]
        x = conv(x, bias=False)
        for stage in range(3):
            for i in range(n):
                x = block(x, (4 if n == 1 else 3) * 2**stage, 2 if stage and not i else 1)
        x = x.mean((2, 3))
    x = x.flatten(1) @ next(values).T + next(values)
    assert next(values, None) is None
    return x


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("conv_actually", "linear twin")])
def test_against_the_network_written_by_hand(name, padding_mode):
    net = build(name, padding_mode=padding_mode).eval()
    generator = seeded(3)
    with torch.no_grad():
        for p in net.parameters():  # batch norm's too: at the start they are the identity, and a swap would not be seen
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    x = draw_images(name)
    torch.testing.assert_close(net(x), by_hand(name, net, x, padding_mode), rtol=1e-11, atol=1e-12)
    other = {"zeros": "circular", "circular": "zeros"}[padding_mode]
    assert not torch.allclose(net(x), by_hand(name, net, x, other), rtol=1e-4)


# --- Numbers of parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "published"),
    [
        # VGG for CIFAR-10 with batch norm and one linear layer, and with two hidden layers of 512: counts of the common implementations.
        (lambda w, g: vgg(11, 3, 10, width=w, generator=g), 9_231_114),
        (lambda w, g: vgg(13, 3, 10, width=w, generator=g), 9_416_010),
        (lambda w, g: vgg(16, 3, 10, width=w, generator=g), 14_728_266),
        (lambda w, g: vgg(19, 3, 10, width=w, generator=g), 20_040_522),
        (lambda w, g: vgg(11, 3, 10, width=w, classifier_widths=(8 * w, 8 * w), generator=g), 9_756_426),
        (lambda w, g: vgg(16, 3, 10, width=w, classifier_widths=(8 * w, 8 * w), generator=g), 15_253_578),
        # The originals on 1,000 classes: 133, 133, 138, 144 million in arXiv 1409.1556, table 2.
        (lambda w, g: vgg(11, 3, 1000, width=w, grid=(224, 224), batch_norm=False, generator=g), 132_863_336),
        (lambda w, g: vgg(13, 3, 1000, width=w, grid=(224, 224), batch_norm=False, generator=g), 133_047_848),
        (lambda w, g: vgg(16, 3, 1000, width=w, grid=(224, 224), batch_norm=False, generator=g), 138_357_544),
        (lambda w, g: vgg(19, 3, 1000, width=w, grid=(224, 224), batch_norm=False, generator=g), 143_667_240),
        (lambda w, g: vgg(11, 3, 1000, width=w, grid=(224, 224), generator=g), 132_868_840),
        (lambda w, g: resnet(9, 3, 10, width=w, generator=g), 6_573_120),
    ],
)
def test_published_numbers_of_parameters(make, published):
    """Without building them: with every layer proportional to the width, the number is a quadratic polynomial in it, known from three."""
    numbers = [parameters(make(w, seeded())) for w in (1, 2, 3)]
    at = [
        Fraction(math.prod(64 - b for b in others), math.prod(a - b for b in others))
        for a, others in [(1, (2, 3)), (2, (1, 3)), (3, (1, 2))]
    ]
    assert sum(weight * number for weight, number in zip(at, numbers, strict=True)) == published


@pytest.mark.parametrize(("depth", "published"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_numbers_of_parameters_of_he_et_al(depth, published):
    """.27, .46, .66, .85 and 1.7 million in table 6 of arXiv 1512.03385."""
    assert parameters(resnet(depth, 3, 10, generator=seeded())) == published


def test_default_widths_are_the_full_ones():
    assert parameters(myrtle(3, 10, generator=seeded())) == parameters(myrtle(3, 10, width=64, generator=seeded()))
    assert parameters(resnet(9, 3, 10, generator=seeded(), dtype=torch.float32)) == 6_573_120
    assert parameters(vgg(11, 3, 10, generator=seeded(), dtype=torch.float32)) == 9_231_114


@settings(max_examples=25)
@given(grid=grids(max_sites=30), depth=st.integers(1, 4), c=st.integers(1, 3), k=st.integers(1, 4), w=st.integers(1, 4), bias=st.booleans())
def test_number_of_parameters_of_conv_actually(grid, depth, c, k, w, bias):
    d = math.prod(grid)
    expected = k * (c * d + bias) if depth == 1 else (depth - 2) * (w * w * d + bias * w) + c * w * d + bias * w + k * (w * d + bias)
    net = conv_actually(c, k, grid, depth=depth, width=w, bias=bias, generator=seeded())
    assert parameters(net) == expected
    assert len(net.features) == 2 * (depth - 1)
    assert net(torch.zeros(2, c, *grid, dtype=torch.float64)).shape == (2, k)


def test_number_of_parameters_of_myrtle():
    def expected(c, k, w, norm):
        widths = [c, w, 2 * w, 4 * w, 8 * w]
        return sum(9 * a * b + (2 * b if norm else b) for a, b in itertools.pairwise(widths)) + k * (8 * w + 1)

    for c, k, w, norm in itertools.product((1, 3), (2, 10), (1, 5), (True, False)):
        assert parameters(myrtle(c, k, width=w, batch_norm=norm, generator=seeded())) == expected(c, k, w, norm)


# --- Randomness --------------------------------------------------------------------------------------------------------


@family
def test_weights_are_those_of_torchs_own_initialisation(name, dtype):
    """torch's layers draw weight, then bias, from the global generator: with the same seed, layer by layer, the same numbers."""
    net = build(name, 5, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for layer in net.modules():
            if isinstance(layer, Dropout):
                assert int(layer.next_seed) == int(torch.empty((), dtype=torch.int64).random_(2**62))
            elif isinstance(layer, FullConvolution):
                twin = nn.Conv2d(*layer.weight.shape[1::-1], layer.weight.shape[2:], dtype=dtype)
            elif isinstance(layer, nn.Conv2d):
                twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3, bias=layer.bias is not None, dtype=dtype)
            elif isinstance(layer, nn.Linear):
                twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
            elif isinstance(layer, nn.BatchNorm2d):
                twin = nn.BatchNorm2d(layer.num_features, dtype=dtype)
                assert all(torch.equal(layer.state_dict()[key], value) for key, value in twin.state_dict().items())
            if isinstance(layer, FullConvolution | nn.Conv2d | nn.Linear):
                assert torch.equal(layer.weight, twin.weight)
                assert layer.bias is None or torch.equal(layer.bias, twin.bias)


@family
def test_one_seed_one_network(name):
    first, again, other = build(name, 1).state_dict(), build(name, 1).state_dict(), build(name, 2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_one_generator_gives_one_network_after_another(generator):
    a, b = (myrtle(1, 2, width=2, generator=generator) for _ in range(2))
    assert not torch.equal(a.features[0].weight, b.features[0].weight)


@family
def test_torchs_global_random_state_is_untouched_by_building_and_training(name):
    before = torch.get_rng_state()
    net = build(name)
    net.train()(draw_images(name)).square().sum().backward()
    net.eval()(draw_images(name))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_else_global_is_changed():
    before = torch.get_default_dtype(), torch.empty(0).device
    build("vgg13, hidden layers", dtype=torch.float64)
    assert (torch.get_default_dtype(), torch.empty(0).device) == before


def test_dropout_keeps_half_doubles_it_and_repeats_with_the_seed(dtype):
    x = torch.ones(100, 100, dtype=dtype)
    layer, again = Dropout(), Dropout()
    layer.next_seed.fill_(4)
    again.next_seed.fill_(4)
    first = layer(x)
    assert first.dtype == dtype
    assert set(first.unique().tolist()) == {0, 2}
    assert abs(float(first.mean()) - 1) <= 0.05  # five standard deviations, 1/√10⁴ each
    assert torch.equal(first, again(x))
    assert not torch.equal(first, layer(x))
    assert torch.equal(layer.eval()(x), x)


def test_hidden_layers_of_vgg_drop_out_in_training_only():
    net = vgg(11, 3, 5, width=4, classifier_widths=(6, 7), batch_norm=False, generator=seeded())
    again = vgg(11, 3, 5, width=4, classifier_widths=(6, 7), batch_norm=False, generator=seeded())
    x = draw_images("vgg11")
    assert [type(layer) for layer in net.classifier[2:]] == [nn.Linear, nn.ReLU, Dropout] * 2 + [nn.Linear]
    outputs = [net(x) for _ in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    assert all(torch.equal(a, again(x)) for a in outputs)  # one seed, one training
    seeds = [int(layer.next_seed) for layer in net.classifier if isinstance(layer, Dropout)]
    assert seeds[0] != seeds[1]


def test_device():
    assert {p.device.type for p in build("vgg13, hidden layers", device="meta").parameters()} == {"meta"}
    assert {p.device.type for p in build("vgg13, hidden layers", device=torch.device("cpu")).parameters()} == {"cpu"}


# --- Shapes, dtypes, modes, storage ------------------------------------------------------------------------------------


@family
def test_shapes_and_dtypes(name, dtype):
    net = build(name, dtype=dtype)
    x = draw_images(name, dtype=dtype)
    assert all(p.dtype == dtype and p.requires_grad and p.is_leaf for p in net.parameters())
    assert net(x).shape == (3, 5)
    assert net(x).dtype == dtype
    assert torch.equal(net.eval()(x), net.classifier(net.features(x)))
    assert net(x[:0]).shape == (0, 5)


@settings(max_examples=20)
@given(
    kind=st.sampled_from(["myrtle", "resnet9", "resnet8", "vgg11"]),
    channels=st.integers(1, 4),
    classes=st.integers(1, 4),
    width=st.integers(1, 3),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    padding_mode=st.sampled_from(["zeros", "circular"]),
)
def test_any_grid_that_survives_the_poolings(kind, channels, classes, width, more, padding_mode):
    least = {"myrtle": 4, "resnet9": 8, "resnet8": 1, "vgg11": 32}[kind]
    grid = (least + more[0], least + more[1])
    options = {"width": width, "padding_mode": padding_mode, "generator": seeded()}
    net = {
        "myrtle": lambda: myrtle(channels, classes, **options),
        "resnet9": lambda: resnet(9, channels, classes, **options),
        "resnet8": lambda: resnet(8, channels, classes, **options),
        "vgg11": lambda: vgg(11, channels, classes, grid=grid, **options),
    }[kind]()
    out = net(torch.randn(2, channels, *grid, dtype=torch.float64, generator=seeded()))
    assert out.shape == (2, classes)
    assert bool(torch.isfinite(out).all())


@family
def test_gradients_reach_every_parameter_and_the_image(name):
    net, x = build(name), draw_images(name, count=6).requires_grad_()
    net(x).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    dead = [key for key, p in net.named_parameters() if not bool((p.grad != 0).any())]
    # A bias before batch norm changes nothing; a single unit of VGG at width 1 may be dead.
    assert all(key.endswith("bias") or "large" in name for key in dead)
    assert float(x.grad.abs().max()) > 0


@family
def test_in_evaluation_mode_an_image_does_not_see_the_others(name):
    net, x = build(name).eval(), draw_images(name)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-12, atol=1e-13)
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("name", ["myrtle", "vgg11", "resnet9", "resnet8"])
def test_training_mode_normalises_by_the_batch_and_remembers_it(name):
    net, x = build(name), draw_images(name)
    norm = net.features[1]
    assert float(norm.running_mean.abs().max()) == 0
    normalised = norm(net.features[0](x))
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-13)
    assert float(norm.running_mean.abs().max()) > 0
    assert int(norm.num_batches_tracked) == 1
    assert not torch.allclose(net(x), net.eval()(x))


@family
def test_state_dict_goes_through_a_file(name):
    net, other = build(name, 1), build(name, 2)
    net(draw_images(name))  # so that the running statistics are not those of the start
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(net(draw_images(name)), other(draw_images(name)))  # in training, dropout's masks too
    assert torch.equal(net.eval()(draw_images(name)), other.eval()(draw_images(name)))


@family
def test_state_dict_goes_through_safetensors(name, dtype):
    net, other = build(name, 1, dtype=dtype), build(name, 2, dtype=dtype)
    x = draw_images(name, dtype=dtype)
    net(x)
    other.load_state_dict(load(save(net.state_dict())))
    assert torch.equal(net.eval()(x), other.eval()(x))


@family
def test_copies_compute_the_same(name):
    net = build(name)
    assert torch.equal(copy.deepcopy(net).eval()(draw_images(name)), net.eval()(draw_images(name)))
    twins = copy.deepcopy(net).train(), copy.deepcopy(net).train()  # dropout's masks too
    assert torch.equal(twins[0](draw_images(name)), twins[1](draw_images(name)))


# --- Translations ------------------------------------------------------------------------------------------------------


def test_features_of_conv_actually_are_equivariant():
    net, x = build("conv_actually"), draw_images("conv_actually")
    for shift in itertools.product((0, 1, 5), (2, 3)):
        torch.testing.assert_close(net.features(x.roll(shift, (2, 3))), net.features(x).roll(shift, (2, 3)), rtol=0, atol=1e-13)
    assert not torch.allclose(net(x.roll(1, 2)), net(x), rtol=1e-3)  # the readout is not invariant


@pytest.mark.parametrize(
    ("name", "layers"), [("myrtle", 6), ("vgg11", 3), ("resnet9", 6), ("resnet8", 5), ("resnet20", 9), ("myrtle, no batch norm", 4)]
)
def test_circular_layers_before_the_first_pooling_are_equivariant(name, layers):
    x = draw_images(name)
    for padding_mode, equivariant in (("circular", True), ("zeros", False)):
        features = build(name, padding_mode=padding_mode).eval().features[:layers]
        assert features(x).shape[2:] == x.shape[2:]
        moved = features(x.roll((2, 3), (2, 3)))
        assert torch.allclose(moved, features(x).roll((2, 3), (2, 3)), rtol=0, atol=1e-12) == equivariant


@pytest.mark.parametrize(("name", "stride"), [("myrtle", 4), ("resnet9", 8), ("resnet8", 4), ("resnet20", 4)])
def test_circular_networks_with_global_pooling_are_invariant_to_shifts_by_their_stride(name, stride):
    x = torch.randn(3, 3, 16, 24, dtype=torch.float64, generator=seeded(9))
    moved = x.roll((stride, -stride), (2, 3))
    circular, zeros = (build(name, padding_mode=mode).eval() for mode in ("circular", "zeros"))
    torch.testing.assert_close(circular(moved), circular(x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(circular(x.roll(1, 2)), circular(x), rtol=1e-5)
    assert not torch.allclose(zeros(moved), zeros(x), rtol=1e-5)


# --- Bad input ---------------------------------------------------------------------------------------------------------

F64 = torch.float64


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv_actually(3, 5, (4, 4), depth=0, generator=seeded()), ValueError, "depth: .*positive.*0"),
        (lambda: conv_actually(3, 5, (4, 4, 4, 4), depth=2, generator=seeded()), ValueError, "grid: .*1, 2 or 3"),
        (lambda: conv_actually(3, 5, (4, 0), depth=2, generator=seeded()), ValueError, "grid: .*0"),
        (lambda: conv_actually(2**20, 5, (2**20,), depth=2, generator=seeded()), ValueError, "in_channels: .*fit in memory"),
        (lambda: conv_actually(3, 2**30, (2**10,), depth=2, generator=seeded()), ValueError, "classes: .*fit in memory"),
        (lambda: conv_actually(3, 5, (4, 4), depth=2, generator=None), TypeError, "generator: expected a torch.Generator"),
        (lambda: myrtle(0, 5, generator=seeded()), ValueError, "in_channels: .*0"),
        (lambda: myrtle(3, 2.5, generator=seeded()), TypeError, "classes: .*2.5"),
        (lambda: myrtle(3, 5, width=-1, generator=seeded()), ValueError, "width: .*-1"),
        (lambda: myrtle(3, 5, width=2**20, generator=seeded()), ValueError, "width: .*fit in memory"),
        (lambda: myrtle(3, 5, width=4, padding_mode="reflect", generator=seeded()), ValueError, "padding_mode: .*'reflect'"),
        (lambda: myrtle(3, 5, width=4, dtype=torch.float16, generator=seeded()), TypeError, "dtype: .*float16"),
        (lambda: myrtle(3, 5, width=4, device="nope", generator=seeded()), ValueError, "device: .*'nope'"),
        (lambda: vgg(12, 3, 5, generator=seeded()), ValueError, "depth: expected 11, 13, 16 or 19, got 12"),
        (lambda: vgg("11", 3, 5, generator=seeded()), TypeError, "depth: .*'11'"),
        (lambda: vgg(11, 3, 5, grid=(31, 64), generator=seeded()), ValueError, r"grid: .*at least 32.*\(31, 64\)"),
        (lambda: vgg(11, 3, 5, grid=(32,), generator=seeded()), ValueError, "grid: expected 2"),
        (lambda: vgg(11, 3, 5, classifier_widths=(4, 0), generator=seeded()), ValueError, "classifier_widths: .*0"),
        (lambda: vgg(11, 3, 5, classifier_widths=(2**30,), generator=seeded()), ValueError, "classifier_widths: .*fit in memory"),
        (lambda: vgg(11, 3, 5, width=2**13, grid=(64, 64), generator=seeded()), ValueError, "width: .*fit in memory"),
        (lambda: resnet(21, 3, 5, generator=seeded()), ValueError, r"depth: expected 9, or 6n \+ 2.*21"),
        (lambda: resnet(2, 3, 5, generator=seeded()), ValueError, "depth: .*got 2"),
        (lambda: resnet(20, 3, 5, padding_mode=None, generator=seeded()), ValueError, "padding_mode: .*None"),
        (lambda: build("conv_actually")(torch.ones(1, 3, 7, 6, dtype=F64)), ValueError, r"x: .*\(N, 3, 6, 7\).*\(1, 3, 7, 6\)"),
        (lambda: build("conv_actually")(torch.ones(1, 2, 6, 7, dtype=F64)), ValueError, r"x: .*\(1, 2, 6, 7\)"),
        (lambda: build("vgg11")(torch.ones(1, 3, 64, 64, dtype=F64)), ValueError, r"x: .*\(N, 3, 32, 32\).*64"),
        (lambda: build("myrtle")(torch.ones(1, 3, 3, 9, dtype=F64)), ValueError, r"x: .*at least 4, got .*\(1, 3, 3, 9\)"),
        (lambda: build("resnet9")(torch.ones(1, 3, 8, 7, dtype=F64)), ValueError, "x: .*at least 8"),
        (lambda: build("resnet20")(torch.ones(1, 3, 8, 0, dtype=F64)), ValueError, "x: .*at least 1"),
        (lambda: build("resnet20")(torch.ones(3, 8, 8, dtype=F64)), ValueError, r"x: .*\(3, 8, 8\)"),
        (lambda: build("resnet20")(torch.ones(1, 3, 8, 8)), TypeError, "x: .*float64.*float32"),
        (lambda: build("resnet20")([1.0]), TypeError, "x: expected a torch tensor .*list"),
    ],
)
def test_bad_input_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
def test_a_refused_call_draws_nothing(generator):
    before = generator.get_state()
    for call in (
        lambda: vgg(11, 3, 5, classifier_widths=(4, 4), dtype=torch.float16, generator=generator),
        lambda: vgg(11, 3, 5, classifier_widths=(4, 4), device="nope", generator=generator),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert torch.equal(before, generator.get_state())
