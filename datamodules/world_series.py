"""Which scenes of the built-in world a sample's key means: series of them, decided by the seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cirlab.records import SampleKey
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene, generator
from cirlab.world.series import Family, draw_family, draw_series

#: Most samples that may show one scene and variations of it.
MAX_SERIES = 16


@dataclass(frozen=True)
class SceneSource:
    """Scenes by key; consecutive indices share a series.

    Attributes:
        samples: records per epoch.
        seed: of the scenes, and of all that is said of them.
        series: this many samples show one scene and variations of it.
        fresh: draw new scenes in every epoch; false repeats the first epoch's.
        image_size: side of the pictures in pixels.
    """

    samples: int
    seed: int
    series: int
    fresh: bool
    image_size: int

    def __len__(self) -> int:
        return self.samples

    def place(self, key: SampleKey) -> tuple[int, int, int]:
        """(epoch, number of the series, member of it)."""
        epoch = key.epoch if self.fresh else 0
        return epoch, key.index // self.series, key.index % self.series

    def family(self, key: SampleKey) -> Family:
        """The family that the samples of the series share."""
        epoch, group, _ = self.place(key)
        return _family(self.seed, epoch, group)

    def shown(self, key: SampleKey) -> SceneImage:
        """The sample's own member of a scene and its variations."""
        epoch, group, member = self.place(key)
        return self.image(key, _scenes(self.seed, epoch, group, self.series)[member], member)

    def image(self, key: SampleKey, scene: Scene, member: int) -> SceneImage:
        """Known by one id wherever in its series' samples it appears."""
        epoch, group, _ = self.place(key)
        return SceneImage(f"{self.seed}-{epoch}-{group}-{member}", scene, self.image_size)

    def generator(self, key: SampleKey, *, anew: bool = False) -> np.random.Generator:
        """For what is one sample's own.

        Args:
            key: of the sample.
            anew: another one in every epoch, also where scenes stay the same.
        """
        epoch, group, member = self.place(key)
        return generator("train", self.seed, key.epoch if anew else epoch, group, member + 1)


# The samples of a series are asked for one after another.
@lru_cache(maxsize=2)
def _scenes(seed: int, epoch: int, group: int, size: int) -> tuple[Scene, ...]:
    return draw_series(generator("train", seed, epoch, group), size)


@lru_cache(maxsize=2)
def _family(seed: int, epoch: int, group: int) -> Family:
    return draw_family(generator("train", seed, epoch, group))
