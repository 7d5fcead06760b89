"""`load`: one door to every image set."""

import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from linconv.images import transforms
from linconv.images.files import Source, chunked, cifar10, fashion_mnist, image_folder, photos, pixels
from linconv.validation import validate_sizes

MAX_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: `images` (N, C, *grid), real; `labels` (N,), int64, in 0…K−1; `classes`, the K names."""

    images: Float[Tensor, "N C *grid"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def one_hot(self) -> Float[Tensor, "N K"]:
        """The targets y_nk = 1 where image n has label k, else 0, in the dtype of the images."""
        return torch.nn.functional.one_hot(self.labels, len(self.classes)).to(self.images.dtype)


def load(
    source: str | os.PathLike[str] | tuple[Any, Any] | Dataset[Any] = "photos",
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    samples: int | None = None,
    grid: Sequence[int] | None = None,
    greyscale: bool = False,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> ImageSet:
    """Labelled images from a named set, a folder, arrays or a dataset.

    `source`:

    * `"photos"`: patches of colour photographs inside scikit-image's wheel, the label says which; `grid` defaults to (32, 32), `samples`
      to 1000.  A patch is four times the grid where the photographs have room, and area-averaged: their finest scale is blurred by lens
      and codec.  No patch occurs twice; training patches lie in the left two thirds of each photograph, test patches in the right third.
    * `"cifar10"` (binary version) and `"fashion-mnist"` (IDX, compressed or not), under `root`, or else under the folder `LINCONV_DATA`.
    * a folder with one subfolder a class, or `train/` and `val/` (or `test/`) of that form, or images only (one class); alpha is dropped.
    * a pair `(x, y)` of NumPy arrays or tensors, (N, C, *grid) and (N,), or a map-style torch `Dataset` of pairs (image, label).

    Bytes become numbers in [0, 1]; real arrays keep their values.  `samples` draws a class-balanced subset with `generator`, the
    classes in turn, so that a prefix is balanced too; other images are not decoded.  `grid` resizes by area averaging, `greyscale`
    takes the luma, `dtype` is that of the images.

    Raises FileNotFoundError, ValueError or TypeError, naming the file or argument and the remedy.

    >>> patches = load("photos", grid=(4, 5), samples=10, generator=torch.Generator().manual_seed(0))
    >>> patches.images.shape, patches.one_hot().shape, patches.classes[0]
    (torch.Size([10, 3, 4, 5]), torch.Size([10, 5]), 'astronaut')
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    size = None if grid is None else validate_sizes("grid", grid)
    if isinstance(source, str) and source == "photos":
        if root is not None:
            raise ValueError(f"root: the photographs are part of scikit-image, got root={root!r}; leave it out")
        size = validate_sizes("grid", (32, 32) if size is None else size, dims=2)
        opened = photos(size, _check_samples(1000 if samples is None else samples), split, _check_generator(generator))
        chosen = torch.arange(len(opened.labels))
    else:
        opened = _open(source, root, split)
        chosen = torch.arange(len(opened.labels)) if samples is None else _balanced_choice(opened.labels, samples, generator)
    images = _assemble(opened.read(chosen.tolist()), len(chosen), size, greyscale, dtype)
    return ImageSet(images, opened.labels[chosen].to(images.device), opened.classes)


def _check_samples(samples: object) -> int:
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(f"samples: expected a positive integer or None, got {samples!r}")
    if samples < 1:
        raise ValueError(f"samples: expected a positive integer or None, got {samples}")
    return samples


def _check_generator(generator: object) -> torch.Generator:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: a random choice needs a torch.Generator, got {generator!r}; pass torch.Generator().manual_seed(0)")
    return generator


def _open(source: object, root: str | os.PathLike[str] | None, split: str) -> Source:
    if isinstance(source, str) and source in ("cifar10", "fashion-mnist"):
        return cifar10(root, split) if source == "cifar10" else fashion_mnist(root, split)
    if root is not None:
        raise ValueError(f"root: only 'cifar10' and 'fashion-mnist' are looked up under a root, got root={root!r}; leave it out")
    if isinstance(source, str | os.PathLike):
        return image_folder(Path(source), split)
    if split != "train":
        raise ValueError(f"split: arrays and datasets have no parts, got {split!r}; pass the test arrays themselves")
    if isinstance(source, Dataset):
        return _dataset(source)
    if isinstance(source, tuple) and len(source) == 2:
        return _arrays(*source)
    raise TypeError(
        "source: expected 'photos', 'cifar10', 'fashion-mnist', a folder, a pair (x, y) of arrays or a map-style torch Dataset, "
        f"got {type(source).__name__}"
    )


def _balanced_choice(labels: Int64[Tensor, " N"], samples: object, generator: object) -> Int64[Tensor, " n"]:
    """Indices of a class-balanced random subset, the classes in turn; a class that runs out is made up for by the others."""
    count, source = _check_samples(samples), _check_generator(generator)
    if count > len(labels):
        raise ValueError(f"samples: expected at most the {len(labels)} images there are, got {count}; take fewer, or a larger set")
    order = torch.randperm(len(labels), generator=source, device=source.device).cpu()
    shuffled = labels[order]
    sizes = torch.bincount(shuffled)
    rank = torch.empty_like(order)
    rank[shuffled.argsort(stable=True)] = torch.cat([torch.arange(int(size)) for size in sizes])
    return order[(rank * len(sizes) + shuffled).argsort()[:count]]


