"""Official annotation files: whole JSON documents, read record by record.

An array's elements are found in one pass and parsed when they are asked for. So a file of
hundreds of MB costs 16 bytes an element, in every loader worker the same, and a malformed element
is told by file and number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from json.decoder import WHITESPACE, scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from cirlab.errors import UserError
from cirlab.reading.jsonl import Row

T = TypeVar("T")
_DECODER = json.JSONDecoder()
#: Bytes at the end of a document of which one must not be white space.
_TAIL = 256


class JsonArray(Sequence[Row]):
    """The objects of one array of a JSON document.

    Args:
        path: the file, UTF-8. It must not change while it is in use.
        at: keys that lead from the document's outermost object to the array; none where the
            document is the array.

    Raises:
        UserError: there is no such file, it is not whole, or holds no array there. Elements
            that are no objects are found when they are read.
    """

    def __init__(self, path: Path, *, at: Sequence[str] = ()) -> None:
        self.path = path
        self.at = tuple(at)
        self._file: FileIO | None = None
        # Found as positions of characters, of which latin-1 makes one from every byte.
        text = _bytes_of(path).decode("latin-1")
        bounds = _whole(path, lambda: list(_elements(text, _descend(text, at))))
        self._bounds = np.array(bounds, dtype=np.int64).reshape(-1, 2)

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
            raise UserError(f"{where}: expected an object, found {type(value).__name__}")
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
            raise UserError(
                f"{where}: not valid JSON any more ({error}); the file has changed while it was "
                "in use, start again"
            ) from error


def read_texts(path: Path, *, at: Sequence[str] = ()) -> list[str]:
    """An array of non-empty strings, e.g. the images of a split.

    Args:
        path: the file.
        at: keys that lead to the array, as for `JsonArray`.

    Raises:
        UserError: there is no such file, it is not whole, or holds something else.
    """
    found = read_json(path)
    for key in at:
        found = found.get(key) if isinstance(found, dict) else None
    where = f"{path}{''.join(f', {key}' for key in at)}"
    if not isinstance(found, list):
        raise UserError(f"{where}: expected an array of strings, found {type(found).__name__}")
    for number, value in enumerate(found, start=1):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}, record {number}: {value!r} is not a non-empty string")
    return found


def read_strings(path: Path, *, at: Sequence[str]) -> list[str]:
    """One array of strings, empty ones included, out of a document whose rest is left unread.

    Args:
        path: the file.
        at: keys that lead to the array, as for `JsonArray`.

    Raises:
        UserError: there is no such file, it is not whole, or holds something else.
    """
    data = _bytes_of(path)

    def parse() -> list[Any]:
        text = data.decode("latin-1")
        start = _descend(text, at)
        _check_tail(text)
        return json.loads(data[start : _end(text, start)])

    found = _whole(path, parse)
    for number, value in enumerate(found, start=1):
        if not isinstance(value, str):
            raise UserError(f"{path}, {'.'.join(at)}, record {number}: {value!r} is not a string")
    return found


def read_text_mapping(path: Path) -> dict[str, str]:
    """An object whose values are non-empty strings, e.g. image names and their paths.

    Raises:
        UserError: there is no such file, it is not whole, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object, found {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{path}, key {key!r}: {value!r} is not a non-empty string")
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
    return path.read_bytes()


class _OtherShape(Exception):
    """The document is whole as far as it was read, but not of the shape that was asked for."""


def _whole(path: Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except _OtherShape as error:
        raise UserError(f"{path} {error}; check that it is the right file") from error
    except (ValueError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole JSON document ({error}); it may be cut off, get it again"
        ) from error


def _descend(text: str, at: Sequence[str]) -> int:
    """Where the value begins that the keys lead to."""
    place = _after_space(text, 0)
    for key in at:
        place = _member(text, place, key)
    if text[place] != "[":
        raise _OtherShape(f"holds no array at {'.'.join(at) or 'its top level'}")
    return place


def _member(text: str, place: int, wanted: str) -> int:
    """Where the value of a key begins in the object at `place`."""
    if text[place] != "{":
        raise _OtherShape(f"holds no object that has a key {wanted!r}")
    place = _after_space(text, place + 1)
    while text[place] == '"':
        key, place = scanstring(text, place + 1, True)
        place = _after_space(text, place)
        if text[place] != ":":
            raise ValueError(f"expected ':' after {key!r}")
        place = _after_space(text, place + 1)
        if key == wanted:
            return place
        place = _after_space(text, _end(text, place))
        if text[place] == ",":
            place = _after_space(text, place + 1)
    raise _OtherShape(f"has no key {wanted!r}")


def _end(text: str, place: int) -> int:
    """Where the value at `place` ends.

    An array is passed element by element, so that it never becomes objects as a whole.
    """
    if text[place] != "[":
        return _DECODER.raw_decode(text, place)[1]
    last = place + 1
    for bounds in _array(text, place):
        last = bounds[1]
    return _after_space(text, last) + 1


def _elements(text: str, place: int) -> Iterator[tuple[int, int]]:
    """Begin and end of every element of the array at `place`, in a document that ends well."""
    last = place + 1
    for start, last in _array(text, place):
        yield start, last
    place = _after_space(text, last)
    if text[_after_space(text, 0)] == "[" and text[place + 1 :].strip():
        raise ValueError(f"the array ends at byte {place}, but more follows")
    _check_tail(text)


def _array(text: str, place: int) -> Iterator[tuple[int, int]]:
    """Begin and end of every element of the array at `place`."""
    place = _after_space(text, place + 1)
    while text[place] != "]":
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        place = _after_space(text, end)
        if text[place] == ",":
            place = _after_space(text, place + 1)
            if text[place] == "]":
                raise ValueError(f"expected a value at byte {place}")
        elif text[place] != "]":
            raise ValueError(f"expected ',' or ']' at byte {place}")


def _check_tail(text: str) -> None:
    if not text[-_TAIL:].rstrip().endswith(("]", "}")):
        raise ValueError("it does not end with a bracket")


def _after_space(text: str, place: int) -> int:
    match = WHITESPACE.match(text, place)
    return int(match.end())
