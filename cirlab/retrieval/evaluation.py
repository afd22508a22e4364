"""From encoded gallery and queries to the results of one benchmark.

No model and no Lightning: the retrieval callback gathers the vectors and comes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cirlab.benchmarks.base import (
    NO_VIEWS,
    Benchmark,
    SharedPools,
    TargetRanks,
    ranked_against,
)
from cirlab.errors import UserError
from cirlab.metrics import best_ranks
from cirlab.records import Item, Query
from cirlab.retrieval.index import EXACT, GalleryIndex, Ranked
from cirlab.retrieval.ranking import locate
from cirlab.retrieval.reranking import reranked
from cirlab.retrieval.viewed_index import ViewedIndex
from cirlab.retrieval.views import Views, view_name
from cirlab.retrieval.wins import wins

#: Encoded parts of a composed query that are ranked beside it.
PARTS = ("image_only", "text_only")


@dataclass(frozen=True)
class Encoded:
    """The vectors of a whole gallery or query set, row i belonging to item i.

    Attributes:
        vectors: by name, each of shape (N, D). A gallery has "gallery", for its further views
            "view_1", "view_2" and so on, and perhaps "baseline"; queries have "query" and perhaps
            "image_only" and "text_only".
        valid: False where the item's image could not be read. Shape (N,), bool.
    """

    vectors: Mapping[str, Tensor]
    valid: Tensor

    def kept(self, name: str) -> Tensor:
        """The vectors of valid items. Shape (V, D)."""
        return self.vectors[name][self.valid]

    def without(self, names: Collection[str]) -> Encoded:
        """All but some vectors."""
        kept = {name: rows for name, rows in self.vectors.items() if name not in names}
        return Encoded(kept, self.valid)


@dataclass(frozen=True)
class Ranking:
    """What the best images of every query are, for looking at.

    Attributes:
        queries: positions in `Benchmark.queries` of the Q queries that were ranked.
        images: positions in `Benchmark.gallery`, best first, -1 where there are fewer than k
            images. Shape (Q, k), int64.
        targets: positions in `Benchmark.gallery` of their principal readable targets, -1 where
            answers are held back. Shape (Q,), int64.
        ranks: rank of the best target, 0 where answers are held back. Shape (Q,), int64.
        subset: the best of each query's subset; None without subsets. Shape (Q, S), int64.
    """

    queries: tuple[int, ...]
    images: Tensor
    targets: Tensor
    ranks: Tensor
    subset: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of one benchmark, as `results.json` holds them, and the rankings behind them."""

    results: dict[str, Any]
    ranking: Ranking


class Gallery:
    """The readable items of a gallery, indexed once per space of vectors.

    Args:
        items: all of them.
        encoded: their vectors.
        factory: a FAISS index, see `GalleryIndex`.
        views: what the items are looked at for; None: for nothing in particular.

    Raises:
        UserError: see `GalleryIndex`.
        RuntimeError: an item that can be ranked has no vector in a view.
    """

    def __init__(
        self,
        items: Sequence[Item],
        encoded: Encoded,
        factory: str = EXACT,
        views: Views | None = None,
    ) -> None:
        if len(encoded.valid) != len(items):
            raise ValueError(f"{len(encoded.valid)} vectors for {len(items)} items")
        self.factory = factory
        self.views = views if views is not None and views.prompted else None
        self._planned = views
        factories = dict.fromkeys(encoded.vectors, factory)
        if self.views is not None:
            _check_encoded(self.views, encoded)
            factories |= _exact_where_incomplete(self.views)
        self.rows = encoded.valid.nonzero().flatten()
        self.size = len(encoded.valid)
        ids = [items[row].id for row in self.rows.tolist()]
        self.indexes = {
            name: GalleryIndex(ids, encoded.kept(name), factory=factories[name])
            for name in encoded.vectors
        }
        names = [view_name(place) for place in range(len(self.views.prompts) if self.views else 1)]
        self.viewed = ViewedIndex([self.indexes[name] for name in names])

    @property
    def main(self) -> GalleryIndex:
        """The first view, the only one of most methods; all hold the same items."""
        return self.indexes["gallery"]

    def looked_at(self, benchmark: Benchmark) -> str:
        """How the images are looked at for this benchmark's queries, for its protocol."""
        return NO_VIEWS if self._planned is None else self._planned.protocol(benchmark.name)

    def view_of(self, benchmark: Benchmark) -> Tensor:
        """In which view each query is ranked. Shape (Q,), int64."""
        if self.views is None:
            return torch.zeros(len(benchmark.queries), dtype=torch.long)
        return self.views.view[benchmark.name]

    def rank_part(self, part: Tensor, queries: Sequence[Query], view: Tensor) -> TargetRanks:
        """Ranks by the vectors (Q, D) of a part of each query.

        In the pretrained space if there is one, else in the view (Q,) of the query.
        """
        if "baseline" in self.indexes:
            return self.indexes["baseline"].target_ranks(part, queries)
        return self.viewed.rank(part, queries, view, k=0).ranks


