"""What everything that trains shares: named losses, one optimiser and its schedule, an export.

What its checkpoints hold is in `lightning_modules.learned_weights`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from cirlab.benchmarks.base import QueryKind
from cirlab.encoders.export import Exported
from cirlab.errors import UserError
from lightning_modules.learned_weights import LearnedWeights
from lightning_modules.schedule import Schedule

#: A loader batch of one method: tensors (possibly nested) that Lightning moves to the device.
Inputs = Mapping[str, Any]


class Learner(LearnedWeights):
    """A module that learns from records.

    Subclasses build their weights in `configure_model`, idempotently: it runs for fit and again
    for validate.

    Args:
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves over the run; None keeps it constant.
    """

    #: Record types a training sample may have (Pair, Triplet, TextPair); none: training-free.
    train_record: ClassVar[type | tuple[type, ...]] = ()
    #: Arguments that say how it learns: an evaluation need not repeat the checkpoint's. Dotted
    #: where only a part of an argument is meant.
    learning_arguments: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule"})
    #: Kinds of benchmark queries it answers; none: it is not evaluated by retrieval.
    query_kinds: ClassVar[frozenset[QueryKind]] = frozenset()
    #: Whether strategies may divide its weights among processes.
    shardable: ClassVar[bool] = True

    def __init__(self, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__()
        self.optimizer_factory = optimizer
        self.schedule = schedule or Schedule()

    @property
    def weights_device(self) -> torch.device:
        """Where weights are to be that cannot be moved there later; before the others are."""
        return self.device if self._trainer is None else self._trainer.strategy.root_device

    @property
    def data_parallel_group(self) -> dist.ProcessGroup | None:
        """The processes that hold different samples; None is all of them."""
        if self._device_mesh is None:
            return None
        group: dist.ProcessGroup = self._device_mesh["data_parallel"].get_group()
        return group

    @abstractmethod
    def train_collator(self) -> Callable[[Sequence[Any]], Inputs]:
        """A picklable function from training records to a batch, run in loader workers."""

    @abstractmethod
    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Named scalar losses of one batch; their sum is minimised."""

    def negatives_per_query(self, global_batch: int) -> int:
        """What a query is told from in one step, for the record of the run."""
        return global_batch - 1

    # ---- Lightning ----------------------------------------------------------------------

    def training_step(self, batch: Inputs, batch_idx: int) -> torch.Tensor:
        terms = self.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", total, prog_bar=True)
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trainable = [p for p in self.parameters() if p.requires_grad]
        if not trainable:
            raise UserError(f"{type(self).__name__} has nothing to train: every weight is frozen")
        optimizer = self.optimizer_factory(trainable)
        steps = int(self.trainer.estimated_stepping_batches)
        # Known only now: asking for the former makes the loader.
        batches, accumulated = (
            self.trainer.num_training_batches,
            self.trainer.accumulate_grad_batches,
        )
        epoch_steps = steps if batches == math.inf else math.ceil(batches / accumulated)
        scheduler = self.schedule.build(optimizer, steps, max(1, epoch_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ---- export -------------------------------------------------------------------------

    def check_export(self, merged: bool) -> None:
        """Refuse an export that cannot be, before weights are read.

        Args:
            merged: whether adapters are to be added to the weights they adapt.

        Raises:
            UserError: nothing of this method is of use without this repository, or adapters cannot
                be merged.
        """
        raise UserError(
            f"{type(self).__name__} has nothing to export; its checkpoints are used by the "
            "experiments of this repository"
        )

    def export(self, folder: Path, merged: bool) -> Exported:
        """Write what was learned, in layouts that other libraries load by themselves.

        Called once, after `check_export`, with all weights loaded; the module need not be of use
        afterwards.

        Args:
            folder: an empty one.
            merged: add adapters to the weights they adapt.
        """
        raise NotImplementedError(f"{type(self).__name__} has no export")
