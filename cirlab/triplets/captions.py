"""Images and captions, of which triplets are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cirlab.errors import UserError
from cirlab.reading.files import missing_files
from cirlab.reading.jsonl import JsonLines
from cirlab.reading.llava import llava_captions
from cirlab.reading.packed import PackedTexts
from cirlab.records import FileImage, Pair


class Captioned(NamedTuple):
    """One caption of an image, which is known by its id or path."""

    image: str
    caption: str


class Captions:
    """All captions of many images, by number.

    Args:
        captioned: at least one.

    Raises:
        UserError: there is none.
    """

    def __init__(self, captioned: Iterable[Captioned]) -> None:
        images, captions = [], []
        for image, caption in captioned:
            images.append(image)
            captions.append(" ".join(caption.split()))
        if not images:
            raise UserError("there are no image-caption pairs; give at least one")
        self.images = PackedTexts(images)
        self.captions = PackedTexts(captions)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Captioned:
        return Captioned(self.images[number], self.captions[number])

    def digest(self) -> str:
        """Tells apart captions that differ anywhere, or in their order."""
        digest = hashlib.sha256()
        for number in range(len(self)):
            digest.update("\0".join(self[number]).encode() + b"\n")
        return digest.hexdigest()[:16]

    def check_images(self, folder: Path) -> None:
        """All images must be files in a folder.

        Raises:
            UserError: it counts the missing ones and names the first.
        """
        names = dict.fromkeys(self.images)
        missing = missing_files(FileImage(id=name, path=folder / name) for name in names)
        if missing:
            raise UserError(
                f"{len(missing):,} of {len(names):,} images are missing, the first is "
                f"{missing[0].path}; correct the image folder, or leave their pairs out"
            )


def captions_of(pairs: Sequence[Pair]) -> Captions:
    """Every caption of every pair; images are known by their ids."""
    return Captions(Captioned(pair.image.id, text) for pair in pairs for text in pair.captions)


def read_captions(path: Path) -> Captions:
    """Captions from a file, known by its suffix.

    Args:
        path: `.jsonl`, with lines as in a data folder's pairs.jsonl; or `.json`, LLaVA's list.

    Raises:
        UserError: the file is missing, of another kind, empty or malformed.
    """
    if path.suffix == ".json":
        return Captions(Captioned(*pair) for pair in llava_captions(path))
    if path.suffix != ".jsonl":
        raise UserError(
            f"the pairs {path} are neither .jsonl (lines as in pairs.jsonl) nor .json (LLaVA's "
            "list); rename or convert the file"
        )
    lines = JsonLines(path)
    if not len(lines):
        raise UserError(f"{path} has no lines; write at least one record into it")
    return Captions(_of_lines(lines))


def _of_lines(lines: JsonLines) -> Iterator[Captioned]:
    for row in lines:
        image = row.text("image")
        for caption in row.texts("captions"):
            yield Captioned(image, caption)
