from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.triplets.prompt import NAMED, PROMPT, Example, TripletPrompt, answer, read_prompt


def test_the_default_is_one_question_that_differs_in_the_caption_only() -> None:
    assert read_prompt("short") == TripletPrompt()
    (message,) = TripletPrompt().messages("a {red} bag")
    assert message == {"role": "user", "content": PROMPT.replace("{caption}", "a {red} bag")}


def test_examples_are_answered_before_the_caption() -> None:
    prompt = TripletPrompt("Change: {caption}", (Example("a dog", "add a cat", "a dog, a cat"),))
    assert prompt.messages("a bag") == [
        {"role": "user", "content": "Change: a dog"},
        {"role": "assistant", "content": answer("add a cat", "a dog, a cat")},
        {"role": "user", "content": "Change: a bag"},
    ]


def test_every_named_prompt_gives_examples_in_the_form_it_asks_for() -> None:
    for name in NAMED:
        prompt = read_prompt(name)
        for message in prompt.messages("a bag"):
            if message["role"] == "assistant":
                said = json.loads(message["content"])
                assert list(said) == ["instruction", "modified_caption"]
        assert all(key in prompt.user for key in ("instruction", "modified_caption", "JSON"))
    assert len(read_prompt("few_shot").examples) >= 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user: Change it.", r"'Change it\.' does not hold \{caption\}; write it where"),
        ("user: [1", "is not valid YAML"),
        ("- a", "holds list; give the keys user"),
        ("user: '{caption}'\nsystem: x", "holds user, system; give the keys user"),
        ("user: 3.5", "the field 'user' is 3.5, but must be a non-empty string"),
        ("user: '{caption}'\nexamples: [{caption: a, instruction: b}]", "'modified_caption' is mi"),
        ("user: '{caption}'\nexamples: {a: b}", "'examples' is .* a list of one or more objects"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_prompt(str(path))


def test_a_prompt_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no prompt 'long'; give short or few_shot, or the path"):
        read_prompt("long")
