from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.dialogue.rewrite_prompt import NAMED, RewritePrompt, read_rewrite_prompt
from cirlab.errors import UserError

CAPTION = "a dog on a beach"
ROUNDS = ["what colour is it? brown", "is it {caption}? no"]


def test_the_full_prompt_shows_one_example_and_then_the_dialogue() -> None:
    prompt = read_rewrite_prompt("full")
    first, answer, last = prompt.messages(CAPTION, ROUNDS)
    assert prompt.example is not None
    assert answer == {"role": "assistant", "content": prompt.example.rewritten}
    assert first["role"] == last["role"] == "user"
    lines = last["content"].splitlines()
    # What looks like a place is what somebody said.
    assert lines[1:] == [f"Description: {CAPTION}", *ROUNDS]
    assert lines[0] == first["content"].splitlines()[0]
    assert len(first["content"].splitlines()) == 2 + len(prompt.example.rounds)


def test_the_bare_prompt_is_the_dialogue() -> None:
    (message,) = read_rewrite_prompt("bare").messages(CAPTION, ROUNDS)
    assert message == {"role": "user", "content": "\n".join([CAPTION, *ROUNDS])}


def test_own_prompts_are_yaml_files(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('user: "Sum up: {dialogue}"\nround: "- {round}"\n')
    prompt = read_rewrite_prompt(str(path))
    assert prompt == RewritePrompt("Sum up: {dialogue}", round="- {round}")
    assert prompt.messages("a cat", ["why? no"])[0]["content"] == "Sum up: a cat\n- why? no"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user: Sum up", r"the prompt's user is 'Sum up', without \{dialogue\}"),
        ('user: "{dialogue}"\nround: x', r"the prompt's round is 'x', without \{round\}"),
        ('user: "{dialogue}"\ncaption: x', r"the prompt's caption is 'x', without \{caption\}"),
        ("caption: x", "user"),
        ('user: "{dialogue}"\nexample: {caption: a, rounds: [b]}', "'rewritten' is missing"),
        ('user: "{dialogue}"\nsystem: x', "system"),
    ],
)
def test_other_prompts_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_rewrite_prompt(str(path))


def test_an_unknown_prompt_is_told_with_those_that_exist() -> None:
    with pytest.raises(UserError, match="there is no prompt 'short'; give one of full, bare"):
        read_rewrite_prompt("short")
    assert all(path.is_file() for path in NAMED.values())
