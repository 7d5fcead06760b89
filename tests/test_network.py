"""The space-domain network against dense matrices built by loops, its laws, and the import of torch modules."""

import math
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import linconv as lc
from linconv import network
from linconv.network import LinearCNN, block_circulant, circular_convolution, fold_kernel
from linconv.strategies import grids, images, linear_cnns, predictors
from linconv.witnesses import dense_convolution, dense_network

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


def close(a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> bool:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a - b).abs().max()) <= TOLERANCE[a.dtype] * (scale + float(b.abs().max()))


@st.composite
def kernels_and_images(draw, **options):
    """A kernel narrower than, as wide as or wider than the grid, and images for it."""
    grid = draw(grids(max_sites=24))
    taps = tuple(draw(st.integers(1, 2 * n + 1)) for n in grid)
    weight = draw(predictors(grid=taps if math.prod(taps) < 60 else grid, **options))
    return weight, draw(images(channels=weight.shape[1], grid=grid, **options))


# --- Convolution -------------------------------------------------------------------------------------------------------


@given(kernels_and_images())
def test_convolution_is_the_sum_over_taps_of_shifted_images(pair):
    weight, x = pair
    y = x.new_zeros(len(x), len(weight), *x.shape[2:])
    spatial = tuple(range(2, x.ndim))
    for tap in np.ndindex(*weight.shape[2:]):
        y += torch.einsum("cd,nd...->nc...", weight[(..., *tap)], x.roll(tap, spatial))
    assert close(circular_convolution(x, weight), y)


@given(kernels_and_images())
def test_folding_keeps_the_convolution(pair):
    weight, x = pair
    folded = fold_kernel(weight, tuple(x.shape[2:]))
    assert folded.shape[2:] == x.shape[2:]
    assert close(circular_convolution(x, folded), circular_convolution(x, weight))


@given(kernels_and_images())
def test_block_circulant_matrix_is_the_dense_one(pair):
    weight, x = pair
    grid = tuple(x.shape[2:])
    expected = torch.from_numpy(dense_convolution(weight.numpy(), grid))
    assert close(block_circulant(fold_kernel(weight, grid)), expected)
    assert close(circular_convolution(x, weight).flatten(1), x.flatten(1) @ expected.T)


@given(predictors(), st.booleans())
def test_dense_and_convolution_paths_agree(weight, flat):
    x = torch.randn(2, *weight.shape[1:], dtype=weight.dtype, generator=torch.Generator().manual_seed(1))
    limit = network.DENSE_ENTRIES
    try:
        network.DENSE_ENTRIES = 0
        slow = circular_convolution(x, weight)
    finally:
        network.DENSE_ENTRIES = limit
    assert close(circular_convolution(x, weight), slow)


