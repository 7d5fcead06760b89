"""The strategies give what they promise, reach the corners that matter, and shrink to readable examples."""

import math

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from linconv import strategies
from linconv.network import LinearCNN
from linconv.spectrum import FrequencyBlocks
from linconv.strategies import blocks, displacements, grids, images, linear_cnns, patches, predictors, spectral_images

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


@given(net=strategies.linear_cnns(max_depth=3), data=st.data())
def test_strategies_admit_what_they_yield(net, data):
    """…and what is smaller in the same place, but nothing outside their bounds."""
    own = linear_cnns(max_depth=3)
    assert own.admits(net, net)
    assert not own.admits(LinearCNN.from_weights([w.detach().float() for w in net.weights], net.grid), net)
    beta = data.draw(predictors(max_outputs=2))
    judge = predictors(max_outputs=2).admits
    assert judge(beta, beta)
    assert judge(beta[:1], beta)
    assert not judge(torch.cat([beta] * 3), beta)
    assert not judge(beta.to(torch.float32), beta)
    assert not judge(beta / 0, beta)
    fixed = predictors(grid=st.sampled_from([(2, 2), (3, 3)])).admits
    square = torch.ones(1, 1, 3, 3)
    assert fixed(2 * square, square)
    assert not fixed(square[..., :2, :2], square)  # of that strategy too, but nothing says so
    assert images(channels=1).admits(square, square)
    assert not images(channels=2).admits(square, square)
    assert grids(max_side=3).admits((3, 3), (1,))
    assert not grids(max_side=3).admits((4,), (1,))


@given(blocks(outputs=3, channels=2, rank=1, grid=grids(max_sites=9)))
def test_blocks_of_given_rank(drawn):
    values = drawn.singular_values()
    assert bool((values[..., 1] <= 1e-12 * (1 + values.max())).all())
    assert drawn.predictor().shape[:2] == (3, 2)


@given(st.data(), grids(max_sites=9))
def test_blocks_of_given_singular_values(data, grid):
    drawn = data.draw(blocks(outputs=2, channels=3, singular_values=[3.0, 0.5], grid=grid))
    expected = torch.tensor([3.0, 0.5], dtype=torch.float64).expand(*grid, 2)
    assert torch.allclose(drawn.singular_values(), expected, rtol=0, atol=1e-13)
    again = FrequencyBlocks.from_predictor(drawn.predictor())  # the map, and so that it is real
    assert torch.allclose(again.values, drawn.values, rtol=0, atol=1e-13)


@given(st.data(), grids(max_sites=12))
def test_images_of_given_spectrum(data, grid):
    power = torch.fft.fftn(torch.ones(2, *grid, dtype=torch.float64).cumsum(-1), dim=tuple(range(1, len(grid) + 1))).abs().square()
    power = (power + power.flatten(1)[:, spectral_mirror(grid)].reshape(power.shape)) / 2
    x = data.draw(spectral_images(power))
    found = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square()
    assert torch.allclose(found, power.expand_as(found), rtol=1e-10, atol=1e-12 * float(power.max()))


def spectral_mirror(grid):
    places = torch.arange(math.prod(grid)).reshape(grid)
    for dim in range(len(grid)):
        places = places.flip(dim).roll(1, dim)
    return places.flatten()


@given(st.data())
def test_patches_and_displacements(data):
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    patch = data.draw(patches(x, 2))
    windows = x.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    assert any(torch.equal(patch, window) for window in windows)
    field = data.draw(displacements((4, 6), cutoff=2, max_pixels=0.5))
    assert field.shape == (2, 4, 6)
    assert field.abs().max() <= 0.5 * (1 + 1e-15)
    assert field[:, 0].abs().max() < 1e-14
    assert field[:, :, -1].abs().max() < 1e-14


def test_constrained_strategies_reach_and_shrink():
    once = settings(max_examples=500, database=None)
    assert find(blocks(outputs=2, channels=2, rank=1, grid=(2,)), lambda b: b.values.abs().max() > 0, settings=once).values.abs().max() <= 4
    assert find(patches(torch.arange(6.0).reshape(1, 1, 6), 1), lambda p: p.sum() > 2, settings=once).tolist() == [[3.0]]
    field = find(displacements((3, 3), cutoff=2), lambda f: f.abs().max() > 0.4, settings=once)
    assert int((field.flatten(1).norm(dim=1) > 0).sum()) == 1
    assert len(find(spectral_images(torch.ones(1, 3)), lambda x: len(x) == 2, settings=once)) == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: blocks(outputs=2, channels=2), ValueError, "rank: give it or singular_values"),
        (lambda: blocks(outputs=2, channels=2, rank=3), ValueError, "rank: expected at most .* 2, got 3"),
        (lambda: blocks(outputs=2, channels=2, singular_values=[1.0]), ValueError, "singular_values: expected 2 finite"),
        (lambda: blocks(outputs=1, channels=1, singular_values=[-1.0]), ValueError, "singular_values: .* ≥ 0"),
        (lambda: blocks(outputs=1, channels=1, singular_values=torch.ones(3, 1), grid=(4,)), ValueError, "each frequency of the grid"),
        (lambda: blocks(outputs=1, channels=1, singular_values=torch.arange(3.0)[:, None], grid=(3,)), ValueError, "the same at u and −u"),
        (lambda: spectral_images(-torch.ones(1, 3)), ValueError, "power: expected numbers ≥ 0"),
        (lambda: spectral_images(torch.arange(3.0)[None]), ValueError, "power: .* equal at u and −u"),
        (lambda: patches(torch.ones(1, 1, 3), 4), ValueError, "kernel_size: expected at most 3"),
        (lambda: displacements((3,)), ValueError, r"grid: expected \(H, W\)"),
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
