"""A small BLIP without weights: what it needs before its first training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BlipConfig, BlipTextLMHeadModel, BlipVisionModel

from cirlab.encoders.blip.tower import TimmTower, timm_config
from cirlab.encoders.blip.weights import (
    DECODE,
    BlipForImageTextRetrieval,
    BlipParts,
    load_blip,
    processor_for,
    share_decoder,
    with_blip_tokens,
)
from cirlab.encoders.scratch import set_word_vectors, word_tokenizer
from cirlab.errors import UserError

#: Spread of weights at the start. transformers' own for the image tower would leave the positions
#: of patches at zero.
INITIALIZER_RANGE = 0.02


def new_blip(
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    *,
    dim: int,
    words: Sequence[str],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    decoder: bool,
    vectors: tuple[Sequence[str], np.ndarray] | None = None,
) -> BlipParts:
    """A BLIP of random weights, with one token a word.

    Args:
        vision: transformers configuration of the image tower, or the arguments of `timm_config`.
        text: that of the text encoder, and of the decoder; vocabulary size and special tokens are
            filled in.
        dim: dimensions of the space that images and texts share.
        words: the vocabulary.
        mean: of the pixels in [0, 1], a channel.
        std: of the pixels in [0, 1], a channel.
        decoder: add one.
        vectors: words and their vectors, (N, D), that the token embedding starts from.

    Raises:
        UserError: the network of timm's that is asked for is none, or gives no map.
    """
    places = text.get("max_position_embeddings", 512)
    tokenizer = with_blip_tokens(word_tokenizer(words, max_length=places))
    # A text begins with what word_tokenizer calls its beginning; BLIP's [DEC] took that name.
    tokenizer.cls_token, tokenizer.sep_token = "<bos>", tokenizer.eos_token
    filled = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.convert_tokens_to_ids(DECODE),
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": INITIALIZER_RANGE,
    }
    config: Any = BlipConfig(
        vision_config=_vision_config(vision),
        text_config=dict(text) | filled,
        image_text_hidden_size=dim,
        initializer_range=INITIALIZER_RANGE,
    )
    model = BlipForImageTextRetrieval(config)
    if vectors is not None:
        set_word_vectors(model.get_input_embeddings(), tokenizer, *vectors)
    speaker = share_decoder(BlipTextLMHeadModel(config.text_config), model) if decoder else None
    size = config.vision_config.image_size
    return BlipParts(model, processor_for(tokenizer, size, mean, std), speaker)


def _vision_config(vision: Mapping[str, Any]) -> Any:
    if "architecture" not in vision:
        return {"initializer_range": INITIALIZER_RANGE} | dict(vision)
    unknown = sorted(vision.keys() - {"architecture", "image_size", "model_args", "grid"})
    if unknown or "image_size" not in vision:
        wrong = f"has {unknown[0]!r}" if unknown else "lacks 'image_size'"
        raise UserError(
            f"from_scratch.vision {wrong}; beside architecture, a name of timm's, it takes "
            "image_size and, if need be, model_args and grid"
        )
    return timm_config(**vision)


def set_image_tower(model: Any, place: Path) -> None:
    """Give a BLIP a trained image tower.

    Args:
        model: the BLIP.
        place: a folder of transformers'; of a network of timm's the safetensors file.

    Raises:
        UserError: there is none, or it is of another architecture.
    """
    if isinstance(model.vision_model, TimmTower):
        model.vision_model.load_file(place)
    else:
        _set_transformer(model, place)


def _set_transformer(model: Any, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"from_scratch.vision_weights: there is no image tower in {folder}; train one first "
            "(`python -m cirlab fit -c experiments/zoo/blip_tower.yaml`), or set vision_weights to "
            "null"
        )
    weights = BlipVisionModel.from_pretrained(folder).state_dict()
    shapes = {name: value.shape for name, value in model.vision_model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise UserError(
            f"from_scratch.vision_weights: the image tower in {folder} is of another architecture "
            "than from_scratch.vision; give both the same configuration"
        )
    model.vision_model.load_state_dict(weights)


def set_weights(model: Any, folder: Path) -> None:
    """Give a BLIP the weights of another one of its architecture, the decoder aside.

    Raises:
        UserError: there is none, or it is of another architecture.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"from_scratch.weights: there is no BLIP in {folder}; train one first "
            "(`python -m cirlab fit -c experiments/zoo/blip_contrast.yaml`), or set weights to null"
        )
    weights = load_blip(str(folder), key="from_scratch.weights").model.state_dict()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise UserError(
            f"from_scratch.weights: the BLIP in {folder} is of another architecture or vocabulary "
            "than from_scratch; give both the same configuration"
        )
    model.load_state_dict(weights)
