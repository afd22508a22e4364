"""From encoded gallery and queries to the results of one benchmark.

No model and no Lightning: the retrieval callback gathers the vectors and comes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cirlab.benchmarks.base import Benchmark, breakdown_rows
from cirlab.errors import UserError
from cirlab.index import GalleryIndex
from cirlab.metrics import best_ranks
from cirlab.records import Image, Query

#: Encoded parts of a composed query that are ranked beside it.
PARTS = ("image_only", "text_only")


@dataclass(frozen=True)
class Encoded:
    """The vectors of a whole gallery or query set, row i belonging to item i.

    Attributes:
        vectors: by name, each of shape (N, D). A gallery has "gallery" and perhaps "baseline";
            queries have "query" and perhaps "image_only" and "text_only".
        valid: False where the item's image could not be read. Shape (N,), bool.
    """

    vectors: Mapping[str, Tensor]
    valid: Tensor

    def kept(self, name: str) -> Tensor:
        """The vectors of valid items. Shape (V, D)."""
        return self.vectors[name][self.valid]


@dataclass(frozen=True)
class Ranking:
    """What the best images of every query are, for looking at.

    Attributes:
        queries: positions in `Benchmark.queries` of the Q queries that were ranked.
        images: positions in `Benchmark.gallery`, best first, -1 where there are fewer than k
            images. Shape (Q, k), int64.
        targets: positions in `Benchmark.gallery` of their principal readable targets.
            Shape (Q,), int64.
        ranks: rank of the best target. Shape (Q,), int64.
    """

    queries: tuple[int, ...]
    images: Tensor
    targets: Tensor
    ranks: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Results of one benchmark, as `results.json` holds them, and the rankings behind them."""

    results: dict[str, Any]
    ranking: Ranking


class Gallery:
    """The readable images of a gallery, indexed once per space of vectors.

    Args:
        images: all of them.
        encoded: their vectors.
        factory: a FAISS index, see `GalleryIndex`.

    Raises:
        UserError: see `GalleryIndex`.
    """

    def __init__(self, images: Sequence[Image], encoded: Encoded, factory: str = "Flat") -> None:
        self.rows = encoded.valid.nonzero().flatten()
        self.size = len(encoded.valid)
        ids = [images[row].id for row in self.rows.tolist()]
        self.indexes = {
            name: GalleryIndex(ids, encoded.kept(name), factory=factory) for name in encoded.vectors
        }

    @property
    def main(self) -> GalleryIndex:
        """Where the method's own queries search."""
        return self.indexes["gallery"]

    @property
    def baseline(self) -> GalleryIndex:
        """Where the parts of queries search: the pretrained space if there is one."""
        return self.indexes.get("baseline", self.main)


def evaluate(
    benchmark: Benchmark, gallery: Gallery, encoded: Encoded, top_k: int = 10
) -> Evaluation:
    """Rank and score one benchmark, with its baselines and breakdowns.

    Unreadable images are left out: of the gallery, and with it of the targets, exclusions,
    candidates and subsets. A query whose own image is unreadable, or that has no target left,
    is left out as well. The protocol in the results counts what was really ranked.

    Args:
        benchmark: its data and rules.
        gallery: of this benchmark.
        encoded: the queries' vectors.
        top_k: length of the rankings to keep.

    Raises:
        UserError: NaN vectors, queries that break a rule, or no query left.
    """
    queries, rows = _rankable(benchmark, gallery, encoded.valid)
    vectors = {name: rows_of[rows] for name, rows_of in encoded.vectors.items()}
    ranks, top = gallery.main.rank(vectors["query"], queries, k=top_k)
    unreadable = int((~encoded.valid).sum()) + gallery.size - len(gallery.rows)
    results = {
        "protocol": _protocol(benchmark, gallery, vectors["query"]) | {"queries": len(queries)},
        "metrics": benchmark.score(ranks),
        "baselines": {
            name: benchmark.score(gallery.baseline.target_ranks(part, queries))
            for name, part in baselines(vectors).items()
        },
        "breakdown": {
            tag: {
                value: benchmark.score(ranks.select(group))
                for value, group in breakdown_rows(queries, tag).items()
            }
            for tag in benchmark.breakdowns
        },
        "skipped_images": unreadable,
    }
    images = torch.where(top.positions < 0, -1, gallery.rows[top.positions.clamp(min=0)])
    targets = gallery.rows[[gallery.main.position[query.targets[0]] for query in queries]]
    ranking = Ranking(tuple(rows), images, targets, ranks=best_ranks(ranks.targets))
    return Evaluation(results, ranking)


def baselines(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of composed queries and the sum of their unit vectors, each (Q, D)."""
    if any(part not in vectors for part in PARTS):
        return {}
    parts = {part: vectors[part].float() for part in PARTS}
    units = [torch.nn.functional.normalize(part, dim=1) for part in parts.values()]
    return parts | {"sum": units[0] + units[1]}


def _protocol(benchmark: Benchmark, gallery: Gallery, vectors: Tensor) -> dict[str, Any]:
    index = gallery.main
    protocol = benchmark.protocol().as_dict() | {"pool_size": len(index), "index": index.factory}
    if index.is_exact:
        return protocol
    return protocol | {"index_recall_at_10": index.recall_against_flat(vectors, k=10)}


def _rankable(
    benchmark: Benchmark, gallery: Gallery, valid: Tensor
) -> tuple[list[Query], list[int]]:
    """The queries that can be ranked, without unreadable images, and their positions."""
    missing = frozenset[str]()
    if len(gallery.rows) < gallery.size:
        missing = frozenset(image.id for image in benchmark.gallery) - gallery.main.position.keys()
    queries, rows = [], []
    for row in valid.nonzero().flatten().tolist():
        query = without(benchmark.queries[row], missing)
        if query is not None:
            queries.append(query)
            rows.append(row)
    if not queries:
        raise UserError(
            f"benchmark {benchmark.name!r} has no query left to rank: their images, or all their "
            "targets, cannot be read; check that the data folder is the right one"
        )
    return queries, rows


def without(query: Query, missing: frozenset[str]) -> Query | None:
    """The query with some gallery images gone; None if no target (in its subset) is left."""
    if not missing:
        return query
    left: dict[str, Any] = {
        name: tuple(item for item in ids if item not in missing)
        for name in ("targets", "exclude", "candidates", "subset")
        if (ids := getattr(query, name)) is not None
    }
    within = left.get("subset", left["targets"])
    return dataclasses.replace(query, **left) if set(left["targets"]) & set(within) else None
