"""The same numbers and files in MLflow, for `make dashboard`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cirlab.errors import UserError


class MlflowLog(Logger):
    """An MLflow run that begins with the first thing logged, and that a resumed run continues.

    Lightning's own MLFlowLogger opens its store when the command line is parsed and its run
    before the data is read, so that a typing error leaves a database and a failed run behind.

    Args:
        tracking_uri: MLflow's store; `sqlite:///mlflow.db` is a file in the working directory.
        experiment_name: null: the experiment's path below `experiments/`, set by the command
            line.
    """

    def __init__(
        self, tracking_uri: str = "sqlite:///mlflow.db", experiment_name: str | None = None
    ) -> None:
        super().__init__()
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name or "unnamed"
        self.run_id: str | None = None
        # An MlflowClient. The parser imports what annotations name, and MLflow takes seconds.
        self._client: Any = None
        self._last_step: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str | None:
        return self.run_id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run record chooses the scalars, and config.yaml holds all of them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        client, run_id = self._run()
        now, at = int(time.time() * 1000), step or 0
        # What a killed run logged after its last checkpoint stands there already.
        rows = [
            Metric(name, float(value), now, at)
            for name, value in metrics.items()
            if at > self._last_step.get(name, -1)
        ]
        if rows:
            client.log_batch(run_id, metrics=rows)

    @rank_zero_only
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; one that a resumed run has changed becomes a tag beside the old."""
        from mlflow.entities import Param, RunTag

        client, run_id = self._run()
        old = client.get_run(run_id).data.params
        new = {name: str(value) for name, value in params.items()}
        client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in new.items() if name not in old],
            tags=[
                RunTag(f"resumed_with.{name}", value)
                for name, value in new.items()
                if old.get(name, value) != value
            ],
        )

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        client, run_id = self._run()
        client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    @rank_zero_only
    def log_artifact(self, path: Path) -> None:
        """Copy a file, or the files of a folder under its name, to the run's artifacts."""
        client, run_id = self._run()
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._client is not None and self.run_id is not None:
            self._client.set_terminated(self.run_id, "FAILED" if status == "failed" else "FINISHED")

    def continue_run(self, run_id: str) -> None:
        """Log into an earlier run."""
        self.run_id = run_id

    def _run(self) -> tuple[Any, str]:
        if self._client is not None and self.run_id is not None:
            return self._client, self.run_id
        for library in ("alembic", "mlflow"):
            logging.getLogger(library).setLevel(logging.WARNING)
        from mlflow.exceptions import MlflowException

        try:
            return self._open()
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"MLflow cannot use its store {self.tracking_uri} ({reason}); give another "
                "tracking_uri, or leave the logger out of trainer.logger"
            ) from error

    def _open(self) -> tuple[Any, str]:
        from mlflow import MlflowClient

        client = self._client = MlflowClient(self.tracking_uri)
        if self.run_id is not None:
            run = client.get_run(self.run_id)
            client.update_run(self.run_id, status="RUNNING")
            for name in run.data.metrics:
                history = client.get_metric_history(self.run_id, name)
                self._last_step[name] = max(entry.step for entry in history)
        else:
            experiment = client.get_experiment_by_name(self.experiment_name)
            known = experiment and experiment.experiment_id
            place = known or client.create_experiment(self.experiment_name)
            self.run_id = client.create_run(place).info.run_id
        return client, self.run_id
