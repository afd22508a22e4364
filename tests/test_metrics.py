from __future__ import annotations

import math

import pytest
import torch

from cirlab.metrics import (
    RankMetrics,
    best_log_rank_integral,
    best_ranks,
    cumulative_hits_at_k,
    last_ranks,
    mean_average_precision_at_k,
    mean_average_precisions,
    mean_rank,
    recall_at_k,
    recalls,
    round_mean_ranks,
    round_recalls_at_k,
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


#: One dialogue finds its target in round 2 only, one at once, one at last.
THREE_DIALOGUES = torch.tensor([[30, 1, 40], [10, 11, 90], [80, 70, 2]])


def test_cumulative_hits_rise_where_recall_of_each_round_does_not() -> None:
    assert cumulative_hits_at_k(THREE_DIALOGUES, 10) == pytest.approx([1 / 3, 2 / 3, 1])
    assert round_recalls_at_k(THREE_DIALOGUES, 10) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert round_mean_ranks(THREE_DIALOGUES) == pytest.approx([40, 82 / 3, 44])
    assert last_ranks(THREE_DIALOGUES).tolist() == [[40], [90], [2]]


def test_the_log_rank_integral_is_of_the_best_rank_so_far() -> None:
    # Best so far: 30, 1, 1; 10, 10, 10; 80, 70, 2.
    first = (math.log(30) + 0) / 2 + math.log(10) + (math.log(80) + math.log(70)) / 2
    second = 0 + math.log(10) + (math.log(70) + math.log(2)) / 2
    expected = (first / 3 + second / 3) / 2
    assert best_log_rank_integral(THREE_DIALOGUES) == pytest.approx(expected)


def test_the_log_rank_integral_of_known_dialogues() -> None:
    """Never better or worse, it is the mean log rank; always first, it is 0."""
    steady = torch.tensor([[4, 5, 6], [9, 9, 9]])
    assert best_log_rank_integral(steady) == pytest.approx((math.log(4) + math.log(9)) / 2)
    assert best_log_rank_integral(torch.tensor([[1, 7, 7]])) == 0
    # A single round: the limit of an integral over no length.
    assert best_log_rank_integral(torch.tensor([[4], [9]])) == pytest.approx(math.log(6))


def test_an_ended_dialogue_keeps_what_it_reached_and_leaves_the_means_of_a_round() -> None:
    ranks = torch.tensor([[8, 2, 0], [20, 40, 6]])
    assert cumulative_hits_at_k(ranks, 5) == pytest.approx([0, 1 / 2, 1 / 2])
    assert round_recalls_at_k(ranks, 5) == pytest.approx([0, 1 / 2, 0])
    assert round_mean_ranks(ranks) == pytest.approx([14, 21, 6])
    assert last_ranks(ranks).tolist() == [[2], [6]]
    # Best so far: 8, 2, 2; 20, 20, 6.
    first = (math.log(8) + math.log(2)) / 2 + math.log(20)
    second = math.log(2) + (math.log(20) + math.log(6)) / 2
    assert best_log_rank_integral(ranks) == pytest.approx((first + second) / 4)


def test_a_dialogue_without_a_first_round_counts_from_its_first_rank_on() -> None:
    ranks = torch.tensor([[0, 4, 2], [9, 9, 3]])
    assert cumulative_hits_at_k(ranks, 4) == pytest.approx([0, 1 / 2, 1])
    second = ((math.log(4) + math.log(2)) / 2 + (math.log(9) + math.log(3)) / 2) / 2
    assert best_log_rank_integral(ranks) == pytest.approx((math.log(9) + second) / 2)


def test_a_round_that_nobody_has_is_refused() -> None:
    for metric in (lambda r: round_recalls_at_k(r, 5), round_mean_ranks):
        with pytest.raises(ValueError, match="column 1 has no rank at all"):
            metric(torch.tensor([[1, 0, 3], [4, 0, 0]]))


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
    cut = (recall_at_k, mean_average_precision_at_k, cumulative_hits_at_k, round_recalls_at_k)
    for metric in cut:
        with pytest.raises(ValueError, match=message):
            metric(ranks, 5)
    for whole in (mean_rank, round_mean_ranks, best_log_rank_integral, last_ranks):
        with pytest.raises(ValueError, match=message):
            whole(ranks)


@pytest.mark.parametrize(
    "metric",
    [recall_at_k, mean_average_precision_at_k, cumulative_hits_at_k, round_recalls_at_k],
)
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
