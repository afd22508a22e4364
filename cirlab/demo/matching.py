"""Features of images and texts, and how well the two match: CLIP's way and BLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.weights import load_blip
from cirlab.encoders.dual.blip import BLIP_PREFIX, CAPTION_LENGTH
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.records import Image


class Matcher(Protocol):
    """Who embeds and matches."""

    def images(self, images: Sequence[Image]) -> torch.Tensor:
        """Unit vectors (B, D), float32, on the CPU."""
        ...

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (B, D), float32, on the CPU."""
        ...

    def together(self, image: Image, texts: Sequence[str]) -> list[float] | None:
        """How sure it is that each text is of the image, in [0, 1]; None if it cannot tell."""
        ...


def load_matcher(
    name: str, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> Matcher:
    """A dual encoder, by a name as `load_dual_encoder` takes it.

    Args:
        name: an open_clip model, `zoo:tiny_clip`, or `blip:name`.
        pretrained: open_clip's tag of the weights.
        device: where it runs.

    Raises:
        UserError: the weights cannot be read.
    """
    if name.startswith(BLIP_PREFIX):
        source = name.removeprefix(BLIP_PREFIX)
        return BlipMatching(
            BlipMatcher(source, load_blip(source, key="--matcher"), CAPTION_LENGTH), device
        )
    return DualMatching(load_dual_encoder(name, pretrained), device)


class DualMatching:
    """By the similarity of vectors alone.

    Args:
        encoder: the dual encoder.
        device: where it runs.
    """

    def __init__(self, encoder: DualEncoder, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.encoder = encoder.eval().to(self.device)

    @torch.inference_mode()
    def images(self, images: Sequence[Image]) -> torch.Tensor:
        pixels = self.encoder.processor.images([image.load() for image in images])
        return self.encoder.encode_images(pixels.to(self.device)).cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.encoder.encode_texts(self._tokens(texts)).cpu()

    def together(self, image: Image, texts: Sequence[str]) -> list[float] | None:
        return None

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self.encoder.processor.tokenize(list(texts))
        return {key: value.to(self.device) for key, value in tokens.items()}


class BlipMatching(DualMatching):
    """BLIP also reads image and text together (image-text matching, ITM).

    Args:
        encoder: the BLIP.
        device: where it runs.
    """

    def __init__(self, encoder: BlipMatcher, device: str | torch.device = "cpu") -> None:
        super().__init__(encoder, device)
        self.blip = encoder

    @torch.inference_mode()
    def together(self, image: Image, texts: Sequence[str]) -> list[float]:
        pixels = self.blip.processor.images([image.load()]).to(self.device)
        hidden = self.blip.hidden_images(pixels).expand(len(texts), -1, -1)
        logits = self.blip.match(self._tokens(texts), hidden)
        sure: list[float] = logits.float().softmax(dim=-1)[:, 1].tolist()
        return sure
