from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from callbacks.mlflow_log import MlflowLog
from cirlab.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_a_run_begins_late_and_goes_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = MlflowLog(store, experiment_name="paper/x")
    assert not Path(store.removeprefix("sqlite:///")).exists()
    first.log_params({"batch": 8, "device": "cpu"})
    for step in range(3):
        first.log_metrics({"val/b/recall_at_1": step / 4}, step=step)
    first.log_metrics({"epoch_seconds": 2.0}, step=0)
    file = tmp_path / "sheets" / "a.txt"
    file.parent.mkdir()
    file.write_text("a")
    first.log_artifact(file.parent)
    # Killed: never finalised. The same run goes on two steps back.
    second = MlflowLog(store, experiment_name="paper/x")
    assert first.run_id is not None
    second.continue_run(first.run_id)
    second.log_params({"batch": 16, "device": "cpu"})
    for step in range(1, 5):
        second.log_metrics({"val/b/recall_at_1": step / 4}, step=step)
    second.finalize("success")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("paper/x")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "val/b/recall_at_1")
    assert sorted((entry.step, entry.value) for entry in history) == [(s, s / 4) for s in range(5)]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"batch": "8", "device": "cpu"}
    assert run.data.tags["resumed_with.batch"] == "16"
    assert "resumed_with.device" not in run.data.tags
    assert [item.path for item in client.list_artifacts(run.info.run_id, "sheets")] == [
        "sheets/a.txt"
    ]


def test_nothing_logged_leaves_nothing(tmp_path: Path) -> None:
    MlflowLog(f"sqlite:///{tmp_path}/mlflow.db").finalize("failed")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = MlflowLog(f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(UserError, match=r"MLflow cannot use its store sqlite.*file/mlflow\.db"):
        log.log_metrics({"a": 1.0}, step=0)
