"""Small files in the official formats of CIRR and Fashion-IQ, with rows of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.datamodules.toys import jpeg

Rows = list[dict[str, Any]]
CATEGORIES = ("dress", "shirt", "toptee")


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def cirr_name(number: int) -> str:
    return f"dev-{number}-0-img0"


def cirr_row(pair: int, reference: int, target: int | None, members: Sequence[int]) -> Any:
    row: dict[str, Any] = {
        "pairid": pair,
        "reference": cirr_name(reference),
        "caption": f"make it look like {pair}",
        "img_set": {"id": 1, "members": [cirr_name(n) for n in members], "reference_rank": 0},
    }
    if target is not None:
        row |= {"target_hard": cirr_name(target), "target_soft": {cirr_name(target): 1.0}}
    return row


#: Three queries of a pool of nine. Where image n stands at n * 10 degrees, queries 1 and 3 at 0
#: and query 2 at 90 degrees, the references come first, and without them the targets have ranks
#: 2, 6 and 5 in the pool, and 1, 3 and 2 in their subsets.
CIRR_ROWS: Rows = [
    cirr_row(1, reference=0, target=2, members=(3, 2, 0, 4, 5, 6)),
    cirr_row(2, reference=8, target=2, members=(8, 7, 5, 2, 1, 0)),
    cirr_row(3, reference=0, target=5, members=(0, 3, 5, 6, 7, 8)),
]


def write_cirr(root: Path, rows: Any = None, split: str = "val", images: int = 9) -> Path:
    """Captions, list and images of one split; training images lie in folders of their own."""
    names = [cirr_name(number) for number in range(images)]
    sub = {"val": "dev", "train": "train/7"}.get(split, split)
    write_json(
        root / "image_splits" / f"split.rc2.{split}.json",
        {name: f"./{sub}/{name}.png" for name in names},
    )
    (root / "img_raw" / sub).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (root / "img_raw" / sub / f"{name}.png").write_bytes(jpeg(10 * number))
    rows = CIRR_ROWS if rows is None else rows
    write_json(root / "captions" / f"cap.rc2.{split}.json", rows)
    return root


def garment(target: str, candidate: str, *captions: str) -> dict[str, Any]:
    return {"target": target, "candidate": candidate, "captions": list(captions)}


#: Image lists of the three categories; B40 is a shirt and a top.
FASHION_LISTS: Mapping[str, Sequence[str]] = {
    "dress": [f"B{n:02}" for n in range(14)],
    "shirt": ["B40", "B41", "B42"],
    "toptee": ["B50", "B51", "B40"],
}
FASHION_ROWS: Mapping[str, Rows] = {
    "dress": [
        garment("B13", "B00", "Is redder.", "has a bow, "),
        garment("B12", "B00", "is shorter", "is Green (bright)"),
    ],
    "shirt": [garment("B41", "B40", "says hello", " ")],
    "toptee": [garment("B51", "B50", "no sleeves", "is blue?")],
}


def write_fashioniq(
    root: Path, rows: Mapping[str, Any] = FASHION_ROWS, split: str = "val", suffix: str = "png"
) -> Path:
    """Captions, lists and images of all categories of one split."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for category in CATEGORIES:
        names = FASHION_LISTS[category]
        write_json(root / "image_splits" / f"split.{category}.{split}.json", names)
        write_json(root / "captions" / f"cap.{category}.{split}.json", rows[category])
        for name in names:
            (root / "images" / f"{name}.{suffix}").write_bytes(jpeg(int(name[1:])))
    return root
