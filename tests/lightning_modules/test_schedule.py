"""Learning rates as the formulas of the papers have them, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cirlab.errors import UserError
from cirlab.records import Pair
from lightning_modules.learner import Learner
from lightning_modules.schedule import Schedule
from tests.datamodules.toys import NumbersData, collate_pairs, trainer


def rates(schedule: Schedule, steps: int, epoch_steps: int, lr: float = 5e-5) -> list[float]:
    """The rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule.build(optimizer, steps, epoch_steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_exponential_falls_by_a_factor_an_epoch_down_to_the_minimum() -> None:
    """ChatIR's: from 5e-5 by 0.93 an epoch, not below 1e-6."""
    found = rates(Schedule("exponential", decay=0.93, minimum=1e-6), steps=240, epoch_steps=4)
    expected = [max(5e-5 * 0.93 ** (step // 4), 1e-6) for step in range(240)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[-1] == pytest.approx(1e-6) and found[200] > 1e-6


def test_exponential_without_a_minimum_falls_on() -> None:
    found = rates(Schedule("exponential", decay=0.5), steps=40, epoch_steps=1, lr=1.0)
    assert found == pytest.approx([0.5**step for step in range(40)])


def test_exponential_rises_first_where_it_is_told_to() -> None:
    schedule = Schedule("exponential", warmup=0.1, decay=0.5, minimum=0.3)
    found = rates(schedule, steps=40, epoch_steps=10, lr=1.0)
    assert found[:6] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    assert [found[step] for step in (9, 10, 20, 39)] == pytest.approx([1.0, 0.5, 0.3, 0.3])


def test_groups_with_rates_of_their_own_share_the_minimum() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (1.0, 0.2), strict=True)]
    optimizer = torch.optim.SGD(groups)
    scheduler = Schedule("exponential", decay=0.5, minimum=0.1).build(optimizer, 3, 1)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.125, 0.1])


def test_the_schedules_of_transformers_are_as_they_were() -> None:
    found = rates(Schedule("cosine", warmup=0.2), steps=10, epoch_steps=5, lr=1.0)
    expected = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert found == pytest.approx(expected)


class Steps(Learner):
    """Keeps the rate of every step."""

    train_record = Pair

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(lambda weights: torch.optim.SGD(weights, lr=1.0), schedule)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []

    def train_collator(self) -> Any:
        return collate_pairs

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        optimizer: Any = self.optimizers()
        self.rates.append(optimizer.param_groups[0]["lr"])
        return {"noise": (self.weight * batch["noise"].sum()).sum()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_is_what_the_trainer_makes_of_it(accumulate: int) -> None:
    """Five batches: five steps of the optimiser, or three if two are accumulated."""
    module = Steps(Schedule("exponential", decay=0.5))
    fitting = trainer(max_epochs=3, accumulate_grad_batches=accumulate)
    fitting.fit(module, datamodule=NumbersData(length=40, batch_size=8))
    assert module.rates == pytest.approx([1.0] * 5 + [0.5] * 5 + [0.25] * 5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "exponential"}, "schedule.decay is null; set it to what an epoch leaves"),
        ({"name": "exponential", "decay": 0.0}, "schedule.decay is 0.0; set it to what"),
        ({"name": "exponential", "decay": 1.5}, "schedule.decay is 1.5"),
        (
            {"name": "exponential", "decay": 0.9, "minimum": -1.0},
            "schedule.minimum is -1.0; set it to 0 or more",
        ),
        (
            {"name": "cosine", "decay": 0.9},
            "schedule.decay is 0.9, but schedule.name is 'cosine'; set decay to null, or name to",
        ),
        ({"minimum": 1e-6}, "schedule.minimum is 1e-06, but schedule.name is 'constant'"),
        ({"warmup": 2.0}, "schedule.warmup is 2.0; choose a fraction from 0 to 1"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Schedule(**options)


def test_a_minimum_above_the_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"minimum is 0\.5, above the learning rate 0\.1; lower it"):
        rates(Schedule("exponential", decay=0.9, minimum=0.5), 1, 1, lr=0.1)
