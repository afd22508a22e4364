"""How a painter is marked: by whether pictures are nearer to their own captions than to others."""

from __future__ import annotations

import torch

from cirlab.benchmarks import WorldTextToImage
from cirlab.zoo.drawing import ranks


def test_the_judge_knows_the_worlds_own_pictures_and_no_others() -> None:
    benchmark = WorldTextToImage(scenes=60)
    benchmark.setup()
    texts = [query.text for query in benchmark.queries]
    pictures = [image.load() for image in benchmark.gallery]
    assert (ranks(pictures, texts) == 1).float().mean() >= 0.9
    # Each picture stands for the caption of another.
    assert (ranks(pictures[1:] + pictures[:1], texts) == 1).float().mean() <= 0.1


def test_ties_count_against_a_picture() -> None:
    benchmark = WorldTextToImage(scenes=2)
    benchmark.setup()
    found = ranks([benchmark.gallery[0].load()] * 3, [benchmark.queries[0].text] * 3)
    assert torch.equal(found, torch.tensor([3, 3, 3]))
