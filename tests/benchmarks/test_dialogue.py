from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.benchmarks.dialogue import DialogueRules
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval.evaluation import Encoded, Gallery, evaluate
from tests.benchmarks.encoders import constant, ranking
from tests.callbacks.lookup import picture

#: Ranks of the targets of three dialogues in three rounds.
TABLE = ((3, 1, 4), (1, 3, 3), (4, 3, 2))
#: Of the best so far: 3, 1, 1; 1, 1, 1; 4, 3, 2.
BRI = (math.log(3) / 2 + (math.log(4) + math.log(3)) / 2 + (math.log(3) + math.log(2)) / 2) / 6


class Dialogues(DialogueRules):
    """Dialogue d has as many rounds as ranks and looks for image d of ten."""

    name = "dialogues"

    def __init__(self, table: Sequence[Sequence[int]] = TABLE, **options: Any) -> None:
        super().__init__(**{"hits_at": 2, **options})
        self.table = table
        self.setup()

    def setup(self) -> None:
        self.gallery = [picture(number) for number in range(10)]
        self.queries = [
            query
            for number, ranks in enumerate(self.table)
            for query in self.dialogue(
                f"d#{number}", [f"{number}.{r}" for r in range(len(ranks))], (f"image{number}",)
            )
        ]

    def best(self, row: int) -> list[str]:
        """Other images, and the target at its rank."""
        query = self.queries[row]
        number, place = int(query.id[2]), int(query.tags["round"])
        others = [image.id for image in self.gallery if image.id not in query.targets]
        return [*others[: self.table[number][place] - 1], *query.targets]


def ranked(table: Sequence[Sequence[int]]) -> TargetRanks:
    return TargetRanks(torch.tensor([[rank] for row in table for rank in row]))


# ---- queries --------------------------------------------------------------------------------


def test_every_round_is_a_query_with_all_that_was_said() -> None:
    benchmark = Dialogues()
    assert [query.id for query in benchmark.queries[:4]] == ["d#0#0", "d#0#1", "d#0#2", "d#1#0"]
    assert benchmark.queries[5] == Query(
        id="d#1#2",
        text="1.0, 1.1, 1.2",
        targets=("image1",),
        rounds=("1.0", "1.1", "1.2"),
        tags={"round": "2"},
    )
    assert benchmark.protocol().query_template == "{round 0}, {round 1}, .., {round t}"


def test_another_separator() -> None:
    benchmark = Dialogues(separator=" [SEP] ")
    assert benchmark.queries[4].text == "1.0 [SEP] 1.1"
    template = "{round 0} [SEP] {round 1} [SEP] .. [SEP] {round t}"
    assert benchmark.protocol().query_template == template


def test_rewritten_rounds_are_asked_alone() -> None:
    benchmark = Dialogues(history="current")
    query = benchmark.queries[5]
    assert (query.text, query.rounds) == ("1.2", ("1.0", "1.1", "1.2"))
    assert benchmark.protocol().query_template == "{round t} alone"
    assert benchmark.protocol().annotations != Dialogues().protocol().annotations


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"history": "all"}, "history is 'all'; set it to concat, current or null"),
        ({"hits_at": 0}, "hits_at is 0; set it to 1 or more"),
    ],
)
def test_other_rules_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Dialogues(**options)


# ---- scores ---------------------------------------------------------------------------------


def test_cumulative_hits_against_recall_of_each_round() -> None:
    benchmark = Dialogues()
    results = ranking(benchmark, benchmark.best).results
    assert results["metrics"] == pytest.approx(
        {"cumulative_hits_at_2": 1, "recall_at_2": 1 / 3, "mean_rank": 3, "bri": BRI}
    )
    rounds = results["breakdown"]["round"]
    assert list(rounds) == ["0", "1", "2"]
    columns = {name: [values[name] for values in rounds.values()] for name in rounds["0"]}
    assert columns == {
        "cumulative_hits_at_2": pytest.approx([1 / 3, 2 / 3, 1]),
        "recall_at_2": pytest.approx([1 / 3, 1 / 3, 1 / 3]),
        "mean_rank": pytest.approx([8 / 3, 7 / 3, 3]),
    }


