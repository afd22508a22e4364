"""Triplets on disk, line by line, so that a run that is killed at any moment can be continued.

    <name>.jsonl             {"pair", "image", "caption", "instruction", "modified_caption"}
    <name>.set_aside.jsonl   {"pair", "image", "caption", "reason", "answers": [..]}
    <name>.settings.json     what made them: a run with other settings is refused

`pair` is the number of the caption in the input. A batch's lines are appended together
(`cirlab.reading.journal`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirlab.errors import UserError
from cirlab.reading.journal import check_journal
from cirlab.reading.jsonl import Row
from cirlab.reading.numbered_journal import NumberedJournal
from cirlab.triplets.answers import Change, Reason
from cirlab.triplets.captions import Captioned


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

    def counts(self) -> dict[str, int]:
        """For a bar."""
        aside = self.set_aside.total()
        return {"completed": self.total, "made": self.made, "set_aside": aside}


class TripletFiles(NumberedJournal):
    """The files of one run, held by one process at a time.

    Args:
        path: of the triplets, `.jsonl`.
        pairs: how many captions there are.
        settings: what decides the answers, as JSON keeps it.

    Raises:
        UserError: the path has another suffix, see `NumberedJournal`.
    """

    key, piece, source = "pair", "pair", "input"

    def __init__(self, path: Path, pairs: int, settings: Mapping[str, Any]) -> None:
        self.path, self.aside, record = _names(path)
        self.tally = Tally()
        super().__init__((self.path, self.aside), record, settings, pairs)

    def add(self, outcomes: Iterable[tuple[Captioned, Outcome]]) -> None:
        """Write what is not there yet; lines are on their way to the disk when this returns."""
        made: list[dict[str, Any]] = []
        aside: list[dict[str, Any]] = []
        for captioned, outcome in outcomes:
            if self.done[outcome.pair]:
                continue
            self.done[outcome.pair] = True
            row: dict[str, Any] = {"pair": outcome.pair, **captioned._asdict()}
            if isinstance(outcome.found, Change):
                self.tally.made += 1
                row["instruction"] = outcome.found.instruction
                row["modified_caption"] = outcome.found.modified_caption
                made.append(row)
            else:
                self.tally.set_aside[outcome.found.value] += 1
                aside.append(row | {"reason": outcome.found, "answers": outcome.answers})
        self.append(made, aside)

    def take(self, row: Row, file: Path) -> None:
        if file == self.path:
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
    *files, record = _names(path)
    check_journal(files, record, settings)


def _names(path: Path) -> tuple[Path, Path, Path]:
    """The files of triplets, of what is set aside, and of the settings."""
    if path.suffix != ".jsonl":
        raise UserError(f"the output {path} must end in .jsonl; rename it")
    return path, path.with_suffix(".set_aside.jsonl"), path.with_suffix(".settings.json")
