"""Words of the data are words, whatever they look like: none becomes a token of the template."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text in which nothing is read as one of the tokenizer's special tokens.

    A caption that holds "<|end|>" would end the user's message, and one that holds "<image>" would
    ask for a picture. Their characters stay, apart from each other.
    """
    special = [
        str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 1
    ]
    found = [token for token in special if token in text]
    for token in sorted(found, key=len, reverse=True):
        text = re.sub(re.escape(token), f"{token[0]} {token[1:]}", text)
    return text
