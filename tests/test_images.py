"""Images: whitening, area averaging, and the loaders, against independent references, files in their true formats, and real sets."""

import gzip
import hashlib
import os
import pickle
import socket
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from linconv.images import ImageSet, center, files, greyscale, load, loading, resize, whiten

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}
DTYPES = st.sampled_from([torch.float32, torch.float64])
GRIDS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)
BATCH = files.CIFAR10_IMAGES * files.CIFAR10_RECORD


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def moment_error(images: torch.Tensor) -> float:
    x = images.double().flatten(1)
    return float((x.T @ x / len(x) - torch.eye(x.shape[1], dtype=torch.float64)).abs().max())


# Whitening and centring


@given(grid=GRIDS, channels=st.integers(1, 3), extra=st.integers(0, 20), dtype=DTYPES, seed=SEEDS)
def test_whitened_images_have_the_identity_as_second_moment(grid, channels, extra, dtype, seed):
    n = 2 * channels * int(np.prod(grid)) + extra
    images = random_images(n, channels, *grid, seed=seed, dtype=dtype)
    white = whiten(images)
    assert white.shape == images.shape
    assert white.dtype == dtype
    assert moment_error(white) < TOLERANCE[dtype]


@pytest.mark.parametrize("condition", [1e3, 1e8, 1e11])
def test_whitening_does_not_square_the_condition_number(condition):
    p = 24
    images = (random_images(60, p) * torch.logspace(0, -float(np.log10(condition)), p)).reshape(60, 2, 3, 4)
    assert moment_error(whiten(images)) < 1e-13


@given(grid=GRIDS, seed=SEEDS)
def test_whitening_is_symmetric_idempotent_and_nearest(grid, seed):
    images = random_images(3 * int(np.prod(grid)) + 5, 1, *grid, seed=seed)
    white = whiten(images)
    x, z = images.flatten(1), white.flatten(1)
    cross = x.T @ z  # = √N V S Vᵀ, the whitening map's inverse up to a factor
    assert torch.allclose(cross, cross.T, rtol=0, atol=1e-11 * float(cross.abs().max()))
    assert torch.linalg.eigvalsh(cross).min() > 0
    assert torch.allclose(whiten(white), white, rtol=0, atol=1e-12)
    rotation = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], dtype=torch.float64, generator=seeded(seed)))[0]
    assert (z - x).norm() <= (z @ rotation - x).norm() + 1e-12


def test_whitening_agrees_with_the_inverse_root_of_the_second_moment():
    images = random_images(200, 3, 2, 3)
    x = images.flatten(1).numpy()
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    expected = x @ (vectors / np.sqrt(values)) @ vectors.T
    assert np.abs(whiten(images).flatten(1).numpy() - expected).max() < 1e-11


def test_whitening_commutes_with_shifts_and_keeps_centred_images_centred():
    images = random_images(100, 2, 3, 4)
    assert torch.allclose(whiten(images.roll((1, 2), (2, 3))), whiten(images).roll((1, 2), (2, 3)), rtol=0, atol=1e-12)
    assert whiten(center(images)).mean(0).abs().max() < 1e-13


def test_what_rounding_leaves_of_the_decomposition_is_removed():
    x = whiten(random_images(600, 3, 10, 10)).flatten(1)
    error = torch.linalg.matrix_norm(x.T @ x / 600 - torch.eye(300, dtype=torch.float64), 2)
    assert error < 6e-15  # 2.5e-15 measured, and 1.2e-14 from the singular vectors themselves


def test_as_many_images_as_coordinates_can_be_whitened():
    assert moment_error(whiten(random_images(12, 3, 2, 2))) < 1e-13


@pytest.mark.usefixtures("unchecked")
def test_whitening_refuses_what_cannot_be_white(dtype):
    images = random_images(40, 1, 3, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"N = 8 images of C·D = 9 .*smaller grid"):
        whiten(images[:8])
    with pytest.raises(ValueError, match=r"all C·D = 27 dimensions, got rank 9 from 40 images.*greyscale"):
        whiten(images.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"got rank 8 from 9 images.*centring"):
        whiten(center(images[:9]))
    with pytest.raises(ValueError, match="got rank 0"):
        whiten(torch.zeros_like(images))
    many = random_images(20_000, 1, 2, 2, dtype=dtype)
    with pytest.raises(ValueError, match="got rank 4"):
        whiten(torch.cat([many, 0.3 * many + 0.4 * many.flip(2)], dim=1))


@given(grid=GRIDS, dtype=DTYPES, seed=SEEDS)
def test_centred_images_have_mean_zero_whatever_was_added(grid, dtype, seed):
    images = random_images(7, 2, *grid, seed=seed, dtype=dtype)
    centred = center(images)
    assert centred.mean(0).abs().max() < TOLERANCE[dtype]
    assert torch.allclose(center(images + images[:1]), centred, rtol=0, atol=TOLERANCE[dtype])
    assert torch.allclose(images - centred, images.mean(0, keepdim=True).expand_as(images), rtol=0, atol=TOLERANCE[dtype])


