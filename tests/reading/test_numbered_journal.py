"""A journal of numbered pieces: each is done once, over however many sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.reading.jsonl import Row
from cirlab.reading.numbered_journal import NumberedJournal


class Weights(NumberedJournal):
    key, piece, source = "at", "stone", "quarry"

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.seen: list[tuple[str, float]] = []
        files = (folder / "heavy.jsonl", folder / "light.jsonl")
        super().__init__(files, folder / "scale.json", {"scale": 1}, count)

    def take(self, row: Row, file: Path) -> None:
        self.seen.append((file.stem, row["kg"]))


def test_a_later_session_knows_what_is_done_in_any_of_the_files(tmp_path: Path) -> None:
    with Weights(tmp_path) as weights:
        assert weights.lacks([0]) and not weights.seen
        weights.append([{"at": 2, "kg": 9}], [{"at": 0, "kg": 1}])
    with Weights(tmp_path) as weights:
        assert weights.seen == [("heavy", 9), ("light", 1)]
        assert not weights.lacks([0, 2]) and weights.lacks([0, 1, 2])


@pytest.mark.parametrize("number", [1, 4])
def test_a_piece_that_is_there_twice_or_unknown_is_refused_and_the_files_let_go_of(
    tmp_path: Path, number: int
) -> None:
    with Weights(tmp_path) as weights:
        weights.append([{"at": 1, "kg": 9}], [{"at": number, "kg": 1}])
    says = (
        rf"light\.jsonl, line 1: the stone {number} is there twice or not in the quarry; choose "
        "another output"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=says):
            Weights(tmp_path)
