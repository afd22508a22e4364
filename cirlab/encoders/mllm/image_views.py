"""Vectors of images under several prompts: which of them are computed, and from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cirlab.encoders.image_names import image_names
from cirlab.encoders.mllm.prefix import Prefix
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.records import Image


@dataclass(frozen=True)
class NamedImages:
    """Images to what `ImageViews` takes, with names by which prefixes are kept.

    Attributes:
        collate: reads the images.
    """

    collate: ImagePrefixCollator

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        return self.collate(images) | {"names": image_names(images)}


class ImageViews:
    """Encodes what is needed of each view, group by group.

    Args:
        images: encodes pictures under a prompt.
        by_prefix: pictures are encoded once for all prompts; otherwise anew with each.
    """

    def __init__(self, images: PromptedImages, *, by_prefix: bool) -> None:
        self._images, self._by_prefix = images, by_prefix
        #: Prefixes of earlier batches and runs; only of the weights as they are now.
        self.kept: PrefixCache | None = None

    def __call__(
        self, inputs: Mapping[str, Any], suffixes: Sequence[torch.Tensor], needed: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors; zero where they are not needed. Shape (V, B, D).

        Args:
            inputs: of B images, as `ImagePrefixCollator` or `NamedImages` makes them.
            suffixes: of V prompts, as `cirlab.encoders.mllm.prefix_tokens.suffix_ids` makes them.
            needed: shape (V, B), bool, on the CPU.
        """
        llm = self._images.llm
        device = inputs["order"].device
        vectors = torch.zeros(*needed.shape, llm.dim, device=device)
        for group, rows in row_groups(inputs):
            views = needed[:, rows].any(dim=1).nonzero().flatten().tolist()
            if not views:
                continue
            if self._by_prefix:
                names = [inputs["names"][row] for row in rows] if "names" in inputs else None
                prefix = self._prefix(group, names)
            for view in views:
                if self._by_prefix:
                    wanted = needed[view, rows]
                    found = self._images.proceed(prefix.select(wanted), suffixes[view])
                    vectors[view, rows[wanted]] = found
                else:
                    vectors[view, rows] = self._images.whole(group, suffixes[view])
        return vectors * needed[..., None].to(device)

    def _prefix(self, group: Mapping[str, torch.Tensor], names: Sequence[str] | None) -> Prefix:
        if self.kept is None or names is None:
            return self._images.prefix(group)
        found = self.kept.get(names)
        there = [prefix for prefix in found if prefix is not None]
        if len(there) == len(names):
            return Prefix.join(there).to(group["input_ids"].device)
        prefix = self._images.prefix(group)
        self.kept.put(names, prefix)
        return prefix


def row_groups(
    inputs: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, torch.Tensor], torch.Tensor]]:
    """Each group with the places of its rows among the images, (G,) on the CPU."""
    # Where each row of the groups, one after the other, belongs.
    rows = inputs["order"].argsort().cpu()
    for group in inputs["groups"]:
        count = len(group["input_ids"])
        yield group, rows[:count]
        rows = rows[count:]
