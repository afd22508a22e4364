"""Tiny BLIPs with random weights: transformers' folders, and files as BLIP's own code has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.scratch import new_blip
from cirlab.encoders.blip.weights import save_blip
from cirlab.encoders.scratch import word_tokenizer
from cirlab.records import DecodedImage, Pair
from lightning_modules.blip import BlipFromScratch

WORDS = "a red green blue black white circle square on the left right of , is it ? yes no".split()
VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    # As in BLIP's own code, whose files tell nothing of it.
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 40,
}
COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange")
#: Names of BLIP's own code by those of transformers', after its models/vit.py; written down apart
#: from what the repository reads such files with.
OWN_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
)


def scratch(**options: Any) -> BlipFromScratch:
    """Of 64 pixels, the world's size."""
    return BlipFromScratch(VISION | {"image_size": 64}, TEXT, **({"embed_dim": 16} | options))


def tiny_blip(seed: int = 0, decoder: bool = False, max_length: int = 16) -> BlipMatcher:
    """A BLIP of 32 pixels and 16 dimensions, in eval mode."""
    torch.manual_seed(seed)
    half = (0.5, 0.5, 0.5)
    parts = new_blip(VISION, TEXT, dim=16, words=WORDS, mean=half, std=half, decoder=decoder)
    # At random spreads that let outputs differ visibly.
    for parameter in parts.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return BlipMatcher("tiny", parts, max_length).eval()


def write_tiny_blip(folder: Path, seed: int = 0, decoder: bool = False) -> Path:
    """A folder of transformers'."""
    save_blip(tiny_blip(seed, decoder).parts, folder)
    return folder


def own_name(name: str) -> str:
    """The name of a weight in BLIP's own code."""
    for pattern, replacement in OWN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def own_checkpoint(encoder: BlipMatcher) -> dict[str, torch.Tensor]:
    """The weights as BLIP's retrieval training saves them, with all that only training needs."""
    state = {own_name(name): value for name, value in encoder.model.state_dict().items()}
    slow = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    state |= {
        name.replace(".", "_m.", 1): value + 1
        for name, value in state.items()
        if name.startswith(slow)
    }
    if encoder.decoder is not None:
        inner = encoder.decoder.state_dict().items()
        state |= {f"text_decoder.{name}": value for name, value in inner}
    return state | {
        "text_encoder.embeddings.position_ids": torch.arange(32)[None],
        "image_queue": torch.randn(16, 8),
        "text_queue": torch.randn(16, 8),
        "idx_queue": torch.full((1, 8), -100),
        "ptr_queue": torch.zeros(1, dtype=torch.long),
        "temp": torch.tensor(0.05),
    }


def write_tokenizer(folder: Path) -> str:
    """The tokenizer alone, without BLIP's two further tokens, as bert-base-uncased has none."""
    tokenizer = word_tokenizer(WORDS, max_length=32)
    tokenizer.cls_token, tokenizer.sep_token = "<bos>", "<eos>"
    tokenizer.save_pretrained(folder)
    return str(folder)


def pair(number: int, colour: str, *captions: str) -> Pair:
    picture = PIL.Image.new("RGB", (32, 32), colour)
    return Pair(DecodedImage(str(number), picture), captions or (f"a {colour} circle",))


def pairs(count: int) -> list[Pair]:
    """Pictures of one colour each, with ids of their own."""
    return [pair(number, COLOURS[number % len(COLOURS)]) for number in range(count)]
