from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.fashioniq import CATEGORIES, PUBLISHED, TEMPLATES, FashionIQ, Published
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import Encoded, Evaluation, Gallery, evaluate
from tests.benchmarks.composed_files import FASHION_LISTS, FASHION_ROWS, write_fashioniq, write_json

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks" / "fashioniq"


def fashioniq(root: Path, pool: Any = "original", **options: Any) -> FashionIQ:
    benchmark = FashionIQ(str(root), pool, **{"official": False, **options})
    benchmark.setup()
    return benchmark


def encoded(name: str, degrees: list[float]) -> Encoded:
    """Unit vectors in the plane."""
    angles = torch.deg2rad(torch.tensor(degrees))
    vectors = torch.stack((angles.cos(), angles.sin()), dim=1)
    return Encoded({name: vectors}, torch.ones(len(degrees), dtype=torch.bool))


def evaluated(benchmark: FashionIQ, queries: list[float]) -> Evaluation:
    """Image B<n> stands at n degrees."""
    images = encoded("gallery", [float(image.id[1:]) for image in benchmark.gallery])
    return evaluate(benchmark, Gallery(benchmark.gallery, images), encoded("query", queries))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_fashioniq(tmp_path)


# ---- pools ----------------------------------------------------------------------------------

#: All four queries stand at 0 degrees. Dresses stand at 0 to 13 degrees, targets at 13 and 12:
#: of all dresses they are 14th and 13th; of B00, B13 and B12, which are a reference or a target,
#: 3rd and 2nd. The shirt's target B41 is the second of its pool, the top's B51 the third.
AT_ZERO = [0.0] * 4


def test_the_pools_give_different_recall_by_hand(root: Path) -> None:
    original = evaluated(fashioniq(root), AT_ZERO).results
    assert original["metrics"] == pytest.approx(
        {
            "recall_at_10": 2 / 4,
            "recall_at_50": 1,
            "macro_recall_at_10": (0 + 1 + 1) / 3,
            "macro_recall_at_50": 1,
        }
    )
    assert original["breakdown"]["category"]["dress"] == {"recall_at_10": 0, "recall_at_50": 1}
    union = evaluated(fashioniq(root, "union"), AT_ZERO).results
    assert union["metrics"]["recall_at_10"] == union["metrics"]["macro_recall_at_10"] == 1


@pytest.mark.parametrize(("exclude", "expected"), [(False, 0.0), (True, 0.5)])
def test_without_the_reference_a_target_gains_a_rank(
    root: Path, exclude: bool, expected: float
) -> None:
    """Of 14 dresses B13 is the last and B10 the 11th, which is the 10th without B00."""
    rows = copy.deepcopy(FASHION_ROWS["dress"])
    rows[1]["target"] = "B10"
    write_json(root / "captions" / "cap.dress.val.json", rows)
    benchmark = fashioniq(root, category="dress", exclude_reference=exclude)
    found = evaluated(benchmark, [0.0, 0.0]).results
    assert found["metrics"]["recall_at_10"] == expected
    assert found["protocol"]["exclusion"] == ("the reference image" if exclude else "none")


def test_both_pools_share_one_encoding_and_images_of_two_categories(root: Path) -> None:
    original, union = fashioniq(root), fashioniq(root, "union")
    assert original.gallery_id == union.gallery_id
    assert original.gallery == union.gallery
    ids = [image.id for image in original.gallery]
    assert len(ids) == len(set(ids)) == 19, "B40 is listed twice"
    pools = {query.tags["category"]: query.candidates for query in original.queries}
    assert pools == {name: tuple(FASHION_LISTS[name]) for name in CATEGORIES}
    pools = {query.tags["category"]: query.candidates for query in union.queries}
    assert pools["dress"] == ("B00", "B13", "B12")
    assert original.protocol().candidates == "own, 3, 14"
    assert union.protocol().candidates == "own, 2, 3"


