"""An image tower from scratch that learns to tell, for every patch, what it shows.

Token labelling (Jiang et al., arXiv 2104.10858) teaches a vision transformer by a label for each
of its tokens instead of one for the picture: from few pictures it learns what captions would take
many to teach. The zoo's multimodal LLM begins with such a tower, as real ones do with CLIP's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel

import cirlab.encoders.blip.weights  # noqa: F401 - registers BLIP's image tower
from cirlab.errors import UserError
from cirlab.records import LabelledImage
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Cells that the loss of a facet leaves out.
IGNORED = -1


class TokenLabelling(Learner):
    """Trains an image tower on `LabelledImage` records; a linear head for each facet is dropped.

    Args:
        vision: transformers configuration of a plain vision transformer, `model_type` included
            (clip_vision_model, blip_vision_model).
        labels: number of labels of each facet.
        grid: side of the grid of cells that are labelled.
        export_to: folder that receives the tower at the end of training, in transformers' layout.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = LabelledImage
    shardable = False

    def __init__(
        self,
        vision: dict[str, Any],
        labels: dict[str, int],
        export_to: str,
        grid: int = 3,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.vision, self.labels, self.grid = dict(vision), labels, grid
        self.export_to = Path(export_to)
        self.tower: Any = None
        self.cells: torch.Tensor

    def configure_model(self) -> None:
        if self.tower is not None:
            return
        rest = {key: value for key, value in self.vision.items() if key != "model_type"}
        config = AutoConfig.for_model(self.vision["model_type"], **rest)
        self.tower = AutoModel.from_config(config)
        self.heads = nn.ModuleDict(
            {facet: nn.Linear(config.hidden_size, count) for facet, count in self.labels.items()}
        )
        side = config.image_size // config.patch_size
        self.register_buffer("cells", cells_of_patches(side, self.grid), persistent=False)

    def train_collator(self) -> Callable[[Sequence[LabelledImage]], Inputs]:
        return LabelledImageCollator(tuple(self.labels), self.grid)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Cross-entropy of each facet over the patches that have a label of it."""
        outputs = self.tower(pixel_values=batch["pixels"]).last_hidden_state
        # A class token stands before the patches.
        tokens = outputs[:, -self.cells.numel() :]
        return {
            facet: cross_entropy(
                head(tokens).float().flatten(0, 1),
                batch["labels"][facet][:, self.cells].flatten(),
                ignore_index=IGNORED,
            )
            for facet, head in self.heads.items()
        }

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            self.tower.save_pretrained(self.export_to)
            log.info("exported to %s", self.export_to)


def cells_of_patches(side: int, grid: int) -> torch.Tensor:
    """The cell in which the middle of each patch lies.

    Args:
        side: patches along a side of the image.
        grid: cells along a side of the image.

    Returns:
        Shape (side * side,), int64, both in reading order.
    """
    line = ((torch.arange(side) + 0.5) * grid / side).long()
    return (line[:, None] * grid + line).flatten()


@dataclass(frozen=True)
class LabelledImageCollator:
    """Pictures in [-1, 1], and the labels of their cells by facet."""

    facets: tuple[str, ...]
    grid: int

    def __call__(self, records: Sequence[LabelledImage]) -> Inputs:
        """{"pixels": (B, 3, S, S) float32, "labels": facet to (B, grid * grid) int64}.

        Raises:
            UserError: a record lacks a facet, or has another number of cells.
        """
        for record in records:
            for facet in self.facets:
                found = len(record.labels.get(facet, ()))
                if found != self.grid**2:
                    raise UserError(
                        f"image {record.image.id!r} has {found} labels of {facet!r}, but grid "
                        f"{self.grid} takes {self.grid**2}; give one for each cell, {IGNORED} for "
                        "none"
                    )
        pixels = np.stack([np.asarray(record.image.load()) for record in records])
        return {
            "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1,
            "labels": {
                facet: torch.tensor([record.labels[facet] for record in records])
                for facet in self.facets
            },
        }
