"""Random access into tar files: headers are read once, members by offset.

Libraries for webdatasets stream shards through shuffle buffers. A stream cannot be continued at
exactly the sample where a killed run stood, nor be dealt out evenly to processes; an index of
offsets can, and keeps the shards as they are. It costs one pass over the headers, which is kept
in a cache.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file

log = logging.getLogger(__name__)

#: offset and size in bytes of a member's content; `tar` is the archive's position in the list.
_PLACE = [("tar", np.int32), ("offset", np.int64), ("size", np.int64)]


class TarIndex:
    """The files within some tar archives.

    Args:
        tars: uncompressed archives.
        cache: folder for what was read from the headers; None reads them each time. An entry is
            used as long as its archive's path, size and time of change stay the same.

    Attributes:
        names: paths of all members, UTF-8, in archive order. Shape (N,), bytes.
        places: where each lies, fields `tar`, `offset`, `size`. Shape (N,).

    Raises:
        UserError: an archive is missing, broken or compressed.
    """

    def __init__(self, tars: Sequence[Path], *, cache: Path | None = None) -> None:
        self.tars = list(tars)
        parts = []
        for number, tar in enumerate(tqdm(self.tars, desc="tar headers", delay=2, disable=None)):
            names, spans = _headers(tar, cache)
            places = np.empty(len(names), dtype=_PLACE)
            places["tar"], places["offset"], places["size"] = number, spans[:, 0], spans[:, 1]
            parts.append((names, places))
        self.names = np.concatenate([names for names, _ in parts])
        self.places = np.concatenate([places for _, places in parts])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, member: int) -> str:
        """A member's path."""
        return bytes(self.names[member]).decode("utf-8")

    def read(self, member: int) -> bytes:
        """A member's content.

        Raises:
            UserError: the archive is gone, or shorter than when it was indexed.
        """
        tar, offset, size = self.places[member]
        path = self.tars[tar]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(int(offset))
                data = file.read(int(size))
        except OSError as error:
            raise UserError(f"cannot read {self.name(member)} from {path} ({error})") from error
        if len(data) < size:
            raise UserError(
                f"{path} ends within {self.name(member)}: the archive is cut off; copy it again"
            )
        return data


def _headers(tar: Path, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Names (N,) bytes and spans (N, 2) int64, from the cache or the archive."""
    if not tar.is_file():
        raise UserError(f"there is no archive {tar}; correct the path")
    if cache is None:
        return _read_headers(tar)
    stat = tar.stat()
    key = f"{tar.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    entry = cache / f"{tar.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if entry.is_file():
        with np.load(entry) as kept:
            return kept["names"], kept["spans"]
    names, spans = _read_headers(tar)
    _keep(entry, names, spans)
    return names, spans


def _read_headers(tar: Path) -> tuple[np.ndarray, np.ndarray]:
    names: list[bytes] = []
    spans: list[tuple[int, int]] = []
    try:
        with tarfile.open(tar, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    names.append(member.name.encode("utf-8"))
                    spans.append((member.offset_data, member.size))
            end = archive.offset
    except tarfile.TarError as error:
        raise UserError(
            f"{tar} is not a whole, uncompressed tar archive ({error}); copy it again or remove it"
        ) from error
    # Python takes a header that is cut off for the archive's end; a whole archive ends in zeros.
    with tar.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{tar} is cut off after {end} bytes; copy it again or remove it")
    width = max(map(len, names), default=1)
    return np.array(names, dtype=f"S{width}"), np.array(spans, dtype=np.int64).reshape(-1, 2)


def _keep(entry: Path, names: np.ndarray, spans: np.ndarray) -> None:
    """Write a cache entry whole or not at all; a folder one may not write to is no error."""
    try:
        with whole_file(entry) as unfinished, unfinished.open("wb") as file:
            np.savez(file, names=names, spans=spans)
    except OSError as error:
        log.warning("the index of a tar archive is not kept: %s", error)
