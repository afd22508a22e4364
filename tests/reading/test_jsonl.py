from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import cirlab.reading.jsonl
from cirlab.errors import UserError
from cirlab.reading.jsonl import JoinedLines, JsonLines, Row, unique


def write(path: Path, text: str) -> JsonLines:
    path.write_bytes(text.encode("utf-8"))
    return JsonLines(path)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_rows_are_those_of_a_plain_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: str
) -> None:
    """Whatever the size of the pieces in which the file is scanned."""
    monkeypatch.setattr(cirlab.reading.jsonl, "_SCAN_BYTES", chunk)
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


def test_forked_workers_read_one_open_file_without_disturbing_each_other(tmp_path: Path) -> None:
    rows = write(tmp_path / "x.jsonl", "".join(f'{{"a": {i}}}\n' for i in range(4000)))
    assert rows[0]["a"] == 0  # the file is open before the workers are there
    loader = DataLoader(rows, batch_size=50, num_workers=2, collate_fn=list)  # type: ignore[arg-type]
    assert [row["a"] for batch in loader for row in batch] == list(range(4000))


def test_memory_is_eight_bytes_a_row(tmp_path: Path) -> None:
    rows = write(tmp_path / "x.jsonl", '{"a": 1}\n' * 5000)
    arrays = [value for value in vars(rows).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 8 * 5001


TEXT = '{"a": 0}\n\n{"a": 1}\n{"a": 2}'


def test_a_cached_index_is_read_back_instead_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "x.jsonl", tmp_path / "deep" / "cache"
    path.write_text(TEXT)
    first = JsonLines(path, cache=cache)
    assert [file.suffix for file in cache.iterdir()] == [".npy"]

    def never(path: Path) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr(cirlab.reading.jsonl, "_scan", never)
    again = JsonLines(path, cache=cache)
    for rows in (first, again):
        assert [row["a"] for row in rows] == [0, 1, 2]
        assert rows[1].where == f"{path}, line 3"


def test_a_changed_file_is_indexed_anew(tmp_path: Path) -> None:
    path, cache = tmp_path / "x.jsonl", tmp_path / "cache"
    path.write_text(TEXT)
    assert len(JsonLines(path, cache=cache)) == 3
    path.write_text('{"a": 7}\n' * 5)
    assert [row["a"] for row in JsonLines(path, cache=cache)] == [7] * 5
    # Of the same size, and changed in the same second.
    path.write_text('{"bc":7}\n{"a":7}\n\n' + '{"a": 7}\n' * 3)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert len(JsonLines(path, cache=cache)) == 5


def test_equal_names_in_different_folders_have_their_own_entries(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text(f'{{"a": "{folder}"}}\n')
    found = [JsonLines(tmp_path / f / "x.jsonl", cache=tmp_path / "c")[0]["a"] for f in "ab"]
    assert found == ["a", "b"]
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_cached_index_is_mapped_and_does_not_travel(tmp_path: Path) -> None:
    path, cache = tmp_path / "x.jsonl", tmp_path / "cache"
    path.write_text('{"a": 1}\n' * 5000)
    rows = JsonLines(path, cache=cache)
    assert isinstance(rows._bounds, np.memmap)
    packed = pickle.dumps(rows)
    assert len(packed) < 2000
    there = pickle.loads(packed)
    assert isinstance(there._bounds, np.memmap)
    assert there[4999]["a"] == 1


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(TEXT)
    (tmp_path / "taken").touch()
    assert len(JsonLines(path, cache=tmp_path / "taken" / "cache")) == 3
    assert "is not kept" in caplog.text


def test_joined_files_are_numbered_through(tmp_path: Path) -> None:
    parts = ['{"a": 0}\n{"a": 1}\n', "", '{"a": 2}\n']
    files = [write(tmp_path / f"{i}.jsonl", text) for i, text in enumerate(parts)]
    joined = JoinedLines(files)
    assert [row["a"] for row in joined] == [0, 1, 2]
    assert [joined.locate(i)[0] for i in range(3)] == [0, 0, 2]
    with pytest.raises(IndexError):
        joined.locate(3)


ROW = Row(
    {
        "s": "x",
        "n": 7,
        "e": " ",
        "l": ["a", "b"],
        "m": ["a", 1],
        "o": [{"k": "v"}],
        "none": None,
        "i": [0, 7],
        "yes": True,
        "minus": -1,
        "half": [1, 0.5],
    },
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
    assert ROW.number("n") == 7
    assert ROW.numbers("i") == (0, 7)
    inner = Row({"a": {"k": 3}}, "f").object("a")
    assert (inner.number("k"), inner.where) == (3, "f, a")


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
        ("number", "s", "the field 's' is \"x\", but must be a whole number from 0"),
        ("number", "yes", "is true, but must be"),
        ("number", "minus", "is -1, but must be"),
        ("number", "absent", "is missing"),
        ("numbers", "n", "must be a list of one or more whole numbers from 0"),
        ("numbers", "half", "must be a list of one or more whole numbers from 0"),
        ("object", "l", "must be an object"),
        ("object", "absent", "is missing"),
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


def test_what_stands_twice_is_told_with_both_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n\n{"id": 2}\n{"id": 1}\n')
    found = unique(JsonLines(path), lambda row: f"the id {row.number('id')}", "remove one")
    assert [next(found)["id"], next(found)["id"]] == [1, 2]
    with pytest.raises(UserError, match=r"line 4: the id 1 stands already in .*line 1; remove one"):
        next(found)
