"""Files that are there whole or not at all, whoever writes them at the same time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which becomes `path` once the block has ended.

    Nothing is left of a block that fails. Names of two writers do not meet, also where containers
    with equal process numbers share a disk; and unlike `tempfile`'s, the file has the permissions
    that files of this user have, so that others can read it.

    Args:
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
