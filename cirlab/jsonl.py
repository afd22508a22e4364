"""JSON Lines with random access: 24 bytes of memory a row, errors by file and line.

The file is memory-mapped and a line is parsed when it is asked for, so that loader workers
share one copy, and a training order may be any permutation.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from cirlab.errors import UserError

_SCAN_BYTES = 1 << 26
_NEWLINE = 10


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
            raise self._wrong(name, "a non-empty string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of one or more non-empty strings.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise self._wrong(name, "a list of one or more non-empty strings")
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

    def objects(self, name: str) -> list[Row]:
        """A field that must be a list of one or more JSON objects.

        Raises:
            UserError: it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise self._wrong(name, "a list of one or more objects")
        return [Row(v, f"{self.where}, {name}[{i}]") for i, v in enumerate(value)]

    def error(self, problem: str) -> UserError:
        """A `UserError` that names this row's place."""
        return UserError(f"{self.where}: {problem}")

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            has = ", ".join(self.fields) or "no field at all"
            raise self.error(f"the field {name!r} is missing (the line has {has}); add it")
        return self.fields[name]

    def _wrong(self, name: str, wanted: str) -> UserError:
        found = json.dumps(self.fields[name], ensure_ascii=False)
        found = found if len(found) <= 60 else f"{found[:57]}..."
        return self.error(f"the field {name!r} is {found}, but must be {wanted}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


class JsonLines(Sequence[Row]):
    """The rows of a JSON Lines file, one object a line; empty lines are passed over.

    Args:
        path: the file, UTF-8.

    Raises:
        UserError: there is no such file. Malformed rows are found when they are read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}; create it or correct the path")
        self.path = path
        self._data: mmap.mmap | None = None
        self._starts, self._ends, self._lines = _line_index(path)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)} in {self.path}")
        where = f"{self.path}, line {self._lines[at] + 1}"
        line = self._mapped()[self._starts[at] : self._ends[at]]
        return Row(_parsed(line, where), where)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map does not pickle; a spawned worker opens its own.
        return {**self.__dict__, "_data": None}

    def _mapped(self) -> mmap.mmap:
        if self._data is None:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._data


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
        raise UserError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return fields


def _line_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end and 0-based number of every line that is not empty. Each (N,), int64."""
    breaks: list[np.ndarray] = []
    offset = 0
    with path.open("rb") as file:
        while chunk := file.read(_SCAN_BYTES):
            found = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
            breaks.append(found.astype(np.int64) + offset)
            offset += len(chunk)
    ends = np.concatenate([*breaks, np.array([offset], dtype=np.int64)])
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1] + 1])
    filled = np.flatnonzero(ends > starts)
    return starts[filled], ends[filled], filled