# Greyscale


def test_greyscale_is_the_luma_of_bt601(dtype):
    images = random_images(3, 3, 4, 5, dtype=dtype)
    expected = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    assert torch.allclose(greyscale(images)[:, 0], expected, rtol=0, atol=TOLERANCE[dtype])
    assert greyscale(images).shape == (3, 1, 4, 5)
    assert torch.allclose(greyscale(torch.ones(1, 3, 2, dtype=dtype)), torch.ones(1, 1, 2, dtype=dtype))
    pillow = np.asarray(Image.fromarray(np.uint8(images[0].permute(1, 2, 0) * 255)).convert("L")) / 255
    assert np.abs(greyscale(torch.from_numpy(np.floor(images[:1].double().numpy() * 255) / 255))[0, 0].numpy() - pillow).max() < 1 / 255
    assert torch.equal(greyscale(images[:, :1]), images[:, :1])


# Area averaging


@given(grid=GRIDS, ratio=st.integers(1, 4), dtype=DTYPES, seed=SEEDS)
def test_integer_ratios_are_average_pooling(grid, ratio, dtype, seed):
    images = random_images(2, 2, *(ratio * n for n in grid), seed=seed, dtype=dtype)
    pool = {1: torch.nn.functional.avg_pool1d, 2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[len(grid)]
    small = resize(images, grid)
    assert small.dtype == dtype
    assert torch.allclose(small, pool(images, ratio), rtol=0, atol=TOLERANCE[dtype])


@given(sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3), seed=SEEDS)
def test_every_ratio_agrees_with_averages_of_a_common_refinement(sizes, seed):
    old, new = zip(*sizes, strict=True)
    images = random_images(2, 1, *old, seed=seed)
    expected = images.numpy()
    for axis, (n, m) in enumerate(sizes, start=2):
        fine = np.repeat(expected, m, axis)
        expected = fine.reshape(*fine.shape[:axis], m, n, *fine.shape[axis + 1 :]).mean(axis + 1)
    small = resize(images, new)
    assert np.abs(small.numpy() - expected).max() < 1e-14
    dims = tuple(range(2, images.ndim))
    assert torch.allclose(small.mean(dims), images.mean(dims), rtol=0, atol=1e-14)
    assert small.min() >= images.min() - 1e-15
    assert small.max() <= images.max() + 1e-15


def test_a_ratio_of_seven_to_three_against_exact_fractions():
    line = [Fraction(v) for v in (3, 1, 4, 1, 5, 9, 2)]
    exact = [(line[0] + line[1] + line[2] / 3) * Fraction(3, 7), (line[2] * 2 / 3 + line[3] + line[4] * 2 / 3) * Fraction(3, 7)]
    got = resize(torch.tensor([[[float(v) for v in line]]], dtype=torch.float64), (3,))
    assert got[0, 0, :2].tolist() == pytest.approx([float(v) for v in exact], rel=1e-15)


@given(seed=SEEDS, a=st.floats(-3, 3))
def test_resizing_is_linear_composes_and_is_undone_after_enlarging(seed, a):
    x, y = random_images(2, 2, 12, 6, seed=seed), random_images(2, 2, 12, 6, seed=seed + 1)
    assert torch.allclose(resize(a * x + y, (5, 4)), a * resize(x, (5, 4)) + resize(y, (5, 4)), rtol=0, atol=1e-14)
    assert torch.allclose(resize(resize(x, (6, 6)), (2, 3)), resize(x, (2, 3)), rtol=0, atol=1e-15)
    assert torch.allclose(resize(resize(x, (24, 18)), (12, 6)), x, rtol=0, atol=1e-15)
    assert torch.equal(resize(x, (12, 6)), x)


def test_gradients_flow_through_resize():
    images = random_images(1, 1, 4, 4).requires_grad_()
    resize(images, (2, 2)).sum().backward()
    assert torch.allclose(images.grad, torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("transform", [center, whiten, greyscale, lambda images: resize(images, (2,))])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.ones((2, 1, 4)), TypeError, "images: .*got ndarray"),
        (torch.ones(2, 1, 4, dtype=torch.uint8), TypeError, "images: .*got torch.uint8"),
        (torch.ones(2, 4), ValueError, r"images: .*got shape \(2, 4\)"),
        (torch.ones(0, 1, 4), ValueError, r"images: .*empty.*\(0, 1, 4\)"),
        (torch.full((2, 1, 4), float("nan")), ValueError, "images: .*NaN"),
        (torch.full((2, 1, 4), -float("inf")), ValueError, "images: .*infinity"),
    ],
)
def test_transforms_refuse_what_are_not_images(transform, images, error, message):
    with pytest.raises(error, match=message):
        transform(images)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("grid", "error"),
    [((2,), ValueError), ((2, 0), ValueError), ((), ValueError), ("4", TypeError), ((2, 2.0), TypeError), ((2, True), TypeError)],
)
def test_bad_grids_are_refused_by_name(grid, error):
    with pytest.raises(error, match="grid: expected"):
        resize(random_images(1, 1, 4, 4), grid)
    with pytest.raises(error, match="grid: expected"):
        load("photos", grid=grid, samples=3, generator=seeded())


