"""Dialogues by round as a picture, in the run's folder and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from mlflow import MlflowClient

from cirlab.cli import main
from tests.tiny_run import tiny_experiment

TALKS = {
    "class_path": "cirlab.benchmarks.WorldDialogue",
    "init_args": {"families": 1, "dialogues": 8, "rounds": 3},
}


def validated(folder: Path, benchmark: dict[str, Any], loggers: Sequence[Any] = ()) -> Path:
    """The folder of a run that was evaluated before training."""
    csv = {"class_path": "callbacks.CsvLog", "init_args": {"save_dir": str(folder / "runs")}}
    config = tiny_experiment(
        folder,
        trainer={"logger": [csv, *loggers]},
        data={"init_args": {"benchmarks": [benchmark]}},
        best_checkpoint={"init_args": {"monitor": None}},
    )
    assert main(["validate", "-c", str(config), "--ckpt_path", "untrained"]) == 0
    return folder / "runs" / "tiny" / "version_0"


def test_an_evaluation_of_dialogues_leaves_a_plot_in_its_folder_and_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # MLflow keeps a store open by its name, for other tests in other folders as well.
    store = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow = {"class_path": "callbacks.MlflowLog", "init_args": {"tracking_uri": store}}
    run = validated(tmp_path, TALKS, [mlflow])
    image = PIL.Image.open(run / "rounds.png")
    assert image.format == "PNG" and image.width > 2 * image.height
    run_id = json.loads((run / "run.json").read_text())["mlflow_run"]
    kept = MlflowClient(store).list_artifacts(run_id)
    assert "rounds.png" in {item.path for item in kept}


def test_without_dialogues_there_is_no_plot(tmp_path: Path) -> None:
    text = {"class_path": "cirlab.benchmarks.WorldTextToImage", "init_args": {"scenes": 10}}
    run = validated(tmp_path, text)
    assert (run / "results.json").is_file() and not (run / "rounds.png").exists()
