"""CIRR: composed retrieval on photographs (Liu et al., arXiv 2108.04024).

The pool of a split is what `image_splits/split.rc2.<split>.json` lists, never what lies in the
image folder: that holds NLVR2's other images as well, and ranking them costs about 13 points of
recall@1 (https://github.com/lucas-ventura/CoVR/issues/18).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.benchmarks.servers import CIRR_VERSION as VERSION
from cirlab.benchmarks.servers import LIST_SIZE
from cirlab.errors import UserError
from cirlab.metrics import recalls
from cirlab.reading.json_files import JsonArray, read_text_mapping
from cirlab.reading.jsonl import Row, unique
from cirlab.reading.official import DataRoot, check_choice, check_size, tell_size
from cirlab.records import FileImage, Query

#: Look-alikes of a query, its reference and target among them.
SET_SIZE = 6
#: The number that many papers sort by: (R@5 + R_subset@1) / 2.
HEADLINE = "mean_of_recall_at_5_and_subset_recall_at_1"


class Published(NamedTuple):
    """Sizes of a split."""

    queries: int
    images: int


#: Counted in the files of branch cirr_dataset of https://github.com/Cuberick-Orion/CIRR, whose
#: README corrects the paper's 4,184 queries of val.
PUBLISHED = {"val": Published(4181, 2297), "test1": Published(4148, 2315)}
#: Counted in the list of the same branch; the number of training queries could not be verified.
TRAIN_IMAGES = 16_939


class CIRRRules(Benchmark):
    """The reference is removed by id; only the principal target counts, in pool and subset."""

    kind = "composed"
    exclusion = "the reference image"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10/50, recall@1/2/3 in the subset, and CIRR's mean of two of them."""
        found = recalls(ranks.targets[:, :1], (1, 5, 10, 50))
        if ranks.subset is None:
            return found
        found |= recalls(ranks.subset[:, :1], (1, 2, 3), prefix="subset_recall")
        return found | {HEADLINE: (found["recall_at_5"] + found["subset_recall_at_1"]) / 2}


class CIRR(CIRRRules):
    """Reference photograph and change to target, ranked in the split's own pool.

    The pool is the split's list of images without the query's reference; a query's subset are the
    five look-alikes that its `img_set` holds besides. The hard target alone is correct.

    Refined CIRR (CoLLM, arXiv 2503.19910, section 4.2) has reworded and fewer queries for the
    same pool: give its file as `captions`.

    Args:
        root: the data folder, laid out as branch cirr_dataset of CIRR's repository.
        split: val, or test1, whose answers the server keeps; `callbacks.Submission` writes what
            it takes.
        name: in the results; null: cirr_<split>, with `captions` cirr_<split>_refined.
        images: path of an image below root; {path} is that of the split's list, {file} its
            last part, {name} CIRR's name without suffix, {split} val or test1.
        captions: another file of queries in the same format, below root or absolute; null: the
            official one.
        official: refuse a pool or, without `captions`, a number of queries that is not the
            published one; false accepts any.

    Raises:
        UserError: there is no such split to evaluate.
    """

    def __init__(
        self,
        root: str,
        split: Literal["val", "test1"],
        name: str | None = None,
        images: str = "img_raw/{path}",
        captions: str | None = None,
        official: bool = True,
    ) -> None:
        check_choice("split of CIRR", split, ("val", "test1"))
        self.root = root
        self.split = split
        self.name = name or f"cirr_{split}{'' if captions is None else '_refined'}"
        self.images = images
        self.captions = captions
        self.official = official
        self.answered = split == "val"
        if not self.answered:
            self.submission = "cirr"
            self.list_size = LIST_SIZE

    @property
    def gallery_id(self) -> str:
        return self._images.folder.identity("cirr", self.split)

    @property
    def _images(self) -> CIRRImages:
        return CIRRImages(self.root, self.images, self.split)

    def setup(self) -> None:
        images = self._images
        pool = images.pool()
        path = images.folder.folder / (self.captions or captions_file(self.split))
        rows = list(cirr_rows(JsonArray(path), pool, answered=self.answered))
        self._check(images.list_file, len(pool), path, rows)
        self.gallery = list(pool.values())
        self.queries = [self._query(row, pool) for row in rows]

    def _check(self, list_file: Path, images: int, path: Path, rows: Sequence[CIRRRow]) -> None:
        published = PUBLISHED[self.split]
        if self.official:
            check_size(f"images of CIRR's {self.split} pool", images, published.images, list_file)
            _check_sets(path, rows)
        if self.captions is not None:
            tell_size("queries", len(rows), published.queries, path)
        elif self.official:
            check_size(f"queries of CIRR's {self.split}", len(rows), published.queries, path)

    def _query(self, row: CIRRRow, pool: Mapping[str, FileImage]) -> Query:
        return Query(
            id=row.id,
            text=row.caption,
            image=pool[row.reference],
            targets=() if row.target is None else (row.target,),
            exclude=(row.reference,),
            subset=tuple(name for name in row.members if name != row.reference),
        )


