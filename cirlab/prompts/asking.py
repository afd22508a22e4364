"""How an instruction LLM is asked which prompt fits a query, and what its answer means.

Promptable embeddings (arXiv 2505.15877) offers lettered prompts to GPT-4o and takes one letter. Its
letters come from a set, whose order differs between processes; here they follow the registry.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError

from cirlab.chat.llm import ChatModel, Decoding, Message
from cirlab.errors import UserError
from cirlab.reading.jsonl import shown

#: An answer that is a letter, or begins with one as lists do: "B", "(b).", "B. How many ..".
_LETTER = re.compile(r"\W*([A-Za-z])(?:\W*$|[.):])")


@dataclass(frozen=True)
class Wording:
    """What is said to the LLM; by default the paper's words (gpt_choose_prompt.py of COCO-Facet).

    Attributes:
        system: the system message; null: none, for chat templates without a place for one.
        user: the user's message; {options} stands for the lettered prompts, {text} for the query.
        option: one prompt; {question} stands for it.
        plain: the prompt that looks for nothing in particular.

    Raises:
        UserError: a place is missing.
    """

    system: str | None = (
        "You are a helpful and precise assistant for choosing the best prompt. Please answer in "
        "one letter."
    )
    user: str = (
        '{options}\nGiven the instruction "{text}", choose the most relevant prompt for verifying '
        "the results. Please answer in one letter."
    )
    option: str = "Represent the given image with the following question: {question}"
    plain: str = "Represent the given image."

    def __post_init__(self) -> None:
        for name, mark in (("user", "{options}"), ("user", "{text}"), ("option", "{question}")):
            said: str = getattr(self, name)
            if mark not in said:
                raise UserError(
                    f"wording.{name} is {said!r}, without {mark}; write it where that is to stand"
                )

    def chat(self, text: str, options: Mapping[str, str | None]) -> list[Message]:
        """A chat that asks for a letter.

        Args:
            text: the query's.
            options: prompts by letter.
        """
        lines = [f"{letter}. {self._option(prompt)}" for letter, prompt in options.items()]
        parts = {"options": "\n".join(lines), "text": text}
        # In one pass: words of a query that look like a place are words.
        user = re.sub(r"\{(options|text)\}", lambda found: parts[found[1]], self.user)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": user}]

    def _option(self, prompt: str | None) -> str:
        return self.plain if prompt is None else self.option.replace("{question}", prompt)


def lettered(options: Sequence[str | None]) -> dict[str, str | None]:
    """Options by letters from A on, in their order.

    Raises:
        UserError: there are none, or more than letters.
    """
    if not 1 <= len(options) <= len(string.ascii_uppercase):
        raise UserError(
            f"there are {len(options)} prompts to choose from; give 1 to "
            f"{len(string.ascii_uppercase)}, one for each letter"
        )
    return dict(zip(string.ascii_uppercase, options, strict=False))


def letter_of(answer: str, options: Mapping[str, str | None]) -> str | None:
    """The letter that an answer gives; None where it gives none of the options."""
    found = _LETTER.match(answer.strip())
    letter = found[1].upper() if found else None
    return letter if letter in options else None


def ask(
    llm: ChatModel,
    texts: Sequence[str],
    options: Mapping[str, str | None],
    wording: Wording,
    decoding: Decoding,
    batch_size: int,
) -> Iterator[dict[str, str]]:
    """What the LLM says to each text, batch by batch.

    Args:
        llm: who answers.
        texts: each once.
        options: prompts by letter.
        wording: what is said to it.
        decoding: how answers are drawn.
        batch_size: texts in a batch.

    Raises:
        UserError: before anything is asked, if the LLM's chat template has no place for the
            system message, or a chat is too long for the LLM.
    """
    chats = {text: wording.chat(text, options) for text in texts}
    _check_system(llm, wording, options)
    for text, chat in chats.items():
        length = llm.length(chat)
        if not llm.has_room(length, decoding):
            raise UserError(
                f"the text {shown(text)} with {len(options)} prompts to choose from makes "
                f"{length} tokens, more than the LLM can read; choose another LLM, or a registry "
                "of fewer prompts"
            )
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        replies = llm.replies([chats[text] for text in batch], decoding, seed=0)
        yield {text: reply.text for text, reply in zip(batch, replies, strict=True)}


def _check_system(llm: ChatModel, wording: Wording, options: Mapping[str, str | None]) -> None:
    """Refuse a chat template that drops the system message, or fails at it."""
    if wording.system is None:
        return
    longer = replace(wording, system=f"{wording.system} {wording.system}")
    try:
        is_shown = llm.length(longer.chat("", options)) > llm.length(wording.chat("", options))
    except TemplateError:
        is_shown = False
    if not is_shown:
        raise UserError(
            "the chat template of the LLM has no place for a system message; set wording.system "
            "to null, and write its words into wording.user"
        )
