"""Whether a method's prompts fit a multimodal LLM's limit, asked before anything is computed.

Many a prompt is first needed in an evaluation, hours after the training has begun.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import PIL.Image

from cirlab.encoders.mllm_processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt

#: Pixels of the picture that prompts are tried with. Models that read larger pictures by more
#: tokens may find a prompt too long later; none that is refused with this one would ever fit.
SIDE = 64


def check_prompts(processor: MLLMProcessor, templates: Sequence[str]) -> None:
    """Refuse prompts that are too long with a small picture and a single word.

    Args:
        processor: of the model that reads them.
        templates: as `Prompt` has them.

    Raises:
        UserError: it names the longest of them, and the limit that all of them need.
    """
    if not templates:
        return
    prompts = [_shortest(template) for template in templates]
    unlimited = replace(processor, max_length=sys.maxsize)
    lengths = [int(unlimited.tensors([p])[0]["attention_mask"].sum()) for p in prompts]
    processor.tensors([prompts[lengths.index(max(lengths))]])


def _shortest(template: str) -> Prompt:
    picture = PIL.Image.new("RGB", (SIDE, SIDE)) if IMAGE_MARK in template else None
    return Prompt(template, "a" if TEXT_MARK in template else "", picture)
