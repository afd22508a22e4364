"""Pretrained dual encoders by name: open_clip's, hub and local folders, BLIP, and the zoo."""

from __future__ import annotations

from cirlab.encoders.blip.weights import load_blip
from cirlab.encoders.dual.blip import BLIP_PREFIX, BlipEncoder
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.open_clip_models import OpenClipEncoder


def load_dual_encoder(
    name: str,
    pretrained: str | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
) -> DualEncoder:
    """Load a pretrained dual encoder.

    Args:
        name: `blip:` and a name for BLIP (`BlipEncoder`); anything else goes to open_clip
            (`OpenClipEncoder`).
        pretrained: open_clip's tag of the weights or a file.
        image_size: pixels; None is what the weights were trained with.
        max_length: tokens of a text; None takes open_clip's own, and a caption's of BLIP.

    Raises:
        UserError: the weights are neither in a local folder nor reachable, or have no place for so
            many tokens.
    """
    if name.startswith(BLIP_PREFIX):
        source = name.removeprefix(BLIP_PREFIX)
        parts = load_blip(source, image_size=image_size, key="clip")
        return BlipEncoder(source, parts, max_length)
    return OpenClipEncoder(name, pretrained, image_size=image_size, max_length=max_length)
