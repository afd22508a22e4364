"""CIRR's training triplets (Liu et al., arXiv 2108.04024)."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.cirr import TRAIN_IMAGES, CIRRImages, captions_file, cirr_row, cirr_rows
from cirlab.errors import UserError
from cirlab.reading.json_files import JsonArray
from cirlab.reading.official import check_size
from cirlab.records import FileImage, SampleKey, Triplet
from datamodules.base import RetrievalData
from datamodules.checks import check_files

log = logging.getLogger(__name__)


class CIRRData(RetrievalData):
    """Triplets of CIRR's training split, in the layout of branch cirr_dataset of its repository.

    The hard target is the target; other images that annotators found to fit as well (soft score
    1) are no negatives of the query. Every query is parsed once when the run starts; those
    without words are left out and counted.

    Args:
        root: the data folder.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        images: path of an image below root; {path} is that of the split's list, {file} its
            last part, {name} CIRR's name without suffix, {split} train.
        captions: another file of queries in the same format, below root or absolute; null: the
            official one.
        official: refuse a list of images that has not the published number; false accepts any.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    train_record = Triplet

    def __init__(
        self,
        root: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 2,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        images: str = "img_raw/{path}",
        captions: str | None = None,
        official: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.root = root
        self.images = images
        self.captions = captions
        self.official = official
        self._dataset: CIRRTriplets | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            log.info("%d training triplets of CIRR", len(self.train_dataset()))

    def train_images(self) -> list[FileImage]:
        """Every image that a training triplet can name."""
        return self.train_dataset().images

    def train_dataset(self) -> CIRRTriplets:
        if self._dataset is None:
            images = CIRRImages(self.root, self.images, "train")
            dataset = CIRRTriplets(images, self.captions)
            if self.official:
                found = len(dataset.pool)
                check_size("images of CIRR's train", found, TRAIN_IMAGES, images.list_file)
            if self.on_error == "raise":
                check_files(dataset.images)
            self._dataset = dataset
        return self._dataset


class CIRRTriplets:
    """Triplets by position, parsed when they are drawn.

    Attributes:
        images: every image that is a reference or a target.

    Args:
        images: of the training split.
        captions: file of the queries below the root; None: the official one.

    Raises:
        UserError: a file is missing or malformed, or no query has words.
    """

    def __init__(self, images: CIRRImages, captions: str | None) -> None:
        path = images.folder.folder / (captions or captions_file("train"))
        self.pool = images.pool()
        self.rows = JsonArray(path)
        parsed = list(cirr_rows(self.rows, self.pool, answered=True))
        self.kept = np.array([i for i, row in enumerate(parsed) if row.caption], dtype=np.int64)
        if not len(self.kept):
            raise UserError(f"{path} holds no query with a caption; give at least one")
        if empty := len(parsed) - len(self.kept):
            log.warning("%s: %d of %d queries have no words", path, empty, len(parsed))
        pairs = (parsed[i] for i in self.kept)
        names = dict.fromkeys(n for row in pairs for n in (row.reference, row.target) if n)
        self.images = [self.pool[name] for name in names]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, key: SampleKey) -> Triplet:
        row = cirr_row(self.rows[int(self.kept[key.index])], self.pool, answered=True)
        assert row.target is not None
        return Triplet(
            reference=self.pool[row.reference],
            texts=(row.caption,),
            target=self.pool[row.target],
            also_correct=row.also_correct,
        )
