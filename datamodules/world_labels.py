"""Pictures of the built-in world with what stands in each cell of their grid."""

from __future__ import annotations

from dataclasses import dataclass

from cirlab.benchmarks.base import Benchmark
from cirlab.records import LabelledImage, SampleKey
from cirlab.world.image import SceneImage
from cirlab.world.labels import cell_labels
from cirlab.world.scene import draw_scene, generator
from datamodules.base import RetrievalData
from datamodules.loading import TrainRecords


class WorldLabelData(RetrievalData):
    """Scenes with labels for the nine cells of their grid (`cirlab.world.labels`).

    Args:
        samples: pictures per epoch, fresh ones each time.
        batch_size: pictures per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 draws in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the scenes and their order.
        image_size: side of the pictures in pixels.
    """

    train_record = LabelledImage

    def __init__(
        self,
        samples: int,
        batch_size: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        image_size: int = 64,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, benchmarks, seed)
        self.samples, self.image_size = samples, image_size

    def train_dataset(self) -> TrainRecords:
        return WorldLabels(self.samples, self.seed, self.image_size)


@dataclass(frozen=True)
class WorldLabels:
    """Labelled pictures by key, each from its own seed."""

    samples: int
    seed: int
    image_size: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> LabelledImage:
        scene = draw_scene(generator("train", self.seed, key.epoch, key.index))
        image = SceneImage(f"{self.seed}-{key.epoch}-{key.index}", scene, self.image_size)
        return LabelledImage(image, cell_labels(scene))
