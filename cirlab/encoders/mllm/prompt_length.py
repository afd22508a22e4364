"""Whether a method's prompts fit a multimodal LLM's limit, asked before anything is computed.

Many a prompt is first needed in an evaluation, hours after the training has begun.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import PIL.Image

from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt
from cirlab.errors import UserError
from cirlab.reading.jsonl import shown

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


def check_questions(
    processor: MLLMProcessor, template: str, questions: Sequence[str], chooser: str
) -> None:
    """Refuse questions that are too long with a small picture, whatever is done with other texts.

    Args:
        processor: of the model that reads them.
        template: what they are asked in, as `Prompt` has it.
        questions: each once.
        chooser: what chose them, for the error.

    Raises:
        UserError: it names the first of them, its tokens and the limit.
    """
    unlimited, limit = replace(processor, max_length=sys.maxsize), processor.max_length
    picture = PIL.Image.new("RGB", (SIDE, SIDE))
    for question in questions:
        inputs, _ = unlimited.tensors([Prompt(template, question, picture)])
        length = int(inputs["attention_mask"].sum())
        if length > limit:
            raise UserError(
                f"the question {shown(question)}, chosen by {chooser}, makes a prompt of {length} "
                f"tokens with a small picture, more than llm.max_length {limit}, and questions are "
                f"never cut; shorten it, or raise llm.max_length to at least {length}"
            )


def _shortest(template: str) -> Prompt:
    picture = PIL.Image.new("RGB", (SIDE, SIDE)) if IMAGE_MARK in template else None
    return Prompt(template, "a" if TEXT_MARK in template else "", picture)
