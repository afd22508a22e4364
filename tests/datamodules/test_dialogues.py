from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import Dialogue, Pair, SampleKey
from datamodules.chatir import ChatIRData
from datamodules.dialogues import DialogueData
from datamodules.folder import FolderData
from datamodules.visdial import VisDialData
from tests.datamodules.toys import ToyModule, fit, write_folder, write_images, write_jsonl
from tests.reading.test_visdial import DIALOGUES, write_visdial

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere"))
SIZES = {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0}


def chatir_data(root: Path, records: Any = "dialogues", **options: Any) -> ChatIRData:
    """Four dialogues; the images 0 and 1 have two each."""
    names = write_images(root, 2)
    rows = [
        {"img": names[i % 2], "dialog": [f"image {i}", *(f"{r}? {i}" for r in range(i))]}
        for i in range(4)
    ]
    path = root / "own.json"
    path.write_text(json.dumps(rows))
    return ChatIRData(str(root), path.name, records, **{**SIZES, **options})


def visdial_data(root: Path, records: Any = "dialogues", **options: Any) -> VisDialData:
    write_visdial(root)
    images = write_images(root, len(DIALOGUES))
    (root / "train2014").mkdir(exist_ok=True)
    for row, name in zip(DIALOGUES, images, strict=True):
        path = root / "train2014" / f"COCO_train2014_{row['image_id']:012d}.jpg"
        (root / name).rename(path)
    return VisDialData(str(root), records, **{**SIZES, **options})


def test_whole_dialogues_of_a_file(tmp_path: Path) -> None:
    data = chatir_data(tmp_path)
    dataset = data.train_dataset()
    assert (len(dataset), data.train_record) == (4, Dialogue)
    dialogue = dataset[SampleKey(0, 3)]
    assert isinstance(dialogue, Dialogue)
    assert (dialogue.caption, dialogue.rounds) == ("image 3", ("0? 3", "1? 3", "2? 3"))
    assert dialogue.image.load().size == (8, 8)
    assert [image.id for image in data.train_images()] == ["images/0.jpg", "images/1.jpg"]
    assert pickle.loads(pickle.dumps(dataset))[SampleKey(0, 3)] == dialogue


def test_whole_dialogues_of_visdial(tmp_path: Path) -> None:
    data = visdial_data(tmp_path)
    dialogue = data.train_dataset()[SampleKey(4, 0)]
    assert isinstance(dialogue, Dialogue)
    assert dialogue.rounds == ("is it sunny? no, nobody", "what colour is the bus? yes")
    assert len(data.train_images()) == 3
    module = fit(visdial_data(tmp_path / "more", "partial_dialogues"))
    assert len(module.seen) == 1


@pytest.mark.parametrize("make", [chatir_data, visdial_data])
def test_partial_dialogues_are_drawn_anew_each_epoch_from_their_key(
    tmp_path: Path, make: Any
) -> None:
    data: DialogueData = make(tmp_path, "partial_dialogues", separator="; ")
    assert data.train_record is Pair
    dataset = data.train_dataset()
    pairs = [dataset[SampleKey(epoch, 1)] for epoch in range(100)]
    assert all(isinstance(pair, Pair) and len(pair.captions) == 1 for pair in pairs)
    assert pairs == [dataset[SampleKey(epoch, 1)] for epoch in range(100)]
    texts = {pair.captions[0] for pair in pairs}
    if make is chatir_data:
        assert texts == {"image 1", "image 1; 0? 1", "0? 1"}
    else:
        first = "are there people? yes"
        assert texts >= {"a “dog”", f"a “dog”; {first}", first}
    other = make(tmp_path / "other", "partial_dialogues", separator="; ", seed=1).train_dataset()
    assert [other[SampleKey(epoch, 1)].captions for epoch in range(100)] != [
        pair.captions for pair in pairs
    ]


def test_the_caption_is_never_left_out_on_request(tmp_path: Path) -> None:
    dataset = chatir_data(tmp_path, "partial_dialogues", caption_dropout=0.0).train_dataset()
    pairs = [dataset[SampleKey(epoch, 3)] for epoch in range(50)]
    assert all(pair.captions[0].startswith("image 3") for pair in pairs)


