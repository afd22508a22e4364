"""Answers about pictures: those of transformers' own decoding, in every layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cirlab.encoders.mllm.answering import Answer, answers
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.prefix import ROOM
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.mllm.speaking import replies
from cirlab.errors import UserError
from cirlab.records import DecodedImage
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm

ASK = "<image>{text}"
QUESTIONS = ("is there a red circle?", "what colour is it, green or blue?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in LAYOUTS}


def pictures() -> list[DecodedImage]:
    """Of several sizes, which some models read by several numbers of tokens."""
    sizes = [(40, 56), (90, 60), (28, 112), (56, 56)]
    drawn = [
        np.random.default_rng(i).integers(0, 255, (*s, 3), np.uint8) for i, s in enumerate(sizes)
    ]
    return [DecodedImage(str(i), PIL.Image.fromarray(d)) for i, d in enumerate(drawn)]


def model_of(name: str, **settings: Any) -> EmbeddingMLLM:
    settings = {"max_length": 250, "group_size": 3} | settings
    return EmbeddingMLLM(MLLMSettings(name, frozen=True, **settings)).eval()


def answered(model: EmbeddingMLLM, longest: int, which: Sequence[bool]) -> list[list[Answer]]:
    """Of some of the pictures, question by question."""
    images = PromptedImages(model)
    batch = ImagePrefixCollator(model.processor, ASK)(pictures())
    wanted = torch.tensor(which)[batch["order"].argsort()].split(
        [len(group["input_ids"]) for group in batch["groups"]]
    )
    prefixes = [images.prefix(group) for group in batch["groups"]]
    order = [row for row in batch["order"].argsort().tolist() if which[row]]
    found = []
    for question in QUESTIONS:
        words = suffix_ids(model.processor, ASK, question)
        said = [
            answer
            for prefix, chosen in zip(prefixes, wanted, strict=True)
            if chosen.any()
            for answer in answers(images, prefix.select(chosen), words, longest)
        ]
        found.append([said[order.index(row)] for row in sorted(order)])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_those_of_plain_decoding(layout: str, folders: dict[str, Path]) -> None:
    model = model_of(str(folders[layout]))
    which = (True, True, False, True)
    own, processor = load_mllm(MLLMSettings(str(folders[layout]), padding_side="left"))
    shown = [picture.load() for picture, wanted in zip(pictures(), which, strict=True) if wanted]
    reader = MLLMProcessor(processor, 250)
    for question, found in zip(QUESTIONS, answered(model, 9, which), strict=True):
        prompts = [Prompt(ASK, question, picture) for picture in shown]
        assert [answer.text for answer in found] == replies(own, reader, prompts, 9)


def test_an_answer_ends_where_the_model_ends_it(folders: dict[str, Path]) -> None:
    model = model_of(str(folders["llava-llama"]))
    which = (True, False, False, False)
    (whole, *_), (other, *_) = answered(model, 6, which)
    assert whole.cut and other.cut
    tokens = model.processor.tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    config: Any = model.speaker.generation_config
    before = config.eos_token_id
    config.eos_token_id = [before, tokens[0]]
    (ended, *_), _ = answered(model, 6, which)
    assert ended == Answer("", cut=False)


def test_an_answer_may_be_longer_than_the_room_behind_a_picture(folders: dict[str, Path]) -> None:
    folder = str(folders["llava-llama"])
    found = answered(model_of(folder), ROOM + 10, (True,) * 4)
    own, processor = load_mllm(MLLMSettings(folder, padding_side="left"))
    reader = MLLMProcessor(processor, 250)
    for question, said in zip(QUESTIONS, found, strict=True):
        prompts = [Prompt(ASK, question, picture.load()) for picture in pictures()]
        assert [answer.text for answer in said] == replies(own, reader, prompts, ROOM + 10)


def test_what_leaves_no_room_for_an_answer_is_refused(folders: dict[str, Path]) -> None:
    model = model_of(str(folders["llava-llama"]), max_length=40)
    with pytest.raises(UserError, match=r"leaves no 30 for the answer below llm\.max_length 40; "):
        answered(model, 30, (True,) * 4)
