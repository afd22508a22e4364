from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.reading.json_files import (
    JsonArray,
    JsonDocument,
    read_json,
    read_names,
    read_text_mapping,
)

ROWS = [{"a": "é [ü]", "b": [1, {"c": "}"}]}, {"a": '"\\', "b": []}, {"a": "日本", "b": None}]


def write(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "file.json"
    text = content if isinstance(content, str) else json.dumps(content, **options)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
@pytest.mark.parametrize("at", [(), ("data", "rows")])
def test_elements_are_those_that_json_reads(
    tmp_path: Path, options: dict[str, Any], at: tuple[str, ...]
) -> None:
    content: Any = ROWS
    if at:
        content = {"rows": [], "data": {"x": {"rows": 1}, "rows": ROWS, "z": "]"}, "y": []}
    rows = JsonArray(write(tmp_path, content, **options), at=at)
    assert [row.fields for row in rows] == ROWS
    assert rows[-1].fields == rows[2].fields == rows[1:][1].fields == ROWS[2]
    assert [row.fields for row in pickle.loads(pickle.dumps(rows))] == ROWS
    assert rows[1].where == f"{tmp_path}/file.json, {'data.rows.' if at else ''}record 2"
    with pytest.raises(IndexError):
        rows[3]


def test_an_empty_array_has_no_element(tmp_path: Path) -> None:
    assert len(JsonArray(write(tmp_path, " [ ]\n"))) == 0


@pytest.mark.parametrize("cut", [1, 5, 30, -20, -3, -2, -1])
def test_a_file_that_is_cut_off_is_told(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, json.dumps(ROWS)[:cut])
    for read in (JsonArray, read_json, read_names, read_text_mapping):
        with pytest.raises(UserError, match=r"file\.json is not a whole JSON document"):
            read(path)


@pytest.mark.parametrize("text", ["[1 2]", "[1],2", "[{},]", '[{"a": 1}]]', "[1] x"])
def test_what_is_no_json_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"file\.json is not a whole JSON document"):
        JsonArray(write(tmp_path, text))


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    for text in ("", " \n"):
        for read in (JsonArray, read_json):
            with pytest.raises(UserError, match=r"file\.json is empty; get the file again"):
                read(write(tmp_path, text))


@pytest.mark.parametrize("cut", [-1, -2, -3, -8, -30])
def test_a_cut_after_a_nested_array_is_told(tmp_path: Path, cut: int) -> None:
    whole = json.dumps({"data": {"rows": ROWS, "more": ["x", "y", {"z": 1}]}})
    with pytest.raises(UserError, match="not a whole JSON document"):
        JsonArray(write(tmp_path, whole[:cut]), at=("data", "rows"))


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [{"id": 1}]} junk ]',
        '{"rows": [{"id": 1}]} {}',
        '{"rows": [{"id": 1}], junk}',
        '{"rows": [{"id": 1}],}',
        '{"rows": [{"id": 1}] "more": 1}',
        '{"rows": [{"id": 1}], "more" 1}',
        '{"rows": [{"id": 1}], "more": junk}',
    ],
)
def test_what_follows_a_nested_array_must_be_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="not a whole JSON document"):
        JsonArray(write(tmp_path, text), at=("rows",))


@pytest.mark.parametrize("content", [ROWS, {"data": ROWS}])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    rows = JsonArray(path, at=() if content is ROWS else ("data",))
    assert [row.fields for row in rows] == ROWS
    assert read_json(path) == content


def test_another_encoding_is_told_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(json.dumps([{"a": "é"}], ensure_ascii=False).encode("latin-1"))
    for read in (JsonArray, read_json, read_names):
        with pytest.raises(UserError, match=r"file\.json is not UTF-8 .*0xe9.*; convert it"):
            read(path)
    # A character that is cut in two ends the file too early, in the right encoding.
    path.write_bytes('[{"a": "é'.encode()[:-1])
    for read in (JsonArray, read_json, read_names):
        with pytest.raises(UserError, match="not a whole JSON document"):
            read(path)


@pytest.mark.parametrize(
    ("content", "at", "problem"),
    [
        ({"a": []}, (), r"holds no array at its top level"),
        ({"a": 1}, ("a",), r"holds no array at a"),
        ({"a": {}}, ("a", "rows"), r"has no key 'rows'"),
        ([], ("a",), r"holds no object that has a key 'a'"),
    ],
)
def test_another_shape_is_told(
    tmp_path: Path, content: Any, at: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        JsonArray(write(tmp_path, content), at=at)


def test_an_element_of_another_kind_is_told_by_number(tmp_path: Path) -> None:
    rows = JsonArray(write(tmp_path, [{}, 7]))
    with pytest.raises(
        UserError, match=r"file\.json, record 2: expected an object, found int; correct"
    ):
        rows[1]


def test_a_file_that_changes_in_use_is_told(tmp_path: Path) -> None:
    rows = JsonArray(write(tmp_path, ROWS))
    write(tmp_path, "[]")
    with pytest.raises(UserError, match="changed while it was in use"):
        rows[1]


def test_names_and_mappings(tmp_path: Path) -> None:
    assert read_names(write(tmp_path, ["a", "b"])) == ["a", "b"]
    assert read_text_mapping(write(tmp_path, {"a": "b"})) == {"a": "b"}


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_several_arrays_of_a_document(tmp_path: Path, options: dict[str, Any]) -> None:
    content = {"data": {"rows": [ROWS, []], "none": [], "texts": ["é", "", "日本 ]"], "z": [1]}}
    path = write(tmp_path, content, **options)
    document = JsonDocument(path, *(("data", key) for key in ("texts", "z", "none", "rows")))
    assert document.strings(("data", "texts")) == ["é", "", "日本 ]"]
    assert document.strings(("data", "none")) == []
    assert len(JsonArray(path, at=("data", "rows"), document=document)) == 2
    with pytest.raises(UserError, match=r"file\.json, data\.z, record 1: 1 is not a string"):
        document.strings(("data", "z"))
    with pytest.raises(UserError, match="has no key 'x'"):
        JsonDocument(path, ("data", "texts"), ("data", "x"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (["a", 1], r"file\.json, record 2: 1 is not a non-empty string; correct or remove it"),
        ([" "], r"file\.json, record 1: \" \" is not"),
        ({"a": 1}, r"expected an array of strings, found dict; check that it is the right file"),
        (["a", "b", "a"], r"record 3: a stands already in record 1; remove one of them"),
    ],
)
def test_other_things_than_names_are_told(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_names(write(tmp_path, content))


def test_other_things_than_mappings_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="expected an object, found list; check that it is the right"
    ):
        read_text_mapping(write(tmp_path, []))
    with pytest.raises(UserError, match=r"key 'a': null is not a non-empty string; correct"):
        read_text_mapping(write(tmp_path, {"a": None}))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.json"):
        JsonArray(tmp_path / "nothing.json")
