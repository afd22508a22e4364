"""Tiny models with random weights, in the very files that real ones come in."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
)

from cirlab.encoders.scratch import word_tokenizer, write_clip_folder, write_llm_folder

WORDS = "a red green blue black circle square image text : make it now ,".split()


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """An open_clip folder: 32-pixel ViT, 16 dimensions."""
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    architecture = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    }
    write_clip_folder(folder, architecture, WORDS, {"mean": [0.5] * 3, "std": [0.5] * 3})
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_tiny_blip(folder: Path, seed: int = 0) -> Path:
    """A transformers folder: BLIP of two layers and 32 pixels, 16 dimensions."""
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokenizer = word_tokenizer(WORDS, max_length=32)
    text = {"vocab_size": len(tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 40}
    config = BlipConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        image_text_hidden_size=16,
    )
    torch.manual_seed(seed)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_tiny_llm(folder: Path, seed: int = 0) -> Path:
    """A transformers folder: a Mistral of two layers and 64 dimensions."""
    config = {
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    write_llm_folder(folder, config, WORDS)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder
