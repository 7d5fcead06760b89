"""The strategies give what they promise, reach the corners that matter, and shrink to readable examples."""

import math

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from linconv.network import LinearCNN
from linconv.strategies import grids, images, linear_cnns, predictors

DTYPES = st.sampled_from([torch.float32, torch.float64])


@given(grids(min_dims=2, max_dims=3, max_side=5, max_sites=30))
def test_grids_stay_within_their_bounds(grid):
    assert 2 <= len(grid) <= 3
    assert all(1 <= n <= 5 for n in grid)
    assert math.prod(grid) <= 30


@given(st.data(), DTYPES)
def test_predictors_and_images_have_the_promised_shapes(data, dtype):
    beta = data.draw(predictors(max_outputs=4, max_channels=2, dtype=dtype))
    assert beta.dtype == dtype
    assert 1 <= beta.shape[0] <= 4
    assert 1 <= beta.shape[1] <= 2
    assert beta.ndim in (3, 4, 5)
    assert beta.isfinite().all()
    x = data.draw(images(channels=5, grid=(2, 3), max_images=2, dtype=st.just(dtype)))
    assert x.shape in ((1, 5, 2, 3), (2, 5, 2, 3))
    assert x.dtype == dtype


@given(st.data())
def test_networks_take_the_images_made_for_them(data):
    net = data.draw(linear_cnns(max_depth=3, max_channels=2, max_outputs=5, dtype=DTYPES))
    assert isinstance(net, LinearCNN)
    assert 1 <= net.depth <= 3
    x = data.draw(images(net=net, max_images=4))
    assert net(x).shape == (len(x), net.weights[-1].shape[0])
    assert net(x).dtype == x.dtype


@pytest.mark.parametrize(
    "condition",
    [
        lambda net: net.depth == 4,
        lambda net: net.depth == 1,
        lambda net: len(net.grid) == 3 and min(net.grid) > 1,
        lambda net: any(k > n for w in net.weights for k, n in zip(w.shape[2:], net.grid, strict=True)),
        lambda net: net.depth > 1 and any(k < n for k, n in zip(net.weights[0].shape[2:], net.grid, strict=True)),
        lambda net: all(n % 2 for n in net.grid) and math.prod(net.grid) > 8,
        lambda net: all(n % 2 == 0 for n in net.grid) and math.prod(net.grid) > 8,
        lambda net: len({w.shape[0] for w in net.weights}) == 3,
        lambda net: net.weights[-1].detach().unique().numel() > 20,
    ],
)
def test_networks_reach_every_corner(condition):
    once = settings(max_examples=2000, phases=[Phase.generate], database=None)  # without shrinking
    assert condition(find(linear_cnns(), condition, settings=once))


def test_failing_examples_shrink_to_small_integers():
    assert find(predictors(), lambda beta: float(beta.abs().sum()) > 1.5).tolist() == [[[2.0]]]
    assert find(predictors(grid=(2, 2)), lambda beta: bool((beta[0, 0] != 0).all())).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]
    assert find(images(channels=2, grid=grids(max_dims=1)), lambda x: len(x) == 2).tolist() == [[[0.0], [0.0]]] * 2
    assert find(grids(), lambda grid: math.prod(grid) >= 8) in {(8,), (1, 8), (2, 4), (7, 2)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grids(max_side=0), ValueError, "max_side: .*0"),
        (lambda: grids(max_sites=2.5), TypeError, r"max_sites: .*2\.5"),
        (lambda: grids(min_dims=3, max_dims=2), ValueError, "max_dims: .*min_dims=3"),
        (lambda: grids(max_dims=4), ValueError, "max_dims: .*4"),
        (lambda: predictors(max_outputs=-1), ValueError, "max_outputs: .*-1"),
        (lambda: predictors(max_channels="2"), TypeError, "max_channels: .*'2'"),
        (lambda: predictors(grid=(1, 1, 1, 1)), ValueError, "grid: "),
        (lambda: predictors(dtype=torch.int64), TypeError, "dtype: .*int64"),
        (lambda: linear_cnns(max_depth=0), ValueError, "max_depth: .*0"),
        (lambda: linear_cnns(grid="ab"), TypeError, "grid: .*'ab'"),
        (lambda: images(max_images=0), ValueError, "max_images: .*0"),
        (lambda: images(channels=0), ValueError, "channels: .*0"),
        (lambda: images(net=torch.nn.Flatten()), TypeError, "net: .*Flatten"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
