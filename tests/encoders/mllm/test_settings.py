"""Settings of a multimodal LLM that are refused before anything is read."""

from __future__ import annotations

import pytest

from cirlab.encoders.adapters import FourBit
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError


def test_four_bits_need_something_to_train() -> None:
    with pytest.raises(UserError, match=r"set llm\.lora, or llm\.frozen"):
        MLLMSettings("any", four_bit=FourBit())


@pytest.mark.parametrize("name", ["max_length", "group_size", "projection"])
def test_counts_are_one_or_more(name: str) -> None:
    with pytest.raises(UserError, match=rf"llm\.{name} is 0; set it to 1 or more"):
        MLLMSettings("any", **{name: 0})
