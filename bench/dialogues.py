"""An epoch of learning to read dialogues, over kept vectors of the images and over the images.

The text side of a dual encoder learns, its image side is frozen (`lightning_modules.chatir`): its
vectors are the same in every epoch. The first epoch, in which they are computed, is not counted.
What is saved is the share of an epoch that the image side has: most of it with photographs and a
real image tower, little with the world's small pictures. Counted in CPU seconds, so that other work
on the machine matters little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measure import Row, in_turns
from bench.training import photo_clip, photographs
from cirlab.command.cpu import tune_for_cpu
from cirlab.encoders.dual.collate import ImageReader
from cirlab.encoders.feature_cache import cached_features
from cirlab.records import Image, Pair, SampleKey
from datamodules import WorldDialogueData
from lightning_modules import ChatIR
from lightning_modules.chatir import TrainCollator

BATCH, REPEATS = 32, 3
#: Of an epoch.
PHOTOGRAPHS, SCENES = 64, 64
#: The same losses, up to rounding.
TOLERANCE = 1e-4


def run() -> list[Row]:
    """CPU seconds an epoch, reading or drawing the images included."""
    tune_for_cpu("32-true")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [_photographs(folder), _scenes(folder)]


def _photographs(folder: Path) -> Row:
    """The architecture of experiments/real/chatir_photos.yaml, without its weights."""
    encoder = photo_clip(folder).encoder
    assert encoder is not None
    encoder.save(folder / "photo_clip")
    pairs = photographs(folder)[:PHOTOGRAPHS]
    what = f"epoch of {len(pairs)} dialogues about photographs, frozen MobileNetV2"
    return epochs(f"local-dir:{folder / 'photo_clip'}", lambda epoch: pairs, folder, what)


def _scenes(folder: Path) -> Row:
    """What experiments/chatir.yaml trains, whose dialogues are drawn in the loader."""
    data = WorldDialogueData(SCENES, BATCH, BATCH).train_dataset()

    def drawn(epoch: int) -> list[Pair]:
        return [data[SampleKey(epoch, index)] for index in range(SCENES)]

    what = f"epoch of {SCENES} dialogues about the world's scenes, frozen tiny ViT"
    return epochs("zoo:tiny_clip", drawn, folder, what)


def epochs(clip: str, records: Callable[[int], Sequence[Pair]], folder: Path, name: str) -> Row:
    """Both ways in turns, each a training of its own that begins with the same weights.

    Args:
        clip: the encoder.
        records: of an epoch.
        folder: for what is kept.
        name: of what is measured.

    Raises:
        ValueError: their losses differ.
    """
    images = [pair.image for pair in records(0)]
    kept, plain = Epochs(clip, records), Epochs(clip, records)
    kept.keep(images, folder)
    row = Row(
        name,
        *in_turns(kept.run, plain.run, REPEATS),
        unit="CPU s",
        reference_name="the image side run in each epoch",
    )
    if not np.allclose(kept.losses, plain.losses, rtol=TOLERANCE, atol=0):
        raise ValueError(f"kept vectors gave losses {kept.losses}, images {plain.losses}")
    return row


class Epochs:
    """A training, an epoch at a time.

    Attributes:
        losses: of all steps so far.
    """

    def __init__(self, clip: str, records: Callable[[int], Sequence[Pair]]) -> None:
        self.module = ChatIR(clip)
        self.module.configure_model()
        # Dropout would draw its numbers in the order of the turns.
        self.module.eval()
        self.records = records
        self.collate: Callable[[Sequence[Pair]], Any] = self.module.train_collator()
        weights = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)
        self.losses: list[float] = []
        self.epoch = 0

    def keep(self, images: Sequence[Image], folder: Path) -> None:
        """Compute the vectors, and read them from now on."""
        encoder = self.module.encoder
        assert encoder is not None
        plain = ImageReader(encoder.processor)

        def vectors(images: Sequence[Image]) -> Iterator[torch.Tensor]:
            for start in range(0, len(images), BATCH):
                pixels = plain(images[start : start + BATCH])["pixels"]
                with torch.inference_mode():
                    rows = encoder.encode_images(pixels)
                yield rows

        cache = cached_features(folder, encoder.name, images, vectors)
        self.collate = TrainCollator(ImageReader(encoder.processor, cache, cached="vectors"))

    def run(self) -> float:
        """CPU seconds of the next epoch."""
        start = time.process_time()
        records = self.records(self.epoch)
        for first in range(0, len(records), BATCH):
            loss = self.module.losses(self.collate(records[first : first + BATCH]))["dialogue"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        self.epoch += 1
        return time.process_time() - start