@pytest.mark.usefixtures("unchecked")
def test_greyscale_refuses_two_channels():
    with pytest.raises(ValueError, match=r"1 or 3 channels.*got 2"):
        greyscale(random_images(2, 2, 4, 4))


# Photographs


def test_photos_are_labelled_patches_and_need_no_network(monkeypatch, dtype):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before, environment = (torch.get_rng_state(), str(np.random.get_state())), dict(os.environ)  # noqa: NPY002 (the global state is what is watched)
    photos = load("photos", grid=(4, 5), samples=402, dtype=dtype, generator=seeded())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002
    assert environment == dict(os.environ)
    assert photos.images.shape == (402, 3, 4, 5)
    assert photos.images.dtype == dtype
    assert 0 <= photos.images.min() < photos.images.max() <= 1
    assert photos.classes == ("astronaut", "cat", "coffee", "motorcycle", "rocket")
    assert photos.labels.bincount().tolist() == [81, 81, 80, 80, 80]
    assert photos.labels[:7].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert len(photos) == 402


def test_photos_depend_on_the_generator_only():
    first, again, other = (load("photos", grid=(6, 4), samples=50, generator=seeded(s)).images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(torch.unique(first.flatten(1), dim=0)) >= 49  # black corners may coincide, positions do not
    defaults = load(generator=seeded())
    assert defaults.images.shape == (1000, 3, 32, 32)


def test_labels_name_the_photograph_a_patch_comes_from():
    photos = load("photos", grid=(20, 20), samples=10, generator=seeded())
    for image, label in zip(photos.images, photos.labels, strict=True):
        whole = files.photo_regions("train")[int(label)].double() / 255
        windows = torch.nn.functional.avg_pool2d(whole[None], 4, stride=1)[0]  # every possible zoomed pixel
        errors = sum(
            (windows[:, 4 * i : 4 * i + windows.shape[1] - 76, : windows.shape[2] - 76] - image[:, i, 0][:, None, None]) ** 2
            for i in range(20)
        )
        assert errors.sum(0).min() < 1e-20


def test_photographs_are_those_of_scikit_image():
    from skimage import data

    for region, name in zip(files.photo_regions("train"), ("astronaut", "chelsea", "coffee", None, "rocket"), strict=True):
        if name:
            whole = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)
            assert torch.equal(region, whole[..., : region.shape[2]])
            assert region.shape[2] == 2 * whole.shape[2] // 3


def test_training_and_test_patches_come_from_disjoint_parts():
    for train, test, name in zip(files.photo_regions("train"), files.photo_regions("test"), files.PHOTOS, strict=True):
        assert test.shape[2] >= 150, name
        assert train.shape[1] == test.shape[1]
        assert train.untyped_storage().nbytes() == train.shape[0] * train.shape[1] * (train.shape[2] + test.shape[2])
    test = load("photos", split="test", grid=(4, 5), samples=50, generator=seeded()).images
    assert not torch.equal(test, load("photos", grid=(4, 5), samples=50, generator=seeded()).images)


def test_the_power_of_photos_falls_with_frequency_as_in_nature():
    images = load("photos", grid=(16, 16), samples=500, greyscale=True, generator=seeded()).images
    assert images.shape == (500, 1, 16, 16)
    power = torch.fft.fft2(center(images)).abs().square().mean((0, 1))
    axes = (power[1:8, 0] + power[0, 1:8]) / 2
    assert (axes[1:] < axes[:-1]).all()
    slope = np.polyfit(np.log(np.arange(1, 8)), np.log(axes.numpy()), 1)[0]
    assert -3 < slope < -1


