"""What evaluations keep for later ones: vectors of images under prompts, and prefixes of pictures.

The pre-processing arm of Promptable embeddings (arXiv 2505.15877): galleries are looked at once for
each prompt. A vector is known by its image, its prompt and the state of the encoder, and is not
computed again unless one of them has changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.image_names import Place, place
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.errors import UserError
from cirlab.reading.files import check_writable
from cirlab.records import Image


@dataclass(frozen=True)
class PrefixBudget:
    """Where prefixes of pictures are kept for further prompts, and how much they may take.

    Attributes:
        gib: the most that they take; what has not been used for the longest makes way.
        folder: where files lie, which serve later runs, too; null keeps prefixes in memory, for
            images that several galleries of one evaluation share.
    """

    gib: float = 1.0
    folder: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gib < math.inf:
            raise UserError(
                f"prefixes.gib is {self.gib}; set it above 0 and below infinity, or prefixes to "
                "null to keep none"
            )
        if self.folder is not None and not self.folder.strip():
            raise UserError(
                f"prefixes.folder is {self.folder!r}; name a folder, or set it to null to keep "
                "prefixes in memory"
            )

    def cache(self, identity: str) -> PrefixCache:
        """What is kept of the encoder and the template that `identity` tells."""
        return PrefixCache(Path(self.folder) if self.folder else None, self.gib, identity)


class KeptViews:
    """Unit vectors of images under prompts, from memory-mapped files.

    Args:
        prompts: V of them.
        caches: one for each.
        dim: D, of the vectors.
    """

    def __init__(
        self, prompts: Sequence[str | None], caches: Sequence[FeatureCache], dim: int
    ) -> None:
        self._caches, self._dim = dict(zip(prompts, caches, strict=True)), dim

    def __call__(
        self, places: Sequence[Place], prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        """Vectors; zero where they are not needed. Shape (V, B, D), on the CPU.

        Args:
            places: of B images.
            prompts: V of those that were kept.
            needed: shape (V, B), bool.
        """
        vectors = torch.zeros(*needed.shape, self._dim)
        for view, prompt in enumerate(prompts):
            rows = needed[view].nonzero().flatten().tolist()
            if rows:
                vectors[view, rows] = self._caches[prompt].at([places[row] for row in rows])
        return vectors


class PlacesOnly:
    """Images to {"places"}: no file is opened where vectors are kept."""

    def __call__(self, images: Sequence[Image]) -> dict[str, list[Place]]:
        return {"places": [place(image) for image in images]}


def check_folders(store: str | None, prefixes: PrefixBudget | None) -> None:
    """Refuse folders that cannot be written to.

    Raises:
        UserError: there is one.
    """
    of_prefixes = None if prefixes is None else prefixes.folder
    for key, folder in (("store", store), ("prefixes.folder", of_prefixes)):
        if folder is not None:
            check_writable(Path(folder), key)
