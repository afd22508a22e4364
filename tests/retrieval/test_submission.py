from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Query
from cirlab.retrieval.evaluation import Ranking
from cirlab.retrieval.submission import (
    CIRR_MAX_BYTES,
    check_circo,
    check_cirr,
    cirr_name,
    coco_number,
    write_circo,
    write_cirr,
)


class Submitted(Benchmark):
    """Query i has reference i, which is excluded, and a subset of images i to i + 5.

    Args:
        submission: of the server.
        id_of: the gallery's id of an image.
    """

    kind: QueryKind = "composed"
    answered = False
    list_size = 50

    def __init__(
        self, submission: str, id_of: Callable[[int], str], images: int = 60, asked: int = 4
    ) -> None:
        self.submission = submission
        self.name = f"{submission}/test"
        self.id_of = id_of
        self.images = images
        self.count = asked

    def setup(self) -> None:
        pixels = PIL.Image.new("RGB", (4, 4))
        ids = [self.id_of(i) for i in range(self.images)]
        self.gallery = [DecodedImage(id=name, pixels=pixels) for name in ids]
        self.queries = [
            Query(
                id=str(10 + i),
                text=f"make it number {i}",
                targets=(),
                image=self.gallery[i],
                exclude=(ids[i],),
                subset=tuple(ids[i : i + 6]),
            )
            for i in range(self.count)
        ]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        raise AssertionError("answers are held back")


def plain(number: int) -> str:
    return f"test1-{number}-0-img1"


def png(number: int) -> str:
    return f"./test1/test1-{number}-0-img1.png"


def coco_file(number: int) -> str:
    return f"unlabeled2017/{number + 500:012d}.jpg"


def benchmark(kind: str, id_of: Callable[[int], str] = plain, **options: int) -> Submitted:
    made = Submitted(kind, id_of, **options)
    made.setup()
    return made


def ranking(asked: int = 4, images: int = 60, k: int = 50) -> Ranking:
    """Query i ranks images i + 1, i + 2, ... and in its subset the last first."""
    rows = torch.arange(asked)[:, None]
    listed = (rows + 1 + torch.arange(k)) % images
    subset = (rows + torch.arange(5, 0, -1)) % images
    zeros = torch.zeros(asked, dtype=torch.long)
    return Ranking(tuple(range(asked)), listed, zeros - 1, zeros, subset)


# ---- CIRR -----------------------------------------------------------------------------------


@pytest.mark.parametrize("id_of", [plain, png])
def test_cirr_files_hold_names_without_suffix(tmp_path: Path, id_of: Any) -> None:
    submitted = benchmark("cirr", id_of)
    recall, subset = write_cirr(submitted, ranking(), tmp_path / "new")
    assert recall.name == "cirr_test_recall.json"
    assert subset.name == "cirr_test_recall_subset.json"
    content = json.loads(recall.read_text())
    assert content.pop("version") == "rc2"
    assert content.pop("metric") == "recall"
    assert content == {str(10 + i): [plain(n) for n in range(i + 1, i + 51)] for i in range(4)}
    within = json.loads(subset.read_text())
    assert within.pop("version") == "rc2"
    assert within.pop("metric") == "recall_subset"
    assert within == {str(10 + i): [plain(i + n) for n in (5, 4, 3)] for i in range(4)}
    assert check_cirr(recall, submitted) == check_cirr(subset, submitted) == []
    assert sorted(p.name for p in recall.parent.iterdir()) == [recall.name, subset.name]


def test_a_test_split_of_official_size_keeps_below_the_limit(tmp_path: Path) -> None:
    """4,148 queries and names as long as the longest of test1."""
    submitted = benchmark("cirr", lambda n: f"test1-{1000 + n}-3-img0", images=2315)
    submitted.queries = [
        Query(id=str(12000 + i), text="", targets=(), subset=("test1-1000-3-img0",))
        for i in range(4148)
    ]
    recall, _ = write_cirr(submitted, ranking(4148, 2315), tmp_path)
    assert 4_000_000 < recall.stat().st_size < CIRR_MAX_BYTES
    assert check_cirr(recall, submitted) == []


