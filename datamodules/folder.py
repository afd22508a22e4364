"""A user's own images: one or several folders in the format of `cirlab.reading.folder`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from cirlab.benchmarks.base import Benchmark
from cirlab.dialogue.partial import PartialDialogue
from cirlab.errors import UserError
from cirlab.reading.folder import Folder, composed_row, dialogue_row, facet_row
from cirlab.reading.jsonl import JoinedLines, JsonLines, Row
from cirlab.records import (
    CaptionTriplet,
    Dialogue,
    FileImage,
    Pair,
    PromptedPair,
    SampleKey,
    TextPair,
    Triplet,
)
from datamodules.base import RetrievalData
from datamodules.checks import check_files
from datamodules.dialogues import partial_pair
from datamodules.sampling import generator_for

Record = Pair | TextPair | Triplet | CaptionTriplet | PromptedPair | Dialogue
Kind = Literal[
    "pairs",
    "texts",
    "triplets",
    "caption_triplets",
    "prompted",
    "dialogues",
    "partial_dialogues",
]

log = logging.getLogger(__name__)

FILES: dict[Kind, str] = {
    "pairs": "pairs.jsonl",
    "texts": "pairs.jsonl",
    "triplets": "composed.jsonl",
    "caption_triplets": "caption_triplets.jsonl",
    "prompted": "facets.jsonl",
    "dialogues": "dialogues.jsonl",
    "partial_dialogues": "dialogues.jsonl",
}
RECORDS: dict[Kind, type] = {
    "pairs": Pair,
    "texts": TextPair,
    "triplets": Triplet,
    "caption_triplets": CaptionTriplet,
    "prompted": PromptedPair,
    "dialogues": Dialogue,
    "partial_dialogues": Pair,
}


class FolderData(RetrievalData):
    """Training pairs, texts, triplets, caption triplets or dialogues from folders.

    Every line is parsed once when the run starts, so that a malformed one is told at once, by
    file and line. With `on_error: raise` missing image files are found then too (each directory
    is listed once); broken ones when they are decoded. With `skip` both are left out as they
    are met.

    Args:
        root: the data folder, or several whose records are joined. With several, image ids
            begin with the folder's name.
        records: "pairs" reads pairs.jsonl; "texts" reads two captions of each of its images;
            "triplets" reads composed.jsonl, whose target is drawn anew each epoch from `targets`;
            "caption_triplets" reads caption_triplets.jsonl, as `cirlab.triplets` makes it;
            "prompted" reads facets.jsonl, whose target is drawn anew each epoch, too;
            "dialogues" reads dialogues.jsonl in the same way; "partial_dialogues" gives pairs of
            such a target and the first rounds of its dialogue, their number uniform from 0 to all.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples, of the choice among several targets or captions, and of what
            partial dialogues show.
        split: subfolder of the training data.
        file: what is read instead of the file of that name in the subfolder; a path relative to
            root.
        images: folder that image paths are relative to, itself relative to root; null: root.
        separator: of partial dialogues, stands between the texts.
        caption_dropout: of partial dialogues, the share of those with at least one round that lack
            what the dialogue began with.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    def __init__(
        self,
        root: str | list[str],
        records: Kind,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 2,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        split: str = "train",
        file: str | None = None,
        images: str | None = None,
        separator: str = ", ",
        caption_dropout: float = 0.2,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.roots = [root] if isinstance(root, str) else list(root)
        self.records = records
        self.split = split
        self.file, self.images = file, images
        self.train_record = RECORDS[records]
        self.partial = PartialDialogue(separator, caption_dropout)
        self._dataset: FolderRecords | None = None
        self._images: list[FileImage] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            dataset = self.train_dataset()
            log.info("%d training %s in %s", len(dataset), self.records, ", ".join(self.roots))

    def train_images(self) -> list[FileImage]:
        """Every image that a training record can name."""
        self.train_dataset()
        return self._images

    def train_dataset(self) -> FolderRecords:
        if self._dataset is None:
            folders = _open(self.roots, self.images or "")
            dataset = FolderRecords(
                folders,
                self.split,
                self.records,
                file=self.file,
                seed=self.seed,
                partial=self.partial,
            )
            self._images = dataset.check()
            if self.on_error == "raise" and self.records != "texts":
                check_files(self._images)
            self._dataset = dataset
        return self._dataset


def _open(roots: Sequence[str], images: str) -> list[Folder]:
    if not roots:
        raise UserError("data.init_args.root is an empty list; give at least one folder")
    folders = [Folder(root, images=images) for root in roots]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(
            f"two data roots have the same name in {', '.join(roots)}; image ids begin with "
            "it, so rename one of the folders"
        )
    if len(folders) > 1:
        folders = [
            Folder(root, prefix=f"{name}/", images=images)
            for root, name in zip(roots, names, strict=True)
        ]
    return folders


class FolderRecords:
    """The records of one split of several folders, one after the other.

    Args:
        folders: where the data lie.
        split: subfolder of each.
        records: what is made of its lines.
        file: path of each folder's lines, relative to it; None for the split's own file.
        seed: of the choice among several targets or captions, and of what partial dialogues show.
        partial: how partial dialogues are drawn.
    """

    def __init__(
        self,
        folders: Sequence[Folder],
        split: str,
        records: Kind,
        *,
        file: str | None = None,
        seed: int,
        partial: PartialDialogue,
    ) -> None:
        self.folders = folders
        self.rows = JoinedLines(
            [
                folder.rows(split, FILES[records]) if file is None else folder.rows_of(file)
                for folder in folders
            ]
        )
        self.seed = seed
        self.partial = partial
        parsers: dict[Kind, Callable[[Folder, Row, SampleKey], Record]] = {
            "pairs": self._pair,
            "texts": self._texts,
            "triplets": self._triplet,
            "caption_triplets": self._caption_triplet,
            "prompted": self._prompted,
            "dialogues": self._dialogue,
            "partial_dialogues": self._partial_dialogue,
        }
        self.records = records
        self.parse = parsers[records]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> Record:
        which, row = self.rows.locate(key.index)
        return self.parse(self.folders[which], row, key)

    def check(self) -> list[FileImage]:
        """Parse every line once; returns every image that a record can name.

        Raises:
            UserError: a line is malformed.
        """
        named: dict[str, FileImage] = {}
        for folder, rows in zip(self.folders, self.rows.files, strict=True):
            for path in self._paths(folder, rows):
                named.setdefault(f"{folder.prefix}{path}", folder.image(path))
        return list(named.values())

    def _paths(self, folder: Folder, rows: JsonLines) -> Iterator[str]:
        for row in tqdm(rows, desc=str(rows.path), delay=2, disable=None):
            match FILES[self.records]:
                case "pairs.jsonl":
                    row.texts("captions")
                    yield row.text("image")
                case "caption_triplets.jsonl":
                    folder.caption_triplet(row)
                    yield row.text("image")
                case "facets.jsonl":
                    yield from facet_row(row).targets
                case "dialogues.jsonl":
                    yield from dialogue_row(row).targets
                case _:
                    parsed = composed_row(row)
                    yield from (parsed.reference, *parsed.targets)

    def _pair(self, folder: Folder, row: Row, key: SampleKey) -> Pair:
        return folder.pair(row)

    def _texts(self, folder: Folder, row: Row, key: SampleKey) -> TextPair:
        """Two captions of one image, different ones where it has several."""
        captions = row.texts("captions")
        order = generator_for(self.seed, key).permutation(len(captions))
        return TextPair(query=captions[order[0]], target=captions[order[-1]])

    def _triplet(self, folder: Folder, row: Row, key: SampleKey) -> Triplet:
        parsed = composed_row(row)
        target = parsed.targets[generator_for(self.seed, key).integers(len(parsed.targets))]
        return Triplet(
            reference=folder.image(parsed.reference),
            texts=parsed.texts,
            target=folder.image(target),
            also_correct=_others(folder, parsed.targets, target),
            tags=parsed.tags,
        )

    def _caption_triplet(self, folder: Folder, row: Row, key: SampleKey) -> CaptionTriplet:
        return folder.caption_triplet(row)

    def _prompted(self, folder: Folder, row: Row, key: SampleKey) -> PromptedPair:
        parsed = facet_row(row)
        target = parsed.targets[generator_for(self.seed, key).integers(len(parsed.targets))]
        return PromptedPair(folder.image(target), parsed.text, prompt=parsed.prompt)

    def _dialogue(self, folder: Folder, row: Row, key: SampleKey) -> Dialogue:
        return self._drawn(folder, row, generator_for(self.seed, key))

    def _partial_dialogue(self, folder: Folder, row: Row, key: SampleKey) -> Pair:
        generator = generator_for(self.seed, key)
        return partial_pair(self._drawn(folder, row, generator), self.partial, generator)

    def _drawn(self, folder: Folder, row: Row, generator: np.random.Generator) -> Dialogue:
        """The dialogue as one about one of its targets."""
        parsed = dialogue_row(row)
        target = parsed.targets[generator.integers(len(parsed.targets))]
        return Dialogue(
            image=folder.image(target),
            caption=parsed.rounds[0],
            rounds=parsed.rounds[1:],
            also_correct=_others(folder, parsed.targets, target),
        )


def _others(folder: Folder, targets: Sequence[str], drawn: str) -> tuple[str, ...]:
    """Ids of the targets that were not drawn."""
    return tuple(folder.image(path).id for path in targets if path != drawn)
