"""A Stable Diffusion pipeline without trained weights, whose text encoder may know words already.

Stable Diffusion reads texts by CLIP's text tower; the zoo's tiny painter begins with that of the
zoo's tiny CLIP. It is sampled as flow matching is (Lipman et al., arXiv 2210.02747; Stable
Diffusion 3, arXiv 2403.03206), by DPM-Solver++ (arXiv 2211.01095).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.names import weights_or_sentence
from cirlab.errors import UserError

#: Parts of a block as open_clip calls them and as transformers does.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def text_encoder(name: str) -> tuple[CLIPTextModel, PreTrainedTokenizerBase]:
    """The text tower of a CLIP, and its tokenizer, as pipelines of diffusers take them.

    Args:
        name: of an open_clip model with open_clip's own text tower and a tokenizer of
            transformers, named as dual encoders are.

    Raises:
        UserError: it has another tower or tokenizer.
    """
    encoder = load_dual_encoder(name)
    model: Any = getattr(encoder, "model", None)
    tokenizer: Any = getattr(getattr(encoder, "tokenizer", None), "tokenizer", None)
    own = hasattr(model, "positional_embedding") and hasattr(model, "token_embedding")
    if not own or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"from_scratch.words is {name!r}, whose text tower is not open_clip's own with a "
            "tokenizer of transformers; take zoo:tiny_clip, or another model like it"
        )
    blocks = model.transformer.resblocks
    limit, width = model.positional_embedding.shape
    config = CLIPTextConfig(
        vocab_size=len(model.token_embedding.weight),
        hidden_size=width,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=limit,
        hidden_act="gelu" if isinstance(blocks[0].mlp.gelu, nn.GELU) else "quick_gelu",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = CLIPTextModel(config)
    tower.load_state_dict(_renamed(model.state_dict(), len(blocks)), strict=False)
    tokenizer.model_max_length = limit
    return tower, tokenizer


def _renamed(weights: dict[str, Any], layers: int) -> dict[str, Any]:
    """Weights of open_clip's text tower by the names that transformers gives them."""
    found = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        found[f"final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for layer in range(layers):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for part, other in _BLOCK.items():
                found[f"{ours}.{other}.{kind}"] = weights[f"{theirs}.{part}.{kind}"]
            joined = weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", joined, strict=True):
                found[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
    return found


def new_pipeline(autoencoder: str, words: str, unet: dict[str, Any]) -> Any:
    """A `StableDiffusionPipeline` that has not learned to draw.

    Args:
        autoencoder: folder of a trained one (`PictureAutoencoder` writes it).
        words: the CLIP whose text tower it begins with.
        unet: diffusers configuration of the UNet; latents and words are filled in.

    Raises:
        UserError: there is no such autoencoder, or see `text_encoder`.
    """
    # Not at the top: it takes seconds, which runs that draw nothing need not wait.
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    if not (Path(autoencoder) / "config.json").is_file():
        raise UserError(
            f"from_scratch.autoencoder: there is no autoencoder in {autoencoder}; train one first "
            "(`python -m cirlab fit -c experiments/zoo/autoencoder.yaml`)"
        )
    with weights_or_sentence(autoencoder, "from_scratch.autoencoder"):
        latents = AutoencoderKL.from_pretrained(autoencoder)
    tower, tokenizer = text_encoder(words)
    channels, levels = latents.config.latent_channels, len(latents.config.block_out_channels)
    filled = {
        "sample_size": latents.config.sample_size >> (levels - 1),
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": tower.config.hidden_size,
    }
    return StableDiffusionPipeline(
        vae=latents,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**unet, **filled),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
