"""Where a prompt's prefix ends and its suffix begins: behind the last token of its picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
from torch.nn.functional import pad

from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt
from cirlab.encoders.mllm.prompt_length import SIDE
from cirlab.errors import UserError
from cirlab.records import Image


@dataclass(frozen=True)
class ImagePrefixCollator:
    """Images to what `PromptedImages` takes: {"groups", "order", "cut"}, as `MLLMProcessor` has it.

    Each group ends with the pictures' last tokens and is padded on the left, whatever the
    tokenizer's side is: what follows then begins in the same place for all.

    Attributes:
        processor: of the model.
        template: of any of the prompts, for all begin alike.
    """

    processor: MLLMProcessor
    template: str

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        batch = self.processor([Prompt(self.template, image=i.load()) for i in images])
        return batch | {"groups": [_until_picture(self.processor, g) for g in batch["groups"]]}


def suffix_ids(processor: MLLMProcessor, template: str, text: str = "") -> torch.Tensor:
    """Tokens of a prompt behind its picture's last, the same for every picture. Shape (S,), int64.

    Args:
        processor: of the model.
        template: `<image>` stands for the picture, `{text}` for the words.
        text: these words.

    Raises:
        UserError: words stand before the picture, so that prefixes differ from prompt to prompt.
    """
    before, _, _ = template.partition(IMAGE_MARK)
    if TEXT_MARK in before:
        raise UserError(
            f"the prompt {template!r} has {TEXT_MARK} before {IMAGE_MARK}; a picture's prefix is "
            f"the same for all prompts only if {IMAGE_MARK} stands first"
        )
    return _halves(processor, template, text)[1]


def prefix_ids(processor: MLLMProcessor, template: str) -> torch.Tensor:
    """Tokens of a prompt up to the last of a small picture. Shape (P,), int64."""
    return _halves(processor, template)[0]


def check_same_prefix(processor: MLLMProcessor, templates: Mapping[str, str]) -> None:
    """Refuse prompts that do not begin alike up to their pictures.

    Args:
        processor: of the model.
        templates: by the key under which the user gives them.

    Raises:
        UserError: it names the first that differs.
    """
    begun = {key: prefix_ids(processor, text).tolist() for key, text in templates.items()}
    first = next(iter(templates))
    for key, template in templates.items():
        if begun[key] != begun[first]:
            raise UserError(
                f"{key} is {template!r} and {first} is {templates[first]!r}: up to {IMAGE_MARK} "
                "they do not begin alike, but pictures are read once for both; write the same "
                "before it"
            )


def _halves(
    processor: MLLMProcessor, template: str, text: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens up to the last of a small picture, and those behind it."""
    # What fits is for the pictures themselves to tell.
    unlimited = replace(processor, max_length=sys.maxsize)
    picture = PIL.Image.new("RGB", (SIDE, SIDE))
    (group, _) = unlimited.tensors([Prompt(template, text, picture)])
    ids = group["input_ids"][0]
    end = int(_last_of_picture(processor, group)[0]) + 1
    return ids[:end], ids[end:]


def _until_picture(
    processor: MLLMProcessor, group: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The group without what follows each picture, padded on the left."""
    mask, ends = group["attention_mask"], _last_of_picture(processor, group) + 1
    begins = mask.argmax(dim=1)
    longest = int((ends - begins).max())
    fill = {"input_ids": processor.tokenizer.pad_token_id}

    def cut(name: str) -> torch.Tensor:
        rows = [row[begin:end] for row, begin, end in zip(group[name], begins, ends, strict=True)]
        padded = [pad(r, (longest - len(r), 0), value=fill.get(name, 0)) for r in rows]
        return torch.stack(padded)

    return dict(group) | {name: cut(name) for name in by_token(group)}


def _last_of_picture(processor: MLLMProcessor, group: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where the last token of each row's picture is. Shape (G,)."""
    inner: Any = processor.processor
    tokenizer: Any = processor.tokenizer
    of_picture = group["input_ids"].eq(tokenizer.convert_tokens_to_ids(inner.image_token))
    return of_picture.shape[1] - 1 - of_picture.int().flip(1).argmax(dim=1)


def by_token(group: Mapping[str, torch.Tensor]) -> list[str]:
    """Inputs that tell something of every token."""
    shape = group["input_ids"].shape
    return [n for n, t in group.items() if t.shape == shape and not t.is_floating_point()]
