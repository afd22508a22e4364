"""Prompts that were chosen beforehand, by the words of the query, and the files that hold them.

Three layouts, all of texts and what images are looked at for when they are asked:

    {text: prompt, ..}                                 JSON; as published with COCO-Facet
    {"options": {"A": prompt, ..}, "choices": {text: "A", ..}, ..}
                                                       JSON; as `LLMChoice` writes it
    {"text", "prompt"}                                 JSON Lines

A prompt of null is nothing in particular. Published prompts are whole inputs of VLM2Vec, of which
the question is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cirlab.errors import UserError
from cirlab.prompts.choosers import PromptChooser
from cirlab.prompts.questions import check_question
from cirlab.reading.files import read_text
from cirlab.reading.jsonl import JsonLines, Row, shown
from cirlab.records import Query

#: VLM2Vec's inputs, in VLM2Vec/output/outputs_e of https://github.com/lst627/COCO-Facet.
_PUBLISHED = re.compile(
    r"<\|image_1\|>\s*Represent the given image"
    r"(?:\.|\s+with the following question:\s*(?P<question>.*\S))\s*",
    re.DOTALL,
)
#: Fields of the layout that names options by letters.
OPTIONS, CHOICES = "options", "choices"


class ChosenPrompts(PromptChooser):
    """The prompt that a file holds for a query's text; blanks around the text do not count.

    Args:
        path: a file (.json or .jsonl, see `cirlab.prompts.chosen`), or a folder whose .json files
            are all read, as outputs_e of COCO-Facet.

    Raises:
        UserError: there is no such file, it has another layout, or it holds no prompt at all, two
            of a text, or a template.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.prompts = read_choices(Path(path))

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        return [self._prompt(query) for query in queries]

    def _prompt(self, query: Query) -> str | None:
        text = query.text.strip()
        if text not in self.prompts:
            raise UserError(
                f"no prompt was chosen for query {query.id!r}, whose text is {shown(text)}, among "
                f"the {len(self.prompts)} of {self.path}; add it there, or choose another way to "
                "choose prompts"
            )
        return self.prompts[text]


class _Choice(NamedTuple):
    text: str
    prompt: str | None
    where: str


def read_choices(path: Path) -> dict[str, str | None]:
    """Prompts by text, of a file or of all .json files of a folder.

    Raises:
        UserError: there is no such file, it has another layout, or it holds no prompt at all, two
            of a text, or a template.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise UserError(
            f"there are no chosen prompts at {path}; give a .json or .jsonl file, or a folder of "
            ".json files"
        )
    found = _by_text(choice for file in files for choice in _read(file))
    if not found:
        raise UserError(
            f"{path} holds no chosen prompts; write texts and their prompts there, or choose "
            "another way to choose prompts"
        )
    return found


def read_document(path: Path) -> Row:
    """A JSON file that is one object.

    Raises:
        UserError: it is not.
    """
    try:
        fields: Any = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get or make it again") from error
    if not isinstance(fields, dict):
        found = type(fields).__name__
        raise UserError(f"{path} holds a {found}, but must hold an object of texts and prompts")
    return Row(fields, str(path))


def _by_text(choices: Iterable[_Choice]) -> dict[str, str | None]:
    found: dict[str, _Choice] = {}
    for choice in choices:
        known = found.setdefault(choice.text, choice)
        if known.prompt != choice.prompt:
            raise UserError(
                f"{choice.where}: the text {shown(choice.text)} has the prompt "
                f"{shown(choice.prompt)}, and in {known.where} it has {shown(known.prompt)}; keep "
                "one of them"
            )
    return {text: choice.prompt for text, choice in found.items()}


def _read(path: Path) -> Iterator[_Choice]:
    if path.suffix == ".jsonl":
        for line in JsonLines(path):
            if "prompt" not in line:
                raise line.error("the field 'prompt' is missing; add it, null for none")
            yield _Choice(line.text("text").strip(), _prompt(line, line["prompt"]), line.where)
        return
    row = read_document(path)
    if isinstance(row.get(CHOICES), dict):
        yield from _lettered(row)
        return
    for text in row:
        yield _Choice(text.strip(), _prompt(row, row[text]), row.where)


def _lettered(row: Row) -> Iterator[_Choice]:
    options, choices = row.object(OPTIONS), row.object(CHOICES)
    for text in choices:
        letter = choices.text(text)
        if letter not in options:
            raise choices.error(f"the choice {shown(letter)} is no option; correct it")
        yield _Choice(text.strip(), _prompt(options, options[letter]), choices.where)


def _prompt(row: Row, value: object) -> str | None:
    """The question of what a file holds as a prompt."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"a prompt is {shown(value)}, but must be words, or null; correct it")
    published = _PUBLISHED.fullmatch(value)
    question: str | None = value.strip() if published is None else published["question"]
    if question is not None:
        check_question(question, row.where)
    return question
