"""Kept pictures: found again, told from others, repaired."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import PIL.Image
import pytest

from cirlab.errors import UserError
from cirlab.imagination.request import Request
from cirlab.imagination.store import PictureStore

SETTINGS = {"pipeline": "some/pipeline", "weights": "abc", "steps": 3, "size": None}
STAR, RING = Request("a", 0, "a star"), Request("a", 1, "a ring à côté")


def store(folder: Path, **other: object) -> PictureStore:
    return PictureStore(str(folder), SETTINGS | other)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    made = store(tmp_path)
    for request, colour in ((STAR, "red"), (RING, "blue")):
        made.keep(request, 0, PIL.Image.new("RGB", (8, 8), colour))
    return tmp_path


def test_what_is_kept_is_not_drawn_again(filled: Path) -> None:
    assert sorted(path.name for path in filled.iterdir()) == [
        "a_0_0.png",
        "a_1_0.png",
        "settings.json",
    ]
    assert store(filled).lacking([STAR, RING], 1) == ([], 0)
    assert store(filled).lacking([RING, STAR], 2)[0] == [(RING, 1), (STAR, 1)]
    with PIL.Image.open(store(filled).path(RING, 0)) as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 255)


def test_texts_that_were_cut_are_still_told_of(filled: Path) -> None:
    store(filled).keep(STAR, 1, PIL.Image.new("RGB", (8, 8)), unread=4)
    assert store(filled).lacking([STAR, RING], 1)[1] == 0
    assert store(filled).lacking([STAR], 2) == ([], 1)


@pytest.mark.parametrize("harm", ["empty", "half", "flipped", "text"])
def test_a_picture_that_does_not_decode_is_told_of_and_lacking(
    filled: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(filled).path(STAR, 0)
    data = path.read_bytes()
    at = data.index(b"IDAT") + 6
    flipped = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    path.write_bytes(
        {"empty": b"", "half": data[:-20], "flipped": flipped, "text": b"a star"}[harm]
    )
    with caplog.at_level(logging.WARNING):
        assert store(filled).lacking([STAR, RING], 1)[0] == [(STAR, 0)]
    assert "1 pictures do not decode and are drawn again: a_0_0.png" in caplog.text
    assert not store(filled).holds(STAR, 0) and store(filled).holds(RING, 0)


def test_another_text_is_never_served_the_old_picture(filled: Path) -> None:
    with pytest.raises(UserError, match=r"1 pictures in .* other texts \(a_0_0.png\)"):
        store(filled).lacking([Request("a", 0, "a star."), RING], 1)
    PIL.Image.new("RGB", (8, 8)).save(filled / "b_0_0.png")
    with pytest.raises(UserError, match=r"other texts \(b_0_0.png\)"):
        store(filled).lacking([Request("b", 0, "a star")], 1)


def test_other_settings_are_refused_by_name(filled: Path) -> None:
    with pytest.raises(UserError, match=r"another steps \(3, now 4\)"):
        store(filled, steps=4)
    with pytest.raises(UserError, match=r"another size \(None, now 64\)"):
        store(filled, size=64)


def test_weights_are_compared_once_they_are_known(filled: Path) -> None:
    unknown = store(filled, weights=None)
    unknown.know(weights="abc")
    with pytest.raises(UserError, match=r"another weights \('abc', now 'def'\)"):
        unknown.know(weights="def")


def test_two_runs_that_begin_at_once_agree_or_one_is_refused(tmp_path: Path) -> None:
    first, same, other = store(tmp_path), store(tmp_path), store(tmp_path, steps=4)
    first.keep(STAR, 0, PIL.Image.new("RGB", (8, 8)))
    same.keep(RING, 0, PIL.Image.new("RGB", (8, 8)))
    with pytest.raises(UserError, match="another steps"):
        other.keep(RING, 1, PIL.Image.new("RGB", (8, 8)))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(UserError, match=r"holiday.png is there, but not settings.json"):
        store(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="does not hold settings"):
        store(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        store(tmp_path / "file" / "folder").keep(STAR, 0, PIL.Image.new("RGB", (8, 8)))
