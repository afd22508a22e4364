from __future__ import annotations

import torch

from cirlab.matching import hard_negatives


def test_similar_ones_are_drawn_more_often_and_own_ids_never() -> None:
    torch.manual_seed(0)
    similarities = torch.tensor([[9.0, 2.0, 1.0, 9.0, 0.0]])
    ids, candidates = torch.tensor([5]), torch.tensor([5, 1, 2, 5, 3])
    draws = hard_negatives(similarities.repeat(6000, 1), ids.repeat(6000), candidates)
    assert draws.found.all()
    shares = torch.bincount(draws.place, minlength=5) / 6000
    expected = similarities[0, [1, 2, 4]].softmax(dim=0)
    assert shares[[0, 3]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(shares[[1, 2, 4]], expected, atol=0.03, rtol=0)


def test_a_negative_that_is_hardly_similar_is_drawn_if_there_is_no_other() -> None:
    """Its softmax over all candidates would be zero, from which nothing can be drawn."""
    similarities = torch.tensor([[500.0, -500.0]])
    draws = hard_negatives(similarities, torch.tensor([1]), torch.tensor([1, 2]))
    assert draws.place.tolist() == [1] and draws.found.tolist() == [True]


def test_a_batch_of_one_image_has_no_negatives() -> None:
    ids = torch.tensor([4, 4])
    draws = hard_negatives(torch.randn(2, 2), ids, ids)
    assert draws.found.tolist() == [False, False]
    assert ((draws.place >= 0) & (draws.place < 2)).all()
