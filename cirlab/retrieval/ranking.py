"""From a query's record and its scores to the ranks of its targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cirlab.benchmarks.base import SharedPools
from cirlab.errors import UserError
from cirlab.records import Query

#: Scores closer than this are ties. A dot product of two unit vectors in float32 carries a
#: rounding error of about this size, which depends on block shapes and the number of threads;
#: a smaller difference is no evidence that one image fits better.
TIE_TOLERANCE = 1e-6


#: Targets of a query, on average, from which sorting its scores is cheaper than a pass for each.
MANY_TARGETS = 32
#: Entries of a row up to which comparing with every entry of a pool is cheaper than sorting that.
FEW_ENTRIES = 8


class SearchResult(NamedTuple):
    """The best images of every query, by descending score, then by position.

    Attributes:
        positions: positions in the gallery; -1 only at the end of a row, where exclusion, few
            candidates or an approximate index left fewer than k images. Shape (Q, k), int64.
        scores: cosine similarities; -inf beside -1. Shape (Q, k), float32.
    """

    positions: Tensor
    scores: Tensor


class Positions(NamedTuple):
    """The ids of some queries as positions in a gallery, padded with -1.

    Attributes:
        targets: shape (Q, T), int64.
        exclude: shape (Q, E), int64.
        pools: the different sets of candidates that queries have. Shape (P, C), int64.
        pool_of: which of them is a query's own; -1 ranks the whole gallery. Shape (Q,), int64.
        subsets: each query's look-alike group; None without. Shape (Q, S), int64.
    """

    targets: Tensor
    exclude: Tensor
    pools: Tensor
    pool_of: Tensor
    subsets: Tensor | None

    def select(self, rows: Tensor) -> Positions:
        """The positions of some queries only. Shape of `rows` (R,), int64."""
        subsets = None if self.subsets is None else self.subsets[rows]
        return self._replace(
            targets=self.targets[rows],
            exclude=self.exclude[rows],
            pool_of=self.pool_of[rows],
            subsets=subsets,
        )

    def in_subsets(self) -> Positions:
        """The same queries with their subsets as their candidates."""
        assert self.subsets is not None
        return self._replace(pools=self.subsets, pool_of=torch.arange(len(self.subsets)))


def locate(queries: Sequence[Query], position: Mapping[str, int]) -> Positions:
    """Look up every id of the queries.

    Args:
        queries: at least one.
        position: position of each id in the gallery.

    Raises:
        UserError: an id that is not in the gallery; a target that is repeated, excluded, or
            outside its query's candidates; a candidate or subset member that is repeated; a query
            without target while others have one, or without one in its subset; subsets in some of
            the queries only.
    """
    if not queries:
        raise UserError("there are no queries to rank")
    if any(query.targets for query in queries):
        for query in queries:
            _check_rules(query)
    names = [query.id for query in queries]
    # Queries of one category share their candidates, thousands of them.
    owner: dict[tuple[str, ...], str] = {}
    number: dict[tuple[str, ...], int] = {}
    pool = SharedPools(lambda candidates: number.setdefault(candidates, len(number)))
    pool_of = [pool(query.candidates) if query.candidates else -1 for query in queries]
    for query, row in zip(queries, pool_of, strict=True):
        if row == len(owner):
            _check_distinct(query.id, "candidate", query.candidates or ())
            owner[query.candidates or ()] = query.id
    return Positions(
        targets=lookup([q.targets for q in queries], position, names, role="target"),
        exclude=lookup([q.exclude for q in queries], position, names, role="excluded image"),
        pools=lookup(list(owner), position, list(owner.values()), role="candidate"),
        pool_of=torch.tensor(pool_of),
        subsets=_subsets(queries, position),
    )


def lookup(
    rows: Sequence[Sequence[str]], position: Mapping[str, int], names: Sequence[str], role: str
) -> Tensor:
    """Positions of some ids per query, padded with -1.

    Args:
        rows: ids of each query, Q in all.
        position: position of each id in the gallery.
        names: the queries' ids, for the error.
        role: what the ids are, for the error.

    Returns:
        Shape (Q, longest row), int64.

    Raises:
        UserError: an id is not in the gallery.
    """
    width = max(map(len, rows), default=0)
    table = torch.full((len(rows), width), -1, dtype=torch.long)
    for row, (ids, name) in enumerate(zip(rows, names, strict=True)):
        unknown = [item for item in ids if item not in position]
        if unknown:
            raise UserError(
                f"query {name!r}: {role} {unknown[0]!r} is not among the {len(position)} images "
                "of the gallery; add it there or correct the id"
            )
        table[row, : len(ids)] = torch.tensor([position[item] for item in ids], dtype=torch.long)
    return table


def drop(scores: Tensor, columns: Tensor) -> None:
    """Take images out of the running, in place.

    Args:
        scores: becomes -inf in these columns. Shape (B, C), float32.
        columns: padded with -1. Shape (B, E), int64.
    """
    rows, places = (columns >= 0).nonzero(as_tuple=True)
    scores[rows, columns[rows, places]] = -torch.inf


def pessimistic_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Ranks of the targets when every tie is decided against them.

    An image that is no target counts as ahead of a target unless its score is lower by more
    than `TIE_TOLERANCE`. The targets of a query stand in the order of their own scores, the
    principal one after its equals.

    Args:
        scores: -inf where an image does not count; overwritten. Shape (B, C), float32.
        targets: columns of the targets, padded with -1. Shape (B, T), int64.

    Returns:
        1-based ranks, 0 where `targets` is -1. Shape (B, T), int64.
    """
    present = targets >= 0
    own = scores.gather(1, targets.clamp(min=0)).masked_fill(~present, -torch.inf)
    drop(scores, targets)
    many = present.sum() > MANY_TARGETS * len(targets)
    ahead = _count_sorted(scores, own) if many else _count_each(scores, own, present)
    # Of targets that tie, the principal one, which stands first, ranks last.
    order = own.flip(1).argsort(dim=1, descending=True, stable=True)
    among_targets = order.argsort(dim=1).flip(1)
    return (ahead + among_targets + 1).masked_fill(~present, 0)


