"""Prompts to tensors: groups, marks, special tokens, and texts that are too long."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt
from cirlab.errors import UserError
from tests.encoders.mllm.prompting import COMPOSED, mllm, picture, prompts
from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    return {
        layout: write_tiny_mllm(root / layout, layout) for layout in ("llava-llama", "qwen2_vl")
    }


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava-llama"]


def test_groups_hold_prompts_of_one_kind_and_similar_length(llava: Path) -> None:
    model = mllm(llava)
    batch = model.processor(prompts())
    with_picture = ["pixel_values" in group for group in batch["groups"]]
    assert with_picture == [True, True, False]
    lengths = [group["attention_mask"].sum(dim=1).tolist() for group in batch["groups"]]
    assert lengths[0] == sorted(lengths[0]) and max(lengths[0]) <= min(lengths[1])
    assert sorted(batch["order"].tolist()) == list(range(7))


def test_the_processor_travels_to_workers(llava: Path) -> None:
    processor = mllm(llava).processor
    there = pickle.loads(pickle.dumps(processor))
    for ours, theirs in zip(
        processor(prompts())["groups"], there(prompts())["groups"], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", ["llava-llama", "qwen2_vl"])
def test_words_of_the_data_never_become_special_tokens(
    layout: str, folders: dict[str, Path]
) -> None:
    processor = mllm(folders[layout]).processor
    ids = processor.tokenizer.get_vocab()
    words = "a <image> or <|image_pad|><|end|><|assistant|> circle"
    plain, picture_too = processor([Prompt("{text}", words), Prompt(COMPOSED, words, picture(0))])[
        "groups"
    ][::-1]
    for token in ("<|end|>", "<|assistant|>"):
        assert (plain["input_ids"] == ids[token]).sum() == 1
        assert (picture_too["input_ids"] == ids[token]).sum() == 1
    image = ids[processor.processor.image_token]
    assert not (plain["input_ids"] == image).any()
    assert "circle" in processor.tokenizer.decode(plain["input_ids"][0])


def test_a_beginning_that_the_tokenizer_writes_is_taken_out_of_the_template(
    tmp_path: Path,
) -> None:
    """As in the released code, which cuts "<s>" off the rendered template."""
    folder = write_tiny_mllm(tmp_path / "begun")
    own = AutoProcessor.from_pretrained(folder)
    tokenizer = own.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", begin)]
    )
    own.chat_template = "{{ bos_token }}" + own.chat_template
    processor = MLLMProcessor(own, 200)
    prompt = Prompt("{text}", "a red circle")
    assert processor.render(prompt) == "<|user|>a red circle<|end|><|assistant|>"
    (group,) = processor([prompt])["groups"]
    assert (group["input_ids"] == begin).sum() == 1 and group["input_ids"][0, 0] == begin


def test_a_prompt_needs_a_mark_for_its_picture() -> None:
    with pytest.raises(UserError, match="has 0 <image> for 1 pictures"):
        Prompt("Describe this image in one word:", image=picture(0))
    with pytest.raises(UserError, match="has 1 <image> for 0 pictures"):
        Prompt(COMPOSED, "make it red")


def test_a_long_prompt_is_refused_or_loses_words_but_never_its_picture(llava: Path) -> None:
    long = Prompt(COMPOSED, "a red circle " * 40, picture(0))
    refusing = mllm(llava, max_length=60).processor
    with pytest.raises(UserError, match=r"'<image>Mod.* the text 'a red circle .* to cut$") as told:
        refusing([long])
    # What it says is just enough.
    needed = int(re.search(r"at least (\d+)", str(told.value))[1])
    assert replace(refusing, max_length=needed)([long])["cut"] == 0
    with pytest.raises(UserError, match=f"llm.max_length {needed - 1}"):
        replace(refusing, max_length=needed - 1)([long])
    cutting = mllm(llava, max_length=60, long_text="cut").processor
    short = Prompt(COMPOSED, "a green square", picture(1))
    (group,) = cutting([long, short])["groups"]
    lengths = group["attention_mask"].sum(dim=1)
    assert 50 <= lengths.max() <= 60
    picture_token = cutting.tokenizer.convert_tokens_to_ids("<image>")
    assert (group["input_ids"] == picture_token).sum(dim=1).tolist() == [4, 4]
    # The end of the template, after the words, is whole.
    end = cutting.tokenizer("describe modified image in one word:<|end|><|assistant|>")
    assert group["input_ids"][-1, -len(end["input_ids"]) :].tolist() == end["input_ids"]


@pytest.mark.parametrize("long_text", ["refuse", "cut"])
@pytest.mark.parametrize(
    ("template", "text", "has"),
    [
        ("<image>Describe this image in one word:", "", "tokens with its picture, too many"),
        (COMPOSED, "a red circle", "tokens with its picture before any text, too many"),
        ("Describe {text} at some length:", "a red circle", "tokens before any text, too many"),
    ],
)
def test_a_prompt_too_long_without_its_words_says_how_long_it_must_be(
    llava: Path, long_text: str, template: str, text: str, has: str
) -> None:
    processor = mllm(llava, max_length=8, long_text=long_text).processor
    prompt = Prompt(template, text, picture(0) if "<image>" in template else None)
    with pytest.raises(UserError, match=re.escape(repr(template))) as told:
        processor([prompt])
    said = str(told.value)
    assert f"{has} for llm.max_length 8" in said and "to cut" not in said
    assert ("make pictures smaller" in said) == (prompt.image is not None)
    needed = int(re.search(r"at least (\d+)", said)[1])
    assert int(replace(processor, max_length=needed)([prompt])["cut"]) == (
        long_text == "cut" and bool(text)
    )
    with pytest.raises(UserError, match=f"at least {needed}"):
        replace(processor, max_length=needed - 1)([prompt])
