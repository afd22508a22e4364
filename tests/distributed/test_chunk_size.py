"""Two processes that encode in chunks take the step of one that keeps everything."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_modules.strategies import FSDP2Strategy
from tests.chunked import Kind, difference, method, one_step, write_models
from tests.distributed.processes import WORLD, run_in_processes

CASES: tuple[tuple[Kind, str], ...] = (
    ("clip", "ddp"),
    ("chatir", "ddp"),
    ("triplets", "fsdp2"),
    ("texts", "ddp"),
    ("caption_triplets", "ddp"),
    ("caption_triplets", "fsdp2"),
)


def steps(rank: int, models: Path) -> list[torch.Tensor]:
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    return [
        one_step(
            kind,
            partial(method, kind, models, chunk_size=2),
            FSDP2Strategy() if strategy == "fsdp2" else strategy,
            devices=WORLD,
        )
        for kind, strategy in CASES
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture(scope="module")
def together(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[torch.Tensor]]:
    return run_in_processes(steps, tmp_path_factory.mktemp("processes"), models)


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_two_processes_in_chunks_step_as_one(
    case: int, models: Path, together: list[list[torch.Tensor]]
) -> None:
    kind = CASES[case][0]
    alone = one_step(kind, lambda: method(kind, models))
    first, second = (steps[case] for steps in together)
    assert difference(alone, first) < 1e-4
    torch.testing.assert_close(second, first)
