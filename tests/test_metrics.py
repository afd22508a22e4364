from __future__ import annotations

import pytest
import torch

from cirlab.metrics import (
    RankMetrics,
    best_ranks,
    cumulative_hits_at_k,
    mean_average_precision_at_k,
    mean_average_precisions,
    mean_rank,
    recall_at_k,
    recalls,
)


def random_ranks(queries: int, targets: int, pool: int, seed: int) -> torch.Tensor:
    """Distinct ranks per row, each row with 1 to `targets` of them at random places."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(pool, generator=generator)[:targets] + 1 for _ in range(queries)]
    ranks = torch.stack(rows)
    dropped = torch.rand(ranks.shape, generator=generator) < 0.5
    dropped[:, seed % targets] = False
    return ranks.masked_fill(dropped, 0)


def relevance(row: torch.Tensor, pool: int) -> list[bool]:
    """The ranking a row of ranks describes: whether the image at each rank is a target."""
    return [rank in set(row.tolist()) for rank in range(1, pool + 1)]


def naive_average_precision(relevant: list[bool], k: int) -> float:
    total, found = 0.0, 0
    for i, hit in enumerate(relevant[:k], start=1):
        found += hit
        total += hit * found / i
    return total / min(sum(relevant), k)


@pytest.mark.parametrize("k", [1, 2, 5, 30, 31, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_recall_and_precision_equal_a_walk_down_the_ranking(k: int, seed: int) -> None:
    ranks = random_ranks(queries=25, targets=6, pool=30, seed=seed)
    walks = [relevance(row, pool=30) for row in ranks]
    assert recall_at_k(ranks, k) == pytest.approx(sum(any(w[:k]) for w in walks) / len(walks))
    expected = sum(naive_average_precision(w, k) for w in walks) / len(walks)
    assert mean_average_precision_at_k(ranks, k) == pytest.approx(expected)


def test_average_precision_by_hand() -> None:
    # Targets at ranks 1, 3 and 6, cut at 5: (1/1 + 2/3) / min(3, 5).
    assert mean_average_precision_at_k(torch.tensor([[6, 0, 3, 1]]), 5) == pytest.approx(5 / 9)


def test_more_targets_than_places_can_still_be_perfect() -> None:
    ranks = torch.arange(1, 8)[None]
    assert mean_average_precision_at_k(ranks, 5) == pytest.approx(1.0)


def test_order_of_targets_does_not_matter() -> None:
    ranks = random_ranks(queries=20, targets=5, pool=12, seed=1)
    turned = ranks.flip(dims=[1])
    assert mean_average_precision_at_k(ranks, 5) == mean_average_precision_at_k(turned, 5)
    assert torch.equal(best_ranks(ranks), best_ranks(turned))


def test_several_targets_beyond_the_cutoff_may_share_a_rank() -> None:
    """An approximate index ranks every target it missed one past the gallery."""
    assert mean_average_precision_at_k(torch.tensor([[1, 101, 101]]), 10) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="same rank"):
        mean_average_precision_at_k(torch.tensor([[2, 2]]), 10)


def test_mean_rank_is_of_the_best_target() -> None:
    assert mean_rank(torch.tensor([[9, 4], [0, 7]])) == 5.5


def test_hits_accumulate_over_rounds() -> None:
    # One dialogue succeeds in round 2 and falls back, one never, one at once and ends.
    ranks = torch.tensor([[50, 3, 80], [11, 12, 13], [10, 0, 0]])
    assert cumulative_hits_at_k(ranks, k=10) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(3))
def test_hits_never_fall_and_equal_the_best_round_so_far(seed: int) -> None:
    ranks = torch.randint(1, 40, (30, 11), generator=torch.Generator().manual_seed(seed))
    hits = cumulative_hits_at_k(ranks, k=5)
    assert hits == sorted(hits)
    so_far = [recall_at_k(ranks[:, : r + 1], 5) for r in range(11)]
    assert hits == pytest.approx(so_far)


def test_named_metrics_hold_no_at_sign() -> None:
    ranks = torch.tensor([[1], [7]])
    assert recalls(ranks, (1, 10), prefix="subset_recall") == {
        "subset_recall_at_1": 0.5,
        "subset_recall_at_10": 1.0,
    }
    assert mean_average_precisions(ranks, (5,)) == {"map_at_5": 0.5}


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (torch.tensor([[1.0]]), "integers"),
        (torch.tensor([[float("nan")]]), "integers"),
        (torch.tensor([[True]]), "integers"),
        (torch.tensor([[1, -1]]), "-1"),
        (torch.tensor([[3, 0], [0, 0]]), "row 1"),
        (torch.tensor([1, 2]), "shape"),
        (torch.empty((0, 1), dtype=torch.long), "shape"),
        (torch.empty((3, 0), dtype=torch.long), "shape"),
    ],
)
def test_what_no_ranking_can_give_is_refused(ranks: torch.Tensor, message: str) -> None:
    for metric in (recall_at_k, mean_average_precision_at_k, cumulative_hits_at_k):
        with pytest.raises(ValueError, match=message):
            metric(ranks, 5)
    with pytest.raises(ValueError, match=message):
        mean_rank(ranks)


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision_at_k, cumulative_hits_at_k])
def test_a_cutoff_below_one_is_refused(metric: object) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        metric(torch.tensor([[1]]), 0)  # type: ignore[operator]


def test_accumulated_metrics_equal_those_of_all_queries_at_once() -> None:
    ranks = random_ranks(queries=23, targets=4, pool=30, seed=0)
    metrics = RankMetrics(recall=(1, 5), average_precision=(5,))
    # Batches may be of any size and padded differently.
    for batch in (
        ranks[:7, :],
        ranks[7:7],
        ranks[7:20],
        torch.nn.functional.pad(ranks[20:], (0, 3)),
    ):
        metrics.update(batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    at_once = recalls(ranks, (1, 5)) | mean_average_precisions(ranks, (5,))
    assert values == pytest.approx(at_once | {"mean_rank": mean_rank(ranks)})


def test_metrics_of_nothing_are_refused_and_reset_starts_anew() -> None:
    metrics = RankMetrics()
    metrics.update(torch.tensor([[40]]))
    metrics.reset()
    with pytest.raises(ValueError, match="no query"), pytest.warns(UserWarning, match="compute"):
        metrics.compute()
    metrics.update(torch.tensor([[1]]))
    assert metrics.compute()["recall_at_1"] == 1.0
