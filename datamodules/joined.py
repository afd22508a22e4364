"""Several data sets as one, e.g. CC3M, LAION and LLaVA-558k in CoLLM's pre-training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.base import RetrievalData
from datamodules.loading import TrainRecords, map_images


class JoinedData(RetrievalData):
    """The records of all parts, shuffled together; each part keeps its natural share.

    Args:
        parts: data modules with the same kind of record. `seed` and `on_error` below hold for
            them too; their own loader settings and benchmarks are not used.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).

    Raises:
        UserError: there are no parts, or their records differ.
    """

    def __init__(
        self,
        parts: list[RetrievalData],
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
        kinds = sorted({part.train_record.__name__ for part in parts})
        if len(kinds) != 1:
            raise UserError(
                "data.init_args.parts must be data sets of one kind of record, found "
                f"{' and '.join(kinds) or 'no part at all'}"
            )
        self.parts = parts
        self.train_record = parts[0].train_record
        self._dataset: JoinedRecords | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.train_dataset()

    def train_dataset(self) -> JoinedRecords:
        if self._dataset is None:
            for part in self.parts:
                part.seed, part.on_error = self.seed, self.on_error
            self._dataset = JoinedRecords([part.train_dataset() for part in self.parts])
        return self._dataset


class JoinedRecords:
    """Data sets one after the other; image ids begin with the data set's number.

    Equal ids mean equal images to a contrastive loss, and parts may use the same names.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: list[TrainRecords]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, key: SampleKey) -> Any:
        number, index = 0, key.index
        while number < len(self.parts) and index >= len(self.parts[number]):
            index -= len(self.parts[number])
            number += 1
        if number == len(self.parts):
            raise IndexError(f"record {key.index} of {len(self)}")
        record = self.parts[number][SampleKey(key.epoch, index)]
        return map_images(record, lambda image: replace(image, id=f"{number}:{image.id}"))
