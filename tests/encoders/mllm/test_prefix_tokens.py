"""A prompt's tokens up to its picture's last and behind it: together the prompt's own."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, check_same_prefix, suffix_ids
from cirlab.encoders.mllm.processor import Prompt
from cirlab.errors import UserError
from tests.encoders.mllm.prompting import GENERAL, PROMPTED, mllm, pictures
from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    layouts = ("llava-llama", "llava_next", "qwen2_vl")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in layouts}


@pytest.mark.parametrize("layout", ["llava-llama", "llava_next", "qwen2_vl"])
def test_prefix_and_suffix_are_the_prompts_tokens(layout: str, folders: dict[str, Path]) -> None:
    processor = mllm(folders[layout], padding_side="right").processor
    collator = pickle.loads(pickle.dumps(ImagePrefixCollator(processor, GENERAL)))
    suffix = suffix_ids(processor, PROMPTED, "<image> or <|end|>?")
    for number, picture in enumerate(pictures()):
        (group,) = collator([picture])["groups"]
        whole = processor([Prompt(PROMPTED, "<image> or <|end|>?", picture.load())])["groups"][0]
        joined = torch.cat([group["input_ids"][0], suffix])
        assert joined.tolist() == whole["input_ids"][0].tolist(), number
        torch.testing.assert_close(group["pixel_values"], whole["pixel_values"])


def test_words_before_the_picture_belong_to_the_prefix(folders: dict[str, Path]) -> None:
    processor = mllm(folders["llava-llama"]).processor
    check_same_prefix(processor, {"a": GENERAL, "b": PROMPTED, "c": "<image>"})
    check_same_prefix(processor, {"a": f"Look: {GENERAL}", "b": f"Look: {PROMPTED}"})
    with pytest.raises(
        UserError,
        match=r"c is 'Look: .* and a is '<image>Represent the given image\.': up to <image> ",
    ):
        check_same_prefix(
            processor, {"a": GENERAL, "b": "<image> {text}", "c": f"Look: {PROMPTED}"}
        )
    with pytest.raises(UserError, match=r"has \{text\} before <image>"):
        suffix_ids(processor, "{text} <image>", "what is it?")
