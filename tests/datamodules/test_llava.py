from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.llava import LlavaPretrainData
from tests.datamodules.toys import fit, write_images


def entry(name: str, caption: str) -> dict[str, Any]:
    return {
        "id": name,
        "image": name,
        "conversations": [
            {"from": "human", "value": "Describe it.\n<image>"},
            {"from": "gpt", "value": caption},
        ],
    }


def write(root: Path, entries: Any) -> LlavaPretrainData:
    path = root / "pairs.json"
    path.write_text(json.dumps(entries))
    return LlavaPretrainData(str(path), str(root), batch_size=4, eval_batch_size=4, num_workers=0)


def test_pairs_are_image_and_answer(tmp_path: Path) -> None:
    names = write_images(tmp_path, 5)
    data = write(tmp_path, [entry(name, f" caption of {name}\n") for name in names])
    dataset = data.train_dataset()
    assert len(dataset) == 5
    pair = dataset[SampleKey(0, 3)]
    assert (pair.image.id, pair.captions) == ("images/3.jpg", ("caption of images/3.jpg",))
    assert len(fit(data).seen) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, r"pairs\.json, entry 1: the field 'image' is null"),
        ({"conversations": []}, "entry 1: the field 'conversations' is .* one or more objects"),
        ({"conversations": [{"from": "human", "value": "x"}]}, 'entry 1: no turn .* from "gpt"'),
        ({"conversations": [{"from": "gpt"}]}, r"entry 1, conversations\[0\]: the field 'value'"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    names = write_images(tmp_path, 2)
    good = [entry(name, "c") for name in names]
    with pytest.raises(UserError, match=problem):
        write(tmp_path, [good[0], {**good[1], **change}]).train_dataset()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "one or more entries"),
        ({"a": 1}, "must hold a JSON list"),
        (["x"], "entry 0: expected a JSON object, found str"),
    ],
)
def test_another_json_is_refused(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        write(tmp_path, content).train_dataset()


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path, [])
    (tmp_path / "pairs.json").write_text("[1, ")
    with pytest.raises(UserError, match=r"pairs\.json is not valid JSON"):
        data.train_dataset()
    (tmp_path / "pairs.json").unlink()
    with pytest.raises(UserError, match="there is no file"):
        data.train_dataset()


def test_missing_images_are_counted(tmp_path: Path) -> None:
    names = write_images(tmp_path, 3)
    (tmp_path / names[1]).unlink()
    entries = [entry(name, "c") for name in names]
    with pytest.raises(UserError, match="1 of 3 images are missing"):
        write(tmp_path, entries).train_dataset()
    lenient = write(tmp_path, entries)
    lenient.on_error = "skip"
    assert len(lenient.train_dataset()) == 3
