"""An LLM that answers by the last word of the text it is asked about, and remembers being asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cirlab.chat.llm import Decoding, Message, Reply


class Reader:
    """Answers in batches, by a table.

    Args:
        answers: by the text's last word.
        room: tokens that it reads.
        has_system: whether it reads system messages.
    """

    def __init__(
        self, answers: Mapping[str, str], room: int = 1000, has_system: bool = True
    ) -> None:
        self.answers, self.room, self.has_system = answers, room, has_system
        self.asked: list[list[str]] = []

    def identity(self) -> Mapping[str, Any]:
        return {"name": "reader", "weights": "w"}

    def length(self, chat: Sequence[Message]) -> int:
        read = [m for m in chat if self.has_system or m["role"] != "system"]
        return sum(len(message["content"].split()) for message in read)

    def has_room(self, length: int, decoding: Decoding) -> bool:
        return length + decoding.max_new_tokens <= self.room

    def replies(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
    ) -> list[Reply]:
        texts = [chat[-1]["content"].partition('instruction "')[2] for chat in chats]
        self.asked.append([text.partition('"')[0] for text in texts])
        return [Reply(self.answers[text.split()[-1]]) for text in self.asked[-1]]
