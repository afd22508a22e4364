"""How BLIP's training changes pictures, inside loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
from torchvision.transforms.v2 import (
    Compose,
    InterpolationMode,
    RandAugment,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from cirlab.encoders.dual.collate import ImageReader
from cirlab.errors import UserError
from cirlab.records import Image


@dataclass
class Augmentation:
    """How training pictures are changed; BLIP's retrieval training by default.

    BLIP draws its operations from ten; torchvision's RandAugment has four more (colour, contrast,
    posterize, solarize).

    Attributes:
        crop: smallest share of the picture's area that a crop keeps; 1 keeps all.
        flip: mirror every second picture; wrong where captions tell left from right.
        operations: changes of RandAugment (arXiv 1909.13719), one after the other.
        magnitude: their strength, from 0 to 30; BLIP takes half of what is possible.
    """

    crop: float = 0.5
    flip: bool = True
    operations: int = 2
    magnitude: int = 15

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"augmentation.crop is {self.crop}; choose a share above 0, at most 1")
        if self.operations < 0 or not 0 <= self.magnitude <= 30:
            raise UserError(
                f"augmentation has {self.operations} operations of magnitude {self.magnitude}; "
                "give 0 operations or more, and a magnitude from 0 to 30"
            )

    def transform(self, size: int) -> Compose:
        """PIL image to PIL image, drawn from the global generator.

        Args:
            size: side of what comes out, pixels.
        """
        crop = RandomResizedCrop(
            size, scale=(self.crop, 1.0), interpolation=InterpolationMode.BICUBIC
        )
        steps = [crop, *([RandomHorizontalFlip()] if self.flip else [])]
        return Compose([*steps, RandAugment(self.operations, self.magnitude)])


@dataclass(frozen=True)
class AugmentedReader(ImageReader):
    """Images to pixels, each changed as the augmentation draws it."""

    augment: Any = None

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        changed: list[PIL.Image.Image] = [self.augment(image.load()) for image in images]
        return {"pixels": self.processor.images(changed)}
