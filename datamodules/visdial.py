"""VisDial 1.0, on whose dialogues ChatIR is trained (arXiv 1611.08669; 2305.20062, section 3)."""

from __future__ import annotations

from typing import Literal

from cirlab.benchmarks.base import Benchmark
from cirlab.reading.files import data_folder
from cirlab.reading.visdial import VisDial
from datamodules.dialogues import DialogueData, DialogueKind


class VisDialData(DialogueData):
    """Dialogues of `visdial_1.0_train.json` about COCO's train2014 and val2014.

    Every dialogue is parsed once when the run starts, and again when it is drawn.

    Args:
        root: folder with the file and the folders of images.
        records: "dialogues" gives whole ones. "partial_dialogues" gives pairs of the image and, as
            its caption, the first rounds, their number uniform from 0 to all, drawn anew each
            epoch.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples and of what partial dialogues show.
        split: train, or val about images of its own.
        separator: of partial dialogues, stands between the texts of a dialogue.
        caption_dropout: of partial dialogues, the share of those with at least one round that lack
            the caption.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    def __init__(
        self,
        root: str,
        records: DialogueKind,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 2,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        split: Literal["train", "val"] = "train",
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
        self.split = split

    def _dialogues(self) -> VisDial:
        return VisDial(data_folder(self.root), self.split)
