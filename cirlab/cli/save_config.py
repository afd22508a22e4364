"""What a run was made of, written where its results are and into its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from cirlab.cli.parser import plain_config
from cirlab.command.checkpoint_config import CONFIG


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration once something has run, and into every checkpoint."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet: data or weights may still be refused."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG] = plain_config(self.parser, self.config)
        # Lightning would take these for the truth, and they may hold classes that a
        # weights-only load refuses.
        checkpoint.pop(pl_module.CHECKPOINT_HYPER_PARAMS_KEY, None)

    def _write(self, trainer: L.Trainer) -> None:
        if self.already_saved or trainer.sanity_checking:
            return
        self.already_saved = True
        # A collective: every process has to ask, and equally often.
        log_dir = trainer.log_dir
        if trainer.is_global_zero and log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / self.config_filename, skip_unset=False, overwrite=True
            )