def test_photos_can_be_whitened_at_the_default_of_the_main_claim(dtype):
    images = load("photos", grid=(4, 5), samples=400, dtype=dtype, generator=seeded()).images
    assert moment_error(whiten(images)) < TOLERANCE[dtype]
    assert moment_error(whiten(center(images))) < TOLERANCE[dtype]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generator": None}, TypeError, "generator: .*manual_seed"),
        ({"generator": 3}, TypeError, "generator: .*got 3"),
        ({"samples": 0}, ValueError, "samples: .*positive.*got 0"),
        ({"samples": 2.5}, TypeError, "samples: .*got 2.5"),
        ({"samples": True}, TypeError, "samples: .*got True"),
        ({"samples": 10**6}, ValueError, "samples: .*different patches.*take fewer"),
        ({"grid": (301, 4)}, ValueError, r"grid: .*room for patches of \(300, 300\)"),
        ({"grid": (4, 152), "split": "test"}, ValueError, r"grid: the test part .*\(300, 151\)"),
        ({"grid": (4,)}, ValueError, "grid: expected 2 positive"),
        ({"split": "val"}, ValueError, "split: .*'val'"),
        ({"dtype": torch.int64}, TypeError, "dtype: .*int64"),
        ({"root": "/data"}, ValueError, "root: .*part of scikit-image"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        load("photos", **{"grid": (4, 5), "samples": 20, "generator": seeded(), **arguments})


def test_the_largest_patches_and_a_stripped_scikit_image(monkeypatch, tmp_path):
    assert load("photos", grid=(300, 300), samples=5, generator=seeded()).images.shape == (5, 3, 300, 300)
    monkeypatch.setattr(files, "files", lambda name: tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"astronaut.png: no such file.*reinstall"):
        load("photos", samples=5, generator=seeded())


# Subsets


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), data=st.data(), seed=SEEDS)
def test_subsets_are_balanced_in_every_prefix_and_draw_nothing_twice(labels, data, seed):
    y = torch.tensor(labels)
    samples = data.draw(st.integers(1, len(labels)))
    x = torch.arange(len(y), dtype=torch.float64)[:, None, None]
    subset = load((x, y), samples=samples, generator=seeded(seed))
    chosen = subset.images.flatten().long()
    assert len(chosen) == len(set(chosen.tolist())) == samples
    assert torch.equal(subset.labels, y[chosen])
    available = y.bincount(minlength=6)
    for n in range(1, samples + 1):
        counts = subset.labels[:n].bincount(minlength=6)
        unsaturated = counts[counts < available]
        assert not len(unsaturated) or counts.max() - unsaturated.min() <= 1


