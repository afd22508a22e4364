from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.genecis import TASKS, GeneCIS, SquareCrop
from cirlab.errors import UserError
from datamodules.checks import check_files, image_files
from tests.benchmarks.encoders import constant, ranking, write_json

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks"


def photograph(number: int) -> dict[str, Any]:
    return {"val_image_id": number}


def crop(number: int, *box: float) -> dict[str, Any]:
    return {"image_id": number, "instance_bbox": list(box or (4, 2, 5, 5))}


def row(condition: str, make: Any, reference: int, target: int, *gallery: int) -> dict[str, Any]:
    return {
        "condition": condition,
        "reference": make(reference),
        "target": make(target),
        "gallery": [make(number) for number in gallery],
    }


def write(root: Path, task: str, *rows: dict[str, Any]) -> None:
    write_json(root / "genecis" / f"{task}.json", rows)


def genecis(root: Path, task: Any = None, **options: Any) -> GeneCIS:
    benchmark = GeneCIS(str(root), task, **{"official": False, **options})
    benchmark.setup()
    return benchmark


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two queries in the object tasks, one in the attribute tasks."""
    for task in TASKS:
        if task.endswith("object"):
            rows = [row("wall", photograph, 1, 2, 3, 4), row("lamp", photograph, 2, 5, 3, 6)]
        else:
            rows = [row("colour", crop, 1, 2, 3, 4)]
        write(tmp_path, task, *rows)
    return tmp_path


# ---- rules ----------------------------------------------------------------------------------


def test_the_headline_is_the_mean_over_tasks(root: Path) -> None:
    """Not over queries, of which the object tasks have more."""
    benchmark = genecis(root)
    assert [query.tags["task"] for query in benchmark.queries] == [
        "focus_attribute",
        "change_attribute",
        "focus_object",
        "focus_object",
        "change_object",
        "change_object",
    ]
    ranks = TargetRanks(torch.tensor([[1], [2], [1], [3], [3], [2]]))
    found = benchmark.metrics(ranks, benchmark.queries)
    assert found["recall_at_1"] == pytest.approx(2 / 6)
    assert found["recall_at_2"] == pytest.approx(4 / 6)
    assert found["macro_recall_at_1"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found["macro_recall_at_2"] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert found["macro_recall_at_3"] == 1


def test_a_query_ranks_its_own_candidates_alone(root: Path) -> None:
    """The reference and images of other queries score higher and do not count."""
    benchmark = genecis(root, "focus_object")
    lists = [("coco/5", "coco/6", "coco/2"), ("coco/2", "coco/6", "coco/5")]
    results = ranking(benchmark, lambda query: lists[query]).results
    assert results["metrics"]["recall_at_1"] == 0.5
    assert results["metrics"]["recall_at_2"] == 1
    assert results["protocol"]["candidates"] == "own, 3"
    assert results["breakdown"]["task"]["focus_object"]["recall_at_1"] == 0.5


def test_a_collapsed_encoder_is_no_better_than_the_last_place(root: Path) -> None:
    """The target is always the first candidate, which a plain argmax would answer."""
    found = constant(genecis(root)).results["metrics"]
    assert found["recall_at_1"] == found["recall_at_2"] == found["macro_recall_at_2"] == 0


def test_nan_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        constant(genecis(root), float("nan"))


# ---- what is read ---------------------------------------------------------------------------


def test_object_queries_show_photographs(root: Path) -> None:
    benchmark = genecis(root, "change_object")
    query = benchmark.queries[1]
    assert (query.id, query.text, query.targets) == ("change_object/1", "lamp", ("coco/5",))
    assert query.candidates == ("coco/5", "coco/3", "coco/6")
    assert (query.exclude, query.tags) == ((), {"task": "change_object"})
    assert query.image is not None and query.image.id == "coco/2"
    assert [image.id for image in benchmark.gallery] == [f"coco/{i}" for i in (2, 3, 4, 5, 6)]
    assert vars(benchmark.gallery[0])["path"] == root / "val2017" / "000000000002.jpg"
    assert benchmark.name == "genecis_change_object"


def test_attribute_queries_show_crops(tmp_path: Path) -> None:
    """Two objects of one photograph are two images; the reference is cut out, too."""
    asked = row("colour", crop, 1, 2, 3)
    asked["gallery"].append(crop(2, 4, 2, 5, 5.5))
    write(tmp_path, "focus_attribute", asked)
    benchmark = genecis(tmp_path, "focus_attribute")
    query = benchmark.queries[0]
    assert query.targets == ("visual_genome/2[4,2,5,5]",)
    assert query.candidates == (
        "visual_genome/2[4,2,5,5]",
        "visual_genome/3[4,2,5,5]",
        "visual_genome/2[4,2,5,5.5]",
    )
    path = tmp_path / "VG_100K" / "1.jpg"
    assert query.image == SquareCrop("visual_genome/1[4,2,5,5]", path, (4, 2, 5, 5))


def test_images_may_lie_elsewhere(root: Path) -> None:
    first = genecis(root)
    second = genecis(root, images_coco="coco/{id}.jpg", images_visual_genome="vg/{id}.jpg")
    assert first.protocol() == second.protocol()
    assert first.gallery_id != second.gallery_id
    places = {vars(image)["path"].relative_to(root).as_posix() for image in second.gallery}
    assert {"coco/2.jpg", "vg/2.jpg"} <= places


def test_an_image_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    """Also the target itself, which would tie with its copy."""
    write(tmp_path, "change_object", row("wall", photograph, 1, 2, 3, 2, 4, 3))
    benchmark = genecis(tmp_path, "change_object")
    assert benchmark.queries[0].candidates == ("coco/2", "coco/3", "coco/4")
    results = ranking(benchmark, lambda query: ("coco/2",)).results
    assert results["metrics"]["recall_at_1"] == 1


def test_a_benchmark_is_cheap_until_it_is_set_up() -> None:
    benchmark = GeneCIS("")
    assert pickle.loads(pickle.dumps(benchmark)).name == "genecis"
    with pytest.raises(UserError, match="the data root is empty"):
        benchmark.setup()


def test_missing_photographs_of_crops_are_told_before_any_work(root: Path) -> None:
    benchmark = genecis(root, "focus_attribute")
    folder = root / "VG_100K"
    folder.mkdir()
    for number in (1, 2, 4):
        PIL.Image.new("RGB", (20, 10)).save(folder / f"{number}.jpg")
    with pytest.raises(
        UserError, match=r"1 of 4 images are missing, the first is .*VG_100K/3\.jpg"
    ):
        check_files(list(image_files(benchmark)))


# ---- crops ----------------------------------------------------------------------------------


def shown(tmp_path: Path, *box: float) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of 20 x 10 pixels whose colours are their places, and what is cut from it."""
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(1, 21)
    pixels[..., 1] = np.arange(1, 11)[:, None]
    path = tmp_path / "photograph.png"
    PIL.Image.fromarray(pixels).save(path)
    left, top, width, height = box
    cut = SquareCrop("x", path, (left, top, width, height)).load()
    assert cut.mode == "RGB"
    return pixels, np.asarray(cut)


