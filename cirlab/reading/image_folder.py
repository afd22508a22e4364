"""A folder of images and whatever else lies there; what an image is, its content tells."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from cirlab.errors import UserError
from cirlab.reading.files import data_folder
from cirlab.records import FileImage

#: Files that a list of left-out ones names.
NAMED = 3


@dataclass(frozen=True)
class ImageFolder:
    """What was found below a folder.

    Attributes:
        root: the folder.
        images: by path relative to it, in order of their paths.
        others: paths of files that are no images.
    """

    root: Path
    images: tuple[FileImage, ...]
    others: tuple[str, ...]

    def image(self, path: str) -> FileImage:
        """An image by its path, from the working directory or relative to the folder.

        Raises:
            UserError: it is not one of these.
        """
        by_file = {each.path.resolve(): each for each in self.images}
        for file in (Path(path), self.root / path):
            if (found := by_file.get(file.resolve())) is not None:
                return found
        raise UserError(
            f"{path} is not among the {len(self.images):,} images in {self.root}; give the path of "
            f"one of them, such as {self.images[0].id}"
        )


def images_below(root: str) -> ImageFolder:
    """All images in a folder and the folders below it; hidden files and folders are passed over.

    Of every file the beginning is read, so that one that is broken further on counts as an image.

    Raises:
        UserError: root is no folder, or holds no image.
    """
    folder = data_folder(root)
    images, others = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if _begins_as_image(path):
            images.append(FileImage(id=name, path=path))
        else:
            others.append(name)
    if not images:
        beside = f", only {len(others):,} other files" if others else ""
        raise UserError(f"there is no image in {root}{beside}; give a folder of images")
    return ImageFolder(folder, tuple(images), tuple(others))


def named_files(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _files(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(at) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _begins_as_image(path: Path) -> bool:
    try:
        # Of very large pictures Pillow warns here, and again where they are decoded.
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(path):
            return True
    # Pillow raises many types for broken files, SyntaxError and struct.error among them.
    except Exception:
        return False
