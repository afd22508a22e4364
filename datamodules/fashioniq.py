"""Fashion-IQ's training triplets (Wu et al., arXiv 1905.12794)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.fashioniq import (
    CATEGORIES,
    Category,
    Published,
    captions_file,
    check_captions,
    check_published,
    fashioniq_row,
    fashioniq_rows,
    listed_images,
)
from cirlab.errors import UserError
from cirlab.reading.json_files import JsonArray
from cirlab.reading.official import DataRoot, check_choice
from cirlab.records import FileImage, SampleKey, Triplet
from datamodules.base import RetrievalData
from datamodules.checks import check_files

log = logging.getLogger(__name__)


class FashionIQData(RetrievalData):
    """Triplets of Fashion-IQ's training split, in the layout of its repository.

    Both captions of a pair go into the record (an empty one is left out); how many of them make
    a query is the method's choice. Every pair is parsed once when the run starts.

    Args:
        root: the data folder.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        categories: one or several of dress, shirt and toptee; null: all. Tag of a record:
            `category`.
        images: path of an image below root; {name} is Fashion-IQ's id, {category} the category.
        captions: other files of pairs in the same format, below root or absolute; {category} and
            {split} are filled in. null: the official ones.
        official: refuse numbers of images or, without `captions`, of pairs that are not the
            published ones; false accepts any.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip). Many of Fashion-IQ's addresses are dead.

    Raises:
        UserError: there is no such category, it is named twice, or `captions` is no template.
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
        categories: list[Category] | None = None,
        images: str = "images/{name}.png",
        captions: str | None = None,
        official: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.root = root
        self.categories = list(CATEGORIES) if categories is None else list(categories)
        for category in self.categories:
            check_choice("a category of Fashion-IQ", category, CATEGORIES)
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise UserError(
                f"data.init_args.categories is {self.categories}; name each once, at least one"
            )
        self.images = images
        self.captions = captions
        self.official = official
        check_captions(captions, self.categories)
        self._dataset: FashionIQTriplets | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            log.info(
                "%d training triplets of Fashion-IQ's %s",
                len(self.train_dataset()),
                ", ".join(self.categories),
            )

    def train_images(self) -> list[FileImage]:
        """Every image that a training triplet can name."""
        return self.train_dataset().images

    def train_dataset(self) -> FashionIQTriplets:
        if self._dataset is None:
            root = DataRoot(self.root, self.images, fields=("name", "category"))
            dataset = FashionIQTriplets(root, self.categories, self.captions)
            if self.official:
                self._check_sizes(root, dataset)
            if self.on_error == "raise":
                check_files(dataset.images)
            self._dataset = dataset
        return self._dataset

    def _check_sizes(self, root: DataRoot, dataset: FashionIQTriplets) -> None:
        own = self.captions is not None
        for category, pool, rows in zip(self.categories, dataset.pools, dataset.files, strict=True):
            found = Published(queries=len(rows), images=len(pool), union=0)
            check_published(root.folder, category, "train", found, own_queries=own)


class FashionIQTriplets:
    """Triplets by position, one category after the other, parsed when they are drawn.

    Attributes:
        images: every image that is a reference or a target.

    Args:
        root: the data folder.
        categories: at least one.
        captions: template of the files of pairs; None: the official ones.

    Raises:
        UserError: a file is missing, malformed or empty.
    """

    def __init__(self, root: DataRoot, categories: Sequence[str], captions: str | None) -> None:
        self.root = root
        self.categories = list(categories)
        self.pools: list[frozenset[str]] = []
        self.files: list[JsonArray] = []
        named: dict[FileImage, None] = {}
        for category in self.categories:
            pool = frozenset(listed_images(root.folder, category, "train"))
            path = captions_file(root.folder, category, "train", captions)
            file = JsonArray(path)
            rows = fashioniq_rows(file, pool)
            if not rows:
                raise UserError(f"{path} holds no pair; give at least one")
            self.pools.append(pool)
            self.files.append(file)
            images = (self._image(name, category) for row in rows for name in row.images)
            named |= dict.fromkeys(images)
        self.images = list(named)
        self._ends = np.cumsum([len(file) for file in self.files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: SampleKey) -> Triplet:
        part = int(np.searchsorted(self._ends, key.index, side="right"))
        first = int(self._ends[part]) - len(self.files[part])
        category = self.categories[part]
        row = fashioniq_row(self.files[part][key.index - first], self.pools[part])
        return Triplet(
            reference=self._image(row.reference, category),
            texts=row.captions,
            target=self._image(row.target, category),
            tags={"category": category},
        )

    def _image(self, name: str, category: str) -> FileImage:
        return self.root.image(name, name=name, category=category)
