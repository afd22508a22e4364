from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.cirr import CIRR, HEADLINE, PUBLISHED, Published
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import Encoded, Evaluation, Gallery, evaluate
from cirlab.retrieval.submission import check_cirr
from cirlab.retrieval.submission import write_cirr as write_submission
from tests.benchmarks.composed_files import CIRR_ROWS, cirr_name, cirr_row, write_cirr, write_json

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks" / "cirr"


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(map(cirr_name, numbers))


def cirr(root: Path, split: Any = "val", **options: Any) -> CIRR:
    benchmark = CIRR(str(root), split, **{"official": False, **options})
    benchmark.setup()
    return benchmark


def encoded(name: str, degrees: list[float]) -> Encoded:
    """Unit vectors in the plane."""
    angles = torch.deg2rad(torch.tensor(degrees))
    vectors = torch.stack((angles.cos(), angles.sin()), dim=1)
    return Encoded({name: vectors}, torch.ones(len(degrees), dtype=torch.bool))


def evaluated(benchmark: CIRR, queries: list[float]) -> Evaluation:
    """Image n stands at n * 10 degrees."""
    images = encoded("gallery", [10.0 * n for n in range(len(benchmark.gallery))])
    return evaluate(benchmark, Gallery(benchmark.gallery, images), encoded("query", queries))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cirr(tmp_path)


# ---- rules ----------------------------------------------------------------------------------


def test_recall_by_hand(root: Path) -> None:
    """See CIRR_ROWS: ranks 2, 6 and 5 in the pool, and 1, 3 and 2 in the subsets."""
    found = evaluated(cirr(root), [0.0, 90.0, 0.0]).results["metrics"]
    assert found == pytest.approx(
        {
            "recall_at_1": 0,
            "recall_at_5": 2 / 3,
            "recall_at_10": 1,
            "recall_at_50": 1,
            "subset_recall_at_1": 1 / 3,
            "subset_recall_at_2": 2 / 3,
            "subset_recall_at_3": 1,
            HEADLINE: (2 / 3 + 1 / 3) / 2,
        }
    )


def test_a_reference_that_stayed_in_the_pool_would_cost_a_rank(root: Path) -> None:
    """It comes first of all three: the ranks would be 3, 7 and 6."""
    benchmark = cirr(root)
    benchmark.queries = [replace(query, exclude=()) for query in benchmark.queries]
    found = evaluated(benchmark, [0.0, 90.0, 0.0]).results["metrics"]
    assert found["recall_at_5"] == pytest.approx(1 / 3)
    assert found["subset_recall_at_1"] == pytest.approx(1 / 3), "the subset never holds it"


def test_the_protocol_says_what_was_removed(root: Path) -> None:
    protocol = cirr(root).protocol()
    assert (protocol.pool_size, protocol.queries) == (9, 3)
    assert protocol.exclusion == "the reference image"
    assert protocol.benchmark == "cirr_val"


# ---- reading --------------------------------------------------------------------------------


def test_queries_are_those_of_the_file(root: Path) -> None:
    benchmark = cirr(root)
    assert [image.id for image in benchmark.gallery] == list(names(*range(9)))
    query = benchmark.queries[1]
    assert (query.id, query.text) == ("2", "make it look like 2")
    assert query.image == benchmark.gallery[8]
    assert query.image.load().getpixel((0, 0)) == (80, 80, 80)
    assert query.targets == names(2)
    assert query.exclude == names(8)
    assert query.subset == names(7, 5, 2, 1, 0)
    assert query.candidates is None


def test_the_pool_is_the_list_and_not_the_folder(root: Path) -> None:
    """NLVR2's folder holds thousands of images that are not CIRR's."""
    (root / "img_raw" / "dev" / "dev-99-0-img0.png").write_bytes(b"")
    assert len(cirr(root).gallery) == 9


