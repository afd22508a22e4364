"""Captions of COCO and Flickr30k in Karpathy's split, for training (arXiv 1412.2306).

Read from the files that BLIP fine-tunes on (arXiv 2201.12086, section 5.1; salesforce/BLIP,
`coco_karpathy_train.json` and `flickr30k_train.json`): a list of {"caption", "image", "image_id"},
one record for each caption.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.captions import TEMPLATES, CaptionTemplate, captions_in
from cirlab.errors import UserError
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import Row
from cirlab.reading.official import DataRoot, check_choice
from cirlab.reading.packed import PackedTexts
from cirlab.records import FileImage, Pair, SampleKey
from datamodules.base import RetrievalData
from datamodules.checks import check_files

log = logging.getLogger(__name__)


class KarpathyData(RetrievalData):
    """Pairs from lists of {"image", "caption"}, whose caption is a text or a list of texts.

    An image's id is its path, so that the other captions of an image are known to be no negatives
    of it. Every record is parsed once when the run starts, so that a malformed one is told at
    once; later it is read when it is drawn.

    Args:
        root: folder with annotations and images.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        annotations: JSON file below it, or several whose records are joined.
        images: path of an image below the root; {path} is what the annotations say, {file} its
            last part.
        caption_template: what a model reads of a caption: "as_is", or "blip": lower case, without
            punctuation, at most 30 words, as BLIP's loaders make it.
        group: one sample for each image with all its captions, of which a method draws one; false
            takes each record of a file as a sample, as BLIP does.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).

    Raises:
        UserError: there is no such template.
    """

    train_record = Pair

    def __init__(
        self,
        root: str,
        batch_size: int,
        eval_batch_size: int,
        annotations: str | list[str] = "coco_karpathy_train.json",
        images: str = "{path}",
        caption_template: CaptionTemplate = "as_is",
        group: bool = False,
        num_workers: int = 2,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        check_choice("caption_template", caption_template, tuple(TEMPLATES))
        self.root = root
        self.annotations = [annotations] if isinstance(annotations, str) else list(annotations)
        self.images = images
        self.caption_template = caption_template
        self.group = group
        self._dataset: KarpathyPairs | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            dataset = self.train_dataset()
            files = ", ".join(self.annotations)
            log.info("%d pairs of %d images in %s", len(dataset), len(dataset.names), files)

    def train_images(self) -> list[FileImage]:
        """Every image of the training records, once."""
        return self.train_dataset().images()

    def train_dataset(self) -> KarpathyPairs:
        if self._dataset is None:
            data = DataRoot(self.root, self.images, fields=("path", "file"))
            dataset = KarpathyPairs(
                data, self.annotations, group=self.group, caption_template=self.caption_template
            )
            if self.on_error == "raise":
                check_files(dataset.images())
            self._dataset = dataset
        return self._dataset


class KarpathyPairs:
    """The records of several files, one after the other, or grouped by their images.

    Args:
        data: where images lie.
        annotations: JSON files below that folder.
        group: one pair for each image, in the order of their first records.
        caption_template: what a model reads of a caption.

    Attributes:
        names: the different images' paths, in this order.

    Raises:
        UserError: a file is missing, no list, or has a malformed record; or there is no record.
    """

    def __init__(
        self,
        data: DataRoot,
        annotations: Sequence[str],
        *,
        group: bool,
        caption_template: CaptionTemplate,
    ) -> None:
        self.data = data
        self.caption_template = caption_template
        self.files = [JsonArray(data.folder / path) for path in annotations]
        self._ends = np.cumsum([len(file) for file in self.files], dtype=np.int64)
        if not self.files or not self._ends[-1]:
            raise UserError(
                "data.init_args.annotations hold no record "
                f"({', '.join(annotations) or 'no file'}); give at least one pair"
            )
        self.names, image_of = self._read()
        # Records by image, and where each image's begin; every record by itself if not grouped.
        self._order = image_of.argsort(kind="stable") if group else np.arange(len(image_of))
        sizes = np.bincount(image_of) if group else np.ones(len(image_of), dtype=np.int64)
        self._bounds = np.concatenate([[0], sizes.cumsum()])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, key: SampleKey) -> Pair:
        start, end = self._bounds[key.index : key.index + 2]
        rows = [self._row(number) for number in self._order[start:end].tolist()]
        template = TEMPLATES[self.caption_template]
        captions = tuple(template.text(text) for row in rows for text in captions_in(row))
        return Pair(image=self.data.image_at(rows[0].text("image")), captions=captions)

    def images(self) -> list[FileImage]:
        """Every image once."""
        return [self.data.image_at(name) for name in self.names]

    def _read(self) -> tuple[PackedTexts, np.ndarray]:
        """The different images' names; for every record, which is its own. Shape (records,)."""
        numbers: dict[str, int] = {}
        image_of = np.empty(self._ends[-1], dtype=np.int64)
        records = (row for file in self.files for row in file)
        progress = tqdm(records, desc="captions", total=len(image_of), delay=2, disable=None)
        for place, row in enumerate(progress):
            captions_in(row)
            image_of[place] = numbers.setdefault(row.text("image"), len(numbers))
        return PackedTexts(numbers), image_of

    def _row(self, number: int) -> Row:
        which = int(np.searchsorted(self._ends, number, side="right"))
        file = self.files[which]
        return file[number - int(self._ends[which]) + len(file)]
