"""Small mixtures, and which of their parts a sample is of."""

from __future__ import annotations

from typing import Any

import torch

from cirlab.records import SampleKey
from datamodules.mixed import MixedData
from datamodules.mixed_sampling import MixedSampler
from tests.datamodules.toys import NumbersData, ToyModule

LENGTHS = [30, 70, 20]


def sampler(lengths: list[int] = LENGTHS, **options: Any) -> MixedSampler:
    return MixedSampler(lengths, **{"batch_size": 8, "seed": 0, **options})


def keys(made: MixedSampler, epoch: int = 0) -> list[SampleKey]:
    made.set_epoch(epoch)
    return list(made)


def part_of(index: int, lengths: list[int] = LENGTHS) -> int:
    return sum(index >= sum(lengths[: i + 1]) for i in range(len(lengths)))


def parts_of(found: list[SampleKey], lengths: list[int] = LENGTHS) -> list[int]:
    return [part_of(key.index, lengths) for key in found]


def mixed(lengths: list[int] = LENGTHS, **options: Any) -> MixedData:
    settings: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 4, "num_workers": 0, **options}
    return MixedData([NumbersData(length) for length in lengths], **settings)


class Named(ToyModule):
    """Keeps the ids of images, which tell the parts apart."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch["ids"]), ()))
        self.skipped += batch["skipped"]
        return (self.weight * batch["noise"].sum()).sum()
