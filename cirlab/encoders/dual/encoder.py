"""What a dual encoder is: an image tower and a text tower that share one space.

A method sees only `DualEncoder` and, in loader workers, its `DualProcessor`; which library the
towers are of, `cirlab.encoders.dual.loading` knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
import torch
from torch import nn

from cirlab.errors import UserError


class Tokenizer(Protocol):
    """Texts to token tensors of shape (B, L), by argument name.

    Attributes:
        max_length: tokens of the longest text; of a longer one the last words are left out.
    """

    @property
    def max_length(self) -> int: ...

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]: ...

    def cut(self, texts: list[str]) -> torch.Tensor:
        """Which texts are longer. Shape (B,), bool."""


@dataclass(frozen=True)
class DualProcessor:
    """The picklable half of a dual encoder, run in loader workers.

    Attributes:
        transform: PIL image to a normalised tensor of shape (3, H, W).
        tokenize: texts to tokens.
    """

    transform: Callable[[PIL.Image.Image], torch.Tensor]
    tokenize: Tokenizer

    def images(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """Pixels, shape (B, 3, H, W)."""
        return torch.stack([self.transform(image) for image in images])


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower in one space of `dim` dimensions.

    Attributes:
        name: how it was asked for; part of the identity that checkpoints carry.
        image_tower: the module that LoRA may adapt.
    """

    name: str
    dim: int
    processor: DualProcessor

    @property
    def image_backbone(self) -> nn.Module:
        """What `backbone_features` runs."""
        return self.image_tower

    @property
    def image_side(self) -> nn.Module:
        """All that turns pixels into an embedding, a projection included."""
        return self.image_backbone

    @property
    @abstractmethod
    def image_tower(self) -> nn.Module:
        """The part that turns pixels into an embedding."""

    @abstractmethod
    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings of any length, (B, D), from pixels (B, 3, H, W)."""

    @abstractmethod
    def text_embeddings(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings of any length, (B, D), from token tensors (B, L)."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) in float32, from pixels (B, 3, H, W)."""
        return nn.functional.normalize(self.image_embeddings(pixels).float(), dim=-1)

    def embed_images(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors (B, D) from pixels, from features of the backbone, or as they were kept.

        Args:
            inputs: {"pixels": (B, 3, H, W)}, {"features": (B, F)} or {"vectors": (B, D)}.
        """
        if "vectors" in inputs:
            return inputs["vectors"]
        if "pixels" in inputs:
            return self.encode_images(inputs["pixels"])
        return nn.functional.normalize(self.project_features(inputs["features"]).float(), dim=-1)

    def encode_texts(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors (B, D) in float32, from token tensors (B, L)."""
        return nn.functional.normalize(self.text_embeddings(tokens).float(), dim=-1)

    def text_parameters(self) -> list[nn.Parameter]:
        """What the embedding of a text depends on, the image side's own parameters aside.

        Found by a backward pass, for the libraries call and nest these parts differently, and some
        models have others beside them that no contrastive loss would reach.
        """
        of_images = {id(parameter) for parameter in self.image_side.parameters()}
        candidates = [p for p in self.parameters() if id(p) not in of_images]
        learned = [parameter.requires_grad for parameter in candidates]
        for parameter in candidates:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            total = self.text_embeddings(self.processor.tokenize(["a"])).sum()
        reached = torch.autograd.grad(total, candidates, allow_unused=True)
        for parameter, before in zip(candidates, learned, strict=True):
            parameter.requires_grad_(before)
        return [p for p, grad in zip(candidates, reached, strict=True) if grad is not None]

    def query_parts(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """A query's image and its words, each as (B, D), from what `DualQueryReader` gives.

        Returns {"image_only", "text_only"}, or "text_only" alone where queries have no image. Rows
        are unit vectors; those of queries without words are zero in "text_only", so that in a sum
        the image alone counts, whatever the other queries of a batch are.
        """
        parts: dict[str, torch.Tensor] = {}
        if "image" in inputs:
            parts["image_only"] = self.embed_images(inputs["image"])
        if "text" in inputs:
            worded = inputs["worded"].unsqueeze(1)
            parts["text_only"] = self.encode_texts(inputs["text"]).masked_fill(~worded, 0.0)
        elif parts:
            parts["text_only"] = torch.zeros_like(parts["image_only"])
        return parts

    def backbone_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What a frozen image backbone says, before any head that may be trained. (B, F).

        The whole tower where it has no separate head: then `project_features` is the identity.
        """
        return self.image_embeddings(pixels)

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        """From backbone features (B, F) to embeddings (B, D)."""
        return features

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer in the layout of the library they are of.

        A text tower of transformers is named there by the path of `folder`.
        """


def check_length(max_length: int, places: int | None, name: str) -> None:
    """Refuse texts of so many tokens.

    Args:
        max_length: tokens of a text.
        places: tokens that the text tower has positions for; None: as many as it is built for.
        name: of the encoder.

    Raises:
        UserError: there are no places for them, or they hold no word.
    """
    most = max_length if places is None else places
    if not 2 <= max_length <= most:
        raise UserError(
            f"max_length is {max_length}, but the text encoder of {name} has {most} places; "
            f"choose from 2 to {most}"
        )
