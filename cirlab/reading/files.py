"""Questions to the file system: is a folder there, is a text UTF-8, are many files there."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from pathlib import Path

from cirlab.errors import UserError
from cirlab.records import FileImage

#: Bytes that are decoded at once, of files that may have hundreds of MB.
_PIECE = 1 << 20


def data_folder(root: str) -> Path:
    """The folder that data lie in.

    Raises:
        UserError: root is empty or no folder.
    """
    if not root.strip():
        raise UserError(
            "the data root is empty; give a folder, e.g. by the environment variable that the "
            "YAML names"
        )
    if not Path(root).is_dir():
        raise UserError(f"the data root {root} is not a folder; create it or correct the path")
    return Path(root)


def check_writable(folder: Path, key: str) -> None:
    """Make the folder, or refuse it before there is anything to be written.

    Args:
        folder: where files will lie.
        key: under which the user gives it.

    Raises:
        UserError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{key} {folder} cannot be made a folder ({reason}); name another folder"
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"{key} {folder} cannot be read and written; change its rights or name another folder"
        )


def check_utf8(path: Path, data: bytes) -> None:
    """Refuse what is in another encoding; that the last character is whole is not asked.

    Args:
        path: the file.
        data: what it holds.

    Raises:
        UserError: data is not UTF-8.
    """
    if data.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _PIECE):
            decoder.decode(data[start : start + _PIECE])
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is not UTF-8 (it has the byte {byte:#04x} where none can stand); convert it, "
            "e.g. with iconv -f LATIN1 -t UTF-8"
        ) from error


def read_text(path: Path) -> str:
    """A whole text file, UTF-8 with or without byte order mark.

    Raises:
        UserError: it is in another encoding.
    """
    data = path.read_bytes()
    check_utf8(path, data)
    return data.decode("utf-8-sig", errors="replace")


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
