from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.records import FileImage, Pair
from cirlab.triplets.captions import Captioned, captions_of, read_captions
from tests.datamodules.toys import write_images, write_jsonl


def test_every_caption_of_every_image_counts_in_every_form(tmp_path: Path) -> None:
    rows = [("a.jpg", ["a bag", "bag  on\na chair"]), ("b.jpg", ["a shoe"])]
    wanted = [
        Captioned("a.jpg", "a bag"),
        Captioned("a.jpg", "bag on a chair"),
        Captioned("b.jpg", "a shoe"),
    ]
    lines = write_jsonl(
        tmp_path / "pairs.jsonl", [{"image": name, "captions": said} for name, said in rows]
    )
    llava = tmp_path / "llava.json"
    llava.write_text(
        json.dumps(
            [
                {"image": name, "conversations": [{"from": "gpt", "value": caption}]}
                for name, said in rows
                for caption in said
            ]
        )
    )
    pairs = [Pair(FileImage(name, Path(name)), tuple(said)) for name, said in rows]
    found = [read_captions(lines), read_captions(llava), captions_of(pairs)]
    for captions in found:
        assert [captions[i] for i in range(len(captions))] == wanted
    assert len({captions.digest() for captions in found}) == 1
    assert captions_of(pairs[::-1]).digest() != found[0].digest()
    assert captions_of(pairs[:1]).digest() != found[0].digest()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("pairs.jsonl", '{"image": "a.jpg"}\n', "line 1: the field 'captions' is missing"),
        ("pairs.jsonl", '{"captions": ["a"]}\n', "line 1: the field 'image' is missing"),
        ("pairs.jsonl", "\n", "has no lines"),
        ("pairs.json", "[]", "one or more entries"),
        ("pairs.json", '[{"image": "a"}]', "entry 0: the field 'conversations' is missing"),
        ("pairs.tsv", "a.jpg\ta bag\n", r"are neither \.jsonl .* nor \.json"),
    ],
)
def test_a_file_without_captions_is_refused(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        read_captions(tmp_path / name)


def test_no_pairs_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image-caption pairs"):
        captions_of([])
    with pytest.raises(UserError, match="there is no file"):
        read_captions(tmp_path / "pairs.jsonl")


def test_missing_images_are_counted_once_each(tmp_path: Path) -> None:
    names = write_images(tmp_path, 3)
    rows = [{"image": name, "captions": ["a", "b"]} for name in names]
    captions = read_captions(write_jsonl(tmp_path / "pairs.jsonl", rows))
    captions.check_images(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"1 of 3 images are missing, the first is .*1\.jpg; cor"):
        captions.check_images(tmp_path)
