"""A run that torchrun starts is the run that Lightning starts by itself, bit for bit."""

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
#: docs/scaling.md has the same line for several machines.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(launcher: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    config = tiny_experiment(
        folder,
        data={"init_args": {"batch_size": 8, "samples": 32}},
        trainer={"devices": 2, "strategy": "ddp", "max_epochs": 1},
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "-m", "cirlab", "fit", "-c", str(config)],
        cwd=folder,
        env=environment,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Weights, results and record of the run."""
    runs = list((folder / "runs" / "tiny").iterdir())
    assert [run.name for run in runs] == ["version_0"], "more than one process has made a run"
    checkpoint = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    results, record = (
        json.loads((runs[0] / f"{name}.json").read_text()) for name in ("results", "run")
    )
    return checkpoint["state_dict"], results[BENCHMARK]["metrics"], record


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_torchrun_trains_and_evaluates_as_lightning_does(tmp_path: Path) -> None:
    assert run([sys.executable], tmp_path / "lightning").returncode == 0
    done = run(TORCHRUN, tmp_path / "torchrun")
    assert done.returncode == 0, done.stderr
    expected, results, record = outcome(tmp_path / "lightning")
    state, same_results, same_record = outcome(tmp_path / "torchrun")
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert same_results == results
    assert same_record["processes"] == record["processes"] == 2
    assert same_record["global_batch"] == record["global_batch"] == 16
