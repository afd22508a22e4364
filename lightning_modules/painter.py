"""A small latent diffusion model from scratch: it learns to draw what captions say.

Latent diffusion (Rombach et al., arXiv 2112.10752) with the objective of Stable Diffusion 3 (Esser
et al., arXiv 2403.03206): rectified flow, noise levels drawn logit-normally. Some captions are left
out, so that guidance without a classifier (Ho and Salimans, arXiv 2207.12598) works. What is
written in the end is a slow average of the weights, in the layout of diffusers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from transformers import PreTrainedTokenizerBase

from cirlab.errors import UserError
from cirlab.imagination.scratch import new_pipeline
from cirlab.momentum import momentum_update
from cirlab.records import Pair
from lightning_modules.learner import Inputs, Learner
from lightning_modules.picture_autoencoder import pixels_of
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Diffusers' models take the noise level as one of so many steps.
_STEPS = 1000


@dataclass
class PainterFromScratch:
    """A Stable Diffusion pipeline that has not learned to draw.

    Attributes:
        autoencoder: folder of a trained one, which stays as it is.
        unet: diffusers configuration of the UNet; latents and words are filled in.
        words: the CLIP whose text tower and tokenizer it begins with.
    """

    autoencoder: str
    unet: dict[str, Any]
    words: str = "zoo:tiny_clip"


class Painter(Learner):
    """Trains the UNet and the text encoder of a pipeline on `Pair` records.

    Args:
        from_scratch: the parts it begins with.
        export_to: folder that receives the pipeline at the end of training, in float16.
        noises: of each picture in a step; a picture is read once for all of them.
        without_words: share of pictures whose caption is left out, in [0, 1].
        momentum: share of its old weights that the slow average keeps in a step, at most; it keeps
            less in the first steps.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.

    Raises:
        UserError: a number is out of range.
    """

    train_record = Pair
    shardable = False

    def __init__(
        self,
        from_scratch: PainterFromScratch,
        export_to: str,
        noises: int = 2,
        without_words: float = 0.1,
        momentum: float = 0.999,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if noises < 1:
            raise UserError(f"noises is {noises}; set it to 1 or more for each picture")
        for name, value in (("without_words", without_words), ("momentum", momentum)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; set it to a share from 0 to 1")
        self.scratch, self.export_to = from_scratch, Path(export_to)
        self.noises, self.without_words, self.momentum = noises, without_words, momentum
        self.learned: nn.ModuleDict | None = None

    def configure_model(self) -> None:
        if self.learned is not None:
            return
        scratch = self.scratch
        self._pipeline = new_pipeline(scratch.autoencoder, scratch.words, scratch.unet)
        parts = self._pipeline.components
        self.autoencoder: Any = parts["vae"].eval().requires_grad_(False)
        self.learned = nn.ModuleDict(
            {"words": parts["text_encoder"], "unet": parts["unet"]}
        ).train()
        self.slow = deepcopy(self.learned).eval().requires_grad_(False)

    def frozen_base(self) -> dict[str, str]:
        return {"autoencoder": self.scratch.autoencoder}

    def learned_names(self) -> set[str]:
        slow = {name for name in self.state_dict() if name.startswith("slow.")}
        return super().learned_names() | slow

    def train_collator(self) -> Callable[[Sequence[Pair]], Inputs]:
        return PainterCollator(self._pipeline.tokenizer, self.without_words)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Squared error of the velocity from picture to noise."""
        assert self.learned is not None
        with torch.no_grad():
            latents = self.autoencoder.encode(batch["pixels"]).latent_dist.mean.float()
            latents = latents * self.autoencoder.config.scaling_factor
        latents = latents.repeat(self.noises, 1, 1, 1)
        noise = torch.randn_like(latents)
        level = torch.sigmoid(torch.randn(len(latents), device=latents.device))
        mixed = torch.lerp(latents, noise, level[:, None, None, None])
        words = self.learned["words"](input_ids=batch["tokens"])[0].repeat(self.noises, 1, 1)
        velocity = self.learned["unet"](mixed, level * _STEPS, words).sample.float()
        return {"velocity": (velocity - (noise - latents)).square().mean()}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        assert self.learned is not None
        step = self.trainer.global_step
        momentum_update(self.slow, self.learned, min(self.momentum, (1 + step) / (10 + step)))

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        slow = deepcopy(self.slow).cpu()
        self._pipeline.register_modules(text_encoder=slow["words"], unet=slow["unet"])
        self._pipeline.register_modules(vae=deepcopy(self.autoencoder).cpu())
        for name in ("text_encoder", "unet", "vae"):
            # Half the size is enough to draw.
            for weight in getattr(self._pipeline, name).parameters():
                weight.data = weight.data.half()
        self._pipeline.save_pretrained(self.export_to)
        log.info("exported to %s", self.export_to)


@dataclass(frozen=True)
class PainterCollator:
    """Pictures in [-1, 1] with the token ids of their captions, of which some are left out."""

    tokenizer: PreTrainedTokenizerBase
    without_words: float

    def __call__(self, records: Sequence[Pair]) -> Inputs:
        """{"pixels": (B, 3, S, S) float32, "tokens": (B, L) int64}."""
        left_out = torch.rand(len(records)) < self.without_words
        texts = [
            "" if without else record.captions[0]
            for record, without in zip(records, left_out.tolist(), strict=True)
        ]
        # To the full length, as pipelines do: what stands behind a text is read as well.
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {"pixels": pixels_of([r.image for r in records]), "tokens": tokens["input_ids"]}
