"""A run that is killed and resumed equals one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from cirlab.cli import main
from tests.tiny_run import STEPS, Killed, tiny_experiment

ROOT = Path(__file__).parent.parent
STORE = "sqlite:///mlflow.db"
KILLER: dict[str, Any] = {"trainer": {"callbacks+": [{"class_path": "tests.tiny_run.KillAt"}]}}


def write(folder: Path, **overrides: Any) -> Path:
    workers = {"data": {"init_args": {"num_workers": 1}}}
    return tiny_experiment(folder, **KILLER, **workers, **overrides)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last(folder: Path) -> Path:
    return folder / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    theirs = weights(other)
    for name, value in weights(one).items():
        assert torch.equal(value, theirs[name]), name
    assert (one / "results.json").read_text() == (other / "results.json").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["fit", "-c", str(write(folder))]) == 0
    run = folder / "runs" / "tiny" / "version_0"
    assert len([row for row in metrics(run) if row["train/loss"]]) == 2 * STEPS
    return run


# The last checkpoint lies at a multiple of 3 here: 2 is before the first one, 5 and 14 in
# mid-epoch, and the validation stands between the epochs, after step 8, where another one lies.
@pytest.mark.parametrize("place", ["2", "5", "14", "validation", "evaluation"])
def test_an_interrupted_run_continues_exactly(
    place: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path)
    monkeypatch.setenv("KILL_AT", place)
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    monkeypatch.delenv("KILL_AT")
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    newest = max((tmp_path / "runs" / "tiny").iterdir())
    assert newest.name == ("version_1" if place == "2" else "version_0")
    assert_same(newest, undisturbed)


def test_a_checkpoint_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written after the validation, so that the next epoch is what a resumed run sees."""
    often = {"last_checkpoint": {"init_args": {"every_n_train_steps": STEPS}}}
    (tmp_path / "whole").mkdir()
    assert main(["fit", "-c", str(write(tmp_path / "whole", **often))]) == 0
    config = write(tmp_path, **often)
    monkeypatch.setenv("KILL_AT", str(STEPS + 3))
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    monkeypatch.delenv("KILL_AT")
    assert torch.load(last(tmp_path), weights_only=True)["global_step"] == STEPS
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    runs = (tmp_path / folder / "tiny" / "version_0" for folder in ("runs", "whole/runs"))
    assert_same(*runs)


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_an_evaluation_that_fails_costs_no_training(
    interval: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run begins with it, in mid-epoch, too, and ends with the same numbers."""
    started = time.monotonic()
    seldom = {
        "last_checkpoint": {"init_args": {"every_n_train_steps": 100}},
        "trainer": {**KILLER["trainer"], "max_epochs": 1, "val_check_interval": interval},
    }
    workers = {"data": {"init_args": {"num_workers": 1}}}
    (tmp_path / "whole").mkdir()
    whole = tiny_experiment(tmp_path / "whole", **workers, **seldom)
    assert main(["fit", "-c", str(whole)]) == 0
    config = tiny_experiment(tmp_path, **workers, **seldom)
    monkeypatch.setenv("KILL_AT", "evaluation")
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    monkeypatch.delenv("KILL_AT")
    kept = torch.load(last(tmp_path), weights_only=True)["global_step"]
    assert kept == round(STEPS * interval)
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    resumed, undisturbed = (
        tmp_path / folder / "tiny" / "version_0" for folder in ("runs", "whole/runs")
    )
    assert_same(resumed, undisturbed)
    (seconds,) = json.loads((resumed / "run.json").read_text())["epoch_seconds"]
    assert 0 <= seconds <= time.monotonic() - started


def test_a_kill_behind_an_evaluation_does_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = {"last_checkpoint": {"init_args": {"every_n_train_steps": 100}}}
    config = write(tmp_path, **seldom)
    monkeypatch.setenv("KILL_AT", str(STEPS + 1))
    with pytest.raises(Killed):
        main(["fit", "-c", str(config)])
    # Nothing but the evaluation at the end of the second epoch is left to be done.
    monkeypatch.setenv("KILL_AT", "validation")
    with pytest.raises(Killed):
        main(["fit", "-c", str(config), "--resume", "true"])
    assert torch.load(last(tmp_path), weights_only=True)["global_step"] == STEPS
    folder = tmp_path / "runs" / "tiny" / "version_0"
    assert len([row for row in metrics(folder) if row["train/loss"]]) == 2 * STEPS


def test_sigkill_in_mid_epoch(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same end, in the same folder and the same MLflow run."""
    monkeypatch.chdir(tmp_path)
    loggers = [
        {"class_path": "callbacks.CsvLog", "init_args": {"save_dir": "runs"}},
        {"class_path": "callbacks.MlflowLog", "init_args": {"tracking_uri": STORE}},
    ]
    trainer = {**KILLER["trainer"], "logger": loggers}
    config = tiny_experiment(tmp_path, trainer=trainer, data={"init_args": {"num_workers": 1}})
    environment = {**os.environ, "KILL_AT": "13", "KILL_BY": "SIGKILL", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cirlab", "fit", "-c", str(config)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (before,) = mlflow_runs()
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    assert_same(tmp_path / "runs" / "tiny" / "version_0", undisturbed)
    (after,) = mlflow_runs()
    assert (before.info.run_id, before.info.status) == (after.info.run_id, "RUNNING")
    assert after.info.status == "FINISHED"
    client = MlflowClient(STORE)
    history = client.get_metric_history(after.info.run_id, "train/loss")
    assert sorted(entry.step for entry in history) == list(range(2 * STEPS))
    assert after.data.params["global_batch"] == "16"
    assert after.data.params["negatives_per_query"] == "15"
    assert after.data.params["code_revision"]
    assert after.data.metrics.keys() >= {"epoch_seconds", "peak_host_mib", "peak_device_mib"}
    assert "package.torch" in after.data.tags
    files = {item.path for item in client.list_artifacts(after.info.run_id)}
    assert files == {"config.yaml", "run.json", "results.json"}


def mlflow_runs() -> list[Run]:
    client = MlflowClient(STORE)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_finished_run_stays_as_it_is(undisturbed: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = metrics(undisturbed), weights(undisturbed)
    config = undisturbed.parents[2] / "tiny.yaml"
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
    assert "ended already" in caplog.text
    assert metrics(undisturbed) == before[0]
    assert all(torch.equal(value, before[1][n]) for n, value in weights(undisturbed).items())
