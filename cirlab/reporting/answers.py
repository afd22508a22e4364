"""What a multimodal LLM answered about a gallery's images, kept to be looked at.

`answers.jsonl` in the run's folder has a line for each image and question:

    {"gallery": .., "image": id, "question": .., "answer": .., "cut": whether it was not at its end}
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from cirlab import distributed
from cirlab.reading.atomic import whole_file

log = logging.getLogger(__name__)

FILE = "answers.jsonl"


class Said(NamedTuple):
    """One answer.

    Attributes:
        gallery: its id.
        row: position of the image in it.
        cut: the answer is as long as answers may be, and was not at its end.
    """

    gallery: str
    row: int
    image: str
    question: str
    answer: str
    cut: bool


class AnswerSheet:
    """The answers of one evaluation, on whichever process they were given."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def note(self, said: Said) -> None:
        """Keep one."""
        self._said.append(said)

    def write(self, folder: Path, longest: int) -> None:
        """Write those of all processes, tell what is wrong with them, and forget them.

        A collective: every process calls it. The file is there whole or not at all.

        Args:
            folder: of the run.
            longest: tokens that an answer could have.
        """
        gathered = distributed.all_gather_object(self._said)
        self._said = []
        # Processes may share an image: samplers repeat some for batches to be equally many.
        every = (one for part in gathered for one in part)
        said = sorted({(one.gallery, one.row, one.question): one for one in every}.values())
        if said and distributed.rank() == 0:
            _tell(said, longest)
            with whole_file(folder / FILE) as unfinished:
                lines = (json.dumps(_line(one), ensure_ascii=False) for one in said)
                unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _line(said: Said) -> dict[str, object]:
    line = said._asdict()
    del line["row"]
    return line


def _tell(said: list[Said], longest: int) -> None:
    empty = sum(not one.answer for one in said)
    if empty:
        log.warning(
            "%d of %d answers are empty; their images are ranked behind all others",
            empty,
            len(said),
        )
    cut = sum(one.cut for one in said)
    if cut:
        log.warning("%d of %d answers were cut off at max_new_tokens %d", cut, len(said), longest)
