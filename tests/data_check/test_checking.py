"""What is counted of a part, and where its images are looked for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cirlab.data_check import checking
from cirlab.data_check.checking import check
from cirlab.data_check.descriptions import DATA_SETS
from tests.benchmarks.composed_files import write_json
from tests.data_check.toy import PART, find
from tests.datamodules.toys import write_jsonl


def test_candidates_are_counted(root: Path) -> None:
    part = replace(PART, candidates=3)
    assert check(part, root).deviations == ("0 candidates of a query, but 3 are published",)
    path = root / "val" / "composed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["candidates"] = row["targets"]
    write_jsonl(path, rows)
    assert check(part, root).deviations == ()
    assert "3 candidates of a query, as published" in check(part, root).sizes


def test_sizes_nobody_published_are_only_told(root: Path) -> None:
    finding = check(replace(PART, queries=None, pool=None), root)
    assert finding.sizes == ("9 queries", "12 gallery images")
    assert finding.complete


def test_an_image_of_gallery_and_query_counts_once(root: Path) -> None:
    """A reference outside the pool counts, too."""
    gallery = root / "val" / "gallery.txt"
    gallery.write_text(gallery.read_text().replace("images/0.jpg\n", ""))
    (root / "images" / "0.jpg").unlink()
    finding = check(PART, root)
    assert (finding.images, finding.missing) == (12, ("images/0.jpg",))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ("images/{asin}.jpg", r"names 'asin'; it can use: category, name"),
        ("images/{name", r"'images/\{name' is no template"),
        ("images/1.jpg", r"'images/1.jpg' is the same for every image"),
    ],
)
def test_what_is_no_template_is_told(garments: Path, images: str, problem: str) -> None:
    for name in ("dress", "train/dress"):
        finding = check(find("fashioniq", name), garments, images=images)
        assert re.search(problem, finding.problem or "")


def test_a_template_serves_all_parts_of_a_data_set_or_none() -> None:
    """So that one option is enough."""
    for name, data in DATA_SETS.items():
        takes = {checking.template(part) is not None for part in data.parts}
        assert len(takes) == 1, name


@pytest.mark.parametrize(
    ("data", "name", "file", "row", "problem"),
    [
        (
            "genecis",
            "focus_object",
            "genecis/focus_object.json",
            {},
            "focus_object.json holds 1 queries of focus_object, but 1,960 are published; get the "
            "official file",
        ),
        (
            "coco_facet",
            "COCO_object",
            "benchmark/COCO_object_retrieval.json",
            {"qry_text": "a cat", "tgt_img_path": [1, 2]},
            "'tgt_img_path' holds 2 images, but 100 are published; get the official file",
        ),
    ],
)
def test_advice_is_what_a_check_can_do(
    tmp_path: Path, data: str, name: str, file: str, row: dict[str, Any], problem: str
) -> None:
    """It has no `official: false`."""
    write_json(tmp_path / file, [row])
    assert (check(find(data, name), tmp_path).problem or "").endswith(problem)
