from __future__ import annotations

import pytest

from cirlab.chat.llm import Decoding
from cirlab.errors import UserError
from cirlab.prompts import Wording, read_registry
from cirlab.prompts.asking import ask, letter_of, lettered
from tests.prompts.readers import Reader

OPTIONS: dict[str, str | None] = {"A": None, "B": "how many?", "C": "what {text}?"}
SHORT = Decoding(max_new_tokens=8)


def test_the_papers_words() -> None:
    options = lettered(read_registry("gpt").options)
    system, user = Wording().chat("Find me any bird.", options)
    assert system["role"] == "system"
    assert system["content"].endswith("choosing the best prompt. Please answer in one letter.")
    assert user["role"] == "user"
    lines = user["content"].splitlines()
    assert lines[0] == "A. Represent the given image."
    assert lines[9].startswith("J. Represent the given image with the following question: What is")
    assert lines[10] == (
        'Given the instruction "Find me any bird.", choose the most relevant prompt for verifying '
        "the results. Please answer in one letter."
    )


def test_options_keep_their_order_whatever_they_are() -> None:
    assert lettered(["z", None, "a"]) == {"A": "z", "B": None, "C": "a"}
    assert list(lettered([str(i) for i in range(26)]))[-1] == "Z"


@pytest.mark.parametrize("count", [0, 27])
def test_more_options_than_letters_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"there are {count} prompts to choose from; give 1 to 26"):
        lettered([str(i) for i in range(count)])


def test_words_that_look_like_places_are_words() -> None:
    (message,) = Wording(system=None).chat("{options}", OPTIONS)
    assert message["content"].count("A. Represent") == 1
    assert 'instruction "{options}"' in message["content"]
    assert (
        "C. Represent the given image with the following question: what {text}?"
        in (message["content"])
    )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("(C)", "C"),
        ("**B**", "B"),
        ("B. Represent the given image", "B"),
        ("C: what", "C"),
        ("D", None),
        ("A photograph", None),
        ("Because", None),
        ("", None),
        ("2", None),
    ],
)
def test_an_answer_is_a_letter_of_an_option(answer: str, letter: str | None) -> None:
    assert letter_of(answer, OPTIONS) == letter


def test_texts_are_asked_about_in_batches_in_their_order() -> None:
    llm = Reader({"one": "A", "two": "B.", "three": "?"})
    batches = list(ask(llm, ["one", "two", "a three"], OPTIONS, Wording(), SHORT, batch_size=2))
    assert batches == [{"one": "A", "two": "B."}, {"a three": "?"}]
    assert llm.asked == [["one", "two"], ["a three"]]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"user": "choose: {options}"}, r"wording.user is .* without \{text\}"),
        ({"user": "choose for {text}"}, r"wording.user is .* without \{options\}"),
        ({"option": "look"}, r"wording.option is 'look', without \{question\}"),
    ],
)
def test_wording_without_a_place_is_refused(arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Wording(**arguments)


def test_a_text_that_is_too_long_is_refused_before_any_is_asked_about() -> None:
    llm = Reader({"one": "A"}, room=100)
    with pytest.raises(
        UserError, match=r"the text \"many many .* with 3 prompts .* makes 3\d\d tok"
    ):
        list(ask(llm, ["one", "many " * 300], OPTIONS, Wording(), SHORT, batch_size=1))
    assert not llm.asked


def test_a_template_without_a_system_message_is_refused_before_anything_is_asked() -> None:
    llm = Reader({"one": "A"}, has_system=False)
    with pytest.raises(
        UserError, match=r"no place for a system message; set wording\.system to null"
    ):
        list(ask(llm, ["one"], OPTIONS, Wording(), SHORT, batch_size=1))
    silent = Wording(system=None)
    assert list(ask(llm, ["one"], OPTIONS, silent, SHORT, batch_size=1)) == [{"one": "A"}]
