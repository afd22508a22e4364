"""What Lightning leaves out when it resumes a run in mid-epoch."""

from __future__ import annotations

from typing import Any

import lightning as L

from cirlab import distributed
from cirlab.random_state import random_state, set_random_state


class ExactResume(L.Callback):
    """Makes a resumed run equal an undisturbed one, bit for bit on the same machine.

    Lightning restores weights, optimisers, loops and the place in the training loader. Added
    here: the random generators of every process, and a training loader that takes its place
    even if the optimisers asked for the number of steps. The data's part is to draw from
    (seed, epoch, sample) alone. A run that resumes with another number of processes starts its
    generators anew.
    """

    KEY = "random_states"

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[self.KEY] = distributed.all_gather_object(random_state())

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._states = checkpoint.get(self.KEY, [])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # `trainer.estimated_stepping_batches`, which schedules need, makes the training loader
        # before its state is read, and Lightning 2.6 gives the state only to a new loader.
        if trainer.ckpt_path is not None:
            trainer.fit_loop._combined_loader = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self._states) == distributed.world_size():
            set_random_state(self._states[distributed.rank()])
