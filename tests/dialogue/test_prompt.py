from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.dialogue.prompt import (
    DialoguePrompt,
    ListPrompt,
    read_dialogue_prompt,
    read_list_prompt,
)
from cirlab.dialogue.talk import Round
from cirlab.errors import UserError

ROUNDS = (Round("is it red?", "no, {caption}"),)


def test_the_few_shot_prompt_shows_an_example_and_then_the_dialogue() -> None:
    prompt = read_dialogue_prompt("few_shot")
    first, answered, last = prompt.messages("a dog", ROUNDS)
    assert [message["role"] for message in (first, answered, last)] == ["user", "assistant", "user"]
    assert answered["content"].endswith("?") and "a dog" not in first["content"]
    task = (
        "Ask a new question in the following dialog, assume that the questions are designed to "
        "help us retrieve this image from a large collection of images:\n"
    )
    # What people say is never taken for a place of the prompt.
    said = "Caption: a dog\nQuestion: is it red?\nAnswer: no, {caption}"
    assert last["content"] == task + said
    assert first["content"].startswith(f"{task}Caption: ")


def test_candidates_stand_a_line_each() -> None:
    (message,) = read_dialogue_prompt("candidates").messages("a dog", (), ["a dog runs", "a cat"])
    assert (
        "\nThese images of the collection fit the dialog best:\n- a dog runs\n- a cat\n"
        in (message["content"])
    )


def test_the_unanswered_prompt_asks_for_so_many_questions() -> None:
    (message,) = read_list_prompt("unanswered").messages("a dog", 10)
    assert message["content"].startswith(
        "Write 10 short questions about the image described by the following caption.\n"
    )
    assert message["content"].endswith("Caption: a dog")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user: ask", "prompt's user is 'ask', without {dialogue}"),
        ("user: '{dialogue}'\ncaption: so", "prompt's caption is 'so', without {caption}"),
        ("user: '{dialogue}'\nmore: 1", "holds user, more; give the keys user and, if you like"),
        ("user: [", "is not valid YAML"),
        ("user: '{dialogue}'\nexample: {caption: a, question: b}", "'rounds' is null, but must be"),
        (
            "user: '{dialogue} {candidates}'\nexample: {caption: a, rounds: [], question: b}",
            "both {candidates} and an example",
        ),
    ],
)
def test_a_file_that_holds_no_prompt_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_dialogue_prompt(str(path))
    assert problem in str(caught.value)


def test_unknown_names_and_missing_places_are_refused() -> None:
    with pytest.raises(UserError, match="there is no prompt 'none'; give one of few_shot"):
        read_dialogue_prompt("none")
    with pytest.raises(UserError, match=r"without \{count\}"):
        ListPrompt("about {caption}")
    with pytest.raises(UserError, match=r"prompt's round is 'so', without \{question\}"):
        DialoguePrompt("{dialogue}", round="so")
