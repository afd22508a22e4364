from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.benchmarks.fashioniq import PUBLISHED, Published
from cirlab.errors import UserError
from cirlab.records import SampleKey, Triplet
from datamodules.fashioniq import FashionIQData
from tests.benchmarks.composed_files import CATEGORIES, FASHION_ROWS, write_fashioniq, write_json

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks" / "fashioniq"


def fashioniq(root: Path, **options: Any) -> FashionIQData:
    settings = {
        "batch_size": 2,
        "eval_batch_size": 2,
        "num_workers": 0,
        "official": False,
        **options,
    }
    return FashionIQData(str(root), **settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_fashioniq(tmp_path, split="train")


def triplets(data: FashionIQData) -> list[Triplet]:
    dataset = pickle.loads(pickle.dumps(data.train_dataset()))
    return [dataset[SampleKey(0, index)] for index in range(len(dataset))]


def test_triplets_are_those_of_the_files(root: Path) -> None:
    found = triplets(fashioniq(root))
    assert [(t.tags["category"], t.reference.id, t.target.id, t.texts) for t in found] == [
        ("dress", "B00", "B13", ("Is redder.", "has a bow,")),
        ("dress", "B00", "B12", ("is shorter", "is Green (bright)")),
        ("shirt", "B40", "B41", ("says hello",)),
        ("toptee", "B50", "B51", ("no sleeves", "is blue?")),
    ]
    assert found[3].target.load().getpixel((0, 0)) == (51, 51, 51)


def test_categories_are_chosen(root: Path) -> None:
    found = triplets(fashioniq(root, categories=["toptee", "dress"]))
    assert [t.tags["category"] for t in found] == ["toptee", "dress", "dress"]


def test_features_may_be_cached_of_all_images_that_are_used(root: Path) -> None:
    """A shirt and top whose files lie in a folder for each category has two."""
    rows = copy.deepcopy(dict(FASHION_ROWS))
    rows["toptee"][0]["candidate"] = "B40"
    write_fashioniq(root, rows, split="train")
    data = fashioniq(root)
    assert [image.id for image in data.train_images()] == ["B00", "B13", "B12", "B40", "B41", "B51"]
    data = fashioniq(root, images="{category}/{name}.jpg", on_error="skip")
    paths = {image.path.relative_to(root).as_posix() for image in data.train_images()}
    assert {"shirt/B40.jpg", "toptee/B40.jpg"} <= paths


def test_missing_images_are_told_at_the_start(root: Path) -> None:
    (root / "images" / "B12.png").unlink()
    with pytest.raises(UserError, match=r"1 of 7 images are missing, the first is .*B12\.png"):
        fashioniq(root).train_dataset()
    assert len(triplets(fashioniq(root, on_error="skip"))) == 4


def test_other_files(root: Path) -> None:
    for category in CATEGORIES:
        write_json(root / "mine" / f"{category}.train.json", FASHION_ROWS[category][:1])
    found = triplets(fashioniq(root, captions="mine/{category}.{split}.json"))
    assert [triplet.target.id for triplet in found] == ["B13", "B41", "B51"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target": "B77"}, "its target B77 is not in the category's image_splits file"),
        ({"captions": [""]}, "the field 'captions' is"),
    ],
)
def test_a_malformed_pair_is_told_at_the_start(
    root: Path, fields: dict[str, Any], problem: str
) -> None:
    write_json(
        root / "captions" / "cap.toptee.train.json", [{**FASHION_ROWS["toptee"][0], **fields}]
    )
    with pytest.raises(UserError, match=rf"cap\.toptee\.train\.json, record 1: {problem}"):
        fashioniq(root).train_dataset()


def test_published_sizes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="14 images of Fashion-IQ's dress train, but 11,452 are"):
        fashioniq(root, official=True).train_dataset()
    shirt = {"categories": ["shirt"], "official": True}
    monkeypatch.setitem(PUBLISHED, ("train", "shirt"), Published(queries=2, images=3, union=2))
    with pytest.raises(UserError, match="1 queries of Fashion-IQ's shirt train, but 2 are publ"):
        fashioniq(root, **shirt).train_dataset()
    own = "captions/cap.{category}.train.json"
    assert len(fashioniq(root, captions=own, **shirt).train_dataset()) == 1


def test_an_empty_file_is_refused(root: Path) -> None:
    write_json(root / "captions" / "cap.shirt.train.json", [])
    with pytest.raises(UserError, match=r"cap\.shirt\.train\.json holds no pair"):
        fashioniq(root).train_dataset()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"categories": []}, r"categories is \[\]; name each once, at least one"),
        ({"categories": ["dress", "dress"]}, "name each once"),
        ({"categories": ["hat"]}, "a category of Fashion-IQ is 'hat'; use one of: dress, shirt"),
        ({"captions": "x.json"}, "'x.json', the same file for every category"),
    ],
)
def test_a_wrong_choice_is_refused_at_once(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        fashioniq(Path(), **options)


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/fashioniq")
def test_the_official_training_files() -> None:
    found = triplets(fashioniq(REAL, on_error="skip", official=True))
    assert len(found) == 5985 + 5988 + 6027
    assert sum(len(triplet.texts) == 1 for triplet in found) == 12
    assert {len(triplet.texts) for triplet in found} == {1, 2}
    assert all(triplet.reference.id != triplet.target.id for triplet in found)
