"""BLIP's weights by name, in transformers' classes: hub, folder, zoo, or files of BLIP's own code.

One folder may hold a retrieval model and the text decoder that was trained beside it:
`BlipForImageTextRetrieval` and `BlipForConditionalGeneration` both load it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BlipConfig,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextLMHeadModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from cirlab.encoders.blip.checkpoint import DECODER, is_checkpoint_file, read_blip_checkpoint
from cirlab.encoders.blip.tower import TimmTower, is_timm
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError

# transformers' automatic class knows BLIP as a whole only; towers are also trained alone.
AutoModel.register(BlipVisionConfig, BlipVisionModel, exist_ok=True)

#: The tokenizer of all published models; BLIP's own files have none beside them.
TOKENIZER = "google-bert/bert-base-uncased"
#: Begins a text that is generated, and one that is read together with an image.
DECODE, ENCODE = "[DEC]", "[ENC]"


class _AnyTower(nn.Module):
    """Before a class of transformers': its image tower may be a network of timm's."""

    def __init__(self, config: Any) -> None:
        if not is_timm(config.vision_config):
            super().__init__(config)
            return
        # A tower without layers, to be replaced.
        empty, vision = copy.deepcopy(config), config.vision_config
        empty.vision_config = BlipVisionConfig(hidden_size=vision.hidden_size, num_hidden_layers=0)
        super().__init__(empty)
        self.config = config
        self.add_module("vision_model", TimmTower(vision))


class BlipForImageTextRetrieval(_AnyTower, transformers.BlipForImageTextRetrieval):
    """transformers' own, which does not tell of a decoder that lies beside it."""

    _keys_to_ignore_on_load_unexpected = [r"^text_decoder\.", r"position_ids$"]  # noqa: RUF012


class BlipForConditionalGeneration(_AnyTower, transformers.BlipForConditionalGeneration):
    """The same for what describes images, beside a retrieval model."""

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^(text_encoder|vision_proj|text_proj|itm_head)\.",
        r"position_ids$",
    ]


@dataclass(frozen=True)
class BlipParts:
    """A BLIP as it was loaded.

    Attributes:
        model: image tower, text encoder, projections and matching head.
        processor: of transformers, images and tokenizer.
        decoder: what describes images, or None. It shares all but its self-attention with the
            text encoder, as in BLIP's pretraining (arXiv 2201.12086, section 3.2).
    """

    model: Any
    processor: Any
    decoder: Any = None


def load_blip(
    name: str,
    *,
    tokenizer: str = TOKENIZER,
    image_size: int | None = None,
    dropout: float | None = None,
    decoder: bool = False,
    key: str = "model",
) -> BlipParts:
    """Load a BLIP for image-text retrieval.

    Args:
        name: a hub name, a folder of transformers', `zoo:name`, or a file of BLIP's own code.
        tokenizer: of a file of BLIP's own code.
        image_size: pixels; another one than the weights' has their positions interpolated. None
            keeps theirs.
        dropout: of the text side, in training; None keeps what the configuration says.
        decoder: also load the text decoder.
        key: the YAML key that names it.

    Raises:
        UserError: the weights cannot be had, do not fit, or have no decoder.
    """
    if is_checkpoint_file(name):
        parts = _of_file(Path(name), tokenizer, dropout, decoder)
    else:
        with weights_or_sentence(name, key=key):
            parts = _of_folder(resolve_folder(name), dropout, decoder)
    if image_size is not None:
        resize_images(parts, image_size)
    return parts


def _of_folder(source: str, dropout: float | None, decoder: bool) -> BlipParts:
    config: Any = BlipConfig.from_pretrained(source)
    _set_dropout(config, dropout)
    model = BlipForImageTextRetrieval.from_pretrained(source, config=config, dtype=torch.float32)
    speaker = None
    if decoder:
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
        whole, info = loaded
        if any(name.startswith(DECODER) for name in info["missing_keys"]):
            raise UserError(
                f"lm_weight is above 0, but the weights {source!r} hold no text decoder; set it "
                "to 0, or name a model that was trained with one"
            )
        speaker = share_decoder(whole.text_decoder, model)
    return BlipParts(model, AutoProcessor.from_pretrained(source), speaker)


