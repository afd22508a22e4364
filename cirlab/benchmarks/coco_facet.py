"""COCO-Facet: text queries about one attribute of an image, each with 100 candidates.

Promptable embeddings (arXiv 2505.15877). Files and rules are those of
https://github.com/lst627/COCO-Facet.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.metrics import recalls
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import Row
from cirlab.reading.official import DataRoot, check_choice, tell_size
from cirlab.records import FileImage, Query

log = logging.getLogger(__name__)

Facet = Literal[
    "COCO_object",
    "COCO_animal",
    "COCO_gesture",
    "COCOStuff_material",
    "Visual7W_scene",
    "Visual7W_time",
    "Visual7W_people_num",
    "mix_weather",
]


class _Place(NamedTuple):
    """Where a facet's images lie below the data folder, and how numbers become file names."""

    folder: str
    file: str


_COCO = _Place("val2017", "{:012d}.jpg")
_VISUAL7W = _Place("visual7w/images", "v7w_{}.jpg")
#: The image folders of the repository's evaluation scripts (VLM2Vec/eval_*.sh).
PLACES: Mapping[Facet, _Place] = {
    "COCO_object": _COCO,
    "COCO_animal": _COCO,
    "COCO_gesture": _COCO,
    "COCOStuff_material": _COCO,
    "Visual7W_scene": _VISUAL7W,
    "Visual7W_time": _VISUAL7W,
    "Visual7W_people_num": _VISUAL7W,
    "mix_weather": _Place("", "{:012d}.jpg"),
}
#: Of all facets, as the paper's abstract says.
QUERIES = 9112
#: Images that each query ranks, the correct one first (notebooks in construction/).
CANDIDATES = 100


class COCOFacetRules(Benchmark):
    """Recall among the query's own candidates, of each facet and their mean."""

    kind: ClassVar[QueryKind] = "text"
    breakdowns: ClassVar[tuple[str, ...]] = ("facet",)
    average_over: ClassVar[str | None] = "facet"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5."""
        return recalls(ranks.targets, (1, 5))


class COCOFacet(COCOFacetRules):
    """COCO-Facet as published: one facet, or all eight and their mean.

    Ids are paths of images below the data folder. An image that a query names twice counts once
    among its candidates: negatives are drawn from annotations, of which an image has several.

    Args:
        root: the data folder, with benchmark/<facet>_retrieval.json.
        facet: one of the eight; null: all.
        name: in the results; null: coco_facet, or coco_facet_<facet>.
        images: path of an image below root; {path} is val2017/<file>, visual7w/images/<file> or,
            of the weather facet, what its file says; {file} is its last part.
        official: refuse a query that does not name 100 candidates. How many queries all facets
            have is only logged beside the 9,112 of the paper, whose numbers by facet are not
            published.

    Raises:
        UserError: there is no such facet.
    """

    def __init__(
        self,
        root: str,
        facet: Facet | None = None,
        name: str | None = None,
        images: str = "{path}",
        official: bool = True,
    ) -> None:
        check_choice("facet of COCO-Facet", facet, (*PLACES, None))
        self.root = root
        self.facet = facet
        self.name = name or (f"coco_facet_{facet}" if facet else "coco_facet")
        self.images = images
        self.official = official

    @property
    def gallery_id(self) -> str:
        return self._data().identity("coco_facet", self.facet or "all")

    def setup(self) -> None:
        data = self._data()
        pool: dict[str, FileImage] = {}
        self.queries = []
        for facet in (self.facet,) if self.facet else PLACES:
            self.queries += self._queries(facet, data, pool)
        self.gallery = list(pool.values())
        if self.facet is None:
            tell_size("queries", len(self.queries), QUERIES, data.folder / "benchmark")

    def _data(self) -> DataRoot:
        return DataRoot(self.root, self.images, fields=("path", "file"))

    def _queries(self, facet: Facet, data: DataRoot, pool: dict[str, FileImage]) -> list[Query]:
        path = data.folder / "benchmark" / f"{facet}_retrieval.json"
        queries = list(self._read(facet, JsonArray(path), data, pool))
        repeated = sum(len(query.candidates or ()) < CANDIDATES for query in queries)
        if self.official and repeated:
            told = "%s: %d of %d queries name an image twice, which counts once"
            log.info(told, path, repeated, len(queries))
        return queries

    def _read(
        self, facet: Facet, rows: Sequence[Row], data: DataRoot, pool: dict[str, FileImage]
    ) -> Iterator[Query]:
        for number, row in enumerate(rows):
            entries = _entries(row)
            if self.official and len(entries) != CANDIDATES:
                raise row.error(
                    f"'tgt_img_path' holds {len(entries)} images, but {CANDIDATES} are published; "
                    "get the official file, or set official: false"
                )
            paths = [_path(row, entry, PLACES[facet]) for entry in entries]
            for path in paths:
                if path not in pool:
                    pool[path] = data.image_at(path)
            # One text per image serves all queries.
            ids = [pool[path].id for path in paths]
            yield Query(
                id=f"{facet}/{number}",
                text=row.text("qry_text").strip(),
                targets=(ids[0],),
                candidates=tuple(dict.fromkeys(ids)),
                tags={"facet": facet},
            )


def _entries(row: Row) -> list[Any]:
    """`tgt_img_path`: a list, or the text of a Python list, as half of the notebooks write it."""
    wanted = "a list of images, or the text of one; get the file again"
    value = row.get("tgt_img_path")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise row.wrong("tgt_img_path", wanted) from error
    if not isinstance(value, list) or not value:
        raise row.wrong("tgt_img_path", wanted)
    return value


def _path(row: Row, entry: object, place: _Place) -> str:
    """The path below the data folder of what is a path, a file name or a number."""
    if isinstance(entry, str) and entry.strip().isdecimal():
        entry = int(entry)
    if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
        entry = place.file.format(entry)
    if not isinstance(entry, str) or not entry.strip():
        raise row.error(
            f"'tgt_img_path' holds {entry!r}, but must hold numbers or names of images; get the "
            "file again"
        )
    path = PurePosixPath(entry)
    return str(path if path.is_relative_to(place.folder) else place.folder / path)
