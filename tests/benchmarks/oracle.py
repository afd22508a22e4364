"""A second evaluator, written from the papers' definitions alone, to check the first against.

It shares no code with cirlab's own: cosines by numpy in float32, every pool sorted in full, and
metrics counted along the sorted lists. It is slow and meant to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cirlab.records import Query

#: What two float32 cosines may differ by and still count as equal.
TOLERANCE = 1e-6

Metrics = dict[str, float]


@dataclass(frozen=True)
class Sorted:
    """A query and what was sorted for it, best first.

    Attributes:
        pool: ids of the whole gallery, or of the query's own candidates.
        subset: ids of its look-alikes; empty without.
    """

    query: Query
    pool: list[str]
    subset: list[str]

    def places(self, ids: Sequence[str]) -> list[int]:
        """1-based places of the targets in a sorted list, first the best."""
        return [place for place, name in enumerate(ids, start=1) if name in self.query.targets]

    @property
    def best(self) -> int:
        return self.places(self.pool)[0]

    @property
    def principal(self) -> int:
        return self.pool.index(self.query.targets[0]) + 1


@dataclass(frozen=True)
class Definition:
    """How a benchmark is scored.

    Attributes:
        score: of all queries, or of those that share a value of a tag.
        tags: by which results are broken down.
        average_over: the tag over whose values metrics are averaged as `macro_...`.
        groups: results by tag and value, where they are not `score` of the queries with the value.
    """

    score: Callable[[list[Sorted]], Metrics]
    tags: tuple[str, ...] = ()
    average_over: str | None = None
    groups: Callable[[list[Sorted]], dict[str, dict[str, Metrics]]] | None = None

    def metrics(self, found: list[Sorted]) -> Metrics:
        metrics = self.score(found)
        if self.average_over is None:
            return metrics
        groups = list(self.by_tag(found, self.average_over).values())
        macro = {f"macro_{name}": mean(group[name] for group in groups) for name in metrics}
        return {**metrics, **macro}

    def breakdown(self, found: list[Sorted]) -> dict[str, dict[str, Metrics]]:
        if self.groups is not None:
            return self.groups(found)
        return {tag: self.by_tag(found, tag) for tag in self.tags}

    def by_tag(self, found: list[Sorted], tag: str) -> dict[str, Metrics]:
        values = {v for one in found if tag in one.query.tags for v in values_of(one, tag)}
        return {
            value: self.score([one for one in found if value in values_of(one, tag)])
            for value in values
        }


def values_of(one: Sorted, tag: str) -> list[str]:
    return one.query.tags.get(tag, "").split("+")


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


# ---- sorting --------------------------------------------------------------------------------


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Shapes (Q, D) and (G, D); returns (Q, G) in float32."""
    return unit(queries) @ unit(gallery).T


def mean_wording(vectors: np.ndarray, wordings: int) -> np.ndarray:
    """One vector for each query from consecutive rows, shape (Q * wordings, D)."""
    rows = unit(vectors)
    return np.stack(
        [rows[row : row + wordings].mean(axis=0) for row in range(0, len(rows), wordings)]
    )


def readable_part(
    queries: Sequence[Query], valid: Sequence[bool], readable: set[str]
) -> list[tuple[int, Query]]:
    """Positions and queries that are left, without the images that cannot be read."""

    def left(ids: Sequence[str] | None) -> tuple[str, ...] | None:
        return None if ids is None else tuple(name for name in ids if name in readable)

    kept = []
    for row, query in enumerate(queries):
        query = replace(
            query,
            targets=left(query.targets) or (),
            exclude=left(query.exclude) or (),
            candidates=left(query.candidates),
            subset=left(query.subset),
        )
        within = query.targets if query.subset is None else query.subset
        if valid[row] and set(query.targets) & set(within):
            kept.append((row, query))
    return kept


def sort_pools(
    queries: Sequence[tuple[int, Query]], scores: np.ndarray, gallery: Sequence[str]
) -> list[Sorted]:
    """Sort each query's pool, ties against the targets.

    Args:
        queries: with their rows in `scores`.
        scores: of every query and gallery item. Shape (Q, G).
        gallery: ids of the G items; those that stand in no pool may be among them.
    """
    found = []
    for row, query in queries:
        score = dict(zip(gallery, map(float, scores[row]), strict=True))
        pool = gallery if query.candidates is None else query.candidates
        found.append(
            Sorted(
                query=query,
                pool=sort_pool(query, pool, score),
                subset=sort_pool(query, query.subset or (), score),
            )
        )
    return found


def sort_pool(query: Query, pool: Sequence[str], score: dict[str, float]) -> list[str]:
    """Best first; targets are taken down by the tolerance, and stand last among equals.

    Among targets with equal scores the principal one stands last.
    """

    def key(name: str) -> tuple[float, int]:
        if name not in query.targets:
            return -score[name], -len(query.targets)
        return -(score[name] - TOLERANCE), -query.targets.index(name)

    return sorted({name for name in pool if name not in query.exclude}, key=key)


def in_doubt(queries: Sequence[Query], scores: np.ndarray, gallery: Sequence[str]) -> bool:
    """Whether rounding, which differs by machine, decides if some image ties with a target."""
    position = {name: column for column, name in enumerate(gallery)}
    for row, query in enumerate(queries):
        for target in query.targets:
            ahead = scores[row, position[target]].astype(float) - scores[row].astype(float)
            if ((ahead > 0.3 * TOLERANCE) & (ahead < 1.7 * TOLERANCE)).any():
                return True
    return False


