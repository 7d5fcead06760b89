"""Image sets that lie in files: the photographs inside scikit-image's wheel, CIFAR-10, Fashion-MNIST, folders of images.

Each function returns a `Source`, which knows all labels and reads only the images it is asked for.  The formats are parsed
here, byte by byte or by Pillow, never by an unpickler.
"""

import gzip
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PHOTOS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_IMAGES, CIFAR10_RECORD = 10_000, 1 + 3 * 32 * 32
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FOLDERS = {"cifar10": ("cifar-10-batches-bin",), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}
HOW_TO_GET = {
    "cifar10": "extract the binary version, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, there",
    "fashion-mnist": "put the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist there",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CHUNK = 2**21  # numbers handed over at a time: the bytes and the real numbers of a whole set need not lie in memory together


class Source(NamedTuple):
    """All labels, the class names, and a reader that yields chosen images, in order, each piece with a name for messages."""

    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    read: Callable[[list[int]], Iterator[tuple[str, Tensor]]]


def chunked(name: str, shape: tuple[int, ...], take: Callable[[list[int]], Tensor]) -> Callable[[list[int]], Iterator[tuple[str, Tensor]]]:
    """A reader that takes as many images of a shape at a time as make `CHUNK` numbers."""
    step = max(1, CHUNK // math.prod(shape))

    def read(chosen: list[int]) -> Iterator[tuple[str, Tensor]]:
        for start in range(0, len(chosen), step):
            yield name, take(chosen[start : start + step])

    return read


def pixels(image: Image.Image, name: str) -> UInt8[Tensor, "1 3 H W"]:
    """The image as 8-bit RGB; alpha is dropped, 16-bit and real images are refused (Pillow would clip them)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            f"{name}: expected an 8-bit image, got Pillow mode {image.mode}; convert it, or pass the numbers as an array pair (x, y)"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def read_image(path: Path) -> UInt8[Tensor, "1 3 H W"]:
    """One image file, decoded by Pillow; ValueError naming the file where it is truncated, foreign, or a decompression bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected at most {Image.MAX_IMAGE_PIXELS} pixels, {error}; scale the image down first") from error
    except Exception as error:  # Pillow's decoders let pass whatever their parsers raise: OSError, SyntaxError, struct.error, …
        raise ValueError(
            f"{path}: expected an image, but it cannot be decoded ({error}); the file is truncated or foreign: replace or remove it"
        ) from error
    return pixels(image, str(path))


def photo_regions(split: str) -> list[UInt8[Tensor, "3 H W"]]:
    """The part of each bundled photograph that belongs to the split: the left two thirds train, the right third tests."""
    folder = Path(str(files("skimage"))) / "data"
    missing = [name for name in PHOTOS.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}: no such file; it is part of scikit-image's wheel: reinstall scikit-image from there"
        )
    whole = [read_image(folder / name)[0] for name in PHOTOS.values()]
    return [w[..., : 2 * w.shape[2] // 3] if split == "train" else w[..., 2 * w.shape[2] // 3 :] for w in whole]


def photos(grid: tuple[int, ...], samples: int, split: str, generator: torch.Generator) -> Source:
    """Patches of the bundled photographs, `samples` of them, the classes in turn, no position twice, still to be resized."""
    regions = photo_regions(split)
    room = [min(region.shape[axis] for region in regions) for axis in (1, 2)]
    if grid[0] > room[0] or grid[1] > room[1]:
        raise ValueError(
            f"grid: the {split} part of the photographs has room for patches of {tuple(room)} pixels, got {grid}; take a smaller grid"
        )
    # Natural images look alike at every scale (Field 1987), but the finest scale of a photograph is blurred: hence 4, where there is room.
    zoom = max(1, min(4, room[0] // (2 * grid[0]), room[1] // (2 * grid[1])))
    height, width = zoom * grid[0], zoom * grid[1]
    labels = torch.arange(samples) % len(PHOTOS)
    places = torch.empty(samples, dtype=torch.int64)
    for label, region in enumerate(regions):
        available = (region.shape[1] - height + 1) * (region.shape[2] - width + 1)
        wanted = int((labels == label).sum())
        if wanted > available:
            raise ValueError(
                f"samples: {list(PHOTOS)[label]!r} has {available} different patches of grid {grid}, got {samples} for all; take fewer"
            )
        places[labels == label] = torch.randperm(available, generator=generator, device=generator.device)[:wanted].cpu()

    def crop(i: int) -> Tensor:
        region = regions[int(labels[i])]
        top, left = divmod(int(places[i]), region.shape[2] - width + 1)
        return region[:, top : top + height, left : left + width]

    return Source(labels, tuple(PHOTOS), chunked("photos", (3, height, width), lambda chosen: torch.stack([crop(i) for i in chosen])))


def find_folder(name: str, root: str | os.PathLike[str] | None) -> Path:
    """The folder of a named set under `root`, else under `LINCONV_DATA`; FileNotFoundError names it and says how to get the set."""
    base = os.environ.get("LINCONV_DATA") if root is None else root
    if not base:
        remedy = f"pass root, or set LINCONV_DATA, to a folder to keep it in, and {HOW_TO_GET[name]}"
        raise FileNotFoundError(f"{FOLDERS[name][0]}: no folder to look in; {remedy}")
    for folder in (Path(base) / sub for sub in FOLDERS[name]):
        if folder.is_dir():
            return folder
    pickled = " (cifar-10-batches-py, the pickled Python version, is never read)" if (Path(base) / "cifar-10-batches-py").is_dir() else ""
    raise FileNotFoundError(f"{Path(base) / FOLDERS[name][0]}: no such folder{pickled}; {HOW_TO_GET[name]}")


def need_file(path: Path, name: str) -> Path:
    """Return the path, or raise FileNotFoundError saying how to get the set."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {HOW_TO_GET[name]}")
    return path


def cifar10(root: str | os.PathLike[str] | None, split: str) -> Source:
    """The official binary version: 10,000 records a file, one byte of label, then 32×32 red, green and blue planes."""
    folder = find_folder("cifar10", root)
    records = []
    for file in [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]:
        path = need_file(folder / file, "cifar10")
        size, wanted = path.stat().st_size, CIFAR10_IMAGES * CIFAR10_RECORD
        if size != wanted:
            raise ValueError(f"{path}: expected {wanted} bytes, got {size}: truncated or foreign; {HOW_TO_GET['cifar10']}")
        records.append(np.memmap(path, np.uint8, "r", shape=(CIFAR10_IMAGES, CIFAR10_RECORD)))
        highest = records[-1][:, 0].max()
        if highest > 9:
            raise ValueError(f"{path}: expected labels 0 to 9, got {highest}: a foreign file; {HOW_TO_GET['cifar10']}")
    labels = torch.from_numpy(np.concatenate([r[:, 0] for r in records]).astype(np.int64))

    def take(chosen: list[int]) -> Tensor:
        rows = [records[i // CIFAR10_IMAGES][i % CIFAR10_IMAGES, 1:] for i in chosen]
        return torch.from_numpy(np.stack(rows)).reshape(-1, 3, 32, 32)

    return Source(labels, CIFAR10_CLASSES, chunked("cifar10", (3, 32, 32), take))


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """An IDX file of bytes, compressed if it ends in .gz: magic 00 00 08 dims, the sizes as big-endian int32, the data."""
    foreign = f"truncated or foreign; {HOW_TO_GET['fashion-mnist']}"
    compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            header = file.read(4 * (dims + 1))
            magic, *sizes = (int.from_bytes(header[i : i + 4]) for i in range(0, 4 * (dims + 1), 4))
            if len(header) < 4 * (dims + 1) or magic != 0x0800 + dims or 0 in sizes:
                raise ValueError(f"{path}: expected an IDX header for bytes in {dims} dimensions, got {header.hex(' ', -4)!r}: {foreign}")
            wanted = math.prod(sizes)
            # A header can promise any size: look no further than deflate's highest ratio allows.
            data = file.read(min(wanted, path.stat().st_size * (1032 if compressed else 1)) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file, got: {error}: {foreign}") from error
    if len(data) != wanted:
        raise ValueError(f"{path}: expected {wanted} bytes after the header, got {'more' if len(data) > wanted else len(data)}: {foreign}")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def fashion_mnist(root: str | os.PathLike[str] | None, split: str) -> Source:
    """The official IDX files, compressed or not."""
    name = "fashion-mnist"
    folder = find_folder(name, root)
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    paths = [folder / n if (folder / n).is_file() else need_file(folder / f"{n}.gz", name) for n in names]
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{paths[1]}: expected {len(images)} labels, one an image, got {len(labels)}: files of two sets; {HOW_TO_GET[name]}"
        )
    if labels.max() > 9:
        raise ValueError(f"{paths[1]}: expected labels 0 to 9, got {labels.max()}: a foreign file; {HOW_TO_GET[name]}")
    take = chunked(name, images.shape[1:], lambda chosen: torch.from_numpy(images[chosen])[:, None])
    return Source(torch.from_numpy(labels.astype(np.int64)), FASHION_CLASSES, take)


def list_images(folder: Path) -> list[Path]:
    """The image files at any depth below a folder, sorted; hidden files and files that are not named as images are passed over."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file())


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without the hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def split_folder(folder: Path, split: str) -> tuple[Path, list[str]]:
    """Where the images of the split lie, and the classes, which are those of the training part."""
    train = folder / "train"
    held_out = [folder / name for name in ("val", "test") if (folder / name).is_dir()]
    if not train.is_dir() or not (held_out or subfolders(train)):  # without a held-out part, "train" full of images is a class
        if split == "test":
            raise ValueError(
                f"split: {folder} has no parts train and val, or test, so no test part; load the folder of the test images itself"
            )
        return folder, subfolders(folder)
    classes = subfolders(train)
    if split == "train":
        return train, classes
    if not held_out or not set(subfolders(held_out[0])) <= set(classes) or (classes and not subfolders(held_out[0])):
        raise ValueError(
            f"{held_out[0] if held_out else folder / 'val'}: expected the test part, with subfolders named as those of {train}"
        )
    return held_out[0], classes


def image_folder(folder: Path, split: str) -> Source:
    """A folder with one subfolder a class, or of images only (one class), or with parts `train/` and `val/` of that form."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; pass an existing one, or 'photos', 'cifar10' or 'fashion-mnist'")
    base, classes = split_folder(folder, split)
    groups = (
        {name: list_images(base / name) for name in classes if (base / name).is_dir()}
        if classes
        else {folder.resolve().name: list_images(base)}
    )
    for name, paths in groups.items():
        if not paths:
            remedy = "fill or remove the folder; 'cifar10' and 'fashion-mnist' are loaded by these names, with root"
            raise ValueError(
                f"{base / name if classes else base}: expected image files ({', '.join(IMAGE_SUFFIXES)}), found none; {remedy}"
            )
    if classes and any(p.parent == base for p in list_images(base)):
        raise ValueError(f"{base}: expected either images or one subfolder a class, found both; move the images into a subfolder")
    names = {name: label for label, name in enumerate(classes or groups)}
    labels = torch.tensor([names[name] for name, paths in groups.items() for _ in paths])
    flat = [path for paths in groups.values() for path in paths]
    return Source(labels, tuple(names), lambda chosen: ((str(flat[i]), read_image(flat[i])) for i in chosen))
