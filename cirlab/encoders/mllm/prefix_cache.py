"""Prefixes of pictures, kept between batches and runs within a budget of memory.

A prefix is large: keys and values of every layer for each token, 0.28 GiB for a picture of
LLaVA-1.5-7B in 16 bits. What has not been asked for the longest makes way, so that memory or disk
never hold more than the budget.

On disk each picture is a file of its own. A file that is being written bears another name until it
is whole; one that does not read as it was written counts as absent. Processes and runs share a
folder: a lock lets one of them at a time make room and write, and all files count, whatever
encoder they are of.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cirlab.encoders.mllm.identity import digest
from cirlab.encoders.mllm.prefix import Prefix
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file

log = logging.getLogger(__name__)

_GIB = 1 << 30
#: Share of the budget that is left when files make way, so that they are rarely looked through.
_LEFT = 0.9


class PrefixCache:
    """Prefixes of single pictures, by name.

    Args:
        folder: where files lie; None keeps prefixes in memory, as long as the process lives.
        budget_gib: the most that they take; of a folder, by all who use it.
        identity: whatever decides a prefix besides the picture, as
            `cirlab.encoders.mllm.identity` tells it.

    Raises:
        UserError: the budget is not above 0, or infinite.
    """

    def __init__(self, folder: Path | None, budget_gib: float, identity: str) -> None:
        if not 0 < budget_gib < math.inf:
            raise UserError(
                f"the budget of kept prefixes is {budget_gib} GiB; set it above 0 and below "
                "infinity, or keep none"
            )
        budget = int(budget_gib * _GIB)
        self._store: _Store = _Memory(budget) if folder is None else _Disk(Path(folder), budget)
        self._identity, self._budget_gib, self._told = identity, budget_gib, False

    def get(self, names: Sequence[str]) -> list[Prefix | None]:
        """Each picture's prefix, on the CPU; None where it is to be computed."""
        return [self._store.read(self._key(name)) for name in names]

    def put(self, names: Sequence[str], prefix: Prefix) -> None:
        """Keep prefixes that have been computed; one larger than the budget is not kept.

        Args:
            names: of its pictures.
            prefix: of as many pictures, on any device.

        Raises:
            UserError: the folder cannot be written to.
        """
        for name, row in zip(names, prefix.to("cpu").rows(), strict=True):
            if not self._store.write(self._key(name), row) and not self._told:
                self._told = True
                log.warning(
                    "a picture's prefix takes %.3g GiB, more than the budget of %s GiB: it is "
                    "computed again wherever it is needed",
                    row.size / _GIB,
                    self._budget_gib,
                )

    def _key(self, name: str) -> str:
        return digest(self._identity, name)


class _Store(Protocol):
    """Prefixes by key, within a budget in bytes."""

    def read(self, key: str) -> Prefix | None:
        """It counts as used now."""

    def write(self, key: str, prefix: Prefix) -> bool:
        """Whether it fits the budget."""


class _Memory:
    """What this process keeps, in the order of use."""

    def __init__(self, budget: int) -> None:
        self._budget, self._taken = budget, 0
        self._kept: OrderedDict[str, Prefix] = OrderedDict()

    def read(self, key: str) -> Prefix | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def write(self, key: str, prefix: Prefix) -> bool:
        if prefix.size > self._budget:
            return False
        if key in self._kept:
            self._taken -= self._kept.pop(key).size
        while self._taken + prefix.size > self._budget:
            _, oldest = self._kept.popitem(last=False)
            self._taken -= oldest.size
        self._kept[key] = prefix
        self._taken += prefix.size
        return True


class _Disk:
    """Files in a folder, by the time of their last use."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget = folder / "prefixes", budget

    def read(self, key: str) -> Prefix | None:
        path = self._path(key)
        try:
            prefix = _load(path)
            _touch(path)
        # Another process may have let it make way.
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError) as error:
            log.warning("%s is broken and will be computed again (%s)", path, error)
            path.unlink(missing_ok=True)
            return None
        return prefix

    def write(self, key: str, prefix: Prefix) -> bool:
        data = _bytes(prefix)
        if len(data) > self._budget:
            return False
        path = self._path(key)
        try:
            with self._alone():
                if path.exists():
                    _touch(path)
                else:
                    self._make_room(len(data))
                    with whole_file(path) as unfinished:
                        unfinished.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"prefixes of pictures cannot be kept in {self._folder} ({error}); make room or "
                "choose another folder"
            ) from error
        return True

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes within the block; a kill ends it as well."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Take note of so many bytes more, which are about to be written.

        What is noted is never less than what there is: it is noted first, and what disappears
        counts until files have to make way.
        """
        note = self._folder / "bytes"
        taken = self._noted(note)
        if taken is None or taken + size > self._budget:
            taken = self._oldest_away(size)
        note.write_text(str(taken + size), encoding="ascii")

    def _noted(self, note: Path) -> int | None:
        with suppress(FileNotFoundError, ValueError):
            return int(note.read_text(encoding="ascii"))
        return None

    def _oldest_away(self, size: int) -> int:
        """Delete until so many bytes fit; how many bytes are left."""
        # Nobody else writes now, so that what is unfinished was left by a kill.
        for unfinished in self._folder.glob("*.unfinished"):
            unfinished.unlink(missing_ok=True)
        files = []
        for path in self._folder.glob("*.safetensors"):
            # A reader may delete a broken one.
            with suppress(FileNotFoundError):
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        taken = sum(size for _, size, _ in files)
        if taken + size <= self._budget:
            return taken
        most = min(self._budget - size, int(self._budget * _LEFT))
        for _, freed, path in sorted(files):
            if taken <= most:
                break
            path.unlink(missing_ok=True)
            taken -= freed
        return taken


def _touch(path: Path) -> None:
    """It is used now."""
    # A file of another user cannot be told so.
    with suppress(PermissionError):
        os.utime(path)


def _bytes(prefix: Prefix) -> bytes:
    """A file of one picture's prefix; its mask is all ones."""
    tensors = {"following": prefix.following}
    for number, (keys, values) in enumerate(prefix.layers):
        tensors |= {f"keys.{number}": keys, f"values.{number}": values}
    return save(tensors, metadata={"checksum": _checksum(tensors)})


def _load(path: Path) -> Prefix:
    with safe_open(path, framework="pt") as file:
        checksum = (file.metadata() or {}).get("checksum")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if checksum != _checksum(tensors):
        raise ValueError("its checksum is another")
    count = len(tensors) // 2
    layers = tuple((tensors[f"keys.{n}"], tensors[f"values.{n}"]) for n in range(count))
    mask = torch.ones(1, layers[0][0].shape[-2], dtype=torch.int64)
    return Prefix(layers, mask, tensors["following"])


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    found = 0
    for name in sorted(tensors):
        values = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(values.numpy().data, found)
    return f"{found:08x}"