@dataclass(frozen=True)
class Found:
    """What the first stage, the comparison of vectors, finds for one benchmark.

    Attributes:
        queries: the Q queries that can be ranked, without unreadable images.
        rows: their positions in `Benchmark.queries`.
        vectors: of these queries, by name, each of shape (Q, D).
        view: of the gallery, in which each of them is ranked. Shape (Q,), int64.
        ranked: ranks of their targets, and their best images.
        unreadable: items and queries that were left out.
    """

    queries: Sequence[Query]
    rows: Sequence[int]
    vectors: Mapping[str, Tensor]
    view: Tensor
    ranked: Ranked
    unreadable: int

    def rerank(self, gallery: Gallery, depth: int, cells: Tensor, scores: Tensor) -> Found:
        """The same with the best images in the order of a second stage.

        Args:
            gallery: that was searched.
            depth: how many images of each query were scored.
            cells: row and column of the table of best images. Shape (P, 2), int64.
            scores: of these cells. Shape (P,), float32.
        """
        table = torch.full((len(self.queries), depth), -torch.inf)
        table[cells[:, 0], cells[:, 1]] = scores
        known = locate(self.queries, gallery.main.position)
        return dataclasses.replace(self, ranked=reranked(self.ranked, known.targets, table))


def evaluate(
    benchmark: Benchmark, gallery: Gallery, encoded: Encoded, top_k: int = 10
) -> Evaluation:
    """Rank by vectors and score one benchmark, with its baselines and breakdowns.

    See `search` and `score`, between which a second stage may come in.
    """
    return score(benchmark, gallery, search(benchmark, gallery, encoded, top_k))


def search(benchmark: Benchmark, gallery: Gallery, encoded: Encoded, top_k: int = 10) -> Found:
    """Rank one benchmark's gallery by vectors.

    Unreadable images are left out: of the gallery, and with it of the targets, exclusions,
    candidates and subsets. A query whose own image is unreadable, or that has no target left,
    is left out as well.

    Args:
        benchmark: its data and rules.
        gallery: of this benchmark.
        encoded: the queries' vectors.
        top_k: length of the rankings to keep.

    Raises:
        UserError: NaN vectors, queries that break a rule, or no query left.
    """
    encoded = averaged(encoded, benchmark.wordings)
    if len(encoded.valid) != len(benchmark.queries):
        raise ValueError(f"{len(encoded.valid)} vectors for {len(benchmark.queries)} queries")
    queries, rows = _rankable(benchmark, gallery, encoded.valid)
    vectors = {name: rows_of[rows] for name, rows_of in encoded.vectors.items()}
    depth = max(top_k, benchmark.list_size, benchmark.rerank_depth or 0)
    view = gallery.view_of(benchmark)[rows]
    ranked = gallery.viewed.rank(vectors["query"], queries, view, k=depth)
    unreadable = int((~encoded.valid).sum()) + gallery.size - len(gallery.rows)
    return Found(queries, rows, vectors, view, ranked, unreadable)


def score(benchmark: Benchmark, gallery: Gallery, found: Found) -> Evaluation:
    """Results of one benchmark from what was found. The protocol counts what was really ranked."""
    results = {
        "protocol": _protocol(benchmark, gallery, found),
        **_scores(benchmark, gallery, found),
        "skipped_images": found.unreadable,
    }
    return Evaluation(results, _ranking(benchmark, gallery, found))


def _scores(benchmark: Benchmark, gallery: Gallery, found: Found) -> dict[str, Any]:
    if not benchmark.answered:
        return {"metrics": {}, "baselines": {}, "breakdown": {}}
    queries, ranks = found.queries, found.ranked.ranks
    parts = {
        name: gallery.rank_part(part, queries, found.view)
        for name, part in baselines(found.vectors).items()
    }
    return {
        "metrics": benchmark.metrics(ranks, queries),
        "baselines": {name: benchmark.metrics(part, queries) for name, part in parts.items()},
        "breakdown": {
            tag: benchmark.breakdown(ranks, queries, tag) for tag in benchmark.breakdowns
        },
        "wins": {
            name: wins(ranks, part, queries, benchmark.breakdowns) for name, part in parts.items()
        },
    }


