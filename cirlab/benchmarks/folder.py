"""Benchmarks over a user's own folder (`cirlab.folder`): composed, and text to image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from cirlab.benchmarks.base import Benchmark, Protocol, QueryKind, TargetRanks
from cirlab.folder import ComposedRow, Folder, composed_row
from cirlab.jsonl import Row
from cirlab.metrics import mean_average_precisions, recalls
from cirlab.records import Query


class _FolderBenchmark(Benchmark):
    """What both share: the pool is gallery.txt."""

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

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterable[Query]:
        raise NotImplementedError


class FolderComposed(_FolderBenchmark):
    """Reference image and change to target: root/<split>/composed.jsonl.

    A query with several `texts` is asked with all of them, joined by ", ". Queries with
    `candidates` rank these alone.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        exclude_reference: never rank the reference itself, if it is in the pool. A reference
            resembles its target, so numbers with and without it do not compare.
    """

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("category",)

    def __init__(self, root: str, split: str, name: str, exclude_reference: bool = True) -> None:
        super().__init__(root, split, name)
        self.exclude_reference = exclude_reference

    def protocol(self) -> Protocol:
        rule = "the query's own list, by id"
        rule = f"the reference and {rule}" if self.exclude_reference else rule
        return replace(super().protocol(), exclusion=rule)

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10/50 of any target, and mAP@5/10 over all of them."""
        found = recalls(ranks.targets, (1, 5, 10, 50))
        return found | mean_average_precisions(ranks.targets, (5, 10))

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterable[Query]:
        seen: dict[str, Row] = {}
        for row in folder.rows(self.split, "composed.jsonl"):
            parsed = composed_row(row)
            if parsed.id in seen:
                raise row.error(
                    f"the id {parsed.id!r} stands already in {seen[parsed.id].where}; "
                    "give each query its own"
                )
            seen[parsed.id] = row
            yield self._query(folder, parsed, row, pool)

    def _query(self, folder: Folder, parsed: ComposedRow, row: Row, pool: frozenset[str]) -> Query:
        exclude = parsed.exclude
        if self.exclude_reference and parsed.reference in pool:
            exclude = tuple(dict.fromkeys((*exclude, parsed.reference)))
        _check_pool(parsed, exclude, row, pool)
        return Query(
            id=parsed.id,
            text=", ".join(parsed.texts),
            image=folder.image(parsed.reference),
            targets=parsed.targets,
            exclude=exclude,
            candidates=parsed.candidates,
            tags=parsed.tags,
        )


def _check_pool(
    parsed: ComposedRow, exclude: tuple[str, ...], row: Row, pool: frozenset[str]
) -> None:
    """Refuse what could never be found, or is found by mistake."""
    lists = {
        "targets": parsed.targets,
        "exclude": parsed.exclude,
        "candidates": parsed.candidates or (),
    }
    for name, paths in lists.items():
        for path in paths:
            if path not in pool:
                raise row.error(
                    f"query {parsed.id!r} names {path} in {name!r}, but it is not in gallery.txt; "
                    "add it there"
                )
    if excluded := set(parsed.targets) & set(exclude):
        raise row.error(
            f"query {parsed.id!r} has its reference {min(excluded)} as a target, but the "
            "reference is excluded; remove it from 'targets' or set exclude_reference: false"
        )
    if parsed.candidates is not None and not set(parsed.targets) <= set(parsed.candidates):
        lost = min(set(parsed.targets) - set(parsed.candidates))
        raise row.error(f"query {parsed.id!r} lacks its target {lost} in 'candidates'; add it")


class FolderTextToImage(_FolderBenchmark):
    """Caption to its image: root/<split>/pairs.jsonl.

    Only the caption's own image is correct, also where others would fit it as well.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        captions: ask with all captions of an image, one query each, or with the first.
    """

    kind: ClassVar[QueryKind] = "text"

    def __init__(
        self, root: str, split: str, name: str, captions: Literal["all", "first"] = "all"
    ) -> None:
        super().__init__(root, split, name)
        self.captions = captions

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10."""
        return recalls(ranks.targets, (1, 5, 10))

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterable[Query]:
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
