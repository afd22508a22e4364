"""A convolutional network of timm's as BLIP's image tower.

BLIP's own tower is a vision transformer, which takes millions of photographs to learn. Where there
are thousands, and no weights of BLIP's, a network that was trained on ImageNet can stand in its
place: the cells of its last map are the patches that words look at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import BlipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cirlab.errors import UserError


def is_timm(vision: Any) -> bool:
    """Whether a configuration of an image tower names a network of timm's."""
    return getattr(vision, "architecture", None) is not None


def timm_config(
    architecture: str,
    image_size: int,
    model_args: dict[str, Any] | None = None,
    grid: int | None = None,
) -> BlipVisionConfig:
    """Such a configuration; it lies in a folder's config.json as any other tower's.

    Args:
        architecture: timm's name.
        image_size: pixels.
        model_args: further arguments of `timm.create_model`.
        grid: cells along a side, of which each is a mean of the map's; None keeps the map's own.

    Raises:
        UserError: timm has no such network, it has no map of the image, or not so many cells.
    """
    args = model_args or {}
    if not timm.is_model(architecture):
        raise UserError(
            f"from_scratch.vision.architecture is {architecture!r}, which timm does not have; "
            "`timm.list_models()` tells what it has"
        )
    # Without weights: only to see the shape of what comes out.
    with torch.device("meta"), torch.no_grad():
        network = _network(architecture, args).eval()
        features = network.forward_features(torch.empty(1, 3, image_size, image_size))
    if features.ndim != 4 or features.shape[2] != features.shape[3]:
        raise UserError(
            f"from_scratch.vision.architecture {architecture!r} gives {tuple(features.shape[1:])} "
            "for an image, but a map of cells (channels, height, width) is needed; choose a "
            "convolutional network"
        )
    if grid is not None and not 1 <= grid <= features.shape[2]:
        raise UserError(
            f"from_scratch.vision.grid is {grid}, but the last map of {architecture} has "
            f"{features.shape[2]} cells along a side; choose from 1 to that"
        )
    options: dict[str, Any] = {"architecture": architecture, "model_args": args, "grid": grid}
    # With no heads transformers, which would build a vision transformer of it, stops instead.
    options |= {"num_attention_heads": 0, "hidden_size": features.shape[1]}
    return BlipVisionConfig(image_size=image_size, **options)


class TimmTower(nn.Module):
    """A network of timm's that answers as BLIP's `vision_model` does.

    Its hidden image is the mean of the last map, in the place of a class token, and the map's cells
    in reading order, or means of neighbouring ones: (B, 1 + cells, H).

    Args:
        config: see `timm_config`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.network = _network(config.architecture, config.model_args)
        self.grid: int | None = config.grid

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """A hidden image from pixels (B, 3, S, S)."""
        last = self.network.forward_features(pixel_values)
        cells = last if self.grid is None else adaptive_avg_pool2d(last, self.grid)
        mean = last.mean(dim=(2, 3))
        hidden = torch.cat([mean[:, None], cells.flatten(2).mT], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=mean)

    def extra_repr(self) -> str:
        return f"grid={self.grid}"

    def load_file(self, path: Path) -> None:
        """Take the weights of a safetensors file of timm's; a classifier in it is left out.

        Raises:
            UserError: there is no such file, or it is of another network.
        """
        if not path.is_file():
            raise UserError(
                f"from_scratch.vision_weights: there is no file {path}; point it to a safetensors "
                "file of timm's weights, or set it to null"
            )
        weights = {name: value.float() for name, value in load_file(path).items()}
        # How many batches a norm has seen, which some files leave out, is for training alone.
        own = {
            name: value.shape
            for name, value in self.network.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        wrong = [n for n, shape in own.items() if n not in weights or weights[n].shape != shape]
        if wrong:
            raise UserError(
                f"from_scratch.vision_weights: {len(wrong)} weights of {self.config.architecture} "
                f"are not in {path} or have another shape there, {wrong[0]!r} first; name the "
                "weights of that network"
            )
        self.network.load_state_dict({name: weights[name] for name in own}, strict=False)


def _network(architecture: str, args: dict[str, Any]) -> Any:
    return timm.create_model(architecture, num_classes=0, **args)
