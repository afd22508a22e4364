"""Draw scenes: thousands a second on one core, from masks and backgrounds made once.

Objects are sprites (fill, texture and a contrasting outline, anti-aliased by supersampling)
that are blended into small regions of a ready background. What is never talked about, the
place within the cell, shades, noise and where raindrops fall, comes from `Scene.nuisance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from cirlab.world.scene import Scene, Thing

Array = np.ndarray
_SUPERSAMPLING = 4
#: Half an object's extent as a share of the image side.
_RADIUS = {"small": 0.088, "large": 0.148}
_OUTLINE = 0.02
_RGB = {
    "red": (222, 30, 38),
    "orange": (255, 140, 0),
    "yellow": (250, 235, 40),
    "green": (20, 150, 50),
    "blue": (35, 75, 225),
    "purple": (160, 45, 190),
    "white": (250, 250, 250),
    "black": (22, 22, 26),
}
_DARK = {"blue", "purple", "black", "green", "red"}
_GROUND = {
    "field": (80, 165, 55),
    "beach": (235, 196, 120),
    "sea": (30, 110, 190),
    "snow": (228, 234, 242),
}
_SKY = {"day": (150, 200, 240), "dusk": (240, 150, 110), "night": (14, 14, 40)}
_LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (0.92, 0.66, 0.60), "night": (0.42, 0.45, 0.55)}
_GREY = np.array((176, 180, 186), dtype=np.float32)
#: Where the horizon stands, as a share of the image height from the top.
_HORIZON = {"above": 0.16, "level": 0.5, "below": 0.80}
_NOISE = 5.0
_DROP_VARIANTS = 4


@dataclass(frozen=True)
class Sprite:
    """Premultiplied colour (S, S, 3) and what it lets through (S, S, 1), in float32."""

    colour: Array
    through: Array


def render(scene: Scene, image_size: int = 64) -> Array:
    """Draw a scene.

    Args:
        scene: what to draw; equal scenes give equal pixels on any machine of one numpy.
        image_size: side in pixels.

    Returns:
        Shape (image_size, image_size, 3), uint8, RGB.
    """
    rng = np.random.default_rng(scene.nuisance)
    draws = rng.random(28)
    canvas = background(scene.place, scene.time, scene.weather, scene.view, image_size).copy()
    slot = 0
    for thing in scene.things:
        drawn = sprite(thing.shape, thing.size, thing.texture, thing.colour, image_size)
        for cell in thing.cells:
            _blend(canvas, drawn, thing, cell, draws[4 * slot : 4 * slot + 3])
            slot += 1
    if scene.weather in ("rain", "snowfall"):
        _drop(canvas, scene.weather, scene.time, draws[24:27])
    start = int(draws[27] * (_NOISE_POOL - canvas.size))
    canvas += _noise()[start : start + canvas.size].reshape(canvas.shape)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _blend(canvas: Array, sprite: Sprite, thing: Thing, cell: int, draws: Array) -> None:
    image_size, side = len(canvas), len(sprite.colour)
    pitch = image_size / 3
    slack = max(0.0, (pitch - side) / 2) + image_size / 64
    row, column = divmod(cell, 3)
    top = round((row + 0.5) * pitch - side / 2 + (2 * draws[0] - 1) * slack)
    left = round((column + 0.5) * pitch - side / 2 + (2 * draws[1] - 1) * slack)
    top = min(max(top, 0), image_size - side)
    left = min(max(left, 0), image_size - side)
    region = canvas[top : top + side, left : left + side]
    region *= sprite.through
    region += sprite.colour * np.float32(0.9 + 0.1 * draws[2])


def _drop(canvas: Array, weather: str, time: str, draws: Array) -> None:
    image_size = len(canvas)
    alpha = drops(weather, int(draws[0] * _DROP_VARIANTS), image_size)
    top, left = (int(draw * image_size) for draw in draws[1:])
    alpha = alpha[top : top + image_size, left : left + image_size]
    # Bright drops would be lost on a bright sky.
    shade = 255 if weather == "snowfall" else 100 if time == "day" else 205
    canvas += alpha * (shade - canvas)


# ---- made once ----------------------------------------------------------------------------


@cache
def sprite(shape: str, size: str, texture: str, colour: str, image_size: int) -> Sprite:
    """A look's drawing, centred in a square just large enough for it."""
    radius = _RADIUS[size] * image_size
    side = 2 * int(np.ceil(radius + _OUTLINE * image_size)) + 1
    scale = _SUPERSAMPLING
    axis = (np.arange(side * scale) + 0.5) / scale - side / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    outline = _OUTLINE * image_size
    inside = _SHAPES[shape](x / radius, y / radius)
    outer = radius + outline
    around = _SHAPES[shape](x / outer, y / outer) | inside
    if shape == "ring":
        around &= np.hypot(x, y) > 0.45 * radius - outline * 0.6
    second = inside & _TEXTURES[texture](x * 64 / image_size, y * 64 / image_size)
    fill, around_share, second_share = (_shrink(m, scale) for m in (inside, around, second))
    edge = np.array((250, 250, 250) if colour in _DARK else (15, 15, 15), dtype=np.float32)
    base = np.array(_RGB[colour], dtype=np.float32)
    mixed = edge * (around_share - fill) + base * (fill - second_share) + _tone(base) * second_share
    return Sprite(colour=mixed.astype(np.float32), through=(1 - around_share).astype(np.float32))


