"""A Stable Diffusion of a few thousand random weights, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cirlab.encoders.scratch import word_tokenizer
from cirlab.world.vocabulary import vocabulary

#: Tokens that its text encoder reads.
LIMIT = 16
SIZE = 16


def write_pipeline(folder: Path, seed: int = 0) -> Path:
    """It draws 16x16 pixels from latents of a quarter of the side."""
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = word_tokenizer(vocabulary(), max_length=LIMIT)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=LIMIT,
            eos_token_id=tokenizer.eos_token_id,
        )
        blocks: dict[str, Any] = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
        autoencoder = AutoencoderKL(
            **blocks,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            sample_size=SIZE,
        )
        unet = UNet2DConditionModel(
            sample_size=SIZE // 4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            attention_head_dim=1,
            cross_attention_dim=8,
        )
        pipeline = StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder
