"""What everything that trains shares: named losses, optimisers, checkpoints of what is learned."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from cirlab.benchmarks.base import QueryKind
from cirlab.checkpoints import is_checkpoint, read_checkpoint
from cirlab.command.checkpoint_config import CONFIG, check_settings
from cirlab.encoders.export import Exported
from cirlab.encoders.fingerprint import fingerprint
from cirlab.errors import UserError

log = logging.getLogger(__name__)

#: A loader batch of one method: tensors (possibly nested) that Lightning moves to the device.
Inputs = Mapping[str, Any]

ScheduleName = Literal["constant", "constant_with_warmup", "linear", "cosine", "exponential"]

#: Keys of a checkpoint under which the names and the fingerprint of the frozen weights lie.
FROZEN_BASE, FROZEN_FINGERPRINT = "frozen_base", "frozen_fingerprint"


@dataclass
class Schedule:
    """How the learning rate moves, stepped every optimiser step.

    Attributes:
        name: of a transformers schedule that needs no more than the two lengths; or "exponential",
            which falls once an epoch.
        warmup: fraction of all steps over which the rate rises from zero.
        decay: of the exponential one, what an epoch leaves of the rate, above 0 and at most 1.
        minimum: of the exponential one, the learning rate below which it does not fall.
    """

    name: ScheduleName = "constant"
    warmup: float = 0.0
    decay: float | None = None
    minimum: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise UserError(f"schedule.warmup is {self.warmup}; choose a fraction from 0 to 1")
        if self.name != "exponential":
            for name in ("decay", "minimum"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"schedule.{name} is {getattr(self, name)}, but schedule.name is "
                        f"{self.name!r}; set {name} to null, or name to exponential"
                    )
        elif self.decay is None or not 0 < self.decay <= 1:
            raise UserError(
                f"schedule.decay is {'null' if self.decay is None else self.decay}; set it to what "
                "an epoch leaves of the learning rate, above 0 and at most 1"
            )
        if self.minimum is not None and self.minimum < 0:
            raise UserError(f"schedule.minimum is {self.minimum}; set it to 0 or more")

    def build(self, optimizer: Optimizer, steps: int, epoch_steps: int) -> LRScheduler:
        """What moves the rates of an optimiser.

        Args:
            optimizer: its rates are the peak ones.
            steps: optimiser steps of the run.
            epoch_steps: those of an epoch.

        Raises:
            UserError: the minimum is above a rate.
        """
        warmup = round(self.warmup * steps)
        if self.name != "exponential":
            return get_scheduler(
                self.name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
            )
        rates = [group["lr"] for group in optimizer.param_groups]
        return LambdaLR(optimizer, [self._falling(rate, warmup, epoch_steps) for rate in rates])

    def _falling(self, rate: float, warmup: int, epoch_steps: int) -> Callable[[int], float]:
        """What is left of a rate after so many steps, as a factor."""
        decay, minimum = self.decay or 1.0, self.minimum or 0.0
        if minimum > rate:
            raise UserError(
                f"schedule.minimum is {minimum}, above the learning rate {rate}; lower it"
            )

        def factor(step: int) -> float:
            risen = min(1.0, step / warmup) if warmup else 1.0
            return risen * max(decay ** (step // epoch_steps), minimum / rate if rate else 0.0)

        return factor


@dataclass(frozen=True)
class Layout:
    """What a method's weights are, for its checkpoints.

    Attributes:
        learned: state-dict names of what is learned.
        shapes: of all weights, by state-dict name.
        frozen_fingerprint: short hash of all weights that checkpoints do not hold.
    """

    learned: frozenset[str]
    shapes: Mapping[str, torch.Size]
    frozen_fingerprint: str

    def misfits(self, state: Mapping[str, torch.Tensor]) -> list[str]:
        """Names that are missing from a checkpoint's weights, unknown, or of another shape."""
        shapes = self.shapes
        return sorted(
            {name for name in self.learned if name not in state}
            | {name for name in state if name not in shapes}
            | {n for n, value in state.items() if n in shapes and value.shape != shapes[n]}
        )


