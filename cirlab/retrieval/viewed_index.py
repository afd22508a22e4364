"""Ranking a gallery that is looked at in several ways: each query by the vectors of its view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cirlab.benchmarks.base import TargetRanks
from cirlab.records import Query
from cirlab.retrieval.index import GalleryIndex, Ranked, SearchResult, unit_vectors
from cirlab.retrieval.ranking import locate


class ViewedIndex:
    """The views of one gallery (`cirlab.retrieval.views`), ready to be ranked against queries.

    Args:
        indexes: of each view, all with the same ids. A row that no query of the view can have
            ranked may hold anything finite.
    """

    def __init__(self, indexes: Sequence[GalleryIndex]) -> None:
        self.indexes = indexes

    def rank(self, vectors: Tensor, queries: Sequence[Query], view: Tensor, k: int) -> Ranked:
        """Ranks of all targets and the k best images, see `GalleryIndex.rank`.

        Args:
            vectors: of the queries. Shape (Q, D).
            queries: their records, Q in all.
            view: in which view each of them is ranked. Shape (Q,), int64.
            k: how many images to list; 0 for none.
        """
        if len(self.indexes) == 1:
            return self.indexes[0].rank(vectors, queries, k)
        # Looked up together, so that the tables of all views have the same widths.
        known = locate(queries, self.indexes[0].position)
        units = unit_vectors(vectors, what="query")
        parts = [
            (rows, index.rank_located(units[rows], known.select(rows), k))
            for index, rows in self._split(view)
        ]
        return _joined([ranked for _, ranked in parts], torch.cat([rows for rows, _ in parts]))

    def recall_against_flat(self, vectors: Tensor, view: Tensor, k: int = 10) -> float:
        """Share of the exact k best images that the indexes find, for queries (Q, D)."""
        if len(self.indexes) == 1:
            return self.indexes[0].recall_against_flat(vectors, k)
        found = [
            len(rows) * (1.0 if index.is_exact else index.recall_against_flat(vectors[rows], k))
            for index, rows in self._split(view)
        ]
        return sum(found) / len(view)

    def _split(self, view: Tensor) -> Iterator[tuple[GalleryIndex, Tensor]]:
        """Each view that queries have, with their rows."""
        for place in view.unique().tolist():
            yield self.indexes[place], (view == place).nonzero().flatten()


def _joined(parts: Sequence[Ranked], rows: Tensor) -> Ranked:
    """Put together what was found for some queries each.

    Args:
        parts: at least one.
        rows: the queries of the first part, of the second, and so on. Shape (Q,), int64.
    """
    back = rows.argsort()

    def join(pieces: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(pieces))[back]

    def results(pieces: Sequence[SearchResult]) -> SearchResult:
        return SearchResult(join(p.positions for p in pieces), join(p.scores for p in pieces))

    targets, best = join(p.ranks.targets for p in parts), results([p.best for p in parts])
    # All parts have subsets, or none.
    subsets = [p.ranks.subset for p in parts if p.ranks.subset is not None]
    in_subsets = [p.best_in_subset for p in parts if p.best_in_subset is not None]
    if not subsets:
        return Ranked(TargetRanks(targets), best, None)
    return Ranked(TargetRanks(targets, subset=join(subsets)), best, results(in_subsets))
