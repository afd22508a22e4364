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
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reading.jsonl import JsonLines, shown
from cirlab.triplets.answers import Change, Reason
from cirlab.triplets.captions import Captioned

#: Bytes that are read at once from a file's end.
_PIECE = 1 << 16


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
        UserError: the path has another suffix, another process writes there, or what is there was
            made with other settings or by something else.
    """

    def __init__(self, path: Path, pairs: int, settings: Mapping[str, Any]) -> None:
        if path.suffix != ".jsonl":
            raise UserError(f"the output {path} must end in .jsonl; rename it")
        self.path = path
        self.aside = path.with_suffix(".set_aside.jsonl")
        self.settings = path.with_suffix(".settings.json")
        self.done = bytearray(pairs)
        self.tally = Tally()
        self._open = ExitStack()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = self._hold()
        try:
            self._check_settings(settings)
            for kept in (self.path, self.aside):
                _drop_torn_line(kept)
                self._count(kept)
            self._files = file, self._open.enter_context(_appending(self.aside))
        except BaseException:
            self._open.close()
            raise

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
        for file, lines in zip(self._files, (made, aside), strict=True):
            _write_all(file, lines)

    def _hold(self) -> FileIO:
        """The triplets' file, which the operating system lets go of however the process ends."""
        file = self._open.enter_context(_appending(self.path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._open.close()
            raise UserError(
                f"another process writes to {self.path}; wait for it, or choose another output"
            ) from error
        return file

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(settings))
        if self.settings.is_file():
            _refuse_other(json.loads(self.settings.read_bytes()), wanted, self.path)
            return
        for file in (self.path, self.aside):
            if file.is_file() and file.stat().st_size:
                raise UserError(
                    f"{file} is there, but not {self.settings.name}, which tells what made it; "
                    "choose another output"
                )
        with whole_file(self.settings) as unfinished:
            unfinished.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")

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


def _refuse_other(kept: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue what other settings have begun."""
    for name in sorted({*kept, *wanted}):
        if kept.get(name) != wanted.get(name):
            raise UserError(
                f"{path} was begun with another {name}: {shown(kept.get(name))}, now "
                f"{shown(wanted.get(name))}; choose another output, or the settings that stand "
                f"in {path.with_suffix('.settings.json').name}"
            )


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
