"""Training data and their images, as each data set lays them out."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from cirlab.data_check.checking import check
from cirlab.data_check.descriptions import DATA_SETS, Part
from tests.benchmarks.composed_files import write_cirr, write_json
from tests.data_check.toy import find
from tests.datamodules.toys import jpeg, write_folder, write_images, write_jsonl


def test_training_images_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, split="train")
    (tmp_path / "images" / "11.jpg").unlink()
    part = DATA_SETS["folder"].parts[0]
    finding = check(part, tmp_path)
    assert finding.sizes == ("21 records: 12 pairs, 9 composed", "12 images")
    assert finding.missing == ("images/11.jpg",)
    dialogue = {"id": 1, "rounds": ["a cat"], "targets": ["images/0.jpg"]}
    write_jsonl(tmp_path / "train" / "dialogues.jsonl", [dialogue])
    assert "22 records: 12 pairs, 9 composed, 1 dialogues" in check(part, tmp_path).sizes
    facet = {"id": "1", "facet": "colour", "text": "red", "targets": ["images/0.jpg"]}
    write_jsonl(tmp_path / "train" / "facets.jsonl", [facet])
    assert "9 composed, 1 facets, 1 dialogues" in check(part, tmp_path).sizes[0]
    (tmp_path / "train" / "facets.jsonl").unlink()
    triplet = {"image": "images/12.jpg", "caption": "a", "instruction": "b"}
    path = tmp_path / "train" / "caption_triplets.jsonl"
    write_jsonl(path, [triplet | {"modified_caption": "c"}])
    finding = check(part, tmp_path)
    assert "23 records: 12 pairs, 9 composed, 1 caption triplets, 1 dialogues" in finding.sizes
    assert finding.missing == ("images/11.jpg", "images/12.jpg")
    write_jsonl(path, [triplet])
    assert "line 1: the field 'modified_caption' is missing" in (
        check(part, tmp_path).problem or ""
    )


def test_training_images_of_cirr(tmp_path: Path) -> None:
    write_cirr(tmp_path, split="train")
    folder = tmp_path / "img_raw" / "train" / "7"
    for number in (1, 8):  # a distractor, and a reference
        (folder / f"dev-{number}-0-img0.png").unlink()
    finding = check(find("cirr", "train"), tmp_path)
    assert finding.sizes == ("3 records", "9 images, but 16,939 are published")
    assert (finding.images, finding.missing) == (4, ("dev-8-0-img0",))
    assert finding.template == "img_raw/{path}"
    (tmp_path / "flat").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "flat" / path.name)
    moved = check(find("cirr", "train"), tmp_path, images="flat/{name}.png")
    assert moved.missing == finding.missing


def test_training_images_of_fashioniq(garments: Path) -> None:
    """Those that are neither reference nor target train nothing."""
    for name in ("B05", "B12"):
        (garments / "images" / f"{name}.jpg").unlink()
    finding = check(find("fashioniq", "train/dress"), garments, images="images/{name}.jpg")
    assert finding.sizes == (
        "2 records, but 5,985 are published",
        "14 images, but 11,452 are published",
    )
    assert (finding.images, finding.missing) == (3, ("B12",))


def test_dialogues_of_chatir_as_training_data(tmp_path: Path) -> None:
    """Also one's own, and without a search space."""
    names = write_images(tmp_path, 4)
    for file, numbers in (("Human_BLIP2", (0, 1)), ("mine", (1, 2, 3))):
        rows = [{"img": names[n], "dialog": ["a cat", "is it old? no"]} for n in numbers]
        write_json(tmp_path / "dialogues" / f"{file}.json", rows)
    (tmp_path / names[3]).unlink()
    part = find("chatir", "train/dialogues")
    finding = check(part, tmp_path)
    assert finding.sizes == ("5 records", "4 images")
    assert finding.missing == (names[3],)
    (tmp_path / "here").mkdir()
    (tmp_path / names[0]).rename(tmp_path / "here" / "0.jpg")
    moved = check(part, tmp_path, images="here/{file}")
    assert moved.missing == tuple(names[1:])
    write_json(tmp_path / "dialogues" / "mine.json", [{"img": names[1]}])
    assert re.search(r"mine\.json.*the field 'dialog'", check(part, tmp_path).problem or "")


