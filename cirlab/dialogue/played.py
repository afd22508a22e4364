"""Played dialogues on disk, so that a run that is killed at any moment can be continued.

    <name>.json             ChatIR's format, whole once every dialogue is played:
                            [{"img", "dialog": [caption, "question? answer", ..]}, ..]
    <name>.played.jsonl     a line for each dialogue, with what went wrong in it
    <name>.settings.json    who asked, answered and searched, how, and the seed
    <name>.counts.json      how often something went wrong, in all

A batch's dialogues are appended together (`cirlab.reading.journal`); the list is made of the lines,
in the order of the benchmark.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirlab.dialogue.talk import Refused, Round
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reading.journal import check_journal
from cirlab.reading.jsonl import Row
from cirlab.reading.numbered_journal import NumberedJournal


@dataclass(frozen=True)
class Played:
    """One whole dialogue.

    Attributes:
        number: of the dialogue.
        image: its id, a path where the gallery is of files.
        caption: what it began with.
        rounds: what was asked and answered.
        refused: questions that could not be put, by round from 1.
        replaced: rounds in which the registry asked, for want of a question that could be put.
        repeated: those of them in which even the registry had nothing new.
    """

    number: int
    image: str
    caption: str
    rounds: tuple[Round, ...]
    refused: tuple[tuple[int, Refused], ...] = ()
    replaced: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """As a line has it."""
        return {
            "number": self.number,
            "img": self.image,
            "dialog": [self.caption, *(said.text for said in self.rounds)],
            "unanswered": [at for at, said in enumerate(self.rounds, start=1) if not said.answer],
            "replaced": list(self.replaced),
            "repeated": list(self.repeated),
            "refused": [
                {"round": at, "fault": each.fault.value, "question": each.question}
                for at, each in self.refused
            ],
        }


@dataclass
class Tally:
    """What all dialogues together have come to.

    Attributes:
        dialogues: played.
        rounds: in them.
        unanswered: rounds without an answer.
        replaced: rounds in which the registry asked.
        repeated: those of them in which it had nothing new.
        refused: questions that could not be put, by fault.
    """

    dialogues: int = 0
    rounds: int = 0
    unanswered: int = 0
    replaced: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a line."""
        self.dialogues += 1
        self.rounds += len(row["dialog"]) - 1
        for name in ("unanswered", "replaced", "repeated"):
            setattr(self, name, getattr(self, name) + len(row[name]))
        self.refused.update(each["fault"] for each in row["refused"])

    def counts(self) -> dict[str, int]:
        """For a bar."""
        return {"completed": self.dialogues, "refused": self.refused.total()}

    def as_dict(self) -> dict[str, Any]:
        """For a file, faults in the order of their names."""
        counts = {name: value for name, value in vars(self).items() if name != "refused"}
        return counts | {"refused": dict(sorted(self.refused.items()))}


class PlayedFiles(NumberedJournal):
    """The files of one run, held by one process at a time.

    Args:
        path: of the list, `.json`.
        count: how many dialogues there are.
        settings: what decides them, as JSON keeps it.

    Raises:
        UserError: the path has another suffix, see `NumberedJournal`, or a line is no dialogue.
    """

    key, piece, source = "number", "dialogue", "benchmark"

    def __init__(self, path: Path, count: int, settings: Mapping[str, Any]) -> None:
        self.path, self.lines, record, self.counts = _names(path)
        _check_own(path, record)
        self.tally = Tally()
        super().__init__((self.lines,), record, settings, count, output=path)

    def add(self, played: Iterable[Played]) -> None:
        """Write what is not there yet; lines are on their way to the disk when this returns."""
        rows = [each.row() for each in played if not self.done[each.number]]
        for row in rows:
            self.done[row["number"]] = True
            self.tally.add(row)
        self.append(rows)

    def finish(self) -> None:
        """Write list and counts, of what every line says."""
        rows = sorted(self.rows(self.lines), key=lambda row: row.number("number"))
        dialogues = [{"img": row["img"], "dialog": row["dialog"]} for row in rows]
        _write(self.counts, self.tally.as_dict())
        _write(self.path, dialogues)

    def take(self, row: Row, file: Path) -> None:
        row.text("img"), row.texts("dialog")
        self.tally.add(row)


def check_output(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an output before models are loaded for it. Nothing is left of the attempt.

    Args:
        path: of the list, as `PlayedFiles` takes it.
        settings: what is known of them by now.

    Raises:
        UserError: as `PlayedFiles`, lines that are malformed aside.
    """
    _, lines, record, _ = _names(path)
    _check_own(path, record)
    check_journal((lines,), record, settings, output=path)


def _names(path: Path) -> tuple[Path, Path, Path, Path]:
    """The files of the list, of the lines, of the settings and of the counts."""
    if path.suffix != ".json":
        raise UserError(f"the output {path} must end in .json; rename it")
    suffixes = (".json", ".played.jsonl", ".settings.json", ".counts.json")
    names = [path.with_suffix(suffix) for suffix in suffixes]
    return names[0], names[1], names[2], names[3]


def _check_own(path: Path, record: Path) -> None:
    """Refuse to replace what another program has written."""
    if path.exists() and not record.is_file():
        raise UserError(
            f"{path} is there, but not {record.name}, which tells what made it; choose another "
            "output"
        )


def _write(path: Path, content: object) -> None:
    with whole_file(path) as unfinished:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        unfinished.write_text(f"{text}\n", encoding="utf-8")
