"""Several data sets in given shares, in mixed batches or in batches of one data set each.

`JoinedData` shuffles its parts together, so that each keeps its natural share. Here a share is
chosen, a small data set may be seen more often than a large one, and with `homogeneous` a query's
in-batch negatives come from its own data set, which are harder ones: a model that tells the data
sets apart has gained nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.base import RetrievalData
from datamodules.checks import check_numbers
from datamodules.joined import JoinedData, JoinedRecords
from datamodules.loading import OnError, Sample, TrainCollator, TrainSamples
from datamodules.mixed_sampling import MixedLoader, MixedSampler
from datamodules.sampling import ResumableLoader


class MixedData(JoinedData):
    """The records of several parts in the shares that their weights give.

    Every epoch draws the same number of records of a part, in batches that are mixed at random or,
    with `homogeneous`, of one part each. A part's records are all seen once
    before any is seen again, across epochs: that is one pass through the part, and what is random
    about a record comes from (seed, pass, index). A part of variations in series (`WorldData`)
    keeps them together; then all parts need series of one length.

    Args:
        parts: data modules with the same kind of record. `seed` and `on_error` below hold for
            them too; their own loader settings and benchmarks are not used.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        weights: of the parts, in their order, above 0; a part's share of the samples is its
            weight over the sum of all. null: the numbers of their records.
        homogeneous: draw all samples of a global batch (over all processes) from one part.
        samples: records an epoch; null: as many as all parts hold together.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip); in its place comes the next whole record of the same part.

    Raises:
        UserError: there are no parts, their records or series differ, or a number is out of range.
    """

    def __init__(
        self,
        parts: list[RetrievalData],
        batch_size: int,
        eval_batch_size: int,
        weights: list[float] | None = None,
        homogeneous: bool = False,
        samples: int | None = None,
        num_workers: int = 4,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            parts, batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error
        )
        if samples is not None:
            check_numbers({"samples": samples}, least=1)
        _check_weights(weights, len(parts))
        self.weights = weights
        self.homogeneous = homogeneous
        self.samples = samples
        self.series = _common_series(parts)

    def train_dataloader(self) -> ResumableLoader:
        records = self.train_dataset()
        rank, replicas = self._place()
        sampler = MixedSampler(
            [len(part) for part in records.parts],
            weights=self.weights,
            homogeneous=self.homogeneous,
            samples=self.samples,
            batch_size=self.batch_size,
            seed=self.seed,
            series=self.series,
            rank=rank,
            replicas=replicas,
        )
        return MixedLoader(
            MixedSamples(records, on_error=self.on_error),
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=TrainCollator(self._module.train_collator(), seed=self.seed),
            persistent_workers=self.num_workers > 0,
            **self._worker_options(),
        )


class MixedSamples(TrainSamples):
    """The records of all parts; one that is broken is replaced from its own part.

    Args:
        records: of all parts.
        on_error: see `TrainSamples`.
    """

    def __init__(self, records: JoinedRecords, *, on_error: OnError) -> None:
        super().__init__(records, on_error=on_error)
        lengths = [len(part) for part in records.parts]
        self.ends = np.cumsum(lengths)
        self.parts = [
            TrainSamples(_PartOfJoined(records, int(end) - length, length), on_error=on_error)
            for end, length in zip(self.ends, lengths, strict=True)
        ]

    def __getitem__(self, key: SampleKey | int) -> Sample | UserError:
        key = SampleKey(0, key) if isinstance(key, int) else key
        part = int(np.searchsorted(self.ends, key.index, side="right"))
        first = int(self.ends[part]) - len(self.parts[part])
        found = self.parts[part][SampleKey(key.epoch, key.index - first)]
        return found if isinstance(found, UserError) else found._replace(key=key)


class _PartOfJoined:
    """One part's stretch of the joined records, whose image ids tell the parts apart."""

    def __init__(self, records: JoinedRecords, first: int, length: int) -> None:
        self.records = records
        self.first = first
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Any:
        return self.records[SampleKey(key.epoch, self.first + key.index)]


def _check_weights(weights: list[float] | None, parts: int) -> None:
    if weights is None:
        return
    if len(weights) != parts:
        raise UserError(
            f"data.init_args.weights has {len(weights)} numbers for {parts} parts; give one each"
        )
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(
                f"data.init_args.weights[{number}] is {weight}; give a number above 0, or remove "
                "that part"
            )


def _common_series(parts: Sequence[RetrievalData]) -> int:
    found = sorted({part.series for part in parts})
    if len(found) != 1:
        raise UserError(
            "the parts under data.init_args.parts keep series of "
            f"{' and '.join(map(str, found))} samples together; give all the same length "
            "(WorldData: series_size)"
        )
    return found[0]
