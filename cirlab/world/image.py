"""A scene as the image record that benchmarks and data modules hand out."""

from __future__ import annotations

from dataclasses import dataclass

import PIL.Image

from cirlab.records import Image, short_hash
from cirlab.world.render import render
from cirlab.world.scene import Scene


@dataclass(frozen=True)
class SceneImage(Image):
    """A picture of a scene, drawn whenever it is loaded.

    Attributes:
        image_size: side in pixels.
    """

    scene: Scene
    image_size: int = 64

    @property
    def version(self) -> str:
        return short_hash(f"{self.scene!r} {self.image_size}".encode())

    def load(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(render(self.scene, self.image_size))
