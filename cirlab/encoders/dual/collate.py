"""Collators of dual encoders: records to tensors, inside loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cirlab.encoders.dual.encoder import DualProcessor
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.records import Image, Query


@dataclass(frozen=True)
class ImageReader:
    """Images to what `DualEncoder.embed_images` takes.

    What a cache holds, where it holds them all, without decoding anything; else
    {"pixels": (B, 3, H, W)}.

    Attributes:
        processor: reads pixels.
        cache: features, vectors or hidden images by image.
        cached: which of them it holds.
    """

    processor: DualProcessor
    cache: FeatureCache | None = None
    cached: Literal["features", "vectors", "hidden"] = "features"

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        if self.cache is not None and all(image in self.cache for image in images):
            return {self.cached: self.cache(images)}
        return {"pixels": self.processor.images([image.load() for image in images])}


@dataclass(frozen=True)
class DualQueryReader:
    """Queries to {"text": tokens, "worded": (B,) bool}, {"image": ...} or both.

    A batch has "text" where any query has words; "worded" tells which ones.

    Attributes:
        images: reads the queries' images.
        tell_cut: add "cut_texts", (B,) bool: which texts are longer than the encoder reads.
    """

    images: ImageReader
    tell_cut: bool = False

    def __call__(self, queries: Sequence[Query]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        if any(query.text for query in queries):
            texts, tokenize = [query.text for query in queries], self.images.processor.tokenize
            inputs["text"] = tokenize(texts)
            inputs["worded"] = torch.tensor([bool(text) for text in texts])
            if self.tell_cut:
                inputs["cut_texts"] = tokenize.cut(texts)
        if references := [query.image for query in queries if query.image is not None]:
            inputs["image"] = self.images(references)
        return inputs
