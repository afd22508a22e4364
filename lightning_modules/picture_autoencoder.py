"""An autoencoder from scratch, in whose latents a diffusion model draws.

Latent diffusion (Rombach et al., arXiv 2112.10752) leaves fine detail to a variational autoencoder
and draws in its latents, of which there are far fewer than pixels. This module makes the one of the
zoo's tiny painter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable

from cirlab.distributed import gather
from cirlab.errors import UserError
from cirlab.records import Image, Pair
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Share of its old value that the measured spread of the latents keeps in a step.
_SPREAD_MOMENTUM = 0.99
#: Logarithm of the latents' variance in the first step.
_FIRST_LOGVAR = -4.0


class PictureAutoencoder(Learner):
    """Trains diffusers' `AutoencoderKL` on the pictures of `Pair` records.

    Squared error and divergence from a normal distribution are the two terms of a variational
    bound; a latent that helps less than it costs falls silent.

    Args:
        autoencoder: diffusers configuration of the autoencoder.
        export_to: folder that receives it at the end of training, in diffusers' layout.
        kl_weight: of the divergence, mean over latents, beside the mean squared error of pixels in
            [-1, 1].
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.

    Raises:
        UserError: the weight is negative.
    """

    train_record = Pair
    shardable = False

    def __init__(
        self,
        autoencoder: dict[str, Any],
        export_to: str,
        kl_weight: float = 5e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if not kl_weight >= 0:
            raise UserError(f"kl_weight is {kl_weight}; set it to 0 or more")
        self.config, self.export_to, self.kl_weight = autoencoder, Path(export_to), kl_weight
        self.autoencoder: Any = None
        self.spread: torch.Tensor

    def configure_model(self) -> None:
        if self.autoencoder is not None:
            return
        # Not at the top: it takes seconds, which other methods need not wait.
        from diffusers import AutoencoderKL

        self.autoencoder = AutoencoderKL(**self.config)
        last = self.autoencoder.quant_conv or self.autoencoder.encoder.conv_out
        with torch.no_grad():
            # What is drowned in noise from the beginning teaches the decoder nothing for long.
            last.bias.chunk(2)[1].fill_(_FIRST_LOGVAR)
        #: Variance of latents over pictures and places, which drawing divides out.
        self.register_buffer("spread", torch.ones(()))

    def learned_names(self) -> set[str]:
        return super().learned_names() | {"spread"}

    def train_collator(self) -> Callable[[Sequence[Pair]], Inputs]:
        return pixels_of_pairs

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        pixels = batch["pixels"]
        latents = self.autoencoder.encode(pixels).latent_dist
        decoded = self.autoencoder.decode(latents.sample()).sample
        mean, logvar = latents.mean.float(), latents.logvar.float()
        with torch.no_grad():
            variance = gather(mean.detach().var().reshape(1)).mean()
            self.spread.lerp_(variance, 1 - _SPREAD_MOMENTUM)
        divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        return {
            "pixels": (decoded.float() - pixels).square().mean(),
            "divergence": self.kl_weight * divergence,
        }

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            self.autoencoder.register_to_config(scaling_factor=float(self.spread) ** -0.5)
            self.autoencoder.save_pretrained(self.export_to)
            log.info("exported to %s", self.export_to)


def pixels_of(images: Sequence[Image]) -> torch.Tensor:
    """Pictures of one size in [-1, 1], as diffusers' autoencoders take them. (B, 3, S, S)."""
    stacked = np.stack([np.asarray(image.load()) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def pixels_of_pairs(records: Sequence[Pair]) -> Inputs:
    """{"pixels": (B, 3, S, S) float32}."""
    return {"pixels": pixels_of([record.image for record in records])}
