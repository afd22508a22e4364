"""Files and splits of a user's own folder, by whatever names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirlab.data_check import __main__ as command
from cirlab.data_check.checking import check
from cirlab.data_check.descriptions import DATA_SETS
from tests.datamodules.toys import write_folder, write_jsonl


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder without test split, with files and a split of names of their own."""
    root = tmp_path / "own"
    for split in ("train", "val", "dev"):
        write_folder(root, split=split)
    composed = (root / "val" / "composed.jsonl").read_text()
    for file in ("train/more.jsonl", "val/focus.jsonl"):
        (root / file).write_text(composed)
    write_jsonl(root / "val" / "notes.jsonl", [{"note": "x"}])
    write_jsonl(root / "val" / "broken.jsonl", ["{"])
    (root / "dev" / "caption_triplets.jsonl").write_text("{}\n")
    return root


def test_one_s_own_folder(own: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["folder", "--root", str(own), "--lists", str(tmp_path / "lists")]
    assert command.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("    ") and "pairs.jsonl" in line] == [
        "    there    */pairs.jsonl                 images with captions "
        "(dev/pairs.jsonl, train/pairs.jsonl, val/pairs.jsonl)"
    ]
    assert any(re.match(r" +none +\*/dialogues", line) for line in lines)
    for part in ("val/focus.jsonl", "dev/composed.jsonl", "dev/pairs.jsonl/image_to_text"):
        assert part in lines
    assert lines[lines.index("val/focus.jsonl") + 1] == "  9 queries"
    assert lines[-5:] == [
        "not there, so not read: val/dialogues.jsonl, val/facets.jsonl, test",
        "not read: train/more.jsonl (training reads pairs.jsonl, composed.jsonl, "
        "caption_triplets.jsonl, dialogues.jsonl and facets.jsonl, others if data.init_args.file "
        "says so)",
        "not read: val/broken.jsonl (its first line is no composed query)",
        "not read: val/notes.jsonl (its first line is no composed query)",
        "not read: dev/caption_triplets.jsonl (caption triplets are only trained on, from the "
        "split train)",
    ]


def test_faults_in_files_of_other_names_count(own: Path, tmp_path: Path) -> None:
    path = own / "val" / "focus.jsonl"
    path.write_text(path.read_text().replace("images/5.jpg", "images/99.jpg"))
    assert command.main(["folder", "--root", str(own), "--lists", str(tmp_path)]) == 1
    part = next(p for p in DATA_SETS["folder"].parts_in(own) if p.name == "val/focus.jsonl")
    assert "images/99.jpg in 'targets', but it is not in" in (check(part, own).problem or "")


def test_images_of_a_folder_that_look_for_texts(tmp_path: Path) -> None:
    write_folder(tmp_path, split="val")
    (tmp_path / "val" / "gallery.txt").unlink()
    (tmp_path / "images" / "3.jpg").unlink()
    read = {part.name: check(part, tmp_path) for part in DATA_SETS["folder"].parts}
    finding = read.pop("val/pairs.jsonl/image_to_text")
    assert finding.sizes == ("12 queries", "24 gallery captions")
    assert (finding.images, finding.missing) == (12, ("images/3.jpg",))
    assert all(other.passed_over for other in read.values()), "without a gallery of images"
