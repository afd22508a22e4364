from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.folder import FolderComposed
from cirlab.benchmarks.folder_facets import FolderFacets
from cirlab.errors import UserError
from tests.datamodules.toys import write_folder, write_jsonl

NAMES = [f"images/{i}.jpg" for i in range(12)]
ROWS: list[dict[str, Any]] = [
    {
        "id": "colour-dark",
        "facet": "colour",
        "text": "something dark",
        "prompt": "the colour",
        "targets": NAMES[:5],
        "exclude": [NAMES[5]],
    },
    {"id": "colour-light", "facet": "colour", "text": "something light", "targets": NAMES[6:]},
    {
        "id": "number-even",
        "facet": "number",
        "text": "an even one",
        "targets": [NAMES[0], NAMES[2]],
        "candidates": NAMES[:4],
    },
]


def facets(root: Path, rows: list[dict[str, Any]]) -> FolderFacets:
    write_folder(root, split="val")
    write_jsonl(root / "val" / "facets.jsonl", rows)
    benchmark = FolderFacets(str(root), "val", "own")
    benchmark.setup()
    return benchmark


def test_queries_are_those_of_the_file(tmp_path: Path) -> None:
    benchmark = facets(tmp_path, ROWS)
    dark, light, even = benchmark.queries
    assert benchmark.kind == "text"
    assert (dark.id, dark.text, dark.prompt) == ("colour-dark", "something dark", "the colour")
    assert (dark.targets, dark.exclude, dark.candidates) == (tuple(NAMES[:5]), (NAMES[5],), None)
    assert (light.prompt, light.exclude, light.tags) == (None, (), {"facet": "colour"})
    assert even.candidates == tuple(NAMES[:4])
    assert benchmark.gallery_id == FolderComposed(str(tmp_path), "val", "other").gallery_id
    assert benchmark.protocol().exclusion == "the query's own list"


def test_facets_count_alike_whatever_their_number_of_queries(tmp_path: Path) -> None:
    benchmark = facets(tmp_path, ROWS)
    ranks = TargetRanks(
        targets=torch.tensor([[1, 2, 3, 4, 5, 0], [6, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0]])
    )
    found = benchmark.metrics(ranks, benchmark.queries)
    # By facet: colour 1/2, number 0; both within the first five or ten in part.
    assert found["recall_at_1"] == pytest.approx(1 / 3)
    assert found["macro_recall_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["recall_at_5"] == pytest.approx(2 / 3)
    assert found["macro_recall_at_5"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["macro_recall_at_10"] == 1.0
    assert set(benchmark.breakdown(ranks, benchmark.queries, "facet")) == {"colour", "number"}
    assert benchmark.metric_names() == sorted(found)


def test_precision_is_of_the_first_ten_however_many_targets_there_are(tmp_path: Path) -> None:
    benchmark = facets(tmp_path, ROWS)
    many = torch.arange(1, 301)
    few = torch.zeros(300, dtype=torch.long)
    few[:2] = torch.tensor([2, 40])
    every_other = 2 * torch.arange(1, 301)
    ranks = torch.stack([many, few, every_other])
    # All of ten right: 1. One of two targets, at 2: (1/2) / 2. Each of five is half right: 2.5/10.
    expected = (1 + 1 / 4 + 1 / 4) / 3
    assert benchmark.score(TargetRanks(ranks), ())["map_at_10"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"targets": ["images/77.jpg"]}, r"'colour-light' names images/77\.jpg in 'targets'"),
        ({"exclude": ["images/77.jpg"]}, r"'colour-light' names images/77\.jpg in 'exclude'"),
        ({"candidates": [*NAMES[6:], "x.jpg"]}, r"names x\.jpg in 'candidates'"),
        ({"candidates": NAMES[7:]}, r"lacks its target images/6\.jpg in 'candidates'"),
        ({"exclude": [NAMES[6]]}, r"images/6\.jpg is a target and excluded"),
        ({"facet": None}, "the field 'facet' is null"),
        ({"prompt": 3.5}, "the field 'prompt' is 3.5"),
        ({"targets": []}, "the field 'targets' is"),
        ({"id": "colour-dark"}, r"the id 'colour-dark' stands already in .*line 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=rf"facets\.jsonl, line 2: .*{problem}"):
        facets(tmp_path, [ROWS[0], ROWS[1] | change])


REAL = Path(os.environ.get("DATA_ROOT", "")) / "real"
needs_real = pytest.mark.skipif(
    not os.environ.get("DATA_ROOT") or not REAL.is_dir(), reason="needs DATA_ROOT/real"
)


@needs_real
@pytest.mark.parametrize(
    ("folder", "queries", "pool", "several"),
    [("fashion", 59, 937, {"articleType": 30}), ("flickr8k", 50, 1000, {"activity": 11})],
)
def test_real_facets(folder: str, queries: int, pool: int, several: dict[str, int]) -> None:
    benchmark = FolderFacets(str(REAL / folder), "val", "own")
    benchmark.setup()
    assert (len(benchmark.queries), len(benchmark.gallery)) == (queries, pool)
    counts = Counter(query.tags["facet"] for query in benchmark.queries)
    assert counts | Counter(several) == counts
    assert all(query.prompt and len(query.targets) >= 5 for query in benchmark.queries)


@needs_real
def test_real_queries_with_candidates() -> None:
    benchmark = FolderComposed(str(REAL / "fashion"), "val", "focus", file="focus.jsonl")
    benchmark.setup()
    assert len(benchmark.queries) == 1468
    assert benchmark.protocol().candidates == "own, 15"
    assert "recall_at_3" in benchmark.metric_names()
