"""Triplets on disk, line by line, so that a run that is killed at any moment can be continued.

    <name>.jsonl             {"pair", "image", "caption", "instruction", "modified_caption"}
    <name>.set_aside.jsonl   {"pair", "image", "caption", "reason", "answers": [..]}
    <name>.settings.json     what made them: a run with other settings is refused

`pair` is the number of the caption in the input. A batch's lines are appended together; what a
kill leaves of a last line is removed when the run continues.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reading.jsonl import JsonLines
from cirlab.triplets.answers import Change, Reason
from cirlab.triplets.captions import Captioned

#: Bytes that are read at once from a file's end.
_PIECE = 1 << 16
#: Characters of a setting in an error message; of longer ones a part would look alike.
_SHOWN = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a caption.

    Attributes:
        pair: number of the caption.
        answers: what the model said, one text for each try.
    """

    pair: int
    found: Change | Reason
    answers: tuple[str, ...] = ()


@dataclass
class Tally:
    """How many triplets were made, and how many answers set aside, by reason."""

    made: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.made + self.set_aside.total()


class TripletFiles:
    """The files of one run, held by one process at a time.

    Args:
        path: of the triplets, `.jsonl`.
        pairs: how many captions there are.
        settings: what decides the answers, as JSON keeps it.

    Raises:
        UserError: the path has another suffix or cannot be written, another process writes there,
            or what is there was made with other settings or by something else.
    """

    def __init__(self, path: Path, pairs: int, settings: Mapping[str, Any]) -> None:
        self.path, self.aside, self.settings = _names(path)
        self.done = bytearray(pairs)
        self.tally = Tally()
        with ExitStack() as held, _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(_appending(self.path))
            _lock(file, path)
            if not _is_begun(path, settings):
                self._keep(settings)
            for kept in (self.path, self.aside):
                _drop_torn_line(kept)
                self._count(kept)
            self._files = file, held.enter_context(_appending(self.aside))
            self._open = held.pop_all()

    def __enter__(self) -> TripletFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def append(self, outcomes: Iterable[tuple[Captioned, Outcome]]) -> None:
        """Write what is not there yet; lines are on their way to the disk when this returns."""
        made, aside = bytearray(), bytearray()
        for captioned, outcome in outcomes:
            if self.done[outcome.pair]:
                continue
            self.done[outcome.pair] = True
            row: dict[str, Any] = {"pair": outcome.pair, **captioned._asdict()}
            if isinstance(outcome.found, Change):
                self.tally.made += 1
                row["instruction"] = outcome.found.instruction
                row["modified_caption"] = outcome.found.modified_caption
                made += _line(row)
            else:
                self.tally.set_aside[outcome.found.value] += 1
                aside += _line(row | {"reason": outcome.found, "answers": outcome.answers})
        with _told(self.path):
            for file, lines in zip(self._files, (made, aside), strict=True):
                _write_all(file, lines)

    def _keep(self, settings: Mapping[str, Any]) -> None:
        with whole_file(self.settings) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _count(self, path: Path) -> None:
        if not path.is_file():
            return
        for row in JsonLines(path):
            pair = row.number("pair")
            if pair >= len(self.done) or self.done[pair]:
                raise row.error(
                    f"the pair {pair} is there twice or not in the input; choose another output"
                )
            self.done[pair] = True
            if path == self.path:
                self.tally.made += 1
            else:
                self.tally.set_aside[row.text("reason")] += 1


def check_output(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an output before a model is loaded for it. Nothing is left of the attempt.

    Args:
        path: of the triplets, as `TripletFiles` takes it.
        settings: what is known of them by now.

    Raises:
        UserError: as `TripletFiles`, lines that are malformed aside.
    """
    with _told(path):
        for file in _names(path):
            if file.exists():
                with _appending(file) as held:
                    _lock(held, path)
            else:
                folder = next(folder for folder in file.parents if folder.exists())
                tempfile.TemporaryFile(dir=folder).close()
        _is_begun(path, settings)


def _names(path: Path) -> tuple[Path, Path, Path]:
    """The files of triplets, of what is set aside, and of the settings."""
    if path.suffix != ".jsonl":
        raise UserError(f"the output {path} must end in .jsonl; rename it")
    return path, path.with_suffix(".set_aside.jsonl"), path.with_suffix(".settings.json")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the operating system refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        # Some other name is one for a moment, which tells nobody anything.
        at = error.filename if error.filename in map(str, _names(path)) else path
        raise UserError(
            f"the output {at} cannot be written ({error.strerror}); choose another output, or see "
            "to it that files can be written there"
        ) from error


def _lock(file: FileIO, path: Path) -> None:
    """Hold a file, which the operating system lets go of however the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process writes to {path}; wait for it, or choose another output"
        ) from error


def _is_begun(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether there is a run to go on with.

    Raises:
        UserError: it has other settings, or what is there is something else.
    """
    *files, record = _names(path)
    if not record.is_file():
        for file in files:
            if file.is_file() and file.stat().st_size:
                raise UserError(
                    f"{file} is there, but not {record.name}, which tells what made it; choose "
                    "another output"
                )
        return False
    try:
        kept = json.loads(record.read_bytes())
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise UserError(f"{record} does not hold a run's settings; choose another output")
    if other := _difference(kept, json.loads(json.dumps(settings))):
        raise UserError(
            f"{path} was begun with another {other}; choose another output, or the settings that "
            f"stand in {record.name}"
        )
    return True


def _difference(kept: object, wanted: object, *name: str) -> str:
    """The first setting that is another one, in words; empty where there is none."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        parts = (_difference(kept.get(key), wanted[key], *name, key) for key in wanted)
        return next(filter(None, parts), "")
    if kept == wanted:
        return ""
    said = " ".join((name[0], *(f"({part})" for part in name[1:])))
    values = [json.dumps(value, ensure_ascii=False) for value in (kept, wanted)]
    return said if max(map(len, values)) > _SHOWN else f"{said}: {values[0]}, now {values[1]}"


def _appending(path: Path) -> FileIO:
    return path.open("ab", buffering=0)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_all(file: FileIO, data: bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _drop_torn_line(path: Path) -> None:
    """Cut off what follows the last line's end."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _PIECE)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
