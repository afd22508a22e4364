"""How the learning rate moves over a run: schedules of transformers, and an exponential one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from cirlab.errors import UserError

ScheduleName = Literal["constant", "constant_with_warmup", "linear", "cosine", "exponential"]


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