def _tone(base: Array) -> Array:
    """The texture's second tone: darker on light colours, lighter on dark ones."""
    if base.mean() > 110:
        return base * 0.42
    return base + (255 - base) * 0.55


def _shrink(mask: Array, scale: int) -> Array:
    """Share of each pixel that is covered. Shape (S, S, 1), float32."""
    side = len(mask) // scale
    blocks = mask.reshape(side, scale, side, scale).mean(axis=(1, 3), dtype=np.float32)
    return blocks[..., None]


def _star(x: Array, y: Array) -> Array:
    angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5) - np.pi / 5
    # The edge of a five-pointed star in polar form, from tip (1) to notch (0.42).
    tip, notch = 1.08, 0.45
    a = np.pi / 5 - np.abs(angle)
    edge = tip * notch * np.sin(np.pi / 5) / (notch * np.sin(np.pi / 5 - a) + tip * np.sin(a))
    return np.hypot(x, y) < edge


def _heart(x: Array, y: Array) -> Array:
    x, y = x * 1.2, 0.15 - y * 1.2
    return (x * x + y * y - 0.9) ** 3 - x * x * y**3 < 0


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: np.hypot(x, y) < 0.95,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.82,
    "triangle": lambda x, y: (y < 0.8) & (abs(x) < 0.54 * (y + 1.0)),
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
    "ring": lambda x, y: (np.hypot(x, y) < 0.98) & (np.hypot(x, y) > 0.45),
    "diamond": lambda x, y: abs(x) / 0.78 + abs(y) < 1.0,
}
# Periods are in pixels of a 64-pixel image.
_TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda x, y: np.zeros(x.shape, dtype=bool),
    "striped": lambda x, y: np.mod(y + 1, 4) < 2,
    "dotted": lambda x, y: np.hypot(np.mod(x, 4) - 2, np.mod(y, 4) - 2) < 1.25,
    "checkered": lambda x, y: (np.mod(x, 6) < 3) ^ (np.mod(y, 6) < 3),
}


@cache
def background(place: str, time: str, weather: str, view: str, image_size: int) -> Array:
    """Sky and ground of a setting. Shape (S, S, 3), float32."""
    y, x = np.mgrid[0:image_size, 0:image_size] * (64 / image_size)
    light = np.array(_LIGHT[time], dtype=np.float32)
    ground = np.array(_GROUND[place], dtype=np.float32) * light * _relief(place, x, y)[..., None]
    sky = np.broadcast_to(np.array(_SKY[time], dtype=np.float32), ground.shape).copy()
    if time == "dusk":
        sky += (y / 64)[..., None] * np.array((10, 50, -40), dtype=np.float32)
    if weather in ("rain", "snowfall"):
        sky = 0.45 * sky + 0.55 * _GREY * light.mean() * 0.8
        ground = 0.7 * ground + 0.3 * _GREY * light.mean() * 0.6
    if time == "night" and weather == "clear":
        sky[(np.mod(7 * x.astype(int) + 13 * y.astype(int), 127) == 0)] = (230, 230, 200)
    horizon = 64 * _HORIZON[view]
    image = np.where((y < horizon)[..., None], sky, ground)
    # A dark line, since snow at dusk is much like its sky.
    image[abs(y - horizon) < 1] *= 0.6
    if weather == "fog":
        image = 0.55 * image + 0.45 * _GREY * (0.35 + 0.65 * light.mean())
    return image.astype(np.float32)


def _relief(place: str, x: Array, y: Array) -> Array:
    """Brightness pattern that tells grounds apart even at night. Shape (S, S)."""
    if place == "field":
        return np.where(np.mod(3 * x.astype(int) + 5 * y.astype(int), 7) < 2, 0.82, 1.06)
    if place == "sea":
        return np.where(np.mod(y + 1.2 * np.sin(x * 0.7), 6) < 1.6, 1.45, 1.0)
    if place == "beach":
        return np.where(np.mod(5 * x.astype(int) + 11 * y.astype(int), 23) == 0, 0.75, 1.0)
    return np.where(np.mod(x + 2 * y, 16) < 1.5, 0.93, 1.0)


@cache
def drops(weather: str, variant: int, image_size: int) -> Array:
    """Opacity of drops or flakes, twice the image's side to be shifted. (2S, 2S, 1), float32."""
    rng = np.random.default_rng((len(weather), variant))
    alpha = np.zeros((image_size, image_size), dtype=np.float32)
    count = 46 if weather == "rain" else 48
    scale = image_size / 64
    for top, left in rng.random((count, 2)) * image_size:
        for step in range(round(5 * scale)) if weather == "rain" else range(1):
            row = int(top + step) % image_size
            column = int(left - step / 3) % image_size
            width = max(1, round(scale if weather == "rain" else 2 * scale))
            alpha[row : row + width, column : column + width] = 0.6 if weather == "rain" else 0.8
    return np.tile(alpha, (2, 2))[..., None]


_NOISE_POOL = 1 << 20


@cache
def _noise() -> Array:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(_NOISE_POOL) * _NOISE).astype(np.float32)
