"""Official annotation files: whole JSON documents, read record by record.

An array's elements are found in one pass and parsed when they are asked for. So a file of
hundreds of MB costs 16 bytes an element, in every loader worker the same, and a malformed element
is told by file and number.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from cirlab.errors import UserError
from cirlab.reading.files import check_utf8
from cirlab.reading.jsonl import Row, shown

T = TypeVar("T")
Keys = tuple[str, ...]
_DECODER = json.JSONDecoder()
#: What JSON lets stand between its parts.
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonDocument:
    """Some arrays of a JSON document, whose bytes are read and passed once for all of them.

    Args:
        path: the file, UTF-8 with or without byte order mark.
        arrays: of each, the keys that lead to it from the document's outermost object; none
            where the document is the array.

    Raises:
        UserError: there is no such file, it is not whole, or holds no array there.
    """

    def __init__(self, path: Path, *arrays: Sequence[str]) -> None:
        self.path = path
        self.state = _state(path)
        self._data = _bytes_of(path)
        self._bounds = _whole(path, lambda: _arrays(self._data, [tuple(at) for at in arrays]))

    def bounds(self, at: Sequence[str]) -> np.ndarray:
        """First byte of every element of an array, and the one after its last. Shape (N, 2)."""
        return self._bounds[tuple(at)]

    def strings(self, at: Sequence[str]) -> list[str]:
        """An array of strings, empty ones included.

        Raises:
            UserError: it holds something else.
        """
        bounds = self.bounds(at)
        inside = self._data[bounds[0, 0] : bounds[-1, 1]] if len(bounds) else b""
        found: list[Any] = json.loads(b"[%b]" % inside)
        for number, value in enumerate(found, start=1):
            if not isinstance(value, str):
                raise UserError(
                    f"{self.path}, {'.'.join(at)}, record {number}: {shown(value)} is not a "
                    "string; get the file again"
                )
        return found


class JsonArray(Sequence[Row]):
    """The objects of one array of a JSON document.

    Args:
        path: the file, see `JsonDocument`. It must not change while it is in use.
        at: keys that lead from the document's outermost object to the array; none where the
            document is the array.
        document: the file, if it was read already, with this array.

    Raises:
        UserError: as `JsonDocument`. Elements that are no objects are found when they are read.
    """

    def __init__(
        self, path: Path, *, at: Sequence[str] = (), document: JsonDocument | None = None
    ) -> None:
        self.path = path
        self.at = tuple(at)
        self._file: FileIO | None = None
        document = document or JsonDocument(path, at)
        self._bounds = document.bounds(at)
        self._state = document.state

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        number = index % len(self)
        where = f"{self.path}, {'.'.join((*self.at, 'record'))} {number + 1}"
        value = self._parsed(number, where)
        if not isinstance(value, dict):
            found = type(value).__name__
            raise UserError(f"{where}: expected an object, found {found}; correct or remove it")
        return Row(value, where)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # an open file does not pickle

    def _parsed(self, number: int, where: str) -> Any:
        start, end = self._bounds[number].tolist()
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        # Forked workers share one open file, and with it its place: pread uses none.
        data = os.pread(self._file.fileno(), end - start, start)
        try:
            return json.loads(data)
        except ValueError as error:
            if _state(self.path) == self._state:
                raise UserError(f"{where}: not valid JSON ({error}); get the file again") from error
            raise UserError(
                f"{where}: not valid JSON any more ({error}); the file has changed while it was "
                "in use, start again"
            ) from error


def read_names(path: Path) -> list[str]:
    """An array of non-empty strings that differ, e.g. the images of a split.

    Raises:
        UserError: there is no such file, it is not whole, holds something else, or a name twice.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise UserError(
            f"{path}: expected an array of strings, found {type(found).__name__}; check that it "
            "is the right file"
        )
    number_of: dict[str, int] = {}
    for number, value in enumerate(found, start=1):
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{path}, record {number}: {shown(value)} is not a non-empty string; correct or "
                "remove it"
            )
        if value in number_of:
            raise UserError(
                f"{path}, record {number}: {value} stands already in record {number_of[value]}; "
                "remove one of them"
            )
        number_of[value] = number
    return found


