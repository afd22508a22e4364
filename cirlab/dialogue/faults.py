"""Whether a question can be put: it is one, it is short, it was not asked before.

ChatIR (arXiv 2305.20062) counts how often questioners repeat themselves: people and ChatGPT hardly
ever, smaller models in 1.9 to 3.4 of ten rounds. FLAN's dialogues of its release also hold answers
that were taken for questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

#: Longest question, in words; the longest of people's in ChatIR's dialogues has 20.
MAX_WORDS = 25
#: Share of words that two questions have in common from which on they are the same.
SAME_FROM = 0.8

#: What a model may write before its question: "Question:", "Q3:", "3.", "-".
_LABEL = re.compile(
    r"^(?:(?:next |new )?question\s*\d*\s*:|q\s*\d*\s*:|\d+\s*[.):]|[-*•])\s*", re.I
)
#: Straight and typographic.
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"
#: Labels of somebody who goes on with the dialogue alone.
_ANSWER = re.compile(r"\b(?:answer|a)\s*\d*\s*:", re.I)
#: Words that questions about different things share.
_EMPTY_WORDS = frozenset(
    "a an and any are at be can did do does has have how in is it its like of on or see shown that "
    "the their them there these they this those to was were what which with you your".split()
)
#: Words for one thing.
_SAME_WORDS = {
    "color": "colour",
    "gray": "grey",
    "image": "picture",
    "photo": "picture",
    "photograph": "picture",
    "someone": "person",
    "somebody": "person",
    "people": "person",
}


class Fault(StrEnum):
    """Why a question is not put."""

    EMPTY = "empty"
    NONE = "no question"
    SEVERAL = "several questions"
    ANSWERED = "holds an answer"
    LONG = "too long"
    REPEATED = "repeated"


def cleaned(text: str) -> str:
    """A question without labels, quotation marks and spare blanks around it."""
    plain = " ".join(text.split())
    while (shorter := _LABEL.sub("", plain.strip(_QUOTES + " "))) != plain:
        plain = shorter
    return plain


def fault_of(question: str, asked: Iterable[str], max_words: int = MAX_WORDS) -> Fault | None:
    """Why a question cannot be put now; None if it can.

    Args:
        question: as `cleaned` leaves it.
        asked: what was asked before in this dialogue.
        max_words: longest question.
    """
    if not words(question):
        return Fault.EMPTY
    if "?" not in question:
        return Fault.ANSWERED if _ANSWER.search(question) else Fault.NONE
    first, _, rest = question.partition("?")
    if words(rest) or _ANSWER.search(first):
        return Fault.SEVERAL if "?" in rest and not _ANSWER.search(question) else Fault.ANSWERED
    if len(question.split()) > max_words:
        return Fault.LONG
    return Fault.REPEATED if any(is_same(question, other) for other in asked) else None


def is_same(question: str, other: str) -> bool:
    """Whether two questions ask the same, as far as their words tell.

    Words that carry no meaning of their own, their order, the plural and some spellings do not
    count: "What color is the car?" is "what colour are the cars?", but "what is left of it?" is
    not "what is right of it?".
    """
    if words(question) == words(other):
        return True
    first, second = _content(question), _content(other)
    if not first or not second:
        return False
    return len(first & second) >= SAME_FROM * len(first | second)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def _content(question: str) -> frozenset[str]:
    kept = (word for word in words(question) if word not in _EMPTY_WORDS)
    return frozenset(_SAME_WORDS.get(word, _singular(word)) for word in kept)


def _singular(word: str) -> str:
    """Without a plural's s, which need not be right as long as it is always the same."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
