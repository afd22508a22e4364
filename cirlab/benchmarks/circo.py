"""CIRCO: composed retrieval in COCO's unlabelled images, with several targets per query.

Baldrati et al., 2023 (arXiv 2303.15247). Files and rules are those of
https://github.com/miccunifi/CIRCO.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.benchmarks.servers import LIST_SIZE
from cirlab.errors import UserError
from cirlab.metrics import mean_average_precisions, recalls
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import Row, unique
from cirlab.reading.official import DataRoot, check_choice, check_size
from cirlab.records import FileImage, Query

Split = Literal["val", "test"]

CUTOFFS = (5, 10, 25, 50)
#: Queries of each split, counted in its file. The size of the pool could not be verified.
QUERIES: Mapping[Split, int] = {"val": 220, "test": 800}
#: The pool, below the data folder.
IMAGE_INFO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"

#: How published evaluations make a query's text: that of the authors; MagicLens (arXiv 2403.19651);
#: MegaPairs (arXiv 2412.14475), whose numbers need it
#: (https://github.com/VectorSpaceLab/MegaPairs/issues/15).
TEMPLATES: Mapping[str, str] = {
    "relative": "{relative_caption}",
    "magiclens": "find {shared_concept} but {relative_caption}",
    "megapairs": "Find a picture that also {shared_concept}, but {relative_caption}.",
}
FIELDS = ("relative_caption", "shared_concept")


class CIRCORules(Benchmark):
    """mAP over all targets, recall of the principal one, both by semantic aspect as well."""

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("aspect",)

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """mAP@5/10/25/50, and recall@5/10/25/50 of the principal target alone."""
        found = mean_average_precisions(ranks.targets, CUTOFFS)
        return found | recalls(ranks.targets[:, :1], CUTOFFS)


class CIRCO(CIRCORules):
    """CIRCO as published, over all of COCO's unlabelled images of 2017.

    Args:
        root: the data folder, with annotations/ and COCO2017_unlabeled/.
        split: val, or test, whose answers the server keeps.
        name: in the results; null: circo_<split>.
        query: how a query's words become its text: "relative" (the relative caption, as the
            authors do), "magiclens", "megapairs", or a template of your own over
            {relative_caption} and {shared_concept}. Numbers with different texts do not compare.
        exclude_reference: never rank the reference. The authors rank it; CoVR does not.
        images: path of an image below root; {id} is COCO's number.
        official: refuse a number of queries that is not the published one.

    Raises:
        UserError: there is no such split, or `query` is neither a named template nor one of your
            own.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        name: str | None = None,
        query: str = "relative",
        exclude_reference: bool = False,
        images: str = "COCO2017_unlabeled/unlabeled2017/{id:012d}.jpg",
        official: bool = True,
    ) -> None:
        check_choice("split of CIRCO", split, tuple(QUERIES))
        self.root = root
        self.split = split
        self.name = f"circo_{split}" if name is None else name
        self.query = query
        self.exclude_reference = exclude_reference
        self.exclusion = "the reference image" if exclude_reference else "none"
        self.images = images
        self.official = official
        self.answered = split != "test"
        self.submission = None if self.answered else "circo"
        self.list_size = 0 if self.answered else LIST_SIZE
        self.template = _template(query)
        self.query_template = f"{query}: {self.template}" if query in TEMPLATES else query

    @property
    def gallery_id(self) -> str:
        return self._data().identity("circo")

    def setup(self) -> None:
        data = self._data()
        pool = {image.id: image for image in _pool(data)}
        self.gallery = list(pool.values())
        self.queries = list(self._queries(data, pool))

    def _data(self) -> DataRoot:
        return DataRoot(self.root, self.images, fields=("id",))

    def _queries(self, data: DataRoot, pool: Mapping[str, FileImage]) -> Iterator[Query]:
        path = data.folder / "annotations" / f"{self.split}.json"
        rows = JsonArray(path)
        if self.official:
            check_size(f"queries of CIRCO's {self.split}", len(rows), QUERIES[self.split], path)
        for row in unique(rows, lambda row: f"the id {row.number('id')}", "get the file again"):
            yield self._query(row, pool)

    def _query(self, row: Row, pool: Mapping[str, FileImage]) -> Query:
        reference = _in_pool(row, "reference_img_id", row.number("reference_img_id"), pool)
        targets = _targets(row, pool) if self.answered else ()
        if reference in targets:
            raise row.error(
                f"the reference {row.number('reference_img_id')} stands among 'gt_img_ids', but a "
                "reference is no answer in CIRCO; get the file again"
            )
        words = {field: row.text(field) for field in FIELDS}
        aspects = row.optional_texts("semantic_aspects")
        return Query(
            id=str(row.number("id")),
            text=self.template.format(**words),
            image=pool[reference],
            targets=targets,
            exclude=(reference,) if self.exclude_reference else (),
            tags={"aspect": "+".join(aspects)} if aspects else {},
        )


def _pool(data: DataRoot) -> Iterator[FileImage]:
    path = data.folder / IMAGE_INFO
    rows = JsonArray(path, at=("images",))
    for row in unique(rows, lambda row: f"the image {row.number('id')}", "get the file again"):
        number = row.number("id")
        yield data.image(_file_name(number), id=number)


def _file_name(number: int) -> str:
    """COCO's name of an image, which `cirlab.retrieval.submission` takes back to the number."""
    return f"{number:012d}.jpg"


def _targets(row: Row, pool: Mapping[str, FileImage]) -> tuple[str, ...]:
    """All correct images, the principal one first."""
    numbers, principal = row.numbers("gt_img_ids"), row.number("target_img_id")
    if numbers[0] != principal:
        raise row.error(
            f"'gt_img_ids' begins with {numbers[0]}, but must begin with 'target_img_id', "
            f"{principal}; get the file again"
        )
    if len(set(numbers)) < len(numbers):
        raise row.error(f"'gt_img_ids' names an image twice: {list(numbers)}; get the file again")
    return tuple(_in_pool(row, "gt_img_ids", number, pool) for number in numbers)


def _in_pool(row: Row, field: str, number: int, pool: Mapping[str, FileImage]) -> str:
    name = _file_name(number)
    if name not in pool:
        raise row.error(
            f"{field!r} names the image {number}, which is not among the {len(pool):,} images of "
            f"{Path(IMAGE_INFO).name}; get both files again"
        )
    return name


def _template(query: str) -> str:
    """The template that a name stands for, or one's own, checked."""
    if query in TEMPLATES:
        return TEMPLATES[query]
    known = f"{', '.join(TEMPLATES)}, or a text with {{relative_caption}} or {{shared_concept}}"
    try:
        parts = list(string.Formatter().parse(query))
        query.format(**dict.fromkeys(FIELDS, ""))
    # An unknown name, a brace alone, or a format that texts do not have.
    except (ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"CIRCO's query {query!r} is no template ({error}); use one of: {known}"
        ) from error
    if not any(name is not None for _, name, _, _ in parts):
        raise UserError(f"CIRCO's query {query!r} is the same for every query; use one of: {known}")
    return query
