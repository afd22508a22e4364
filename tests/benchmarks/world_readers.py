"""Readers that see every detail of a scene, or every word of a text: what one of both can reach."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.world_families import WorldFamilies
from cirlab.records import Image
from cirlab.retrieval.index import GalleryIndex
from cirlab.world.image import SceneImage
from cirlab.world.language import full_caption
from cirlab.world.scene import Scene
from cirlab.world.vocabulary import LOOK_VALUES, PLURALS, SETTING_VALUES, vocabulary, words_of

LOOKS = [value for values in LOOK_VALUES.values() for value in values]
SETTINGS = [(name, value) for name, values in SETTING_VALUES.items() for value in values]
DETAILS = {key: i for i, key in enumerate([*SETTINGS, *product(range(9), LOOKS)])}
WORDS = {word: i for i, word in enumerate(vocabulary())}
SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


def details(images: Sequence[Image | None]) -> torch.Tensor:
    """All that a scene shows, as indicators. Shape (N, D)."""
    vectors = torch.zeros(len(images), len(DETAILS))
    for row, image in enumerate(images):
        assert isinstance(image, SceneImage)
        for name in SETTING_VALUES:
            vectors[row, DETAILS[name, getattr(image.scene, name)]] = 1
        for thing in image.scene.things:
            for cell, value in product(thing.cells, thing.look):
                vectors[row, DETAILS[cell, value]] = 1
    return vectors


def words(texts: Sequence[str]) -> torch.Tensor:
    """Which words a text holds, plurals as singulars. Shape (N, V)."""
    vectors = torch.zeros(len(texts), len(WORDS))
    for row, text in enumerate(texts):
        for word in words_of(text):
            vectors[row, WORDS[SINGULAR.get(word, word)]] = 1
    return vectors


def scenes_of(benchmark: WorldFamilies) -> dict[str, Scene]:
    """The scenes of a gallery, by id."""
    return {image.id: image.scene for image in benchmark.gallery}


def with_image_alone(benchmark: WorldFamilies) -> dict[str, float]:
    """What the likeness of the reference reaches, with every detail seen."""
    gallery = GalleryIndex([image.id for image in benchmark.gallery], details(benchmark.gallery))
    return _score(benchmark, gallery, details([query.image for query in benchmark.queries]))


def with_text_alone(benchmark: WorldFamilies) -> dict[str, float]:
    """What the rarest common words of query and full captions reach."""
    captions = words([full_caption(image.scene) for image in benchmark.gallery])
    rarity = torch.log(len(captions) / (1 + (captions > 0).sum(dim=0)))
    gallery = GalleryIndex([image.id for image in benchmark.gallery], captions * rarity)
    asked = words([query.text for query in benchmark.queries]) * rarity
    return _score(benchmark, gallery, asked + 1e-6)


def with_target(benchmark: WorldFamilies) -> dict[str, float]:
    """What a perfect understanding of image and text reaches."""
    by_id = {image.id: image for image in benchmark.gallery}
    gallery = GalleryIndex([image.id for image in benchmark.gallery], details(benchmark.gallery))
    meant = [by_id[query.targets[0]] for query in benchmark.queries]
    return _score(benchmark, gallery, details(meant))


def _score(benchmark: Benchmark, gallery: GalleryIndex, vectors: torch.Tensor) -> dict[str, float]:
    return benchmark.metrics(gallery.target_ranks(vectors, benchmark.queries), benchmark.queries)
