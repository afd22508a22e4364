"""A small benchmark of every exported class, and the definition that its numbers must meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirlab.benchmarks import (
    CIRCO,
    CIRR,
    Benchmark,
    ChatIR,
    COCOFacet,
    FashionIQ,
    FolderComposed,
    FolderDialogues,
    FolderFacets,
    FolderImageToText,
    FolderTextToImage,
    GeneCIS,
    KarpathyImageToText,
    KarpathyTextToImage,
    WorldCIRCO,
    WorldCIRR,
    WorldComposed,
    WorldDialogue,
    WorldFacet,
    WorldFashionIQ,
    WorldGeneCIS,
    WorldTextToImage,
)
from cirlab.benchmarks.circo import IMAGE_INFO
from cirlab.benchmarks.coco_facet import PLACES
from cirlab.benchmarks.genecis import TASKS
from tests.benchmarks import oracle
from tests.benchmarks.composed_files import CATEGORIES, cirr_name, cirr_row, garment, write_json
from tests.benchmarks.oracle import Definition
from tests.datamodules.toys import write_folder, write_jsonl

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        kind: its class.
        make: writes its files below a folder, and returns it before `setup()`.
        definition: of its metrics.
    """

    kind: type[Benchmark]
    make: Callable[[Path], Benchmark]
    definition: Definition


# ---- official formats -----------------------------------------------------------------------


def cirr(root: Path) -> Benchmark:
    rng = random.Random(0)
    names = [cirr_name(n) for n in range(70)]
    rows = []
    for pair in range(30):
        members = rng.sample(range(70), 6)
        rows.append(cirr_row(pair, members[0], members[1], rng.sample(members, 6)))
    write_json(root / "image_splits" / "split.rc2.val.json", {n: f"./dev/{n}.png" for n in names})
    write_json(root / "captions" / "cap.rc2.val.json", rows)
    return CIRR(str(root), "val", official=False)


def fashioniq(**options: Any) -> Callable[[Path], Benchmark]:
    def make(root: Path) -> Benchmark:
        rng = random.Random(0)
        for number, category in enumerate(CATEGORIES):
            # Lists of categories overlap, as the official ones do.
            names = [f"B{n:03}" for n in range(50 * number, 50 * number + 70)]
            rows = [garment(*rng.sample(names, 2), f"is {n}", f"has {n}") for n in range(9)]
            write_json(root / "image_splits" / f"split.{category}.val.json", names)
            write_json(root / "captions" / f"cap.{category}.val.json", rows[: 9 - 2 * number])
        return FashionIQ(str(root), **{"official": False, **options})

    return make


def circo(images: int = 70, queries: int = 24, **options: Any) -> Callable[[Path], Benchmark]:
    def make(root: Path) -> Benchmark:
        rng = random.Random(0)
        aspects = ("negation", "addition", "cardinality", "background")
        rows: Rows = []
        for number in range(queries):
            reference, *targets = rng.sample(range(images), 2 + number % 7)
            rows.append(
                {
                    "id": number,
                    "reference_img_id": reference,
                    "target_img_id": targets[0],
                    "gt_img_ids": targets,
                    "relative_caption": f"is {number}",
                    "shared_concept": "a thing",
                    "semantic_aspects": rng.sample(aspects, 1 + number % 3),
                }
            )
        write_json(root / "annotations" / "val.json", rows)
        listed = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(images)]
        write_json(root / IMAGE_INFO, {"images": listed})
        return CIRCO(str(root), "val", **{"official": False, **options})

    return make


def genecis(root: Path) -> Benchmark:
    rng = random.Random(0)
    for number, task in enumerate(TASKS):
        is_object = task.endswith("object")
        rows = []
        for _ in range(5 + 2 * number):
            drawn = rng.sample(range(40), 16 if is_object else 11)
            images = [
                {"val_image_id": n} if is_object else {"image_id": n, "instance_bbox": [4, 2, 5, 5]}
                for n in drawn
            ]
            reference, target, *gallery = images
            row = {"condition": "red", "reference": reference, "target": target, "gallery": gallery}
            rows.append(row)
        # One official row names its target twice.
        rows[0]["gallery"] = [rows[0]["target"], *rows[0]["gallery"]]
        write_json(root / "genecis" / f"{task}.json", rows)
    return GeneCIS(str(root), official=False)