class CIRRImages:
    """The images of one split.

    Args:
        root: the data folder.
        images: path template, see `CIRR`.
        split: train, val or test1.

    Raises:
        UserError: root or template cannot be used.
    """

    def __init__(self, root: str, images: str, split: str) -> None:
        self.folder = DataRoot(root, images, fields=("name", "path", "file", "split"))
        self.split = split
        self.list_file = self.folder.folder / "image_splits" / f"split.{VERSION}.{split}.json"

    def pool(self) -> dict[str, FileImage]:
        """The split's images by CIRR's names, in its order.

        Raises:
            UserError: the split's list is missing, cut off or malformed.
        """
        listed = read_text_mapping(self.list_file)
        return {name: self._image(name, PurePosixPath(path)) for name, path in listed.items()}

    def _image(self, name: str, path: PurePosixPath) -> FileImage:
        return self.folder.image(name, name=name, path=str(path), file=path.name, split=self.split)


@dataclass(frozen=True)
class CIRRRow:
    """One query as CIRR's captions files hold it.

    Attributes:
        caption: empty in one query of test1.
        target: the hard target; None where answers are held back.
        members: of its image set, the reference included.
        also_correct: other images that annotators found to fit as well (soft score 1).
    """

    id: str
    reference: str
    caption: str
    members: tuple[str, ...]
    target: str | None = None
    also_correct: tuple[str, ...] = ()


def captions_file(split: str) -> str:
    """Where the official queries of a split lie below the root."""
    return f"captions/cap.{VERSION}.{split}.json"


def cirr_rows(rows: JsonArray, pool: Container[str], *, answered: bool) -> Iterator[CIRRRow]:
    """All queries of a captions file.

    Args:
        rows: the file.
        pool: names of the split's images.
        answered: whether the file holds targets.

    Raises:
        UserError: a query is malformed, or contradicts pool or image set.
    """
    for row in unique(rows, lambda row: f"the pairid {row.text('pairid')}", "remove one of them"):
        yield cirr_row(row, pool, answered=answered)


def cirr_row(row: Row, pool: Container[str], *, answered: bool) -> CIRRRow:
    """One query of a captions file; see `cirr_rows`."""
    reference = row.text("reference")
    target = row.text("target_hard") if answered else None
    parsed = CIRRRow(
        id=row.text("pairid"),
        reference=reference,
        caption=_caption(row),
        members=_members(row),
        target=target,
        also_correct=_also_correct(row, but=(reference, target)),
    )
    _check_row(row, parsed, pool)
    return parsed


def _caption(row: Row) -> str:
    caption = row.get("caption")
    if isinstance(caption, str) and not caption.strip():
        return ""
    return row.text("caption").strip()


def _members(row: Row) -> tuple[str, ...]:
    members = row.object("img_set").texts("members")
    if len(set(members)) < len(members):
        raise row.error(f"img_set names an image twice in {', '.join(members)}; correct it")
    return members


def _also_correct(row: Row, but: tuple[str | None, ...]) -> tuple[str, ...]:
    soft = row.object("target_soft") if row.get("target_soft") else {}
    return tuple(name for name, score in soft.items() if score == 1 and name not in but)


def _check_row(row: Row, parsed: CIRRRow, pool: Container[str]) -> None:
    """Refuse what contradicts the pool, or could never be found."""
    named = {"reference": parsed.reference}
    if parsed.target is not None:
        named["target_hard"] = parsed.target
    for field, name in named.items():
        if name not in parsed.members:
            raise row.error(
                f"the {field} {name} is not among the members of its img_set; CIRR's always is, "
                "so get the official file"
            )
    if unknown := [name for name in parsed.members if name not in pool]:
        raise row.error(
            f"{unknown[0]} is not in the split's pool (image_splits/split.{VERSION}.*.json); "
            "captions and image_splits must be of one split and version"
        )
    if parsed.reference == parsed.target:
        raise row.error(f"{parsed.reference} is both reference and target_hard; correct one")


def _check_sets(path: Path, rows: Sequence[CIRRRow]) -> None:
    for row in rows:
        if len(row.members) != SET_SIZE:
            raise UserError(
                f"{path}, pairid {row.id}: its img_set has {len(row.members)} members, CIRR's have "
                f"{SET_SIZE}; get the official file, or set official: false"
            )
