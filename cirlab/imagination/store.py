"""Drawn pictures on disk, for all runs that ask for the same, whatever moment one is killed at.

    <folder>/settings.json               what draws: pipeline and its weights, sampler, seed
    <folder>/<dialogue>_<round>_<i>.png  with the text it was drawn from among its metadata

A picture is there whole or not at all, and says itself what it shows, so there is no list that
could be behind. Other settings, or another text under a name, are refused: nothing that took hours
is drawn over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from cirlab.errors import UserError
from cirlab.imagination.request import Request, named
from cirlab.reading.atomic import whole_file
from cirlab.reading.journal import told

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
PROMPT, UNREAD = "prompt", "unread_tokens"


@dataclass(frozen=True)
class Kept:
    """What a picture says of itself.

    Attributes:
        prompt: the text that it was drawn from; None: another program has made it.
        unread: tokens at the text's end that no text encoder has read.
    """

    prompt: str | None
    unread: int


class PictureStore:
    """A folder of pictures of one pipeline.

    Args:
        folder: made when the first picture is kept.
        settings: what decides the pictures, as JSON keeps it; None as a value: not known now.

    Raises:
        UserError: what lies there was drawn with other settings, or by something else.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self._check()

    def path(self, request: Request, number: int) -> Path:
        """Where a picture of the request lies, or will."""
        return self.folder / f"{request.picture(number)}.png"

    def holds(self, request: Request, number: int) -> bool:
        """Whether a picture is there and decodes."""
        return _read(self.path(request, number)) is not None

    def lacking(
        self, requests: Sequence[Request], images: int
    ) -> tuple[list[tuple[Request, int]], int]:
        """What is still to be drawn; pictures that do not decode are told of, and among it.

        Args:
            requests: whose pictures are looked for.
            images: of each.

        Returns:
            Requests with the numbers of their pictures, in order; and how many requests have a
            picture that was drawn from a part of their text.

        Raises:
            UserError: a picture was drawn from another text.
        """
        lacking, broken, others, cut = [], [], [], 0
        present = {path.name for path in self.folder.glob("*.png")}
        for request in requests:
            partly = False
            for number in range(images):
                name = f"{request.picture(number)}.png"
                kept = _read(self.folder / name) if name in present else None
                if kept is None:
                    lacking.append((request, number))
                    broken += [name] if name in present else []
                elif kept.prompt != request.prompt:
                    others.append(name)
                else:
                    partly |= kept.unread > 0
            cut += partly
        if others:
            raise UserError(
                f"{len(others):,} pictures in {self.folder} were drawn from other texts "
                f"({named(others)}); choose another folder, or delete them to have them drawn anew"
            )
        if broken:
            log.warning(
                "%s: %s pictures do not decode and are drawn again: %s",
                self.folder,
                f"{len(broken):,}",
                named(broken),
            )
        return lacking, cut

    def keep(
        self, request: Request, number: int, picture: PIL.Image.Image, unread: int = 0
    ) -> None:
        """Write a picture, whole."""
        about = PngInfo()
        about.add_itxt(PROMPT, request.prompt)
        about.add_itxt(UNREAD, str(unread))
        path = self.path(request, number)
        with told(self.folder, (path,)):
            self._begin()
            with whole_file(path) as unfinished:
                picture.convert("RGB").save(unfinished, format="PNG", pnginfo=about)

    def know(self, **settings: Any) -> None:
        """Take settings that were not known when the store was opened.

        Raises:
            UserError: the pictures that lie there were drawn with others.
        """
        self.settings |= settings
        self._check()

    def _begin(self) -> None:
        """Write the settings before the first picture, or see that another run's are the same."""
        path = self.folder / SETTINGS
        if path.is_file():
            self._check()
            return
        with whole_file(path) as unfinished:
            text = json.dumps(self.settings, indent=2, ensure_ascii=False)
            unfinished.write_text(f"{text}\n", encoding="utf-8")

    def _check(self) -> None:
        path = self.folder / SETTINGS
        if not path.is_file():
            if first := next(self.folder.glob("*.png"), None):
                raise UserError(
                    f"{first} is there, but not {SETTINGS}, which tells what drew it; choose "
                    "another folder, or take these pictures as given ones"
                )
            return
        try:
            kept = json.loads(path.read_bytes())
        except ValueError:
            kept = None
        if not isinstance(kept, dict):
            raise UserError(f"{path} does not hold settings; choose another folder")
        for name, value in self.settings.items():
            # What is not known now is not needed either, where every picture is there.
            if value is not None and kept.get(name) != json.loads(json.dumps(value)):
                raise UserError(
                    f"the pictures in {self.folder} were drawn with another {name} "
                    f"({kept.get(name)!r}, now {value!r}); choose another folder, or the settings "
                    f"that stand in {SETTINGS}"
                )


def _read(path: Path) -> Kept | None:
    """What a picture says of itself; None where it does not decode."""
    try:
        with PIL.Image.open(path) as picture:
            if not isinstance(picture, PngImageFile):
                return None
            texts = dict(picture.info)
            # Checksums of all parts, and the end: what lost its last bytes may still decode.
            picture.verify()
        prompt = texts.get(PROMPT)
        return Kept(None if prompt is None else str(prompt), int(texts.get(UNREAD, 0)))
    # Pillow raises many types for broken files, SyntaxError and struct.error among them.
    except Exception:
        return None