class Learner(L.LightningModule):
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
        # Checkpoints hold only what is learned; `on_load_checkpoint` checks that all of it is
        # there.
        self.strict_loading = False
        self._layout: Layout | None = None
        self._to_load: str | None = None

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

    def frozen_base(self) -> dict[str, str]:
        """Names of the pretrained weights that checkpoints do not hold, by role."""
        return {}

    def frozen_settings(self) -> dict[str, Any]:
        """Arguments that decide which weights are frozen and how they are held, by dotted key."""
        return {}

    def frozen_fingerprint(self) -> str:
        """Short hash of all weights that checkpoints do not hold."""
        return self.layout().frozen_fingerprint

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

    def on_fit_start(self) -> None:
        # Later they may look otherwise: bitsandbytes packs 4-bit weights anew where they are first
        # read on a CPU.
        self.keep_layout()

    # ---- checkpoints --------------------------------------------------------------------

    def learned_names(self) -> set[str]:
        """State-dict names of what is learned.

        Trainable parameters, the buffers of the modules that own one (running statistics), and
        adapters that an earlier stage has learned.
        """
        names: set[str] = set()
        for prefix, module in self.named_modules():
            own = dict(module.named_parameters(recurse=False))
            dot = f"{prefix}." if prefix else ""
            if ".lora_" in dot:
                names |= {dot + name for name in own}
            if any(p.requires_grad for p in own.values()):
                names |= {dot + name for name, p in own.items() if p.requires_grad}
                names |= {dot + name for name, _ in module.named_buffers(recurse=False)}
        return names

    def layout(self) -> Layout:
        """Names, shapes and fingerprint of the weights, as they were before any sharding."""
        if self._layout is not None:
            return self._layout
        state, learned = self.state_dict(), self.learned_names()
        return Layout(
            learned=frozenset(learned & state.keys()),
            shapes={name: value.shape for name, value in state.items()},
            frozen_fingerprint=fingerprint((n, v) for n, v in state.items() if n not in learned),
        )

    def keep_layout(self) -> None:
        """To be called before the weights are sharded, which hides what they are."""
        self._layout = self.layout()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learned = self.layout().learned
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in learned
        }
        checkpoint[FROZEN_BASE] = self.frozen_base()
        checkpoint[FROZEN_FINGERPRINT] = self.frozen_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_learned(checkpoint, source="the checkpoint")

    def will_load(self, checkpoint: Mapping[str, Any]) -> None:
        """Hear what will be loaded once the weights are built; `start_from` may have less to do."""
        self._to_load = checkpoint.get(FROZEN_FINGERPRINT)

    def start_from(self, pattern: str) -> None:
        """Copy what another run of this architecture has learned (an earlier stage).

        Nothing is read where a checkpoint follows that holds all of it, as most do: it learned on
        the very weights that are frozen now.

        Args:
            pattern: path of a checkpoint, or a pattern of which the newest one is taken.

        Raises:
            UserError: there is none, or it does not fit.
        """
        if self._to_load is not None and self._to_load == self.frozen_fingerprint():
            return
        path = newest(pattern)
        checkpoint = read_checkpoint(path)
        self.check_learned(checkpoint, source=f"init_from {path}")
        log.info("starting from %s", path)
        self.load_state_dict(checkpoint["state_dict"], strict=False)

    def check_learned(self, checkpoint: dict[str, Any], source: str) -> None:
        """Refuse a checkpoint that does not hold all that this module learns.

        Raises:
            UserError: another method's or another frozen base, or missing, unknown or differently
                shaped weights.
        """
        layout, own = self.layout(), type(self).__name__
        wrong = layout.misfits(checkpoint["state_dict"])
        config = checkpoint.get(CONFIG)
        method = config["model"]["class_path"] if config else own
        # A method that has the very weights of another may well start from them.
        if wrong and method.rpartition(".")[2] != own:
            raise UserError(
                f"{source} is a checkpoint of {method}, whose weights do not fit {own}; name a "
                f"checkpoint of {own}"
            )
        base = self.frozen_base()
        _check_base(base, checkpoint.get(FROZEN_BASE, {}), source)
        made_on, present = checkpoint.get(FROZEN_FINGERPRINT), layout.frozen_fingerprint
        other_base = made_on not in (None, present)
        if config and (wrong or other_base):
            check_settings(source, config, self.frozen_settings())
        if wrong:
            raise UserError(
                f"{source} is of another architecture: {len(wrong)} weights do not fit "
                f"{own} as configured, {wrong[0]!r} first; use the configuration that it was "
                "trained with"
            )
        if other_base:
            names = " and ".join(sorted(base.values())) or "the frozen weights"
            raise UserError(
                f"{source} was trained on other weights by the name of {names} (fingerprint "
                f"{made_on}, now {present}); bring those back, or train anew on the present ones"
            )


def _check_base(ours: Mapping[str, str], theirs: Mapping[str, str], source: str) -> None:
    """Refuse a checkpoint over frozen weights of other names, by role."""
    for role, name in ours.items():
        if role in theirs and theirs[role] != name:
            raise UserError(
                f"{source} was trained on {role} {theirs[role]!r}, but the configuration names "
                f"{name!r}; use the {role} that it was trained on"
            )


def newest(pattern: str) -> Path:
    """The checkpoint of this name, or the one written last of those that fit a pattern.

    Raises:
        UserError: there is none.
    """
    at = Path(pattern)
    found = [
        path for path in Path(at.anchor).glob(str(at.relative_to(at.anchor))) if is_checkpoint(path)
    ]
    if not found:
        raise UserError(
            f"init_from {pattern} is missing; train it first, name another one, or set it to null "
            "to start without"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
