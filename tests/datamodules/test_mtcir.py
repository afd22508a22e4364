from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey, Triplet
from datamodules.mtcir import MtcirData, MtcirKeys
from tests.datamodules.toys import ToyModule, fit, write_images, write_jsonl

NAMES = [f"images/{i}.jpg" for i in range(5)]


def rows(count: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "image": NAMES[i],
            "target_image": NAMES[i + 1],
            "modifications": [f"change {i}", f"other {i}"],
        }
        for i in range(count)
    ]


def mtcir(root: Path, entries: list[Any], **options: Any) -> MtcirData:
    path = write_jsonl(root / "mtcir.jsonl", entries)
    settings = {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0, **options}
    return MtcirData(str(path), settings.pop("images", str(root)), **settings)


def write_tars(root: Path) -> list[str]:
    """The images in two archives, then gone from the folder."""
    paths = []
    for number, names in enumerate((NAMES[:2], NAMES[2:])):
        paths.append(str(root / f"{number}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for name in reversed(names):
                archive.add(root / name, arcname=name)
                (root / name).unlink()
    return paths


@pytest.mark.parametrize("archived", [False, True])
def test_a_triplet_holds_all_texts(tmp_path: Path, archived: bool) -> None:
    write_images(tmp_path, 5)
    images = write_tars(tmp_path) if archived else str(tmp_path)
    dataset = mtcir(tmp_path, rows(), images=images).train_dataset()
    assert len(dataset) == 4
    triplet = dataset[SampleKey(0, 2)]
    assert (triplet.reference.id, triplet.target.id) == (NAMES[2], NAMES[3])
    assert triplet.texts == ("change 2", "other 2")
    assert triplet.reference.load().getpixel((0, 0)) == (20, 20, 20)
    assert triplet.target.load().getpixel((0, 0)) == (30, 30, 30)


def test_where_lines_and_members_lie_is_kept_on_request(tmp_path: Path) -> None:
    write_images(tmp_path, 5)
    options = {"images": write_tars(tmp_path), "index_cache": str(tmp_path / "index")}
    first = mtcir(tmp_path, rows(), **options).train_dataset()
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "index").iterdir())
    assert kept == ["0", "1", "mtcir"]
    again = MtcirData(str(tmp_path / "mtcir.jsonl"), batch_size=2, eval_batch_size=2, **options)
    assert again.train_dataset()[SampleKey(0, 3)] == first[SampleKey(0, 3)]


def test_texts_may_be_objects_and_keys_have_other_names(tmp_path: Path) -> None:
    write_images(tmp_path, 5)
    row = {
        "ref": NAMES[0],
        "tgt": NAMES[1],
        "changes": [
            {"category": "added object", "words": "a dog"},
            {"category": "removed object", "words": "no cat"},
        ],
    }
    keys = MtcirKeys(reference="ref", target="tgt", texts="changes", text="words")
    triplet = mtcir(tmp_path, [row], keys=keys).train_dataset()[SampleKey(0, 0)]
    assert triplet.texts == ("a dog", "no cat")


def test_several_files_are_joined(tmp_path: Path) -> None:
    write_images(tmp_path, 5)
    paths = [str(write_jsonl(tmp_path / f"{i}.jsonl", rows()[i * 2 : i * 2 + 2])) for i in range(2)]
    data = MtcirData(paths, str(tmp_path), batch_size=2, eval_batch_size=2, num_workers=0)
    dataset = data.train_dataset()
    found = [dataset[SampleKey(0, i)].texts[0] for i in range(len(dataset))]
    assert found == [f"change {i}" for i in range(4)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, "line 2: the field 'image' is null"),
        ({"target_image": ""}, "line 2: the field 'target_image' is"),
        ({"modifications": []}, "line 2: the field 'modifications' is"),
        ({"modifications": "x"}, "line 2: the field 'modifications' is"),
        ({"modifications": [{"category": "c"}]}, r"line 2, modifications\[0\]: the field 'text'"),
        ({"modifications": ["x", {"text": "y"}]}, "must be a list of one or more objects"),
        ({"image": "images/99.jpg"}, r"there is no image .*images/99\.jpg"),
    ],
)
@pytest.mark.parametrize("archived", [False, True])
def test_a_malformed_line_is_told_at_the_start(
    tmp_path: Path, archived: bool, change: dict[str, Any], problem: str
) -> None:
    write_images(tmp_path, 5)
    images = write_tars(tmp_path) if archived else str(tmp_path)
    entries = rows()
    entries[1].update(change)
    with pytest.raises(UserError, match=problem):
        mtcir(tmp_path, entries, images=images).train_dataset()


def test_a_wrong_key_is_told_at_the_start(tmp_path: Path) -> None:
    write_images(tmp_path, 5)
    with pytest.raises(UserError, match=r"line 1: the field 'texts' is missing \(it has im"):
        mtcir(tmp_path, rows(), keys=MtcirKeys(texts="texts")).train_dataset()


@pytest.mark.parametrize("archived", [False, True])
def test_missing_images_are_skipped_and_named(tmp_path: Path, archived: bool) -> None:
    class Collating(ToyModule):
        def train_collator(self) -> Any:
            return lambda records: {"noise": [], "captions": [r.texts[0] for r in records]}

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            self.skipped += batch["skipped"]
            self.seen.append((0, tuple(batch["captions"]), ()))
            return self.weight.sum()

    write_images(tmp_path, 5)
    images = write_tars(tmp_path) if archived else str(tmp_path)
    entries = rows()
    entries[1]["target_image"] = "images/99.jpg"
    data = mtcir(tmp_path, entries, images=images, on_error="skip")
    module = fit(data, Collating(record=Triplet))
    assert module.skipped == ["images/99.jpg"]
    texts = [text for _, batch, _ in module.seen for text in batch]
    assert sorted(texts) == ["change 0", "change 2", "change 2", "change 3"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"images": "/no/such/folder"}, "the image folder '/no/such/folder' does not exist"),
        ({"images": ""}, "the image folder '' does not exist"),
        ({"images": []}, "images is an empty list"),
        ({"images": ["none.tar"]}, r"there is no archive none\.tar"),
    ],
)
def test_a_wrong_place_of_images_is_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        mtcir(tmp_path, rows(), **options).train_dataset()


def test_no_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold no line"):
        mtcir(tmp_path, []).train_dataset()