def _ranking(benchmark: Benchmark, gallery: Gallery, found: Found) -> Ranking:
    queries, ranked = found.queries, found.ranked

    def in_benchmark(positions: Tensor) -> Tensor:
        return torch.where(positions < 0, -1, gallery.rows[positions.clamp(min=0)])

    targets, ranks = torch.full((len(queries),), -1), torch.zeros(len(queries), dtype=torch.long)
    if benchmark.answered:
        targets = gallery.rows[[gallery.main.position[query.targets[0]] for query in queries]]
        ranks = best_ranks(ranked.ranks.targets)
    subset = ranked.best_in_subset
    return Ranking(
        queries=tuple(found.rows),
        images=in_benchmark(ranked.best.positions),
        targets=targets,
        ranks=ranks,
        subset=None if subset is None else in_benchmark(subset.positions),
    )


def averaged(encoded: Encoded, wordings: int) -> Encoded:
    """One vector for each query that was asked in several wordings, consecutive rows.

    The mean of their unit vectors, as for prompt ensembles of CLIP (Radford et al., 2021).
    """
    if wordings == 1:
        return encoded

    def mean(rows: Tensor) -> Tensor:
        units = torch.nn.functional.normalize(rows.float(), dim=1)
        return torch.nn.functional.normalize(units.unflatten(0, (-1, wordings)).mean(dim=1), dim=1)

    valid = encoded.valid.unflatten(0, (-1, wordings)).all(dim=1)
    return Encoded({name: mean(rows) for name, rows in encoded.vectors.items()}, valid)


def baselines(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of queries that have two, and the sum of their unit vectors, each (Q, D)."""
    if any(part not in vectors for part in PARTS):
        return {}
    parts = {part: vectors[part].float() for part in PARTS}
    units = [torch.nn.functional.normalize(part, dim=1) for part in parts.values()]
    return parts | {"sum": units[0] + units[1]}


def _protocol(benchmark: Benchmark, gallery: Gallery, found: Found) -> dict[str, Any]:
    protocol = benchmark.protocol().as_dict()
    protocol |= {
        "pool_size": len(gallery.main),
        "queries": len(found.queries),
        "candidates": ranked_against(found.queries),
        "index": gallery.factory,
        "rerank_depth": benchmark.rerank_depth or 0,
        "views": gallery.looked_at(benchmark),
    }
    if gallery.factory == EXACT:
        return protocol
    recall = gallery.viewed.recall_against_flat(found.vectors["query"], found.view, k=10)
    return protocol | {"index_recall_at_10": recall}


def _rankable(
    benchmark: Benchmark, gallery: Gallery, valid: Tensor
) -> tuple[list[Query], list[int]]:
    """The queries that can be ranked, without unreadable images, and their positions."""
    missing = frozenset[str]()
    if len(gallery.rows) < gallery.size:
        missing = frozenset(image.id for image in benchmark.gallery) - gallery.main.position.keys()
    left = SharedPools(lambda pool: tuple(item for item in pool if item not in missing))
    queries, rows = [], []
    for row in valid.nonzero().flatten().tolist():
        query = benchmark.queries[row]
        if missing:
            query = without(query, missing, left)
        if query is not None:
            queries.append(query)
            rows.append(row)
    if not queries:
        raise UserError(
            f"benchmark {benchmark.name!r} has no query left to rank: their images, or all their "
            "targets, cannot be read; check that the data folder is the right one"
        )
    return queries, rows


def without(
    query: Query, missing: frozenset[str], left: Callable[[tuple[str, ...]], tuple[str, ...]]
) -> Query | None:
    """The query with some gallery images gone; None if no target (in its subset) is left.

    Args:
        query: any.
        missing: ids of the images.
        left: what is left of some candidates, which queries may share.
    """
    kept: dict[str, Any] = {
        name: tuple(item for item in ids if item not in missing)
        for name in ("targets", "exclude", "subset")
        if (ids := getattr(query, name)) is not None
    }
    if query.candidates is not None:
        kept["candidates"] = left(query.candidates)
    within = kept.get("subset", kept["targets"])
    answerable = not query.targets or set(kept["targets"]) & set(within)
    return dataclasses.replace(query, **kept) if answerable else None


def _exact_where_incomplete(views: Views) -> dict[str, str]:
    """An exact index for views in which queries have candidates of their own.

    These are ranked exactly in any case, and the missing vectors would spoil an approximation.
    """
    complete = views.needed.all(dim=1).tolist()
    return {view_name(place): EXACT for place, whole in enumerate(complete) if not whole}


def _check_encoded(views: Views, encoded: Encoded) -> None:
    """A vector that a method forgot would lose against all others, and raise the targets' ranks."""
    for place, prompt in enumerate(views.prompts):
        there = encoded.vectors[view_name(place)].any(dim=1)
        missing = int((views.needed[place] & encoded.valid & ~there).sum())
        if missing:
            raise RuntimeError(
                f"{missing} items that can be ranked have no vector, or a zero one, when they are "
                f"looked at for {prompt!r}; encode_views must encode all that is needed"
            )
