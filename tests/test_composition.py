"""Triplet synthesis: the great circle, the neighbours, the texts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from cirlab.composition import (
    MODIFICATION_TEMPLATES,
    modification_texts,
    nearest_neighbours,
    random_neighbours,
    slerp,
)
from cirlab.errors import UserError


def unit(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_slerp_ends_at_the_target_and_at_the_neighbour() -> None:
    start, end = unit(5), unit(5, seed=1)
    torch.testing.assert_close(slerp(start, end, 0.0), start, atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(start, end, 1.0), end, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_slerp_divides_the_angle_and_keeps_unit_length(weight: float) -> None:
    start, end = unit(5), unit(5, seed=1)
    mixed = slerp(start, end, weight)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(5))
    whole = torch.arccos((start * end).sum(-1))
    part = torch.arccos((start * mixed).sum(-1).clamp(-1, 1))
    torch.testing.assert_close(part, weight * whole, atol=1e-3, rtol=0)


def test_slerp_at_one_half_is_symmetric() -> None:
    start, end = unit(5), unit(5, seed=1)
    torch.testing.assert_close(slerp(start, end, 0.5), slerp(end, start, 0.5))


def test_slerp_of_equal_images_is_that_image_with_a_finite_gradient() -> None:
    start = unit(3).requires_grad_()
    mixed = slerp(start, start.detach().clone(), 0.5)
    mixed.sum().backward()
    torch.testing.assert_close(mixed.detach(), start.detach(), atol=1e-5, rtol=0)
    assert start.grad is not None and torch.isfinite(start.grad).all()


@pytest.mark.parametrize("offset", [0, 4])
def test_nearest_neighbour_is_never_oneself(offset: int) -> None:
    pool = unit(10)
    rows = pool[offset : offset + 4]
    got = nearest_neighbours(rows, pool, offset)
    for i, row in enumerate(rows):
        others = [j for j in range(10) if j != i + offset]
        assert got[i].item() == max(others, key=lambda j: float(row @ pool[j]))


def test_a_duplicate_is_a_neighbour_oneself_is_not() -> None:
    pool = torch.cat([unit(3), unit(3)])
    assert nearest_neighbours(pool, pool, 0).tolist() == [3, 4, 5, 0, 1, 2]


def test_random_neighbours_are_others_and_reach_all_of_them() -> None:
    torch.manual_seed(0)
    draws = torch.stack([random_neighbours(3, 5, 1) for _ in range(200)])
    for column, own in enumerate((1, 2, 3)):
        assert set(draws[:, column].tolist()) == set(range(5)) - {own}


def test_texts_hold_both_captions_about_as_often_as_asked() -> None:
    torch.manual_seed(0)
    texts = modification_texts(["a cat"] * 2000, ["a dog"] * 2000, probability=0.75)
    templated = [text for text in texts if "a dog" in text]
    assert all("a cat" in text for text in texts)
    assert 0.70 < len(templated) / 2000 < 0.80
    assert len(set(templated)) == len(MODIFICATION_TEMPLATES) == 15
    assert modification_texts(["t"], ["n"], probability=0.0) == ["t"]


def test_a_single_image_has_no_neighbour() -> None:
    with pytest.raises(UserError, match="batch of 1 holds no neighbour"):
        nearest_neighbours(unit(1), unit(1), 0)
    with pytest.raises(UserError, match="batch of 1 holds no neighbour"):
        random_neighbours(1, 1, 0)
