"""LLaVA's pre-training pairs (LLaVA-558k): one JSON list, captions written by BLIP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from cirlab.benchmarks.base import Benchmark
from cirlab.reading.llava import llava_captions
from cirlab.reading.packed import PackedTexts
from cirlab.records import FileImage, Pair, SampleKey
from datamodules.base import RetrievalData
from datamodules.checks import check_files

log = logging.getLogger(__name__)


class LlavaPretrainData(RetrievalData):
    """`blip_laion_cc_sbu_558k.json`: {"id", "image", "conversations": [{"from", "value"}, ..]}.

    The caption is the first turn of "gpt"; the human's request is not used. The list is parsed
    at once (about 1 GiB of memory for a moment with 558k entries) and kept packed.

    Args:
        annotations: the JSON file.
        images: folder that its image paths are relative to.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    train_record = Pair

    def __init__(
        self,
        annotations: str,
        images: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 4,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.annotations = annotations
        self.images = images
        self._dataset: LlavaPairs | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            log.info("%d training pairs in %s", len(self.train_dataset()), self.annotations)

    def train_dataset(self) -> LlavaPairs:
        if self._dataset is None:
            dataset = LlavaPairs(Path(self.annotations), Path(self.images))
            if self.on_error == "raise":
                check_files([dataset.image(i) for i in range(len(dataset))])
            self._dataset = dataset
        return self._dataset


class LlavaPairs:
    """The entries of LLaVA's list, by position.

    Args:
        path: the JSON file.
        images: folder that image paths are relative to.

    Raises:
        UserError: the file is missing, no JSON list, empty, or an entry is malformed.
    """

    def __init__(self, path: Path, images: Path) -> None:
        self.images = images
        paths, captions = zip(*llava_captions(path), strict=True)
        self.paths = PackedTexts(paths)
        self.captions = PackedTexts(captions)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> Pair:
        return Pair(image=self.image(key.index), captions=(self.captions[key.index],))

    def image(self, index: int) -> FileImage:
        """The image of one entry."""
        path = self.paths[index]
        return FileImage(id=path, path=self.images / path)
