"""A fine-tune on cached vectors that is killed and resumed equals one that was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cirlab.cli import main
from tests.test_resume import assert_same
from tests.tiny import write_tiny_clip
from tests.tiny_run import STEPS, Killed, tiny_experiment


def write(folder: Path, clip: Path) -> Path:
    path = tiny_experiment(
        folder,
        trainer={"callbacks+": [{"class_path": "tests.tiny_run.KillAt"}]},
        best_checkpoint={"init_args": {"monitor": "val/world_dialogue/recall_at_10"}},
    )
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"] = {
        "class_path": "lightning_modules.ChatIR",
        "init_args": {
            "clip": f"local-dir:{clip}",
            "cache_features": True,
            "loss": {
                "class_path": "cirlab.recall_surrogate.RecallSurrogate",
                "init_args": {"temperature": 0.05},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"name": "exponential", "decay": 0.5, "minimum": 0.001},
        },
    }
    dialogues = {"families": 1, "dialogues": 4, "rounds": 2}
    benchmark = {"class_path": "cirlab.benchmarks.WorldDialogue", "init_args": dialogues}
    config["data"] = {
        "class_path": "datamodules.WorldDialogueData",
        "init_args": {
            "samples": 8 * STEPS,
            "batch_size": 8,
            "eval_batch_size": 32,
            "num_workers": 1,
            "benchmarks": [benchmark],
        },
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_an_interrupted_run_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").mkdir()
    assert main(["fit", "-c", str(write(tmp_path / "whole", clip))]) == 0
    config = write(tmp_path, clip)
    monkeypatch.setenv("KILL_AT", str(STEPS + 3))
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    monkeypatch.delenv("KILL_AT")
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    resumed, undisturbed = (
        tmp_path / folder / "tiny" / "version_0" for folder in ("runs", "whole/runs")
    )
    assert_same(resumed, undisturbed)
    checkpoint = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.0025)
