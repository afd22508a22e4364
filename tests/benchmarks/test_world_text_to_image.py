from __future__ import annotations

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.world_text_to_image import WorldTextToImage
from cirlab.errors import UserError
from cirlab.world.language import full_caption


def made(**options: object) -> WorldTextToImage:
    benchmark = WorldTextToImage(**({"scenes": 300} | options))  # type: ignore[arg-type]
    benchmark.setup()
    benchmark.setup()
    return benchmark


def test_every_scene_is_asked_for_by_its_full_caption() -> None:
    benchmark = made()
    assert len(benchmark.gallery) == len(benchmark.queries) == 300
    for image, query in zip(benchmark.gallery, benchmark.queries, strict=True):
        assert query.text == full_caption(image.scene)
        assert query.image is None
        same = [i.id for i in benchmark.gallery if full_caption(i.scene) == query.text]
        assert query.targets[0] == image.id
        assert sorted(query.targets) == sorted(same)


def test_partial_captions_share_the_gallery_but_not_the_protocol() -> None:
    full, partial = made(), made(captions="partial", name="world_partial")
    assert partial.gallery_id == full.gallery_id
    assert partial.gallery == full.gallery
    assert partial.checksum() != full.checksum()
    lengths = [sum(len(query.text) for query in b.queries) for b in (partial, full)]
    assert lengths[0] < lengths[1] / 2


def test_splits_share_no_scene() -> None:
    signatures = [{i.scene.signature() for i in made(split=s).gallery} for s in ("val", "test")]
    assert not signatures[0] & signatures[1]


def test_scores() -> None:
    ranks = TargetRanks(torch.tensor([[1], [6], [10], [11]]))
    scores = made().score(ranks, ())
    assert scores == {
        "recall_at_1": 0.25,
        "recall_at_5": 0.25,
        "recall_at_10": 0.75,
        "mean_rank": 7.0,
    }


def test_a_second_stage_may_follow() -> None:
    assert made(rerank_depth=20).rerank_depth == 20
    assert made(rerank_depth=20).checksum() == made().checksum()
    with pytest.raises(UserError, match="rerank_depth is 0; give a number from 1, or null"):
        WorldTextToImage(rerank_depth=0)


def test_an_empty_gallery_is_refused() -> None:
    with pytest.raises(UserError, match="0 scenes"):
        WorldTextToImage(scenes=0)
