from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.karpathy import KarpathyImageToText, KarpathyTextToImage
from cirlab.errors import UserError
from cirlab.records import Caption, FileImage
from cirlab.retrieval.evaluation import Encoded, Gallery, evaluate
from tests.datamodules.toys import jpeg

NAMES = ("val2014/a.jpg", "val2014/b.jpg", "val2014/gpj.jpg")
ROWS = [
    {"image": NAMES[0], "caption": ["a cup", "a blue cup"]},
    {"image": NAMES[1], "caption": ["two mugs", "mugs on a shelf"]},
    {"image": NAMES[2], "caption": ["an empty shelf"]},
]
CAPTIONS = [f"{row['image']}#{n}" for row in ROWS for n in range(len(row["caption"]))]
BOTH = pytest.mark.parametrize("kind", [KarpathyTextToImage, KarpathyImageToText])


def write(root: Path, content: Any, file: str = "flickr30k_test.json") -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (root / file).write_text(text, encoding="utf-8")
    return root


def read(kind: type[Any], root: Path, **options: Any) -> Any:
    benchmark = kind(str(root), **{"annotations": "flickr30k_test.json", **options})
    benchmark.setup()
    return benchmark


def at(degrees: Sequence[float]) -> torch.Tensor:
    """Unit vectors in the plane, so that similar is what has a similar angle. Shape (N, 2)."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def results(benchmark: Benchmark, gallery: torch.Tensor, queries: torch.Tensor) -> dict[str, Any]:
    def encoded(name: str, vectors: torch.Tensor) -> Encoded:
        return Encoded({name: vectors}, torch.ones(len(vectors), dtype=torch.bool))

    indexed = Gallery(benchmark.gallery, encoded("gallery", gallery))
    return evaluate(benchmark, indexed, encoded("query", queries)).results


def test_captions_look_for_their_image(tmp_path: Path) -> None:
    benchmark = read(KarpathyTextToImage, write(tmp_path, ROWS))
    assert [image.id for image in benchmark.gallery] == list(NAMES)
    assert [query.id for query in benchmark.queries] == CAPTIONS
    assert (benchmark.kind, benchmark.queries[3].text) == ("text", "mugs on a shelf")
    assert [query.targets for query in benchmark.queries] == [
        (name,) for name in (NAMES[0], NAMES[0], NAMES[1], NAMES[1], NAMES[2])
    ]
    assert all(query.image is None for query in benchmark.queries)


def test_images_look_for_any_of_their_captions(tmp_path: Path) -> None:
    benchmark = read(KarpathyImageToText, write(tmp_path, ROWS))
    assert benchmark.gallery[1] == Caption(id="val2014/a.jpg#1", text="a blue cup")
    assert [caption.id for caption in benchmark.gallery] == CAPTIONS
    assert (benchmark.kind, [query.id for query in benchmark.queries]) == ("image", list(NAMES))
    assert [query.image.path for query in benchmark.queries] == [tmp_path / n for n in NAMES]
    assert [query.targets for query in benchmark.queries] == [
        tuple(CAPTIONS[:2]),
        tuple(CAPTIONS[2:4]),
        tuple(CAPTIONS[4:]),
    ]


#: Angles: of the images, and of the captions in the file's order.
IMAGES, TEXTS = at([0, 40, 100]), at([5, 30, 45, 90, 60])


def test_text_to_image_by_hand(tmp_path: Path) -> None:
    found = results(read(KarpathyTextToImage, write(tmp_path, ROWS)), IMAGES, TEXTS)
    # Ranks of the captions' images: 1, 2 (b is nearer), 1, 2 (the shelf is), 2 (b is).
    assert found["metrics"] == {
        "recall_at_1": pytest.approx(2 / 5),
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "mean_rank": pytest.approx(8 / 5),
    }
    assert (found["protocol"]["pool_size"], found["protocol"]["queries"]) == (3, 5)


def test_image_to_text_by_hand(tmp_path: Path) -> None:
    found = results(read(KarpathyImageToText, write(tmp_path, ROWS)), TEXTS, IMAGES)
    # Best ranks: 1 (of 1 and 2), 1 (of 1 and 5), 2 (a caption of b is nearer).
    assert found["metrics"] == {
        "recall_at_1": pytest.approx(2 / 3),
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "mean_rank": pytest.approx(4 / 3),
    }
    assert (found["protocol"]["pool_size"], found["protocol"]["queries"]) == (5, 3)


def test_a_collapsed_encoder_finds_nothing_first(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    same = at([10, 10, 10, 10, 10])
    images = results(read(KarpathyTextToImage, tmp_path), same[:3], same)["metrics"]
    texts = results(read(KarpathyImageToText, tmp_path), same, same[:3])["metrics"]
    assert (images["recall_at_1"], images["mean_rank"]) == (0.0, 3.0)
    # The captions of others come first: 3, 3 and 4 of them.
    assert (texts["recall_at_1"], texts["mean_rank"]) == (0.0, pytest.approx((4 + 4 + 5) / 3))


@pytest.mark.parametrize("images", ["{path}", "all/{file}"])
@BOTH
def test_images_lie_where_the_template_says(tmp_path: Path, kind: type[Any], images: str) -> None:
    folder = tmp_path / ("val2014" if images == "{path}" else "all")
    folder.mkdir()
    (folder / "gpj.jpg").write_bytes(jpeg(50))
    benchmark = read(kind, write(tmp_path, ROWS), images=images)
    items = [*benchmark.gallery, *(query.image for query in benchmark.queries)]
    found = next(i for i in items if isinstance(i, FileImage) and i.id == NAMES[2])
    assert found.path == folder / "gpj.jpg"
    assert found.load().size == (8, 8)


SAID = 'A Cup, "blue" (new)!'


@BOTH
def test_captions_may_be_read_as_blip_reads_them(tmp_path: Path, kind: type[Any]) -> None:
    write(tmp_path, [{"image": "a.jpg", "caption": [SAID, " ".join(map(str, range(40)))]}])
    plain, blip = (read(kind, tmp_path, caption_template=name) for name in ("as_is", "blip"))
    texts = [
        [item.text for item in (benchmark.queries if kind.kind == "text" else benchmark.gallery)]
        for benchmark in (plain, blip)
    ]
    assert texts[0][0] == SAID
    assert texts[1] == ["a cup, blue new", " ".join(map(str, range(30)))]
    assert plain.protocol().query_template == "{text}"
    assert blip.protocol().query_template.startswith("blip: {text}, lower case")
    assert plain.checksum() != blip.checksum()
    shared = plain.gallery_id == blip.gallery_id
    assert shared == (kind is KarpathyTextToImage), "captions are what the other way searches"
    with pytest.raises(UserError, match="caption_template is 'Blip'; use one of: as_is, blip"):
        kind(str(tmp_path), caption_template="Blip")


@BOTH
def test_published_sizes_are_those_of_coco(tmp_path: Path, kind: type[Any]) -> None:
    for file in ("coco_karpathy_test.json", "coco_karpathy_val.json"):
        write(tmp_path, ROWS, file)
        with pytest.raises(UserError, match=rf"{file} holds 3 images, but 5,000 are published"):
            read(kind, tmp_path, annotations=file)
        assert len(read(kind, tmp_path, annotations=file, official=False).queries) in (3, 5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"images": ROWS}, "holds no array at its top level"),
        (json.dumps(ROWS)[:-40], "is not a whole JSON document"),
        ([*ROWS, ROWS[1]], r"record 4: the image 'val2014/b\.jpg' stands already in .*record 2"),
        ([*ROWS, {"image": "c.jpg", "caption": "one"}], "record 4: the field 'caption' is \"one\""),
        ([*ROWS, {"image": "c.jpg", "caption": []}], "record 4: the field 'caption' is"),
        ([*ROWS, {"caption": ["one"]}], "record 4: the field 'image' is missing"),
        ([*ROWS, "c.jpg"], "record 4: expected an object, found str"),
    ],
)
@BOTH
def test_a_malformed_file_is_refused(
    tmp_path: Path, kind: type[Any], content: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=rf"flickr30k_test\.json.*{problem}"):
        read(kind, write(tmp_path, content))


@BOTH
def test_a_missing_file_is_named(tmp_path: Path, kind: type[Any]) -> None:
    with pytest.raises(UserError, match=r"there is no file .*flickr30k_test\.json"):
        read(kind, tmp_path)


def test_a_second_stage_is_part_of_the_protocol(tmp_path: Path) -> None:
    benchmark = read(KarpathyImageToText, write(tmp_path, ROWS), rerank_depth=2)
    assert results(benchmark, TEXTS, IMAGES)["protocol"]["rerank_depth"] == 2
    with pytest.raises(UserError, match="rerank_depth is 0; give a number from 1, or null"):
        KarpathyTextToImage(str(tmp_path), rerank_depth=0)


def test_galleries_are_shared_where_they_are_equal(tmp_path: Path) -> None:
    made = [
        kind(str(tmp_path), annotations=file, name="x", rerank_depth=depth)
        for kind in (KarpathyTextToImage, KarpathyImageToText)
        for file in ("coco_karpathy_val.json", "coco_karpathy_test.json")
        for depth in (None, 5)
    ]
    ids = [benchmark.gallery_id for benchmark in made]
    assert ids[::2] == ids[1::2]
    assert len(set(ids)) == 4


@BOTH
def test_a_benchmark_is_cheap_until_it_is_set_up(tmp_path: Path, kind: type[Any]) -> None:
    benchmark = pickle.loads(pickle.dumps(kind("")))
    assert benchmark.name.startswith("coco_karpathy_test_")
    with pytest.raises(UserError, match="the data root is empty"):
        benchmark.setup()
    twice = read(kind, write(tmp_path, ROWS))
    first = twice.checksum()
    twice.setup()
    assert twice.checksum() == first


REAL = Path(os.environ.get("DATA_ROOT", "")) / "benchmarks" / "plugir"


@pytest.mark.skipif(
    not os.environ.get("DATA_ROOT") or not REAL.is_dir(), reason="needs DATA_ROOT/benchmarks/plugir"
)
def test_real_captions_in_this_format(tmp_path: Path) -> None:
    """5,000 photographs of COCO, published in another format: most with five captions."""
    names = json.loads((REAL / "Search_Space_coco.json").read_text(encoding="utf-8"))
    captions = json.loads((REAL / "coco_captions.json").read_text(encoding="utf-8"))
    rows = [{"image": n, "caption": c["caption"]} for n, c in zip(names, captions, strict=True)]
    write(tmp_path, rows, "coco_karpathy_test.json")
    images = read(KarpathyTextToImage, tmp_path, annotations="coco_karpathy_test.json")
    texts = read(KarpathyImageToText, tmp_path, annotations="coco_karpathy_test.json")
    assert (len(images.gallery), len(images.queries)) == (5000, 25_014)
    assert (len(texts.gallery), len(texts.queries)) == (25_014, 5000)
    assert {len(query.targets) for query in texts.queries} == {5, 6, 7}
