"""What a normal run prints: its own sentences and tables, and no library's warnings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny_run import tiny_experiment

ROOT = Path(__file__).parent.parent.parent


def test_a_short_run_shows_no_warnings_of_libraries(tmp_path: Path) -> None:
    trainer = {"enable_progress_bar": True, "max_epochs": 1, "log_every_n_steps": 10}
    config = tiny_experiment(tmp_path, trainer=trainer)
    done = subprocess.run(
        [sys.executable, "-m", "cirlab", "fit", "-c", str(config)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train/loss" in done.stdout
    # A warning begins with the file that gives it.
    assert [line for line in done.stderr.splitlines() if "site-packages" in line] == []
