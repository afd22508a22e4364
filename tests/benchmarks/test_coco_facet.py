from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.coco_facet import PLACES, COCOFacet
from cirlab.errors import UserError
from tests.benchmarks.encoders import constant, ranking, write_json


def row(text: str, images: Any) -> dict[str, Any]:
    return {
        "qry_text": text,
        "qry_img_path": "",
        "tgt_text": "<|image_1|> Represent the given image.",
        "tgt_img_path": images,
    }


def write(root: Path, facet: str, *rows: dict[str, Any]) -> None:
    write_json(root / "benchmark" / f"{facet}_retrieval.json", rows)


def facets(root: Path, facet: Any = None, **options: Any) -> COCOFacet:
    benchmark = COCOFacet(str(root), facet, **{"official": False, **options})
    benchmark.setup()
    return benchmark


def val(*numbers: int) -> list[str]:
    return [f"val2017/{number:012d}.jpg" for number in numbers]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of every facet one query with the images 1 to 6, of objects another."""
    for facet in PLACES:
        write(tmp_path, facet, row(f"an image of {facet}\n", list(range(1, 7))))
    rows = (row("Show me a spoon.\n", val(1, 2, 3)), row("Show me a fork.\n", val(4, 3, 2)))
    write(tmp_path, "COCO_object", *rows)
    return tmp_path


# ---- rules ----------------------------------------------------------------------------------


def test_facets_count_the_same(root: Path) -> None:
    benchmark = facets(root)
    ranks = TargetRanks(torch.tensor([[1], [2], *[[6]] * 7]))
    assert [query.tags["facet"] for query in benchmark.queries[:3]] == [
        "COCO_object",
        "COCO_object",
        "COCO_animal",
    ]
    found = benchmark.metrics(ranks, benchmark.queries)
    expected = {"recall_at_1": 1 / 9, "recall_at_5": 2 / 9}
    expected |= {"macro_recall_at_1": 0.5 / 8, "macro_recall_at_5": 1 / 8}
    assert found == pytest.approx(expected)


def test_a_query_ranks_its_own_candidates_alone(root: Path) -> None:
    benchmark = facets(root, "COCO_object")
    lists = [val(4, 1), val(1, 3, 4)]
    results = ranking(benchmark, lambda query: lists[query]).results
    assert results["metrics"]["recall_at_1"] == 0.5
    assert results["metrics"]["recall_at_5"] == 1
    assert results["protocol"]["candidates"] == "own, 3"
    assert results["breakdown"]["facet"]["COCO_object"]["recall_at_1"] == 0.5


def test_a_collapsed_encoder_finds_nothing(root: Path) -> None:
    """The correct image is always the first candidate, which a plain argmax would answer."""
    write(root, "COCO_object", row("Show me a spoon.\n", val(*range(1, 101))))
    found = constant(facets(root, "COCO_object", official=True)).results["metrics"]
    assert set(found.values()) == {0.0}


def test_nan_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        constant(facets(root), float("nan"))


# ---- what is read ---------------------------------------------------------------------------


def test_queries_are_those_of_the_file(root: Path) -> None:
    benchmark = facets(root, "COCO_object")
    query = benchmark.queries[1]
    assert (query.id, query.text) == ("COCO_object/1", "Show me a fork.")
    assert (query.targets, query.candidates) == (tuple(val(4)), tuple(val(4, 3, 2)))
    assert (query.image, query.exclude, query.prompt) == (None, (), None)
    assert [image.id for image in benchmark.gallery] == val(1, 2, 3, 4)
    assert vars(benchmark.gallery[0])["path"] == root / val(1)[0]
    assert benchmark.name == "coco_facet_COCO_object"
    assert facets(root).name == "coco_facet"


@pytest.mark.parametrize(
    ("facet", "images", "paths"),
    [
        ("COCO_gesture", "[139, 285]", val(139, 285)),
        ("COCOStuff_material", ["139", 285], val(139, 285)),
        ("COCO_animal", [*val(139), "000000000285.jpg"], val(139, 285)),
        (
            "Visual7W_people_num",
            "['v7w_8.jpg', 'v7w_9.jpg']",
            ["visual7w/images/v7w_8.jpg", "visual7w/images/v7w_9.jpg"],
        ),
        ("Visual7W_time", [8], ["visual7w/images/v7w_8.jpg"]),
        ("Visual7W_scene", ["visual7w/images/v7w_8.jpg"], ["visual7w/images/v7w_8.jpg"]),
        (
            "mix_weather",
            ["VisualDialog_val2018_000000000001.jpg", "v7w_2.jpg", "a/3.jpg"],
            ["VisualDialog_val2018_000000000001.jpg", "v7w_2.jpg", "a/3.jpg"],
        ),
    ],
)
def test_images_are_named_in_several_ways(
    tmp_path: Path, facet: str, images: Any, paths: list[str]
) -> None:
    """Lists and their texts, numbers, file names and paths; each facet has a folder."""
    write(tmp_path, facet, row("?", images))
    benchmark = facets(tmp_path, facet)
    assert benchmark.queries[0].candidates == tuple(paths)
    assert [vars(image)["path"] for image in benchmark.gallery] == [tmp_path / p for p in paths]


def test_facets_share_images(root: Path) -> None:
    """COCO's six, Visual7W's six, and those of the weather, which lie elsewhere."""
    assert len(facets(root).gallery) == 18


def test_images_may_lie_elsewhere(root: Path) -> None:
    first, second = facets(root), facets(root, images="all/{file}")
    assert vars(second.gallery[0])["path"] == root / "all" / "000000000001.jpg"
    assert first.protocol() == second.protocol()
    assert len({first.gallery_id, second.gallery_id, facets(root, "mix_weather").gallery_id}) == 3


def test_an_image_that_is_named_twice_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Negatives are drawn from annotations, and the correct image has several, too."""
    write(tmp_path, "COCO_gesture", row("?", [1, *range(2, 99), 2, 1]))
    with caplog.at_level(logging.INFO):
        benchmark = facets(tmp_path, "COCO_gesture", official=True)
    assert len(benchmark.queries[0].candidates or ()) == 98
    assert "1 of 1 queries name an image twice" in caplog.text
    results = ranking(benchmark, lambda query: val(1)).results
    assert results["metrics"]["recall_at_1"] == 1


