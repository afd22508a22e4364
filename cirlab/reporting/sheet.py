"""Contact sheets: queries and what was found for them, as one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

#: Side of a thumbnail, distance between cells, width of the text column (pixels).
THUMB, GAP, TEXT_WIDTH = 96, 10, 230
_FRAME, _FONT_SIZE, _LINE = 4, 13, 17
_MAX_LINES = THUMB // _LINE - 1
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (205, 205, 205)
_HIT, _MISS = (22, 145, 62), (190, 60, 40)


@dataclass(frozen=True)
class Row:
    """One query of a sheet.

    Attributes:
        image: the reference image, if the query has one.
        text: its words.
        target: the principal target; None where answers are held back.
        found: the best images, best first.
        correct: for each of them, whether it is a target.
        rank: of the best target; 0 where answers are held back.
    """

    image: PIL.Image.Image | None
    text: str
    target: PIL.Image.Image | None
    found: Sequence[PIL.Image.Image]
    correct: Sequence[bool]
    rank: int


def draw(rows: Sequence[Row], title: str) -> PIL.Image.Image:
    """Draw one line per query: its image, its text and rank, its target, the images found.

    Targets among the images found have a green frame, and so has the target's own column.

    Args:
        rows: at least one.
        title: written on top.
    """
    columns = max(len(row.found) for row in rows)
    step = THUMB + GAP
    head = 2 * _LINE + 2 * GAP
    width = GAP + 2 * step + TEXT_WIDTH + GAP + GAP + columns * step
    sheet = PIL.Image.new("RGB", (width, head + len(rows) * step), _PAPER)
    pen = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    left = _columns(columns)
    pen.text((GAP, GAP), title, fill=_INK, font=font)
    for name, x in left.items():
        pen.text((x, GAP + _LINE + GAP // 2), name, fill=_INK, font=font)
    for i, row in enumerate(rows):
        _draw_row(sheet, pen, font, row, left, top=head + i * step)
    return sheet


def _columns(found: int) -> dict[str, int]:
    """Left edge of every column by its heading, in pixels."""
    text = GAP + THUMB + GAP
    target = text + TEXT_WIDTH + GAP
    first = target + THUMB + 2 * GAP
    ranks = {str(i + 1): first + i * (THUMB + GAP) for i in range(found)}
    return {"query": GAP, "text": text, "target": target} | ranks


def _draw_row(
    sheet: PIL.Image.Image,
    pen: PIL.ImageDraw.ImageDraw,
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont,
    row: Row,
    left: dict[str, int],
    top: int,
) -> None:
    if row.image is not None:
        _paste(sheet, row.image, left["query"], top)
    lines = _wrapped(row.text, pen, font)
    pen.text((left["text"], top), "\n".join(lines), fill=_INK, font=font, spacing=3)
    if row.target is not None:
        verdict = _HIT if row.rank <= len(row.found) else _MISS
        where = (left["text"], top + THUMB - _LINE)
        pen.text(where, f"best target: rank {row.rank:,}", fill=verdict, font=font)
        _paste(sheet, row.target, left["target"], top, frame=_HIT)
    for i, (image, is_target) in enumerate(zip(row.found, row.correct, strict=True)):
        _paste(sheet, image, left[str(i + 1)], top, frame=_HIT if is_target else None)


def _wrapped(
    text: str,
    pen: PIL.ImageDraw.ImageDraw,
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont,
) -> list[str]:
    """Break a text into the lines of its column; what does not fit ends in an ellipsis."""
    flat = " ".join(text.split())
    for characters in range(60, 10, -2):
        lines = textwrap.wrap(flat, width=characters, max_lines=_MAX_LINES, placeholder=" ...")
        if all(pen.textlength(line, font=font) <= TEXT_WIDTH for line in lines):
            break
    return lines


def _paste(
    sheet: PIL.Image.Image,
    image: PIL.Image.Image,
    x: int,
    y: int,
    frame: tuple[int, int, int] | None = None,
) -> None:
    """Put a thumbnail into its cell, the frame around it."""
    thumb = PIL.ImageOps.contain(image.convert("RGB"), (THUMB, THUMB))
    x, y = x + (THUMB - thumb.width) // 2, y + (THUMB - thumb.height) // 2
    edge, colour = (_FRAME, frame) if frame else (1, _FAINT)
    box = (x - edge, y - edge, x + thumb.width + edge - 1, y + thumb.height + edge - 1)
    PIL.ImageDraw.Draw(sheet).rectangle(box, fill=colour)
    sheet.paste(thumb, (x, y))
