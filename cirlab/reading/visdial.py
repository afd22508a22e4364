"""VisDial 1.0: questions and answers about images of COCO (Das et al., arXiv 1611.08669).

`visdial_1.0_<split>.json` holds {"data": {"questions": [text, ..], "answers": [text, ..],
"dialogs": [{"image_id", "caption", "dialog": [{"question": number, "answer": number, ..} x 10]}]}};
questions lack their question mark. The training file has about 123,000 dialogues about images of
COCO's train2014 and val2014, with a hundred candidate answers in each round: dialogues are parsed
when they are asked for, texts lie packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cirlab.errors import UserError
from cirlab.reading.json_files import JsonArray, JsonDocument
from cirlab.reading.jsonl import Row
from cirlab.reading.packed import PackedTexts
from cirlab.records import Dialogue, FileImage

#: Where a file holds its dialogues, and the texts that these name by number.
DIALOGS, QUESTIONS, ANSWERS = ("data", "dialogs"), ("data", "questions"), ("data", "answers")
#: Folders of a split's images, with what their files' names begin with.
FOLDERS = {
    "train": {"train2014": "COCO_train2014", "val2014": "COCO_val2014"},
    "val": {"VisualDialog_val2018": "VisualDialog_val2018"},
}


class VisDial:
    """The dialogues of a split, by position.

    Every dialogue is parsed once, so that a malformed one is told at once. An image's id is its
    path below the root. One that lies in none of the folders is named in the first.

    Args:
        root: with `visdial_1.0_<split>.json` and the folders of images.
        split: train or val.

    Raises:
        UserError: an unknown split; the file is missing, cut off or of another format.
    """

    def __init__(self, root: Path, split: str) -> None:
        if split not in FOLDERS:
            raise UserError(
                f"VisDial has no split {split!r} with answers; choose one of: {', '.join(FOLDERS)}"
            )
        self.root = root
        self.path = root / f"visdial_1.0_{split}.json"
        self.folders = FOLDERS[split]
        document = JsonDocument(self.path, DIALOGS, QUESTIONS, ANSWERS)
        self.rows = JsonArray(self.path, at=DIALOGS, document=document)
        self.questions = PackedTexts(map(_asked, document.strings(QUESTIONS)))
        self.answers = PackedTexts(document.strings(ANSWERS))
        checked = tqdm(self.rows, desc=str(self.path), delay=2, disable=None)
        self._numbers = np.fromiter(map(self._checked, checked), np.int64, len(self.rows))
        self._places = _places(root, self.folders, self._numbers)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Dialogue:
        row = self.rows[index]
        return Dialogue(
            image=self.image(index),
            caption=row.text("caption"),
            rounds=tuple(
                f"{self.questions[question]} {self.answers[answer]}".strip()
                for question, answer in self._turns(row)
            ),
        )

    def image(self, index: int) -> FileImage:
        """The image of one dialogue, which is not parsed for that."""
        folder, prefix = list(self.folders.items())[self._places[index]]
        path = f"{folder}/{prefix}_{self._numbers[index]:012d}.jpg"
        return FileImage(id=path, path=self.root / path)

    def _checked(self, row: Row) -> int:
        """The number of a dialogue's image, if all else can be read as well."""
        row.text("caption")
        for _ in self._turns(row):
            pass
        number = row.text("image_id")
        if not number.isdecimal():
            raise row.wrong("image_id", "a number of COCO")
        return int(number)

    def _turns(self, row: Row) -> Iterator[tuple[int, int]]:
        for turn in row.objects("dialog"):
            yield (
                _number(turn, "question", len(self.questions)),
                _number(turn, "answer", len(self.answers)),
            )


def _asked(question: str) -> str:
    return question if question.rstrip().endswith("?") else f"{question}?"


def _number(turn: Row, name: str, texts: int) -> int:
    if turn.get(name) is None:
        raise turn.error(f"it has no {name}; give a split with answers")
    value = turn.number(name)
    if value >= texts:
        raise turn.wrong(name, f"below {texts}, the number of texts in data.{name}s")
    return value


def _places(root: Path, folders: Iterable[str], numbers: np.ndarray) -> np.ndarray:
    """Which folder each image lies in; the first where none has it. Shape (N,), uint8."""
    places = np.zeros(len(numbers), dtype=np.uint8)
    for place, folder in enumerate(folders):
        if place and (root / folder).is_dir():
            # Only listed: on network file systems asking for every file is far slower.
            names = (path.name for path in (root / folder).iterdir())
            found = [int(digits) for name in names if (digits := _digits(name)).isdecimal()]
            places[np.isin(numbers, np.array(found, dtype=np.int64))] = place
    return places


def _digits(name: str) -> str:
    return name.removesuffix(".jpg").rpartition("_")[2]
