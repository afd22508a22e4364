"""The contrastive loss against naive oracles."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss, image_ids, pair_ids, target_ids
from cirlab.records import EncodedImage, Pair, Triplet


def unit(rows: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_one_way(
    anchors: torch.Tensor,
    pool: torch.Tensor,
    ids: list[int],
    pool_ids: list[int],
    tau: float,
    alpha: float,
    beta: float,
) -> float:
    """Radenovic et al. 2023, equation 3, written with loops, several positives averaged."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        scores = [float(anchor @ p) / tau for p in pool]
        positives = [j for j, other in enumerate(pool_ids) if other == ids[i]]
        negatives = [j for j, other in enumerate(pool_ids) if other != ids[i]]
        mass = sum(math.exp(beta * scores[j]) for j in negatives)
        z = sum(alpha * math.exp(scores[j]) for j in positives)
        for j in negatives:
            weight = len(negatives) * math.exp(beta * scores[j]) / mass
            z += (weight if beta else 1.0) * math.exp(scores[j])
        total -= sum(math.log(math.exp(scores[j]) / z) for j in positives) / len(positives)
    return total / len(anchors)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (1.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 1, 2, 0, 3]])
def test_equals_the_written_formula(alpha: float, beta: float, ids: list[int]) -> None:
    queries, targets = unit(6, seed=1), unit(6, seed=2)
    loss = ContrastiveLoss(temperature=0.2, alpha=alpha, beta=beta, symmetric=True)
    expected = naive_one_way(queries, targets, ids, ids, 0.2, alpha, beta)
    expected += naive_one_way(targets, queries, ids, ids, 0.2, alpha, beta)
    assert loss(queries, targets, torch.tensor(ids)).item() == pytest.approx(expected, rel=1e-5)


def test_every_correct_target_is_a_positive_both_ways() -> None:
    queries, targets, extra = unit(4, seed=1), unit(4, seed=2), unit(2, seed=3)
    # Query 0 is also answered by target 2 and by the second extra; query 3 by target 1.
    correct = torch.tensor([[10, 12, 21], [11, 11, 11], [12, 12, 12], [13, 11, 99]])
    got = ContrastiveLoss(temperature=0.2)(queries, targets, correct, extra, torch.tensor([20, 21]))
    of_queries = [[0, 2, 5], [1], [2], [3, 1]]
    of_targets = [[0], [1, 3], [2, 0], [3]]
    expected = 0.0
    for anchors, pool, positives in (
        (queries, torch.cat([targets, extra]), of_queries),
        (targets, queries, of_targets),
    ):
        logs = (anchors @ pool.T / 0.2).log_softmax(dim=1)
        expected -= sum(logs[i, own].mean().item() for i, own in enumerate(positives)) / 4
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_ids_of_triplets_hold_the_drawn_target_first_and_all_others() -> None:
    images = [EncodedImage(id=name, data=b"") for name in "abc"]
    several = Triplet(images[0], ("x",), images[1], also_correct=("a", "c"))
    one = Triplet(images[0], ("x",), images[2])
    a, b, c = image_ids(images).tolist()
    assert target_ids([several, one]).tolist() == [[b, a, c], [c, c, c]]
    pairs = [Pair(images[0], ("x",)), Pair(images[1], ("y",), also_correct=("c",))]
    assert pair_ids(pairs).tolist() == [[a, a], [b, c]]


def test_beta_zero_with_distinct_ids_is_symmetric_infonce() -> None:
    queries, targets = unit(8, seed=3), unit(8, seed=4)
    scores = queries @ targets.T / 0.07
    labels = torch.arange(8)
    expected = cross_entropy(scores, labels) + cross_entropy(scores.T, labels)
    torch.testing.assert_close(ContrastiveLoss(0.07)(queries, targets, labels), expected)


def test_extra_negatives_join_the_query_side_only() -> None:
    queries, targets, extra = unit(4, seed=5), unit(4, seed=6), unit(3, seed=7)
    loss = ContrastiveLoss(temperature=0.1)
    ids, extra_ids = torch.arange(4), torch.tensor([10, 11, 2])
    expected = naive_one_way(
        queries, torch.cat([targets, extra]), ids.tolist(), [0, 1, 2, 3, 10, 11, 2], 0.1, 1.0, 0.0
    ) + naive_one_way(targets, queries, ids.tolist(), ids.tolist(), 0.1, 1.0, 0.0)
    got = loss(queries, targets, ids, extra, extra_ids)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_one_sample_has_no_negatives_and_a_finite_gradient() -> None:
    queries = unit(1).requires_grad_()
    loss = ContrastiveLoss(beta=0.5)(queries, unit(1, seed=1), torch.tensor([7]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert queries.grad is not None and torch.isfinite(queries.grad).all()


def test_harder_negatives_weigh_more_with_beta() -> None:
    queries = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=-1)
    targets = normalize(torch.tensor([[1.0, 0.1], [0.9, 0.2], [-1.0, 0.3]]), dim=-1)
    ids = torch.arange(3)
    plain = ContrastiveLoss(0.2, symmetric=False)(queries, targets, ids)
    hard = ContrastiveLoss(0.2, beta=1.0, symmetric=False)(queries, targets, ids)
    assert hard > plain


def test_image_ids_are_the_same_in_every_process_and_differ_by_id() -> None:
    first, second = (EncodedImage(id=name, data=b"") for name in ("a", "b"))
    assert image_ids([first, second, first]).tolist() == [3904355907, 1908338681, 3904355907]


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"alpha": -1.0}, {"beta": -0.5}])
def test_constants_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        ContrastiveLoss(**wrong)
