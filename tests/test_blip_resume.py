"""A BLIP run that is killed and resumed equals one that was left alone, queue and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cirlab.cli import main
from tests.test_resume import assert_same
from tests.tiny_blip import TEXT, VISION
from tests.tiny_run import STEPS, Killed, tiny_experiment


def write(folder: Path) -> Path:
    path = tiny_experiment(
        folder,
        trainer={"callbacks+": [{"class_path": "tests.tiny_run.KillAt"}], "max_epochs": 1},
        data={"init_args": {"num_workers": 1}},
    )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    arguments: dict[str, Any] = {
        "from_scratch": {
            "vision": VISION | {"image_size": 64, "patch_size": 32},
            "text": TEXT | {"max_position_embeddings": 96},
            "embed_dim": 16,
        },
        "max_length": 80,
        "contrast": {"queue_size": 40, "momentum": 0.9, "alpha_warmup": 0.5},
        "lm_weight": 1.0,
        "dropout": 0.1,
        "augmentation": {"flip": False},
        "export_to": str(folder / "exported"),
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
    }
    config["model"] = {"class_path": "lightning_modules.Blip", "init_args": arguments}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_an_interrupted_run_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    assert main(["fit", "-c", str(write(tmp_path / "whole"))]) == 0
    config = write(tmp_path)
    monkeypatch.setenv("KILL_AT", str(STEPS - 1))
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    monkeypatch.delenv("KILL_AT")
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    resumed, undisturbed = (
        tmp_path / folder / "tiny" / "version_0" for folder in ("runs", "whole/runs")
    )
    assert_same(resumed, undisturbed)
    last = resumed / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert int(state["queue.pushed"]) == 16 * STEPS
    assert state["queue.all_images"].norm(dim=1).min() > 0.99
    slow = state["teacher.text_proj.weight"], state["encoder.model.text_proj.weight"]
    assert not torch.equal(*slow)
    assert (tmp_path / "exported" / "model.safetensors").is_file()
