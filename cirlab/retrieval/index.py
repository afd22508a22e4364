"""Ranking a gallery: exact ranks by counting, and search through FAISS.

A rank needs no ranking. The rank of a target is one more than the number of images that
score at least as high, so a block of queries costs one matrix product and one pass of
comparisons; nothing is sorted and nothing larger than the block is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import faiss
import torch
from torch import Tensor

from cirlab.benchmarks.base import TargetRanks
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval.ranking import (
    TIE_TOLERANCE,
    Positions,
    SearchResult,
    best_columns,
    columns_of,
    drop,
    in_order,
    locate,
    lookup,
    pessimistic_ranks,
    rank_within,
)

__all__ = ["APPROXIMATE_DEPTH", "TIE_TOLERANCE", "GalleryIndex", "Ranked", "SearchResult"]

#: The index that compares a query with every image.
EXACT = "Flat"
#: How many images of an approximate index are searched for a query's targets.
APPROXIMATE_DEPTH = 1000

#: Ranks (B, T) and best images of some queries, from their vectors (B, D), positions and k.
_Rank = Callable[[Tensor, Positions, int], tuple[Tensor, SearchResult]]


class Ranked(NamedTuple):
    """What ranking some queries gives.

    Attributes:
        ranks: of their targets.
        best: the best images of every query.
        best_in_subset: the images of each query's subset in order; None without subsets.
    """

    ranks: TargetRanks
    best: SearchResult
    best_in_subset: SearchResult | None


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
        self, ids: Sequence[str], vectors: Tensor, factory: str = EXACT, memory_mib: int = 64
    ) -> None:
        self.ids = tuple(ids)
        self.factory = factory
        self.memory_mib = memory_mib
        self.position = {name: position for position, name in enumerate(self.ids)}
        self._check_ids(len(vectors))
        self.vectors = unit_vectors(vectors, what="gallery")
        if not self.is_exact:
            _ = self._faiss  # a factory that does not work is refused here

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_exact(self) -> bool:
        """Whether a search compares the query with every image."""
        return self.factory == EXACT

    @cached_property
    def _faiss(self) -> faiss.Index:
        # Ranks by counting need no FAISS: an exact index copies the vectors when searched.
        return _build(self.factory, self.vectors)

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

    def _search(self, queries: Tensor, k: int, exclude: Tensor) -> SearchResult:
        # Exclusion is by id after searching far enough. FAISS orders equal scores as it likes,
        # so dropping the first hit could drop a twin of the reference instead of it.
        k = min(k, len(self))
        depth = min(k + exclude.shape[1] + 1, len(self))
        scores, found = map(torch.from_numpy, self._faiss.search(queries.numpy(), depth))
        if self.is_exact and depth < len(self):
            self._settle_ties_at_the_end(queries, found, scores)
        dropped = (found < 0) | (columns_of(found, exclude) >= 0)
        return in_order(found.masked_fill(dropped, -1), scores.masked_fill(dropped, -torch.inf), k)

    def _settle_ties_at_the_end(self, queries: Tensor, found: Tensor, scores: Tensor) -> None:
        """Where the last hits tie, FAISS returns any of the tied images; take the first ones."""
        depth = found.shape[1]
        for row in (scores[:, -1] == scores[:, -2]).nonzero().flatten().tolist():
            with full_precision():
                every = self.vectors @ queries[row]
            ranking = torch.sort(every, descending=True, stable=True)
            found[row], scores[row] = ranking.indices[:depth], ranking.values[:depth]

    def recall_against_flat(self, queries: Tensor, k: int = 10) -> float:
        """Share of the exact k best images that this index finds, for queries (Q, D)."""
        flat = GalleryIndex(self.ids, self.vectors)
        truth = flat.search(queries, k).positions
        return (columns_of(truth, self.search(queries, k).positions) >= 0).double().mean().item()

    # ---- ranks --------------------------------------------------------------------------

    def target_ranks(self, vectors: Tensor, queries: Sequence[Query]) -> TargetRanks:
        """Pessimistic ranks of all targets, see `rank`."""
        return self.rank(vectors, queries, k=0).ranks

    def rank(self, vectors: Tensor, queries: Sequence[Query], k: int) -> Ranked:
        """Pessimistic ranks of all targets, and the k best images, in one pass.

        Excluded images do not count; a query with candidates is ranked within them
        (`cirlab.retrieval.ranking.pessimistic_ranks`). With an approximate index, whole-gallery
        ranks come from its best `APPROXIMATE_DEPTH` images; a target beyond ranks one past
        these and the gallery.

        Args:
            vectors: of the queries, normalised here. Shape (Q, D).
            queries: their records, Q in all.
            k: how many images to list; 0 for none.

        Raises:
            UserError: NaN or infinite vectors, or queries that break a rule of
                `cirlab.retrieval.ranking.locate`.
        """
        if len(vectors) != len(queries):
            raise ValueError(f"{len(vectors)} vectors for {len(queries)} queries")
        vectors = unit_vectors(vectors, what="query")
        return self.rank_located(vectors, locate(queries, self.position), k)

    def rank_located(self, vectors: Tensor, known: Positions, k: int) -> Ranked:
        """The same for unit vectors (Q, D) and ids that were looked up in this gallery's."""
        with full_precision():
            ranks, best = self._rank(vectors, known, k)
            if known.subsets is None:
                return Ranked(TargetRanks(ranks), best, None)
            size = known.subsets.shape[1]
            within, order = self._rank(vectors, known.in_subsets(), k=size)
            return Ranked(TargetRanks(ranks, subset=within), best, order)

    def _rank(self, vectors: Tensor, known: Positions, k: int) -> tuple[Tensor, SearchResult]:
        """Ranks (Q, T) and best images, each query in its pool if it has one."""
        queries, k = len(vectors), min(k, len(self))
        ranks = torch.zeros_like(known.targets)
        best = SearchResult(torch.full((queries, k), -1), torch.full((queries, k), -torch.inf))
        for block, rank in self._plan(known):
            ranks[block], found = rank(vectors[block], known.select(block), k)
            width = found.positions.shape[1]
            best.positions[block, :width] = found.positions
            best.scores[block, :width] = found.scores
        return ranks, best

    def _plan(self, known: Positions) -> Iterator[tuple[Tensor, _Rank]]:
        """Query rows in blocks that fit the memory, each with the way to rank it."""
        free = known.pool_of < 0
        uses = known.pool_of.clamp(min=0).bincount(weights=(~free).float())
        alone = ~free & (uses[known.pool_of.clamp(min=0)] == 1)
        # Floats per query: scores with their comparisons; in pools also the table in which
        # targets and exclusions are found, and the gathered vectors.
        table = known.targets.shape[1] + known.exclude.shape[1]
        in_pool = known.pools.shape[1] * (table + 4)
        gathered = in_pool + known.pools.shape[1] * self.vectors.shape[1]
        if self.is_exact:
            yield from self._blocks(free, 2 * len(self), self._rank_gallery)
        else:
            yield from self._blocks(free, APPROXIMATE_DEPTH * (table + 8), self._rank_found)
        yield from self._blocks(alone, gathered, self._rank_own_pools)
        for pool in (uses > 1).nonzero().flatten().tolist():
            yield from self._blocks(known.pool_of == pool, in_pool, self._rank_shared_pool)

    def _blocks(self, rows: Tensor, floats: int, rank: _Rank) -> Iterator[tuple[Tensor, _Rank]]:
        """Cut the chosen rows (Q,), bool, of which each needs so many floats."""
        chosen = rows.nonzero().flatten()
        if len(chosen):
            for block in chosen.split(max(1, (self.memory_mib << 18) // floats)):
                yield block, rank

    def _rank_gallery(
        self, vectors: Tensor, known: Positions, k: int
    ) -> tuple[Tensor, SearchResult]:
        scores = vectors @ self.vectors.T
        drop(scores, known.exclude)
        best = best_columns(scores, k)
        return pessimistic_ranks(scores, known.targets), best

    def _rank_own_pools(
        self, vectors: Tensor, known: Positions, k: int
    ) -> tuple[Tensor, SearchResult]:
        pools = known.pools[known.pool_of].sort(dim=1).values
        scores = torch.einsum("qcd,qd->qc", self.vectors[pools.clamp(min=0)], vectors)
        return rank_within(scores, pools, known, k)

    def _rank_shared_pool(
        self, vectors: Tensor, known: Positions, k: int
    ) -> tuple[Tensor, SearchResult]:
        pool = known.pools[known.pool_of[0]].sort().values
        pool = pool[pool >= 0]
        scores = vectors @ self.vectors[pool].T
        return rank_within(scores, pool.expand(len(vectors), -1), known, k)

    def _rank_found(self, vectors: Tensor, known: Positions, k: int) -> tuple[Tensor, SearchResult]:
        found = self._search(vectors, APPROXIMATE_DEPTH, known.exclude)
        ranks, best = rank_within(found.scores, found.positions, known, k)
        missed = (known.targets >= 0) & (ranks == 0)
        return ranks.masked_fill(missed, max(len(self), APPROXIMATE_DEPTH) + 1), best


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep matrix products in float32.

    Under `torch.set_float32_matmul_precision("medium")`, which speeds training up, CPUs that can
    multiply in bfloat16 do so: scores are then off by 1e-3, a thousand times `TIE_TOLERANCE`.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
