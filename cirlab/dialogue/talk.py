"""A dialogue while it is played: what was said, and who asks and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from cirlab.dialogue.faults import Fault
from cirlab.records import Image


class Round(NamedTuple):
    """A question, and what was answered; empty where nothing was."""

    question: str
    answer: str

    @property
    def text(self) -> str:
        """As files of dialogues have it, "question? answer"."""
        return f"{self.question} {self.answer}".rstrip()


class Refused(NamedTuple):
    """A question that was not put, and why."""

    question: str
    fault: Fault


@dataclass(frozen=True)
class Talk:
    """Where one dialogue stands when its next question is due.

    Attributes:
        number: of the dialogue among all that are played.
        caption: what it began with.
        rounds: what was asked and answered so far.
        best: what the retriever ranks first now, best first; empty for those who do not look.
        refused: questions for this round that could not be put.
    """

    number: int
    caption: str
    rounds: tuple[Round, ...] = ()
    best: tuple[Image, ...] = ()
    refused: tuple[Refused, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The caption and a text for each round, as a retriever reads them."""
        return (self.caption, *(said.text for said in self.rounds))

    @property
    def asked(self) -> tuple[str, ...]:
        """The questions of all rounds."""
        return tuple(said.question for said in self.rounds)

    def told(self, question: str, answer: str) -> Talk:
        """One round later; what was seen and refused is forgotten."""
        return replace(self, rounds=(*self.rounds, Round(question, answer)), best=(), refused=())

    def refusing(self, question: str, fault: Fault) -> Talk:
        """With one more question that could not be put."""
        return replace(self, refused=(*self.refused, Refused(question, fault)))


class Questioner(Protocol):
    """Who asks, without seeing the image that is looked for."""

    @property
    def looks_at(self) -> int:
        """How many of the retriever's best images it looks at; 0: none."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Tells questioners apart that may ask differently, as JSON keeps it."""
        ...

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        """The next question of every dialogue; empty where there is none.

        Where a dialogue has refused questions, another one is wanted. What is asked depends on
        the dialogues and the order they come in, and on nothing else.
        """
        ...


class Answerer(Protocol):
    """Who sees an image and answers questions about it."""

    def identity(self) -> Mapping[str, Any]:
        """Tells answerers apart that may answer differently, as JSON keeps it."""
        ...

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        """An answer to each question about the image beside it; empty where there is none."""
        ...


class Retriever(Protocol):
    """What is searched while people talk."""

    def identity(self) -> Mapping[str, Any]:
        """Tells retrievers apart that may rank differently, as JSON keeps it."""
        ...

    def rank(self, histories: Sequence[Sequence[str]], k: int) -> list[list[str]]:
        """Ids of the k best images for each dialogue, best first.

        Args:
            histories: of each dialogue what it began with, and a text for each round.
            k: how many; fewer come where the gallery is smaller.
        """
        ...
