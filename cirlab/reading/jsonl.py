"""JSON Lines with random access: 8 bytes a row, errors by file and line.

A line is read and parsed when it is asked for, so that a training order may be any permutation.
What stays in memory is where each line begins. It can be kept in a cache, from which loader
workers and processes map one copy. Lines are read, not mapped: pages of a mapped file count as
memory of whoever touched them, and an epoch in random order touches them all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, overload

import numpy as np

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file

log = logging.getLogger(__name__)

#: Pieces in which a file is scanned; they fit a processor's cache.
_SCAN_BYTES = 1 << 20
_NEWLINE = 10
#: Characters of a value in an error message.
_SHOWN = 60


class Row(Mapping[str, Any]):
    """One JSON object, and where it stands.

    Args:
        fields: the parsed object.
        where: its place for error messages, e.g. "pairs.jsonl, line 3".
    """

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self.fields = fields
        self.where = where

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def text(self, name: str) -> str:
        """A field that must be a non-empty string; a number is taken as its digits.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "a non-empty string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of one or more non-empty strings.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise self.wrong(name, "a list of one or more non-empty strings")
        return tuple(value)

    def optional_texts(self, name: str) -> tuple[str, ...] | None:
        """As `texts`, but None where the field is absent or null; the list may be empty.

        Raises:
            UserError: it is something else.
        """
        value = self.fields.get(name)
        if value is None:
            return None
        return () if value == [] else self.texts(name)

    def number(self, name: str) -> int:
        """A field that must be a whole number from 0, e.g. an id.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not _is_number(value):
            raise self.wrong(name, "a whole number from 0")
        return int(value)

    def numbers(self, name: str) -> tuple[int, ...]:
        """A field that must be a list of one or more whole numbers from 0.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, list) or not value or not all(map(_is_number, value)):
            raise self.wrong(name, "a list of one or more whole numbers from 0")
        return tuple(value)

    def object(self, name: str) -> Row:
        """A field that must be a JSON object.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Row(value, f"{self.where}, {name}")

    def objects(self, name: str) -> list[Row]:
        """A field that must be a list of one or more JSON objects.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise self.wrong(name, "a list of one or more objects")
        return [Row(v, f"{self.where}, {name}[{i}]") for i, v in enumerate(value)]

    def error(self, problem: str) -> UserError:
        """A `UserError` that names this row's place."""
        return UserError(f"{self.where}: {problem}")

    def wrong(self, name: str, wanted: str) -> UserError:
        """A `UserError` that tells what a field is, and what it must be."""
        return self.error(f"the field {name!r} is {shown(self.get(name))}, but must be {wanted}")

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            has = ", ".join(self.fields) or "no field at all"
            raise self.error(f"the field {name!r} is missing (it has {has}); add it")
        return self.fields[name]


def shown(value: object) -> str:
    """What was parsed, as JSON and not too long for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def unique(rows: Iterable[Row], name: Callable[[Row], str], advice: str) -> Iterator[Row]:
    """The rows as they are.

    Args:
        rows: in order.
        name: what no two rows may share, in words, e.g. "the id 7".
        advice: what to do about it.

    Raises:
        UserError: two have the same name.
    """
    seen: dict[str, str] = {}
    for row in rows:
        named = name(row)
        if named in seen:
            raise row.error(f"{named} stands already in {seen[named]}; {advice}")
        seen[named] = row.where
        yield row


def _is_number(value: object) -> bool:
    # To Python a truth value is a number, too.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


class JsonLines(Sequence[Row]):
    """The rows of a JSON Lines file, one object a line; empty lines are passed over.

    Args:
        path: the file, UTF-8. It must not change while it is in use.
        cache: folder for where its lines begin; None finds them at each start. An entry is used
            as long as the file's path, size and time of change stay the same.

    Raises:
        UserError: there is no such file. Malformed rows are found when they are read.
    """

    def __init__(self, path: Path, *, cache: Path | None = None) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}; create it or correct the path")
        self.path = path
        self._file: FileIO | None = None
        self._entry = _entry(path, cache) if cache is not None else None
        self._bounds = _bounds(path, self._entry)
        self._filled = _filled(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1 if self._filled is None else len(self._filled)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)} in {self.path}")
        row = at % len(self)
        line = row if self._filled is None else int(self._filled[row])
        where = f"{self.path}, line {line + 1}"
        start, end = int(self._bounds[line]), int(self._bounds[line + 1])
        return Row(_parsed(self._read(start, end - 1 - start), where), where)

    def __getstate__(self) -> dict[str, Any]:
        # An open file does not pickle, and a mapped index would travel as a copy.
        state = {**self.__dict__, "_file": None}
        return state if self._entry is None else {**state, "_bounds": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._bounds is None:
            self._bounds = _bounds(self.path, self._entry)

    def _read(self, start: int, size: int) -> bytes:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        # Forked workers share one open file, and with it its place: pread uses none.
        return os.pread(self._file.fileno(), size, start)


class JoinedLines(Sequence[Row]):
    """Several JSON Lines files, one after the other.

    Args:
        files: at least one.
    """

    def __init__(self, files: Sequence[JsonLines]) -> None:
        self.files = list(files)
        self._ends = np.cumsum([len(file) for file in self.files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return self.locate(at)[1]

    def locate(self, at: int) -> tuple[int, Row]:
        """The file's position and the row, for an overall row number from 0."""
        if not 0 <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        which = int(np.searchsorted(self._ends, at, side="right"))
        return which, self.files[which][at - int(self._ends[which])]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object a line") from error
    if not isinstance(fields, dict):
        found = type(fields).__name__
        raise UserError(f"{where}: expected a JSON object, found {found}; write one object a line")
    return fields


def _entry(path: Path, cache: Path) -> Path:
    """The file's place in a cache."""
    stat = path.stat()
    key = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.lines.npy"


def _bounds(path: Path, entry: Path | None) -> np.ndarray:
    """Where every line begins, and where the next one would. Shape (lines + 1,), int64."""
    if entry is None:
        return _scan(path)
    if not entry.is_file():
        found = _scan(path)
        if not _keep(entry, found):
            return found
    kept: np.ndarray = np.load(entry, mmap_mode="r")
    return kept


def _scan(path: Path) -> np.ndarray:
    begins = [np.zeros(1, dtype=np.int64)]
    size = 0
    last = b"\n"
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_SCAN_BYTES):
            newlines = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
            begins.append(newlines + (size + 1))
            size += len(chunk)
            last = chunk[-1:]
    if last != b"\n":
        # As if the last line, too, were ended by a newline.
        begins.append(np.array([size + 1], dtype=np.int64))
    return np.concatenate(begins)


def _filled(bounds: np.ndarray) -> np.ndarray | None:
    """Numbers of the lines that are not empty, (N,) int64; None where all are."""
    filled = np.diff(bounds) > 1
    return None if filled.all() else np.flatnonzero(filled)


def _keep(entry: Path, bounds: np.ndarray) -> bool:
    """Write a cache entry whole or not at all; a folder one may not write to is no error."""
    try:
        with whole_file(entry) as unfinished, unfinished.open("wb") as file:
            np.save(file, bounds)
    except OSError as error:
        log.warning("where the lines of a file begin is not kept: %s", error)
        return False
    return True
