"""Files that a long run goes on from after it was killed: tensors and facts in one safetensors file, replaced in one step.

Nothing is unpickled.  A file holds the SHA-256 of what is in it, so that a damaged one is found out whatever byte was hit.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CHUNK = 2**24  # entries of a tensor that are brought to the CPU at a time to be hashed


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write tensors by name, and facts that JSON can express, to a file that takes the place of `path` in one step.

    Whenever the process or the machine stops, `path` is either the old file or the new one, whole.  Beside it lies, in the
    meantime, `path` with ".part" appended.  Floats in `facts` come back bit by bit, infinities included.
    """
    kept = {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    text = json.dumps(facts)
    temporary = path.with_name(path.name + ".part")
    save_file(kept, temporary, metadata={"facts": text, "sha256": _checksum(kept, text)})
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # the new name reaches the disk with its folder
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors, on the CPU, and facts of a file that `save_checkpoint` wrote; `ValueError` naming it where it is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        text = metadata["facts"]
        if metadata["sha256"] != _checksum(tensors, text):
            raise ValueError("its contents do not have the checksum that was stored with them")
        facts: dict[str, object] = json.loads(text)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint: expected a whole file that a run of linconv has written, got {path}: {error}; delete it or name another file"
        ) from error
    return tensors, facts


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the dtypes, shapes and entries of tensors, wherever they lie."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        pieces = tensor.detach().reshape(-1).split(CHUNK) if tensor.numel() else ()
        for piece in pieces:
            total.update(piece.cpu().view(torch.uint8).numpy())
    return total.hexdigest()


def validate_checkpoint(path: object) -> Path:
    """Return the path of a file that can be written, else raise: at the end of a run it would be too late."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint: expected the path of a file, got {path!r}")
    file = Path(path)
    folder = file.absolute().parent
    if file.is_dir():
        raise ValueError(f"checkpoint: expected the path of a file, got the folder {path}; name a file in it")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"checkpoint: expected a file in a folder that can be written, got {path}; make {folder} first")
    return file


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    names = sorted(tensors)
    return hashlib.sha256("\n".join([text, *names, digest(*(tensors[name] for name in names))]).encode()).hexdigest()
