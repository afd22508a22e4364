"""What a multimodal LLM says to prompts: captions, answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedModel

from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt


def replies(
    model: PreTrainedModel,
    processor: MLLMProcessor,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 128,
    description: str | None = "answers",
    **decoding: Any,
) -> list[str]:
    """The model's replies to prompts, in their order; greedy unless `decoding` says otherwise.

    Args:
        model: with its language modelling head, on the device where it is to run.
        processor: of it, whose tokenizer must pad on the left: what is said follows the prompt.
        prompts: with pictures or without, in any mixture.
        max_new_tokens: longest reply in tokens.
        description: of the progress bar; None shows none.
        decoding: options of transformers' `generate`.
    """
    if processor.tokenizer.padding_side != "left":
        raise ValueError("replies follow their prompts: set the tokenizer's padding_side to left")
    batch = processor(prompts)
    # Its type is lost in transformers' wrappers.
    generate: Any = model.generate
    said: list[str] = []
    with torch.inference_mode():
        for group in track(
            batch["groups"], description=description or "", disable=description is None
        ):
            inputs = {name: value.to(model.device) for name, value in group.items()}
            tokens = generate(
                **inputs, **{"do_sample": False, "max_new_tokens": max_new_tokens} | decoding
            )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            said += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [said[place].strip() for place in batch["order"].tolist()]
