from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.folder import FolderComposed, FolderImageToText, FolderTextToImage
from cirlab.errors import UserError
from cirlab.records import Caption
from tests.datamodules.toys import write_folder, write_jsonl


def composed(root: Path, **options: Any) -> FolderComposed:
    benchmark = FolderComposed(str(root), "val", "own", **options)
    benchmark.setup()
    return benchmark


def text_to_image(root: Path, **options: Any) -> FolderTextToImage:
    benchmark = FolderTextToImage(str(root), "val", "own", **options)
    benchmark.setup()
    return benchmark


def rewrite(root: Path, line: int, **fields: Any) -> None:
    """Change fields of one line of composed.jsonl."""
    path = root / "val" / "composed.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line - 1].update(fields)
    write_jsonl(path, rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path, split="val")
    return tmp_path


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"images/{i}.jpg" for i in numbers)


def test_composed_queries_are_those_of_the_file(root: Path) -> None:
    rewrite(root, 2, exclude=list(names(9)), candidates=list(names(2, 3, 4, 8)))
    benchmark = composed(root)
    assert tuple(image.id for image in benchmark.gallery) == names(*range(12))
    assert len(benchmark.queries) == 9
    query = benchmark.queries[1]
    assert (query.id, query.text, query.targets) == ("q1", "brighter than 1", names(2, 3, 4))
    assert query.image is not None
    assert query.image.id == "images/1.jpg"
    assert query.image.load().size == (8, 8)
    assert query.exclude == names(9, 1)
    assert query.candidates == names(2, 3, 4, 8)
    assert query.tags == {"category": "odd"}
    assert benchmark.queries[0].candidates is None


def test_the_reference_is_excluded_on_request_only(root: Path) -> None:
    excluded, kept = composed(root), composed(root, exclude_reference=False)
    assert [query.exclude for query in excluded.queries] == [names(i) for i in range(9)]
    assert [query.exclude for query in kept.queries] == [()] * 9
    first, second = excluded.protocol(), kept.protocol()
    assert first.exclusion != second.exclusion
    assert first.annotations != second.annotations
    assert (first.pool_size, first.queries) == (12, 9)


def test_a_reference_outside_the_pool_needs_no_exclusion(root: Path) -> None:
    gallery = root / "val" / "gallery.txt"
    gallery.write_text("\n".join(names(*range(1, 12))))
    benchmark = composed(root)
    assert benchmark.queries[0].exclude == ()
    assert benchmark.queries[1].exclude == names(1)


def test_a_reference_that_is_its_own_target(root: Path) -> None:
    rewrite(root, 3, targets=list(names(2, 3)))
    with pytest.raises(UserError, match=r"line 3: query 'q2' has its reference images/2\.jpg as"):
        composed(root)
    assert composed(root, exclude_reference=False).queries[2].targets == names(2, 3)


def test_several_texts_are_asked_together(root: Path) -> None:
    rewrite(root, 1, texts=["longer sleeves", "in red"])
    assert composed(root).queries[0].text == "longer sleeves, in red"


@pytest.mark.parametrize("field", ["targets", "exclude", "candidates"])
def test_what_is_not_in_the_gallery_is_named(root: Path, field: str) -> None:
    rewrite(root, 4, **{field: ["images/4.jpg", "images/77.jpg"]})
    pattern = rf"composed\.jsonl, line 4: query 'q3' names images/77\.jpg in '{field}'"
    if field == "exclude":
        rewrite(root, 4, targets=list(names(5)))
    with pytest.raises(UserError, match=pattern):
        composed(root)


def test_candidates_must_hold_the_targets(root: Path) -> None:
    rewrite(root, 1, candidates=list(names(1, 2, 9)))
    with pytest.raises(UserError, match=r"line 1: query 'q0' lacks its target images/3\.jpg"):
        composed(root)


def test_queries_with_few_candidates_in_a_file_of_their_own(root: Path) -> None:
    rows = [
        {
            "id": f"f{i}",
            "reference": names(i)[0],
            "text": "same colour",
            "targets": names(i + 1),
            "candidates": names(i + 1, i + 2, i + 3),
            "category": "focus",
        }
        for i in range(3)
    ]
    write_jsonl(root / "val" / "focus.jsonl", rows)
    benchmark = composed(root, file="focus.jsonl")
    assert [query.id for query in benchmark.queries] == ["f0", "f1", "f2"]
    assert benchmark.protocol().candidates == "own, 3"
    assert benchmark.gallery_id == composed(root).gallery_id
    ranks = TargetRanks(targets=torch.tensor([[1], [2], [3]]))
    assert benchmark.metrics(ranks, benchmark.queries) == {
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": pytest.approx(2 / 3),
        "recall_at_3": 1.0,
        "map_at_5": pytest.approx((1 + 1 / 2 + 1 / 3) / 3),
    }
    with pytest.raises(UserError, match=r"there is no file .*change\.jsonl"):
        composed(root, file="change.jsonl")


