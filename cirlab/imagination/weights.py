"""Telling a pipeline's weights from others of its name, without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from cirlab.encoders.names import resolve_folder
from cirlab.imagination.pipeline import INDEX

#: Pieces that are read of a large file, evenly spaced, and bytes of each.
_PIECES, _PIECE = 256, 256
#: What decides a picture; documentation beside it does not.
_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")


def weights_identity(name: str) -> str | None:
    """What stands for the weights of this name as they are now.

    Of a hub's the commit; of a folder's a hash of names, sizes and pieces of its parts' files:
    training changes all of them, and a whole reading of tens of gigabytes would take minutes.

    Args:
        name: hub name, folder or `zoo:` pipeline.

    Returns:
        None for a hub's pipeline that this machine does not hold.
    """
    folder = Path(resolve_folder(name))
    if folder.is_dir():
        return _hash(folder)
    held = try_to_load_from_cache(name, INDEX)
    return Path(held).parent.name if isinstance(held, str) else None


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    files = [folder / INDEX, *(path for path in folder.glob("*/*") if path.suffix in _SUFFIXES)]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            if size <= _PIECES * _PIECE:
                digest.update(file.read())
                continue
            for piece in range(_PIECES):
                file.seek((size - _PIECE) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]