def test_a_collapsed_encoder_never_hits() -> None:
    results = constant(Dialogues()).results
    assert results["metrics"] == pytest.approx(
        {"cumulative_hits_at_2": 0, "recall_at_2": 0, "mean_rank": 10, "bri": math.log(10)}
    )
    assert all(of["cumulative_hits_at_2"] == 0 for of in results["breakdown"]["round"].values())


def test_the_cutoff_is_the_one_that_is_asked_for() -> None:
    benchmark = Dialogues(hits_at=3)
    assert benchmark.score(ranked(TABLE), benchmark.queries)["cumulative_hits_at_3"] == 1
    rounds = benchmark.breakdown(ranked(TABLE), benchmark.queries, "round")
    assert [of["cumulative_hits_at_3"] for of in rounds.values()] == pytest.approx([2 / 3, 1, 1])
    assert benchmark.metric_names() == [
        "bri",
        "cumulative_hits_at_3",
        "mean_rank",
        "recall_at_3",
    ]


def test_dialogues_of_different_lengths() -> None:
    """An ended one keeps its success, and counts in its own last round."""
    table = ((2,), (5, 3, 1), (9, 8))
    benchmark = Dialogues(table)
    scores = benchmark.score(ranked(table), benchmark.queries)
    assert scores["cumulative_hits_at_2"] == scores["recall_at_2"] == pytest.approx(2 / 3)
    assert scores["mean_rank"] == pytest.approx((2 + 1 + 8) / 3)
    rounds = benchmark.breakdown(ranked(table), benchmark.queries, "round")
    assert [of["cumulative_hits_at_2"] for of in rounds.values()] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3]
    )
    assert [of["recall_at_2"] for of in rounds.values()] == pytest.approx([1 / 3, 0, 1])
    assert [of["mean_rank"] for of in rounds.values()] == pytest.approx([16 / 3, 5.5, 1])


def test_the_best_of_several_targets_counts() -> None:
    benchmark = Dialogues()
    several = TargetRanks(torch.tensor([[rank + 5, rank] for row in TABLE for rank in row]))
    one = ranked(TABLE)
    assert benchmark.score(several, benchmark.queries) == benchmark.score(one, benchmark.queries)


def test_the_order_of_queries_does_not_matter() -> None:
    benchmark = Dialogues()
    order = random.Random(0).sample(range(9), 9)
    ranks, queries = ranked(TABLE), benchmark.queries
    mixed = ranks.select(order), [queries[row] for row in order]
    assert benchmark.score(*mixed) == pytest.approx(benchmark.score(ranks, queries))
    rounds = benchmark.breakdown(ranks, queries, "round")
    assert benchmark.breakdown(*mixed, "round") == {
        name: pytest.approx(values) for name, values in rounds.items()
    }


def test_one_round_alone() -> None:
    benchmark = Dialogues()
    rows = [1, 4, 7]
    queries = [benchmark.queries[row] for row in rows]
    scores = benchmark.score(ranked(TABLE).select(rows), queries)
    assert scores == pytest.approx(
        {
            "cumulative_hits_at_2": 1 / 3,
            "recall_at_2": 1 / 3,
            "mean_rank": 7 / 3,
            "bri": (0 + 2 * math.log(3)) / 3,
        }
    )


def test_rounds_are_in_the_order_of_their_numbers() -> None:
    table = [list(range(1, 13))]
    benchmark = Dialogues(table)
    rounds = benchmark.breakdown(ranked(table), benchmark.queries, "round")
    assert list(rounds) == [str(number) for number in range(12)]
    assert [of["mean_rank"] for of in rounds.values()] == list(range(1, 13))


def test_dialogues_whose_image_is_unreadable_are_left_out() -> None:
    benchmark = Dialogues()
    valid = torch.ones(10, dtype=torch.bool)
    valid[1] = False
    images = Encoded({"gallery": torch.eye(10)}, valid)
    asked = torch.zeros(9, 10)
    asked[:3, 0] = 1  # the first dialogue finds its image in every round, the others the first's
    asked[3:, 0] = 1
    found = evaluate(
        benchmark,
        Gallery(benchmark.gallery, images),
        Encoded({"query": asked}, torch.ones(9, dtype=torch.bool)),
    )
    assert found.results["protocol"]["queries"] == 6
    assert found.results["metrics"]["cumulative_hits_at_2"] == 0.5
    assert found.results["metrics"]["mean_rank"] == (1 + 9) / 2