def test_the_queries_of_a_ranking_are_those_it_names(tmp_path: Path) -> None:
    """Some were not ranked, since their images are broken."""
    whole = ranking()
    some = Ranking(
        (1, 3), whole.images[1::2], whole.targets[:2], whole.ranks[:2], whole.subset[1::2]
    )
    submitted = benchmark("cirr")
    recall, _ = write_cirr(submitted, some, tmp_path)
    content = json.loads(recall.read_text())
    assert set(content) == {"version", "metric", "11", "13"}
    assert content["13"][0] == plain(4)
    assert check_cirr(recall, submitted) == ["query 10 is missing", "query 12 is missing"]


def test_places_without_image_are_left_out_and_told(tmp_path: Path) -> None:
    short = ranking()
    short.images[2, 47:] = -1
    recall, _ = write_cirr(benchmark("cirr"), short, tmp_path)
    assert check_cirr(recall, benchmark("cirr")) == ["query 12 has 47 images, must have 50"]


def test_more_images_than_asked_for_are_cut(tmp_path: Path) -> None:
    recall, _ = write_cirr(benchmark("cirr"), ranking(k=58), tmp_path)
    assert check_cirr(recall, benchmark("cirr")) == []


def test_rankings_that_are_too_short_are_told(tmp_path: Path) -> None:
    recall, _ = write_cirr(benchmark("cirr"), ranking(k=10), tmp_path)
    assert check_cirr(recall, benchmark("cirr")) == [
        f"query {query} has 10 images, must have 50" for query in range(10, 14)
    ]


def test_rankings_without_subsets_are_refused(tmp_path: Path) -> None:
    whole = ranking()
    without = Ranking(whole.queries, whole.images, whole.targets, whole.ranks)
    with pytest.raises(UserError, match="'cirr/test' has no subsets"):
        write_cirr(benchmark("cirr"), without, tmp_path)
    assert list(tmp_path.iterdir()) == []


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def put(query: str, place: int, name: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[query][place] = name

    return change


CIRR_FAULTS = [
    (lambda c: c.pop("11"), ["query 11 is missing"]),
    (lambda c: c.update({"99": []}), ["'99' is no query of cirr/test"]),
    (lambda c: c["10"].pop(), ["query 10 has {short} images, must have {size}"]),
    (lambda c: c.update({"10": "x"}), ["query 10 has 'x', must have a list"]),
    (put("10", 1, 7), ["query 10 names 7, which is no str"]),
    (put("10", 1, None), ["query 10 names None, which is no str"]),
    (put("10", 1, "dev-0"), ["query 10 names dev-0, which is not in the gallery"]),
    (
        put("10", 1, "test1-2-0-img1.png"),
        ["query 10 names test1-2-0-img1.png, which is not in the gallery"],
    ),
    (put("10", 1, plain(0)), ["query 10 names its reference test1-0-0-img1"]),
    (lambda c: c.update(version="rc1"), ["version is 'rc1', must be 'rc2'"]),
    (lambda c: c.pop("version"), ["version is None, must be 'rc2'"]),
    (lambda c: c.update(metric="r"), ["metric is 'r', must be 'recall' or 'recall_subset'"]),
    (lambda c: c.update(metric=[]), ["metric is [], must be 'recall' or 'recall_subset'"]),
]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("change", "expected"), CIRR_FAULTS)
def test_every_violation_of_cirr_is_named(
    tmp_path: Path, which: int, change: Any, expected: list[str]
) -> None:
    submitted = benchmark("cirr")
    path = write_cirr(submitted, ranking(), tmp_path)[which]
    size = (50, 3)[which]
    expected = [text.format(short=size - 1, size=size) for text in expected]
    assert check_cirr(edited(path, change), submitted) == expected


def test_repeated_images_are_named(tmp_path: Path) -> None:
    submitted = benchmark("cirr")
    path = write_cirr(submitted, ranking(), tmp_path)[0]
    edited(path, put("12", 4, plain(3)))
    assert check_cirr(path, submitted) == ["query 12 names test1-3-0-img1 2 times"]


def test_images_outside_the_subset_are_named_in_that_file_only(tmp_path: Path) -> None:
    submitted = benchmark("cirr")
    recall, subset = write_cirr(submitted, ranking(), tmp_path)
    edited(recall, put("10", 49, plain(59)))
    edited(subset, put("10", 2, plain(59)))
    assert check_cirr(recall, submitted) == []
    assert check_cirr(subset, submitted) == [
        "query 10 names test1-59-0-img1, which is not in its subset"
    ]