def test_a_method_that_learns_from_pairs_trains_on_dialogues(tmp_path: Path) -> None:
    module = fit(chatir_data(tmp_path, "partial_dialogues"))
    assert len(module.seen) == 2
    with pytest.raises(UserError, match="learns from Pair records, but ChatIRData gives Dialogue"):
        fit(chatir_data(tmp_path), ToyModule())


@pytest.mark.parametrize("make", [chatir_data, visdial_data])
def test_missing_images_are_counted_before_training(tmp_path: Path, make: Any) -> None:
    data = make(tmp_path)
    next(tmp_path.glob("*/*.jpg")).unlink()
    with pytest.raises(UserError, match=r"1 of \d images are missing"):
        data.train_dataset()
    data.on_error = "skip"
    assert len(data.train_dataset()) > 2


def test_a_malformed_file_is_told_before_training(tmp_path: Path) -> None:
    data = chatir_data(tmp_path)
    (tmp_path / "own.json").write_text('[{"img": "images/0.jpg", "dialog": "a cat"}]')
    with pytest.raises(UserError, match=r"own\.json, record 1: the field 'dialog' is \"a cat\""):
        fit(data, ToyModule(record=Dialogue))
    with pytest.raises(UserError, match="the data root is empty"):
        VisDialData(" ", "partial_dialogues", **SIZES).train_dataset()


# ---- a folder's own ---------------------------------------------------------------------------


def folder_data(root: Path, records: Any, **options: Any) -> FolderData:
    names = write_folder(root)
    rows = [
        {"id": i, "rounds": [f"image {i}", "0? no", "1? yes"], "targets": names[i : i + 2]}
        for i in range(5)
    ]
    write_jsonl(root / "train" / "dialogues.jsonl", rows)
    return FolderData(str(root), records, **{**SIZES, **options})


def test_a_folders_dialogues_are_about_one_of_their_targets(tmp_path: Path) -> None:
    data = folder_data(tmp_path, "dialogues")
    dataset = data.train_dataset()
    assert (len(dataset), data.train_record) == (5, Dialogue)
    drawn = [dataset[SampleKey(epoch, 3)] for epoch in range(30)]
    assert drawn == [dataset[SampleKey(epoch, 3)] for epoch in range(30)]
    assert {(d.caption, d.rounds) for d in drawn} == {("image 3", ("0? no", "1? yes"))}
    named = {(d.image.id, *d.also_correct) for d in drawn}
    assert named == {("images/3.jpg", "images/4.jpg"), ("images/4.jpg", "images/3.jpg")}
    assert sorted(image.id for image in data.train_images()) == [
        f"images/{i}.jpg" for i in range(6)
    ]


def test_a_folders_partial_dialogues_are_pairs(tmp_path: Path) -> None:
    data = folder_data(tmp_path, "partial_dialogues", separator="; ", caption_dropout=1.0)
    dataset = data.train_dataset()
    assert data.train_record is Pair
    pairs = [dataset[SampleKey(epoch, 2)] for epoch in range(60)]
    texts = {pair.captions[0] for pair in pairs}
    assert texts == {"image 2", "0? no", "0? no; 1? yes"}
    named = {(pair.image.id, *pair.also_correct) for pair in pairs}
    assert named == {("images/2.jpg", "images/3.jpg"), ("images/3.jpg", "images/2.jpg")}
    assert len(fit(data).seen) == 2


def test_a_malformed_line_of_a_folder_is_told_before_training(tmp_path: Path) -> None:
    data = folder_data(tmp_path, "dialogues")
    write_jsonl(tmp_path / "train" / "dialogues.jsonl", [{"id": 1, "targets": ["images/1.jpg"]}])
    with pytest.raises(UserError, match=r"dialogues\.jsonl, line 1: the field 'rounds' is miss"):
        fit(data, ToyModule(record=Dialogue))


@pytest.mark.skipif(not (REAL / "real" / "fashion").is_dir(), reason="DATA_ROOT has no fashion")
def test_dialogues_about_products() -> None:
    dataset = FolderData(str(REAL / "real" / "fashion"), "dialogues", **SIZES).train_dataset()
    assert len(dataset) == 6603
    assert all(len(dataset[SampleKey(0, i)].rounds) == 5 for i in range(0, 6603, 400))