def _count_each(scores: Tensor, own: Tensor, present: Tensor) -> Tensor:
    """How many scores are not clearly lower than each target's, by a pass for each. (B, T)."""
    ahead = torch.zeros(own.shape, dtype=torch.long)
    for j in range(own.shape[1]):
        rows = present[:, j].nonzero().flatten()
        others = scores if len(rows) == len(scores) else scores[rows]
        is_ahead = others >= own[rows, j, None] - TIE_TOLERANCE
        # NumPy counts booleans an order of magnitude faster than torch sums them.
        ahead[rows, j] = torch.from_numpy(np.count_nonzero(is_ahead.numpy(), axis=1))
    return ahead


def _count_sorted(scores: Tensor, own: Tensor) -> Tensor:
    """The same from scores that are sorted once. Shape (B, T)."""
    return scores.shape[1] - torch.searchsorted(scores.sort(dim=1).values, own - TIE_TOLERANCE)


def best_columns(scores: Tensor, k: int) -> SearchResult:
    """The k best columns of every row; -1 in place of dropped ones. Shape (B, C) to (B, k)."""
    k = min(k, scores.shape[1])
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if 0 < k < scores.shape[1]:
        # Which of the images that tie for the last place it returns, topk leaves open.
        for row in (values[:, k - 1] == values[:, k]).nonzero().flatten().tolist():
            best = scores[row].sort(descending=True, stable=True)
            values[row], columns[row] = best.values[: k + 1], best.indices[: k + 1]
    return in_order(columns.masked_fill(values == -torch.inf, -1), values, k)


def rank_within(
    scores: Tensor, pool: Tensor, known: Positions, k: int
) -> tuple[Tensor, SearchResult]:
    """Ranks of the targets, and the k best images, within some images of each query.

    Args:
        scores: of the pool's images; overwritten. Shape (B, C), float32.
        pool: their positions, ascending within equal scores, padded with -1. Shape (B, C).
        known: the positions of the B queries.
        k: how many images to list.

    Returns:
        Ranks (B, T), 0 for targets outside the pool; and the best images (B, k).
    """
    drop(scores, columns_of(known.exclude, pool))
    scores.masked_fill_(pool < 0, -torch.inf)
    columns, values = best_columns(scores, k)
    best = pool.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)
    return pessimistic_ranks(scores, columns_of(known.targets, pool)), SearchResult(best, values)


def in_order(positions: Tensor, scores: Tensor, k: int) -> SearchResult:
    """The first k of each row by (score descending, position ascending). Shapes (B, C)."""
    by_position = positions.argsort(dim=1, stable=True)
    positions, scores = positions.gather(1, by_position), scores.gather(1, by_position)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return SearchResult(positions.gather(1, by_score), scores.gather(1, by_score))


def columns_of(table: Tensor, pool: Tensor) -> Tensor:
    """Where each entry of `table` (B, T) stands in its row of `pool` (B, C); -1 if nowhere.

    Entries of a row of the pool are distinct, -1 apart.
    """
    if pool.shape[1] == 0:
        return torch.full_like(table, -1)
    if table.shape[1] > FEW_ENTRIES:
        ordered, order = pool.sort(dim=1)
        at = torch.searchsorted(ordered, table.contiguous()).clamp(max=pool.shape[1] - 1)
        there = (ordered.gather(1, at) == table) & (table >= 0)
        return torch.where(there, order.gather(1, at), -1)
    equal = (table[:, :, None] == pool[:, None, :]) & (table >= 0)[:, :, None]
    return torch.where(equal.any(dim=2), equal.long().argmax(dim=2), -1)


def _subsets(queries: Sequence[Query], position: Mapping[str, int]) -> Tensor | None:
    without = next((query.id for query in queries if query.subset is None), None)
    rows = [query.subset for query in queries if query.subset is not None]
    if not rows:
        return None
    if without is not None:
        raise UserError(
            f"query {without!r} has no subset while others of its benchmark have one; "
            "give one to every query or to none"
        )
    return lookup(rows, position, [query.id for query in queries], role="subset member")


def _check_distinct(name: str, role: str, ids: Sequence[str]) -> None:
    """What stands twice in a pool would be ranked twice."""
    if len(set(ids)) < len(ids):
        twice = next(item for item, count in Counter(ids).items() if count > 1)
        raise UserError(f"query {name!r} names the {role} {twice!r} twice; name it once")


def _check_rules(query: Query) -> None:
    """Refuse a query that no ranking could serve."""
    targets = set(query.targets)
    if not targets:
        raise UserError(f"query {query.id!r} has no target; name at least one gallery image")
    if len(targets) < len(query.targets):
        raise UserError(f"query {query.id!r} names a target twice: {query.targets}")
    if excluded := targets.intersection(query.exclude):
        raise UserError(f"query {query.id!r} excludes its own target {min(excluded)!r}")
    if query.candidates is not None and (outside := targets.difference(query.candidates)):
        raise UserError(f"query {query.id!r}: target {min(outside)!r} is not a candidate")
    _check_distinct(query.id, "subset member", query.subset or ())
    if query.subset is not None and not targets.intersection(query.subset):
        raise UserError(f"query {query.id!r} has no target in its subset {query.subset}")
