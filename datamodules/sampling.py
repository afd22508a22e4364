"""Which samples a training process sees, in which order, and how it finds its place again.

The order is a function of (seed, epoch) alone. So a run that is killed in mid-epoch continues
with exactly the samples it had not seen, and the same global batches are drawn by one process
as by many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from cirlab.errors import UserError
from cirlab.records import SampleKey


def generator_for(seed: int, key: SampleKey) -> np.random.Generator:
    """The only source of randomness a dataset may use for one training sample."""
    return np.random.default_rng((seed, key.epoch, key.index))


class TrainSampler(Sampler[SampleKey]):
    """Shuffle a dataset by (seed, epoch), deal it out to processes, keep series together.

    Global batch number b holds the same samples under any number of processes, as long as
    `batch_size * replicas` stays the same.

    Args:
        length: number of samples in the dataset.
        batch_size: samples per batch and process, a multiple of `series`.
        seed: of the shuffling.
        series: this many consecutive indices (0..s-1, s..2s-1, ...) stay together, in order
            and in one batch: variations of one scene as each other's in-batch neighbours.
            `length % series` last samples are never drawn.
        rank: this process among the data-parallel ones.
        replicas: number of data-parallel processes.
        limit: batches after which the trainer ends an epoch (`limit_train_batches`), by which
            a checkpoint of an epoch's end is told from one of its middle; None: all.

    Raises:
        UserError: no full batch can be drawn, or batches would tear series apart.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        series: int = 1,
        rank: int = 0,
        replicas: int = 1,
        limit: int | float | None = None,
    ) -> None:
        if batch_size < 1 or series < 1 or batch_size % series:
            raise UserError(
                f"data.init_args.batch_size {batch_size} is not a multiple of "
                f"data.init_args.series {series}; choose one that is, so that no batch tears a "
                "series apart"
            )
        per_batch = batch_size // series
        self.batches = length // series // (per_batch * replicas)
        if not self.batches:
            raise UserError(
                f"the training set holds {length} samples, less than one batch of {batch_size} "
                f"on each of {replicas} process(es); lower data.init_args.batch_size"
            )
        self.drawn = self.batches if limit is None else _limited(self.batches, limit)
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.series = series
        self.rank = rank
        self.replicas = replicas
        self.epoch = 0

    def __len__(self) -> int:
        """Samples per epoch of this process; incomplete batches are dropped."""
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of iterators made from now on (Lightning calls this)."""
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """Dataset indices of this process in one epoch. Shape (len(self),), int64."""
        shuffle = np.random.default_rng((self.seed, epoch))
        groups = shuffle.permutation(self.length // self.series)
        mine = groups[self.rank :: self.replicas][: len(self) // self.series]
        return (mine[:, None] * self.series + np.arange(self.series)).reshape(-1)

    def identity(self) -> dict[str, int]:
        """What must not change between a checkpoint and the run that resumes from it."""
        return {
            "length": self.length,
            "seed": self.seed,
            "series": self.series,
            "replicas": self.replicas,
        }

    def __iter__(self) -> Iterator[SampleKey]:
        return _Keys(self)


class _Keys(Iterator[SampleKey]):
    """One epoch's keys; torchdata's loader saves and restores its state with a checkpoint."""

    def __init__(self, sampler: TrainSampler) -> None:
        self._sampler = sampler
        self._epoch = sampler.epoch
        self._order = sampler.order(self._epoch)
        self._yielded = 0

    def __next__(self) -> SampleKey:
        if self._yielded == len(self._order):
            raise StopIteration
        self._yielded += 1
        return SampleKey(self._epoch, int(self._order[self._yielded - 1]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "yielded": self._yielded,
            "sampler": self._sampler.identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the samples that were drawn.

        After the last batch of an epoch the next epoch begins: a checkpoint that was saved
        with that batch is resumed by Lightning in the next epoch, on this same iterator.

        Raises:
            UserError: the data or the processes are not those of the checkpoint.
        """
        now = self._sampler.identity()
        for name, value in state["sampler"].items():
            if now[name] != value:
                raise UserError(
                    f"the checkpoint was written with {_MEANING[name]} {value}, this run has "
                    f"{now[name]}; resume with the same data and devices, or start a new run"
                )
        over = state["yielded"] >= self._sampler.drawn * self._sampler.batch_size
        self._epoch = state["epoch"] + over
        self._order = self._sampler.order(self._epoch)
        self._yielded = 0 if over else state["yielded"]


def _limited(batches: int, limit: int | float) -> int:
    """What Lightning makes of `limit_train_batches`: a count, or a fraction of all."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


_MEANING = {
    "length": "a number of training samples of",
    "seed": "data.init_args.seed",
    "series": "data.init_args.series",
    "replicas": "a number of data-parallel processes of",
}