def test_a_box_grows_to_the_left_and_to_the_top(tmp_path: Path) -> None:
    """Left 10 - 2.8, top 4 - 1.4, right 7.2 + 6.8, bottom 2.6 + 3.4, rounded; 7 x 3 on 7 x 7."""
    pixels, cut = shown(tmp_path, 10, 4, 4, 2)
    expected = np.zeros((7, 7, 3), dtype=np.uint8)
    expected[2:5] = pixels[3:6, 7:14]
    np.testing.assert_array_equal(cut, expected)


def test_at_the_border_a_box_grows_to_the_other_side(tmp_path: Path) -> None:
    """Left and top 0, right 0 + 6.8, bottom 0 + 8.5 (rounded to even); 7 x 8 on 8 x 8."""
    pixels, cut = shown(tmp_path, 1, 2, 4, 5)
    expected = np.zeros((8, 8, 3), dtype=np.uint8)
    expected[:, :7] = pixels[:8, :7]
    np.testing.assert_array_equal(cut, expected)


def test_a_box_ends_where_the_image_ends(tmp_path: Path) -> None:
    """Left 15 - 7, top 0, right min(20, 25), bottom min(10, 17); 12 x 10 on 12 x 12."""
    pixels, cut = shown(tmp_path, 15, 5, 10, 10)
    expected = np.zeros((12, 12, 3), dtype=np.uint8)
    expected[1:11] = pixels[:, 8:20]
    np.testing.assert_array_equal(cut, expected)


