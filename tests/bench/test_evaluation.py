from __future__ import annotations

import pytest
import torch

from bench import evaluation


def test_scores_are_exact_in_any_order_of_summation() -> None:
    problem = evaluation.make_problem(queries=30, gallery=200)
    scores = problem.queries @ problem.gallery.T
    exact = problem.queries.double() @ problem.gallery.double().T
    assert torch.equal(scores.double(), exact)
    assert torch.equal((problem.gallery**2).sum(dim=1), torch.ones(200))
    assert not (problem.targets == problem.excluded).any()


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "GALLERY", 400)
    ours, usual = evaluation.by_counting(60), evaluation.by_sorting(60)
    evaluation.check_equal(ours, usual)
    assert ours.ranks.unique().numel() > 30
    ours.ranks[7] += 1
    with pytest.raises(AssertionError, match="1 ranks differ"):
        evaluation.check_equal(ours, usual)


def test_ties_after_a_target_move_before_it() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3, 0.3]])
    order = scores.argsort(dim=1, descending=True, stable=True)
    targets = torch.tensor([2, 0])
    places = (order == targets[:, None]).nonzero()[:, 1]
    assert evaluation.with_ties(scores, order, places, targets).tolist() == [4, 5]
