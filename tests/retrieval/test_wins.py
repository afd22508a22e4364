from __future__ import annotations

import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.records import Query
from cirlab.retrieval.wins import wins


def asked(*rounds: int) -> list[Query]:
    return [
        Query(id=f"{n}#{r}", text="", targets=("a",), tags={"round": str(r)})
        for n, r in enumerate(rounds)
    ]


def ranks(*rows: tuple[int, ...]) -> TargetRanks:
    return TargetRanks(torch.tensor(rows))


def test_a_lower_rank_is_better() -> None:
    found = wins(
        ranks((1,), (5,), (3,), (9,)), ranks((2,), (4,), (3,), (10,)), asked(0, 0, 0, 0), ()
    )
    assert found == {"all": {"better": 2, "worse": 1, "equal": 1}, "breakdown": {}}


def test_of_several_targets_the_best_counts() -> None:
    found = wins(ranks((9, 2), (7, 0)), ranks((3, 8), (7, 0)), asked(0, 0), ())
    assert found["all"] == {"better": 1, "worse": 0, "equal": 1}


def test_rounds_are_counted_by_themselves_and_in_their_order() -> None:
    queries = asked(10, 9, 10, 2)
    found = wins(ranks((1,), (1,), (4,), (2,)), ranks((2,), (1,), (3,), (1,)), queries, ["round"])
    assert list(found["breakdown"]["round"]) == ["2", "9", "10"]
    assert found["breakdown"]["round"]["10"] == {"better": 1, "worse": 1, "equal": 0}
    assert found["breakdown"]["round"]["2"] == {"better": 0, "worse": 1, "equal": 0}
