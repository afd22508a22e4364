"""What an instruction LLM is told when it is to ask about an image that it does not see."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirlab.chat.llm import Message
from cirlab.dialogue.talk import Round
from cirlab.errors import UserError
from cirlab.reading.jsonl import Row
from cirlab.reading.yaml_files import read_mapping

#: Prompts by name.
NAMED: dict[str, Path] = {
    name: Path(__file__).parent / f"{name}.yaml"
    for name in ("few_shot", "candidates", "unanswered")
}


@dataclass(frozen=True)
class Example:
    """A dialogue, and the question that came next."""

    caption: str
    rounds: tuple[Round, ...]
    question: str


@dataclass(frozen=True)
class DialoguePrompt:
    """Asks for the next question of a dialogue.

    There is no system message: not every chat template has a place for one.

    Attributes:
        user: the message; {dialogue} stands for what was said, {candidates} for what the
            retriever's best images show.
        caption: how the dialogue begins; {caption} stands for what was said first.
        round: how it goes on, with {question} and {answer}.
        candidate: one of the candidates, with {description}.
        example: answered in the same chat before.

    Raises:
        UserError: a place is missing.
    """

    user: str
    caption: str = "Caption: {caption}"
    round: str = "Question: {question}\nAnswer: {answer}"
    candidate: str = "- {description}"
    example: Example | None = None

    def __post_init__(self) -> None:
        marks = (("user", "dialogue"), ("caption", "caption"), ("round", "question"))
        for name, mark in (*marks, ("round", "answer"), ("candidate", "description")):
            check_mark(name, getattr(self, name), mark)
        if self.looks and self.example is not None:
            raise UserError(
                "the prompt has both {candidates} and an example, which has none; set example to "
                "null"
            )

    @property
    def looks(self) -> bool:
        """Whether it speaks of the retriever's best images."""
        return "{candidates}" in self.user

    def messages(
        self, caption: str, rounds: Sequence[Round], descriptions: Sequence[str] = ()
    ) -> list[Message]:
        """A chat that ends with the message about this dialogue.

        Args:
            caption: what it began with.
            rounds: what was asked and answered.
            descriptions: what the retriever's best images show.
        """
        chat: list[Message] = []
        if self.example is not None:
            chat.append(self._message(self.example.caption, self.example.rounds, ()))
            chat.append({"role": "assistant", "content": self.example.question})
        return [*chat, self._message(caption, rounds, descriptions)]

    def _message(
        self, caption: str, rounds: Sequence[Round], descriptions: Sequence[str]
    ) -> Message:
        said = [filled(self.caption, {"caption": caption})]
        said += [filled(self.round, each._asdict()) for each in rounds]
        seen = [filled(self.candidate, {"description": text}) for text in descriptions]
        parts = {"dialogue": "\n".join(said), "candidates": "\n".join(seen)}
        return {"role": "user", "content": filled(self.user, parts)}


@dataclass(frozen=True)
class ListPrompt:
    """Asks for all questions at once.

    Attributes:
        user: the message; {caption} stands for the caption, {count} for the number of questions.

    Raises:
        UserError: a place is missing.
    """

    user: str

    def __post_init__(self) -> None:
        for mark in ("caption", "count"):
            check_mark("user", self.user, mark)

    def messages(self, caption: str, count: int) -> list[Message]:
        """A chat that asks for `count` questions about the image of a caption."""
        text = filled(self.user, {"caption": caption, "count": str(count)})
        return [{"role": "user", "content": text}]


def read_dialogue_prompt(name: str) -> DialoguePrompt:
    """A prompt by name (few_shot, candidates), or from a YAML file of their form.

    Raises:
        UserError: there is no such file, or it holds no such prompt.
    """
    optional = ("caption", "round", "candidate", "example")
    row = read_mapping(_path(name), "prompt", required=["user"], optional=optional)
    texts = {key: row.text(key) for key in ("user", *optional[:-1]) if key in row}
    example = _example(row.object("example")) if row.get("example") is not None else None
    return DialoguePrompt(**texts, example=example)


def read_list_prompt(name: str) -> ListPrompt:
    """A prompt by name (unanswered), or from a YAML file of its form.

    Raises:
        UserError: there is no such file, or it holds no such prompt.
    """
    return ListPrompt(read_mapping(_path(name), "prompt", required=["user"]).text("user"))


def _path(name: str) -> Path:
    path = NAMED.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there is no prompt {name!r}; give one of {', '.join(NAMED)}, or the path of a YAML "
            "file"
        )
    return path


def _example(row: Row) -> Example:
    rounds = row.get("rounds")
    if not isinstance(rounds, list) or not all(map(_is_round, rounds)):
        raise row.wrong("rounds", "a list of pairs, a question and an answer each")
    said = tuple(Round(question, answer) for question, answer in rounds)
    return Example(row.text("caption"), said, row.text("question"))


def _is_round(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def check_mark(name: str, text: str, mark: str) -> None:
    """Refuse a part of a prompt that lacks the place for something.

    Raises:
        UserError: {mark} is not in it.
    """
    if f"{{{mark}}}" not in text:
        raise UserError(
            f"the prompt's {name} is {text[:60]!r}, without {{{mark}}}; write it where that is to "
            "stand"
        )


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A text with every {part} replaced by what it stands for."""
    # In one pass: words of a dialogue that look like a place are words.
    return re.sub(rf"\{{({'|'.join(parts)})\}}", lambda found: parts[found[1]], text)
