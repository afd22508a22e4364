"""Telling what a multimodal LLM makes of an image from what it made before, to use it again.

All weights are read, which takes a second or two for each gigabyte. Not seen is the code that
`llm.trust_remote_code` runs: after a change of it, name another folder for what is kept.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cirlab.encoders.fingerprint import full_fingerprint
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix_tokens import prefix_ids, suffix_ids
from cirlab.encoders.mllm.processor import MLLMProcessor


def encoder_identity(llm: EmbeddingMLLM, precision: str) -> str:
    """What decides a vector besides image and prompt: weights, and how they compute.

    Reads all weights: ask for it once for all prompts.

    Args:
        llm: the model as it is now.
        precision: of the arithmetic, as the trainer has it.
    """
    processor: Any = llm.processor.processor
    return digest(
        full_fingerprint(llm.state_dict().items()),
        llm.speaker.config.to_json_string(),
        _adapters(llm),
        precision,
        llm.settings.attention,
        llm.settings.pooling,
        str(processor.image_processor.to_dict()),
        str(sorted(llm.settings.processor_options.items())),
    )


def prefix_identity(encoder: str, processor: MLLMProcessor, template: str) -> str:
    """What decides a picture's prefix besides the picture.

    Args:
        encoder: the model's `encoder_identity`.
        processor: of the model.
        template: of any of the prompts, for all begin alike.
    """
    return digest(encoder, str(prefix_ids(processor, template).tolist()))


def view_identity(
    encoder: str, processor: MLLMProcessor, template: str, text: str, way: str
) -> str:
    """What decides a picture's vector under a prompt besides the picture.

    Args:
        encoder: the model's `encoder_identity`.
        processor: of the model.
        template: of the prompt.
        text: its words.
        way: of encoding, where ways differ by rounding.
    """
    words = suffix_ids(processor, template, text)
    return digest(prefix_identity(encoder, processor, template), str(words.tolist()), way)


def digest(*lines: str) -> str:
    """Short hash of some texts."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _adapters(llm: EmbeddingMLLM) -> str:
    """How adapters count: their weights do not tell by how much they are scaled."""
    lora = llm.settings.lora
    return "" if lora is None else f"{lora.rank} {lora.alpha}"
