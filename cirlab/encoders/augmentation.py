"""Augmentation on the device, drawn from the global generator that checkpoints keep."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import affine_grid, grid_sample


def rotate(pixels: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate every image by its own random angle in [-degrees, degrees].

    Corners without a source pixel repeat the border: a black one would lie far outside the
    range of normalised pixels in some models and inside it in others.

    Args:
        pixels: Shape (B, 3, H, W).
        degrees: largest angle.

    Returns:
        Shape (B, 3, H, W).
    """
    angles = (torch.rand(len(pixels), device=pixels.device) * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    maps = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = affine_grid(maps.to(pixels.dtype), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)
