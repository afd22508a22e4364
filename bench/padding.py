"""Padding that a multimodal LLM computes: prompts grouped by length, against one padded batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.measure import Row
from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.world.dialogue import dialogue
from cirlab.world.language import caption, full_caption
from cirlab.world.scene import draw_scene, generator
from lightning_modules.instructcir import Prompts

BATCH, REPEATS = 256, 5


def mixed_texts(seed: int) -> list[str]:
    """Short captions, full ones, and whole dialogues of up to ten rounds: 3 to 130 words."""
    texts = []
    for number in range(BATCH):
        rng = generator("val", seed, number)
        scene = draw_scene(rng)
        kind = number % 3
        if kind == 0:
            texts.append(caption(scene, rng))
        elif kind == 1:
            texts.append(full_caption(scene))
        else:
            opening, rounds = dialogue(scene, rng, int(rng.integers(1, 11)))
            texts.append(", ".join([opening, *rounds]))
    return texts


def padding(processor: MLLMProcessor, texts: list[str]) -> float:
    """Share of a batch's tokens that are padding, in percent."""
    template = Prompts().text
    groups = processor([Prompt(template, text) for text in texts])["groups"]
    real = sum(int(group["attention_mask"].sum()) for group in groups)
    return 100 * (1 - real / sum(group["input_ids"].numel() for group in groups))


def run() -> Iterator[Row]:
    """Per batch of 256 prompts."""
    settings = MLLMSettings("zoo:tiny_mllm", frozen=True)
    _, processor = load_mllm(settings)
    grouped = MLLMProcessor(processor, settings.max_length, group_size=settings.group_size)
    whole = MLLMProcessor(processor, settings.max_length, group_size=BATCH)
    batches = [mixed_texts(seed) for seed in range(REPEATS)]
    yield Row(
        name=f"padding, {BATCH} prompts of {_words(batches)} words, groups of {grouped.group_size}",
        ours=[padding(grouped, texts) for texts in batches],
        reference=[padding(whole, texts) for texts in batches],
        unit="% of tokens",
        reference_name="one padded batch",
    )


def _words(batches: list[list[str]]) -> str:
    counts = np.array([len(text.split()) for texts in batches for text in texts])
    return f"{counts.min()} to {counts.max()}"