def test_subsets_depend_on_the_generator_only():
    pair, state = (random_images(40, 1, 2), torch.arange(40) % 3), torch.get_rng_state()
    first, again, other = (load(pair, samples=9, generator=seeded(s)).images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_subsets_are_uniform_within_a_class():
    x, y = torch.arange(8.0)[:, None, None], torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    generator, hits = seeded(), torch.zeros(8)
    for _ in range(600):
        hits[load((x, y), samples=4, generator=generator).images.flatten().long()] += 1
    assert (hits[:6] / 600 - 2 / 6).abs().max() < 0.08
    assert hits[6:].tolist() == [600, 600]


# Arrays and datasets


def test_arrays_keep_their_numbers_and_bytes_become_unit_numbers(dtype):
    y = np.array([2, 0, 1], dtype=np.uint8)
    real = np.linspace(-3, 3, 3 * 2 * 4).reshape(3, 2, 4)
    loaded = load((real, y), dtype=dtype)
    assert isinstance(loaded, ImageSet)
    assert torch.allclose(loaded.images, torch.from_numpy(real).to(dtype))
    assert loaded.labels.tolist() == [2, 0, 1]
    assert loaded.classes == ("0", "1", "2")
    assert loaded.one_hot().tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert loaded.one_hot().dtype == dtype
    for same in (real.astype(">f8"), torch.from_numpy(real), torch.from_numpy(real).requires_grad_(), real[..., ::-1][..., ::-1]):
        assert torch.equal(load((same, torch.from_numpy(y)), dtype=dtype).images, loaded.images)
    assert not load((torch.from_numpy(real).requires_grad_(), y)).images.requires_grad
    bytes_ = np.arange(3 * 1 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2) * 23
    for same in (bytes_, torch.from_numpy(bytes_)):
        assert torch.equal(load((same, y), dtype=dtype).images, torch.from_numpy(bytes_).to(dtype) / 255)
    with pytest.raises(AttributeError):
        loaded.labels = torch.zeros(3)


@pytest.mark.parametrize("grid", [(7,), (6, 5), (4, 3, 5)])
def test_arrays_of_every_dimension_are_resized_and_made_grey(grid, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 500)  # several pieces, and the last one short
    x, y = random_images(50, 3, *grid), torch.zeros(50, dtype=torch.int64)
    new = tuple(n - 1 for n in grid)
    loaded = load((x, y), grid=new, greyscale=True).images
    assert torch.allclose(loaded, resize(greyscale(x), new), rtol=0, atol=1e-15)
    assert torch.equal(x, random_images(50, 3, *grid))


class Pictures(Dataset):
    classes = ("cat", "dog", "bird")

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return Image.new("RGB", (4, 3), (51 * (i % 6), 0, 255)), i % 2


class Broken(Pictures):
    def __init__(self, item):
        self.item = item

    def __getitem__(self, i):
        return self.item


def test_datasets_of_tensors_and_of_pictures():
    x, y = random_images(20, 2, 5), torch.arange(20) % 4
    loaded = load(TensorDataset(x, y))
    assert torch.equal(loaded.images, x)
    assert torch.equal(loaded.labels, y)
    assert loaded.classes == ("0", "1", "2", "3")
    pictures = load(Pictures(), samples=4, generator=seeded())
    assert pictures.images.shape == (4, 3, 3, 4)
    assert pictures.labels.tolist() == [0, 1, 0, 1]
    assert pictures.classes == ("cat", "dog", "bird")
    assert (pictures.images[:, 2] == 1).all()
    whole = load(Pictures(), grid=(1, 1)).images[:, 0, 0, 0]
    assert torch.allclose(whole, torch.arange(6, dtype=torch.float64) / 5)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


X, Y = np.zeros((4, 1, 2, 2)), np.arange(4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        (3, {}, TypeError, "source: .*got int"),
        ((X, Y, X), {}, TypeError, "source: .*got tuple"),
        (Stream(), {}, ValueError, "source: .*Stream; iterable"),
        (TensorDataset(torch.ones(0, 1, 2), torch.ones(0)), {}, ValueError, "source: .*non-empty"),
        ((X.tolist(), Y), {}, TypeError, "x: .*got list"),
        ((X, Y.tolist()), {}, TypeError, "y: .*got list"),
        ((X.astype(int), Y), {}, TypeError, "x: .*got int64; divide by the largest"),
        ((X.astype(complex), Y), {}, TypeError, "x: .*got complex128"),
        ((X.astype(object), Y), {}, TypeError, "x: .*got object"),
        ((X > 0, Y), {}, TypeError, "x: .*got bool"),
        ((torch.zeros(4, 1, 2, dtype=torch.int16), Y), {}, TypeError, "x: .*got torch.int16"),
        ((X[:, 0, 0], Y), {}, ValueError, r"x: .*\(4, 2\).*x\[:, None\]"),
        ((X[:0], Y[:0]), {}, ValueError, r"x: .*empty shape \(0, 1, 2, 2\)"),
        ((X, Y[:3]), {}, ValueError, r"y: .*\(4,\), got \(3,\)"),
        ((X, np.eye(4)), {}, ValueError, r"y: .*got \(4, 4\).*argmax"),
        ((X, Y + 0.0), {}, TypeError, "y: expected integer labels, got float64"),
        ((X, torch.arange(4) > 1), {}, TypeError, "y: expected integer labels, got torch.bool"),
        ((X, Y - 1), {}, ValueError, "y: .*got -1 to 2; number the classes"),
        ((X, Y + 10**6), {}, ValueError, "y: .*got 1000000 to 1000003"),
        ((X, Y.astype(np.uint64) + np.uint64(2**64 - 4)), {}, ValueError, "y: .*got 18446744073709551612"),
        ((X + np.nan, Y), {}, ValueError, "x: .*NaN"),
        ((X + 1e300, Y), {"dtype": torch.float32}, ValueError, "x: .*torch.float32, got NaN or infinity"),
        ((X, Y), {"samples": 5, "generator": seeded()}, ValueError, "samples: expected at most the 4 images there are, got 5"),
        ((X, Y), {"samples": 3}, TypeError, "generator: .*got None"),
        ((X, Y), {"split": "test"}, ValueError, "split: arrays and datasets have no parts"),
        ((X, Y), {"root": "here"}, ValueError, "root: only 'cifar10' and 'fashion-mnist'"),
        ((X, Y), {"grid": (2,)}, ValueError, "grid: expected 2 positive integers"),
        ((np.zeros((4, 2, 3)), Y), {"greyscale": True}, ValueError, "images: greyscale needs"),
        (Broken(5), {}, TypeError, "item 0: expected a pair .*got int"),
        (Broken((torch.ones(1, 2), "cat")), {}, TypeError, "item 0: expected an integer label, got 'cat'"),
        (Broken((torch.ones(2), 0)), {}, ValueError, r"item 0: expected an image .*got shape \(2,\)"),
        (Broken((np.zeros((1, 2), dtype=np.int32), 0)), {}, TypeError, "item 0: .*got int32"),
        (Broken((Image.new("I", (2, 2)), 0)), {}, ValueError, "item 0: expected an 8-bit image, got Pillow mode I"),
        (Broken((torch.full((1, 2), torch.nan), 1)), {}, ValueError, "item 0: .*NaN"),
    ],
)
def test_bad_arrays_and_datasets_are_refused_by_name(source, arguments, error, message):
    with pytest.raises(error, match=message):
        load(source, **arguments)


# CIFAR-10


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Files of the true format and size; nearly all of each is a hole, that is label 0 and black."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for b, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        with (folder / name).open("wb") as file:
            file.truncate(BATCH)
            for i in range(10 * (b < 5), 30):
                file.seek(i * files.CIFAR10_RECORD)
                file.write(bytes([i % 10]) + bytes([10 * b + i]) * 1024 + bytes(range(256)) * 4 + bytes([255]) * 1024)
    return tmp_path


def test_cifar10_records_are_planes_of_red_green_blue(cifar10, dtype):
    test = load("cifar10", root=cifar10, split="test", samples=60, dtype=dtype, generator=seeded())
    assert test.images.shape == (60, 3, 32, 32)
    assert test.labels.bincount(minlength=10)[1:].tolist() == [3] * 9
    assert test.classes[3] == "cat"
    marked = test.images[test.labels == 7]
    assert sorted((marked[:, 0] * 255).round().flatten(1)[:, 0].int().tolist()) == [57, 67, 77]
    assert torch.allclose(marked[:, 0], marked[:, :1, 0, 0][..., None])
    assert torch.equal((marked[0, 1].flatten() * 255).round().int(), torch.arange(1024, dtype=torch.int32) % 256)
    assert (marked[:, 2] == 1).all()


