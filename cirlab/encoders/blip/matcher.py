"""BLIP for retrieval: two towers to search with, one encoder that reads text and image together.

Li et al., arXiv 2201.12086, section 3: the text encoder alone embeds a text; with cross-attention
to an image's patches it tells whether the two belong together (image-text matching, ITM); with
causal self-attention it is the decoder that describes the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from cirlab.encoders.blip.weights import DECODE, ENCODE, BlipParts, save_blip
from cirlab.encoders.dual.blip import BlipEncoder

#: Bounds of the learned temperature (github.com/salesforce/BLIP, models/blip_retrieval.py).
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
#: Targets that the loss of words leaves out.
IGNORED = -100


class BlipMatcher(BlipEncoder):
    """A BLIP with all that its training and its second stage need.

    Args:
        name: how it was asked for.
        parts: what was loaded or built.
        max_length: tokens of a text.

    Attributes:
        log_temperature: learned. BLIP learns the temperature itself, by rates that are small beside
            it; at a rate of 0.001 it falls to a tenth within a hundred steps, and contrast with it.
        decoder: describes images, or None.

    Raises:
        UserError: the text encoder has no place for so many tokens.
    """

    def __init__(self, name: str, parts: BlipParts, max_length: int) -> None:
        super().__init__(name, parts, max_length)
        # transformers' name of it in the configuration, which the published models leave at 0.07.
        scale = self.model.config.logit_scale_init_value
        self.log_temperature = nn.Parameter(torch.tensor([-float(scale)]))
        self.decoder: Any = parts.decoder
        self.encode_id, self.decode_id = _first_tokens(self.parts)

    # ---- search -------------------------------------------------------------------------

    def hidden_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """The class token and all patches of images, (B, N, H), from pixels (B, 3, S, S)."""
        return hidden_images(self.model, pixels)

    def hidden_of(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same from {"pixels": (B, 3, S, S)} or as they were kept, {"hidden": (B, N, H)}."""
        if "hidden" in inputs:
            return inputs["hidden"].to(self.log_temperature.dtype)
        return self.hidden_images(inputs["pixels"])

    def embed_images(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors (B, D) from all that `DualEncoder` takes and from kept hidden images."""
        if "hidden" in inputs:
            return self.image_vectors(self.hidden_of(inputs))
        return super().embed_images(inputs)

    def image_vectors(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) in float32, from hidden images (B, N, H)."""
        return image_vectors(self.model, hidden)

    @property
    def temperature(self) -> torch.Tensor:
        """Divides similarities. Shape (1,)."""
        return self.log_temperature.exp()

    def clamp_temperature(self) -> None:
        """Keep it where BLIP keeps it."""
        with torch.no_grad():
            self.log_temperature.clamp_(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))

    def towers(self, images: bool, projection: bool = False) -> nn.Module:
        """A copy of what embeds texts and, with `images`, images; without gradient.

        The cross-attention, which a text alone never meets, is left out.

        Args:
            images: with image tower and projection.
            projection: with the projection alone, of images whose class token is known.
        """
        kept = {"text_encoder": self.model.text_encoder, "text_proj": self.model.text_proj}
        if images:
            kept |= {"vision_model": self.model.vision_model}
        if images or projection:
            kept |= {"vision_proj": self.model.vision_proj}
        copied = copy.deepcopy(nn.ModuleDict(kept)).requires_grad_(False).eval()
        text_encoder: Any = copied["text_encoder"]
        for layer in text_encoder.encoder.layer:
            del layer.crossattention
        return copied

    # ---- match --------------------------------------------------------------------------

    def match(self, tokens: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Logits of "they do not belong together" and "they do", (P, 2).

        Args:
            tokens: P texts, as the tokenizer gives them. Shape (P, L).
            hidden: P images. Shape (P, N, H).
        """
        read = self.model.text_encoder(
            input_ids=_begun(tokens["input_ids"], self.encode_id),
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=hidden,
        ).last_hidden_state
        logits: torch.Tensor = self.model.itm_head(read[:, 0])
        return logits

    # ---- describe -----------------------------------------------------------------------

    def caption_loss(
        self, tokens: Mapping[str, torch.Tensor], hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder loses on captions: the sum over their words, and how many there are.

        Args:
            tokens: a caption of each image, as the tokenizer gives it. Shape (B, L).
            hidden: the images. Shape (B, N, H).

        Returns:
            Two scalars; the number is int64.
        """
        ids, mask = _begun(tokens["input_ids"], self.decode_id), tokens["attention_mask"]
        read = self.decoder.bert(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=hidden, is_decoder=True
        ).last_hidden_state
        counts = mask[:, 1:].bool()
        logits = self.decoder.cls(read[:, :-1][counts]).float()
        return cross_entropy(logits, ids[:, 1:][counts], reduction="sum"), counts.sum()

    def save(self, folder: Path) -> None:
        """Write it so that transformers' retrieval class and, with a decoder, its captioning load.

        The temperature goes where `BlipMatcher` looks for it.
        """
        self.model.config.logit_scale_init_value = -self.log_temperature.item()
        save_blip(self.parts, folder)


def hidden_images(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Class token and patches (B, N, H); `model` has a `vision_model`."""
    hidden: torch.Tensor = model.vision_model(pixel_values=pixels).last_hidden_state
    return hidden


def image_vectors(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Unit vectors (B, D) in float32 from (B, N, H); `model` has a `vision_proj`."""
    return normalize(model.vision_proj(hidden[:, 0]).float(), dim=-1)


def text_vectors(model: Any, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Unit vectors (B, D) in float32; `model` has a `text_encoder` and a `text_proj`."""
    hidden = model.text_encoder(**tokens).last_hidden_state
    return normalize(model.text_proj(hidden[:, 0]).float(), dim=-1)


def _begun(ids: torch.Tensor, first: int) -> torch.Tensor:
    """Texts (P, L) that begin with another token."""
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)


def _first_tokens(parts: BlipParts) -> tuple[int, int]:
    """Ids of the tokens that begin a text to be matched, and one to be generated.

    The tokenizers on the hub do not know BLIP's two further words, which are the last rows of its
    embedding matrix. Where there are none, the class token stays.
    """
    tokenizer, text = parts.processor.tokenizer, parts.model.config.text_config
    known = tokenizer.get_vocab()
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    if ENCODE in known:
        return known[ENCODE], known.get(DECODE, text.bos_token_id)
    if text.vocab_size > len(known):
        return text.vocab_size - 1, text.bos_token_id
    return first, first
