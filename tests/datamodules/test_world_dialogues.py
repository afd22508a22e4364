from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import Dialogue, Pair, SampleKey
from cirlab.world.image import SceneImage
from cirlab.world.vocabulary import dialogue_vocabulary, words_of
from datamodules import WorldDialogueData
from tests.datamodules.toys import fit


def data(**options: Any) -> WorldDialogueData:
    return WorldDialogueData(**({"samples": 32, "batch_size": 8, "eval_batch_size": 8} | options))


def records(epoch: int = 0, **options: Any) -> list[Any]:
    dataset = data(**options).train_dataset()
    return [dataset[SampleKey(epoch, i)] for i in range(len(dataset))]


def test_partial_dialogues_are_pairs_that_depend_on_the_key_only() -> None:
    module = data()
    assert module.train_record is Pair
    first = records()
    assert {type(record) for record in first} == {Pair}
    dataset = pickle.loads(pickle.dumps(module.train_dataset()))
    assert [dataset[SampleKey(0, i)] for i in reversed(range(32))][::-1] == first
    words = set(dialogue_vocabulary())
    assert all(set(words_of(pair.captions[0])) <= words for pair in first)


def test_every_epoch_speaks_anew_of_the_same_scenes() -> None:
    epochs = [records(epoch) for epoch in range(3)]
    shown = [[pair.image for pair in pairs] for pairs in epochs]
    assert shown[0] == shown[1] == shown[2] == data().train_images()
    assert len({image.id for image in shown[0]}) == 32
    said = [[pair.captions[0] for pair in pairs] for pairs in epochs]
    assert all(len(set(texts)) > 1 for texts in zip(*said, strict=True))
    assert not {image.id for image in data(seed=1).train_images()} & {i.id for i in shown[0]}


def test_fresh_scenes_are_others_each_epoch_and_cannot_be_listed() -> None:
    first, second = (
        {pair.image.id: pair.image for pair in records(epoch, fresh=True)} for epoch in (0, 1)
    )
    assert first.keys() == {image.id for image in data().train_images()}
    assert not first.keys() & second.keys()
    with pytest.raises(UserError, match="fresh: true draws new scenes in every epoch, of whose"):
        data(fresh=True).train_images()


def test_whole_dialogues_have_all_rounds() -> None:
    module = data(records="dialogues", rounds=7)
    assert module.train_record is Dialogue
    assert {len(dialogue.rounds) for dialogue in records(records="dialogues", rounds=7)} == {7}


def test_the_shown_part_follows_separator_and_dropout() -> None:
    pairs = records(samples=400, rounds=3, separator=" [SEP] ", caption_dropout=0.5)
    said = [pair.captions[0].split(" [SEP] ") for pair in pairs]
    unopened = [texts for texts in said if "?" in texts[0]]
    assert {len(texts) for texts in unopened} == {1, 2, 3}
    opened = [texts for texts in said if "?" not in texts[0]]
    assert {len(texts) for texts in opened} == {1, 2, 3, 4}
    # Of the three quarters with a round, half.
    assert 0.3 < len(unopened) / 400 < 0.45
    kept = records(samples=100, rounds=3, caption_dropout=0.0)
    assert not any("?" in pair.captions[0].split(", ")[0] for pair in kept)


def test_a_series_shows_variations_of_one_scene() -> None:
    images = [pair.image for pair in records(series_size=4)]
    assert all(isinstance(image, SceneImage) for image in images)
    signatures = {image.scene.signature() for image in images}
    assert len(signatures) == 32
    assert data(series_size=8).series == 8


def test_a_method_that_learns_from_pairs_trains_on_them(tmp_path: Path) -> None:
    assert len(fit(data()).seen) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rounds": 0}, "rounds is 0; choose a value from 1 to 38"),
        ({"rounds": 39}, "rounds is 39; choose a value from 1 to 38"),
        ({"series_size": 17}, "series_size is 17; choose a value from 1 to 16"),
        ({"image_size": 4}, "image_size is 4"),
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        data(**options)