def test_cifar10_training_batches_follow_each_other(cifar10, monkeypatch):
    monkeypatch.setenv("LINCONV_DATA", str(cifar10))
    train = load("cifar10", samples=500, grid=(1, 1), dtype=torch.float32, generator=seeded())
    marks = (train.images[train.labels == 9, 0, 0, 0] * 255).round().int().sort().values
    assert marks.tolist() == sorted(10 * b + i for b in range(5) for i in (19, 29))
    # The whole set, in the order of the files
    source = files.cifar10(cifar10, "train")
    assert len(source.labels) == 50_000
    assert [int(piece[0, 0, 0, 0]) for _, piece in source.read([10_015, 40_010])] == [25]
    assert [int(v) for _, piece in source.read([10_015, 40_010]) for v in piece[:, 0, 0, 0]] == [25, 50]


def test_cifar10_errors_name_the_folder_or_file_and_the_remedy(cifar10, tmp_path, monkeypatch):
    monkeypatch.delenv("LINCONV_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"cifar-10-batches-bin: no folder to look in; pass root, or set LINCONV_DATA.*cifar-10-binary.tar.gz"
    ):
        load("cifar10")
    with pytest.raises(FileNotFoundError, match=r"nowhere/cifar-10-batches-bin: no such folder; extract the binary version"):
        load("cifar10", root=tmp_path / "nowhere")
    batch = cifar10 / "cifar-10-batches-bin" / "test_batch.bin"
    with batch.open("r+b") as file:
        file.write(b"\x0a")
    with pytest.raises(ValueError, match=r"test_batch.bin: expected labels 0 to 9, got 10: a foreign file"):
        load("cifar10", root=cifar10, split="test")
    os.truncate(batch, BATCH - files.CIFAR10_RECORD)
    with pytest.raises(ValueError, match=rf"test_batch.bin: expected {BATCH} bytes, got {BATCH - files.CIFAR10_RECORD}: truncated"):
        load("cifar10", root=cifar10, split="test")
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch.bin: no such file"):
        load("cifar10", root=cifar10, split="test")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["BOMB"])),))


def test_nothing_is_ever_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileNotFoundError, match=r"pickled Python version, is never read.*binary version"):
        load("cifar10", root=tmp_path)
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: expected image files.*'cifar10'"):
        load(folder)
    (folder / "bomb.png").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"bomb.png: expected an image.*foreign"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


# Fashion-MNIST


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, *, compressed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(data) if compressed else data)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_from_idx_files(tmp_path, compressed, place, dtype):
    images = np.arange(30 * 28 * 28, dtype=np.uint32).reshape(30, 28, 28) % 251
    write_idx(tmp_path / place, "train", images, np.arange(30) % 10, compressed=compressed)
    write_idx(tmp_path / place, "t10k", images[:5], np.arange(5), compressed=compressed)
    train = load("fashion-mnist", root=str(tmp_path), dtype=dtype)
    assert torch.equal(train.images, torch.from_numpy(images.astype(np.uint8))[:, None].to(dtype) / 255)
    assert train.labels.tolist() == list(range(10)) * 3
    assert train.classes[9] == "Ankle boot"
    test = load("fashion-mnist", root=tmp_path, split="test", greyscale=True, grid=(7, 7), samples=4, generator=seeded())
    assert test.images.shape == (4, 1, 7, 7)
    assert test.labels.tolist() == [0, 1, 2, 3]


def test_fashion_mnist_errors_name_the_file_and_the_remedy(tmp_path):
    folder, images, labels = tmp_path / "fashion-mnist", np.random.default_rng(0).integers(0, 256, (6, 28, 28)), np.arange(6)
    first, second = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    with pytest.raises(FileNotFoundError, match="fashion-mnist: no such folder; put the four"):
        load("fashion-mnist", root=tmp_path)
    write_idx(folder, "train", images, labels)
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte.gz: no such file; put the four"):
        load("fashion-mnist", root=tmp_path, split="test")

    def refuses(path: Path, content: bytes, message: str) -> None:
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}: {message}.*zalandoresearch"):
            load("fashion-mnist", root=tmp_path)
        path.write_bytes(whole)

    packed, plain = first.read_bytes(), gzip.decompress(first.read_bytes())
    refuses(first, packed[:-20], "expected a complete gzip file")
    refuses(first, packed[:60] + bytes(20) + packed[80:], "expected a complete gzip file, got: CRC")
    refuses(first, b"<html>not found</html>", "expected a complete gzip file")
    refuses(first, b"", "expected an IDX header .*got ''")
    refuses(first, gzip.compress(plain[:-1]), "expected 4704 bytes after the header, got 4703: truncated")
    refuses(first, gzip.compress(plain + b"x"), "expected 4704 bytes after the header, got more")
    refuses(first, gzip.compress(plain[:10]), "expected an IDX header")
    refuses(first, second.read_bytes(), "expected an IDX header for bytes in 3 dimensions, got '00000801")
    refuses(
        first, gzip.compress(struct.pack(">IIII", 0x0803, 2**31, 2**31, 2**31) + plain), r"expected \d+ bytes after the header, got 4720"
    )
    refuses(first, gzip.compress(struct.pack(">IIII", 0x0803, 0, 28, 28)), "expected an IDX header")
    refuses(second, gzip.compress(struct.pack(">II", 0x0801, 5) + bytes(5)), "expected 6 labels, one an image, got 5")
    refuses(second, gzip.compress(struct.pack(">II", 0x0801, 6) + bytes([0, 1, 2, 3, 4, 10])), "expected labels 0 to 9, got 10")
    assert len(load("fashion-mnist", root=tmp_path)) == 6
    lying = folder / "train-images-idx3-ubyte"
    lying.write_bytes(struct.pack(">IIII", 0x0803, 2**31, 2**31, 2**31) + bytes(9))
    with pytest.raises(ValueError, match=r"ubyte: expected \d+ bytes after the header, got 9"):
        load("fashion-mnist", root=tmp_path)


