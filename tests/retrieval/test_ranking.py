from __future__ import annotations

import dataclasses

import pytest
import torch

from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval import ranking
from cirlab.retrieval.ranking import best_columns, columns_of, locate, pessimistic_ranks

POSITION = {name: i for i, name in enumerate("abcdef")}
QUERY = Query(id="q7", text="", targets=("b", "c"), exclude=("a",))
OTHER = Query(id="q8", text="", targets=("b",))


def test_ids_become_positions() -> None:
    other = Query(id="q8", text="", targets=("f",), candidates=("e", "f", "a"))
    shared = dataclasses.replace(other, id="q9")
    known = locate([QUERY, other, shared], POSITION)
    assert known.targets.tolist() == [[1, 2], [5, -1], [5, -1]]
    assert known.exclude.tolist() == [[0], [-1], [-1]]
    assert known.pools.tolist() == [[4, 5, 0]]
    assert known.pool_of.tolist() == [-1, 0, 0]
    assert known.subsets is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("x",)}, "query 'q7': target 'x' is not among the 6 images"),
        ({"exclude": ("y",)}, "query 'q7': excluded image 'y'"),
        ({"candidates": ("b", "c", "z")}, "query 'q7': candidate 'z'"),
        ({"subset": ("b", "z")}, "query 'q7': subset member 'z'"),
        ({"targets": ()}, "query 'q7' has no target"),
        ({"candidates": ("b", "c", "d", "d")}, "query 'q7' names the candidate 'd' twice"),
        ({"subset": ("b", "d", "d")}, "query 'q7' names the subset member 'd' twice"),
        ({"targets": ("b", "b")}, "query 'q7' names a target twice"),
        ({"exclude": ("a", "c")}, "query 'q7' excludes its own target 'c'"),
        ({"candidates": ("b", "d")}, "query 'q7': target 'c' is not a candidate"),
        ({"subset": ("d", "e")}, "query 'q7' has no target in its subset"),
    ],
)
def test_rules_that_no_ranking_could_serve_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        subset = ("a", "b") if "subset" in change else None
        other = dataclasses.replace(OTHER, subset=subset)
        locate([dataclasses.replace(QUERY, **change), other], POSITION)


def test_answers_may_be_held_back_for_all_queries() -> None:
    known = locate([dataclasses.replace(QUERY, targets=(), subset=("a", "b"))], POSITION)
    assert known.targets.shape == (1, 0)
    assert known.subsets is not None and known.subsets.tolist() == [[0, 1]]


def test_subsets_are_for_all_queries_or_none() -> None:
    with_subset = dataclasses.replace(QUERY, id="q8", subset=("b", "d"))
    with pytest.raises(UserError, match="query 'q7' has no subset"):
        locate([with_subset, QUERY], POSITION)


def test_no_queries_are_refused() -> None:
    with pytest.raises(UserError, match="no queries"):
        locate([], POSITION)


def test_a_rank_counts_ties_against_the_target() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, -torch.inf, 0.1]])
    assert pessimistic_ranks(scores, torch.tensor([[2]])).tolist() == [[4]]


def test_targets_do_not_stand_in_each_other_s_way() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    # Ranks of the targets in the full ranking, whatever their order in the record.
    assert pessimistic_ranks(scores.clone(), torch.tensor([[3, 0, -1]])).tolist() == [[4, 1, 0]]
    assert pessimistic_ranks(scores.clone(), torch.tensor([[0, 3, -1]])).tolist() == [[1, 4, 0]]


def test_columns_are_found_or_not() -> None:
    pool = torch.tensor([[7, 3, -1], [5, 6, 2]])
    table = torch.tensor([[3, -1], [2, 9]])
    assert columns_of(table, pool).tolist() == [[1, -1], [2, -1]]
    assert columns_of(table, pool[:, :0]).tolist() == [[-1, -1], [-1, -1]]


def test_best_columns_leave_dropped_ones_out() -> None:
    scores = torch.tensor([[0.1, -torch.inf, 0.3], [-torch.inf, -torch.inf, -0.5]])
    best = best_columns(scores, k=2)
    assert best.positions.tolist() == [[2, 0], [2, -1]]
    assert best_columns(scores, k=0).positions.shape == (2, 0)


@pytest.mark.parametrize("seed", range(3))
def test_many_targets_rank_as_few_do(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting once and a pass for each target count the same, ties and padding included."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(9, 60, generator=generator) * 20).round() / 20
    scores[:, ::7] = -torch.inf
    targets = torch.stack([torch.randperm(60, generator=generator)[:40] for _ in range(9)])
    targets[:, 35:] = -1
    targets[4, 3:] = -1
    sorted_once = ranking.pessimistic_ranks(scores.clone(), targets)
    monkeypatch.setattr(ranking, "MANY_TARGETS", 1000)
    assert torch.equal(sorted_once, ranking.pessimistic_ranks(scores.clone(), targets))


def test_entries_are_found_in_long_rows_as_in_short_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.stack([torch.randperm(50, generator=generator)[:20] for _ in range(6)])
    pool[2, 15:] = -1
    table = torch.randint(-1, 50, (6, 30), generator=generator)
    table[:, 0], table[0, 0] = pool[:, 3], -1
    whole = ranking.columns_of(table, pool)
    pieces = [ranking.columns_of(piece, pool) for piece in table.split(5, dim=1)]
    assert torch.equal(whole, torch.cat(pieces, dim=1))
    assert whole[1:, 0].tolist() == [3] * 5 and whole[0, 0] == -1
