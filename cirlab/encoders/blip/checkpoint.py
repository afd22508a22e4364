"""Checkpoints of BLIP's own training code, as transformers names and shapes their weights.

Li et al., arXiv 2201.12086, published `.pth` files (model_base_retrieval_coco.pth and others), and
ChatIR (arXiv 2305.20062) one of the same names (chatir_weights.ckpt). Names and sizes are those of
github.com/salesforce/BLIP, models/vit.py, med.py and blip_retrieval.py. No configuration lies
beside such a file: it follows from the shapes.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextLMHeadModel

from cirlab.errors import UserError

#: How names of such files end.
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
#: Width of an attention head in every published model; no weight tells it.
HEAD_WIDTH = 64
#: Of the layer norms of the vision transformer there; transformers' own default is another.
VISION_NORM_EPS = 1e-6
#: Prefix of a decoder's weights, in both layouts.
DECODER = "text_decoder."

#: A weight that every file has; what stands before it stands before all names.
_LANDMARK = "visual_encoder.cls_token"
#: Where a file keeps its weights.
_HOLDERS = ("model", "state_dict")
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LAYER_NAME = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
#: Queues, momentum encoders and what only counts: of training, not of the model.
_TRAINING_ONLY = re.compile(
    r"(visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m)\."
    r"|(image|text|idx|ptr)_queue$|queue_ptr$|temp$"
    r"|.*\bposition_ids$"
)


def is_checkpoint_file(name: str) -> bool:
    """Whether a name stands for such a file rather than for a folder or a model of a hub."""
    return Path(name).suffix in SUFFIXES


def read_blip_checkpoint(path: Path, decoder: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    """Configuration and weights for transformers' BLIP classes.

    Args:
        path: the file. Nothing in it is run: it may hold tensors and plain values only.
        decoder: also read the text decoder, which files of pretraining hold.

    Returns:
        The `BlipConfig`, whose `logit_scale_init_value` is the learned temperature's, and the
        weights of `BlipForImageTextRetrieval`, with `decoder` also those below "text_decoder.".

    Raises:
        UserError: there is no such file, it is no BLIP, or its names or shapes do not map; all that
            do not are named.
    """
    weights = _weights(path)
    found: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for name, value in weights.items():
        try:
            new = transformers_name(name)
        except KeyError:
            unknown.append(name)
            continue
        if new is not None and (decoder or not new.startswith(DECODER)):
            found[new] = value.float()
    config = _config(weights, path)
    _check(found, unknown, config, decoder=decoder, path=path)
    return config, found


def transformers_name(name: str) -> str | None:
    """The name of a weight in transformers' layout; None for what only training needs.

    Raises:
        KeyError: nothing of BLIP has such a name.
    """
    if _TRAINING_ONLY.match(name):
        return None
    part, _, rest = name.partition(".")
    if part in ("text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head"):
        return name
    if part != "visual_encoder":
        raise KeyError(name)
    if layer := _LAYER_NAME.fullmatch(rest):
        number, inner, kind = layer.groups()
        return f"vision_model.encoder.layers.{number}.{_LAYER[inner]}.{kind}"
    if rest in ("cls_token", "pos_embed"):
        return f"vision_model.{_VISION[rest]}"
    inner, _, kind = rest.rpartition(".")
    return f"vision_model.{_VISION[inner]}.{kind}"


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights by their names in BLIP's code, without what a trainer put before them."""
    if not path.is_file():
        raise UserError(f"there is no BLIP checkpoint {path}; download it, or name another model")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is cut off, or holds more than tensors and plain values, which is not loaded "
            f"as it may run code (cause: {reason}); choose another checkpoint"
        ) from error
    holder = next((key for key in _HOLDERS if isinstance(content.get(key), Mapping)), None)
    named = content if holder is None else content[holder]
    landmark = next((name for name in named if name.endswith(_LANDMARK)), None)
    if landmark is None:
        raise UserError(
            f"{path} is no BLIP checkpoint: it holds no {_LANDMARK}; name a file of "
            "github.com/salesforce/BLIP or ChatIR, or a folder of transformers'"
        )
    prefix = landmark.removesuffix(_LANDMARK)
    return {name.removeprefix(prefix): value for name, value in named.items()}


def _config(weights: Mapping[str, torch.Tensor], path: Path) -> Any:
    """The configuration that the shapes tell."""
    try:
        patch = weights["visual_encoder.patch_embed.proj.weight"]
        positions = weights["visual_encoder.pos_embed"].shape[1] - 1
        words = weights["text_encoder.embeddings.word_embeddings.weight"]
        text_positions = weights["text_encoder.embeddings.position_embeddings.weight"]
        feed_forward = weights["text_encoder.encoder.layer.0.intermediate.dense.weight"]
        dim = weights["vision_proj.weight"].shape[0]
        hidden = weights["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"{path} is no checkpoint of BLIP's retrieval model: it lacks {error.args[0]}; name "
            "one that holds image tower, text encoder and projections"
        ) from error
    width, text_width = patch.shape[0], words.shape[1]
    temperature = float(weights.get("temp", torch.tensor(0.07)))
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": _count(weights, r"visual_encoder\.blocks\.(\d+)\."),
            "num_attention_heads": width // HEAD_WIDTH,
            "image_size": math.isqrt(positions) * patch.shape[-1],
            "patch_size": patch.shape[-1],
            "layer_norm_eps": VISION_NORM_EPS,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": feed_forward.shape[0],
            "num_hidden_layers": _count(weights, r"text_encoder\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": text_width // HEAD_WIDTH,
            "max_position_embeddings": text_positions.shape[0],
            "vocab_size": words.shape[0],
            # The last two words are [DEC], which begins what is generated, and [ENC].
            "bos_token_id": words.shape[0] - 2,
        },
        image_text_hidden_size=dim,
        logit_scale_init_value=-math.log(temperature),
    )


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    numbers = {int(found[1]) for name in weights if (found := re.match(pattern, name))}
    return max(numbers, default=-1) + 1


def _check(
    found: Mapping[str, torch.Tensor],
    unknown: list[str],
    config: Any,
    *,
    decoder: bool,
    path: Path,
) -> None:
    """Refuse weights that are not exactly those of the model."""
    shapes = expected_shapes(config, decoder=decoder)
    unknown += [name for name in found if name not in shapes]
    missing = [name for name in shapes if name not in found]
    other = [n for n, value in found.items() if n in shapes and value.shape != shapes[n]]
    troubles = {
        "map to nothing": sorted(unknown),
        "are missing": sorted(missing),
        "have another shape than the rest implies": sorted(other),
    }
    told = [f"{', '.join(names)} {what}" for what, names in troubles.items() if names]
    if told:
        raise UserError(
            f"{path} does not fit transformers' BLIP for image-text retrieval: {'; '.join(told)}; "
            "name a checkpoint of BLIP's retrieval or pretraining model"
        )


def expected_shapes(config: Any, decoder: bool) -> dict[str, torch.Size]:
    """Shapes of all weights of the retrieval model, and of a decoder beside it, by name."""
    with torch.device("meta"):
        state = BlipForImageTextRetrieval(config).state_dict()
        if decoder:
            inner = BlipTextLMHeadModel(config.text_config).state_dict()
            state = {**state, **{f"{DECODER}{name}": value for name, value in inner.items()}}
    return {name: value.shape for name, value in state.items()}
