"""The table of a model's parts, their parameters and their memory, before training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from cirlab.reporting.model_sizes import PartSizes, model_sizes, show_sizes, sizes_line


class ModelSizes(L.Callback):
    """Prints it once, on rank 0; an evaluation has one line of it."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            processes = trainer.world_size if _shards(trainer) else 1
            show_sizes(Console(), _name(pl_module), _sizes(trainer, pl_module), processes)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._line(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._line(trainer, pl_module)

    def _line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            line = sizes_line(_name(pl_module), _sizes(trainer, pl_module))
            Console().print(line, soft_wrap=True, highlight=False)


def _sizes(trainer: L.Trainer, pl_module: L.LightningModule) -> list[PartSizes]:
    shapes: Mapping[str, torch.Size] | None = None
    layout: Any = getattr(pl_module, "layout", None)
    if _shards(trainer) and layout is not None:
        shapes = layout().shapes
    optimizers = trainer.optimizers if trainer.state.fn == TrainerFn.FITTING else []
    return model_sizes(pl_module, optimizers, shapes)


def _shards(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


def _name(pl_module: L.LightningModule) -> str:
    return type(pl_module).__name__
