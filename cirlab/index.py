"""Ranking a gallery: exact ranks by counting, and search through FAISS.

A rank needs no ranking. The rank of a target is one more than the number of images that
score at least as high, so a block of queries costs one matrix product and one pass of
comparisons; nothing is sorted and nothing larger than the block is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import faiss
import torch
from torch import Tensor

from cirlab.benchmarks.base import TargetRanks
from cirlab.errors import UserError
from cirlab.ranking import (
    TIE_TOLERANCE,
    Positions,
    columns_of,
    locate,
    lookup,
    pessimistic_ranks,
)
from cirlab.records import Query

__all__ = ["APPROXIMATE_DEPTH", "TIE_TOLERANCE", "GalleryIndex", "SearchResult"]

#: How many images of an approximate index are searched for a query's targets.
APPROXIMATE_DEPTH = 1000


class SearchResult(NamedTuple):
    """The best images of every query, by descending score, then by position.

    Attributes:
        positions: positions in the gallery; -1 only at the end of a row, where exclusion or an
            approximate index left fewer than k images. Shape (Q, k), int64.
        scores: cosine similarities; -inf beside -1. Shape (Q, k), float32.
    """

    positions: Tensor
    scores: Tensor


class GalleryIndex:
    """The unit vectors of a gallery, ready to be ranked against queries.

    Args:
        ids: the images' ids, unique.
        vectors: their vectors, normalised here in float32. Shape (G, D).
        factory: a FAISS `index_factory` string, searched by inner product; after a semicolon
            FAISS search parameters, as in "IVF256,Flat;nprobe=16". "Flat" is exact; what any
            other costs says `recall_against_flat`.
        memory_mib: how much a block of scores may take, in MiB.

    Raises:
        UserError: an empty gallery, duplicate ids, NaN or infinite vectors, or a factory string
            that FAISS cannot build from them.
    """

    def __init__(
        self, ids: Sequence[str], vectors: Tensor, factory: str = "Flat", memory_mib: int = 256
    ) -> None:
        self.ids = tuple(ids)
        self.factory = factory
        self.memory_mib = memory_mib
        self.position = {name: position for position, name in enumerate(self.ids)}
        self._check_ids(len(vectors))
        self.vectors = unit_vectors(vectors, what="gallery")
        self._faiss = _build(factory, self.vectors)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_exact(self) -> bool:
        """Whether a search compares the query with every image."""
        return isinstance(self._faiss, faiss.IndexFlat)

    def _check_ids(self, vectors: int) -> None:
        if not self.ids:
            raise UserError("the gallery is empty: there is nothing to rank")
        if len(self.ids) != vectors:
            raise ValueError(f"{len(self.ids)} ids for {vectors} vectors")
        if len(self.position) < len(self.ids):
            twice = next(name for i, name in enumerate(self.ids) if self.position[name] != i)
            raise UserError(f"gallery id {twice!r} occurs more than once; ids must be unique")

    # ---- search -------------------------------------------------------------------------

    def search(
        self, queries: Tensor, k: int, exclude: Sequence[Sequence[str]] | None = None
    ) -> SearchResult:
        """The k best images of every query; fewer if the gallery is smaller.

        Args:
            queries: vectors, normalised here. Shape (Q, D).
            k: at least 1.
            exclude: ids that are left out, for each of the Q queries.

        Raises:
            UserError: NaN or infinite queries, or an id that is not in the gallery.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        rows = [()] * len(queries) if exclude is None else exclude
        names = [f"number {row}" for row in range(len(queries))]
        positions = lookup(rows, self.position, names, role="excluded image")
        return self._search(unit_vectors(queries, what="query"), k, positions)

    def top(self, vectors: Tensor, queries: Sequence[Query], k: int) -> SearchResult:
        """The k best images by the queries' own rules: exclusions, and candidates if any.

        Args:
            vectors: of the queries, normalised here. Shape (Q, D).
            queries: their records, Q in all.
            k: at least 1.

        Raises:
            UserError: see `target_ranks`.
        """
        vectors, known = unit_vectors(vectors, what="query"), locate(queries, self.position)
        k = min(k, len(self))
        best = torch.full((len(queries), k), -1)
        scores = torch.full((len(queries), k), -torch.inf)
        pooled, free = _by_pool(known)
        if len(pooled):
            found = self._top_of_pools(vectors[pooled], known.select(pooled), k)
            width = found.positions.shape[1]
            best[pooled, :width], scores[pooled, :width] = found
        if len(free):
            best[free], scores[free] = self._search(vectors[free], k, known.exclude[free])
        return SearchResult(best, scores)

    def _top_of_pools(self, vectors: Tensor, known: Positions, k: int) -> SearchResult:
        pools, scores = known.pools, torch.empty(known.pools.shape)
        for block in self._pool_blocks(pools):
            scores[block] = self._pool_scores(vectors[block], pools[block])
        dropped = (pools < 0) | (columns_of(pools, known.exclude) >= 0)
        return _in_order(pools.masked_fill(dropped, -1), scores.masked_fill(dropped, -torch.inf), k)

    def _search(self, queries: Tensor, k: int, exclude: Tensor) -> SearchResult:
        # Exclusion is by id after searching far enough. FAISS orders equal scores as it likes,
        # so dropping the first hit could drop a twin of the reference instead of it.
        k = min(k, len(self))
        depth = min(k + exclude.shape[1] + 1, len(self))
        scores, found = map(torch.from_numpy, self._faiss.search(queries.numpy(), depth))
        if self.is_exact and depth < len(self):
            self._settle_ties_at_the_end(queries, found, scores)
        dropped = (found < 0) | (columns_of(found, exclude) >= 0)
        return _in_order(found.masked_fill(dropped, -1), scores.masked_fill(dropped, -torch.inf), k)

    def _settle_ties_at_the_end(self, queries: Tensor, found: Tensor, scores: Tensor) -> None:
        """Where the last hits tie, FAISS returns any of the tied images; take the first ones."""
        depth = found.shape[1]
        for row in (scores[:, -1] == scores[:, -2]).nonzero().flatten().tolist():
            ranking = torch.sort(self.vectors @ queries[row], descending=True, stable=True)
            found[row], scores[row] = ranking.indices[:depth], ranking.values[:depth]

    def recall_against_flat(self, queries: Tensor, k: int = 10) -> float:
        """Share of the exact k best images that this index finds, for queries (Q, D)."""
        flat = GalleryIndex(self.ids, self.vectors)
        truth = flat.search(queries, k).positions
        return (columns_of(truth, self.search(queries, k).positions) >= 0).double().mean().item()

    # ---- ranks --------------------------------------------------------------------------

    def target_ranks(self, vectors: Tensor, queries: Sequence[Query]) -> TargetRanks:
        """Pessimistic ranks of all targets (`cirlab.ranking.pessimistic_ranks`).

        Excluded images do not count; a query with candidates is ranked within them. With an
        approximate index, whole-gallery ranks come from its best `APPROXIMATE_DEPTH` images.

        Args:
            vectors: of the queries, normalised here. Shape (Q, D).
            queries: their records, Q in all.

        Raises:
            UserError: NaN or infinite vectors, or queries that break a rule of
                `cirlab.ranking.locate`.
        """
        if len(vectors) != len(queries):
            raise ValueError(f"{len(vectors)} vectors for {len(queries)} queries")
        vectors, known = unit_vectors(vectors, what="query"), locate(queries, self.position)
        ranks = torch.zeros_like(known.targets)
        pooled, free = _by_pool(known)
        if len(pooled):
            own = known.select(pooled)
            ranks[pooled] = self._ranks_within(vectors[pooled], own, own.pools)
        if len(free):
            rank = self._ranks_by_counting if self.is_exact else self._ranks_by_search
            ranks[free] = rank(vectors[free], known.select(free))
        subset = None
        if known.subsets is not None:
            subset = self._ranks_within(vectors, known, known.subsets)
        return TargetRanks(targets=ranks, subset=subset)

    def _ranks_by_counting(self, vectors: Tensor, known: Positions) -> Tensor:
        ranks = torch.zeros_like(known.targets)
        for block in self._blocks(len(vectors), row_size=len(self)):
            scores = vectors[block] @ self.vectors.T
            ranks[block] = pessimistic_ranks(scores, known.targets[block], known.exclude[block])
        return ranks

    def _ranks_within(self, vectors: Tensor, known: Positions, pools: Tensor) -> Tensor:
        """Ranks within each query's own pool (Q, C); 0 for targets outside it. Shape (Q, T)."""
        ranks = torch.zeros_like(known.targets)
        for block in self._pool_blocks(pools):
            pool = pools[block]
            padding = torch.arange(pool.shape[1]).expand_as(pool).masked_fill(pool >= 0, -1)
            removed = torch.cat([columns_of(known.exclude[block], pool), padding], dim=1)
            targets = columns_of(known.targets[block], pool)
            scores = self._pool_scores(vectors[block], pool)
            ranks[block] = pessimistic_ranks(scores, targets, removed)
        return ranks

    def _pool_scores(self, vectors: Tensor, pools: Tensor) -> Tensor:
        """Scores of each query's own images, anything where a pool is padded. Shape (Q, C)."""
        return torch.einsum("qcd,qd->qc", self.vectors[pools.clamp(min=0)], vectors)

    def _pool_blocks(self, pools: Tensor) -> Iterator[slice]:
        return self._blocks(len(pools), row_size=pools.shape[1] * (self.vectors.shape[1] + 2))

    def _ranks_by_search(self, vectors: Tensor, known: Positions) -> Tensor:
        """Ranks among the images an approximate index returns; else one past the gallery."""
        ranks = torch.zeros_like(known.targets)
        width = known.targets.shape[1] + known.exclude.shape[1] + 8
        for block in self._blocks(len(vectors), row_size=APPROXIMATE_DEPTH * width):
            found = self._search(vectors[block], APPROXIMATE_DEPTH, known.exclude[block])
            targets = columns_of(known.targets[block], found.positions)
            nothing = torch.empty((len(targets), 0), dtype=torch.long)
            within = pessimistic_ranks(found.scores, targets, nothing)
            missed = (known.targets[block] >= 0) & (targets < 0)
            ranks[block] = within.masked_fill(missed, len(self) + 1)
        return ranks

    def _blocks(self, rows: int, row_size: int) -> Iterator[slice]:
        """Slices of the queries whose float32 scores, with their masks, fit the memory."""
        step = max(1, (self.memory_mib << 20) // (5 * row_size))
        for start in range(0, rows, step):
            yield slice(start, start + step)


def unit_vectors(vectors: Tensor, what: str) -> Tensor:
    """Normalise on the CPU in float32; a zero vector stays zero. Shape (N, D).

    Raises:
        UserError: a vector holds NaN or infinity; `what` says which vectors these are.
    """
    vectors = vectors.detach().to(device="cpu", dtype=torch.float32)
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(vectors)} {what} vectors hold NaN or infinity (the first is "
            f"number {bad[0].item()}): the encoder has diverged; lower the learning rate, or "
            "use bf16 or float32 in place of float16"
        )
    return torch.nn.functional.normalize(vectors, dim=1).contiguous()


def _build(factory: str, vectors: Tensor) -> faiss.Index:
    """A trained and filled FAISS index for inner products."""
    description, _, parameters = factory.partition(";")
    try:
        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors.numpy())
        index.add(vectors.numpy())
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        # FAISS puts the C++ function and line before what it has to say.
        reason = re.sub(r"^.*\.cpp:\d+: ", "", str(error), flags=re.DOTALL)
        raise UserError(
            f"FAISS cannot build the index {factory!r} from {len(vectors)} vectors of "
            f"{vectors.shape[1]} dimensions ({reason}); 'Flat' always works"
        ) from error
    return index


def _by_pool(known: Positions) -> tuple[Tensor, Tensor]:
    """Rows of the queries with candidates of their own, and of those without."""
    own = (known.pools >= 0).any(dim=1)
    return own.nonzero().flatten(), (~own).nonzero().flatten()


def _in_order(positions: Tensor, scores: Tensor, k: int) -> SearchResult:
    """The k best by (score descending, position ascending), dropped ones at the end."""
    by_position = positions.argsort(dim=1, stable=True)
    positions, scores = positions.gather(1, by_position), scores.gather(1, by_position)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return SearchResult(positions.gather(1, by_score), scores.gather(1, by_score))
