from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cirlab.errors import UserError
from cirlab.records import CaptionTriplet, Pair, PromptedPair, SampleKey, TextPair, Triplet
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.image import SceneImage
from cirlab.world.language import full_caption
from cirlab.world.properties import facet_values, has
from cirlab.world.vocabulary import dialogue_vocabulary, vocabulary, words_of
from datamodules.world import WorldData
from tests.world.reading import is_true


def data(**options: Any) -> WorldData:
    return WorldData(**({"samples": 64, "batch_size": 16, "eval_batch_size": 16} | options))


def records(epoch: int = 0, **options: Any) -> list[Any]:
    dataset = data(**options).train_dataset()
    return [dataset[SampleKey(epoch, i)] for i in range(len(dataset))]


KINDS = {
    "pairs": Pair,
    "triplets": Triplet,
    "texts": TextPair,
    "caption_triplets": CaptionTriplet,
    "prompted": PromptedPair,
}


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_of_the_announced_type_and_depend_on_the_key_only(kind: str) -> None:
    module = data(records=kind)
    assert module.train_record is KINDS[kind]
    first = records(records=kind)
    assert {type(record) for record in first} == {KINDS[kind]}
    dataset = pickle.loads(pickle.dumps(module.train_dataset()))
    random.seed(1)
    backwards = [dataset[SampleKey(0, i)] for i in reversed(range(64))]
    assert backwards[::-1] == first


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_and_seeds_differ_unless_told_otherwise(kind: str) -> None:
    first = records(records=kind)
    assert not [r for r in records(epoch=1, records=kind) if r in first]
    assert not [r for r in records(seed=1, records=kind) if r in first]
    assert records(epoch=1, records=kind, fresh=False) == records(records=kind, fresh=False)


@pytest.mark.parametrize("kind", KINDS)
def test_all_words_are_in_the_vocabulary(kind: str) -> None:
    texts = {
        "pairs": lambda r: r.captions,
        "triplets": lambda r: (*r.texts, r.target_caption),
        "texts": lambda r: (r.query, r.target),
        "caption_triplets": lambda r: (r.caption, r.text, r.target_caption),
        "prompted": lambda r: (r.text, r.prompt or ""),
    }[kind]
    # Questions, and the texts that answer them, have the words of dialogues.
    words = set(dialogue_vocabulary() if kind == "prompted" else vocabulary())
    for record in records(records=kind):
        assert all(set(words_of(text)) <= words for text in texts(record))


def test_prompted_texts_tell_what_is_asked_and_are_true_of_the_picture() -> None:
    prompted = records(records="prompted", samples=2000, unprompted=0.25)
    values = {value.text: value for found in facet_values().values() for value in found}
    asked = [record for record in prompted if record.prompt is not None]
    assert 0.6 < len(asked) / len(prompted) < 0.8
    for record in asked:
        value = values[record.text]
        assert record.prompt == QUESTIONS[value.facet][0]
        assert isinstance(record.image, SceneImage) and has(record.image.scene, value)
    assert {values[record.text].facet for record in asked} == set(facet_values())


def test_pairs_come_in_series_of_variations() -> None:
    pairs = records(series_size=4, captions_per_image=3)
    assert len({pair.image.id for pair in pairs}) == 64
    for start in range(0, 64, 4):
        base, *others = (pair.image.scene for pair in pairs[start : start + 4])
        shared = [_shared(base, other) for other in others]
        stranger = pairs[(start + 4) % 64].image.scene
        assert min(shared) > 0.4
        assert np.mean(shared) > _shared(base, stranger)
    assert all(len(pair.captions) == 3 for pair in pairs)


def test_full_captions_come_in_the_asked_share() -> None:
    for share in (0.0, 0.5, 1.0):
        pairs = records(samples=400, full_captions=share)
        full = sum(pair.captions[0] == full_caption(pair.image.scene) for pair in pairs)
        assert abs(full / 400 - share) < 0.1


def test_triplets_lead_to_their_target_with_one_text_per_change() -> None:
    triplets = records(records="triplets", samples=400)
    texts = Counter(len(triplet.texts) for triplet in triplets)
    assert set(texts) == {1, 2, 3}
    assert abs(texts[1] / 400 - 0.4) < 0.08
    for triplet in triplets:
        assert triplet.reference.id != triplet.target.id
        assert triplet.reference.scene.signature() != triplet.target.scene.signature()
        assert triplet.target_caption == full_caption(triplet.target.scene)
    styles = Counter(triplet.tags["style"] for triplet in triplets)
    assert abs(styles["instruction"] / 400 - 0.5) < 0.1


def test_equal_ids_mean_equal_pictures_within_a_series_of_triplets() -> None:
    triplets = records(records="triplets", samples=400, series_size=8)
    pictures: dict[str, SceneImage] = {}
    for triplet in triplets:
        for image in (triplet.reference, triplet.target):
            assert pictures.setdefault(image.id, image) == image
    assert len(pictures) < 800


def test_caption_triplets_share_a_family_with_their_series() -> None:
    triplets = records(records="caption_triplets", samples=400, series_size=8)
    pictures: dict[str, SceneImage] = {}
    for start in range(0, 400, 8):
        series = [triplet.reference for triplet in triplets[start : start + 8]]
        assert min(_shared(series[0].scene, other.scene) for other in series) > 0.3
        assert len({image.id for image in series}) > 1
        for image in series:
            assert pictures.setdefault(image.id, image) == image


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_caption_triplets_tell_reference_and_result_apart(share: float) -> None:
    triplets = records(records="caption_triplets", samples=400, full_captions=share)
    for triplet in triplets:
        full = full_caption(triplet.reference.scene)
        assert triplet.caption != triplet.target_caption
        assert set(triplet.tags) == {"style", "category"}
        assert is_true(triplet.caption, triplet.reference.scene)
        if share == 1.0:
            assert triplet.caption == full
    if share == 0.0:
        words = [len(words_of(triplet.caption)) for triplet in triplets]
        wanted = [len(words_of(full_caption(triplet.reference.scene))) for triplet in triplets]
        assert sum(words) < 0.7 * sum(wanted)


def test_texts_are_of_one_scene() -> None:
    only = records(records="texts", compositions=0.0, full_captions=1.0)
    assert all(pair.query == pair.target for pair in only)
    changed = records(records="texts", compositions=1.0)
    assert all(pair.query != pair.target and ", " in pair.query for pair in changed)
    assert data(records="texts").series == 1


def test_the_asked_image_size_is_drawn() -> None:
    (pair, *_) = records(image_size=32)
    assert pair.image.load().size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"series_size": 0}, "series_size is 0; choose a value from 1 to 16"),
        ({"series_size": 17}, "series_size is 17"),
        ({"full_captions": 1.5}, "full_captions is 1.5"),
        ({"compositions": -0.1}, "compositions is -0.1"),
        ({"captions_per_image": 0}, "captions_per_image is 0; choose a value at least 1"),
        ({"image_size": 4}, "image_size is 4"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(**options)


def _shared(first: Any, second: Any) -> float:
    """Share of the words of both full captions."""
    a, b = (Counter(words_of(full_caption(scene))) for scene in (first, second))
    return (a & b).total() / max(a.total(), b.total())
