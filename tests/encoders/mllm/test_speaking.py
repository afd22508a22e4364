"""Replies of a multimodal LLM: in the order of the prompts, the same alone and in a batch."""

from __future__ import annotations

import random

import PIL.Image
import pytest

from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.mllm.speaking import replies
from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_mllm(tmp_path_factory.mktemp("mllm")))


def test_replies_are_those_of_each_prompt_alone(folder: str) -> None:
    model, own = load_mllm(MLLMSettings(folder, padding_side="left"))
    processor = MLLMProcessor(own, 200, group_size=2)
    prompts = [Prompt("<image>{text}", "a red circle " * n, picture(n)) for n in (3, 1, 2)]
    prompts += [Prompt("{text}", "a green square " * n) for n in (2, 1)]
    random.Random(0).shuffle(prompts)
    together = replies(model, processor, prompts, max_new_tokens=6)
    alone = [replies(model, processor, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


def test_prompts_that_are_filled_up_after_them_are_refused(folder: str) -> None:
    model, own = load_mllm(MLLMSettings(folder, padding_side="right"))
    with pytest.raises(ValueError, match="padding_side to left"):
        replies(model, MLLMProcessor(own, 200), [Prompt("{text}", "a")])


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (32, 32), (80 * seed, 40, 250 - 60 * seed))
