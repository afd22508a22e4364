"""Ranks and ten best images of many queries, against sorting the full score matrix.

The usual way (as evaluation scripts of composed and dialogue retrieval do it) multiplies all
queries with the gallery, argsorts every row, and looks the target up in the order.

The vectors hold integers over 1,024 with a norm of exactly 1, so that float32 scores are exact
whatever the order of summation, and both ways must agree on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import psutil
import torch

from bench.measure import PeakMemory, Row, in_own_process, in_turns, seconds
from cirlab.records import Query
from cirlab.retrieval.index import TIE_TOLERANCE, GalleryIndex

QUERIES, GALLERY, DIM, TOP = 22_704, 50_000, 256, 10
REPEATS = 3
_SCALE = 1024
#: float32 scores, and argsort's sorted copy and int64 order.
_BYTES_PER_SCORE = 4 + 4 + 8


@dataclass(frozen=True)
class Outcome:
    """One evaluation in a process of its own.

    Attributes:
        time: seconds.
        memory: MiB at the peak, beyond what the process held when it began.
        ranks: shape (Q,), int64.
        best: scores of the ten best images. Shape (Q, 10), float32.
    """

    time: float
    memory: float
    ranks: torch.Tensor
    best: torch.Tensor


@dataclass(frozen=True)
class Problem:
    """Query i looks for image `targets[i]` and excludes image `excluded[i]`."""

    queries: torch.Tensor
    gallery: torch.Tensor
    targets: torch.Tensor
    excluded: torch.Tensor


def run() -> list[Row]:
    """Seconds and memory of both ways, three times in turns."""
    queries = affordable_queries()
    ours, usual = in_turns(
        lambda: in_own_process(by_counting, queries),
        lambda: in_own_process(by_sorting, queries),
        REPEATS,
    )
    for one, other in zip(ours, usual, strict=True):
        check_equal(one, other)
    name = f"evaluation, {queries:,} x {GALLERY:,} x {DIM}"
    reference = "score matrix, argsort"
    return [
        Row(f"{name}: time", [o.time for o in ours], [u.time for u in usual], "s", reference),
        Row(
            f"{name}: memory", [o.memory for o in ours], [u.memory for u in usual], "MiB", reference
        ),
    ]


def affordable_queries() -> int:
    """All queries, or as many as the usual way has memory for."""
    free = psutil.virtual_memory().available - (2 << 30)
    return int(max(1, min(QUERIES, free // (GALLERY * _BYTES_PER_SCORE))))


def check_equal(ours: Outcome, usual: Outcome) -> None:
    """Both ways must give the same ranks and the same best scores.

    Raises:
        AssertionError: they do not.
    """
    if not torch.equal(ours.ranks, usual.ranks):
        raise AssertionError(f"{(ours.ranks != usual.ranks).sum()} ranks differ")
    if not torch.equal(ours.best, usual.best):
        raise AssertionError("the best images differ")


def by_counting(queries: int) -> Outcome:
    """This project's way."""
    problem = make_problem(queries, GALLERY)
    records = [
        Query(id=str(i), text="", targets=(str(target),), exclude=(str(excluded),))
        for i, (target, excluded) in enumerate(
            zip(problem.targets.tolist(), problem.excluded.tolist(), strict=True)
        )
    ]
    ids = [str(i) for i in range(len(problem.gallery))]
    results = []

    def evaluate() -> None:
        index = GalleryIndex(ids, problem.gallery)
        results.append(index.rank(problem.queries, records, k=TOP))

    with PeakMemory() as peak:
        time = seconds(evaluate)
    ranks, best, _ = results[0]
    return Outcome(time, peak.grown_mib, ranks.targets[:, 0], best.scores)


def by_sorting(queries: int) -> Outcome:
    """The usual way; ties are decided by the same rule afterwards, outside the measurement."""
    problem = make_problem(queries, GALLERY)
    results = []

    def evaluate() -> None:
        scores = problem.queries @ problem.gallery.T
        scores[torch.arange(len(scores)), problem.excluded] = -torch.inf
        order = scores.argsort(dim=1, descending=True)
        places = (order == problem.targets[:, None]).nonzero()[:, 1]
        results.append((scores, order, places))

    with PeakMemory() as peak:
        time = seconds(evaluate)
    scores, order, places = results[0]
    best = scores.gather(1, order[:, :TOP])
    return Outcome(time, peak.grown_mib, with_ties(scores, order, places, problem.targets), best)


def with_ties(
    scores: torch.Tensor, order: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Pessimistic ranks from 0-based places: images that tie with a target come before it."""
    ranks = places + 1
    threshold = scores.gather(1, targets[:, None])[:, 0] - TIE_TOLERANCE
    rows = torch.arange(len(scores))
    while len(rows):
        behind = ranks[rows]
        rows, behind = rows[behind < scores.shape[1]], behind[behind < scores.shape[1]]
        rows = rows[scores[rows, order[rows, behind]] >= threshold[rows]]
        ranks[rows] += 1
    return ranks


def make_problem(queries: int, gallery: int) -> Problem:
    """Vectors of exact unit length, random targets and exclusions."""
    rng = np.random.default_rng(0)
    images = rng.integers(gallery, size=(2, queries))
    # Never exclude the target.
    images[1] = np.where(images[0] == images[1], (images[1] + 1) % gallery, images[1])
    return Problem(
        queries=exact_vectors(rng, queries),
        gallery=exact_vectors(rng, gallery),
        targets=torch.from_numpy(images[0]),
        excluded=torch.from_numpy(images[1]),
    )


def exact_vectors(rng: np.random.Generator, count: int) -> torch.Tensor:
    """The same magnitudes in any order, with any signs. Shape (count, DIM), float32."""
    order = rng.permuted(np.tile(_magnitudes(), (count, 1)), axis=1)
    signs = rng.choice(np.array([-1, 1], dtype=np.float32), size=order.shape)
    return torch.from_numpy(order * signs / _SCALE)


@cache
def _magnitudes() -> np.ndarray:
    """DIM integers whose squares sum to exactly the square of the scale."""
    rng = np.random.default_rng(0)
    while True:
        drawn = rng.integers(20, 100, size=DIM - 1)
        left = _SCALE**2 - int((drawn**2).sum())
        if left >= 0 and round(left**0.5) ** 2 == left:
            return np.append(drawn, round(left**0.5)).astype(np.float32)
