"""Rewritten rounds on disk, so that a run that is killed at any moment can be continued.

    <name>.jsonl             {"key", "text", "flaw"}: a line for each caption with the rounds so far
    <name>.settings.json     the model with a checksum of its weights, the prompt, how it decodes

The key is a digest of the texts of a dialogue up to a round, so that dialogues that begin alike
share what was written, and runs over other dialogues can share a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirlab.errors import UserError
from cirlab.reading.journal import Journal, check_journal
from cirlab.reading.jsonl import Row


@dataclass(frozen=True)
class Text:
    """What was written of a dialogue up to a round.

    Attributes:
        text: empty where none came.
        flaw: what was wrong; None: nothing.
    """

    text: str
    flaw: str | None = None


def key_of(history: Sequence[str]) -> str:
    """Tells apart dialogues that differ anywhere."""
    return hashlib.sha256(json.dumps(list(history)).encode()).hexdigest()[:32]


class RewriteCache:
    """Rewritten rounds on disk, added to by one process at a time.

    Args:
        path: of the lines, `.jsonl`.

    Raises:
        UserError: the path has another suffix.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".jsonl":
            raise UserError(f"the cache of rewritten dialogues is {path}; name a .jsonl file")
        self.path, self.record = path, path.with_suffix(".settings.json")
        self._journal: Journal | None = None
        self._known: dict[str, Text] = {}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse what `writing` would refuse. Nothing is left of the attempt."""
        check_journal((self.path,), self.record, settings)

    def read(self, settings: Mapping[str, Any]) -> Mapping[str, Text]:
        """Texts by key, of what is there.

        Args:
            settings: what is known of them by now.

        Raises:
            UserError: they were made otherwise, or a line is malformed.
        """
        if not self.record.is_file():
            self.check(settings)
            return {}
        with self.writing(settings) as known:
            return dict(known)

    @contextmanager
    def writing(self, settings: Mapping[str, Any]) -> Iterator[Mapping[str, Text]]:
        """Hold the file; gives texts by key, what is added included.

        Raises:
            UserError: as `read`, or the file cannot be written.
        """
        with Journal((self.path,), self.record, settings) as self._journal:
            self._known = dict(map(_parsed, self._journal.rows(self.path)))
            yield self._known

    def add(self, texts: Mapping[str, Text]) -> None:
        """Keep some texts, by key; on their way to the disk when this returns."""
        assert self._journal is not None, "writing() was not entered"
        self._journal.append(
            {"key": key, "text": each.text, "flaw": each.flaw} for key, each in texts.items()
        )
        self._known.update(texts)


def _parsed(row: Row) -> tuple[str, Text]:
    text, flaw = row.get("text"), row.get("flaw")
    if not isinstance(text, str):
        raise row.wrong("text", "a text")
    if flaw is not None and not isinstance(flaw, str):
        raise row.wrong("flaw", "a text or null")
    return row.text("key"), Text(text, flaw)
