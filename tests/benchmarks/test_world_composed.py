from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.world_composed import SUBSET_SIZE, WorldComposed
from cirlab.errors import UserError
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene, Signature
from cirlab.world.series import FAMILY_SIZE
from cirlab.world.vocabulary import vocabulary, words_of
from tests.benchmarks.world_readers import with_image_alone, with_target, with_text_alone


@pytest.fixture(scope="module")
def benchmark() -> WorldComposed:
    made = WorldComposed(families=30, queries_per_family=12)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldComposed) -> dict[str, Scene]:
    return {image.id: image.scene for image in benchmark.gallery}


def test_the_default_is_as_large_as_documented() -> None:
    default = WorldComposed()
    default.setup()
    assert len(default.gallery) >= 3000
    assert len(default.queries) == 1600
    parts = [Counter(p for q in default.queries for p in q.tags[t].split("+")) for t in _TAGS]
    categories, styles, changes = parts
    assert min(categories.values()) >= 100 and len(categories) == 6
    assert all(abs(styles[style] / 1600 - 0.5) < 0.05 for style in ("instruction", "description"))
    for number, share in (("1", 0.40), ("2", 0.35), ("3", 0.25)):
        assert abs(changes[number] / 1600 - share) < 0.05


_TAGS = ("category", "style", "changes")


def test_setup_twice_and_copies_give_the_same(benchmark: WorldComposed) -> None:
    before = benchmark.checksum()
    benchmark.setup()
    again = pickle.loads(pickle.dumps(WorldComposed(families=30, queries_per_family=12)))
    again.setup()
    assert benchmark.checksum() == again.checksum() == before
    assert again.protocol() == benchmark.protocol()
    assert again.protocol().pool_size == len(benchmark.gallery)


def test_other_splits_and_seeds_hold_other_scenes(benchmark: WorldComposed) -> None:
    signatures = {image.scene.signature() for image in benchmark.gallery}
    for other in (WorldComposed(30, 12, split="test"), WorldComposed(30, 12, seed=1)):
        other.setup()
        assert not signatures & {image.scene.signature() for image in other.gallery}
        assert other.gallery_id != benchmark.gallery_id


def test_targets_are_exactly_the_scenes_of_the_targets_signature(
    benchmark: WorldComposed, scenes: dict[str, Scene]
) -> None:
    several = 0
    for query in benchmark.queries:
        wanted = scenes[query.targets[0]].signature()
        right = {name for name, scene in scenes.items() if scene.signature() == wanted}
        assert set(query.targets) == right
        assert len(set(query.targets)) == len(query.targets)
        several += len(right) > 1
    assert 0.1 < several / len(benchmark.queries) < 0.4


def test_the_reference_is_in_the_gallery_excluded_and_no_target(
    benchmark: WorldComposed, scenes: dict[str, Scene]
) -> None:
    for query in benchmark.queries:
        assert isinstance(query.image, SceneImage)
        assert scenes[query.image.id] == query.image.scene
        assert query.exclude == (query.image.id,)
        assert query.image.id not in query.targets


def test_subsets_are_six_look_alikes_with_one_target(benchmark: WorldComposed) -> None:
    for query in benchmark.queries:
        assert query.image is not None and query.subset is not None
        assert len({query.image.id, *query.subset}) == SUBSET_SIZE
        assert set(query.subset) & set(query.targets) == {query.targets[0]}
        families = {name.rsplit("-", 1)[0] for name in (query.image.id, *query.subset)}
        assert len(families) == 1


def test_ids_are_unique_and_texts_in_the_vocabulary(benchmark: WorldComposed) -> None:
    assert len({image.id for image in benchmark.gallery}) == len(benchmark.gallery)
    assert len({query.id for query in benchmark.queries}) == len(benchmark.queries)
    words = set(vocabulary())
    assert all(set(words_of(query.text)) <= words for query in benchmark.queries)


def test_whole_families_are_in_the_gallery(benchmark: WorldComposed) -> None:
    signatures: Counter[Signature] = Counter(i.scene.signature() for i in benchmark.gallery)
    assert len(signatures) == benchmark.families * FAMILY_SIZE
    assert set(signatures.values()) == {1, 2, 3, 4}


def test_perfect_ranks_score_one_and_names_are_complete(benchmark: WorldComposed) -> None:
    first = torch.ones(len(benchmark.queries), 1, dtype=torch.long)
    metrics = benchmark.score(TargetRanks(targets=first, subset=first), benchmark.queries)
    assert set(metrics) == {
        *(f"recall_at_{k}" for k in (1, 5, 10)),
        *(f"subset_recall_at_{k}" for k in (1, 2, 3)),
        *(f"map_at_{k}" for k in (5, 10)),
        "mean_rank",
    }
    assert set(metrics.values()) == {1.0}


def test_the_picture_alone_does_not_tell_the_target(benchmark: WorldComposed) -> None:
    """Even a reader that sees every detail mostly fails."""
    assert 0.2 < with_image_alone(benchmark)["recall_at_10"] < 0.6


def test_the_text_alone_does_not_tell_the_target(benchmark: WorldComposed) -> None:
    assert 0.02 < with_text_alone(benchmark)["recall_at_10"] < 0.4


def test_both_together_tell_it(benchmark: WorldComposed) -> None:
    assert with_target(benchmark)["recall_at_5"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": 0}, "0 families"),
        ({"queries_per_family": 0}, "0 queries"),
        ({"queries_per_family": 33}, "33 queries"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WorldComposed(**options)  # type: ignore[arg-type]