# ---- definitions ----------------------------------------------------------------------------


def recall(found: list[Sorted], cutoffs: Sequence[int]) -> Metrics:
    """Share of the queries with a target among the first k."""
    return {f"recall_at_{k}": mean(float(one.best <= k) for one in found) for k in cutoffs}


def principal_recall(found: list[Sorted], cutoffs: Sequence[int]) -> Metrics:
    """CIRCO's recall: of `target_img_id` alone, among all the predictions."""
    return {f"recall_at_{k}": mean(float(one.principal <= k) for one in found) for k in cutoffs}


def subset_recall(found: list[Sorted], cutoffs: Sequence[int]) -> Metrics:
    """CIRR's: within the look-alikes without the reference."""
    return {
        f"subset_recall_at_{k}": mean(float(one.places(one.subset)[0] <= k) for one in found)
        for k in cutoffs
    }


def average_precision(found: list[Sorted], cutoffs: Sequence[int]) -> Metrics:
    """CIRCO's mAP@k: sum over i <= k of precision(i) * relevant(i), by min(targets, k)."""

    def of_one(one: Sorted, k: int) -> float:
        total, hits = 0.0, 0
        for i, name in enumerate(one.pool[:k], start=1):
            if name in one.query.targets:
                hits += 1
                total += hits / i
        return total / min(len(one.query.targets), k)

    return {f"map_at_{k}": mean(of_one(one, k) for one in found) for k in cutoffs}


def mean_rank(found: list[Sorted]) -> Metrics:
    """Of the best target."""
    return {"mean_rank": mean(one.best for one in found)}


def recall_of(*cutoffs: int) -> Callable[[list[Sorted]], Metrics]:
    return lambda found: recall(found, cutoffs)


def ranked(*cutoffs: int) -> Callable[[list[Sorted]], Metrics]:
    """Recall and mean rank."""
    return lambda found: recall(found, cutoffs) | mean_rank(found)


def cirr(found: list[Sorted]) -> Metrics:
    """CIRR: recall in the pool and the subset, and the mean of R@5 and R_subset@1."""
    whole, subset = recall(found, (1, 5, 10, 50)), subset_recall(found, (1, 2, 3))
    headline = (whole["recall_at_5"] + subset["subset_recall_at_1"]) / 2
    return whole | subset | {"mean_of_recall_at_5_and_subset_recall_at_1": headline}


def circo(found: list[Sorted]) -> Metrics:
    cutoffs = (5, 10, 25, 50)
    return average_precision(found, cutoffs) | principal_recall(found, cutoffs)


def precision_and_recall(
    recalls: Sequence[int], precisions: Sequence[int]
) -> Callable[[list[Sorted]], Metrics]:
    return lambda found: recall(found, recalls) | average_precision(found, precisions)


def world_composed(found: list[Sorted]) -> Metrics:
    return (
        recall(found, (1, 5, 10))
        | subset_recall(found, (1, 2, 3))
        | average_precision(found, (5, 10))
        | mean_rank(found)
    )


# ---- dialogues ------------------------------------------------------------------------------


def dialogue(hits_at: int = 10) -> Definition:
    """ChatIR's cumulative hits, PlugIR's recall by round, mean rank, and BRI."""

    def score(found: list[Sorted]) -> Metrics:
        ranks = ranks_by_dialogue(found)
        last = [of_one[max(of_one)] for of_one in ranks]
        return of_round(ranks, last, longest(ranks), hits_at) | {"bri": bri(ranks)}

    def groups(found: list[Sorted]) -> dict[str, dict[str, Metrics]]:
        ranks = ranks_by_dialogue(found)
        return {
            "round": {
                str(t): of_round(ranks, [one[t] for one in ranks if t in one], t, hits_at)
                for t in range(longest(ranks) + 1)
            }
        }

    return Definition(score=score, groups=groups)


def ranks_by_dialogue(found: list[Sorted]) -> list[dict[int, int]]:
    """For each dialogue the rank of its best target by round, the caption being round 0."""
    ranks: dict[str, dict[int, int]] = {}
    for one in found:
        name, _, number = one.query.id.rpartition("#")
        ranks.setdefault(name, {})[int(number)] = one.best
    return list(ranks.values())


def longest(ranks: list[dict[int, int]]) -> int:
    return max(max(of_one) for of_one in ranks)


def of_round(ranks: list[dict[int, int]], now: list[int], t: int, hits_at: int) -> Metrics:
    """Success in any round up to t by the number of all dialogues; the rest of the round alone."""
    return {
        f"cumulative_hits_at_{hits_at}": mean(
            float(any(rank <= hits_at for s, rank in of_one.items() if s <= t)) for of_one in ranks
        ),
        f"recall_at_{hits_at}": mean(float(rank <= hits_at) for rank in now),
        "mean_rank": mean(now),
    }


def bri(ranks: list[dict[int, int]]) -> float:
    """1/T sum over t < T of the dialogues' mean of (log m_t + log m_t+1) / 2, m_t best so far."""

    def best(of_one: dict[int, int], t: int) -> float:
        return math.log(min(rank for s, rank in of_one.items() if s <= t))

    rounds = longest(ranks)
    if rounds == 0:
        # The papers have no dialogue without an answer; m_0 is the limit of ever shorter ones.
        return mean(best(of_one, 0) for of_one in ranks)
    return mean(
        mean((best(of_one, t) + best(of_one, t + 1)) / 2 for of_one in ranks) for t in range(rounds)
    )
