"""Pictures that were made elsewhere."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

from cirlab.errors import UserError
from cirlab.imagination import GivenPictures, Request

REQUESTS = [Request("0", 0, "a star"), Request("0", 1, "a red star"), Request("1", 0, "a ring")]


def put(folder: Path, name: str, colour: str) -> None:
    PIL.Image.new("RGB", (8, 8), colour).save(folder / name)


def test_released_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, colour in (("0_0.jpg", "red"), ("0_1.png", "lime"), ("1_0_0.png", "blue")):
        put(tmp_path, name, colour)
    put(tmp_path, "1_0.jpg", "white")  # the one with a number is meant
    ((first,), (second,), (third,)) = GivenPictures(str(tmp_path)).pictures(REQUESTS)
    assert [image.id for image in (first, second, third)] == ["0_0_0", "0_1_0", "1_0_0"]
    assert second.load().getpixel((4, 4)) == (0, 255, 0)
    assert third.load().getpixel((4, 4)) == (0, 0, 255)
    red = first.load().getpixel((4, 4))
    assert isinstance(red, tuple) and red[0] > 240 and max(red[1:]) < 16


def test_several_of_a_round_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "lime")):
        put(tmp_path, f"0_0_{number}.png", colour)
    (found,) = GivenPictures(str(tmp_path), images=2).pictures(REQUESTS[:1])
    assert [image.load().getpixel((0, 0)) for image in found] == [(255, 0, 0), (0, 255, 0)]


def test_missing_ones_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, "0_0.jpg", "red")
    with pytest.raises(UserError, match=r"2 of 3 pictures are not in .* \(0_1_0, 1_0_0\)"):
        GivenPictures(str(tmp_path)).pictures(REQUESTS)
    # One picture of a round is not two.
    with pytest.raises(UserError, match=r"1 of 2 pictures .* \(0_0_1\)"):
        GivenPictures(str(tmp_path), images=2).pictures(REQUESTS[:1])


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images is 0"):
        GivenPictures(str(tmp_path), images=0)
    with pytest.raises(UserError, match="no folder of pictures"):
        GivenPictures(str(tmp_path / "none"))
