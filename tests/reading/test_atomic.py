from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.reading.atomic import whole_file, whole_folder


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("some")
        assert not path.exists()
    assert path.read_text() == "some"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="full"), whole_file(path) as unfinished:
        unfinished.write_text("ne")
        raise RuntimeError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the first ended last"


def test_others_may_read_what_they_may_read_of_other_files(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").write_text("x")
    with whole_file(tmp_path / "whole") as unfinished:
        unfinished.write_text("x")
    assert (tmp_path / "whole").stat().st_mode == plain.stat().st_mode


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for text in ("first", "second"):
        with whole_folder(path) as unfinished:
            (unfinished / text).write_text(text)
            assert not (path / text).exists()
        assert [file.name for file in path.iterdir()] == [text]
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "folder"
    if there:
        path.mkdir()
        (path / "old").write_text("old")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="full"), whole_folder(path) as unfinished:
        (unfinished / "new").write_text("ne")
        raise RuntimeError("full")
    assert set(tmp_path.rglob("*")) == before
