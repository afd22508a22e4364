"""Who answers in the tests: a real model that talks nonsense, and a script that knows its lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cirlab.chat.llm import Decoding, Message, Reply
from cirlab.encoders.mllm.scratch import CHAT_TEMPLATE, subword_tokenizer
from cirlab.triplets.prompt import PROMPT, answer

COLOURS = ("red", "green", "blue", "black")


def caption_of(number: int) -> str:
    return f"a {COLOURS[number % 4]} bag no {number}" + " with a strap" * (number % 5)


def write_tiny_chat_model(
    folder: Path, template: str | None = CHAT_TEMPLATE, *, seed: int = 0, positions: int = 128
) -> Path:
    """A transformers folder: a causal language model of two layers and 64 dimensions."""
    texts = [PROMPT, answer("make it red", "a red bag with a strap"), *map(caption_of, range(8))]
    tokenizer = subword_tokenizer(texts, size=320, max_length=positions)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class Script:
    """Answers by a rule instead of weights; a caption's last mention in a chat is its subject.

    Args:
        say: the answer to a caption, given how often it was asked about before.
        pause: seconds that a batch takes.
    """

    def __init__(self, say: Callable[[str, int], str], pause: float = 0.0) -> None:
        self.say, self.pause = say, pause
        self.asked: list[list[str]] = []
        self.decodings: list[Decoding] = []
        self.seeds: list[int] = []

    def identity(self) -> Mapping[str, Any]:
        return {"name": "script"}

    def length(self, chat: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in chat)

    def has_room(self, length: int, decoding: Decoding) -> bool:
        return length < 60

    def replies(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
    ) -> list[Reply]:
        time.sleep(self.pause)
        captions = [chat[-1]["content"].rpartition("Caption: ")[2] for chat in chats]
        before = [sum(caption in batch for batch in self.asked) for caption in captions]
        self.asked.append(captions)
        self.decodings.append(decoding)
        self.seeds.append(seed)
        return [Reply(self.say(c, n)) for c, n in zip(captions, before, strict=True)]


def good_answer(caption: str, asked_before: int = 0) -> str:
    return answer("make it white", f"a white bag, once {caption}")


def mostly_good_answer(caption: str, asked_before: int = 0) -> str:
    """Of captions that end in a strap none; and of no 4, 8 .. only the second answer is good."""
    number = int(caption.split()[4])
    if caption.endswith("strap with a strap") or (number % 4 == 0 and not asked_before):
        return f"I would rather not speak of {caption}"
    return good_answer(caption)
