"""Benchmarks over a user's own folder (`cirlab.reading.folder`): composed, captions, both ways."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks, check_rerank_depth
from cirlab.benchmarks.captions import captions_of, image_query
from cirlab.metrics import mean_average_precisions, recalls
from cirlab.reading.folder import ComposedRow, FacetRow, Folder, composed_row
from cirlab.reading.jsonl import Row, unique
from cirlab.records import Pair, Query

#: What files may exclude from a query's ranking, as the protocol says it.
EXCLUDED = "the query's own list"


class FolderBenchmark(Benchmark):
    """What they share: the pool is gallery.txt."""

    def __init__(self, root: str, split: str, name: str) -> None:
        self.root = root
        self.split = split
        self.name = name

    @property
    def gallery_id(self) -> str:
        return Folder(self.root).identity(self.split)

    def setup(self) -> None:
        folder = Folder(self.root)
        paths = folder.gallery(self.split)
        self.gallery = [folder.image(path) for path in paths]
        self.queries = list(self._queries(folder, frozenset(paths)))

    @abstractmethod
    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterator[Query]:
        """The benchmark's queries.

        Args:
            folder: with the files.
            pool: paths of the gallery's images.
        """


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they are.

    Raises:
        UserError: two have the same id.
    """
    return unique(rows, lambda row: f"the id {row.text('id')!r}", "give each query its own")


def check_paths(who: str, field: str, paths: Sequence[str], row: Row, pool: frozenset[str]) -> None:
    """Refuse a field that names what the pool does not have, or an image twice.

    An image that is twice among the candidates would be ranked twice.

    Raises:
        UserError: so it is; the sentence begins with `who`.
    """
    seen: set[str] = set()
    for path in paths:
        if path not in pool:
            raise row.error(
                f"{who} names {path} in {field!r}, but it is not in gallery.txt; add it there"
            )
        if path in seen:
            raise row.error(f"{who} names {path} twice in {field!r}; remove one of them")
        seen.add(path)


def check_pool(parsed: ComposedRow | FacetRow, row: Row, pool: frozenset[str]) -> None:
    """Refuse what could never be found.

    Raises:
        UserError: an image is not in the pool or named twice, or a target no candidate.
    """
    lists = {
        "targets": parsed.targets,
        "exclude": parsed.exclude,
        "candidates": parsed.candidates or (),
    }
    for field, paths in lists.items():
        check_paths(f"query {parsed.id!r}", field, paths, row, pool)
    if parsed.candidates is not None and not set(parsed.targets) <= set(parsed.candidates):
        lost = min(set(parsed.targets) - set(parsed.candidates))
        raise row.error(f"query {parsed.id!r} lacks its target {lost} in 'candidates'; add it")


class FolderComposed(FolderBenchmark):
    """Reference image and change to target: root/<split>/composed.jsonl.

    A query with several `texts` is asked with all of them, joined by ", ". Queries with
    `candidates` rank these alone.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        exclude_reference: never rank the reference itself, if it is in the pool. A reference
            resembles its target, so numbers with and without it do not compare.
        file: of the queries, in the split's folder.
    """

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("category",)

    def __init__(
        self,
        root: str,
        split: str,
        name: str,
        exclude_reference: bool = True,
        file: str = "composed.jsonl",
    ) -> None:
        super().__init__(root, split, name)
        self.exclude_reference = exclude_reference
        self.file = file
        reference = "the reference image and " if exclude_reference else ""
        self.exclusion = f"{reference}{EXCLUDED}"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10/50 of any target, and mAP@5/10 over all of them.

        Where every query has candidates of its own, which are few, recall@1/2/3 as in GeneCIS
        (arXiv 2306.07969) and mAP@5: among 15 candidates, chance alone has a recall@10 of 67%.
        """
        if all(query.candidates is not None for query in self.queries):
            found = recalls(ranks.targets, (1, 2, 3))
            return found | mean_average_precisions(ranks.targets, (5,))
        found = recalls(ranks.targets, (1, 5, 10, 50))
        return found | mean_average_precisions(ranks.targets, (5, 10))

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterator[Query]:
        for row in distinct(folder.rows(self.split, self.file)):
            yield self._query(folder, composed_row(row), row, pool)

    def _query(self, folder: Folder, parsed: ComposedRow, row: Row, pool: frozenset[str]) -> Query:
        check_pool(parsed, row, pool)
        exclude = parsed.exclude
        if self.exclude_reference and parsed.reference in pool:
            exclude = tuple(dict.fromkeys((*exclude, parsed.reference)))
            if parsed.reference in parsed.targets:
                raise row.error(
                    f"query {parsed.id!r} has its reference {parsed.reference} as a target, but "
                    "the reference is excluded; remove it from 'targets' or set "
                    "exclude_reference: false"
                )
        return Query(
            id=parsed.id,
            text=", ".join(parsed.texts),
            image=folder.image(parsed.reference),
            targets=parsed.targets,
            exclude=exclude,
            candidates=parsed.candidates,
            tags=parsed.tags,
        )


class FolderTextToImage(FolderBenchmark):
    """Caption to its image: root/<split>/pairs.jsonl.

    Only the caption's own image is correct, also where others would fit it as well.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        captions: ask with all captions of an image, one query each, or with the first.
        rerank_depth: this many of each query's best images are put in order again by the method's
            second stage; null: no second stage.
    """

    kind: ClassVar[QueryKind] = "text"

    def __init__(
        self,
        root: str,
        split: str,
        name: str,
        captions: Literal["all", "first"] = "all",
        rerank_depth: int | None = None,
    ) -> None:
        super().__init__(root, split, name)
        self.captions = captions
        self.rerank_depth = check_rerank_depth(rerank_depth)

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10."""
        return recalls(ranks.targets, (1, 5, 10))

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterator[Query]:
        asked: dict[str, int] = {}
        for row in folder.rows(self.split, "pairs.jsonl"):
            pair = folder.pair(row)
            image = pair.image.id
            if image not in pool:
                raise row.error(f"{image} is not in gallery.txt; add it there")
            captions = pair.captions if self.captions == "all" else pair.captions[:1]
            for caption in captions:
                number = asked[image] = asked.get(image, -1) + 1
                yield Query(id=f"{image}#{number}", text=caption, targets=(image,))


class FolderImageToText(Benchmark):
    """Image to its captions: root/<split>/pairs.jsonl, all of whose captions are the pool.

    Any caption of the image is correct and no other, also where another reads the same.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        rerank_depth: this many of each query's best captions are put in order again by the method's
            second stage; null: no second stage.
    """

    kind: ClassVar[QueryKind] = "image"

    def __init__(self, root: str, split: str, name: str, rerank_depth: int | None = None) -> None:
        self.root = root
        self.split = split
        self.name = name
        self.rerank_depth = check_rerank_depth(rerank_depth)

    @property
    def gallery_id(self) -> str:
        return f"{Folder(self.root).identity(self.split)}-captions"

    def setup(self) -> None:
        folder = Folder(self.root)
        captions: dict[str, list[str]] = {}
        for row in folder.rows(self.split, "pairs.jsonl"):
            captions.setdefault(row.text("image"), []).extend(row.texts("captions"))
        pairs = [Pair(folder.image(path), tuple(texts)) for path, texts in captions.items()]
        self.gallery = [caption for pair in pairs for caption in captions_of(pair)]
        self.queries = [image_query(pair) for pair in pairs]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10 of each image's best caption."""
        return recalls(ranks.targets, (1, 5, 10))
