from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from cirlab.errors import UserError
from cirlab.imagination.fusion import AdaptiveFusion, FusionSchedule


def unit(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_the_published_weights_by_round() -> None:
    rounds = torch.tensor([0, 1, 2, 3, 10])
    shares = FusionSchedule().shares(unit(5, 8), unit(5, 4).repeat(1, 2), rounds)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.2, 0.5, 0.5, 0.5]))


def test_scores_are_the_weighted_sum_of_similarities() -> None:
    """Late fusion of cosines, as DAR's code adds them, ranks as the fused vector does."""
    text, pictures, gallery = unit(6, 8), unit(6, 9)[:, :8], unit(40, 8)
    pictures = normalize(pictures, dim=-1)
    rounds = torch.tensor([0, 1, 2, 3, 4, 5])
    fused = FusionSchedule()(text, pictures, rounds) @ gallery.T
    weight = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.5, 0.5])[:, None]
    late = (1 - weight) * (text @ gallery.T) + weight * (pictures @ gallery.T)
    assert torch.equal(fused.argsort(dim=1), late.argsort(dim=1))


def test_a_picture_unlike_its_text_counts_less() -> None:
    text = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    pictures = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    fusion = AdaptiveFusion([[0.5, 0.5]], low=0.2, high=1.0)
    shares = fusion.shares(text, pictures, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.0]))


def test_whether_pictures_count() -> None:
    assert FusionSchedule().draws
    assert not FusionSchedule([[1, 0], [1.0, 0.0]]).draws


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "weights of the fusion are empty"),
        ([[0.8, 0.2], [0.5, 0.4]], r"weights of round 1, \[0.5, 0.4\], sum to 0.9; change them"),
        ([[1.5, -0.5]], r"weights of round 0 are \[1.5, -0.5\]; give two from 0 to 1"),
        ([[1.0]], "give two from 0 to 1"),
    ],
)
def test_bad_weights_are_refused(weights: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FusionSchedule(weights)


def test_bad_bounds_are_refused() -> None:
    with pytest.raises(UserError, match=r"low is 0.5 and high 0.5"):
        AdaptiveFusion(low=0.5, high=0.5)
