"""Run a frozen image backbone once over a data set instead of once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.dual.encoder import DualEncoder, DualProcessor
from cirlab.encoders.feature_cache import FeatureCache, cached_features
from cirlab.encoders.fingerprint import fingerprint
from cirlab.encoders.image_names import place
from cirlab.errors import UserError
from cirlab.records import Image


def frozen_features(module: L.LightningModule, encoder: DualEncoder) -> FeatureCache | None:
    """Backbone features of all images of the run: galleries, references and, in fit, training data.

    Kept in `<default_root_dir>/runs/cache` for every later run with this backbone and data. None in
    an evaluation that is to skip broken images, which can only be met one by one.

    Args:
        module: attached to a trainer whose data are set up.
        encoder: its backbone is frozen.

    Raises:
        UserError: the training images cannot be listed (they are drawn anew each epoch), or
            broken ones were to be skipped.
    """
    return _kept(module, encoder.processor, encoder.image_backbone, encoder.backbone_features)


def frozen_vectors(module: L.LightningModule, encoder: DualEncoder) -> FeatureCache | None:
    """The same for unit vectors of the shared space, where the whole image side is frozen."""
    of = "vectors"
    return _kept(module, encoder.processor, encoder.image_side, encoder.encode_images, of)


def frozen_hidden(module: L.LightningModule, encoder: BlipMatcher) -> FeatureCache | None:
    """The same for BLIP's hidden images (N, H), which words look at; kept in 16 bits."""
    tower = encoder.image_tower
    # Layers, too, tell towers apart: the same weights may be padded or averaged in other ways.
    what = f"hidden {tower}"
    return _kept(module, encoder.processor, tower, encoder.hidden_images, what, torch.float16)


def _kept(
    module: L.LightningModule,
    processor: DualProcessor,
    weights: nn.Module,
    encode: Callable[[torch.Tensor], torch.Tensor],
    what: str = "",
    dtype: torch.dtype = torch.float32,
) -> FeatureCache | None:
    """What a frozen part says of all images of the run.

    Args:
        module: attached to a trainer whose data are set up.
        processor: reads pixels.
        weights: of the frozen part.
        encode: pixels (B, 3, H, W) to rows (B, F) or (B, N, H), by these weights.
        what: tells other rows by the same weights apart.
        dtype: in which rows are kept.
    """
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    fitting = trainer.state.fn == TrainerFn.FITTING
    if data.on_error == "skip":
        if not fitting:
            return None
        raise UserError(
            "cache_features: true runs over every image before training and skips none: set "
            "data.init_args.on_error to raise, or cache_features to false"
        )
    images = distinct([*(training_images(data) if fitting else []), *evaluated_images(data)])

    def compute(images: Sequence[Image]) -> Iterator[torch.Tensor]:
        loader: DataLoader[torch.Tensor | UserError] = DataLoader(
            _Pixels(images, processor),
            batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            collate_fn=_collate,
        )
        # Convolutions run several times faster so, on CPUs and on GPUs with tensor cores.
        weights.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for pixels in track(loader, description="features of the frozen backbone"):
            if isinstance(pixels, UserError):
                raise pixels
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            # Not around the yield: whoever reads the batches would compute in it as well.
            with torch.inference_mode(), trainer.precision_plugin.forward_context():
                features = encode(pixels.to(module.device))
            yield features

    state = weights.state_dict()
    parts = [what] if what else []
    parts += [fingerprint(state.items()), f"{processor.transform}", f"{trainer.precision}"]
    folder = Path(trainer.default_root_dir) / "runs" / "cache"
    return cached_features(folder, " ".join(parts), images, compute, dtype)


def training_images(data: Any) -> list[Image]:
    """Every image of a data module's training records.

    Raises:
        UserError: they cannot be listed.
    """
    listed = getattr(data, "train_images", None)
    if listed is None:
        raise UserError(
            f"cache_features: true needs a fixed set of training images, but "
            f"{type(data).__name__} draws them as it goes; set cache_features: false"
        )
    return list(listed())


def evaluated_images(data: Any) -> list[Image]:
    """Every image of the galleries and queries of a data module's benchmarks."""
    images: list[Image] = []
    for benchmark in data.benchmarks:
        images += [item for item in benchmark.gallery if isinstance(item, Image)]
        images += [query.image for query in benchmark.queries if query.image is not None]
    return images


def distinct(images: Sequence[Image]) -> list[Image]:
    """Each file, and each part of a file, once, under whatever ids."""
    return list({place(image): image for image in images}.values())


@dataclass(frozen=True)
class _Pixels(Dataset[torch.Tensor | UserError]):
    """Images as the backbone reads them; one that is broken is its own error.

    Raised in a worker, PyTorch would bury its sentence in a traceback.
    """

    images: Sequence[Image]
    processor: DualProcessor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | UserError:
        try:
            return self.processor.transform(self.images[index].load())
        except UserError as error:
            return error


def _collate(samples: Sequence[torch.Tensor | UserError]) -> torch.Tensor | UserError:
    """A batch, or the first error in it."""
    error = next((sample for sample in samples if isinstance(sample, UserError)), None)
    return error or default_collate(list(samples))
