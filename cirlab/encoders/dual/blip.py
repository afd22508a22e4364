"""BLIP as a dual encoder: the towers that its contrastive loss trains (arXiv 2201.12086)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import nn

from cirlab.encoders.blip.weights import BlipParts, load_blip, save_blip
from cirlab.encoders.dual.encoder import DualEncoder, DualProcessor, check_length

#: What begins the name of a dual encoder that is a BLIP.
BLIP_PREFIX = "blip:"
#: Tokens of a caption in BLIP's retrieval configuration.
CAPTION_LENGTH = 35


class BlipEncoder(DualEncoder):
    """BLIP's contrastive pair of towers (Li et al., 2022), in transformers' layout.

    Args:
        name: a hub name, a folder of a `BlipForImageTextRetrieval`, `zoo:name`, or a file of BLIP's
            own code.
        parts: what was loaded by that name; None loads it.
        max_length: tokens of a text; None takes a caption's.

    Attributes:
        source: the name.
        parts: model, processor and, where there is one, text decoder.

    Raises:
        UserError: it cannot be loaded, or has no place for so many tokens.
    """

    def __init__(
        self, name: str, parts: BlipParts | None = None, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.source = f"{BLIP_PREFIX}{name}", name
        self.parts = parts or load_blip(name, key="clip")
        self.model = self.parts.model
        places = self.model.config.text_config.max_position_embeddings
        max_length = min(CAPTION_LENGTH, places) if max_length is None else max_length
        check_length(max_length, places, name)
        self.dim = self.model.config.image_text_hidden_size
        self.processor = BlipReader(
            transform=_BlipTransform(self.parts.processor.image_processor),
            tokenize=_BlipTokenizer(self.parts.processor.tokenizer, max_length),
        )

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def image_backbone(self) -> nn.Module:
        """The projection is part of it: what is kept of an image are its `dim` numbers."""
        parts = {"tower": self.model.vision_model, "projection": self.model.vision_proj}
        return nn.ModuleDict(parts)

    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self.model.vision_proj(hidden[:, 0])

    def text_embeddings(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.model.text_encoder(**tokens).last_hidden_state
        return self.model.text_proj(hidden[:, 0])

    def save(self, folder: Path) -> None:
        save_blip(self.parts, folder)


@dataclass(frozen=True)
class BlipReader(DualProcessor):
    """Reads images in one call, which is twice as fast."""

    transform: _BlipTransform

    def images(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        return self.transform.batch(list(images))


@dataclass(frozen=True)
class _BlipTransform:
    image_processor: Any

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.batch([image])[0]

    def batch(self, images: list[PIL.Image.Image]) -> torch.Tensor:
        return self.image_processor(images, return_tensors="pt")["pixel_values"]


@dataclass(frozen=True)
class _BlipTokenizer:
    tokenizer: Any
    max_length: int

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def cut(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length + 1)["input_ids"]
        return torch.tensor([len(row) > self.max_length for row in ids])
