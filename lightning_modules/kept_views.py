"""Galleries that are looked at once for each prompt: nothing is encoded again unless it changed.

The pre-processing arm of Promptable embeddings (arXiv 2505.15877). A vector is known by its image,
its prompt and the state of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.image_names import Place, place
from cirlab.errors import UserError
from cirlab.records import Image
from lightning_modules.learner import Inputs


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


def batches(
    module: L.LightningModule,
    images: Sequence[Image],
    collate: Callable[[Sequence[Image]], Inputs],
    description: str | None = None,
) -> Iterator[Inputs]:
    """Images as an encoder reads them, in their order, read by the loader's workers.

    Args:
        module: attached to a trainer with data, on whose device they are to be.
        images: all of them.
        collate: picklable.
        description: of a progress bar; None shows none.

    Raises:
        UserError: an image is missing or broken.
    """
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    parts = _Parts(images, data.eval_batch_size, collate)
    loader: DataLoader[Inputs | UserError] = DataLoader(
        parts, batch_size=None, num_workers=min(data.num_workers, len(parts))
    )
    silent = description is None or not trainer.is_global_zero
    for inputs in track(loader, description=description or "", disable=silent):
        if isinstance(inputs, UserError):
            raise inputs
        yield trainer.strategy.batch_to_device(inputs, module.device)


@dataclass(frozen=True)
class _Parts(Dataset[Inputs | UserError]):
    """Some images at once; a broken one is its own error.

    Raised in a worker, PyTorch would bury its sentence in a traceback.
    """

    images: Sequence[Image]
    size: int
    collate: Callable[[Sequence[Image]], Inputs]

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, number: int) -> Inputs | UserError:
        try:
            return self.collate(self.images[number * self.size : (number + 1) * self.size])
        except UserError as error:
            return error
