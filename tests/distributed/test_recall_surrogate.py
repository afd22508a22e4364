"""Two processes step as one with the global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cirlab.recall_surrogate import RecallSurrogate
from tests.distributed.processes import WORLD, run_in_processes

BATCH, DIM = 6, 5


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, targets and ids, some of which two processes share."""
    generator = torch.Generator().manual_seed(0)
    queries, targets = torch.randn(2, BATCH * WORLD, DIM, generator=generator).unbind()
    correct = torch.arange(BATCH * WORLD)[:, None].repeat(1, 2)
    correct[1], correct[BATCH] = correct[0], correct[3]
    correct[2, 1] = correct[7, 0]
    return queries, targets, correct


def gradients(queries: Tensor, targets: Tensor, ids: Tensor) -> tuple[float, list[Tensor]]:
    """Loss and gradient of two towers that begin alike everywhere."""
    torch.manual_seed(0)
    towers = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
    asked, shown = normalize(towers[0](queries), dim=1), normalize(towers[1](targets), dim=1)
    loss = RecallSurrogate(temperature=0.1)(asked, shown, ids)
    loss.backward()
    grads = [p.grad for tower in towers for p in tower.parameters() if p.grad is not None]
    return loss.item(), grads


def share(rank: int) -> tuple[float, list[Tensor]]:
    queries, targets, ids = (part[rank * BATCH : (rank + 1) * BATCH] for part in batch())
    return gradients(queries, targets, ids)


def test_averaged_gradient_equals_that_of_one_process(tmp_path: Path) -> None:
    loss, expected = gradients(*batch())
    (loss_0, first), (loss_1, second) = run_in_processes(share, tmp_path)
    assert (loss_0 + loss_1) / 2 == pytest.approx(loss, rel=1e-5)
    assert len(expected) == 4 and all(grad.any() for grad in expected)
    for whole, one, other in zip(expected, first, second, strict=True):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-4, atol=1e-7)
