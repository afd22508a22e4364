"""Tiny multimodal LLMs with random weights, in the very files that real ones come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from cirlab.encoders.mllm.scratch import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    subword_tokenizer,
    write_mllm_folder,
)

TEXTS = ["a red circle", "a green square", "make it blue", "Describe this image in one word:"]
VISION = {
    "model_type": "clip_vision_model",
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
QWEN_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
        "patch_size": 14,
    },
}
#: Models of every layout that is spoken of, by the names the tests use.
LAYOUTS = ("llava-llama", "llava-phi3", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Sizes that LLaVA-NeXT cuts pictures into tiles at, (height, width) in pixels.
TILED_SIZES = [[32, 64], [64, 32], [64, 64]]


def write_tiny_mllm(folder: Path, layout: str = "llava-llama", seed: int = 0) -> Path:
    """A transformers folder: two layers of 32 dimensions under a tower of two layers."""
    tokenizer = subword_tokenizer(TEXTS, size=320, max_length=256)
    if layout.startswith("llava-"):
        write_mllm_folder(folder, VISION, TEXT | {"model_type": layout[6:]}, tokenizer)
    elif layout == "llava_next":
        _write_llava_next(folder, tokenizer)
    else:
        _write_qwen(folder, layout, tokenizer)
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def _write_llava_next(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """As llava-hf/llava-v1.6-mistral-7b-hf has it: the whole picture, then its tiles."""
    AutoConfig.for_model(
        "llava_next",
        text_config=TEXT | {"model_type": "mistral", "vocab_size": len(tokenizer)},
        vision_config=VISION,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=TILED_SIZES,
    ).save_pretrained(folder)
    side = VISION["image_size"]
    LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=TILED_SIZES,
        ),
        tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    ).save_pretrained(folder)


def _write_qwen(folder: Path, layout: str, tokenizer: PreTrainedTokenizerFast) -> None:
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(name) for name in names)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    AutoConfig.for_model(
        layout,
        text_config=TEXT | {"head_dim": 16, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=QWEN_VISION[layout],
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    ).save_pretrained(folder)
    template = CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    pixels = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 16}
    processors = __import__("transformers", fromlist=["x"])
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[layout]
    getattr(processors, f"{name}Processor")(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=template,
    ).save_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
