"""Questions to the file system that are asked for many files at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cirlab.records import FileImage


def missing_files(images: Iterable[FileImage]) -> list[FileImage]:
    """The images without a file, in order.

    Each directory is listed once: on network file systems asking for every file is far slower.
    """
    listed: dict[Path, set[str]] = {}
    missing = []
    for image in images:
        folder = image.path.parent
        if folder not in listed:
            listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if image.path.name not in listed[folder]:
            missing.append(image)
    return missing
