from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.karpathy import KarpathyData
from tests.datamodules.toys import fit, write_images

NAMES = [f"images/{i}.jpg" for i in range(4)]
#: In the files the captions of an image do not stand together.
ORDER = [0, 1, 0, 2, 1, 0]


def rows() -> list[dict[str, Any]]:
    return [
        {"caption": f"caption {n}", "image": NAMES[image], "image_id": f"coco_{image}"}
        for n, image in enumerate(ORDER)
    ]


def write(root: Path, content: Any, file: str = "train.json") -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    (root / file).write_text(text, encoding="utf-8")
    return file


def karpathy(root: Path, content: Any, **options: Any) -> KarpathyData:
    file = write(root, content)
    settings = {"annotations": file, "batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
    return KarpathyData(str(root), **{**settings, **options})


def test_a_record_is_a_pair(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    data = karpathy(tmp_path, rows())
    dataset = data.train_dataset()
    pairs = [dataset[SampleKey(0, i)] for i in range(len(dataset))]
    assert [pair.image.id for pair in pairs] == [NAMES[i] for i in ORDER]
    assert [pair.captions for pair in pairs] == [(f"caption {n}",) for n in range(6)]
    assert pairs[3].image.load().getpixel((0, 0)) == (20, 20, 20)
    assert [image.id for image in data.train_images()] == NAMES[:3]
    assert len(fit(data).seen) == 3


@pytest.mark.parametrize("group", [False, True])
def test_captions_may_be_read_as_blip_reads_them(tmp_path: Path, group: bool) -> None:
    write_images(tmp_path, 1)
    content = [{"caption": "A Cup: blue!", "image": NAMES[0]}]
    data = karpathy(tmp_path, content, caption_template="blip", group=group)
    assert data.train_dataset()[SampleKey(0, 0)].captions == ("a cup blue",)
    with pytest.raises(UserError, match="caption_template is 'x'; use one of: as_is, blip"):
        karpathy(tmp_path, content, caption_template="x")


def test_captions_are_grouped_by_their_image_over_files(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    more = [{"caption": ["one", "two"], "image": NAMES[3]}, {"caption": "again", "image": NAMES[1]}]
    files = [write(tmp_path, rows()), write(tmp_path, more, "more.json")]
    data = karpathy(tmp_path, rows(), annotations=files, group=True)
    dataset = pickle.loads(pickle.dumps(data.train_dataset()))
    pairs = [dataset[SampleKey(0, i)] for i in range(len(dataset))]
    assert [(pair.image.id, pair.captions) for pair in pairs] == [
        (NAMES[0], ("caption 0", "caption 2", "caption 5")),
        (NAMES[1], ("caption 1", "caption 4", "again")),
        (NAMES[2], ("caption 3",)),
        (NAMES[3], ("one", "two")),
    ]
    assert len(fit(data).seen) == 2
    single = karpathy(tmp_path, rows(), annotations=files).train_dataset()
    assert [single[SampleKey(0, i)].captions for i in (5, 6, 7)] == [
        ("caption 5",),
        ("one", "two"),
        ("again",),
    ]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, "record 2: the field 'image' is null"),
        ({"caption": " "}, "record 2: the field 'caption' is"),
        ({"caption": []}, "record 2: the field 'caption' is"),
        ({"caption": {"raw": "x"}}, "record 2: the field 'caption' is"),
    ],
)
def test_a_malformed_record_is_told_at_the_start(
    tmp_path: Path, change: dict[str, Any], problem: str, group: bool
) -> None:
    write_images(tmp_path, 3)
    entries = rows()
    entries[1] |= change
    with pytest.raises(UserError, match=rf"train\.json, {problem}"):
        karpathy(tmp_path, entries, group=group).train_dataset()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"annotations": rows()}, "holds no array at its top level"),
        (json.dumps(rows())[:-20], "is not a whole JSON document"),
        ([], r"annotations hold no record \(train\.json\)"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        karpathy(tmp_path, content).train_dataset()
    with pytest.raises(UserError, match=r"annotations hold no record \(no file\)"):
        karpathy(tmp_path, rows(), annotations=[]).train_dataset()


def test_missing_images_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    with pytest.raises(UserError, match=r"1 of 3 images are missing, the first is .*/2\.jpg"):
        karpathy(tmp_path, rows()).train_dataset()
    assert len(karpathy(tmp_path, rows(), on_error="skip").train_dataset()) == 6


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    write_images(tmp_path / "coco", 3)
    data = karpathy(tmp_path, rows(), images="coco/images/{file}")
    assert data.train_images()[2].path == tmp_path / "coco" / "images" / "2.jpg"
    with pytest.raises(UserError, match="names 'id'; it can use: file, path"):
        karpathy(tmp_path, rows(), images="{id}.jpg").train_dataset()
