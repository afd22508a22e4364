"""Asks what tells the retriever's best images apart.

A question made from the dialogue alone may be one that all remaining images answer alike, the
weakness that ChatIR's questioners have. Here every candidate question is first answered on the
images that the retriever ranks first, and the one whose answers split them best is put. Nothing but
answers is needed, so that it works on any images, with whoever can answer.

A retriever goes on to rank images high that contradict what was answered. They count less: each is
asked the dialogue's own questions, too, and weighs as much as its answers are those that were
given. A question that asks the same in other words then splits nothing any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

from cirlab.dialogue.faults import cleaned, fault_of, is_same, words
from cirlab.dialogue.questioners import open_questions
from cirlab.dialogue.talk import Answerer, Questioner, Talk
from cirlab.errors import UserError


@dataclass(frozen=True)
class InformationGain:
    """Puts the question with the largest entropy of answers on the retriever's best images.

    Never one that was asked; of several, the first of the pool. Where no answer differs, it is the
    first that was not asked.

    Attributes:
        answerer: answers on these images. It need not be the one who sees the image that is meant.
        pool: candidate questions.
        looks_at: how many of the best images.
        proposer: adds a candidate of its own to each dialogue, which then comes first.
        doubt: what an image keeps of its weight, in (0, 1], whose answer to a question of the
            dialogue has no word in common with the one that was given; 1: all images weigh the
            same.

    Raises:
        UserError: a doubt outside (0, 1].
    """

    answerer: Answerer
    pool: tuple[str, ...]
    looks_at: int = 10
    proposer: Questioner | None = None
    doubt: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.doubt <= 1:
            raise UserError(f"the doubt is {self.doubt}; set it above 0 and to 1 or less")

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "information_gain",
            "answerer": dict(self.answerer.identity()),
            "pool": list(self.pool),
            "looks_at": self.looks_at,
            "proposer": None if self.proposer is None else dict(self.proposer.identity()),
            "doubt": self.doubt,
        }

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        candidates = self._candidates(talks)
        known = [talk.asked if self.doubt < 1 else () for talk in talks]
        pairs = [
            (image, question)
            for talk, before, options in zip(talks, known, candidates, strict=True)
            for question in (*before, *options)
            for image in talk.best
        ]
        images, questions = [image for image, _ in pairs], [question for _, question in pairs]
        said = iter(self.answerer.answer(images, questions) if pairs else [])

        def answers(talk: Talk) -> list[str]:
            return [next(said) for _ in talk.best]

        found = []
        for talk, before, options in zip(talks, known, candidates, strict=True):
            weights = self._weights(talk, [answers(talk) for _ in before])
            gains = [entropy(answers(talk), weights) for _ in options]
            found.append(options[gains.index(max(gains))] if options else "")
        return found

    def _weights(self, talk: Talk, answers: Sequence[Sequence[str]]) -> list[float]:
        """How well each of the best images agrees with what was answered."""
        told = [each.answer for each in talk.rounds]
        return [
            prod(
                self.doubt + (1 - self.doubt) * overlap(said[place], answer)
                for said, answer in zip(answers, told, strict=False)
            )
            for place in range(len(talk.best))
        ]

    def _candidates(self, talks: Sequence[Talk]) -> list[list[str]]:
        fixed = [open_questions(talk, self.pool) for talk in talks]
        if self.proposer is None:
            return fixed
        proposed = map(cleaned, self.proposer.ask(talks))
        return [_with(*each) for each in zip(proposed, talks, fixed, strict=True)]


def entropy(answers: Sequence[str], weights: Sequence[float] | None = None) -> float:
    """How well answers split those who give them, in bits; those without an answer are not split.

    Case and punctuation do not count.

    Args:
        answers: one each.
        weights: of those who answer, above 0; None: all alike.
    """
    shares: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        shares[" ".join(words(answer))] += weight
    total = sum(shares.values())
    shares.pop("", None)
    told = sum(shares.values())
    if not told:
        return 0.0
    inner = -sum(share / told * log2(share / told) for share in shares.values())
    return max(0.0, inner) * told / total


def overlap(answer: str, other: str) -> float:
    """Share of words that two answers have in common, in [0, 1]; 1 where neither has any."""
    first, second = set(words(answer)), set(words(other))
    return len(first & second) / len(first | second) if first or second else 1.0


def _with(question: str, talk: Talk, options: list[str]) -> list[str]:
    """The options after a proposed question, if it can be put and is none of them."""
    refused = (each.question for each in talk.refused)
    if fault_of(question, (*talk.asked, *refused)) is not None:
        return options
    return [question, *(option for option in options if not is_same(option, question))]