def test_a_box_outside_the_photograph_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"box \(40, 2, 4, 4\) .* lies outside .*png, which is 20 x"
    ):
        shown(tmp_path, 40, 2, 4, 4)


def test_crops_of_one_photograph_are_different_parts() -> None:
    first, second = (SquareCrop("x", Path("a.jpg"), (0, 0, 5, n)) for n in (5, 6))
    assert first.part and first.part != second.part


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("focus_object", {"condition": ""}, "record 1: the field 'condition' is \"\""),
        ("focus_object", {"target": 4}, "record 1: the field 'target' is 4, but must be an object"),
        ("focus_object", {"target": {}}, "record 1, target: the field 'val_image_id' is missing"),
        ("focus_object", {"gallery": []}, "record 1: the field 'gallery' is \\[\\]"),
        (
            "focus_object",
            {"gallery": [photograph(3), {"val_image_id": "4"}]},
            "record 1, gallery\\[1\\]: the field 'val_image_id' is \"4\", but must be a whole",
        ),
        (
            "focus_attribute",
            {"reference": crop(1, 0, 0, 0, 5)},
            "record 1, reference: the field 'instance_bbox' is \\[0, 0, 0, 5\\], but must be left",
        ),
        ("focus_attribute", {"target": crop(1, 1, 2, 3)}, "record 1, target: .*\\[1, 2, 3\\]"),
        (
            "focus_attribute",
            {"target": {"image_id": 2}},
            "record 1, target: .*'instance_bbox' is null",
        ),
    ],
)
def test_rows_that_break_a_rule_are_named(
    tmp_path: Path, task: str, change: dict[str, Any], problem: str
) -> None:
    make = photograph if task.endswith("object") else crop
    write(tmp_path, task, {**row("wall", make, 1, 2, 3), **change})
    with pytest.raises(UserError, match=rf"{task}\.json, {problem}"):
        genecis(tmp_path, task)


def test_a_task_that_is_not_there_is_refused_at_once() -> None:
    task: Any = "focus_colour"
    with pytest.raises(UserError, match=r"task of GeneCIS is 'focus_colour'; use one of: .*, null"):
        GeneCIS("", task)


def test_all_tasks_need_all_files(root: Path) -> None:
    (root / "genecis" / "change_attribute.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*change_attribute\.json"):
        genecis(root)
    assert len(genecis(root, "focus_attribute").queries) == 1


def test_a_file_that_is_cut_off(root: Path) -> None:
    path = root / "genecis" / "focus_object.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match=r"focus_object\.json is not a whole JSON document"):
        genecis(root, "focus_object")


def test_other_sizes_are_not_official(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds 2 queries of focus_object, but 1,960 are published"
    ):
        genecis(root, "focus_object", official=True)
    rows = [row("wall", photograph, 1, *range(2, 17))] * 1959
    write(root, "focus_object", *rows, row("wall", photograph, 1, *range(2, 16)))
    with pytest.raises(UserError, match=r"record 1960: .* are 14 images, but 15 are published"):
        genecis(root, "focus_object", official=True)


def test_nobody_verified_the_sizes_of_the_attribute_tasks(root: Path) -> None:
    assert len(genecis(root, "change_attribute", official=True).queries) == 1


# ---- the official files ---------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "genecis").is_dir(), reason="DATA_ROOT holds no benchmarks/genecis")
@pytest.mark.parametrize(("task", "words", "short"), [("focus", 97, 0), ("change", 109, 1)])
def test_the_official_object_tasks(task: str, words: int, short: int) -> None:
    benchmark = genecis(REAL, f"{task}_object", official=True)
    queries = benchmark.queries
    assert (len(queries), len({query.text for query in queries})) == (1960, words)
    sizes = [len(query.candidates or ()) for query in queries]
    assert (sizes.count(15), sizes.count(14)) == (1960 - short, short)
    for query in queries:
        assert query.image is not None and query.candidates is not None
        assert query.candidates[0] == query.targets[0]
        assert query.image.id not in query.candidates
