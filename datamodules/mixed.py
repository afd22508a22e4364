"""Several data sets in given shares, in mixed batches or in batches of one data set each.

`JoinedData` shuffles its parts together, so that each keeps its natural share. Here a share is
chosen, a small data set may be seen more often than a large one, and with `homogeneous` a query's
in-batch negatives come from its own data set, which are harder ones: a model that tells the data
sets apart has gained nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.base import RetrievalData
from datamodules.checks import check_numbers
from datamodules.joined import JoinedData, JoinedRecords
from datamodules.loading import OnError, Sample, TrainCollator, TrainSamples
from datamodules.sampling import ResumableLoader, TrainSampler


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


class MixedSampler(TrainSampler):
    """Draws from several data sets that lie one after the other, in fixed shares.

    An epoch's order is a function of (seed, epoch) alone, and its global batches are the same
    under any number of processes, as those of `TrainSampler` are. Each part is drawn from in an
    endless sequence of permutations; epoch e takes the e-th stretch of it.

    Args:
        lengths: number of samples in each part.
        weights: of the parts; None for their lengths.
        homogeneous: one part for each global batch. A part's records that do not fill a last
            global batch of a pass are left out of that pass, others in each.
        samples: per epoch, over all processes; None for all lengths together.
        batch_size: samples per batch and process, a multiple of `series`.
        seed: of the shuffling.
        series: this many consecutive samples of a part stay together, as in `TrainSampler`.
        rank: this process among the data-parallel ones.
        replicas: number of data-parallel processes.

    Raises:
        UserError: no full batch can be drawn, a part is too small, or its share is less than
            what an epoch can hold of it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        homogeneous: bool = False,
        samples: int | None = None,
        batch_size: int,
        seed: int,
        series: int = 1,
        rank: int = 0,
        replicas: int = 1,
    ) -> None:
        super().__init__(
            sum(lengths) if samples is None else samples,
            batch_size=batch_size,
            seed=seed,
            series=series,
            rank=rank,
            replicas=replicas,
        )
        self.lengths = list(lengths)
        self.homogeneous = homogeneous
        #: Series that are drawn from one part in one go.
        self.stretch = batch_size // series * replicas if homogeneous else 1
        self._check_lengths()
        stretches = self.batches * (batch_size // series * replicas) // self.stretch
        #: Stretches of each part in an epoch.
        self.counts = shares(weights or self.lengths, stretches)
        self._check_counts()

    @property
    def mixture(self) -> int:
        """Checksum of what decides the order beside the numbers that every sampler has."""
        return zlib.crc32(repr((self.lengths, self.counts, self.homogeneous)).encode())

    def identity(self) -> dict[str, int]:
        return super().identity() | {"mixture": self.mixture}

    def order(self, epoch: int) -> np.ndarray:
        return self.keys(epoch)[:, 1]

    def keys(self, epoch: int) -> np.ndarray:
        """Passes and indices of this process's samples in one epoch. Shape (len(self), 2), int64.

        An index counts through all parts; a pass counts how often its part was gone through.
        """
        labels = np.repeat(np.arange(len(self.counts)), self.counts)
        labels = np.random.default_rng((self.seed, epoch)).permutation(labels)
        labels = np.repeat(labels, self.stretch)
        drawn = np.empty((len(labels), 2), dtype=np.int64)
        for part in range(len(self.counts)):
            drawn[labels == part] = self._draws(part, epoch)
        mine = drawn[self.rank :: self.replicas]
        steps = np.stack([np.zeros(self.series, dtype=np.int64), np.arange(self.series)], axis=1)
        return (mine[:, None] + steps).reshape(-1, 2)

    def __iter__(self) -> Iterator[SampleKey]:
        keys = self.keys(self.epoch)[self.start :]
        self.start = 0
        return (SampleKey(int(turn), int(index)) for turn, index in keys)

    def _draws(self, part: int, epoch: int) -> np.ndarray:
        """Pass and first index of the series that an epoch takes of a part. Shape (n, 2), int64."""
        count = self.counts[part] * self.stretch
        series = self.lengths[part] // self.series
        # Whole stretches only, so that no batch of one part holds a record twice.
        per_pass = series // self.stretch * self.stretch
        begin, end = epoch * count, (epoch + 1) * count
        pieces = []
        for turn in range(begin // per_pass, (end - 1) // per_pass + 1):
            # The order of labels is drawn with two numbers; a third one, not 0, tells these apart.
            order = np.random.default_rng((self.seed, turn, part + 1)).permutation(series)
            first = turn * per_pass
            taken = order[:per_pass][max(begin - first, 0) : end - first]
            pieces.append(np.stack([np.full(len(taken), turn), taken * self.series], axis=1))
        return np.concatenate(pieces) + np.array([0, sum(self.lengths[:part])])

    def _check_lengths(self) -> None:
        for part, length in enumerate(self.lengths):
            if length // self.series < self.stretch:
                batch = f"a global batch of {self.batch_size * self.replicas}"
                wanted = batch if self.homogeneous else f"a series of {self.series}"
                raise UserError(
                    f"data.init_args.parts[{part}] holds {length} samples, less than {wanted}; "
                    "remove it, or lower data.init_args.batch_size"
                )

    def _check_counts(self) -> None:
        for part, count in enumerate(self.counts):
            if not count:
                what = "batches" if self.homogeneous else "series"
                raise UserError(
                    f"data.init_args.parts[{part}] gets none of the {sum(self.counts)} {what} of "
                    "an epoch; raise its weight or data.init_args.samples, or remove it"
                )


class MixedLoader(ResumableLoader):
    """A resumable loader that continues the same mixture only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ResumableLoader`.

        Raises:
            UserError: the data, their shares or the processes are not those of the checkpoint.
        """
        place = dict(state.get("sampler", {}))
        mixture = place.pop("mixture", None)
        super().load_state_dict({**state, "sampler": place} if state else state)
        if self._loaded is None or not isinstance(self.sampler, MixedSampler):
            return
        if mixture != self.sampler.mixture:
            self._loaded = None
            raise UserError(
                "the checkpoint was written with other parts, weights, samples or homogeneous "
                "under data.init_args than this run has; resume with the same, or start a new run"
            )
        self._loaded = state


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


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided in the proportion of the weights (largest remainder, Hamilton's method).

    Each share is within 1 of the exact one, and they sum to `total`.
    """
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    # Stable, so that of equal remainders the first counts.
    largest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return [int(count) for count in counts]


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
