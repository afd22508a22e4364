"""Two processes ask a gallery as one does, and write one file of answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.distributed.processes import WORLD, run_in_processes
from tests.lightning_modules.test_answer_matching import answers, evaluate, method


def ask_share(rank: int, folder: Path) -> dict[str, Any]:
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    return evaluate(method(), folder, devices=WORLD, strategy="ddp")


def test_two_processes_ask_as_one_does(tmp_path: Path) -> None:
    alone = evaluate(method(), tmp_path / "one")
    first, second = run_in_processes(ask_share, tmp_path, tmp_path / "two")
    assert first == second == alone
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert alone["metrics"]["recall_at_1"] > 0.3
