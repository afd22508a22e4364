from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cirlab import distributed
from cirlab.losses import ContrastiveLoss
from cirlab.metrics import RankMetrics
from tests.distributed.processes import WORLD, run_in_processes

BATCH, DIM = 6, 5


def contrastive_batch() -> dict[str, Tensor]:
    """A batch of 2 x 6 queries, some with several targets, within and across processes."""
    generator = torch.Generator().manual_seed(0)
    total = BATCH * WORLD
    ids = torch.arange(total)
    ids[1], ids[BATCH] = ids[0], ids[3]
    correct = ids[:, None].repeat(1, 2)
    correct[2, 1], correct[4, 1] = ids[7], ids[0]
    return {
        "queries": torch.randn(total, DIM, generator=generator),
        "targets": torch.randn(total, DIM, generator=generator),
        "negatives": torch.randn(total, DIM, generator=generator),
        "target_ids": correct,
        "negative_ids": torch.arange(total) + 100,
    }


def towers() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)


def gradients(batch: dict[str, Tensor], options: dict[str, Any]) -> tuple[float, list[Tensor]]:
    """Loss of a batch, or of a process's share of it, and its gradient."""
    query_tower, image_tower = towers()

    def unit(x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)

    loss = ContrastiveLoss(**options)(
        queries=unit(query_tower(batch["queries"])),
        targets=unit(image_tower(batch["targets"])),
        target_ids=batch["target_ids"],
        negatives=unit(image_tower(batch["negatives"])),
        negative_ids=batch["negative_ids"],
    )
    loss.backward()
    parameters = [*query_tower.parameters(), *image_tower.parameters()]
    return loss.item(), [p.grad for p in parameters if p.grad is not None]


LOSSES = ({}, {"beta": 0.5, "symmetric": False})


def share_gradients(rank: int) -> list[tuple[float, list[Tensor]]]:
    share = {n: x[rank * BATCH : (rank + 1) * BATCH] for n, x in contrastive_batch().items()}
    return [gradients(share, options) for options in LOSSES]


def test_averaged_gradient_equals_that_of_one_process(tmp_path: Path) -> None:
    shares = run_in_processes(share_gradients, tmp_path)
    for i, options in enumerate(LOSSES):
        loss, expected = gradients(contrastive_batch(), options)
        (loss_0, grads_0), (loss_1, grads_1) = (share[i] for share in shares)
        assert (loss_0 + loss_1) / 2 == pytest.approx(loss, rel=1e-5)
        assert len(expected) == 4
        for whole, first, second in zip(expected, grads_0, grads_1, strict=True):
            torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-6)


def loss_within_groups(rank: int) -> float:
    """The loss of a process whose data-parallel group is itself alone."""
    own = [torch.distributed.new_group([place]) for place in range(WORLD)][rank]
    batch = {n: x[rank * BATCH : (rank + 1) * BATCH] for n, x in contrastive_batch().items()}
    unit = {n: nn.functional.normalize(x, dim=1) for n, x in batch.items() if "ids" not in n}
    return ContrastiveLoss()(**(batch | unit), group=own).item()


def test_the_loss_sees_its_data_parallel_group_only(tmp_path: Path) -> None:
    together = run_in_processes(loss_within_groups, tmp_path)
    for rank, found in enumerate(together):
        batch = {n: x[rank * BATCH : (rank + 1) * BATCH] for n, x in contrastive_batch().items()}
        unit = {n: nn.functional.normalize(x, dim=1) for n, x in batch.items() if "ids" not in n}
        assert found == pytest.approx(ContrastiveLoss()(**(batch | unit)).item(), rel=1e-5)


def use_every_collective(rank: int) -> dict[str, Any]:
    rows = torch.arange(7 * rank, dtype=torch.long)[:, None].expand(-1, 3) + 100 * rank
    own = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = distributed.gather_with_grad(own)
    (gathered * torch.arange(4.0)[:, None] * (rank + 1)).sum().backward()
    distributed.CHUNK_MIB = 64
    whole = distributed.gather_rows(rows)
    distributed.CHUNK_MIB = 0  # row by row
    pieces = distributed.gather_rows(rows)
    ranks = torch.tensor([[1], [4], [9]])[: 3 * rank]
    metrics = RankMetrics(recall=(5,))
    metrics.update(ranks)
    return {
        "rank": (distributed.rank(), distributed.world_size()),
        "with_grad": gathered.detach(),
        "grad": own.grad,
        "gather": distributed.gather(own),
        "rows": whole,
        "pieces": pieces,
        "broadcast": distributed.broadcast_object({"from": rank}),
        "objects": distributed.all_gather_object(rank * 10),
        "metrics": {name: value.item() for name, value in metrics.compute().items()},
        "mismatch": _message(lambda: distributed.gather_rows(torch.zeros(2, 3 + rank))),
    }


def _message(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def test_collectives(tmp_path: Path) -> None:
    first, second = run_in_processes(use_every_collective, tmp_path)
    assert (first["rank"], second["rank"]) == ((0, 2), (1, 2))
    expected = torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 3)
    for result in (first, second):
        assert torch.equal(result["with_grad"], expected)
        assert torch.equal(result["gather"], expected)
        assert result["broadcast"] == {"from": 0}
        assert result["objects"] == [0, 10]
        assert "rows differ" in result["mismatch"]
        # One process had no query at all.
        assert result["metrics"] == pytest.approx({"recall_at_5": 2 / 3, "mean_rank": 14 / 3})
    # Every process's use of a row reaches it: weights 1 and 2 times the row's factor.
    assert torch.equal(first["grad"], torch.tensor([0.0, 3.0])[:, None].expand(2, 3))
    assert torch.equal(second["grad"], torch.tensor([6.0, 9.0])[:, None].expand(2, 3))
    rows = torch.arange(100, 107)[:, None].expand(7, 3)
    assert torch.equal(first["rows"], rows)
    assert torch.equal(first["pieces"], rows)
    assert second["rows"] is None and second["pieces"] is None


def test_one_process_is_rank_zero_of_one() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_with_grad(x) is x
    assert not distributed.gather(x).requires_grad
    assert distributed.gather_rows(x) is x
    assert distributed.broadcast_object("a") == "a"
    assert distributed.all_gather_object("a") == ["a"]


class Unpicklable(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"number {number}: {reason}")


def share_failure(rank: int) -> tuple[str, str]:
    """How a failure of the second process ends each of them, by type and text."""

    def work() -> int:
        if rank == 1:
            raise Unpicklable(7, "no reason")
        return rank

    try:
        distributed.together(work)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def test_any_failure_of_one_process_ends_all(tmp_path: Path) -> None:
    first, second = run_in_processes(share_failure, tmp_path)
    assert first == ("RuntimeError", "process 1 failed: Unpicklable: number 7: no reason")
    assert second == ("Unpicklable", "number 7: no reason")
