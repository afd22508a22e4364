from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.circo import CIRCO, IMAGE_INFO, CIRCORules
from cirlab.errors import UserError
from cirlab.retrieval.submission import check_circo, write_circo
from tests.benchmarks.encoders import constant, ranking, write_json
from tests.datamodules.toys import jpeg

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks" / "circo"

ROWS: list[dict[str, Any]] = [
    {
        "reference_img_id": 7,
        "target_img_id": 12,
        "relative_caption": "is made of glass",
        "shared_concept": "a green bottle",
        "gt_img_ids": [12, 3, 40],
        "id": 0,
        "semantic_aspects": ["negation", "addition"],
    },
    {
        "reference_img_id": 8,
        "target_img_id": 30,
        "relative_caption": "has two of them",
        "shared_concept": "a kite",
        "gt_img_ids": [30],
        "id": 1,
        "semantic_aspects": ["cardinality", "addition"],
    },
]


def write(root: Path, images: int = 60, split: str = "val", **changes: Any) -> Path:
    """Two queries and a pool of images 0, 1, ...; changes are fields of the first query."""
    rows = [{**ROWS[0], **changes}, ROWS[1]]
    if split == "test":
        answers = ("target_img_id", "gt_img_ids", "semantic_aspects")
        rows = [{k: v for k, v in row.items() if k not in answers} for row in rows]
    write_json(root / "annotations" / f"{split}.json", rows)
    listed = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 4} for i in range(images)]
    write_json(root / IMAGE_INFO, {"info": {"images": []}, "images": listed, "licenses": []})
    return root


def circo(root: Path, split: Any = "val", **options: Any) -> CIRCO:
    benchmark = CIRCO(str(root), split, **{"official": False, **options})
    benchmark.setup()
    return benchmark


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:012d}.jpg" for number in numbers)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path)


# ---- rules ----------------------------------------------------------------------------------


def test_map_with_several_targets_by_hand() -> None:
    """Three targets of which the principal comes last; seven targets, more than k = 5."""
    ranks = torch.tensor([[7, 1, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 30, 60]])
    found = CIRCORules.score(CIRCO("", "val"), TargetRanks(ranks), ())
    first = {5: (1 + 2 / 3) / 3, 10: (1 + 2 / 3 + 3 / 7) / 3}
    first |= {25: first[10], 50: first[10]}
    second = {5: 5 / 5, 10: 5 / 7, 25: 5 / 7, 50: (5 + 6 / 30) / 7}
    for k in (5, 10, 25, 50):
        assert found[f"map_at_{k}"] == pytest.approx((first[k] + second[k]) / 2)
    assert [found[f"recall_at_{k}"] for k in (5, 10, 25, 50)] == [0.5, 1, 1, 1]
    assert len(found) == 8


def test_a_ranking_is_scored_with_its_breakdown(root: Path) -> None:
    lists = [names(3, 9, 12, 1), names(2, 30)]
    results = ranking(circo(root), lambda row: lists[row]).results
    # Query 0: targets at 1 and 3, the third after all; query 1: its only target at 2.
    first, second = (1 + 2 / 3) / 3, 1 / 2
    assert results["metrics"]["map_at_5"] == pytest.approx((first + second) / 2)
    assert results["metrics"]["recall_at_5"] == 1
    by_aspect = {k: v["map_at_5"] for k, v in results["breakdown"]["aspect"].items()}
    expected = {"negation": first, "cardinality": second, "addition": (first + second) / 2}
    assert by_aspect == pytest.approx(expected)


def test_a_collapsed_encoder_finds_nothing(root: Path) -> None:
    assert set(constant(circo(root)).results["metrics"].values()) == {0.0}


def test_nan_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        constant(circo(root), float("nan"))


# ---- what is read ---------------------------------------------------------------------------


def test_queries_and_pool_are_those_of_the_files(root: Path) -> None:
    benchmark = circo(root)
    assert [image.id for image in benchmark.gallery] == list(names(*range(60)))
    query = benchmark.queries[0]
    assert (query.id, query.text) == ("0", "is made of glass")
    assert query.targets == names(12, 3, 40)
    assert (query.exclude, query.candidates) == ((), None)
    assert query.tags == {"aspect": "negation+addition"}
    folder = root / "COCO2017_unlabeled" / "unlabeled2017"
    folder.mkdir()
    (folder / names(7)[0]).write_bytes(jpeg(1))
    assert query.image is not None
    assert query.image.load().size == (8, 8)
    assert benchmark.name == "circo_val"
    assert benchmark.answered and benchmark.submission is None


