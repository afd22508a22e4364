"""Vectors of images under prompts, apart from the evaluation's own passes through galleries.

For what is kept, and for the few images that tell a linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from cirlab.errors import UserError
from cirlab.records import Image
from lightning_modules.base import RetrievalModule
from lightning_modules.learner import Inputs
from lightning_modules.promptable.plan import Wanted


def encoded(
    module: RetrievalModule,
    wanted: Wanted,
    collate: Callable[[Sequence[Image]], Inputs],
    description: str | None = None,
) -> Iterator[torch.Tensor]:
    """Unit vectors in batches, in the order of the images, each (V, B, D).

    Args:
        module: attached to a trainer with data, encodes them.
        wanted: N images and V prompts.
        collate: a picklable function from images to the inputs of `encode_views`.
        description: of a progress bar; None shows none.

    Raises:
        UserError: an image is missing or broken.
    """
    start = 0
    for inputs in _batches(module, wanted.images, collate, description):
        end = start + len(inputs["order"])
        # Not around the yield: whoever reads the batches would compute in it as well.
        with torch.inference_mode(), module.trainer.precision_plugin.forward_context():
            vectors = module.encode_views(inputs, wanted.prompts, wanted.needed[:, start:end])
        yield vectors
        start = end


def _batches(
    module: L.LightningModule,
    images: Sequence[Image],
    collate: Callable[[Sequence[Image]], Inputs],
    description: str | None,
) -> Iterator[Inputs]:
    """Images as an encoder reads them, read by the loader's workers, on the module's device."""
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