def coco_facet(root: Path) -> Benchmark:
    rng = random.Random(0)
    for number, facet in enumerate(PLACES):
        rows = [
            {
                "qry_text": f"Find me an image of {n}.\n",
                "qry_img_path": "",
                "tgt_text": "",
                "tgt_img_path": [*drawn, *drawn[1:4]],
            }
            for n in range(3 + number % 4)
            for drawn in [rng.sample(range(1, 40), 20)]
        ]
        write_json(root / "benchmark" / f"{facet}_retrieval.json", rows)
    return COCOFacet(str(root), official=False)


def chatir(texts: int = 5) -> Callable[[Path], Benchmark]:
    def make(root: Path) -> Benchmark:
        paths = [f"unlabeled2017/{n:012d}.jpg" for n in range(50)]
        write_json(root / "ChatIR_Protocol" / "Search_Space_val_50k.json", paths)
        rows = [
            {"img": path, "dialog": [f"a {n}", *(f"is it {m}? no" for m in range(1, texts))]}
            for n, path in enumerate(paths[::4])
        ]
        write_json(root / "dialogues" / "Human_BLIP2.json", rows)
        return ChatIR(str(root), "Human_BLIP2", official=False)

    return make


def karpathy(kind: type[Any]) -> Callable[[Path], Benchmark]:
    def make(root: Path) -> Benchmark:
        rows = [
            {"image": f"val2014/{n}.jpg", "caption": [f"{n} and {m}" for m in range(1 + n % 6)]}
            for n in range(25)
        ]
        write_json(root / "test.json", rows)
        benchmark: Benchmark = kind(str(root), annotations="test.json", official=False)
        return benchmark

    return make


# ---- own folders ----------------------------------------------------------------------------


def composed(candidates: str) -> Callable[[Path], Benchmark]:
    """Queries have candidates of their own: none, some, or all of them."""

    def make(root: Path) -> Benchmark:
        rng = random.Random(0)
        names = write_folder(root, count=25, split="val")
        rows: Rows = []
        for number in range(20):
            reference, *drawn = rng.sample(names, 14)
            row = {
                "id": f"q{number}",
                "reference": reference,
                "text": f"is {number}",
                "targets": drawn[: 1 + number % 4],
                "exclude": drawn[12 - number % 3 : 12],
                "category": ("one", "two", "one+three")[number % 3],
            }
            if candidates == "all" or (candidates == "some" and number % 2):
                row["candidates"] = rng.sample(drawn, len(drawn))
            rows.append(row)
        write_jsonl(root / "val" / "composed.jsonl", rows)
        return FolderComposed(str(root), "val", "own")

    return make


