"""Dialogues in ChatIR's format as training data: one's own, or those of another questioner."""

from __future__ import annotations

from typing import Literal

from cirlab.benchmarks.base import Benchmark
from cirlab.dialogue.files import dialogue_of, dialogue_path, read_dialogues
from cirlab.reading.official import DataRoot
from cirlab.reading.packed import PackedTexts
from cirlab.records import Dialogue, FileImage
from datamodules.dialogues import DialogueData, DialogueKind


class ChatIRData(DialogueData):
    """A JSON list of {"img": path, "dialog": [what it began with, a text for each round, ...]}.

    The released files are about the images of the benchmark, which nothing should be trained on
    that is evaluated there.

    Args:
        root: folder below which images lie.
        dialogues: path of a .json file, below root or absolute; or the name of a file in
            `dialogues/` below root without ".json".
        records: "dialogues" gives whole ones. "partial_dialogues" gives pairs of the image and, as
            its caption, the first rounds, their number uniform from 0 to all, drawn anew each
            epoch.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples and of what partial dialogues show.
        images: path of an image below root; `{path}` is its "img", `{file}` the last part of that.
        separator: of partial dialogues, stands between the texts of a dialogue.
        caption_dropout: of partial dialogues, the share of those with at least one round that lack
            the caption.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    def __init__(
        self,
        root: str,
        dialogues: str,
        records: DialogueKind,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 2,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        images: str = "{path}",
        separator: str = ", ",
        caption_dropout: float = 0.2,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            records,
            batch_size,
            eval_batch_size,
            num_workers,
            benchmarks,
            seed,
            separator,
            caption_dropout,
            on_error,
        )
        self.root = root
        self.dialogues = dialogues
        self.images = images

    def _dialogues(self) -> ChatIRDialogues:
        return ChatIRDialogues(
            DataRoot(self.root, self.images, fields=("path", "file")), self.dialogues
        )


class ChatIRDialogues:
    """The dialogues of a file, by position; each is parsed once at the start.

    Args:
        data: where images lie.
        dialogues: the file's path or name.

    Raises:
        UserError: the file is missing or malformed.
    """

    def __init__(self, data: DataRoot, dialogues: str) -> None:
        self.data = data
        self.rows = read_dialogues(dialogue_path(data.folder, dialogues))
        self.paths = PackedTexts(dialogue_of(row)[0] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Dialogue:
        _, texts = dialogue_of(self.rows[index])
        return Dialogue(image=self.image(index), caption=texts[0], rounds=texts[1:])

    def image(self, index: int) -> FileImage:
        """The image of one dialogue."""
        return self.data.image_at(self.paths[index])
