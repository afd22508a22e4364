from __future__ import annotations

from cirlab.benchmarks.base import WHOLE_GALLERY, SharedPools, ranked_against
from cirlab.records import Query


def query(candidates: tuple[str, ...] | None) -> Query:
    return Query(id="q", text="", targets=("a",), candidates=candidates)


def test_it_is_told_what_queries_are_ranked_against() -> None:
    assert ranked_against([query(None)]) == WHOLE_GALLERY
    assert ranked_against([query(("a", "b")), query(("a", "c"))]) == "own, 2"
    assert ranked_against([query(("a", "b")), query(None)]) == "own, the whole gallery, 2"
    many = [query(("a",) * size) for size in (9, 3, 4, 5, 6)]
    assert ranked_against(many) == "own, 3 to 9"


def test_shared_pools_are_computed_once_and_equal_ones_alike() -> None:
    calls: list[tuple[str, ...]] = []
    size = SharedPools(lambda pool: calls.append(pool) or len(pool))
    pool, equal = tuple("abc"), tuple("abc"[:2] + "c")
    assert [size(pool), size(pool), size(equal), size(("x",))] == [3, 3, 3, 1]
    assert len(calls) == (2 if pool is equal else 3)