def test_query_ids_must_differ(root: Path) -> None:
    rewrite(root, 5, id="q1")
    with pytest.raises(UserError, match=r"line 5: the id 'q1' stands already in .*line 2"):
        composed(root)


@pytest.mark.parametrize("captions", ["all", "first"])
def test_text_queries_are_the_captions(root: Path, captions: str) -> None:
    benchmark = text_to_image(root, captions=captions)
    kinds = "ab" if captions == "all" else "a"
    expected = [
        (f"{name}#{n}", f"{name} {kind}", (name,))
        for name in names(*range(12))
        for n, kind in enumerate(kinds)
    ]
    assert [(q.id, q.text, q.targets) for q in benchmark.queries] == expected
    assert all(query.image is None for query in benchmark.queries)


def test_an_image_on_two_lines_still_has_different_query_ids(root: Path) -> None:
    path = root / "val" / "pairs.jsonl"
    path.write_text(path.read_text() + '{"image": "images/0.jpg", "captions": ["again"]}\n')
    ids = [query.id for query in text_to_image(root).queries]
    assert len(ids) == len(set(ids)) == 25


def test_a_captioned_image_outside_the_gallery_is_named(root: Path) -> None:
    (root / "val" / "gallery.txt").write_text("\n".join(names(*range(11))))
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 12: images/11\.jpg is not in gallery"):
        text_to_image(root)


def test_images_look_for_their_captions(root: Path) -> None:
    path = root / "val" / "pairs.jsonl"
    path.write_text(path.read_text() + '{"image": "images/0.jpg", "captions": ["again"]}\n')
    benchmark = FolderImageToText(str(root), "val", "own")
    benchmark.setup()
    assert [query.id for query in benchmark.queries] == list(names(*range(12)))
    first = benchmark.queries[0]
    assert first.image is not None and first.image.load().size == (8, 8)
    assert (first.text, first.targets) == ("", tuple(f"images/0.jpg#{n}" for n in range(3)))
    assert len(benchmark.gallery) == 25
    assert benchmark.gallery[2] == Caption(id="images/0.jpg#2", text="again")
    assert benchmark.gallery_id != text_to_image(root).gallery_id
    ranks = TargetRanks(targets=torch.tensor([[9, 2, 0], [6, 12, 30]]))
    assert benchmark.score(ranks, ()) == {
        "recall_at_1": 0.0,
        "recall_at_5": 0.5,
        "recall_at_10": 1.0,
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"there is no gallery .*gallery\.txt"),
        ("", r"the gallery .*gallery\.txt is empty"),
        (" \n\n", r"the gallery .*gallery\.txt is empty"),
        ("a.jpg\n\nb.jpg\na.jpg\n", r"gallery\.txt, line 4: a\.jpg stands already in line 1"),
        ("café.jpg\n", r"gallery\.txt is not UTF-8 .*0xe9.*; convert it"),
    ],
)
def test_an_unusable_gallery_is_refused(root: Path, content: str | None, problem: str) -> None:
    path = root / "val" / "gallery.txt"
    path.unlink() if content is None else path.write_text(content, encoding="latin-1")
    for make in (composed, text_to_image):
        with pytest.raises(UserError, match=problem):
            make(root)


def test_benchmarks_of_one_split_share_a_gallery_and_others_do_not(tmp_path: Path) -> None:
    ids = set()
    for parent in "ab":
        for split in ("val", "test"):
            write_folder(tmp_path / parent / "photos", split=split)
            both = [
                kind(str(tmp_path / parent / "photos"), split, "x")
                for kind in (FolderComposed, FolderTextToImage)
            ]
            assert both[0].gallery_id == both[1].gallery_id
            ids.add(both[0].gallery_id)
    assert len(ids) == 4


def test_a_benchmark_is_cheap_until_it_is_set_up() -> None:
    benchmark = FolderComposed("", "val", "own")
    assert pickle.loads(pickle.dumps(benchmark)).name == "own"
    with pytest.raises(UserError, match="the data root is empty"):
        benchmark.setup()


def test_scores_come_from_ranks(root: Path) -> None:
    ranks = TargetRanks(targets=torch.tensor([[1, 0], [6, 3], [80, 11]]))
    scores = composed(root).score(ranks, ())
    assert scores["recall_at_1"] == pytest.approx(1 / 3)
    assert scores["recall_at_5"] == scores["recall_at_10"] == pytest.approx(2 / 3)
    assert scores["recall_at_50"] == 1.0
    assert scores["map_at_5"] == pytest.approx((1 + (1 / 3) / 2) / 3)
    assert text_to_image(root).score(ranks, ())["recall_at_5"] == pytest.approx(2 / 3)
