"""Two processes look at a gallery as one does, and share what is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_modules.promptable import LinearSample, PrefixBudget
from tests.distributed.processes import WORLD, run_in_processes
from tests.lightning_modules.promptable.tiny import evaluate, method, pictures_read
from tests.tiny_mllm import write_tiny_mllm


def arms(store: Path) -> list[dict[str, Any]]:
    return [
        {"looking": "prefix", "prefixes": PrefixBudget(0.1, str(store / "prefixes"))},
        {"looking": "prefix", "store": str(store)},
        {"looking": "linear", "linear": LinearSample(count=8), "store": str(store)},
        {"looking": "linear", "linear": LinearSample(count=8)},
    ]


def look(folder: Path, store: Path, **options: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """Results of every arm, and how many pictures this process has encoded for it."""
    results, encoded = [], []
    for arm in arms(store):
        module = method(folder / "llava", **arm)
        with pictures_read(module) as read:
            results.append(evaluate(module, **options))
        encoded.append(sum(read))
    return results, encoded


def look_at_share(rank: int, folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    return look(folder, folder / "two", devices=WORLD, strategy="ddp")


def test_two_processes_look_as_one_does_and_share_what_is_kept(tmp_path: Path) -> None:
    write_tiny_mllm(tmp_path / "llava")
    alone, by_one = look(tmp_path, tmp_path / "one")
    (first, by_first), (second, by_second) = run_in_processes(look_at_share, tmp_path, tmp_path)
    assert first == second == alone
    # The second arm keeps its gallery, and each picture passes the tower in one process alone;
    # only a group of three is encoded anew by each, to try the prefix.
    assert by_one[1] <= by_first[1] + by_second[1] <= by_one[1] + 3
    assert abs(by_first[1] - by_second[1]) <= 1
