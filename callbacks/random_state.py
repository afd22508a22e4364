"""Global random generators survive a kill: the third part of exact resume."""

from __future__ import annotations

from typing import Any

import lightning as L

from cirlab import distributed
from cirlab.random_state import random_state, set_random_state


class RandomState(L.Callback):
    """Keeps every process's random generators in the checkpoint.

    Lightning restores weights, optimisers, loops and the state of the training loader; with
    this callback and datasets that draw from (seed, epoch, sample) a resumed run equals an
    undisturbed one. A run that resumes with another number of processes starts its generators
    anew.
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self._states) == distributed.world_size():
            set_random_state(self._states[distributed.rank()])
