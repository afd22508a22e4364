"""Whether an answer of an instruction LLM can be used, and if not, why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cirlab.chat.llm import Reply
from cirlab.triplets.prompt import CAPTION_MARK, TripletPrompt

_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
#: Fewer words than these may be found in a prompt by chance.
_ECHO_WORDS = 4


class Reason(StrEnum):
    """Why an answer is set aside."""

    NO_JSON = "no JSON object"
    CUT_OFF = "cut off at the longest answer"
    MISSING = "a field is missing"
    EMPTY = "a field is empty"
    LONG = "instruction too long"
    UNCHANGED = "caption unchanged"
    ECHO = "prompt or caption repeated"
    NO_ROOM = "caption too long for the model"


@dataclass(frozen=True)
class Change:
    """What a usable answer says."""

    instruction: str
    modified_caption: str


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers strictly: one JSON object with both fields, in a code fence or not.

    Attributes:
        prompt: what was asked.
        max_words: of an instruction.
    """

    prompt: TripletPrompt
    max_words: int

    def __call__(self, reply: Reply, caption: str) -> Change | Reason:
        """What a reply about a caption says, or why it is of no use."""
        fields = _object(reply.text)
        if fields is None:
            return Reason.NO_JSON if reply.finished else Reason.CUT_OFF
        said = [fields.get(name) for name in ("instruction", "modified_caption")]
        texts = [" ".join(text.split()) for text in said if isinstance(text, str)]
        if len(texts) < len(said):
            return Reason.MISSING
        if not all(texts):
            return Reason.EMPTY
        instruction, modified = texts
        if len(instruction.split()) > self.max_words:
            return Reason.LONG
        if _plain(modified) == _plain(caption):
            return Reason.UNCHANGED
        if self._is_echo(instruction, modified, caption):
            return Reason.ECHO
        return Change(instruction, modified)

    def _is_echo(self, instruction: str, modified: str, caption: str) -> bool:
        """Whether one text stands for both, or the words are not about this caption."""
        if _plain(instruction) in (_plain(caption), _plain(modified)):
            return True
        answered = {_plain(example.modified_caption) for example in self.prompt.examples}
        asked = _plain(self.prompt.user.replace(CAPTION_MARK, " "))
        return _plain(modified) in answered or any(
            len(words.split()) >= _ECHO_WORDS and words in asked
            for words in (_plain(instruction), _plain(modified))
        )


def _object(text: str) -> dict[str, Any] | None:
    found = _FENCE.fullmatch(text.strip())
    try:
        value = json.loads(found[1] if found else text)
        # An escape may name half a character, which no file can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(text: str) -> str:
    """Lower case, without punctuation and spare blanks: what is left are the words."""
    return " ".join(re.findall(r"\w+", text.lower()))
