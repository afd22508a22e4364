"""Two processes draw from a mixture what one draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirlab.records import Pair
from tests.datamodules.mixtures import Named, mixed
from tests.distributed.processes import WORLD, run_in_processes


def draw(rank: int, replicas: int) -> list[list[str]]:
    """The batches of one process, by the loader of the data module itself."""
    data = mixed(
        weights=[1, 2, 1], samples=128, homogeneous=True, batch_size=8 // replicas, num_workers=1
    )

    class Placed:
        lightning_module = Named(Pair)
        distributed_sampler_kwargs = {"rank": rank, "num_replicas": replicas}  # noqa: RUF012

    trainer: Any = Placed()
    data.trainer = trainer
    return [list(batch["ids"]) for batch in data.train_dataloader()]


def draw_share(rank: int) -> list[list[str]]:
    return draw(rank, WORLD)


def test_two_processes_draw_the_global_batches_of_one(tmp_path: Path) -> None:
    alone = draw(0, 1)
    shared = run_in_processes(draw_share, tmp_path)
    assert len(alone) == 16
    for whole, *parts in zip(alone, *shared, strict=True):
        assert sorted(whole) == sorted(name for part in parts for name in part)
