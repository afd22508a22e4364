from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from cirlab.world.oracle import askable
from cirlab.zoo.rewriting import mark
from datamodules import WorldRewritingData


def records(number: int = 200, **options: Any) -> list[Conversation]:
    data = WorldRewritingData(samples=number, batch_size=4, **options).train_dataset()
    return [data[SampleKey(0, index)] for index in range(number)]


def test_dialogues_are_answered_by_what_they_told() -> None:
    for record in records():
        assert record.image is None
        ((said, answer),) = record.turns
        caption, *rounds = said.split("\n")
        assert 1 <= len(rounds) <= 10 and all("? " in text for text in rounds)
        # Whatever the opening says stands in the answer.
        assert mark(caption, answer).invented == 0
        assert "?" not in answer and " no " not in answer


def test_every_number_of_rounds_is_alike_often() -> None:
    counts = Counter(record.turns[0][0].count("\n") for record in records(400, rounds=4))
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 70


def test_listed_questions_are_those_of_the_oracle() -> None:
    asked = [
        text.partition("? ")[0] + "?"
        for record in records(40, listed=1.0)
        for text in record.turns[0][0].split("\n")[1:]
    ]
    assert set(asked) <= set(askable())
    own = [text for record in records(40, listed=0.0) for text in record.turns[0][0].split("\n")]
    assert any("is it " in text for text in own)


def test_a_prompt_with_an_example_is_a_longer_chat() -> None:
    (record,) = records(1, prompt="full")
    (first, example), (last, answer) = record.turns
    (bare,) = records(1)
    assert answer == bare.turns[0][1] and example not in answer
    assert last.splitlines()[0] == first.splitlines()[0]
    assert last.splitlines()[2:] == bare.turns[0][0].splitlines()[1:]


def test_the_seed_decides_and_epochs_differ() -> None:
    assert records(5) == records(5) != records(5, seed=1)
    data = WorldRewritingData(samples=5, batch_size=5).train_dataset()
    assert data[SampleKey(0, 1)] != data[SampleKey(1, 1)]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"listed": 1.5}, "listed is 1.5; choose a value from 0 to 1"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 11}, "rounds"),
        ({"prompt": "none"}, "there is no prompt 'none'"),
    ],
)
def test_other_arguments_are_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        WorldRewritingData(samples=4, batch_size=4, **options)
