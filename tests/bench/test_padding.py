"""The padding measurement counts what it says."""

from __future__ import annotations

from bench.padding import BATCH, mixed_texts, padding
from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.processor import MLLMProcessor
from cirlab.encoders.mllm.settings import MLLMSettings


def test_groups_of_similar_length_have_little_padding() -> None:
    texts = mixed_texts(0)
    assert len(texts) == BATCH and len({len(text.split()) for text in texts}) > 50
    settings = MLLMSettings("zoo:tiny_mllm", frozen=True)
    _, own = load_mllm(settings)
    grouped = padding(MLLMProcessor(own, settings.max_length, settings.group_size), texts)
    assert grouped < 10
    assert padding(MLLMProcessor(own, settings.max_length, group_size=1), texts) == 0
    assert padding(MLLMProcessor(own, settings.max_length, group_size=BATCH), texts) > 50
