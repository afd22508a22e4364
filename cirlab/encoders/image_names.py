"""Names that tell images apart: within a run, and between runs and datasets."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from cirlab.errors import UserError
from cirlab.records import FileImage, Image

#: Tells the images of a run apart: a file's path and what is shown of it, or an id and version.
Place = tuple[str, str]


def place(image: Image) -> Place:
    """Where an image is from, which within a run tells it apart; its id need not."""
    if isinstance(image, FileImage):
        return str(image.path), image.part
    return image.id, image.version


def image_names(images: Iterable[Image]) -> list[str]:
    """Tell images apart between runs and datasets, whose ids may clash or differ for one file.

    A file that has been replaced is another image, and so is each part of a file. Files are asked
    of the file system, not read.

    Raises:
        UserError: there is no such file.
    """
    # Of thousands of files in one folder, only the files are asked for.
    resolved = cache(Path.resolve)
    state = cache(lambda path: _state(path, resolved))

    def name(image: Image) -> str:
        if not isinstance(image, FileImage):
            return f"{image.id} {image.version}"
        try:
            whole = state(image.path)
        except OSError as error:
            raise UserError(f"image {image.id!r} cannot be read: {error}") from error
        return f"{whole} {image.part}" if image.part else whole

    return [name(image) for image in images]


def _state(path: Path, resolved: Callable[[Path], Path]) -> str:
    """Where a file is, its size and when it was changed."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return _described(path.resolve(), path.stat())
    return _described(resolved(path.parent) / path.name, found)


def _described(path: Path, found: os.stat_result) -> str:
    return f"{path} {found.st_size} {found.st_mtime_ns}"
