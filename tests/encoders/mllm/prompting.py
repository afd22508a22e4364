"""Tiny multimodal LLMs, pictures and prompts for them, and vectors made of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix import Prefix
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.records import DecodedImage

GENERAL = "<image>Represent the given image."
PROMPTED = "<image>Represent the given image with the following question: {text}"
COMPOSED = '<image>Modify this image with "{text}", describe modified image in one word:'
QUESTIONS = ("what colour is it?", "is there a red circle in it, or a green square?", "")


def mllm(folder: Path, chunk_size: int | None = None, **settings: Any) -> EmbeddingMLLM:
    settings = {"frozen": True, "max_length": 250, "group_size": 3} | settings
    return EmbeddingMLLM(MLLMSettings(str(folder), **settings), chunk_size).eval()


def picture(seed: int, height: int = 48, width: int = 60) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def prompts() -> list[Prompt]:
    """Of mixed lengths, with pictures of mixed sizes and without."""
    composed = [
        Prompt(COMPOSED, "a red circle " * (4 - i), picture(i, height=40 + 30 * i))
        for i in range(4)
    ]
    words = [Prompt("{text} in one word:", "a green square " * (1 + 3 * i)) for i in range(3)]
    return [words[2], composed[0], composed[1], words[0], composed[2], words[1], composed[3]]


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
