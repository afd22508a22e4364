"""JSON Lines files of one run, so that a run that is killed at any moment can be continued.

One process at a time appends to them; what a kill leaves of a last line is removed when the run
goes on. A record beside them tells what made them: a run with other settings is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reading.jsonl import JsonLines, Row

#: Bytes that are read at once from a file's end.
_PIECE = 1 << 16
#: Characters of a setting in an error message; of longer ones a part would look alike.
_SHOWN = 60

#: What a record or a line holds.
Settings = Mapping[str, Any]


class Journal:
    """The files of one run, held by one process at a time.

    Args:
        files: of lines, one or several; the first is locked.
        record: of the settings.
        settings: what decides the lines, as JSON keeps it.
        output: what errors call the run's output; None: the first file.

    Raises:
        UserError: a file cannot be written, another process writes there, or what is there was
            made with other settings or by something else.
    """

    def __init__(
        self, files: Sequence[Path], record: Path, settings: Settings, output: Path | None = None
    ) -> None:
        self.files, self.record = tuple(files), record
        self.output = output or self.files[0]
        with ExitStack() as held, self._told():
            self.files[0].parent.mkdir(parents=True, exist_ok=True)
            first = held.enter_context(_appending(self.files[0]))
            _lock(first, self.output)
            if not _is_begun(self.files, record, self.output, settings):
                self._keep(settings)
            for file in self.files:
                _drop_torn_line(file)
            others = [held.enter_context(_appending(file)) for file in self.files[1:]]
            self._appended = (first, *others)
            self._open = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()

    def rows(self, file: Path) -> Sequence[Row]:
        """The lines of a file that earlier sessions have left."""
        return JsonLines(file) if file.is_file() else ()

    def append(self, *lines: Iterable[Settings]) -> None:
        """Append lines to each file, on their way to the disk when this returns."""
        with self._told():
            for file, rows in zip(self._appended, lines, strict=True):
                _write_all(file, b"".join(map(_line, rows)))

    def _keep(self, settings: Settings) -> None:
        with whole_file(self.record) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _told(self) -> AbstractContextManager[None]:
        return told(self.output, (*self.files, self.record))


def check_journal(
    files: Sequence[Path], record: Path, settings: Settings, output: Path | None = None
) -> None:
    """Refuse files before a model is loaded for them. Nothing is left of the attempt.

    Args:
        files: as `Journal` takes them, and the record and the output.
        record: of the settings.
        settings: what is known of them by now.
        output: what errors call the run's output; None: the first file.

    Raises:
        UserError: as `Journal`, lines that are malformed aside.
    """
    output = output or files[0]
    with told(output, (*files, record)):
        for file in (*files, record):
            if file.exists():
                with _appending(file) as held:
                    _lock(held, output)
            else:
                folder = next(folder for folder in file.parents if folder.exists())
                tempfile.TemporaryFile(dir=folder).close()
        _is_begun(files, record, output, settings)


@contextmanager
def told(output: Path, files: Sequence[Path]) -> Iterator[None]:
    """What the operating system refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        # Some other name is one for a moment, which tells nobody anything.
        at = error.filename if error.filename in map(str, files) else output
        raise UserError(
            f"the output {at} cannot be written ({error.strerror}); choose another output, or see "
            "to it that files can be written there"
        ) from error


def _lock(file: FileIO, output: Path) -> None:
    """Hold a file, which the operating system lets go of however the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process writes to {output}; wait for it, or choose another output"
        ) from error


def _is_begun(files: Sequence[Path], record: Path, output: Path, settings: Settings) -> bool:
    """Whether there is a run to go on with.

    Raises:
        UserError: it has other settings, or what is there is something else.
    """
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
            f"{output} was begun with another {other}; choose another output, or the settings that "
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


def _line(row: Settings) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_all(file: FileIO, data: bytes) -> None:
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