@given(kernels_and_images())
def test_adjoint_is_the_convolution_with_the_reflected_transposed_kernel(pair):
    weight, x = pair
    grid, spatial = tuple(x.shape[2:]), tuple(range(2, x.ndim))
    kernel = fold_kernel(weight, grid)
    reflected = kernel.flip(spatial).roll((1,) * len(grid), spatial).transpose(0, 1)
    y = torch.randn(len(x), len(weight), *grid, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    left, right = (circular_convolution(x, weight) * y).sum(), (x * circular_convolution(y, reflected)).sum()
    assert float((left - right).abs()) <= 1e-9 * (1 + float(left.abs()))


@given(kernels_and_images(), st.data())
def test_convolution_commutes_with_shifts(pair, data):
    weight, x = pair
    spatial = tuple(range(2, x.ndim))
    shift = tuple(data.draw(st.integers(-5, 5)) for _ in spatial)
    assert close(circular_convolution(x.roll(shift, spatial), weight), circular_convolution(x, weight).roll(shift, spatial))


def test_delta_shifts_the_other_way_than_torchs_cross_correlation():
    x, w = torch.arange(5.0).reshape(1, 1, 5), torch.tensor([[[0.0, 1.0]]])
    assert circular_convolution(x, w).flatten().tolist() == [4, 0, 1, 2, 3]


# --- Network -----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_network_is_its_dense_matrix(data):
    net = data.draw(linear_cnns(grid=grids(max_sites=30)))
    x = data.draw(images(net=net))
    matrix = torch.from_numpy(dense_network([w.detach().numpy() for w in net.weights], net.grid))
    assert close(net(x).detach(), x.flatten(1) @ matrix.T)


@given(st.data())
def test_network_is_linear_and_keeps_dtype(data):
    net = data.draw(linear_cnns(dtype=st.sampled_from([torch.float32, torch.float64])))
    x, y = data.draw(images(net=net, max_images=1)), data.draw(images(net=net, max_images=1))
    out = net(2 * x - y).detach()
    assert close(out, (2 * net(x) - net(y)).detach(), scale=float((net(x).abs().max() + net(y).abs().max()).detach()))
    assert out.shape == (1, net.weights[-1].shape[0])


@given(linear_cnns())
def test_from_weights_copies(net):
    copy = LinearCNN.from_weights(net.weights, list(net.grid))
    assert copy.depth == net.depth == len(net.weights) == len(list(net.parameters()))
    assert all(
        torch.equal(a, b) and a.data_ptr() != b.data_ptr() and b.requires_grad for a, b in zip(net.weights, copy.weights, strict=True)
    )
    assert f"depth={net.depth}" in repr(net)


def test_initialisation_is_reproducible_and_leaves_global_randomness_alone(dtype):
    before = torch.get_rng_state()
    nets = [LinearCNN(3, (5, 2), 4, (6, 7), dtype=dtype, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(nets[0].weights, nets[1].weights, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == dtype
        assert 0.9 < float(a.detach().abs().max()) * math.sqrt(a[0].numel()) <= 1 + 1e-6


def test_scale_is_the_standard_deviation_times_root_fan_in(generator):
    net = LinearCNN(8, (64,), 64, (8, 8), kernel_size=(3, 5), generator=generator, scale=3.0)
    assert [tuple(w.shape) for w in net.weights] == [(64, 8, 3, 5), (64, 64, 8, 8)]
    for w in net.weights:
        assert float(w.detach().std()) * math.sqrt(w[0].numel()) == pytest.approx(3, rel=0.03)
    assert all(not w.any() for w in LinearCNN(1, (1,), 1, (2,), scale=0.0).weights)


def test_gradients_and_state_dict_are_torchs(generator):
    net = LinearCNN(2, (3,), 2, (3, 2), generator=generator)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, generator=generator)
    names, values = zip(*net.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda *w: torch.func.functional_call(net, dict(zip(names, w, strict=True)), x), [v.detach().requires_grad_() for v in values]
    )
    other = LinearCNN(2, (3,), 2, (3, 2))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert net.float()(x.float()).dtype == torch.float32


# --- Import ------------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def conv(dims: int, a: int, b: int, kernel, **options) -> nn.Module:
    options = {"padding": "same", "padding_mode": "circular", "bias": False, "dtype": torch.float64} | options
    return CONVOLUTIONS[dims](a, b, kernel, **options)


def linear(a: int, b: int, **options) -> nn.Module:
    return nn.Linear(a, b, **({"bias": False, "dtype": torch.float64} | options))


def same_function(module: nn.Module, shape: tuple[int, ...]) -> LinearCNN:
    net = lc.from_torch(module, shape)
    dtype = net.weights[0].dtype
    x = torch.randn(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert close(net(x), module.eval()(x))
    return net


def largest_dilation(n: int, k: int) -> int:
    """torch wraps around at most once: its left padding, half of d (k − 1), may not exceed the grid."""
    return max(1, 2 * n // (k - 1)) if k > 1 else 3


@settings(max_examples=80)
@given(st.data())
def test_import_of_random_stacks(data):
    grid = data.draw(grids(max_side=6, max_sites=40))
    dims, channels, layers = len(grid), data.draw(st.integers(1, 2)), []
    shape, dtype = (channels, *grid), data.draw(st.sampled_from([torch.float64, torch.float32]))
    for _ in range(data.draw(st.integers(0, 3))):
        groups = data.draw(st.sampled_from([1, channels]))
        kernel = tuple(data.draw(st.integers(1, n + 2)) for n in grid)
        dilation = tuple(data.draw(st.integers(1, largest_dilation(n, k))) for n, k in zip(grid, kernel, strict=True))
        excess = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any((e + 1) // 2 > n for e, n in zip(excess, grid, strict=True)):
            kernel, dilation, excess = grid, (1,) * dims, [n - 1 for n in grid]
        numeric = all(e % 2 == 0 for e in excess) and data.draw(st.booleans())
        width = groups * data.draw(st.integers(1, 2))
        padding = tuple(e // 2 for e in excess) if numeric else "same"
        layer = conv(dims, channels, width, kernel, dilation=dilation, groups=groups, padding=padding, dtype=dtype)
        layers += data.draw(st.sampled_from([[layer], [nn.Identity(), layer], [nn.Sequential(layer, nn.Identity())]]))
        channels = width
    if data.draw(st.booleans()):
        grid = tuple(data.draw(st.integers(1, n + 1)) for n in grid)
        layers.append(POOLS[dims](grid))
    features = channels * math.prod(grid)
    layers.append(nn.Flatten())
    if data.draw(st.booleans()):
        layers += [linear(features, 5, dtype=dtype), nn.Identity(), nn.Sequential(linear(5, 2, dtype=dtype))]
    net = same_function(nn.Sequential(*layers), shape)
    assert net.grid == shape[1:]
    assert net.depth == 1 + sum(isinstance(m, tuple(CONVOLUTIONS.values())) for m in nn.Sequential(*layers).modules())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_import_of_every_same_layout(dims, kernel, dilation):
    layer = conv(dims, 2, 4, kernel, dilation=dilation, groups=2)
    same_function(nn.Sequential(layer, nn.Flatten()), (2, *(4, 5, 4)[:dims]))


def test_import_folds_kernels_wider_than_the_grid():
    for kernel in (6, 7, 8, 9):
        net = same_function(nn.Sequential(conv(1, 2, 3, kernel), nn.Flatten(), linear(12, 2)), (2, 4))
        assert net.weights[0].shape == (3, 2, 4)


def test_import_of_a_kernel_of_one_tap_needs_no_circular_padding():
    same_function(
        nn.Sequential(conv(2, 2, 3, 1, padding=0, padding_mode="zeros"), conv(2, 3, 1, 1, padding="valid"), nn.Flatten()), (2, 3, 2)
    )


def test_import_of_readouts_alone_and_of_networks_without_parameters():
    assert same_function(nn.Sequential(nn.Flatten(), linear(6, 2)), (2, 3)).depth == 1
    assert same_function(nn.Flatten(), (2, 3)).weights[0].dtype == torch.float64
    assert same_function(nn.Sequential(nn.AdaptiveAvgPool2d((None, 2)), nn.Flatten(1, 3), nn.Flatten(1, 1)), (2, 3, 4)).depth == 1


def test_import_names_nested_positions_and_keeps_the_module(generator):
    inner = nn.Sequential(OrderedDict(conv=conv(2, 2, 3, 3), act=nn.ReLU()))
    module = nn.Sequential(OrderedDict(body=inner, flat=nn.Flatten()))
    with pytest.raises(lc.NotLinearCNNError, match=r"layer body\.act \(ReLU\)"):
        lc.from_torch(module, (2, 4, 4))
    module = nn.Sequential(conv(2, 2, 3, 3), nn.Flatten(), linear(48, 2))
    net = lc.from_torch(module, (2, 4, 4))
    with torch.no_grad():
        module[0].weight.zero_()
        module[2].weight.zero_()
    assert all(w.any() for w in net.weights)


def test_import_of_wide_networks_needs_no_matrix_of_all_pixels():
    same_function(nn.Sequential(conv(2, 3, 96, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(96, 10)), (3, 32, 32))


class MyConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class MySequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) ** 2


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: output.relu())
    return layer


def prehooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    return layer


def overridden(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x.relu()
    return layer


def pruned() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv(2, 2, 2, 3))


def good() -> nn.Module:
    return conv(2, 2, 2, 3)


HEAD = [nn.Flatten()]
REFUSED = {
    "bias": ([good(), conv(2, 2, 2, 3, bias=True), *HEAD], "layer 1 (Conv2d)", "bias"),
    "stride": ([conv(2, 2, 2, 3, stride=2, padding=1), *HEAD], "layer 0 (Conv2d)", "stride is (2, 2)"),
    "zero padding": ([conv(2, 2, 2, 3, padding_mode="zeros"), *HEAD], "layer 0 (Conv2d)", "padding_mode is 'zeros'"),
    "reflection": ([conv(2, 2, 2, 3, padding_mode="reflect"), *HEAD], "layer 0 (Conv2d)", "padding_mode is 'reflect'"),
    "valid": ([conv(2, 2, 2, 3, padding="valid"), *HEAD], "layer 0 (Conv2d)", "padding is valid"),
    "too little padding": ([conv(2, 2, 2, 5, padding=1), *HEAD], "layer 0 (Conv2d)", "changes the size of the grid"),
    "too much padding": ([conv(2, 2, 2, 3, padding=(1, 2)), *HEAD], "layer 0 (Conv2d)", "changes the size of the grid"),
    "even kernel, numeric padding": ([conv(2, 2, 2, 2, padding=1), *HEAD], "layer 0 (Conv2d)", "changes the size of the grid"),
    "relu": ([good(), nn.ReLU(), *HEAD], "layer 1 (ReLU)", "after the last convolution only"),
    "relu between": ([good(), nn.ReLU(), good(), *HEAD], "layer 1 (ReLU)", "before the last convolution only"),
    "batch norm": ([good(), nn.BatchNorm2d(2), *HEAD], "layer 1 (BatchNorm2d)", "only Flatten"),
    "dropout": ([good(), nn.Dropout(), *HEAD], "layer 1 (Dropout)", "only Flatten"),
    "transposed": ([nn.ConvTranspose2d(2, 2, 3, padding=1, bias=False), *HEAD], "layer 0 (ConvTranspose2d)", "circular Conv2d"),
    "other dimension": ([conv(1, 2, 2, 3), *HEAD], "layer 0 (Conv1d)", "circular Conv2d"),
    "lazy": ([nn.LazyConv2d(2, 3, bias=False), *HEAD], "layer 0 (LazyConv2d)", "forward hooks"),
    "subclass": ([MyConv(2, 2, 3, padding="same", padding_mode="circular", bias=False), *HEAD], "layer 0 (MyConv)", "circular Conv2d"),
    "subclass of Sequential": ([MySequential(good()), *HEAD], "layer 0 (MySequential)", "only Flatten"),
    "hook": ([hooked(good()), *HEAD], "layer 0 (Conv2d)", "forward hooks"),
    "pre-hook": ([prehooked(good()), *HEAD], "layer 0 (Conv2d)", "forward hooks"),
    "hooked identity": ([hooked(nn.Identity()), good(), *HEAD], "layer 0 (Identity)", "forward hooks"),
    "hooked readout": ([good(), nn.Flatten(), hooked(linear(24, 2))], "layer 2 (Linear)", "forward hooks"),
    "hooked Sequential": ([hooked(nn.Sequential(good())), *HEAD], "layer 0 (Sequential)", "forward hooks"),
    "forward replaced": ([overridden(good()), *HEAD], "layer 0 (Conv2d)", "forward"),
    "forward replaced on Identity": ([overridden(nn.Identity()), *HEAD], "layer 0 (Identity)", "forward"),
    "forward replaced on Sequential": ([overridden(nn.Sequential(good())), *HEAD], "layer 0 (Sequential)", "forward"),
    "parametrized": ([pruned(), *HEAD], "layer 0 (ParametrizedConv2d)", "circular Conv2d"),
    "channels": ([good(), conv(2, 4, 2, 3), *HEAD], "layer 1 (Conv2d)", "4 input channels and gets 2"),
    "input channels": ([conv(2, 3, 2, 3), *HEAD], "layer 0 (Conv2d)", "3 input channels and gets 2"),
    "linear bias": ([nn.Flatten(), linear(24, 2, bias=True)], "layer 1 (Linear)", "bias"),
    "linear on images": ([good(), linear(4, 2), *HEAD], "layer 1 (Linear)", "expects (N, 4) and gets (N, 2, 3, 4)"),
    "linear too wide": ([nn.Flatten(), linear(25, 2)], "layer 1 (Linear)", "expects (N, 25) and gets (N, 24)"),
    "linear subclass": ([nn.Flatten(), nn.modules.linear.NonDynamicallyQuantizableLinear(24, 2, bias=False)], "layer 1 (NonDyn", "only"),
    "partial flatten": ([nn.Flatten(2)], "layer 0 (Flatten)", "flattens dimensions 2 to -1"),
    "flatten of the batch": ([nn.Flatten(0)], "layer 0 (Flatten)", "flattens dimensions 0 to -1"),
    "max pooling": ([good(), nn.MaxPool2d(2), *HEAD], "layer 1 (MaxPool2d)", "only Flatten"),
    "average pooling": ([good(), nn.AvgPool2d(2), *HEAD], "layer 1 (AvgPool2d)", "only Flatten"),
    "adaptive max": ([nn.AdaptiveMaxPool2d(1), *HEAD], "layer 0 (AdaptiveMaxPool2d)", "only Flatten"),
    "pooling of other dimension": ([nn.AdaptiveAvgPool1d(1), *HEAD], "layer 0 (AdaptiveAvgPool1d)", "AdaptiveAvgPool2d"),
    "pooling before a convolution": ([nn.AdaptiveAvgPool2d(2), good(), *HEAD], "layer 0 (AdaptiveAvgPool2d)", "before the last"),
    "pooling after flattening": ([nn.Flatten(), nn.AdaptiveAvgPool2d(1)], "layer 1 (AdaptiveAvgPool2d)", "expects images"),
    "pooling to a negative size": ([nn.AdaptiveAvgPool2d(-1), *HEAD], "layer 0 (AdaptiveAvgPool2d)", "does not accept its input"),
    "no readout": ([good()], "no readout", "append nn.Flatten()"),
    "pooling without flattening": ([good(), nn.AdaptiveAvgPool2d(1)], "no readout", "append nn.Flatten()"),
    "nothing": ([], "no readout", "append nn.Flatten()"),
    "mixed layers": ([good(), conv(2, 2, 2, 3, dtype=torch.float32), *HEAD], "one dtype", "module.double()"),
    "mixed readout": ([good(), nn.Flatten(), linear(24, 2, dtype=torch.float32)], "one dtype", "module.double()"),
    "mixed precisions": (
        [conv(2, 2, 2, 3, dtype=torch.float32), nn.Flatten(), linear(24, 2)],
        "one dtype",
        "convert",
    ),
    "half": ([conv(2, 2, 2, 3, dtype=torch.float16), *HEAD], "one dtype, float32 or float64", "convert"),
    "complex": ([conv(2, 2, 2, 3, dtype=torch.complex128), *HEAD], "one dtype, float32 or float64", "convert"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_layer_position_and_reason(case):
    layers, where, why = REFUSED[case]
    with pytest.raises(lc.NotLinearCNNError) as error:
        lc.from_torch(nn.Sequential(*layers), (2, 3, 4))
    assert where in str(error.value)
    assert why in str(error.value)


def test_refusal_of_a_bare_module_says_so():
    with pytest.raises(lc.NotLinearCNNError, match="layer the module itself \\(ReLU\\)"):
        lc.from_torch(nn.ReLU(), (1, 3))
    with pytest.raises(lc.NotLinearCNNError, match=re.escape("the module itself (Linear): it expects (N, 3) and gets (N, 1, 3)")):
        lc.from_torch(linear(3, 2), (1, 3))


# --- Bad input ---------------------------------------------------------------------------------------------------------

F64 = torch.float64
ones = torch.ones


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearCNN(0, (2,), 1, (3,)), ValueError, "in_channels: .*positive.*0"),
        (lambda: LinearCNN(1.5, (2,), 1, (3,)), TypeError, "in_channels: .*1.5"),
        (lambda: LinearCNN(True, (2,), 1, (3,)), TypeError, "in_channels: .*True"),
        (lambda: LinearCNN(1, (2, -1), 1, (3,)), ValueError, "hidden_channels: .*-1"),
        (lambda: LinearCNN(1, 2, 1, (3,)), TypeError, "hidden_channels: .*sequence"),
        (lambda: LinearCNN(1, (2,), 2**31, (3,)), ValueError, "out_features: .*2147483648"),
        (lambda: LinearCNN(1, (2,), 1, ()), ValueError, "grid: .*1, 2 or 3"),
        (lambda: LinearCNN(1, (2,), 1, (2, 2, 2, 2)), ValueError, "grid: .*1, 2 or 3"),
        (lambda: LinearCNN(1, (2,), 1, "ab"), TypeError, "grid: .*'ab'"),
        (lambda: LinearCNN(1, (2,), 1, (3, 3), kernel_size=(2,)), ValueError, "kernel_size: expected 2"),
        (lambda: LinearCNN(1, (2,), 1, (3, 3), kernel_size=0), ValueError, "kernel_size: .*0"),
        (lambda: LinearCNN(1, (2,), 1, (3,), dtype=torch.float16), TypeError, "dtype: .*float16"),
        (lambda: LinearCNN(1, (2,), 1, (3,), scale=-1), ValueError, "scale: .*-1"),
        (lambda: LinearCNN(1, (2,), 1, (3,), scale=math.inf), ValueError, "scale: .*inf"),
        (lambda: LinearCNN(1, (2,), 1, (3,), scale="big"), TypeError, "scale: .*'big'"),
        (lambda: LinearCNN.from_weights([], (3,)), ValueError, "weights: .*at least one"),
        (lambda: LinearCNN.from_weights(ones(1, 1, 3), (3,)), ValueError, "weights: .*list"),
        (lambda: LinearCNN.from_weights([ones(1, 1, 3, 3)], (3,)), ValueError, r"weights\[0\]: .*\(1, 1, 3, 3\)"),
        (lambda: LinearCNN.from_weights([np.ones((1, 1, 3))], (3,)), TypeError, r"weights\[0\]: .*ndarray"),
        (lambda: LinearCNN.from_weights([ones(1, 1, 3, dtype=torch.int64)], (3,)), TypeError, r"weights\[0\]: .*int64"),
        (lambda: LinearCNN.from_weights([ones(2, 1, 3), ones(1, 2, 3, dtype=F64)], (3,)), TypeError, r"weights\[1\]: .*float64"),
        (lambda: LinearCNN.from_weights([ones(2, 1, 3), ones(1, 3, 3)], (3,)), ValueError, r"weights\[1\]: expected 2 input channels"),
        (lambda: LinearCNN.from_weights([ones(2, 1, 3), ones(1, 2, 2)], (3,)), ValueError, r"weights\[-1\]: .*\(1, 2, 2\)"),
        (lambda: LinearCNN.from_weights([ones(1, 1, 3) * math.nan], (3,)), ValueError, r"weights\[0\]: .*finite"),
        (lambda: LinearCNN.from_weights([ones(0, 1, 3)], (3,)), ValueError, r"weights\[0\]: .*empty"),
        (lambda: LinearCNN(1, (2,), 1, (3,))(ones(1, 1, 4, dtype=F64)), ValueError, r"x: .*\(N, 1, 3\).*\(1, 1, 4\)"),
        (lambda: LinearCNN(1, (2,), 1, (3,))(ones(1, 3, dtype=F64)), ValueError, r"x: .*\(1, 3\)"),
        (lambda: LinearCNN(1, (2,), 1, (3,))(ones(1, 1, 3)), TypeError, "x: .*float64.*float32"),
        (lambda: lc.from_torch(nn.Flatten(), (3,)), ValueError, r"input_shape: .*\(3,\)"),
        (lambda: lc.from_torch(nn.Flatten(), (1, 2, 3, 4, 5)), ValueError, "input_shape"),
        (lambda: lc.from_torch(nn.Flatten(), (1, 0)), ValueError, "input_shape: .*0"),
        (lambda: lc.from_torch(nn.Flatten(), 3), TypeError, "input_shape"),
        (lambda: lc.from_torch("net", (1, 3)), TypeError, "module: .*str"),
    ],
)
def test_bad_input_names_the_argument(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, error)


def test_without_a_generator_torchs_global_state_is_neither_read_nor_changed():
    state = torch.get_rng_state()
    first = LinearCNN(2, [3], 4, (3,))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first.weights, LinearCNN(2, [3], 4, (3,)).weights, strict=True))
    torch.set_rng_state(state)


def test_no_images_give_no_outputs():
    assert LinearCNN(2, [3], 4, (3, 4))(torch.zeros(0, 2, 3, 4, dtype=torch.float64)).shape == (0, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearCNN(2**20, [2**20], 4, (2**20,)), ValueError, "grid: .*fit in memory"),
        (lambda: LinearCNN(2, [2], 4, (2,), generator=3), TypeError, "generator: expected a torch.Generator"),
        (lambda: LinearCNN(2, [2], 4, (2,), device="nope"), ValueError, "device: .*'nope'"),
        (lambda: LinearCNN(2, [2], 4, (2,))([1]), TypeError, "x: expected a torch tensor .*list"),
        (lambda: LinearCNN(2, [2], 4, (2,))(np.ones((1, 2, 2))), TypeError, "x: expected a torch tensor .*ndarray"),
        (lambda: LinearCNN.from_weights(None, (3,)), ValueError, "weights: expected a list"),
        (lambda: lc.conv_singular_values(torch.ones(3, 2, 3, 3), (2**30, 2**30)), ValueError, "grid: .*fit in memory"),
        (lambda: lc.representation_cost(torch.ones(2, 3, 4, 5), 2, kernel_size=10**4), ValueError, "kernel_size: .*fit in memory"),
        (lambda: lc.FrequencyBlocks(torch.full((2, 1, 1), math.nan, dtype=torch.complex128)), ValueError, "values: .*NaN"),
        (lambda: lc.check(3), TypeError, "claim: expected a function"),
    ],
)
def test_what_cannot_be_is_refused_before_torch_fails(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_import_names_the_layer_whose_weight_is_not_finite():
    layer = nn.Conv1d(1, 1, 3, padding="same", padding_mode="circular", bias=False)
    with torch.no_grad():
        layer.weight[0, 0, 0] = math.nan
    with pytest.raises(lc.NotLinearCNNError, match=r"layer 0 \(Conv1d\): .*NaN"):
        lc.from_torch(nn.Sequential(layer, nn.Flatten()), (1, 4))


def test_a_module_that_stands_twice_counts_twice() -> None:
    """torch's `named_children` leaves the second out: the import would be another function."""
    shared = nn.Conv2d(2, 2, (3, 2), padding="same", padding_mode="circular", bias=False)
    module = nn.Sequential(shared, nn.Sequential(shared), nn.Flatten(), nn.Linear(24, 3, bias=False)).double()
    net, x = lc.from_torch(module, (2, 4, 3)), torch.randn(5, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert net.depth == 3
    torch.testing.assert_close(net(x), module(x))


def test_small_networks_show_their_weights() -> None:
    small = lc.LinearCNN.from_weights([torch.tensor([[[1.0, -0.5]]]), torch.tensor([[[2.0, 3.0]]])], (2,))
    assert "weights=[(1, 1, 2), (1, 1, 2)]\n" in repr(small)
    assert "[[[1.0, -0.5]]]" in repr(small)
    assert "[[[2.0, 3.0]]]" in repr(small)
    assert "[[[" not in repr(lc.LinearCNN(3, (4,), 5, (4, 5)))
