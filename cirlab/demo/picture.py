"""The image with what was said of it, as one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch

#: Side of the image, width of the text beside it, distances (pixels).
SIDE, TEXT_WIDTH, GAP = 320, 620, 16
_FONT_SIZE, _LINE, _BAR = 15, 21, 28
_CHARACTERS = 78
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
#: Ends of the scale of features, below and above zero (Okabe and Ito's blue and vermilion).
_BELOW, _ABOVE = (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True)
class Section:
    """One ability.

    Attributes:
        title: what it is, and by which model.
        lines: what it said.
        features: drawn as a strip of colours, shape (D,); None draws none.
    """

    title: str
    lines: Sequence[str]
    features: torch.Tensor | None = None


def draw_sections(image: PIL.Image.Image, sections: Sequence[Section]) -> PIL.Image.Image:
    """The image on the left, the sections beneath each other on its right.

    Args:
        image: of any size.
        sections: at least one.
    """
    wrapped = [[part for line in each.lines for part in _wrapped(line)] for each in sections]
    heights = [
        _LINE * (1 + len(lines)) + (_BAR if each.features is not None else 0) + GAP
        for each, lines in zip(sections, wrapped, strict=True)
    ]
    size = (3 * GAP + SIDE + TEXT_WIDTH, 2 * GAP + max(SIDE, sum(heights)))
    sheet = PIL.Image.new("RGB", size, _PAPER)
    # Small pictures, such as the built-in world's, are enlarged.
    sheet.paste(PIL.ImageOps.contain(image.convert("RGB"), (SIDE, SIDE)), (GAP, GAP))
    pen = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    left, top = 2 * GAP + SIDE, GAP
    for section, lines, height in zip(sections, wrapped, heights, strict=True):
        pen.text((left, top), section.title, fill=_FAINT, font=font)
        for number, line in enumerate(lines, start=1):
            pen.text((left, top + number * _LINE), line, fill=_INK, font=font)
        if section.features is not None:
            strip = _strip(section.features).resize(
                (TEXT_WIDTH, _BAR - 6), PIL.Image.Resampling.NEAREST
            )
            sheet.paste(strip, (left, top + (1 + len(lines)) * _LINE + 3))
        top += height
    return sheet


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _CHARACTERS, subsequent_indent="    ") or [""]


def _strip(features: torch.Tensor) -> PIL.Image.Image:
    """One pixel for each number of (D,); the paler, the nearer to zero."""
    strip = PIL.Image.new("RGB", (len(features), 1))
    largest = features.abs().max().clamp(min=1e-12)
    for place, share in enumerate((features / largest).tolist()):
        end = _ABOVE if share > 0 else _BELOW
        shade = tuple(round(255 + (full - 255) * abs(share)) for full in end)
        strip.putpixel((place, 0), shade)
    return strip
