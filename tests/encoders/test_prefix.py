"""A prompt behind a picture's prefix: the vectors of one forward, in every layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm import EmbeddingMLLM, MLLMSettings
from cirlab.encoders.mllm_processor import Prompt
from cirlab.encoders.prefix import (
    ImagePrefixCollator,
    Prefix,
    PromptedImages,
    check_same_prefix,
    suffix_ids,
)
from cirlab.errors import UserError
from cirlab.records import DecodedImage
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm

GENERAL = "<image>Represent the given image."
PROMPTED = "<image>Represent the given image with the following question: {text}"
QUESTIONS = ("what colour is it?", "is there a red circle in it, or a green square?", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    layouts = (*LAYOUTS, "llava-mistral")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in layouts}


def mllm(folder: Path, **settings: Any) -> EmbeddingMLLM:
    settings = {"frozen": True, "max_length": 250, "group_size": 3} | settings
    return EmbeddingMLLM(MLLMSettings(str(folder), **settings)).eval()


def pictures() -> list[DecodedImage]:
    """Of several sizes, which some models read by several numbers of tokens."""
    sizes = [(40, 56), (90, 60), (28, 112), (120, 120), (56, 56)]
    drawn = [
        np.random.default_rng(i).integers(0, 255, (*s, 3), np.uint8) for i, s in enumerate(sizes)
    ]
    return [DecodedImage(str(i), PIL.Image.fromarray(d)) for i, d in enumerate(drawn)]


def prefixes(model: EmbeddingMLLM, images: PromptedImages) -> tuple[list[Prefix], torch.Tensor]:
    batch = ImagePrefixCollator(model.processor, GENERAL)(pictures())
    return [images.prefix(group) for group in batch["groups"]], batch["order"]


def plain(model: EmbeddingMLLM, template: str, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(
            model.processor([Prompt(template, text, picture.load()) for picture in pictures()])
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "llava-mistral"])
def test_vectors_are_those_of_one_forward(layout: str, side: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout], padding_side=side)
    images = PromptedImages(model)
    batch = ImagePrefixCollator(model.processor, GENERAL)(pictures())
    if layout.startswith("qwen"):
        assert any((group["attention_mask"] == 0).any() for group in batch["groups"])
    kept = [images.prefix(group) for group in batch["groups"]]
    for template, text in [(GENERAL, ""), *((PROMPTED, question) for question in QUESTIONS)]:
        suffix = suffix_ids(model.processor, template, text)
        expected = plain(model, template, text)
        by_prefix = torch.cat([images.proceed(p, suffix) for p in kept])[batch["order"]]
        assert (by_prefix - expected).abs().max() < 1e-4
        with torch.no_grad():
            whole = torch.cat([images.whole(g, suffix) for g in batch["groups"]])[batch["order"]]
        assert (whole - expected).abs().max() < 1e-5
        torch.testing.assert_close(by_prefix.norm(dim=1), torch.ones(5))
