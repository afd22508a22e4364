"""Pairs of a picture and its captions to the batch that a dual encoder learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cirlab.encoders.dual.collate import ImageReader
from cirlab.losses import image_ids
from cirlab.records import Pair


@dataclass(frozen=True)
class PairCollator:
    """Pairs to {"ids", "text", "image"}, a random caption for each."""

    images: ImageReader

    def __call__(self, records: Sequence[Pair]) -> dict[str, Any]:
        captions = [random.choice(pair.captions) for pair in records]
        images = [pair.image for pair in records]
        return {
            "ids": image_ids(images),
            "text": self.images.processor.tokenize(captions),
            "image": self.images(images),
        }
