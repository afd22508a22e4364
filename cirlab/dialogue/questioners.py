"""Who asks: an instruction LLM after each answer, one that asks everything at once, or a list.

ChatIR (arXiv 2305.20062, section 4.1 and appendix B) has an LLM continue the dialogue, and compares
it with one that writes all its questions from the caption alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cirlab.chat.llm import ChatModel, Decoding, Message
from cirlab.dialogue.faults import cleaned, fault_of, is_same
from cirlab.dialogue.prompt import DialoguePrompt, ListPrompt
from cirlab.dialogue.talk import Answerer, Talk
from cirlab.errors import UserError
from cirlab.world.conversation import DESCRIBE

#: Of sampling, where an answer of the likeliest words could not be used.
RETRY_TEMPERATURE = 0.8


@dataclass(frozen=True)
class ListQuestioner:
    """Asks what is on a list, in its order, whatever the answers are.

    With the questions of `cirlab.world.oracle` it is the world's own questioner, which knows
    nothing of the scene.

    Attributes:
        pool: the list.
    """

    pool: tuple[str, ...]
    looks_at: int = 0

    def identity(self) -> dict[str, Any]:
        return {"kind": "list", "pool": list(self.pool)}

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        return [next(iter(open_questions(talk, self.pool)), "") for talk in talks]


@dataclass(frozen=True)
class LLMQuestioner:
    """An instruction LLM continues the dialogue.

    Attributes:
        llm: who asks.
        prompt: what it is told. One that speaks of candidates is shown what the retriever's best
            images are.
        describer: says what these images show.
        looks_at: how many of them.
        description: what the describer is told.
        decoding: how questions are drawn at first; after one that cannot be put they are sampled.
        seed: of this sampling.

    Raises:
        UserError: the prompt speaks of candidates, but nobody describes them; or the reverse.
    """

    llm: ChatModel
    prompt: DialoguePrompt
    describer: Answerer | None = None
    looks_at: int = 0
    description: str = DESCRIBE
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=48))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompt.looks != (self.looks_at > 0 and self.describer is not None):
            raise UserError(
                "a prompt with {candidates} needs a retriever and who describes its best images, "
                "and one without it needs neither; choose the prompt few_shot or candidates "
                "accordingly"
            )

    def identity(self) -> dict[str, Any]:
        own = {
            "kind": "llm",
            "llm": dict(self.llm.identity()),
            "prompt": asdict(self.prompt),
            "decoding": asdict(self.decoding),
            "seed": self.seed,
        }
        if self.describer is None:
            return own
        seen = {"looks_at": self.looks_at, "description": self.description}
        return own | seen | {"describer": dict(self.describer.identity())}

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        chats = [self._chat(*each) for each in zip(talks, self._descriptions(talks), strict=True)]
        again = any(talk.refused for talk in talks)
        replies = self.llm.replies(chats, *drawn(self.decoding, self.seed, talks, again=again))
        return [reply.text for reply in replies]

    def _chat(self, talk: Talk, descriptions: Sequence[str]) -> list[Message]:
        """What fits the LLM: the oldest rounds are left out first."""
        for first in range(len(talk.rounds) + 1):
            chat = self.prompt.messages(talk.caption, talk.rounds[first:], descriptions)
            if self.llm.has_room(self.llm.length(chat), self.decoding):
                return chat
        raise UserError(
            f"the dialogue about {talk.caption[:60]!r} makes {self.llm.length(chat)} tokens even "
            "without its rounds, more than the LLM can read; choose another LLM, a shorter prompt "
            "or fewer candidates"
        )

    def _descriptions(self, talks: Sequence[Talk]) -> list[list[str]]:
        if self.describer is None:
            return [[] for _ in talks]
        images = [image for talk in talks for image in talk.best]
        said = iter(self.describer.answer(images, [self.description] * len(images)))
        return [[next(said) for _ in talk.best] for talk in talks]


@dataclass(frozen=True)
class UnansweredQuestioner:
    """An instruction LLM writes all questions from the caption, before anything is answered.

    Its reply is read strictly: so many lines, each a question that can be put. Any other reply is
    of no use, and the LLM is asked again, sampling, when the dialogue's next question is due.

    Attributes:
        llm: who asks.
        prompt: what it is told.
        count: of questions.
        decoding: how they are drawn at first.
        seed: of the sampling.
    """

    llm: ChatModel
    prompt: ListPrompt
    count: int = 10
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=256))
    seed: int = 0
    looks_at: int = 0
    _written: dict[int, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "unanswered",
            "llm": dict(self.llm.identity()),
            "prompt": asdict(self.prompt),
            "count": self.count,
            "decoding": asdict(self.decoding),
            "seed": self.seed,
        }

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        lacking = [talk for talk in talks if not self._written.get(talk.number)]
        if lacking:
            chats = [self._chat(talk) for talk in lacking]
            again = any(talk.number in self._written for talk in lacking)
            how = drawn(self.decoding, self.seed, lacking, again=again)
            replies = self.llm.replies(chats, *how)
            for talk, reply in zip(lacking, replies, strict=True):
                self._written[talk.number] = read_list(reply.text, self.count)
        return [next(iter(open_questions(t, self._written[t.number])), "") for t in talks]

    def _chat(self, talk: Talk) -> list[Message]:
        chat = self.prompt.messages(talk.caption, self.count)
        length = self.llm.length(chat)
        if not self.llm.has_room(length, self.decoding):
            raise UserError(
                f"the caption {talk.caption[:60]!r} makes {length} tokens with its prompt, and "
                f"{self.decoding.max_new_tokens} are kept for {self.count} questions, more than "
                "the LLM can read; choose another LLM, or fewer rounds"
            )
        return chat


def read_list(text: str, count: int) -> tuple[str, ...]:
    """The questions of a list, one a line; none unless there are `count` that can be put."""
    questions: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        question = cleaned(line)
        if fault_of(question, questions) is not None:
            return ()
        questions.append(question)
    return tuple(questions) if len(questions) == count else ()


def open_questions(talk: Talk, pool: Sequence[str]) -> list[str]:
    """Those of a pool that were neither asked in a dialogue nor refused for its next round."""
    said = (*talk.asked, *(refused.question for refused in talk.refused))
    return [question for question in pool if not any(is_same(question, old) for old in said)]


def drawn(
    decoding: Decoding, seed: int, talks: Sequence[Talk], *, again: bool
) -> tuple[Decoding, int]:
    """How a batch of dialogues is asked about, and by which seed.

    Args:
        decoding: of the first time.
        seed: of all sampling.
        talks: of one batch.
        again: after a reply that was of no use, which the likeliest words would only repeat.
    """
    attempt = max(len(talk.refused) for talk in talks)
    place = (min(talk.number for talk in talks), len(talks[0].rounds), attempt)
    state = int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])
    if again:
        decoding = replace(decoding, temperature=decoding.temperature or RETRY_TEMPERATURE)
    return decoding, state


def named(identity: Mapping[str, Any]) -> str:
    """What somebody who asks or answers is called in a sentence."""
    name = identity.get("llm", identity).get("name")
    return f"{name} ({identity['kind']})" if name else str(identity["kind"])
