from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.folder import FolderComposed
from cirlab.benchmarks.folder_dialogues import FolderDialogues
from cirlab.errors import UserError
from tests.datamodules.toys import write_folder, write_jsonl

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "real" / "fashion"

ROWS: list[dict[str, Any]] = [
    {"id": "a", "rounds": ["a bag", "which colour? red"], "targets": ["images/3.jpg"]},
    {"id": 7, "rounds": ["a shoe"], "targets": ["images/1.jpg", "images/5.jpg"], "more": 1},
]


def dialogues(root: Path, rows: Any = ROWS, **options: Any) -> FolderDialogues:
    write_folder(root, split="val")
    write_jsonl(root / "val" / "dialogues.jsonl", rows)
    benchmark = FolderDialogues(str(root), "val", "own", **options)
    benchmark.setup()
    return benchmark


def test_dialogues_of_any_length_and_number_of_targets(tmp_path: Path) -> None:
    benchmark = dialogues(tmp_path, separator="; ")
    assert [(q.id, q.text, q.targets) for q in benchmark.queries] == [
        ("a#0", "a bag", ("images/3.jpg",)),
        ("a#1", "a bag; which colour? red", ("images/3.jpg",)),
        ("7#0", "a shoe", ("images/1.jpg", "images/5.jpg")),
    ]
    assert len(benchmark.gallery) == 12
    assert benchmark.gallery_id == FolderComposed(str(tmp_path), "val", "x").gallery_id


def test_the_best_target_in_the_last_round_of_each_dialogue(tmp_path: Path) -> None:
    benchmark = dialogues(tmp_path, hits_at=3, history="current")
    assert benchmark.queries[1].text == "which colour? red"
    ranks = TargetRanks(torch.tensor([[1, 0], [4, 0], [9, 2]]))
    scores = benchmark.score(ranks, benchmark.queries)
    assert scores["cumulative_hits_at_3"] == 1
    assert (scores["recall_at_3"], scores["mean_rank"]) == (0.5, 3)
    assert benchmark.breakdown(ranks, benchmark.queries, "round") == {
        "0": {"cumulative_hits_at_3": 1, "recall_at_3": 1, "mean_rank": 1.5},
        "1": {"cumulative_hits_at_3": 1, "recall_at_3": 0, "mean_rank": 4},
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"targets": ["images/77.jpg"]}, r"dialogue 'b' names images/77\.jpg in 'targets', but"),
        ({"targets": []}, r"the field 'targets' is \[\]"),
        ({"rounds": []}, r"the field 'rounds' is \[\], but must be a list of one or more"),
        ({"rounds": "a bag"}, r"the field 'rounds' is \"a bag\", but must be a list"),
        ({"rounds": ["a", ""]}, r"the field 'rounds' is "),
        ({"id": None}, r"the field 'id' is null"),
        ({"id": "a"}, r"the id 'a' stands already in .*line 1"),
    ],
)
def test_malformed_dialogues_are_told(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = [ROWS[0], {**ROWS[1], "id": "b", **change}]
    with pytest.raises(UserError, match=rf"dialogues\.jsonl, line 2: {problem}") as caught:
        dialogues(tmp_path, rows)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT has no real/fashion")
def test_dialogues_about_products() -> None:
    benchmark = FolderDialogues(str(REAL), "val", "fashion")
    benchmark.setup()
    assert len(benchmark.gallery) == 937
    assert len(benchmark.queries) == 937 * 6
    assert len({query.id for query in benchmark.queries}) == 937 * 6


def test_played_dialogues_stand_in_place_of_the_folders_own(tmp_path: Path) -> None:
    own = dialogues(tmp_path)
    name = own.gallery[1].id
    path = tmp_path / "played.json"
    path.write_text(json.dumps([{"img": name, "dialog": ["a bag", "is it red? yes"]}]))
    played = dialogues(tmp_path, played=str(path))
    assert [(query.id, query.text, query.targets) for query in played.queries] == [
        ("0#0", "a bag", (name,)),
        ("0#1", "a bag, is it red? yes", (name,)),
    ]
    path.write_text(json.dumps([{"img": "nowhere.jpg", "dialog": ["a bag"]}]))
    with pytest.raises(UserError, match=r"record 1: the image 'nowhere.jpg' is not in the gallery"):
        dialogues(tmp_path, played=str(path))
