"""Checkpoints: the last one to resume from, the best one to use, and never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from cirlab.checkpoints import is_checkpoint, is_in_parts, read_checkpoint, remove_parts
from cirlab.errors import UserError

#: Where a checkpoint holds how far the evaluation of an epoch is.
_EVALUATED = "epoch_loop.val_loop.batch_progress"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place, on the same disk.

    It reads the folder of a sharded checkpoint as it reads a file.

    Lightning's own writer collects the file in memory and opens the old one for writing, so
    that a full disk or a kill leaves neither the old nor the new checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the whole file or nothing.

        Raises:
            UserError: it cannot be written, because the disk is full for instance, or because the
                folder of something else has its name.
        """
        path = Path(path)
        if path.is_dir() and not is_in_parts(path):
            raise UserError(
                f"the checkpoint {path} cannot be written, since there is a folder of that name "
                "that is none; move it elsewhere and resume"
            )
        unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if is_in_parts(path):
                # Of a run that was sharded before: a file does not take a folder's place.
                remove_parts(path)
            unfinished.replace(path)
        # torch reports a short write as RuntimeError.
        except (OSError, RuntimeError) as error:
            unfinished.unlink(missing_ok=True)
            reason = str(error.__context__ or error).splitlines()[0]
            before = "the checkpoint before it is whole", "none was there before"
            kept = before[0] if is_checkpoint(path) else before[1]
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}), {kept}; free space on that "
                "disk and resume"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return read_checkpoint(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


class LastCheckpoint(Checkpoint):
    """`last.ckpt`, overwritten every few steps, around every evaluation, and at the end.

    An evaluation takes long and meets what training has not met. So a checkpoint is written before
    it, from which a run resumes with the evaluation, and another one after it, with the next batch
    or at the end of the epoch, from which it resumes behind. Where trainer.max_steps has ended a
    run, Lightning resumes nothing: evaluate that checkpoint instead.

    Args:
        every_n_train_steps: optimiser steps between two checkpoints; what a kill costs at most.

    Raises:
        UserError: it is not at least 1.
    """

    def __init__(self, every_n_train_steps: int = 100) -> None:
        if every_n_train_steps < 1:
            raise UserError(
                f"last_checkpoint.init_args.every_n_train_steps is {every_n_train_steps}; set it "
                "to 1 or more"
            )
        self.every_n_train_steps = every_n_train_steps
        self._step = 0
        self._due = False
        self._evaluation_begins = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        # Between two steps of the optimiser there are gradients that no checkpoint holds.
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._due = self._due or self._step % self.every_n_train_steps == 0
        if self._due and not _validation_follows(trainer, index):
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._evaluation_begins = True
        try:
            self._save(trainer)
        finally:
            self._evaluation_begins = False
        self._due = True

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._evaluation_begins:
            _in_first_batch(checkpoint["loops"]["fit_loop"][_EVALUATED])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._due = False
        # Reading the folder is collective, and so is saving.
        folder = trainer.log_dir
        if folder is not None and not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(Path(folder) / "checkpoints" / "last.ckpt")


def _in_first_batch(progress: dict[str, Any]) -> None:
    """Make an evaluation's progress what it is while its first batch is encoded.

    Lightning repeats an evaluation only where it finds this in a checkpoint, and there is no hook
    at that place: before the first batch it would take the evaluation for done.
    """
    for counter in (progress["total"], progress["current"]):
        counter["ready"] += 1
        counter["started"] += 1


def _validation_follows(trainer: L.Trainer, batch_index: int) -> bool:
    """Whether an epoch, and with it perhaps a validation, ends with this batch."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return True
    every = trainer.val_check_batch
    return isinstance(every, int) and (batch_index + 1) % every == 0


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, overwritten when a validation metric improves.

    Args:
        monitor: name of the metric, `val/<benchmark>/<metric>`; null keeps no best checkpoint.
        mode: whether higher (max) or lower (min) is better.
    """

    def __init__(self, monitor: str | None = None, mode: str = "max") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1 if monitor else 0,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a metric that no benchmark of this run will have.

        Raises:
            UserError: the monitor names another benchmark, or a metric it does not have, or leaves
                out the `val/` before its name.
        """
        super().setup(trainer, pl_module, stage)
        data = getattr(trainer, "datamodule", None)
        benchmarks = {benchmark.name: benchmark for benchmark in getattr(data, "benchmarks", [])}
        kind, *rest = (self.monitor or "").split("/")
        if stage != "fit":
            return
        if kind in benchmarks:
            raise UserError(f"{self._given}, which is logged as val/{self.monitor}; set it to that")
        if kind != "val":
            return
        if rest[0] not in benchmarks:
            raise UserError(
                f"{self._given}, but the benchmarks of this run are "
                f"{', '.join(benchmarks) or 'none'}; name one of them as val/<benchmark>/<metric>"
            )
        names = benchmarks[rest[0]].metric_names()
        if rest[-1] not in names:
            raise UserError(
                f"{self._given}, but the metrics of {rest[0]} are {', '.join(names)}; name one of "
                f"them as val/{rest[0]}/<metric>"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self._known(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self._known(trainer):
            super().on_validation_end(trainer, pl_module)

    @contextmanager
    def _known(self, trainer: L.Trainer) -> Iterator[None]:
        """One sentence where nothing of the monitor's name was logged."""
        try:
            yield
        except MisconfigurationException as error:
            raise UserError(
                f"{self._given}, but this run logs {', '.join(sorted(trainer.callback_metrics))}; "
                "name one of these, or set it to null to keep the last checkpoint alone"
            ) from error

    @property
    def _given(self) -> str:
        return f"--best_checkpoint.init_args.monitor is {self.monitor}"