def test_images_may_lie_elsewhere(root: Path) -> None:
    first, second = circo(root), circo(root, images="coco/{id}.jpg")
    assert vars(second.gallery[3])["path"] == root / "coco" / "3.jpg"
    assert first.protocol() == second.protocol()
    assert first.gallery_id != second.gallery_id


def test_both_splits_share_the_pool(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, split="test")
    assert circo(tmp_path).gallery_id == circo(tmp_path, "test").gallery_id


def test_the_reference_is_excluded_on_request_only(root: Path) -> None:
    kept, excluded = circo(root), circo(root, exclude_reference=True)
    assert [query.exclude for query in excluded.queries] == [names(7), names(8)]
    assert kept.protocol().exclusion == "none"
    assert excluded.protocol().exclusion == "the reference image"

    def lists(row: int) -> tuple[str, ...]:
        return [names(7, 12, 3, 40), names(8, 30)][row]

    assert ranking(excluded, lists).results["metrics"]["map_at_5"] == 1
    assert ranking(kept, lists).results["metrics"]["map_at_5"] < 1


@pytest.mark.parametrize(
    ("query", "text", "told"),
    [
        ("relative", "is made of glass", "relative: {relative_caption}"),
        (
            "magiclens",
            "find a green bottle but is made of glass",
            "magiclens: find {shared_concept} but {relative_caption}",
        ),
        (
            "megapairs",
            "Find a picture that also a green bottle, but is made of glass.",
            "megapairs: Find a picture that also {shared_concept}, but {relative_caption}.",
        ),
        ("{shared_concept}!", "a green bottle!", "{shared_concept}!"),
    ],
)
def test_the_text_follows_the_template(root: Path, query: str, text: str, told: str) -> None:
    benchmark = circo(root, query=query)
    assert benchmark.queries[0].text == text
    assert benchmark.protocol().query_template == told


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("magiclense", r"is the same for every query; use one of: relative, magiclens, megapairs"),
        ("find {caption}", r"is no template \('caption'\)"),
        ("find {relative_caption", "is no template"),
        ("find {}", "is no template"),
        ("{relative_caption:d}", "is no template"),
        ("{relative_caption.x}", "is no template"),
    ],
)
def test_what_is_no_template_is_refused_at_once(query: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        CIRCO("", "val", query=query)


def test_a_split_that_is_not_there_is_refused_at_once() -> None:
    split: Any = "train"
    with pytest.raises(UserError, match="split of CIRCO is 'train'; use one of: val, test"):
        CIRCO("", split)


def test_a_benchmark_is_cheap_until_it_is_set_up() -> None:
    benchmark = CIRCO("", "test")
    assert pickle.loads(pickle.dumps(benchmark)).name == "circo_test"
    with pytest.raises(UserError, match="the data root is empty"):
        benchmark.setup()


# ---- test -----------------------------------------------------------------------------------


def test_the_test_split_is_ranked_for_its_server(tmp_path: Path) -> None:
    benchmark = circo(write(tmp_path, split="test"), "test")
    assert (benchmark.answered, benchmark.submission, benchmark.list_size) == (False, "circo", 50)
    assert benchmark.metric_names() == []
    evaluation = ranking(benchmark, lambda row: names(*range(59, 9, -1)))
    assert evaluation.results["metrics"] == {}
    (path,) = write_circo(benchmark, evaluation.ranking, tmp_path)
    assert check_circo(path, benchmark) == []
    assert json.loads(path.read_text())["1"] == list(range(59, 9, -1))


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gt_img_ids": [3, 12]}, "'gt_img_ids' begins with 3, but must begin with .*, 12"),
        ({"gt_img_ids": [12, 3, 3]}, "'gt_img_ids' names an image twice"),
        ({"gt_img_ids": [12, 7]}, "the reference 7 stands among 'gt_img_ids'"),
        ({"gt_img_ids": [12, 99]}, "'gt_img_ids' names the image 99, which is not among the 60"),
        ({"gt_img_ids": []}, "'gt_img_ids' is \\[\\], but must be a list of one or more whole"),
        ({"reference_img_id": 60}, "'reference_img_id' names the image 60, which is not among"),
        ({"reference_img_id": "7"}, "'reference_img_id' is \"7\", but must be a whole number"),
        ({"reference_img_id": True}, "'reference_img_id' is true, but must be a whole number"),
        ({"relative_caption": " "}, "'relative_caption' is \" \", but must be a non-empty string"),
    ],
)
def test_rows_that_break_a_rule_are_named(tmp_path: Path, changes: Any, problem: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"val\.json, record 1: .*{problem}"):
        circo(tmp_path)


