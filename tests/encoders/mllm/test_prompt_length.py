"""Prompts are measured against the model's limit before any of them is needed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoProcessor

from cirlab.encoders.mllm.processor import LongText, MLLMProcessor, Prompt
from cirlab.encoders.mllm.prompt_length import check_prompts, check_questions
from cirlab.errors import UserError
from tests.tiny_mllm import write_tiny_mllm

SHORT, LONG = "{text} in one word:", "<image> and {text} make this very picture, in one word:"
TEMPLATES = [SHORT, LONG, "<image> in one word:"]


@pytest.fixture(scope="module", params=["llava-llama", "qwen2_vl"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    folder: Path = write_tiny_mllm(tmp_path_factory.mktemp("mllm"), request.param)
    return MLLMProcessor(AutoProcessor.from_pretrained(folder), max_length=8)


@pytest.mark.parametrize("long_text", ["refuse", "cut"])
def test_what_the_longest_needs_is_told_and_is_enough(
    processor: MLLMProcessor, long_text: LongText
) -> None:
    limited = replace(processor, long_text=long_text)
    with pytest.raises(UserError, match=re.escape(repr(LONG))) as told:
        check_prompts(limited, TEMPLATES)
    needed = int(re.findall(r"at least (\d+)", str(told.value))[0])
    check_prompts(replace(limited, max_length=needed), TEMPLATES)
    with pytest.raises(UserError, match=f"at least {needed}"):
        check_prompts(replace(limited, max_length=needed - 1), TEMPLATES)


def test_a_limit_that_leaves_no_place_for_words_is_too_small(processor: MLLMProcessor) -> None:
    tokens = processor.processor.tokenizer
    bare = len(tokens(processor.render(Prompt(SHORT)))["input_ids"])
    with pytest.raises(UserError, match=f"too many for llm.max_length {bare}"):
        check_prompts(replace(processor, max_length=bare, long_text="cut"), [SHORT])


def test_no_prompts_are_short_enough(processor: MLLMProcessor) -> None:
    check_prompts(processor, [])


@pytest.mark.parametrize("long_text", ["refuse", "cut"])
def test_a_question_that_is_too_long_is_refused_by_name(
    processor: MLLMProcessor, long_text: LongText
) -> None:
    limited = replace(processor, long_text=long_text, max_length=100)
    long = "what is there? " * 60
    with pytest.raises(UserError, match=r"what is there.*chosen by Me, makes a prompt of") as told:
        check_questions(limited, "<image>{text}", ["what?", long], "Me")
    needed = int(re.findall(r"at least (\d+)", str(told.value))[0])
    check_questions(replace(limited, max_length=needed), "<image>{text}", [long], "Me")
    with pytest.raises(UserError, match=f"of {needed} tokens .*llm.max_length {needed - 1},"):
        check_questions(replace(limited, max_length=needed - 1), "<image>{text}", [long], "Me")
