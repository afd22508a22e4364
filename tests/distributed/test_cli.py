"""A whole run on two processes, as `--trainer.devices 2 --trainer.strategy ddp` makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_run import BENCHMARK, tiny_experiment

ROOT = Path(__file__).parent.parent.parent
# Plain gradient descent: Adam would blow rounding errors up to whole steps.
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}


def run(folder: Path, processes: int) -> tuple[dict[str, Any], Path]:
    """Train on 4 global batches of 16, and return the metrics and the run's folder."""
    config = tiny_experiment(
        folder,
        model={"init_args": {"optimizer": SGD}},
        data={"init_args": {"batch_size": 16 // processes, "samples": 64}},
        trainer={"devices": processes, "strategy": "ddp", "max_epochs": 1},
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cirlab", "fit", "-c", str(config)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=900)
    run = folder / "runs" / "tiny" / "version_0"
    return json.loads((run / "results.json").read_text())[BENCHMARK]["metrics"], run


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_two_processes_train_and_evaluate_as_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, alone = run(tmp_path / "one", processes=1)
    two, together = run(tmp_path / "two", processes=2)
    states = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (alone, together)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=2e-6, msg=name)
    # Sums of other parts round otherwise, by 1e-6 at most here: too little to change any rank.
    assert two == one
    record = json.loads((together / "run.json").read_text())
    assert (record["processes"], record["global_batch"]) == (2, 16)
    assert record["negatives_per_query"] == 15
    assert [folder.name for folder in together.parent.iterdir()] == ["version_0"]
