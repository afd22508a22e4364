"""The file of answers: in the gallery's order, each once, with a word on those that are no use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cirlab.reporting.answers import FILE, AnswerSheet, Said


def said(row: int, question: str = "why?", answer: str = "so", cut: bool = False) -> Said:
    return Said("world", row, f"image {row}", question, answer, cut)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_answers_stand_in_the_gallerys_order_once(tmp_path: Path) -> None:
    sheet = AnswerSheet()
    for one in (said(10, "who?"), said(9), said(10, "how?", "für 3 €"), said(9)):
        sheet.note(one)
    sheet.write(tmp_path / "run", longest=8)
    first = {"gallery": "world", "image": "image 9", "question": "why?", "answer": "so"}
    assert lines(tmp_path / "run")[0] == first | {"cut": False}
    found = [(line["image"], line["question"]) for line in lines(tmp_path / "run")]
    assert found == [("image 9", "why?"), ("image 10", "how?"), ("image 10", "who?")]
    assert "für 3 €" in (tmp_path / "run" / FILE).read_text(encoding="utf-8")
    sheet.note(said(1))
    sheet.write(tmp_path / "run", longest=8)
    assert [line["image"] for line in lines(tmp_path / "run")] == ["image 1"]


def test_empty_and_cut_answers_are_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheet = AnswerSheet()
    for row in range(5):
        sheet.note(said(row, answer="" if row < 3 else "so", cut=row == 4))
    sheet.write(tmp_path, longest=8)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 5 answers are empty; their images are ranked behind all others",
        "1 of 5 answers were cut off at max_new_tokens 8",
    ]
    caplog.clear()
    sheet.note(said(0))
    sheet.write(tmp_path, longest=8)
    assert caplog.records == []


def test_where_nothing_was_answered_there_is_no_file(tmp_path: Path) -> None:
    AnswerSheet().write(tmp_path / "run", longest=8)
    assert not (tmp_path / "run").exists()
