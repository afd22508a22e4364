from __future__ import annotations

import pytest

from cirlab.dialogue.faults import Fault, cleaned, fault_of, is_same


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("", Fault.EMPTY),
        (" ?!", Fault.EMPTY),
        ("the man wears a hat", Fault.NONE),
        ("is it red? is it blue?", Fault.SEVERAL),
        ("is it red? Answer: yes", Fault.ANSWERED),
        ("is it red? yes, it is", Fault.ANSWERED),
        ("Answer: yes, is it?", Fault.ANSWERED),
        ("Answer: a red car", Fault.ANSWERED),
        ("is it red? Answer: yes Question: is it big?", Fault.ANSWERED),
        ("what " + "very " * 30 + "thing is it?", Fault.LONG),
        ("What colour is the car?", None),
        ("is it red??", None),
    ],
)
def test_what_is_wrong_with_a_question(question: str, fault: Fault | None) -> None:
    assert fault_of(question, asked=()) == fault


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What color is the car?", "what colour are the cars?"),
        ("what colour is the car?", "What is the colour of that car?"),
        ("how is the weather?", "what is the weather?"),
        ("what is it?", "What is it ?"),
        ("Is there a person in the photo?", "is there someone in the picture?"),
    ],
)
def test_the_same_question_in_other_words(one: str, other: str) -> None:
    assert is_same(one, other) and is_same(other, one)
    assert fault_of(one, asked=("who is there?", other)) == Fault.REPEATED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is left of the dog?", "what is right of the dog?"),
        ("is it day?", "is it night?"),
        ("how many dogs are there?", "how many cats are there?"),
        ("what colour is the car?", "what colour is the bus?"),
        ("what is at the top?", "what is at the top left?"),
        ("where is it?", "what is it?"),
        ("who are you?", "what do you see?"),
    ],
)
def test_other_questions(one: str, other: str) -> None:
    assert not is_same(one, other)
    assert fault_of(one, asked=(other,)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Question: is it red?",
        "  1. is it   red?\n",
        "Question 3: is it red?",
        '"is it red?"',
        "- Q: is it red?",
        "New question: \u201cis it red?\u201d",
        "is it red?",
    ],
)
def test_labels_and_marks_are_no_part_of_a_question(text: str) -> None:
    assert cleaned(text) == "is it red?"
