"""A second stage: the best items of each query are put in order again by a slower, better score.

Retrieve and re-rank: a cross-encoder such as BLIP's image-text matching (Li et al.,
arXiv 2201.12086, section 4.1) reads query and item together, so that it can only score few
items of each query. Every image is handed to it once, in blocks: memory does not grow with the
gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cirlab.errors import UserError
from cirlab.records import Image, Item, Query
from cirlab.retrieval.index import Ranked
from cirlab.retrieval.ranking import SearchResult, columns_of, in_order, pessimistic_ranks

#: Images in one block.
BLOCK = 64

#: Scores (P,) of pairs (P, 2), each a row of the queries and one of the items, from their
#: first-stage scores (P,).
PairScores = Callable[[Sequence[Query], Sequence[Item], Tensor, Tensor], Tensor]


class Block(NamedTuple):
    """Pairs that share few images, to be scored in one go.

    Attributes:
        queries: rows of the queries in it.
        items: positions of the items in it.
        pairs: each a place in `queries` and one in `items`. Shape (P, 2), int64.
        cells: where in the table of best items each pair stands. Shape (P, 2), int64.
    """

    queries: Tensor
    items: Tensor
    pairs: Tensor
    cells: Tensor


def blocks(best: Tensor, *, by_item: bool, size: int = BLOCK) -> list[Block]:
    """Cut the table of best items into blocks of `size` items, or of `size` queries.

    Args:
        best: positions of each query's best items, padded with -1. Shape (Q, K), int64.
        by_item: whether the blocks are of items, which are then in one block each with all queries
            that found them; else of queries.
        size: images in a block.
    """
    cells = (best >= 0).nonzero()
    items = best[cells[:, 0], cells[:, 1]]
    keys = items if by_item else cells[:, 0]
    order = keys.argsort(stable=True)
    cells, items, keys = cells[order], items[order], keys[order]
    if not len(cells):
        return []
    pairs_of = keys.unique_consecutive(return_counts=True)[1]
    cuts = [int(counts.sum()) for counts in pairs_of.split(size)]
    return [_block(*pieces) for pieces in zip(cells.split(cuts), items.split(cuts), strict=True)]


def _block(cells: Tensor, items: Tensor) -> Block:
    queries, query_of = cells[:, 0].unique(return_inverse=True)
    items, item_of = items.unique(return_inverse=True)
    return Block(queries, items, torch.stack([query_of, item_of], dim=1), cells)


def score_blocks(
    score: PairScores,
    queries: Sequence[Query],
    gallery: Sequence[Item],
    best: SearchResult,
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Second-stage scores, block by block.

    Args:
        score: the method's second stage.
        queries: Q of them.
        gallery: the items that `best` counts.
        best: what the first stage found, K items for each query.
        part: which of the blocks, so that processes share them.

    Yields:
        Cells of the table (P, 2), int64, and their scores (P,), float32, on the CPU.

    Raises:
        UserError: a score is NaN or infinite.
    """
    by_item = isinstance(gallery[0], Image)
    for block in blocks(best.positions, by_item=by_item)[part]:
        first = best.scores[block.cells[:, 0], block.cells[:, 1]]
        asked = [queries[row] for row in block.queries.tolist()]
        items = [gallery[place] for place in block.items.tolist()]
        found = score(asked, items, block.pairs, first).detach().float().cpu()
        if not found.isfinite().all():
            raise UserError(
                f"the second stage gave NaN or infinity for query {asked[0].id!r} or one of the "
                f"{len(asked) - 1} others of its block: it has diverged; lower the learning rate, "
                "or use bf16 or float32 in place of float16"
            )
        yield block.cells, found


def reranked(ranked: Ranked, targets: Tensor, scores: Tensor) -> Ranked:
    """The ranking with its first K items in the order of new scores, and the rest behind them.

    A target was found by the first stage if its pessimistic rank there is at most K: a tie at
    the end of the list gives it no second chance. Targets that were not found keep their rank.
    Subsets are ranked by the first stage alone.

    Args:
        ranked: by the first stage.
        targets: their positions in the gallery, padded with -1. Shape (Q, T), int64.
        scores: by the second stage, for the first K of `ranked.best`; -inf where that has no
            item. Shape (Q, K), float32.
    """
    depth = scores.shape[1]
    best, rest = first_of(ranked.best, depth), ranked.best.positions[:, depth:]
    first = ranked.ranks.targets
    found = (first > 0) & (first <= depth)
    columns = columns_of(targets.masked_fill(~found, -1), best.positions)
    second = pessimistic_ranks(scores.clone(), columns)
    ranks = torch.where(columns >= 0, second, first)
    order = in_order(best.positions, scores, depth)
    # Scores of two stages do not compare: the rest has none.
    unscored = torch.full(rest.shape, -torch.inf)
    return ranked._replace(
        ranks=replace(ranked.ranks, targets=ranks),
        best=SearchResult(
            torch.cat([order.positions, rest], dim=1), torch.cat([order.scores, unscored], dim=1)
        ),
    )


def first_of(best: SearchResult, depth: int) -> SearchResult:
    """The first items of each list, at most `depth`."""
    return SearchResult(best.positions[:, :depth], best.scores[:, :depth])