def folder_facets(root: Path) -> Benchmark:
    rng = random.Random(0)
    names = write_folder(root, count=25, split="val")
    rows: Rows = []
    for number in range(15):
        drawn = rng.sample(names, 22)
        row = {
            "id": f"q{number}",
            "facet": ("colour", "number", "place")[min(number // 4, 2)],
            "text": f"something {number}",
            "targets": drawn[: 1 + number],
            "exclude": drawn[20:],
        }
        if number % 3 == 0:
            row["candidates"] = rng.sample(drawn, len(drawn))
        rows.append(row)
    write_jsonl(root / "val" / "facets.jsonl", rows)
    return FolderFacets(str(root), "val", "own")


def folder_dialogues(root: Path) -> Benchmark:
    rng = random.Random(0)
    names = write_folder(root, count=25, split="val")
    rows = [
        {
            "id": f"d{number}",
            "rounds": [f"a {number}", *(f"is it {m}? no" for m in range(number % 5))],
            "targets": rng.sample(names, 1 + number % 3),
        }
        for number in range(12)
    ]
    write_jsonl(root / "val" / "dialogues.jsonl", rows)
    return FolderDialogues(str(root), "val", "own", hits_at=3)


def pairs(kind: type[Any]) -> Callable[[Path], Benchmark]:
    def make(root: Path) -> Benchmark:
        write_folder(root, count=25, split="val")
        benchmark: Benchmark = kind(str(root), "val", "own")
        return benchmark

    return make


# ---- all of them ----------------------------------------------------------------------------


def by(tag: str, score: Callable[[list[oracle.Sorted]], oracle.Metrics]) -> Definition:
    """Broken down by one tag, and averaged over its values."""
    return Definition(score, tags=(tag,), average_over=tag)


def in_memory(make: Callable[[], Benchmark]) -> Callable[[Path], Benchmark]:
    return lambda _: make()


WORLD_TAGS: Sequence[str] = ("category", "style", "changes")
CIRCO_DEFINITION = Definition(oracle.circo, tags=("aspect",))
FASHION = by("category", oracle.recall_of(10, 50))
TEXT_TO_IMAGE = Definition(oracle.ranked(1, 5, 10))
WHOLE = Definition(oracle.precision_and_recall((1, 5, 10, 50), (5, 10)), tags=("category",))

CASES: Mapping[str, Case] = {
    "chatir": Case(ChatIR, chatir(), oracle.dialogue()),
    "chatir, captions alone": Case(ChatIR, chatir(texts=1), oracle.dialogue()),
    "circo": Case(CIRCO, circo(), CIRCO_DEFINITION),
    "circo, no reference": Case(CIRCO, circo(exclude_reference=True), CIRCO_DEFINITION),
    "cirr": Case(CIRR, cirr, Definition(oracle.cirr)),
    "coco_facet": Case(COCOFacet, coco_facet, by("facet", oracle.recall_of(1, 5))),
    "fashioniq": Case(FashionIQ, fashioniq(), FASHION),
    "fashioniq, union": Case(FashionIQ, fashioniq(pool="union"), FASHION),
    "fashioniq, both orders": Case(FashionIQ, fashioniq(both_orders=True), FASHION),
    "fashioniq, no reference": Case(FashionIQ, fashioniq(exclude_reference=True), FASHION),
    "folder composed": Case(FolderComposed, composed("none"), WHOLE),
    "folder composed, some candidates": Case(FolderComposed, composed("some"), WHOLE),
    "folder composed, candidates": Case(
        FolderComposed,
        composed("all"),
        Definition(oracle.precision_and_recall((1, 2, 3), (5,)), tags=("category",)),
    ),
    "folder dialogues": Case(FolderDialogues, folder_dialogues, oracle.dialogue(hits_at=3)),
    "folder facets": Case(
        FolderFacets, folder_facets, by("facet", oracle.precision_and_recall((1, 5, 10), (10,)))
    ),
    "folder image to text": Case(
        FolderImageToText, pairs(FolderImageToText), Definition(oracle.recall_of(1, 5, 10))
    ),
    "folder text to image": Case(
        FolderTextToImage, pairs(FolderTextToImage), Definition(oracle.recall_of(1, 5, 10))
    ),
    "genecis": Case(GeneCIS, genecis, by("task", oracle.recall_of(1, 2, 3))),
    "karpathy image to text": Case(
        KarpathyImageToText, karpathy(KarpathyImageToText), TEXT_TO_IMAGE
    ),
    "karpathy text to image": Case(
        KarpathyTextToImage, karpathy(KarpathyTextToImage), TEXT_TO_IMAGE
    ),
    "world circo": Case(WorldCIRCO, in_memory(lambda: WorldCIRCO(3, queries=30)), CIRCO_DEFINITION),
    "world circo, no reference": Case(
        WorldCIRCO,
        in_memory(lambda: WorldCIRCO(3, queries=30, exclude_reference=True)),
        CIRCO_DEFINITION,
    ),
    "world cirr": Case(
        WorldCIRR, in_memory(lambda: WorldCIRR(3)), Definition(oracle.cirr, tags=WORLD_TAGS)
    ),
    "world composed": Case(
        WorldComposed,
        in_memory(lambda: WorldComposed(3, queries_per_family=12)),
        Definition(oracle.world_composed, tags=WORLD_TAGS),
    ),
    "world dialogue": Case(
        WorldDialogue,
        in_memory(lambda: WorldDialogue(3, dialogues=15, rounds=4)),
        oracle.dialogue(),
    ),
    "world dialogue, the newest alone": Case(
        WorldDialogue,
        in_memory(lambda: WorldDialogue(3, dialogues=15, rounds=4, history="current")),
        oracle.dialogue(),
    ),
    "world facet": Case(
        WorldFacet,
        in_memory(lambda: WorldFacet(14, queries_per_facet=4, negatives=30)),
        by("facet", oracle.recall_of(1, 5)),
    ),
    "world fashioniq": Case(
        WorldFashionIQ, in_memory(lambda: WorldFashionIQ(14, queries_per_category=8)), FASHION
    ),
    "world fashioniq, both orders, no reference": Case(
        WorldFashionIQ,
        in_memory(
            lambda: WorldFashionIQ(
                14, queries_per_category=8, both_orders=True, exclude_reference=True
            )
        ),
        FASHION,
    ),
    "world genecis": Case(
        WorldGeneCIS,
        in_memory(lambda: WorldGeneCIS(14, queries_per_task=6)),
        by("task", oracle.recall_of(1, 2, 3)),
    ),
    "world text to image": Case(
        WorldTextToImage, in_memory(lambda: WorldTextToImage(60)), TEXT_TO_IMAGE
    ),
}
