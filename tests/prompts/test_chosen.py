from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.prompts import ChosenPrompts
from cirlab.records import Query

#: In the form of COCO-Facet's outputs_e: VLM2Vec's whole inputs, some texts ending in a newline.
QUESTION = "<|image_1|>\nRepresent the given image with the following question: {}\n"
PLAIN = "<|image_1|>\nRepresent the given image.\n"


def ask(*texts: str) -> list[Query]:
    return [Query(f"q{i}", text, ("a",)) for i, text in enumerate(texts)]


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_published_choices_give_the_questions_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "gesture_prompt.json",
        {"find someone lying.\n": QUESTION.format("How many?"), "find anything.": PLAIN},
    )
    chooser = ChosenPrompts(path)
    assert chooser(ask("find anything.", "find someone lying.")) == [None, "How many?"]


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "one.json", {"a": QUESTION.format("A?"), "both": "C?"})
    write(tmp_path / "two.json", {"b": "B?", "both": QUESTION.format("C?")})
    chooser = ChosenPrompts(str(tmp_path))
    assert chooser(ask("b", "a", "both")) == ["B?", "A?", "C?"]


def test_letters_stand_for_options(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.json",
        {"options": {"A": None, "B": "what B?"}, "choices": {"x": "B", "y ": "A"}},
    )
    assert ChosenPrompts(path)(ask("x", "y")) == ["what B?", None]


def test_lines_of_texts_and_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "x", "prompt": "what X?"}\n{"text": "y", "prompt": null}\n')
    assert ChosenPrompts(str(path))(ask("y", "x")) == [None, "what X?"]


def test_a_text_may_be_called_as_a_field_is(tmp_path: Path) -> None:
    path = write(tmp_path / "own.json", {"choices": "what C?", "options": "what O?"})
    assert ChosenPrompts(path)(ask("options", "choices")) == ["what O?", "what C?"]


def test_a_query_without_a_choice_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "own.json", {"x": "what X?"})
    with pytest.raises(
        UserError, match=r"no prompt was chosen for query 'q1', whose text is \"y\""
    ):
        ChosenPrompts(path)(ask("x", "y"))


def test_two_prompts_of_one_text_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one.json", {"x": "A?"})
    write(tmp_path / "two.json", {"x\n": "B?"})
    with pytest.raises(
        UserError, match=r'two.json: the text "x" has the prompt "B\?", and in .*one'
    ):
        ChosenPrompts(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("own.json", "{", "own.json is not valid JSON"),
        ("own.json", "[1]", "own.json holds a list, but must hold an object"),
        ("own.json", "{}", "own.json holds no chosen prompts; write"),
        ("own.json", '{"options": {"A": "b"}, "choices": {}}', "own.json holds no chosen prompts"),
        ("own.jsonl", "", "own.jsonl"),
        ("own.json", '{"x": "what {text}?"}', "own.json: the prompt .* holds {text}"),
        ("own.json", '{"x": 3}', "a prompt is 3, but must be words, or null"),
        ("own.json", '{"x": " "}', 'a prompt is " ", but must be words, or null'),
        ("own.json", '{"choices": {"x": "A"}}', "the field 'options' is missing"),
        ("own.json", '{"options": {"A": "b"}, "choices": {"x": "C"}}', 'the choice "C" is no opt'),
        ("own.jsonl", '{"text": "x"}', "own.jsonl, line 1: the field 'prompt' is missing"),
        ("own.jsonl", '{"prompt": "x"}', "own.jsonl, line 1: the field 'text' is missing"),
    ],
)
def test_a_file_that_holds_no_choices_is_refused(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        ChosenPrompts(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="there are no chosen prompts at"):
            ChosenPrompts(str(path))
