"""What dialogues begin with: an image that somebody looks for, and a caption of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.dialogue import ROUND
from cirlab.errors import UserError
from cirlab.reading.files import missing_files
from cirlab.records import FileImage, Image


class Opening(NamedTuple):
    """One dialogue before its first question."""

    image: Image
    caption: str


@dataclass(frozen=True)
class Openings:
    """The dialogues that are to be played, and the gallery they are searched in.

    Attributes:
        each: by number of the dialogue.
        gallery: its images, by id.
    """

    each: Sequence[Opening]
    gallery: Mapping[str, Image]

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, number: int) -> Opening:
        return self.each[number]

    def digest(self) -> str:
        """Tells apart openings or galleries that differ anywhere, or in their order."""
        digest = hashlib.sha256()
        for opening in self.each:
            digest.update(f"{opening.image.id}\t{opening.caption}\n".encode())
        for name in self.gallery:
            digest.update(f"{name}\n".encode())
        return digest.hexdigest()[:16]

    def check_files(self) -> None:
        """All images that are spoken of must be there.

        Raises:
            UserError: it counts the missing ones and names the first.
        """
        images = [opening.image for opening in self.each]
        missing = missing_files(image for image in images if isinstance(image, FileImage))
        if missing:
            raise UserError(
                f"{len(missing):,} of {len(images):,} images that are spoken of are missing, the "
                f"first is {missing[0].path}; correct the data folder"
            )


def openings_of(benchmark: Benchmark, limit: int | None = None) -> Openings:
    """What the queries of a benchmark begin with: their first round, or their words.

    Args:
        benchmark: by dialogue or by text, set up.
        limit: the first so many; None takes all.

    Raises:
        UserError: it has other queries, answers of its own, or too few of them.
    """
    if benchmark.kind not in ("dialogue", "text") or not benchmark.answered:
        raise UserError(
            f"the queries of {benchmark.name} are no captions of images that are known; play "
            "dialogues over one of dialogues or captions"
        )
    gallery = {item.id: item for item in benchmark.gallery if isinstance(item, Image)}
    first = [query for query in benchmark.queries if query.tags.get(ROUND, "0") == "0"]
    found = [
        Opening(gallery[query.targets[0]], query.rounds[0] if query.rounds else query.text)
        for query in first
        if query.targets[0] in gallery
    ]
    if not found or (limit is not None and limit < 1):
        raise UserError(f"{benchmark.name} has {len(found)} dialogues, and 1 or more are needed")
    return Openings(found[:limit], gallery)