def test_the_files_of_the_two_metrics_cannot_be_exchanged(tmp_path: Path) -> None:
    submitted = benchmark("cirr")
    recall, _ = write_cirr(submitted, ranking(), tmp_path)
    edited(recall, lambda c: c.update(metric="recall_subset"))
    found = check_cirr(recall, submitted)
    assert "query 10 has 50 images, must have 3" in found


def test_a_file_above_the_limit_is_named(tmp_path: Path) -> None:
    submitted = benchmark("cirr")
    path = write_cirr(submitted, ranking(), tmp_path)[0]
    path.write_text(path.read_text() + " " * CIRR_MAX_BYTES)
    (found,) = check_cirr(path, submitted)
    assert found.startswith("the file has 5,00") and found.endswith("takes 5,000,000 at most")


def test_all_violations_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    submitted = benchmark("cirr")
    path = write_cirr(submitted, ranking(), tmp_path)[0]
    for change, _ in CIRR_FAULTS[:2]:
        edited(path, change)
    edited(path, put("12", 3, "nowhere"))
    edited(path, put("13", 3, "nowhere"))
    edited(path, lambda c: c["13"].append("nowhere"))
    edited(path, lambda c: c.update(version=2))
    assert check_cirr(path, submitted) == [
        "version is 2, must be 'rc2'",
        "query 11 is missing",
        "'99' is no query of cirr/test",
        "query 12 names nowhere, which is not in the gallery",
        "query 13 has 51 images, must have 50",
        "query 13 names nowhere 2 times",
        "query 13 names nowhere, which is not in the gallery",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "the file is not valid JSON"),
        ("[]", "the file holds a list, must be one object"),
        ('{"version": "rc2", "version": "rc2"}', "'version' stands 2 times"),
    ],
)
def test_what_is_no_object_is_told(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    for check in (check_cirr, check_circo):
        assert check(path, benchmark("cirr", coco_file))[0].startswith(problem)
        with pytest.raises(UserError, match="there is no submission file"):
            check(tmp_path / "none.json", benchmark("cirr", coco_file))


# ---- CIRCO ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id_of", [coco_file, lambda n: str(n + 500), lambda n: f"{n + 500:012d}.jpg"]
)
def test_circo_files_hold_coco_ids(tmp_path: Path, id_of: Any) -> None:
    submitted = benchmark("circo", id_of)
    (path,) = write_circo(submitted, ranking(), tmp_path)
    assert path.name == "circo_test.json"
    expected = {str(10 + i): list(range(501 + i, 551 + i)) for i in range(4)}
    assert json.loads(path.read_text()) == expected
    assert check_circo(path, submitted) == []


CIRCO_FAULTS = [
    (lambda c: c.pop("10"), ["query 10 is missing"]),
    (lambda c: c.update({"0": []}), ["'0' is no query of circo/test"]),
    (lambda c: c["13"].append(559), ["query 13 has 51 images, must have 50"]),
    (put("13", 0, "000000000504"), ["query 13 names '000000000504', which is no int"]),
    (put("13", 0, 504.0), ["query 13 names 504.0, which is no int"]),
    (put("13", 0, True), ["query 13 names True, which is no int"]),
    (put("13", 0, 499), ["query 13 names 499, which is not in the gallery"]),
    (put("13", 0, 505), ["query 13 names 505 2 times"]),
    (put("13", 0, 503), []),  # the reference: CIRCO's gallery keeps it
    (lambda c: c.update(version="rc2"), ["'version' is no query of circo/test"]),
]


@pytest.mark.parametrize(("change", "expected"), CIRCO_FAULTS)
def test_every_violation_of_circo_is_named(
    tmp_path: Path, change: Any, expected: list[str]
) -> None:
    submitted = benchmark("circo", coco_file)
    (path,) = write_circo(submitted, ranking(), tmp_path)
    assert check_circo(edited(path, change), submitted) == expected


def test_names_without_a_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'b\.jpg' has no COCO id"):
        write_circo(benchmark("circo", lambda n: "abc"[n % 3] + ".jpg"), ranking(), tmp_path)


def test_names_are_converted_as_the_servers_know_them() -> None:
    assert cirr_name("./train/34/train-11041-2-img0.png") == "train-11041-2-img0"
    assert cirr_name("dev-244-0-img0") == "dev-244-0-img0"
    assert coco_number("val2014/COCO_val2014_000000000042.jpg") == 42
    assert coco_number("000000000007") == 7
