"""Pictures of the built-in world, against reading them from memory and against drawing anew.

Counted in CPU seconds of one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import PIL.Image

from bench.measure import Row, in_turns
from cirlab.world import render as renderer
from cirlab.world.render import render
from cirlab.world.scene import Scene, draw_scene, generator

T = TypeVar("T")

IMAGE_SIZE = 64
SCENES, FEW_SCENES = 2_000, 50
REPEATS = 5


def run() -> list[Row]:
    """Pictures per CPU second, five times in turns."""
    scenes = [draw_scene(generator("val", 0, i)) for i in range(SCENES)]
    few = scenes[:FEW_SCENES]
    files = [jpeg(scene) for scene in scenes]
    name = f"world rendering, {IMAGE_SIZE} pixels"
    return [
        _row(name, "JPEG from memory", lambda: rate(render, scenes), lambda: rate(decode, files)),
        _row(name, "nothing kept", lambda: warm_rate(scenes), lambda: rate(draw_anew, few)),
        _row(
            f"drawing a scene and rendering it, {IMAGE_SIZE} pixels",
            "JPEG from memory",
            lambda: rate(fresh, range(SCENES)),
            lambda: rate(decode, files),
        ),
    ]


def rate(work: Callable[[T], object], items: Sequence[T]) -> float:
    """Items per CPU second of this process."""
    start = time.process_time()
    for item in items:
        work(item)
    return len(items) / (time.process_time() - start)


def warm_rate(scenes: Sequence[Scene]) -> float:
    """Pictures per CPU second, once masks and backgrounds are made."""
    rate(render, scenes)
    return rate(render, scenes)


def fresh(number: int) -> None:
    """What training does: a scene from its seed, and its picture."""
    render(draw_scene(generator("train", 0, number)), IMAGE_SIZE)


def draw_anew(scene: Scene) -> None:
    """The same picture without masks and backgrounds that earlier ones have left."""
    for made_once in (renderer.sprite, renderer.background, renderer.drops):
        made_once.cache_clear()
    render(scene, IMAGE_SIZE)


def decode(data: bytes) -> None:
    """What a data set on disk would cost, the disk apart."""
    PIL.Image.open(io.BytesIO(data)).convert("RGB")


def jpeg(scene: Scene) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(render(scene, IMAGE_SIZE)).save(buffer, format="jpeg", quality=90)
    return buffer.getvalue()


def _row(name: str, reference: str, ours: Callable[[], float], theirs: Callable[[], float]) -> Row:
    first, second = in_turns(ours, theirs, REPEATS)
    return Row(name, first, second, "scenes/s", reference, less_is_better=False)
