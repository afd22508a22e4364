"""Telling what a multimodal LLM makes of an image from what it made before, to use it again."""

from __future__ import annotations

import hashlib
from typing import Any

from cirlab.encoders.fingerprint import ALL, fingerprint
from cirlab.encoders.mllm import EmbeddingMLLM
from cirlab.encoders.prefix import prefix_ids, suffix_ids


def encoder_identity(llm: EmbeddingMLLM, precision: str) -> str:
    """What decides a vector besides image and prompt: weights, and how they compute.

    What is learned is read whole, of the rest some values of each tensor.

    Args:
        llm: the model as it is now.
        precision: of the arithmetic, as the trainer has it.
    """
    weights = llm.state_dict()
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    learned = {name for name in weights if name in trained or ".lora_" in name}
    processor: Any = llm.processor.processor
    return digest(
        fingerprint(((name, weights[name]) for name in learned), values=ALL),
        fingerprint((name, weight) for name, weight in weights.items() if name not in learned),
        str(sorted({str(weight.dtype) for weight in weights.values()})),
        llm.speaker.config.to_json_string(),
        _adapters(llm),
        precision,
        llm.settings.attention,
        llm.settings.pooling,
        str(processor.image_processor.to_dict()),
        str(sorted(llm.settings.processor_options.items())),
    )


def prefix_identity(llm: EmbeddingMLLM, template: str, precision: str) -> str:
    """What decides a picture's prefix besides the picture.

    Args:
        llm: the model as it is now.
        template: of any of the prompts, for all begin alike.
        precision: of the arithmetic, as the trainer has it.
    """
    begun = prefix_ids(llm.processor, template)
    return digest(encoder_identity(llm, precision), str(begun.tolist()))


def view_identity(llm: EmbeddingMLLM, template: str, text: str, precision: str, way: str) -> str:
    """What decides a picture's vector under a prompt besides the picture.

    Args:
        llm: the model as it is now.
        template: of the prompt.
        text: its words.
        precision: of the arithmetic, as the trainer has it.
        way: of encoding, where ways differ by rounding.
    """
    words = suffix_ids(llm.processor, template, text)
    return digest(prefix_identity(llm, template, precision), str(words.tolist()), way)


def digest(*lines: str) -> str:
    """Short hash of some texts."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _adapters(llm: EmbeddingMLLM) -> str:
    """How adapters count: their weights do not tell by how much they are scaled."""
    lora = llm.settings.lora
    return "" if lora is None else f"{lora.rank} {lora.alpha}"