def test_queries_of_a_category_share_their_pool(root: Path) -> None:
    """Thousands of queries with thousands of candidates each would not fit otherwise."""
    first, second, *_ = fashioniq(root).queries
    assert first.candidates is second.candidates


def test_one_category_has_its_own_gallery(root: Path) -> None:
    benchmark = fashioniq(root, category="dress")
    assert [image.id for image in benchmark.gallery] == FASHION_LISTS["dress"]
    assert [query.candidates for query in benchmark.queries] == [None, None]
    assert benchmark.gallery_id != fashioniq(root).gallery_id
    assert fashioniq(root, "union", category="dress").queries[0].candidates == ("B00", "B13", "B12")
    found = evaluated(benchmark, [0.0, 0.0]).results["metrics"]
    assert found["macro_recall_at_10"] == found["recall_at_10"] == 0


def test_names_tell_what_is_evaluated() -> None:
    made = [
        FashionIQ(""),
        FashionIQ("", "union"),
        FashionIQ("", "union", "shirt"),
        FashionIQ("", category="dress", split="train", captions="x/{category}.json"),
        FashionIQ("", name="mine"),
    ]
    assert [benchmark.name for benchmark in made] == [
        "fashioniq_original",
        "fashioniq_union",
        "fashioniq_union_shirt",
        "fashioniq_original_dress_train_refined",
        "mine",
    ]


# ---- texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("and", ["Is redder. and has a bow,", "is shorter and is Green (bright)", "says hello"]),
        ("clip4cir", ["Is redder and has a bow", "Is shorter and is Green (bright)", "Says hello"]),
        (
            "searle",
            [
                "a photo that Is redder and has a bow",
                "a photo that is shorter and is Green (bright)",
                "a photo that says hello",
            ],
        ),
        ("covr", ["is redder and has a bow,", "is shorter and is green bright", "says hello"]),
    ],
)
def test_captions_become_one_text(root: Path, template: Any, expected: list[str]) -> None:
    benchmark = fashioniq(root, caption_template=template)
    assert [query.text for query in benchmark.queries[:3]] == expected
    assert benchmark.protocol().query_template.startswith(f"{template}: ")


def test_covr_keeps_thirty_words() -> None:
    text = TEMPLATES["covr"].joined(["a " * 20, "b " * 20])
    assert text.split() == ["a"] * 20 + ["and"] + ["b"] * 9


def test_protocols_of_different_texts_differ(root: Path) -> None:
    told = {fashioniq(root, caption_template=name).protocol().query_template for name in TEMPLATES}
    assert len(told) == len(TEMPLATES)


def test_either_order_is_asked_and_averaged(root: Path) -> None:
    benchmark = fashioniq(root, "union", category="dress", both_orders=True)
    assert [query.text for query in benchmark.asked()] == [
        "Is redder. and has a bow,",
        "has a bow, and Is redder.",
        "is shorter and is Green (bright)",
        "is Green (bright) and is shorter",
    ]
    assert len(benchmark.queries) == 2
    assert benchmark.protocol().wordings == 2
    # 0 and 24 degrees are 12 together: B12, then B13, is nearest; either alone finds another.
    found = evaluated(benchmark, [0.0, 24.0, 2.0, 22.0])
    assert [benchmark.gallery[best].id for best in found.ranking.images[:, 0]] == ["B12", "B12"]
    assert found.ranking.ranks.tolist() == [2, 1]


def test_one_order_is_asked_otherwise(root: Path) -> None:
    benchmark = fashioniq(root)
    assert benchmark.asked() is benchmark.queries
    assert benchmark.wordings == 1


# ---- reading --------------------------------------------------------------------------------


def test_queries_are_those_of_the_files(root: Path) -> None:
    query = fashioniq(root).queries[3]
    assert query.id == "toptee/B50>B51"
    assert query.image is not None
    assert query.image.load().getpixel((0, 0)) == (50, 50, 50)
    assert (query.targets, query.exclude) == (("B51",), ())
    assert query.tags == {"category": "toptee"}


