from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

import cirlab.jsonl
from cirlab.errors import UserError
from cirlab.jsonl import JoinedLines, JsonLines, Row


def write(path: Path, text: str) -> JsonLines:
    path.write_bytes(text.encode("utf-8"))
    return JsonLines(path)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_rows_are_those_of_a_plain_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: str
) -> None:
    """Whatever the size of the pieces in which the file is scanned."""
    monkeypatch.setattr(cirlab.jsonl, "_SCAN_BYTES", chunk)
    values = [{"a": 1}, {"b": "zwei äöü"}, {}, {"c": [1, 2]}]
    text = (end or "\n").join(json.dumps(v, ensure_ascii=False) for v in values) + end
    rows = write(tmp_path / "x.jsonl", text)
    assert [dict(row) for row in rows] == values
    assert dict(rows[-1]) == values[-1]
    assert [dict(row) for row in rows[1:3]] == values[1:3]


def test_empty_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    rows = write(tmp_path / "x.jsonl", '\n{"a": 1}\n\n\n{"a": 2}\n\n')
    assert [row["a"] for row in rows] == [1, 2]
    assert [row.where for row in rows] == [
        f"{tmp_path}/x.jsonl, line 2",
        f"{tmp_path}/x.jsonl, line 5",
    ]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert len(write(tmp_path / "x.jsonl", "")) == 0


@pytest.mark.parametrize("at", [2, -3])
def test_there_is_no_row_outside(tmp_path: Path, at: int) -> None:
    with pytest.raises(IndexError):
        write(tmp_path / "x.jsonl", "{}\n{}\n")[at]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "not valid JSON"),
        ("{} {}", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("   ", "not valid JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    rows = write(tmp_path / "x.jsonl", f'{{"a": 1}}\n{line}\n')
    with pytest.raises(UserError, match=rf"x\.jsonl, line 2: {problem}"):
        rows[1]


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: not valid JSON"):
        JsonLines(tmp_path / "x.jsonl")[0]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        JsonLines(tmp_path / "none.jsonl")


def test_rows_travel_to_workers(tmp_path: Path) -> None:
    rows = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert rows[0]["a"] == 1
    assert pickle.loads(pickle.dumps(rows))[1]["a"] == 2


def test_joined_files_are_numbered_through(tmp_path: Path) -> None:
    parts = ['{"a": 0}\n{"a": 1}\n', "", '{"a": 2}\n']
    files = [write(tmp_path / f"{i}.jsonl", text) for i, text in enumerate(parts)]
    joined = JoinedLines(files)
    assert [row["a"] for row in joined] == [0, 1, 2]
    assert [joined.locate(i)[0] for i in range(3)] == [0, 0, 2]
    with pytest.raises(IndexError):
        joined.locate(3)


ROW = Row(
    {"s": "x", "n": 7, "e": " ", "l": ["a", "b"], "m": ["a", 1], "o": [{"k": "v"}], "none": None},
    "f, line 9",
)


def test_fields_of_the_right_type() -> None:
    assert ROW.text("s") == "x"
    assert ROW.text("n") == "7"
    assert ROW.texts("l") == ("a", "b")
    assert ROW.optional_texts("l") == ("a", "b")
    assert ROW.optional_texts("none") is None
    assert ROW.optional_texts("absent") is None
    assert Row({"l": []}, "").optional_texts("l") == ()
    assert ROW.objects("o")[0].text("k") == "v"


@pytest.mark.parametrize(
    ("method", "field", "problem"),
    [
        ("text", "absent", "the field 'absent' is missing"),
        ("text", "e", "the field 'e' is \" \", but must be a non-empty string"),
        ("text", "l", "must be a non-empty string"),
        ("text", "none", "'none' is null, but must be"),
        ("texts", "s", "must be a list"),
        ("texts", "m", "must be a list"),
        ("texts", "absent", "is missing"),
        ("optional_texts", "s", "must be a list"),
        ("objects", "l", "must be a list of one or more objects"),
        ("objects", "absent", "is missing"),
    ],
)
def test_fields_of_the_wrong_type_are_named(method: str, field: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        getattr(ROW, method)(field)
    sentence = str(caught.value)
    assert sentence.startswith("f, line 9: ")
    assert problem in sentence


def test_a_field_within_a_list_is_named_with_its_position() -> None:
    row = Row({"parts": [{"text": "a"}, {"txt": "b"}]}, "f, line 2")
    with pytest.raises(UserError, match=r"f, line 2, parts\[1\]: the field 'text' is missing"):
        [part.text("text") for part in row.objects("parts")]


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        Row({"a": ["x" * 500, 1]}, "here").texts("a")
    assert len(str(caught.value)) < 200
