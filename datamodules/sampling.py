"""Which samples a training process sees, in which order, and how it finds its place again.

The order is a function of (seed, epoch) alone. So a run that is killed in mid-epoch continues
with exactly the samples it had not seen, and the same global batches are drawn by one process
as by many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

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
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.series = series
        self.rank = rank
        self.replicas = replicas
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Samples per epoch of this process; incomplete batches are dropped."""
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of iterators made from now on (Lightning calls this)."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Let the next iterator, and only that, start after so many batches."""
        self.start = batches * self.batch_size

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
            "batch_size": self.batch_size,
            "seed": self.seed,
            "series": self.series,
            "replicas": self.replicas,
        }

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, order = self.epoch, self.order(self.epoch)[self.start :]
        self.start = 0
        return (SampleKey(epoch, int(index)) for index in order)


class ResumableLoader(DataLoader[Any]):
    """A loader over a `TrainSampler` whose place Lightning saves with a checkpoint.

    The place is (epoch, batches handed out): batches that workers have prepared ahead do not
    count, and the number of workers may differ in the run that resumes.
    """

    _epoch = 0
    _handed_out = 0
    _loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # As a generator this runs at the first batch, when the sampler knows its epoch:
        # Lightning makes the first iterator of a resumed run before that.
        self._handed_out = self._skip()
        self._epoch = getattr(self.sampler, "epoch", 0)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def _skip(self) -> int:
        loaded, self._loaded = self._loaded, None
        sampler = self.sampler
        # Another epoch's place was saved at that epoch's end: nothing is left of it.
        if loaded is None or not isinstance(sampler, TrainSampler):
            return 0
        if loaded["epoch"] != sampler.epoch:
            return 0
        sampler.skip(loaded["batches"])
        return int(loaded["batches"])

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it is a place in."""
        if not isinstance(self.sampler, TrainSampler):
            return {}
        if self._loaded is not None:  # saved again before the first batch
            return self._loaded
        place = {"epoch": self._epoch, "batches": self._handed_out}
        return place | {"sampler": self.sampler.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration after the batches that were handed out.

        Raises:
            UserError: the data or the processes are not those of the checkpoint.
        """
        if not state or not isinstance(self.sampler, TrainSampler):
            return
        now = self.sampler.identity()
        for name, value in state["sampler"].items():
            if now.get(name) != value:
                raise UserError(
                    f"the checkpoint was written with {_MEANING.get(name, name)} {value}, this "
                    f"run has {now.get(name, 'none')}; resume with the same data and "
                    "devices, or start a new run"
                )
        self._loaded = state


_MEANING = {
    "length": "a number of training samples of",
    "batch_size": "data.init_args.batch_size",
    "seed": "data.init_args.seed",
    "series": "data.init_args.series",
    "replicas": "a number of data-parallel processes of",
}
