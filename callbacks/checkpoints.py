"""Checkpoints: the last one to resume from, the best one to use, and never half of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from cirlab.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place, on the same disk.

    Lightning's own writer collects the file in memory and opens the old one for writing, so
    that a full disk or a kill leaves neither the old nor the new checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the whole file or nothing.

        Raises:
            UserError: it cannot be written, because the disk is full for instance.
        """
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        # torch reports a short write as RuntimeError.
        except (OSError, RuntimeError) as error:
            unfinished.unlink(missing_ok=True)
            reason = str(error.__context__ or error).splitlines()[0]
            kept = "the checkpoint before it is whole" if path.exists() else "none was there before"
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}), {kept}; free space on that "
                "disk and resume"
            ) from error


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, overwritten every few steps and at the end of training.

    Args:
        every_n_train_steps: optimiser steps between two checkpoints; what a kill costs at most.
    """

    def __init__(self, every_n_train_steps: int = 100) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not getattr(trainer, "fast_dev_run", False) and self.dirpath is not None:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")


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
            UserError: the monitor names another benchmark.
        """
        super().setup(trainer, pl_module, stage)
        data = getattr(trainer, "datamodule", None)
        names = [benchmark.name for benchmark in getattr(data, "benchmarks", [])]
        kind, _, rest = (self.monitor or "").partition("/")
        if stage == "fit" and kind == "val" and rest.partition("/")[0] not in names:
            raise UserError(
                f"best_checkpoint monitors {self.monitor}, but the benchmarks of this run are "
                f"{', '.join(names) or 'none'}; name one of them as val/<benchmark>/<metric>"
            )