def test_ids_must_differ(tmp_path: Path) -> None:
    write(tmp_path, id=1)
    with pytest.raises(UserError, match=r"record 2: the id 1 stands already in .*record 1"):
        circo(tmp_path)


def test_an_image_that_is_listed_twice(root: Path) -> None:
    write_json(root / IMAGE_INFO, {"images": [{"id": 4}, {"id": 5}, {"id": 4}]})
    with pytest.raises(
        UserError, match=r"images\.record 3: the image 4 stands already in .*record"
    ):
        circo(root)


@pytest.mark.parametrize("file", ["annotations/val.json", IMAGE_INFO])
def test_files_that_are_cut_off_or_missing(root: Path, file: str) -> None:
    path = root / file
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=rf"{path.name} is not a whole JSON document"):
        circo(root)
    path.unlink()
    with pytest.raises(UserError, match=rf"there is no file .*{path.name}"):
        circo(root)


def test_another_number_of_queries_is_not_official(root: Path) -> None:
    with pytest.raises(UserError, match=r"holds 2 queries of CIRCO's val, but 220 are published"):
        circo(root, official=True)


# ---- the official files ---------------------------------------------------------------------


def rows_of(split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((REAL / "annotations" / f"{split}.json").read_text())
    return found


def official(folder: Path, split: str) -> CIRCO:
    """The official queries over a pool of the images that they name."""
    rows = rows_of(split)
    named = {
        number for row in rows for number in (row["reference_img_id"], *row.get("gt_img_ids", []))
    }
    write_json(folder / "annotations" / f"{split}.json", rows)
    write_json(folder / IMAGE_INFO, {"images": [{"id": number} for number in sorted(named)]})
    return circo(folder, split, official=True)


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/circo")
def test_the_official_queries(tmp_path: Path) -> None:
    val = official(tmp_path / "val", "val")
    targets = Counter(len(query.targets) for query in val.queries)
    assert (len(val.queries), min(targets), max(targets)) == (220, 1, 14)
    assert sum(size * count for size, count in targets.items()) / 220 == pytest.approx(
        4.16, abs=5e-3
    )
    aspects = {aspect for query in val.queries for aspect in query.tags["aspect"].split("+")}
    assert len(aspects) == 9
    test = official(tmp_path / "test", "test")
    assert [query.id for query in test.queries] == [str(i) for i in range(800)]


SAMPLE = REAL / "submission_examples" / "submission_val.json"


@pytest.mark.skipif(not SAMPLE.is_file(), reason="DATA_ROOT holds no sample submission of CIRCO")
def test_the_sample_submission_has_the_published_scores(tmp_path: Path) -> None:
    """As the authors' evaluation prints them: in percent, with two digits."""
    lists = json.loads(SAMPLE.read_text())
    benchmark = official(tmp_path, "val")
    ranks = torch.zeros(220, 14, dtype=torch.long)
    for row, query in enumerate(benchmark.queries):
        places = {name: place for place, name in enumerate(names(*lists[query.id]), start=1)}
        for column, target in enumerate(query.targets):
            ranks[row, column] = places.get(target, 51 + column)
    found = benchmark.score(TargetRanks(ranks), benchmark.queries)
    printed = {
        name: [f"{100 * found[f'{name}_at_{k}']:.2f}" for k in (5, 10, 25, 50)]
        for name in ("map", "recall")
    }
    assert printed == {
        "map": ["0.49", "0.52", "0.54", "0.60"],
        "recall": ["0.91", "0.91", "1.36", "3.64"],
    }
