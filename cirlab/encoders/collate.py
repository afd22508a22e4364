"""Collators of dual encoders: records to tensors, inside loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cirlab.encoders.dual import DualProcessor
from cirlab.records import Image, Query


@dataclass(frozen=True)
class PixelCollator:
    """Gallery images to {"pixels": (B, 3, H, W)}."""

    processor: DualProcessor

    def __call__(self, records: Sequence[Image]) -> dict[str, Any]:
        return {"pixels": self.processor.images([image.load() for image in records])}


@dataclass(frozen=True)
class DualQueryCollator:
    """Queries to {"text": tokens} and, where they have a reference image, "pixels"."""

    processor: DualProcessor

    def __call__(self, records: Sequence[Query]) -> dict[str, Any]:
        inputs: dict[str, Any] = {"text": self.processor.tokenize([q.text for q in records])}
        references = [query.image.load() for query in records if query.image is not None]
        if references:
            inputs["pixels"] = self.processor.images(references)
        return inputs
