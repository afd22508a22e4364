"""What remains of a run: results, code, machine, sizes, times; on disk and in MLflow."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.csv_log import CsvLog
from callbacks.mlflow_log import MlflowLog
from callbacks.retrieval import RetrievalEvaluation
from cirlab.reporting.machine import PeakMemory, code_revision, device_name, package_versions
from cirlab.reporting.model_sizes import parameter_count
from cirlab.reporting.run import TRAINED_HERE, TRAINING_FREE, UNTRAINED, write_json

log = logging.getLogger(__name__)

LoggerT = TypeVar("LoggerT")

#: Files and folders of a run that MLflow has, too.
MIRRORED = (
    "config.yaml",
    "run.json",
    "results.json",
    "contact_sheets",
    "rounds.png",
    "skipped.txt",
)


class RunRecord(L.Callback):
    """Writes results.json and run.json, and mirrors them to MLflow.

    Nothing is written before the first training batch is there or an evaluation has ended: a
    run that is refused leaves no trace. Its state in a checkpoint is the number of rows of
    metrics.csv, so that a resumed run repeats none, and the seconds of the epochs so far.
    """

    KEY = "run_record"

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.epoch_seconds: list[float] = []
        self._evaluates: dict[str, int] | None = None
        self._folder: Path | None = None
        self._csv_rows = 0
        self._memory = PeakMemory()
        self._epoch_started = 0.0

    # ---- checkpoints --------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        csv = _logger(trainer, CsvLog)
        if csv is not None and trainer.is_global_zero:
            csv.save()
        checkpoint[self.KEY] = {
            "csv_rows": csv.experiment.rows if csv is not None else 0,
            "epoch_seconds": self.epoch_seconds,
            "mlflow_run": self.record.get("mlflow_run"),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._evaluates = {"epoch": checkpoint["epoch"], "step": checkpoint["global_step"]}
            return
        state = checkpoint.get(self.KEY)
        if state is not None:
            self._csv_rows = state["csv_rows"]
            self.epoch_seconds = list(state["epoch_seconds"])

    # ---- the course of a run ------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Of a run that resumes in mid-epoch no epoch starts first.
        self._epoch_started = time.monotonic()
        csv = _logger(trainer, CsvLog)
        if csv is not None and trainer.is_global_zero:
            csv.experiment.keep(self._csv_rows, before_step=trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_started = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begin(trainer, pl_module)

    def on_train_batch_end(self, *_: Any) -> None:
        self._memory.look()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_seconds.append(round(time.monotonic() - self._epoch_started, 2))
        mlflow = _logger(trainer, MlflowLog)
        if mlflow is not None:
            mlflow.log_metrics({"epoch_seconds": self.epoch_seconds[-1]}, trainer.current_epoch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluated(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluated(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The end of a run that has gone well."""
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        if self._folder is not None:
            self._write(trainer)
        elif stage == "fit":
            log.info("training had ended already: raise trainer.max_epochs to go on")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        csv = _logger(trainer, CsvLog)
        if self._folder is not None and trainer.is_global_zero:
            self.record["failed"] = f"{type(exception).__name__}: {exception}".splitlines()[0]
            self._write(trainer)
        elif csv is not None:
            csv.discard_if_empty()

    # ---- parts --------------------------------------------------------------------------

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down what is known before the first result."""
        if (
            self._folder is not None
            or getattr(trainer, "fast_dev_run", False)
            or trainer.log_dir is None
        ):
            return
        self._folder = Path(trainer.log_dir)
        if not trainer.is_global_zero:
            return
        self.record = _facts(trainer, pl_module)
        mlflow = _logger(trainer, MlflowLog)
        if mlflow is not None:
            packages, record = self.record["packages"], dict(self.record)
            for name in ("packages", "command"):
                del record[name]
            mlflow.log_params(record)
            tags = {f"package.{name}": version for name, version in packages.items()}
            mlflow.set_tags(tags | {"mlflow.runName": self._folder.name})
            self.record["mlflow_run"] = mlflow.run_id
        write_json(self._folder / "run.json", self.record)

    def _evaluated(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module)
        self._memory.look(now=True)
        if self._folder is None or not trainer.is_global_zero:
            return
        self.record["evaluated_after"] = self._evaluates or {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RetrievalEvaluation) and callback.results:
                write_json(self._folder / "results.json", callback.results)
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        """Bring run.json and MLflow up to date."""
        assert self._folder is not None
        peak = {
            "peak_host_mib": round(self._memory.host_mib),
            "peak_device_mib": round(self._memory.device_mib),
        }
        self.record |= {"epoch_seconds": self.epoch_seconds} | peak
        write_json(self._folder / "run.json", self.record)
        mlflow = _logger(trainer, MlflowLog)
        if mlflow is None:
            return
        mlflow.log_metrics(peak, trainer.global_step)
        for name in MIRRORED:
            if (self._folder / name).exists():
                mlflow.log_artifact(self._folder / name)


def _facts(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """Everything about a run that does not change while it runs."""
    per_process = getattr(getattr(trainer, "datamodule", None), "batch_size", None) or 0
    replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
    count = getattr(pl_module, "negatives_per_query", lambda global_batch: global_batch - 1)
    negatives = count(per_process * replicas)
    code = code_revision()
    return {
        "method": type(pl_module).__name__,
        "weights": _weights(trainer, pl_module),
        "command": shlex.join(["python", "-m", "cirlab", *sys.argv[1:]]),
        "code_revision": code["revision"],
        "code_dirty": code["dirty"],
        "device": device_name(pl_module.device),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "global_batch": per_process * replicas * trainer.accumulate_grad_batches,
        "negatives_per_query": max(0, negatives),
        "parameters": sum(parameter_count(p) for p in pl_module.parameters()),
        "trained_parameters": sum(
            parameter_count(p) for p in pl_module.parameters() if p.requires_grad
        ),
        "packages": package_versions(),
    }


def _weights(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Where the evaluated weights come from: this run, a checkpoint, or no training at all."""
    if trainer.state.fn == TrainerFn.FITTING:
        return TRAINED_HERE
    if trainer.ckpt_path is not None:
        return str(trainer.ckpt_path)
    return UNTRAINED if getattr(pl_module, "train_record", ()) else TRAINING_FREE


def _logger(trainer: L.Trainer, kind: type[LoggerT]) -> LoggerT | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, kind)), None)