def _assemble(
    pieces: Iterator[tuple[str, Tensor]], n: int, grid: tuple[int, ...] | None, grey: bool, dtype: torch.dtype
) -> Float[Tensor, "N C *grid"]:
    """The pieces as one real tensor, each made real, grey and of the wanted size as it arrives."""
    images, filled = torch.empty(0), 0
    for name, piece in pieces:
        is_bytes = piece.dtype == torch.uint8
        real = piece.to(dtype).div_(255) if is_bytes else piece.to(dtype)
        if not is_bytes and not torch.isfinite(real).all():
            raise ValueError(f"{name}: expected finite numbers in {dtype}, got NaN or infinity; clean the data first")
        real = transforms.greyscale(real) if grey else real
        real = real if grid is None else transforms.resize(real, grid)
        if filled == 0:
            images = real.new_empty((n, *real.shape[1:]))
        if real.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"{name}: expected shape {tuple(images.shape[1:])} as the images before it, got {tuple(real.shape[1:])}; "
                "pass grid=(H, W) to bring sizes together"
            )
        images[filled : filled + len(real)] = real
        filled += len(real)
    return images


def _real_or_bytes(name: str, x: object) -> Tensor | NDArray[Any]:
    """Return `x` if its numbers have an agreed meaning: bytes, 0 to 255, or real numbers, as they are; else raise."""
    if not isinstance(x, np.ndarray | Tensor):
        raise TypeError(f"{name}: expected a NumPy array or torch tensor, got {type(x).__name__}")
    real = x.dtype.kind == "f" if isinstance(x, np.ndarray) else x.is_floating_point()
    if not real and x.dtype not in (torch.uint8, np.uint8):
        raise TypeError(
            f"{name}: expected uint8 (0 to 255) or real numbers, got {x.dtype}; divide by the largest value, or convert to uint8"
        )
    if 0 in x.shape:
        raise ValueError(f"{name}: expected images, got the empty shape {tuple(x.shape)}")
    return x


def _as_tensor(x: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach()
    # Through native float64: torch knows neither other byte orders nor extended precision.
    return torch.from_numpy(np.array(x, dtype=np.uint8 if x.dtype == np.uint8 else np.float64))


def _check_labels(name: str, values: list[int]) -> Int64[Tensor, " N"]:
    low, high = min(values), max(values)
    if low < 0 or high >= MAX_CLASSES:
        remedy = "number the classes with numpy.unique(..., return_inverse=True)"
        raise ValueError(f"{name}: expected class numbers 0, 1, 2, … below {MAX_CLASSES}, got {low} to {high}; {remedy}")
    return torch.tensor(values)


def _arrays(x: object, y: object) -> Source:
    images = _real_or_bytes("x", x)
    if images.ndim < 3:
        raise ValueError(f"x: expected (N, C, *grid), got shape {tuple(images.shape)}; a channel axis is added by x[:, None]")
    if not isinstance(y, np.ndarray | Tensor):
        raise TypeError(f"y: expected a NumPy array or torch tensor, got {type(y).__name__}")
    if tuple(y.shape) != (len(images),):
        raise ValueError(
            f"y: expected one label an image, shape ({len(images)},), got {tuple(y.shape)}; class scores become labels by argmax(1)"
        )
    whole = y.dtype.kind in "iu" if isinstance(y, np.ndarray) else not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole:
        raise TypeError(f"y: expected integer labels, got {y.dtype}; convert with .astype(int) or .long()")
    labels = _check_labels("y", y.tolist())
    return Source(
        labels,
        tuple(map(str, range(int(labels.max()) + 1))),
        chunked("x", tuple(images.shape[1:]), lambda chosen: _as_tensor(images[chosen])),
    )


def _dataset(dataset: Dataset[Any]) -> Source:
    """All items are fetched once for their labels, the chosen ones again for their images."""
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError(
            f"source: expected a non-empty dataset with a length, got {type(dataset).__name__}; iterable datasets are not supported"
        )
    labels = _check_labels("labels", [_item(dataset, i)[1] for i in range(len(dataset))])
    names = tuple(map(str, getattr(dataset, "classes", ())))
    count = int(labels.max()) + 1
    classes = names if len(names) >= count else tuple(map(str, range(count)))
    return Source(labels, classes, lambda chosen: ((f"item {i}", _item_image(dataset, i)) for i in chosen))


def _item(dataset: Dataset[Any], i: int) -> tuple[Any, int]:
    item = dataset[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"item {i}: expected a pair (image, label), got {type(item).__name__}")
    try:
        return item[0], operator.index(item[1])
    except TypeError as error:
        raise TypeError(f"item {i}: expected an integer label, got {item[1]!r}") from error


def _item_image(dataset: Dataset[Any], i: int) -> Tensor:
    image = _item(dataset, i)[0]
    if isinstance(image, Image.Image):
        return pixels(image, f"item {i}")
    image = _as_tensor(_real_or_bytes(f"item {i}", image))
    if image.ndim < 2:
        raise ValueError(f"item {i}: expected an image (C, *grid), got shape {tuple(image.shape)}")
    return image[None]
