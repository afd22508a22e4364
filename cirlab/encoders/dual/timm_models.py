"""Variants of timm models that open_clip can ask for by name.

open_clip passes no keyword arguments on to timm, so a variant needs a name of its own.
Importing this module registers them.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn


@register_model
def mobilenetv2_100_same(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileNetV2 with TensorFlow's "same" padding.

    Weights that come from TensorFlow lose about nine points of ImageNet accuracy under timm's
    default, symmetric padding.
    """
    return timm.create_model("mobilenetv2_100", pretrained=pretrained, pad_type="same", **options)
