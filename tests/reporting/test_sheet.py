from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from cirlab.reporting import sheet

GREEN = (22, 145, 62)


def square(shade: int, size: tuple[int, int] = (20, 20)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, (shade, shade, shade))


def row(correct: list[bool], text: str = "make it darker", rank: int = 1) -> sheet.Row:
    found = [square(10 * i) for i in range(len(correct))]
    return sheet.Row(square(200), text, square(90), found, correct, rank)


def is_framed(drawn: PIL.Image.Image, box: tuple[int, int]) -> bool:
    """Whether the cell at (left, top) has a green edge on all four sides."""
    left, top = box
    middle, far = sheet.THUMB // 2, sheet.THUMB + 1
    edges = [(middle, -2), (middle, far), (-2, middle), (far, middle)]
    return all(drawn.getpixel((left + x, top + y)) == GREEN for x, y in edges)


def cells(drawn: PIL.Image.Image, rows: int) -> list[list[tuple[int, int]]]:
    """Left top corners of the cells of target and found images, from the right edge."""
    step = sheet.THUMB + sheet.GAP
    head = drawn.height - rows * step
    count = 4
    first = drawn.width - count * step
    lefts = [first - step - sheet.GAP, *(first + i * step for i in range(count))]
    return [[(left, head + i * step) for left in lefts] for i in range(rows)]


def test_targets_and_only_targets_are_framed() -> None:
    rows = [row([False, True, False, True]), row([False] * 4, rank=77)]
    drawn = sheet.draw(rows, title="two queries")
    for given, boxes in zip(rows, cells(drawn, 2), strict=True):
        assert [is_framed(drawn, box) for box in boxes] == [True, *given.correct]


def test_images_stand_in_the_order_of_the_ranking() -> None:
    drawn = sheet.draw([row([False] * 4)], title="")
    middle = sheet.THUMB // 2
    boxes = cells(drawn, 1)[0]
    shades = [drawn.getpixel((left + middle, top + middle))[0] for left, top in boxes]
    assert shades == [90, 0, 10, 20, 30]


@pytest.mark.parametrize("size", [(400, 100), (30, 300), (1, 1)])
def test_pictures_keep_their_proportions(size: tuple[int, int]) -> None:
    given = sheet.Row(None, "", square(9, size), [square(9, size)], [False], 1)
    drawn = sheet.draw([given], title="")
    dark = int((np.asarray(drawn) == 9).all(axis=2).sum()) / 2
    width, height = size
    scale = sheet.THUMB / max(size)
    assert dark == pytest.approx(width * height * scale**2, rel=0.05)


@pytest.mark.parametrize(
    "text", ["", "word " * 200, "x" * 500, "größer, 赤い", "two\nlines\tand a tab"]
)
def test_any_text_stays_in_its_column(text: str) -> None:
    drawn = sheet.draw([row([True], text=text)], title="")
    blank = sheet.draw([row([True], text="")], title="")
    left = 2 * sheet.GAP + sheet.THUMB
    # A letter's edge may be smoothed over a pixel beside its column.
    column = range(left - 1, left + sheet.TEXT_WIDTH + 1)
    for x in range(drawn.width):
        if x not in column:
            strip = (x, 0, x + 1, drawn.height)
            assert drawn.crop(strip).tobytes() == blank.crop(strip).tobytes()
    assert (drawn.tobytes() != blank.tobytes()) == bool(text)


def test_rows_may_have_found_fewer_images() -> None:
    drawn = sheet.draw([row([True]), row([False, False, False, True])], title="")
    assert [is_framed(drawn, box) for box in cells(drawn, 2)[0]] == [True, True] + [False] * 3