# Folders of images


def save(path: Path, colour: tuple[int, ...] = (255, 0, 51), size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour[0] if len(colour) == 1 else colour).save(path, **options)


def test_folders_with_a_subfolder_a_class_in_every_format(tmp_path):
    for i, suffix in enumerate(("png", "PNG", "bmp", "tif", "tiff")):
        save(tmp_path / "b" / f"{i}.{suffix}")
    save(tmp_path / "b" / "deeper" / "5.webp", lossless=True)
    save(tmp_path / "a" / "0.JPEG", (255, 255, 255), quality=100)
    save(tmp_path / "a" / "1.jpg", (255,), mode="L", quality=100)
    for foreign in ("a/boxes.txt", "a/._0.JPEG", "labels.csv", ".hidden/0.png"):
        (tmp_path / foreign).parent.mkdir(exist_ok=True)
        (tmp_path / foreign).write_text("no image")
    loaded = load(tmp_path)
    assert loaded.classes == ("a", "b")
    assert loaded.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert loaded.images.shape == (8, 3, 4, 6)
    assert (loaded.images[:2] == 1).all()
    assert torch.allclose(loaded.images[2:], torch.tensor([1.0, 0.0, 0.2], dtype=torch.float64)[:, None, None].expand(6, 3, 4, 6))
    assert len(load(str(tmp_path), samples=3, generator=seeded())) == 3


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folders_with_parts_share_the_classes_of_the_training_part(tmp_path, held_out):
    for name in ("x", "y", "z"):
        save(tmp_path / "train" / name / "0.png")
    save(tmp_path / held_out / "z" / "1.png", (0, 0, 0))
    assert load(tmp_path).labels.tolist() == [0, 1, 2]
    test = load(tmp_path, split="test")
    assert test.labels.tolist() == [2]
    assert test.classes == ("x", "y", "z")
    assert test.images.max() == 0
    save(tmp_path / held_out / "new" / "1.png")
    with pytest.raises(ValueError, match=f"{held_out}: expected the test part, with subfolders named"):
        load(tmp_path, split="test")


def test_flat_folders_are_one_class_and_mixed_sizes_need_a_grid(tmp_path):
    folder = tmp_path / "kodak"
    save(folder / "1.png", (102, 102, 102))
    save(folder / "2.png", (51, 51, 51), (4, 6))
    with pytest.raises(ValueError, match=r"2.png: expected shape \(3, 4, 6\) .*got \(3, 6, 4\); pass grid"):
        load(folder)
    loaded = load(folder, grid=(3, 5), greyscale=True)
    assert loaded.classes == ("kodak",)
    assert loaded.labels.tolist() == [0, 0]
    assert loaded.images.shape == (2, 1, 3, 5)
    assert loaded.images[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2])
    assert loaded.one_hot().tolist() == [[1], [1]]
    with pytest.raises(ValueError, match=r"split: .*has no parts"):
        load(folder, split="test")


def test_a_class_may_be_called_train_and_parts_may_be_flat(tmp_path):
    save(tmp_path / "vehicles" / "train" / "0.png")
    save(tmp_path / "vehicles" / "car" / "0.png")
    assert load(tmp_path / "vehicles").classes == ("car", "train")
    save(tmp_path / "flat" / "train" / "0.png")
    save(tmp_path / "flat" / "val" / "0.png", (0, 0, 0))
    assert load(tmp_path / "flat", split="test").images.max() == 0
    assert load(tmp_path / "flat").classes == ("flat",)
    save(tmp_path / "alone" / "train" / "car" / "0.png")
    assert load(tmp_path / "alone").classes == ("car",)
    with pytest.raises(ValueError, match="alone/val: expected the test part"):
        load(tmp_path / "alone", split="test")
    save(tmp_path / "alone" / "val" / "0.png")
    with pytest.raises(ValueError, match="alone/val: expected the test part"):
        load(tmp_path / "alone", split="test")


