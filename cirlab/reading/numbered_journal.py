"""A journal of numbered pieces of work, each done once however often its run is begun again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from cirlab.errors import UserError
from cirlab.reading.journal import Journal, Settings
from cirlab.reading.jsonl import Row


class NumberedJournal(Journal, ABC):
    """A journal whose lines each name the piece of work they are of.

    Subclasses say what a piece is called, and count what its line tells.

    Args:
        files: of lines, as `Journal` takes them; a piece stands in one of them.
        record: of the settings.
        settings: what decides the lines, as JSON keeps it.
        count: how many pieces there are.
        output: what errors call the run's output; None: the first file.

    Raises:
        UserError: as `Journal`, or a line is of no piece or of one that another line is of.
    """

    #: Field of a line with the number of its piece, what a piece is called, and where it is from.
    key: ClassVar[str]
    piece: ClassVar[str]
    source: ClassVar[str]

    def __init__(
        self,
        files: Sequence[Path],
        record: Path,
        settings: Settings,
        count: int,
        output: Path | None = None,
    ) -> None:
        super().__init__(files, record, settings, output)
        #: Which pieces are done, by number.
        self.done = bytearray(count)
        try:
            for file in self.files:
                for row in self.rows(file):
                    self._mark(row)
                    self.take(row, file)
        except UserError:
            self.close()
            raise

    @abstractmethod
    def take(self, row: Row, file: Path) -> None:
        """Count a line that an earlier session has left in one of the files."""

    def lacks(self, numbers: Iterable[int]) -> bool:
        """Whether any of these pieces is still to be done."""
        return not all(self.done[number] for number in numbers)

    def _mark(self, row: Row) -> None:
        number = row.number(self.key)
        if number >= len(self.done) or self.done[number]:
            raise row.error(
                f"the {self.piece} {number} is there twice or not in the {self.source}; choose "
                "another output"
            )
        self.done[number] = True