def test_a_benchmark_is_cheap_until_it_is_set_up() -> None:
    benchmark = COCOFacet("")
    assert pickle.loads(pickle.dumps(benchmark)).name == "coco_facet"
    with pytest.raises(UserError, match="the data root is empty"):
        benchmark.setup()


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"qry_text": "\n"}, r"the field 'qry_text' is "),
        ({"tgt_img_path": []}, r"the field 'tgt_img_path' is \[\], but must be a list of images"),
        ({"tgt_img_path": None}, r"the field 'tgt_img_path' is null, but must be a list"),
        ({"tgt_img_path": "7"}, r"the field 'tgt_img_path' is \"7\", but must be a list"),
        ({"tgt_img_path": "[1, 2"}, r"'tgt_img_path' is \"\[1, 2\", but must be a list"),
        (
            {"tgt_img_path": "__import__('os').getcwd()"},
            r"but must be a list of images, or the text of one",
        ),
        ({"tgt_img_path": [1, 2.5]}, r"'tgt_img_path' holds 2\.5, but must hold numbers or names"),
        ({"tgt_img_path": [1, -2]}, r"'tgt_img_path' holds -2"),
        ({"tgt_img_path": [True]}, r"'tgt_img_path' holds True"),
        ({"tgt_img_path": [" "]}, r"'tgt_img_path' holds ' '"),
    ],
)
def test_rows_that_break_a_rule_are_named(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write(tmp_path, "COCO_gesture", row("?", [1]), {**row("?", [1]), **change})
    with pytest.raises(UserError, match=rf"COCO_gesture_retrieval\.json, record 2: .*{problem}"):
        facets(tmp_path, "COCO_gesture")


@pytest.mark.parametrize("count", [99, 101])
def test_another_number_of_candidates_is_not_official(tmp_path: Path, count: int) -> None:
    write(tmp_path, "COCO_object", row("?", list(range(100))), row("?", list(range(count))))
    with pytest.raises(
        UserError, match=rf"record 2: .* holds {count} images, but 100 are published"
    ):
        facets(tmp_path, "COCO_object", official=True)
    assert len(facets(tmp_path, "COCO_object").queries) == 2


def test_a_facet_that_is_not_there_is_refused_at_once() -> None:
    facet: Any = "colour"
    with pytest.raises(UserError, match=r"facet of COCO-Facet is 'colour'; use one of: .*, null"):
        COCOFacet("", facet)


def test_all_facets_need_all_files(root: Path) -> None:
    (root / "benchmark" / "mix_weather_retrieval.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*mix_weather_retrieval\.json"):
        facets(root)


def test_a_file_that_is_cut_off(root: Path) -> None:
    path = root / "benchmark" / "COCO_animal_retrieval.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(
        UserError, match=r"COCO_animal_retrieval\.json is not a whole JSON document"
    ):
        facets(root, "COCO_animal")


# ---- the official files ---------------------------------------------------------------------

PROMPTS = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks/coco_facet/chosen_prompts"


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="DATA_ROOT holds no benchmarks/coco_facet")
def test_the_facets_are_those_of_the_authors_files() -> None:
    """The queries' own files are not at hand; those of their prompts bear the same names."""
    names = {path.name.removesuffix("_retrieval_prompt.json") for path in PROMPTS.glob("*.json")}
    assert names == set(PLACES)
