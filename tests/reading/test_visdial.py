from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.reading.visdial import VisDial
from cirlab.records import Dialogue, FileImage

QUESTIONS = ["is it sunny", "are there people?", "what colour is the bus"]
ANSWERS = ["yes", "no, nobody", ""]
DIALOGUES: list[dict[str, Any]] = [
    {"image_id": 9, "caption": "a bus", "dialog": [(0, 1), (2, 0)]},
    {"image_id": 123456, "caption": "a “dog”", "dialog": [(1, 0), (1, 2)]},
    {"image_id": 7, "caption": "a cup", "dialog": [(0, 0)]},
]


def write_visdial(root: Path, split: str = "train", rows: Any = DIALOGUES, **data: Any) -> Path:
    """A file in VisDial's format, with the answers to choose from that nothing here reads."""
    content = [
        {
            **row,
            "dialog": [
                {"question": q, "answer": a, "gt_index": 0, "answer_options": [0, 1]}
                for q, a in row["dialog"]
            ],
        }
        for row in rows
    ]
    whole = {"questions": QUESTIONS, "answers": ANSWERS, "dialogs": content, **data}
    path = root / f"visdial_1.0_{split}.json"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"split": split, "version": "1.0", "data": whole}))
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()


def test_rounds_are_questions_with_their_answers(tmp_path: Path) -> None:
    write_visdial(tmp_path)
    visdial = VisDial(tmp_path, "train")
    assert len(visdial) == 3
    name = "train2014/COCO_train2014_000000000009.jpg"
    assert visdial[0] == Dialogue(
        image=FileImage(id=name, path=tmp_path / name),
        caption="a bus",
        rounds=("is it sunny? no, nobody", "what colour is the bus? yes"),
    )
    assert visdial[1].caption == "a “dog”"
    assert visdial[1].rounds == ("are there people? yes", "are there people?")
    assert pickle.loads(pickle.dumps(visdial))[2] == visdial[2]


def test_texts_may_follow_the_dialogues(tmp_path: Path) -> None:
    path = write_visdial(tmp_path)
    data = json.loads(path.read_text())["data"]
    path.write_text(json.dumps({"data": dict(reversed(data.items()))}))
    assert VisDial(tmp_path, "train")[2].rounds == ("is it sunny? yes",)


def test_images_lie_in_the_folder_that_has_them(tmp_path: Path) -> None:
    write_visdial(tmp_path)
    touch(
        tmp_path,
        "train2014/COCO_train2014_000000000009.jpg",
        "val2014/COCO_val2014_000000123456.jpg",
        "val2014/notes.txt",
    )
    visdial = VisDial(tmp_path, "train")
    assert [visdial.image(i).id for i in range(3)] == [
        "train2014/COCO_train2014_000000000009.jpg",
        "val2014/COCO_val2014_000000123456.jpg",
        "train2014/COCO_train2014_000000000007.jpg",
    ]


def test_validation_dialogues_have_images_of_their_own(tmp_path: Path) -> None:
    write_visdial(tmp_path, "val")
    image = VisDial(tmp_path, "val").image(1)
    assert image.id == "VisualDialog_val2018/VisualDialog_val2018_000000123456.jpg"
    assert image.path == tmp_path / image.id


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_id": None}, r"the field 'image_id' is null"),
        ({"image_id": "x1"}, r"'image_id' is \"x1\", but must be a number of COCO"),
        ({"caption": " "}, r"the field 'caption' is \" \""),
        ({"dialog": []}, r"the field 'dialog' is \[\]"),
        (
            {"dialog": [(0, 0), (3, 0)]},
            r"the field 'question' is 3, but must be below 3, the number of texts in",
        ),
        ({"dialog": [(0, None)]}, r"it has no answer; give a split with answers"),
        ({"dialog": [(-1, 0)]}, r"the field 'question' is -1, but must"),
        ({"dialog": [(True, 0)]}, r"the field 'question' is true, but must be a whole number"),
    ],
)
def test_a_malformed_dialogue_is_told_at_once(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write_visdial(tmp_path, rows=[DIALOGUES[0], {**DIALOGUES[1], **change}])
    with pytest.raises(UserError, match=rf"train\.json, data\.dialogs\.record 2.*{problem}") as e:
        VisDial(tmp_path, "train")
    assert "\n" not in str(e.value)


def test_another_file_is_told(tmp_path: Path) -> None:
    path = write_visdial(tmp_path, questions=["is it", 5])
    with pytest.raises(UserError, match=r"data\.questions, record 2: 5 is not a string"):
        VisDial(tmp_path, "train")
    path.write_text(path.read_text()[:-3])
    with pytest.raises(UserError, match=r"train\.json is not a whole JSON document"):
        VisDial(tmp_path, "train")
    with pytest.raises(UserError, match=r"there is no file .*visdial_1\.0_val\.json"):
        VisDial(tmp_path, "val")
    with pytest.raises(UserError, match="no split 'test' with answers; choose one of: train, val"):
        VisDial(tmp_path, "test")