def read_text_mapping(path: Path) -> dict[str, str]:
    """An object whose values are non-empty strings, e.g. image names and their paths.

    Raises:
        UserError: there is no such file, it is not whole, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: expected an object, found {type(found).__name__}; check that it is the right "
            "file"
        )
    for key, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{path}, key {key!r}: {shown(value)} is not a non-empty string; correct or remove "
                "it"
            )
    return found


def read_json(path: Path) -> Any:
    """A whole JSON document.

    Raises:
        UserError: there is no such file, or it is not whole.
    """
    data = _bytes_of(path)
    return _whole(path, lambda: json.loads(data))


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"there is no file {path}; put it there or correct the path")
    data = path.read_bytes()
    if not data or data.isspace():
        raise UserError(f"{path} is empty; get the file again")
    check_utf8(path, data)
    return data


def _state(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change; None where there is no file."""
    if not path.is_file():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class _OtherShape(Exception):
    """The document is whole as far as it was read, but not of the shape that was asked for."""


def _whole(path: Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except _OtherShape as error:
        raise UserError(f"{path} {error}; check that it is the right file") from error
    except (ValueError, IndexError, RecursionError) as error:
        problem = "it ends too early" if isinstance(error, IndexError) else error
        raise UserError(
            f"{path} is not a whole JSON document ({problem}); it may be cut off, get it again"
        ) from error


# ---- where arrays lie: positions are of characters, of which latin-1 makes one from every byte


def _arrays(data: bytes, wanted: Sequence[Keys]) -> dict[Keys, np.ndarray]:
    """Begin and end of every element of some arrays, in a document that is whole.

    Returns:
        By keys, shape (N, 2), int64.
    """
    text = data.decode("latin-1")
    found: dict[Keys, list[tuple[int, int]]] = {}
    first = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    end = _pass(text, _after_space(text, first), (), wanted, found)
    for at in wanted:
        if missing := [at[:n] for n in range(1, len(at) + 1) if at[:n] not in found]:
            raise _OtherShape(f"has no key {missing[0][-1]!r}")
    if (more := _after_space(text, end)) < len(text):
        raise ValueError(f"it ends at byte {end}, but more follows at byte {more}")
    return {at: np.array(found[at], dtype=np.int64).reshape(-1, 2) for at in wanted}


def _pass(
    text: str,
    place: int,
    keys: Keys,
    wanted: Sequence[Keys],
    found: dict[Keys, list[tuple[int, int]]],
) -> int:
    """Where the value ends that begins at `place`; what is wanted of it goes into `found`."""
    if keys in wanted:
        if text[place] != "[":
            raise _OtherShape(f"holds no array at {'.'.join(keys) or 'its top level'}")
        found[keys] = list(_array(text, place))
        last = found[keys][-1][1] if found[keys] else place + 1
        return _after_space(text, last) + 1
    below = [at for at in wanted if at[: len(keys)] == keys]
    if not below:
        return _end(text, place)
    found[keys] = []
    if text[place] != "{":
        raise _OtherShape(f"holds no object that has a key {below[0][len(keys)]!r}")
    place = _after_space(text, place + 1)
    while text[place] != "}":
        key, place = _key(text, place)
        place = _after_space(text, _pass(text, place, (*keys, key), wanted, found))
        place = _after_comma(text, place, "}")
    return place + 1


def _key(text: str, place: int) -> tuple[str, int]:
    """A key of an object, and where its value begins."""
    if text[place] != '"':
        raise ValueError(f"expected a key at byte {place}")
    key, place = _DECODER.raw_decode(text, place)
    place = _after_space(text, place)
    if text[place] != ":":
        raise ValueError(f"expected ':' at byte {place}")
    return key, _after_space(text, place + 1)


def _end(text: str, place: int) -> int:
    """Where the value at `place` ends.

    An array is passed element by element, so that it never becomes objects as a whole.
    """
    if text[place] != "[":
        return _DECODER.raw_decode(text, place)[1]
    last = max((end for _, end in _array(text, place)), default=place + 1)
    return _after_space(text, last) + 1


def _array(text: str, place: int) -> Iterator[tuple[int, int]]:
    """Begin and end of every element of the array at `place`."""
    place = _after_space(text, place + 1)
    while text[place] != "]":
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        place = _after_comma(text, _after_space(text, end), "]")


def _after_comma(text: str, place: int, close: str) -> int:
    """Where the next element begins, or the bracket stands that closes the array or object."""
    if text[place] == close:
        return place
    if text[place] != ",":
        raise ValueError(f"expected ',' or '{close}' at byte {place}")
    place = _after_space(text, place + 1)
    if text[place] == close:
        raise ValueError(f"expected a value at byte {place}")
    return place


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None, "no space at all matches, too"
    return int(match.end())
