from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.dialogue.pool import least_asked, read_pool
from cirlab.errors import UserError
from cirlab.world.oracle import askable
from tests.dialogue.players import REGISTRY


def test_named_pools_hold_questions_that_can_each_be_put() -> None:
    assert read_pool("world") == askable()
    assert len(read_pool("photographs")) >= 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("questions: {a: what is it}", "'what is it' in .* cannot be put .no question.; reword"),
        (
            "questions:\n  a: how is the weather?\n  b: what is the weather?",
            "'how is the weather.' and 'what is the weather.' in .* ask the same; remove one",
        ),
        ("[]", "holds? list; give the keys questions"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_pool(str(path))


def test_an_own_file_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("questions:\n  b: who is there?\n  a: where is it?")
    assert read_pool(str(path)) == ("who is there?", "where is it?")
    with pytest.raises(UserError, match="there are no questions 'nowhere'; give world, photo"):
        read_pool("nowhere")


def test_the_least_asked_question_is_the_first_of_those_asked_least() -> None:
    asked = [REGISTRY[0], "what is the weather?", REGISTRY[3]]
    assert least_asked(REGISTRY, asked) == REGISTRY[2]
    assert least_asked(REGISTRY, [*REGISTRY, REGISTRY[0]]) == REGISTRY[1]