def _of_file(path: Path, tokenizer: str, dropout: float | None, decoder: bool) -> BlipParts:
    config, state = read_blip_checkpoint(path, decoder)
    _set_dropout(config, dropout)
    with weights_or_sentence(tokenizer, key="tokenizer"):
        words = with_blip_tokens(AutoTokenizer.from_pretrained(resolve_folder(tokenizer)))
    if len(words) != config.text_config.vocab_size:
        raise UserError(
            f"tokenizer {tokenizer!r} knows {len(words)} tokens, but {path} has "
            f"{config.text_config.vocab_size}; set tokenizer to the one that it was trained with"
        )
    text = config.text_config
    text.pad_token_id, text.sep_token_id = words.pad_token_id, words.sep_token_id
    model = BlipForImageTextRetrieval(config)
    inner = {n.removeprefix(DECODER): v for n, v in state.items() if n.startswith(DECODER)}
    model.load_state_dict({n: v for n, v in state.items() if not n.startswith(DECODER)})
    speaker = None
    if decoder:
        speaker = BlipTextLMHeadModel(config.text_config)
        speaker.load_state_dict(inner)
        speaker = share_decoder(speaker, model)
    return BlipParts(model, processor_for(words, config.vision_config.image_size), speaker)


def with_blip_tokens(tokenizer: Any) -> Any:
    """A tokenizer with BLIP's two further tokens behind its words."""
    tokenizer.add_special_tokens({"bos_token": DECODE})
    tokenizer.add_tokens([ENCODE], special_tokens=True)
    return tokenizer


def processor_for(
    tokenizer: Any,
    image_size: int,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> BlipProcessor:
    """The processor: images are squeezed to a square; None takes CLIP's mean and deviation."""
    options: dict[str, Any] = {"size": {"height": image_size, "width": image_size}}
    statistics = {"image_mean": mean, "image_std": std}
    options |= {name: list(value) for name, value in statistics.items() if value is not None}
    return BlipProcessor(BlipImageProcessor(**options), tokenizer)


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is not None:
        config.text_config.hidden_dropout_prob = dropout
        config.text_config.attention_probs_dropout_prob = dropout


def share_decoder(decoder: Any, model: Any) -> Any:
    """Let a text decoder have all but its self-attention and its head from the text encoder."""
    encoder = model.text_encoder
    decoder.bert.embeddings = encoder.embeddings
    for own, theirs in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
        own.crossattention = theirs.crossattention
        own.intermediate, own.output = theirs.intermediate, theirs.output
    decoder.cls.predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
    return decoder


# ---- image size ---------------------------------------------------------------------------


def resize_images(parts: BlipParts, image_size: int) -> None:
    """Give a BLIP another image size; positions of patches are interpolated, as in BLIP's code.

    Raises:
        UserError: it is no multiple of the patch size.
    """
    vision = parts.model.config.vision_config
    parts.processor.image_processor.size = {"height": image_size, "width": image_size}
    if image_size == vision.image_size:
        return
    if is_timm(vision):
        vision.image_size = image_size
        return
    if image_size < 1 or image_size % vision.patch_size:
        raise UserError(
            f"image_size is {image_size}; set it to a multiple of the patches' "
            f"{vision.patch_size} pixels"
        )
    embeddings = parts.model.vision_model.embeddings
    side = image_size // vision.patch_size
    resized = resized_positions(embeddings.position_embedding.detach(), side)
    embeddings.position_embedding = nn.Parameter(resized)
    embeddings.image_size = vision.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1


def resized_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings of a grid of patches, interpolated bicubically to another grid.

    Args:
        positions: of the class token and a square grid in reading order. Shape (1, 1 + N, D).
        side: patches along a side of the new grid.

    Returns:
        Shape (1, 1 + side * side, D).
    """
    first, grid = positions[:, :1], positions[:, 1:]
    old = math.isqrt(grid.shape[1])
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    new = nn.functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, new.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


# ---- writing ------------------------------------------------------------------------------


def save_blip(parts: BlipParts, folder: Path) -> None:
    """Write a BLIP in transformers' layout, its decoder in the same file where it has one."""
    tensors = dict(parts.model.state_dict())
    if parts.decoder is not None:
        inner = parts.decoder.state_dict().items()
        tensors |= {f"{DECODER}{name}": value for name, value in inner}
    # safetensors keeps no two names of one tensor.
    state = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    parts.model.save_pretrained(folder, state_dict=state)
    parts.processor.save_pretrained(folder)
