"""The surrogate of recall@k against the formula written with loops, and against recall itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from cirlab.errors import UserError
from cirlab.recall_surrogate import CUT_OFFS, RecallSurrogate


def unit(rows: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(min(x, 500.0), -500.0)))


def naive(
    queries: torch.Tensor, targets: torch.Tensor, correct: list[list[int]], tau: float
) -> float:
    """PlugIR's loss, correct images left out of the sum."""
    scores = (queries @ targets.T).tolist()
    ids = [own[0] for own in correct]
    ranks = [
        1
        + sum(
            sigmoid((score - row[i]) / tau)
            for score, name in zip(row, ids, strict=True)
            if name not in correct[i]
        )
        for i, row in enumerate(scores)
    ]
    recalls = [sum(sigmoid(k - rank) for rank in ranks) / len(ranks) for k in CUT_OFFS]
    return sum(1 - recall for recall in recalls) / len(recalls)


@pytest.mark.parametrize(
    "correct",
    [
        [[0], [1], [2], [3], [4], [5]],
        [[0], [1], [1], [2], [0], [3]],
        [[0, 3], [1, 1], [2, 5], [3, 3], [4, 0], [5, 5]],
    ],
)
def test_equals_the_written_formula(correct: list[list[int]]) -> None:
    queries, targets = unit(6, seed=1), unit(6, seed=2)
    got = RecallSurrogate(temperature=0.1)(queries, targets, torch.tensor(correct))
    assert got.item() == pytest.approx(naive(queries, targets, correct, 0.1), rel=1e-5)


def test_ids_may_come_as_one_column() -> None:
    queries, targets = unit(6, seed=1), unit(6, seed=2)
    ids = torch.tensor([0, 1, 1, 2, 0, 3])
    loss = RecallSurrogate()
    assert torch.equal(loss(queries, targets, ids), loss(queries, targets, ids[:, None]))


def test_sharp_sigmoids_give_recall_itself() -> None:
    queries, targets = unit(64, seed=1), unit(64, seed=2)
    scores = queries @ targets.T
    ranks = 1 + (scores > scores.diag()[:, None]).sum(dim=1)
    # Half a rank above k, so that no rank equals it.
    loss = RecallSurrogate(cut_offs=[1, 5], temperature=1e-5, rank_temperature=1e-3)
    recalls = [(ranks < k).float().mean() + (ranks == k).float().mean() / 2 for k in (1, 5)]
    expected = 1 - torch.stack(recalls).mean()
    torch.testing.assert_close(
        loss(queries, targets, torch.arange(64)), expected, atol=1e-3, rtol=0
    )


def test_a_copy_of_the_target_pushes_nothing_away() -> None:
    queries = unit(3, seed=1).requires_grad_()
    targets = unit(3, seed=2)
    targets[1] = targets[0]
    loss = RecallSurrogate()(queries, targets, torch.tensor([7, 7, 7]))
    loss.backward()
    assert queries.grad is not None and not queries.grad.any()
    assert loss.item() == pytest.approx(naive(queries, targets, [[7]] * 3, 0.01), rel=1e-5)


def test_half_precision_around_it_changes_nothing() -> None:
    queries, targets, ids = unit(16, seed=1), unit(16, seed=2), torch.arange(16)
    loss = RecallSurrogate()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(queries, targets, ids)
    assert torch.equal(inside, loss(queries, targets, ids))


def test_steps_along_its_gradient_raise_recall() -> None:
    targets, ids = unit(32, seed=2), torch.arange(32)
    queries = torch.nn.Parameter(targets + 1.2 * unit(32, seed=1))
    optimizer = torch.optim.SGD([queries], lr=1.0)

    def recall() -> float:
        scores = normalize(queries.detach(), dim=1) @ targets.T
        return (scores.argmax(dim=1) == ids).float().mean().item()

    before = recall()
    for _ in range(30):
        optimizer.zero_grad()
        RecallSurrogate(temperature=0.05)(normalize(queries, dim=1), targets, ids).backward()
        optimizer.step()
    assert before < 0.9 and recall() > before + 0.1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cut_offs": []}, r"cut_offs of the loss are \[\]; give at least one"),
        ({"cut_offs": [0, 5]}, r"cut_offs of the loss are \[0, 5\]"),
        ({"temperature": 0.0}, "temperature 0.0 and rank_temperature 1.0; set both above 0"),
        ({"rank_temperature": -1.0}, "rank_temperature -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RecallSurrogate(**wrong)
