from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.benchmarks.world_cirr import WorldCIRR
from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.dialogue.openings import Opening, Openings, openings_of
from cirlab.errors import UserError
from cirlab.records import FileImage
from tests.dialogue.players import openings


def test_dialogues_begin_as_the_benchmarks_do() -> None:
    benchmark = WorldDialogue(families=2, dialogues=5, rounds=3)
    benchmark.setup()
    found = openings_of(benchmark)
    first = [query for query in benchmark.queries if query.id.endswith("#0")]
    assert [(each.image.id, each.caption) for each in found.each] == [
        (query.targets[0], query.text) for query in first
    ]
    assert list(found.gallery) == [image.id for image in benchmark.gallery]
    assert len(openings_of(benchmark, limit=2)) == 2


def test_what_is_no_caption_of_a_known_image_is_refused() -> None:
    benchmark = WorldCIRR(families=2)
    with pytest.raises(UserError, match="the queries of world_cirr are no captions of images"):
        openings_of(benchmark)
    dialogues = WorldDialogue(families=2, dialogues=5, rounds=1)
    dialogues.setup()
    with pytest.raises(UserError, match="5 dialogues, and 1 or more are needed"):
        openings_of(dialogues, limit=0)


def test_digests_tell_captions_and_galleries_apart() -> None:
    whole = openings(3)
    other = Openings([*whole.each[:2], Opening(whole[2].image, "other")], whole.gallery)
    fewer = Openings(whole.each, {each.image.id: each.image for each in whole.each[:2]})
    assert len({each.digest() for each in (whole, other, fewer)}) == 3
    assert whole.digest() == openings(3).digest()


def test_missing_files_are_counted(tmp_path: Path) -> None:
    image = FileImage("a", tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"1 of 1 images that are spoken of are missing, the first"):
        Openings([Opening(image, "a dog")], {"a": image}).check_files()
