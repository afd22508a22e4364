from __future__ import annotations

import json

import pytest

from cirlab.chat.llm import Reply
from cirlab.triplets.answers import AnswerReader, Change, Reason
from cirlab.triplets.prompt import Example, TripletPrompt, answer

CAPTION = "a red bag with a strap"
READ = AnswerReader(
    TripletPrompt(
        "Invent a change to this image. Caption: {caption}",
        (Example("a dog on grass", "put it on sand", "a dog on sand"),),
    ),
    max_words=6,
)


def test_an_answer_as_asked_for_is_read_whatever_stands_around_its_words() -> None:
    change = Change("make it blue", "a blue bag with a strap")
    said = answer(" make it\nblue ", "a blue bag with a strap ")
    fenced = f"```json\n{said}\n```"
    more = json.dumps({**json.loads(said), "why": "blue is nice"})
    for text in (said, f"\n{said}\n", fenced, fenced.replace("json", ""), more):
        assert READ(Reply(text), CAPTION) == change


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.NO_JSON),
        ("make it blue", Reason.NO_JSON),
        (f"Sure! {answer('make it blue', 'a blue bag')}", Reason.NO_JSON),
        (f"[{answer('make it blue', 'a blue bag')}]", Reason.NO_JSON),
        (answer("make it blue", "a blue bag") * 2, Reason.NO_JSON),
        ('{"instruction": "a \\ud800", "modified_caption": "b"}', Reason.NO_JSON),
        ("[" * 100_000, Reason.NO_JSON),
        ('{"instruction": "make it blue"}', Reason.MISSING),
        ('{"instruction": "make it blue", "modified_caption": null}', Reason.MISSING),
        ('{"instruction": ["make it blue"], "modified_caption": "a blue bag"}', Reason.MISSING),
        (answer("make it blue", " "), Reason.EMPTY),
        (answer("", "a blue bag"), Reason.EMPTY),
        (answer("make it blue and also very very large", "a large blue bag"), Reason.LONG),
        (answer("make it blue", "A red bag, with a strap."), Reason.UNCHANGED),
        (answer("A red bag with a strap.", "a blue bag"), Reason.ECHO),
        (answer("a blue bag", "a blue bag"), Reason.ECHO),
        (answer("Invent a change to this image", "a blue bag"), Reason.ECHO),
        (answer("put it on sand", "a dog on sand"), Reason.ECHO),
    ],
)
def test_what_is_of_no_use_is_told_by_reason(text: str, reason: Reason) -> None:
    assert READ(Reply(text), CAPTION) is reason


def test_an_instruction_that_an_example_has_too_is_none_of_its_echo() -> None:
    assert isinstance(READ(Reply(answer("put it on sand", "a bag on sand")), CAPTION), Change)


def test_half_an_object_at_the_longest_answer_is_cut_off() -> None:
    half = '{"instruction": "make it'
    assert READ(Reply(half, finished=False), CAPTION) is Reason.CUT_OFF
    assert READ(Reply(half), CAPTION) is Reason.NO_JSON
