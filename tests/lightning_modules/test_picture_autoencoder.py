"""An autoencoder learns pictures, and tells how far its latents spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import PIL.Image
import pytest
import torch

from cirlab.errors import UserError
from cirlab.records import DecodedImage, Pair
from datamodules import WorldData
from lightning_modules import PictureAutoencoder

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": [4, 4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 2,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}


def fit(module: Any, data: WorldData) -> None:
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)


def pictures(samples: int) -> WorldData:
    return WorldData(samples=samples, batch_size=4, eval_batch_size=4, image_size=16, seed=3)


def test_what_is_written_is_what_was_learned_with_its_spread(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    module = PictureAutoencoder(SMALL, str(tmp_path))
    fit(module, pictures(12))
    written = AutoencoderKL.from_pretrained(tmp_path)
    for name, weight in module.autoencoder.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], weight.cpu(), rtol=0, atol=0)
    assert written.config.scaling_factor == pytest.approx(float(module.spread) ** -0.5)
    assert float(module.spread) != 1.0
    assert "spread" in module.learned_names()


def test_the_losses_are_squared_error_and_divergence(tmp_path: Path) -> None:
    module = PictureAutoencoder(SMALL, str(tmp_path), kl_weight=0.25)
    module.configure_model()
    picture = PIL.Image.new("RGB", (16, 16), (255, 0, 0))
    batch = module.train_collator()([Pair(DecodedImage("a", picture), ("a red square",))])
    assert batch["pixels"][0, :, 3, 5].tolist() == [1.0, -1.0, -1.0]
    torch.manual_seed(0)
    terms = module.losses(batch)
    with torch.no_grad():
        latents = module.autoencoder.encode(batch["pixels"]).latent_dist
        torch.manual_seed(0)
        decoded = module.autoencoder.decode(latents.sample()).sample
    error = torch.nn.functional.mse_loss(decoded, batch["pixels"])
    torch.testing.assert_close(terms["pixels"].detach(), error)
    # Diffusers sums the divergence over the latents of a picture.
    expected = 0.25 * latents.kl().mean() / latents.mean[0].numel()
    torch.testing.assert_close(terms["divergence"].detach(), expected)


def test_a_negative_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kl_weight is -1"):
        PictureAutoencoder(SMALL, str(tmp_path), kl_weight=-1)
