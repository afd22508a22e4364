"""What run.json says of an evaluation: which weights, after how much training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from cirlab.cli import main
from tests.tiny_run import STEPS, tiny_experiment


def record(folder: Path, version: int) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny" / f"version_{version}" / "run.json").read_text())


def exported(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "exported").glob("*")}


def test_an_evaluation_tells_its_weights_and_exports_nothing(tmp_path: Path) -> None:
    config = str(tiny_experiment(tmp_path, trainer={"max_epochs": 1}))
    assert main(["validate", "-c", config, "--ckpt_path", "untrained"]) == 0
    assert not (tmp_path / "exported").exists()
    assert main(["fit", "-c", config]) == 0
    before = exported(tmp_path)
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"} <= set(before)
    assert main(["validate", "-c", config]) == 0
    assert exported(tmp_path) == before
    untrained, trained, again = (record(tmp_path, version) for version in range(3))
    assert untrained["weights"] == "untrained"
    assert untrained["evaluated_after"] == {"epoch": 0, "step": 0}
    assert trained["weights"] == "trained here"
    assert len(trained["epoch_seconds"]) == 1
    assert again["weights"].endswith("version_1/checkpoints/best.ckpt")
    assert again["evaluated_after"]["step"] == STEPS
    # The seconds are those of another run.
    assert again["epoch_seconds"] == []


def test_what_was_exported_is_a_model_of_its_own(tmp_path: Path) -> None:
    """Read by open_clip alone, from a folder that may be moved."""
    config = str(tiny_experiment(tmp_path, trainer={"max_epochs": 1}))
    assert main(["fit", "-c", config]) == 0
    model = open_clip.create_model(f"local-dir:{tmp_path / 'exported'}")
    checkpoint = torch.load(
        tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True
    )
    learned = checkpoint["state_dict"]["encoder.model.token_embedding.weight"]
    torch.testing.assert_close(model.token_embedding.weight.data, learned)
    assert "/tmp" not in (tmp_path / "exported" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_refused_run_leaves_an_earlier_export_whole(tmp_path: Path, stage: str) -> None:
    config = str(tiny_experiment(tmp_path, trainer={"max_epochs": 1}))
    assert main(["fit", "-c", config]) == 0
    before = exported(tmp_path)
    options = [
        "--model.init_args.from_scratch.embed_dim",
        "24",
        "--data.init_args.batch_size",
        "999",
    ]
    options += ["--ckpt_path", "untrained"] if stage == "validate" else []
    main([stage, "-c", config, *options])
    assert exported(tmp_path) == before