def test_images_may_have_another_suffix_or_a_folder_a_category(root: Path) -> None:
    gallery = fashioniq(root, images="{category}/{name}.jpg").gallery
    paths = {image.id: image.path.relative_to(root).as_posix() for image in gallery}
    assert paths["B50"] == "toptee/B50.jpg"
    assert paths["B40"] == "shirt/B40.jpg", "of two categories the first"


def test_missing_images_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    fashioniq(root)
    assert not caplog.records
    for name in ("B05", "B12"):
        (root / "images" / f"{name}.png").unlink()
    fashioniq(root, "union")
    assert "fashioniq_union: 2 of 19 images are missing, the first is" in caplog.text
    assert "B05.png; they are reference or target of 1 of 4 queries" in caplog.text


def test_a_benchmark_is_cheap_until_it_is_set_up_and_repeats_itself(root: Path) -> None:
    benchmark = pickle.loads(pickle.dumps(FashionIQ(str(root), both_orders=True, official=False)))
    for _ in range(2):
        benchmark.setup()
        assert (len(benchmark.queries), len(benchmark.asked())) == (4, 8)


def test_other_queries_of_the_same_pools(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refined Fashion-IQ: fewer queries, but the union is that of the official ones."""
    for category in CATEGORIES:
        refined = [{**FASHION_ROWS[category][0], "captions": ["all in one text"]}]
        write_json(root / "refined" / f"{category}.json", refined)
    with caplog.at_level("INFO"):
        benchmark = fashioniq(root, "union", captions="refined/{category}.json")
    assert {query.text for query in benchmark.queries} == {"all in one text"}
    assert benchmark.queries[0].candidates == ("B00", "B13", "B12")
    assert benchmark.gallery_id == fashioniq(root).gallery_id
    assert "dress.json: 1 queries, the original has 2,017" in caplog.text


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target": "B99"}, "its target B99 is not in the category's image_splits file"),
        ({"candidate": "B50"}, "its candidate B50 is not in the category's image_splits file"),
        ({"target": "B00"}, "B00 is both candidate and target"),
        ({"target": None}, "the field 'target' is null"),
        ({"target": "B13"}, r"the pair of candidate B00 and target B13 stands alr.*record 1"),
        ({"captions": "x"}, "the field 'captions' is \"x\", but must be a list of texts"),
        ({"captions": ["", " "]}, r"the field 'captions' is \[\"\", \" \"\], but must be"),
        ({"captions": ["x", 3]}, r"the field 'captions' is \[\"x\", 3\], but must be"),
    ],
)
def test_a_wrong_query_is_named(root: Path, fields: dict[str, Any], problem: str) -> None:
    rows = copy.deepcopy(FASHION_ROWS["dress"])
    rows[1].update(fields)
    write_json(root / "captions" / "cap.dress.val.json", rows)
    with pytest.raises(UserError, match=rf"cap\.dress\.val\.json, record 2: {problem}"):
        fashioniq(root)


def test_other_queries_must_be_of_the_union(root: Path) -> None:
    rows = [{**FASHION_ROWS["dress"][0], "target": "B05"}]
    path = write_json(root / "refined.json", rows)
    options = {"category": "dress", "captions": "refined.json"}
    with pytest.raises(UserError, match=rf"{path}, record 1: B05 is no reference or target of"):
        fashioniq(root, "union", **options)
    assert len(fashioniq(root, **options).queries) == 1


@pytest.mark.parametrize("file", ["captions/cap.shirt", "image_splits/split.shirt"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file .*{file}"),
        ('["B4', "{file} is not a whole JSON document"),
        ("{}", "{file}.* (holds no array|expected an array)"),
    ],
)
def test_a_wrong_file_is_named(root: Path, file: str, content: str | None, problem: str) -> None:
    path = root / f"{file}.val.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=problem.replace("{file}", path.name)):
        fashioniq(root)


def test_an_image_that_is_listed_twice_is_refused(root: Path) -> None:
    path = root / "image_splits" / "split.shirt.val.json"
    write_json(path, [*FASHION_LISTS["shirt"], "B41"])
    with pytest.raises(
        UserError, match=r"split\.shirt\.val\.json, record \d: B41 stands already in record"
    ):
        fashioniq(root)


@pytest.mark.parametrize(
    ("published", "pool", "problem"),
    [
        (Published(2, 13, 3), "union", "14 images of Fashion-IQ's dress val, but 13 are published"),
        (Published(3, 14, 3), "union", "2 queries of Fashion-IQ's dress val, but 3 are published"),
        (Published(2, 14, 4), "union", "3 references and targets of Fashion-IQ's dress val, but 4"),
        (Published(2, 14, 4), "original", None),
        (Published(2, 14, 3), "union", None),
    ],
)
def test_other_sizes_are_refused(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    published: Published,
    pool: str,
    problem: str | None,
) -> None:
    monkeypatch.setitem(PUBLISHED, ("val", "dress"), published)
    if problem is None:
        assert fashioniq(root, pool, category="dress", official=True).queries
        return
    with pytest.raises(UserError, match=problem):
        fashioniq(root, pool, category="dress", official=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"pool": "all"}, "pool of Fashion-IQ is 'all'; use one of: original, union"),
        ({"category": "tops"}, "category of Fashion-IQ is 'tops'; use one of: .*toptee, null"),
        ({"caption_template": "or"}, "caption_template of Fashion-IQ is 'or'; use one of: and, cl"),
        ({"split": "test"}, "the targets of Fashion-IQ's test split are not public"),
        ({"captions": "a.json"}, "captions of Fashion-IQ is 'a.json', the same file for every"),
        ({"captions": "{kind}.json"}, "is '{kind}.json', which is no path template"),
        ({"captions": "{"}, "is '{', which is no path template"),
    ],
)
def test_a_wrong_choice_is_refused_at_once(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        FashionIQ("", **options)


# ---- the real files -------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/fashioniq")
@pytest.mark.parametrize("split", ["val", "train"])
def test_the_official_files(split: str) -> None:
    original, union = (
        fashioniq(REAL, p, split=split, official=True) for p in ("original", "union")
    )
    assert len(original.queries) == {"val": 6016, "train": 18_000}[split]
    ids = [image.id for image in original.gallery]
    assert len(ids) == len(set(ids)) == {"val": 15_415, "train": 45_429}[split]
    sizes = {}
    for one, other in zip(original.queries, union.queries, strict=True):
        assert (one.id, one.image, one.targets) == (other.id, other.image, other.targets)
        sizes[one.tags["category"]] = [len(q.candidates or ()) for q in (one, other)]
    for category in CATEGORIES:
        published = PUBLISHED[split, category]
        assert sizes[category] == [published.images, published.union]
    pools = {query.tags["category"]: query.candidates or () for query in original.queries}
    for query in {query.candidates: query for query in union.queries}.values():
        assert set(query.candidates or ()) <= set(pools[query.tags["category"]])


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/fashioniq")
def test_three_official_queries_have_one_caption() -> None:
    benchmark = fashioniq(REAL, official=True, both_orders=True)
    asked = [query.text for query in benchmark.asked()]
    assert sum(" and " not in text for text in asked[::2]) == 3
    assert len(asked) == 2 * 6016
    assert all(len(a) == len(b) for a, b in zip(asked[::2], asked[1::2], strict=True))


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/fashioniq")
def test_the_test_split_of_a_category_is_no_val(tmp_path: Path) -> None:
    for folder, file in (("captions", "cap.dress"), ("image_splits", "split.dress")):
        content = json.loads((REAL / folder / f"{file}.test.json").read_text())
        write_json(tmp_path / folder / f"{file}.val.json", content)
    with pytest.raises(UserError, match=r"record 1: the field 'target' is missing"):
        fashioniq(tmp_path, category="dress", official=True)
