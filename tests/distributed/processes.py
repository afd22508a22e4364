"""Run a function in two processes that form a gloo group, and bring its results home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cirlab.distributed import leave

WORLD = 2


def run_in_processes(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returns in each process, in rank order.

    `function` must be importable: processes are spawned, because forked ones inherit the
    threads of torch and may hang.
    """
    torch.multiprocessing.spawn(_run, args=(function, folder, args), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _run(rank: int, function: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank, *args), folder / f"{rank}.pt")
    finally:
        leave()