def test_images_may_lie_elsewhere(root: Path) -> None:
    paths = {
        template: str(cirr(root, images=template).gallery[3].path.relative_to(root))
        for template in ("img_raw/{path}", "flat/{name}.jpg", "{split}/{path}")
    }
    assert paths == {
        "img_raw/{path}": "img_raw/dev/dev-3-0-img0.png",
        "flat/{name}.jpg": "flat/dev-3-0-img0.jpg",
        "{split}/{path}": "val/dev/dev-3-0-img0.png",
    }


def test_a_benchmark_is_cheap_until_it_is_set_up_and_repeats_itself(root: Path) -> None:
    benchmark = pickle.loads(pickle.dumps(CIRR(str(root), "val", official=False)))
    benchmark.setup()
    first = benchmark.checksum()
    benchmark.setup()
    assert (len(benchmark.queries), benchmark.checksum()) == (3, first)


def test_other_queries_of_the_same_pool(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refined CIRR: fewer queries in other words, the same pool and the same encoding of it."""
    refined = copy.deepcopy(CIRR_ROWS[:2])
    refined[0]["caption"] = "in other words"
    write_json(root / "captions" / "refined.json", refined)
    original = cirr(root)
    with caplog.at_level("INFO"):
        benchmark = cirr(root, captions="captions/refined.json")
    assert benchmark.queries[0].text == "in other words"
    assert benchmark.name == "cirr_val_refined"
    assert benchmark.gallery_id == original.gallery_id
    assert benchmark.protocol().annotations != original.protocol().annotations
    assert "refined.json: 2 queries, the original has 4,181" in caplog.text
    absolute = cirr(root, captions=str(root / "captions" / "refined.json"), name="mine")
    assert (absolute.name, len(absolute.queries)) == ("mine", 2)


def test_galleries_of_other_folders_or_splits_are_others(root: Path, tmp_path: Path) -> None:
    write_cirr(tmp_path / "other")
    ids = {
        CIRR(str(path), split).gallery_id
        for path in (root, tmp_path / "other")
        for split in ("val", "test1")
    }
    assert len(ids) == 4


def test_a_query_without_words_is_kept(root: Path) -> None:
    """One query of test1 has none, but the server wants its ranking."""
    rows = copy.deepcopy(CIRR_ROWS)
    rows[1]["caption"] = " "
    assert cirr(write_cirr(root, rows)).queries[1].text == ""


# ---- the server's split ---------------------------------------------------------------------


def test_test1_is_ranked_for_the_server(tmp_path: Path) -> None:
    rows = [cirr_row(7, 0, None, (0, 1, 2, 3, 4, 5)), cirr_row(8, 5, None, (5, 1, 2, 3, 4, 0))]
    benchmark = cirr(write_cirr(tmp_path, rows, split="test1", images=60), "test1")
    assert (benchmark.name, benchmark.submission, benchmark.answered) == (
        "cirr_test1",
        "cirr",
        False,
    )
    assert benchmark.metric_names() == []
    found = evaluated(benchmark, [0.0, 590.0 - 360.0])
    assert found.results["metrics"] == {}
    files = write_submission(benchmark, found.ranking, tmp_path / "submission")
    assert [check_cirr(path, benchmark) for path in files] == [[], []]
    recall, subset = (json.loads(path.read_text()) for path in files)
    assert recall["7"][0] != cirr_name(0) and len(recall["7"]) == 50
    assert subset["7"] == list(names(1, 2, 3))


def test_val_writes_no_submission() -> None:
    assert CIRR("", "val").submission is None


# ---- refusals -------------------------------------------------------------------------------


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(fields)


def members(*numbers: int) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["img_set"].update(members=list(names(*numbers)))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (change(reference="dev-4-0-img0"), r"the reference dev-4-0-img0 is not among the members"),
        (change(target_hard="dev-4-0-img0"), r"the target_hard dev-4-0-img0 is not among the mem"),
        (change(target_hard="dev-8-0-img0"), r"dev-8-0-img0 is both reference and target_hard"),
        (change(pairid=1), r"the pairid 1 stands already in .*val\.json, record 1"),
        (members(8, 2, 5, 6, 7, 77), r"dev-77-0-img0 is not in the split's pool"),
        (members(8, 2, 5, 5, 7, 1), r"img_set names an image twice"),
        (change(caption=None), r"the field 'caption' is null"),
        (change(img_set=[1]), r"the field 'img_set' is \[1\], but must be an object"),
        (change(img_set={}), r"img_set: the field 'members' is missing"),
        (change(target_soft=3), r"the field 'target_soft' is 3, but must be an object"),
        (lambda row: row.pop("target_hard"), r"the field 'target_hard' is missing"),
    ],
)
def test_a_wrong_query_is_named(root: Path, spoil: Any, problem: str) -> None:
    rows = copy.deepcopy(CIRR_ROWS)
    spoil(rows[1])
    write_cirr(root, rows)
    with pytest.raises(UserError, match=rf"cap\.rc2\.val\.json, record 2.*{problem}"):
        cirr(root)


@pytest.mark.parametrize("file", ["captions/cap.rc2.val.json", "image_splits/split.rc2.val.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file .*{file}"),
        ("[{", "{file} is not a whole JSON document"),
        ('"x"', "{file}.* (holds no array|expected an object)"),
    ],
)
def test_a_wrong_file_is_named(root: Path, file: str, content: str | None, problem: str) -> None:
    path = root / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=problem.replace("{file}", path.name)):
        cirr(root)


def test_the_folder_is_no_pool(root: Path) -> None:
    with pytest.raises(UserError, match=r"val\.json holds 9 images of CIRR's val pool, but 2,297"):
        cirr(root, official=True)


def test_image_sets_of_another_size_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "val", Published(queries=3, images=9))
    assert len(cirr(root, official=True).queries) == 3
    rows = copy.deepcopy(CIRR_ROWS)
    members(8, 2, 5, 1, 0)(rows[1])
    write_cirr(root, rows)
    with pytest.raises(UserError, match=r"pairid 2: its img_set has 5 members, CIRR's have 6"):
        cirr(root, official=True)
    assert len(cirr(root).queries) == 3


def test_a_split_that_is_not_evaluated_is_refused() -> None:
    with pytest.raises(UserError, match="split of CIRR is 'train'; use one of: val, test1"):
        cirr(Path(), "train")


# ---- the real files -------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/cirr")
@pytest.mark.parametrize(("split", "queries", "pool"), [("val", 4181, 2297), ("test1", 4148, 2315)])
def test_the_official_files(split: Any, queries: int, pool: int) -> None:
    benchmark = cirr(REAL, split, official=True)
    assert (len(benchmark.queries), len(benchmark.gallery)) == (queries, pool)
    assert len({image.id for image in benchmark.gallery}) == pool
    for query in benchmark.queries:
        assert query.image is not None and query.subset is not None
        assert query.exclude == (query.image.id,)
        assert len(query.subset) == 5 and query.image.id not in query.subset
        assert (len(query.targets) == 1) == (split == "val")
        assert set(query.targets) <= set(query.subset)
    first = benchmark.gallery[0].path.relative_to(REAL).as_posix()
    assert first.startswith("img_raw/dev/dev-" if split == "val" else "img_raw/test1/test1-")


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/cirr")
def test_a_part_of_the_official_queries_is_refused(tmp_path: Path) -> None:
    for folder in ("captions", "image_splits"):
        for path in (REAL / folder).glob("*.val.json"):
            (tmp_path / folder).mkdir()
            content = json.loads(path.read_text())
            write_json(
                tmp_path / folder / path.name, content[:-1] if folder == "captions" else content
            )
    with pytest.raises(UserError, match="holds 4,180 queries of CIRR's val, but 4,181 are publish"):
        cirr(tmp_path, official=True)
    refined = cirr(tmp_path, official=True, captions="captions/cap.rc2.val.json")
    assert len(refined.queries) == 4180
