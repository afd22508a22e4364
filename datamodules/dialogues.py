"""What data sets of dialogues share: whole dialogues, or partial ones as image-text pairs."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Literal, Protocol

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.dialogue.partial import PartialDialogue
from cirlab.records import Dialogue, FileImage, Pair, SampleKey
from datamodules.base import RetrievalData
from datamodules.checks import check_files
from datamodules.sampling import generator_for

log = logging.getLogger(__name__)

DialogueKind = Literal["dialogues", "partial_dialogues"]


class Dialogues(Protocol):
    """A file of dialogues, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Dialogue: ...

    def image(self, index: int) -> FileImage:
        """The image of one dialogue."""


class DialogueData(RetrievalData):
    """Dialogues about one image each; a subclass gives `_dialogues()`."""

    def __init__(
        self,
        records: DialogueKind,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        benchmarks: list[Benchmark] | None,
        seed: int,
        separator: str,
        caption_dropout: float,
        on_error: Literal["raise", "skip"],
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.train_record = {"dialogues": Dialogue, "partial_dialogues": Pair}[records]
        partial = PartialDialogue(separator, caption_dropout)
        self.partial = partial if records == "partial_dialogues" else None
        self._dataset: DialogueRecords | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            log.info("%d training dialogues", len(self.train_dataset()))

    def train_images(self) -> list[FileImage]:
        """Every image that a training record can name."""
        dialogues = self.train_dataset().dialogues
        images = (dialogues.image(index) for index in range(len(dialogues)))
        return list({image.id: image for image in images}.values())

    def train_dataset(self) -> DialogueRecords:
        if self._dataset is None:
            self._dataset = DialogueRecords(self._dialogues(), self.partial, seed=self.seed)
            if self.on_error == "raise":
                check_files(self.train_images())
        return self._dataset

    @abstractmethod
    def _dialogues(self) -> Dialogues:
        """Read the data.

        Raises:
            UserError: a file is missing or malformed.
        """


class DialogueRecords:
    """Training records by key.

    Args:
        dialogues: to draw from.
        partial: what a pair shows of its dialogue; None gives whole dialogues.
        seed: of what is shown.
    """

    def __init__(self, dialogues: Dialogues, partial: PartialDialogue | None, *, seed: int) -> None:
        self.dialogues = dialogues
        self.partial = partial
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, key: SampleKey) -> Dialogue | Pair:
        dialogue = self.dialogues[key.index]
        if self.partial is None:
            return dialogue
        return partial_pair(dialogue, self.partial, generator_for(self.seed, key))


def partial_pair(
    dialogue: Dialogue, partial: PartialDialogue, generator: np.random.Generator
) -> Pair:
    """The image of a dialogue and a part of what was said, for methods that learn from pairs."""
    text = partial.draw(dialogue.caption, dialogue.rounds, generator)
    return Pair(image=dialogue.image, captions=(text,), also_correct=dialogue.also_correct)
