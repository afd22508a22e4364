"""How several data sets are drawn from in given shares, and how a run finds its place again.

The order is a function of the parts' lengths, their shares, the seed and the epoch alone, as that
of one data set is (`datamodules.sampling`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.sampling import ResumableLoader, TrainSampler


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
