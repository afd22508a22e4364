"""Collators of dual encoders: records to tensors, inside loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cirlab.encoders.dual import DualProcessor
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.records import Image, Query


@dataclass(frozen=True)
class ImageReader:
    """Images to what `DualEncoder.embed_images` takes.

    {"features": (B, F)} where a cache holds them all, without decoding anything; else
    {"pixels": (B, 3, H, W)}.
    """

    processor: DualProcessor
    cache: FeatureCache | None = None

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        if self.cache is not None and all(image in self.cache for image in images):
            return {"features": self.cache(images)}
        return {"pixels": self.processor.images([image.load() for image in images])}


@dataclass(frozen=True)
class DualQueryReader:
    """Queries to {"text": tokens, "worded": (B,) bool}, {"image": ...} or both.

    A batch has "text" where any query has words; "worded" tells which ones.
    """

    images: ImageReader

    def __call__(self, queries: Sequence[Query]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        if any(query.text for query in queries):
            inputs["text"] = self.images.processor.tokenize([query.text for query in queries])
            inputs["worded"] = torch.tensor([bool(query.text) for query in queries])
        if references := [query.image for query in queries if query.image is not None]:
            inputs["image"] = self.images(references)
        return inputs