def test_palettes_and_alpha_become_colours(tmp_path):
    save(tmp_path / "rgba.png", (255, 0, 51, 128), mode="RGBA")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 51])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 128]))
    Image.new("1", (6, 4), 1).save(tmp_path / "bilevel.png")
    images = load(tmp_path).images
    colours = torch.tensor([[1, 1, 1], [1, 0, 0.2], [1, 0, 0.2]], dtype=torch.float64)
    assert torch.allclose(images, colours[:, :, None, None].expand(3, 3, 4, 6))


def test_folder_errors_name_the_file_and_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder of images; .*'cifar10'"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="cifar-10: no such folder of images"):
        load("cifar-10")
    with pytest.raises(ValueError, match=r"expected image files \(.png, .*found none"):
        load(tmp_path)
    save(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"b: expected image files .*fill or remove"):
        load(tmp_path)
    (tmp_path / "b").rmdir()
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match="found both; move the images"):
        load(tmp_path)
    (tmp_path / "stray.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0.png: no such folder of images"):
        load(tmp_path / "a" / "0.png")
    save(tmp_path / "a" / "1.png", (40000,), mode="I;16")
    with pytest.raises(ValueError, match=r"1.png: expected an 8-bit image, got Pillow mode I"):
        load(tmp_path)
    (tmp_path / "a" / "1.png").unlink()
    # Decompression bombs: Pillow warns above the limit and raises above twice the limit; both must be one clear error.
    for limit in (20, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"0.png: expected at most {limit} pixels.*scale the image down"):
            load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_truncated_and_foreign_images_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:30], b"GIF89 no, text", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"picture.{suffix}: expected an image.*replace or remove"):
            load(tmp_path)


# Real sets


@pytest.fixture
def real() -> Path:
    if "LINCONV_DATA" not in os.environ:
        pytest.skip("LINCONV_DATA is unset: the real image sets are not here")
    return Path(os.environ["LINCONV_DATA"])


def need(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not under LINCONV_DATA")
    return folder


@pytest.mark.parametrize(("split", "count", "mean"), [("train", 5000, (0.4914, 0.4822, 0.4465)), ("test", 1000, (0.4942, 0.4851, 0.4504))])
def test_real_cifar10(real, split, count, mean):
    need(real / "cifar-10-batches-bin")
    loaded = load("cifar10", split=split, grid=(2, 2), dtype=torch.float32)
    assert loaded.images.shape == (10 * count, 3, 2, 2)
    assert loaded.labels.bincount().tolist() == [count] * 10
    # The channel means that every CIFAR-10 recipe quotes
    assert loaded.images.mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=5e-5)
    subset = load("cifar10", split=split, grid=(4, 5), samples=300, generator=seeded())
    assert subset.labels.bincount().tolist() == [30] * 10
    assert moment_error(whiten(subset.images)) < 1e-13


def test_real_cifar10_bytes_are_those_of_the_file(real):
    folder = need(real / "cifar-10-batches-bin")
    record = (folder / "test_batch.bin").read_bytes()[: files.CIFAR10_RECORD]
    _, piece = next(files.cifar10(real, "test").read([0]))
    assert piece.numpy().tobytes() == record[1:]


@pytest.mark.parametrize(("split", "count", "mean"), [("train", 6000, 0.2860), ("test", 1000, 0.2868)])
def test_real_fashion_mnist(real, split, count, mean):
    need(real / "fashion-mnist")
    loaded = load("fashion-mnist", split=split, grid=(7, 7), dtype=torch.float32)
    assert loaded.images.shape == (10 * count, 1, 7, 7)
    assert loaded.labels.bincount().tolist() == [count] * 10
    assert float(loaded.images.mean()) == pytest.approx(mean, abs=1e-4)


def test_real_image_folders(real):
    tiny = need(real / "tiny-imagenet-20")
    sources = {split: load(tiny, split=split, samples=200, generator=seeded()) for split in ("train", "test")}
    for split, loaded in sources.items():
        assert loaded.images.shape == (200, 3, 64, 64), split
        assert loaded.labels.bincount().tolist() == [10] * 20
    assert sources["train"].classes == sources["test"].classes
    assert files.image_folder(tiny, "train").labels.bincount().tolist() == [500] * 20
    assert files.image_folder(tiny, "test").labels.bincount().tolist() == [50] * 20


def test_real_kodak(real):
    kodak = need(real / "kodak")
    with pytest.raises(ValueError, match=r"pass grid=\(H, W\)"):
        load(kodak)
    loaded = load(kodak, grid=(8, 8), greyscale=True)
    assert loaded.images.shape == (24, 1, 8, 8)
    digests = {hashlib.sha256(image.numpy().tobytes()).digest() for image in loaded.images}
    assert len(digests) == 24


def test_the_modules_keep_to_their_promise_not_to_unpickle():
    for module in (files, loading):
        text = Path(str(module.__file__)).read_text()
        assert not any(word in text for word in ("import pickle", "allow_pickle=True", "torch.load", "np.load"))