def test_caption_training_files_name_their_images(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    names = ["images/0.jpg", "images/1.jpg", "images/0.jpg", "images/9.jpg"]
    rows = [{"caption": "c", "image": name, "image_id": "coco_1"} for name in names]
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(rows))
    part = find("coco_karpathy", "train")
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == (
        "4 records, but 566,747 are published",
        "3 images, but 113,287 are published",
    )
    assert (finding.missing, finding.broken) == (("images/9.jpg",), ())


def mtcir(root: Path, images: int = 5) -> Part:
    names = write_images(root, images)
    rows = [
        {"image": names[i], "target_image": names[i + 1], "modifications": ["x"]}
        for i in range(images - 1)
    ]
    write_jsonl(root / "a.jsonl", rows[:2])
    write_jsonl(root / "b.jsonl", rows[2:])
    return DATA_SETS["mtcir"].parts[0]


def test_mtcir_in_a_folder(tmp_path: Path) -> None:
    part = mtcir(tmp_path)
    (tmp_path / "images" / "2.jpg").unlink()
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == ("4 records", "5 images")
    assert finding.missing == ("images/2.jpg",)
    assert finding.broken == ()


def test_mtcir_in_archives(tmp_path: Path) -> None:
    part = mtcir(tmp_path)
    (tmp_path / "images" / "4.jpg").write_bytes(b"no image")
    (tmp_path / "tars").mkdir()
    for number, held in enumerate(((0, 1), (4, 3))):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as archive:
            for i in held:
                name = f"images/{i}.jpg"
                archive.add(tmp_path / name, arcname=name)
    finding = check(part, tmp_path, decode=True)
    assert finding.missing == ("images/2.jpg",)
    assert finding.broken == ("images/4.jpg",)


def test_mtcir_without_or_with_other_lines(tmp_path: Path) -> None:
    part = DATA_SETS["mtcir"].parts[0]
    assert "there is no .jsonl file" in (check(part, tmp_path).problem or "")
    write_jsonl(tmp_path / "a.jsonl", [{"ref": "x"}])
    assert "a.jsonl, line 1: the field 'image' is missing" in (check(part, tmp_path).problem or "")


@pytest.mark.parametrize("split", ["train", "val"])
def test_visdial_images_lie_in_their_folders(tmp_path: Path, split: str) -> None:
    part = find("visdial", split)
    turns = [{"question": 0, "answer": 0}]
    dialogues = [{"image_id": n, "caption": "a cat", "dialog": turns} for n in (1, 22, 333)]
    content = {"data": {"dialogs": dialogues, "questions": ["is it old"], "answers": ["no"]}}
    (tmp_path / f"visdial_1.0_{split}.json").write_text(json.dumps(content))
    there = ["VisualDialog_val2018/VisualDialog_val2018_000000000001.jpg"]
    if split == "train":
        there = [f"{n}2014/COCO_{n}2014_{i:012d}.jpg" for n, i in (("train", 1), ("val", 22))]
    for name in there:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(jpeg(1))
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == ("3 records", "3 images")
    folder, name = there[0].split("/")
    gone = [333] if split == "train" else [22, 333]
    expected = [f"{folder}/{name.replace('000000000001', f'{n:012d}')}" for n in gone]
    assert list(finding.missing) == expected
    assert finding.broken == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not a whole JSON document"),
        ("[]", "holds no object that has a key 'data'"),
        ('{"data": {}}', "has no key 'dialogs'"),
        (
            '{"data": {"dialogs": [{}], "questions": [], "answers": []}}',
            "data.dialogs.record 1: the field 'caption' is missing",
        ),
    ],
)
def test_what_is_no_visdial_file_is_told(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "visdial_1.0_val.json").write_text(content)
    finding = check(DATA_SETS["visdial"].parts[1], tmp_path)
    assert re.search(rf"visdial_1\.0_val\.json.*{problem}", finding.problem or "")
