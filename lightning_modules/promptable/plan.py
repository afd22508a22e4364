"""What an evaluation looks at, known before any picture is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cirlab.benchmarks.base import Benchmark
from cirlab.records import Image
from cirlab.retrieval.views import Views


@dataclass(frozen=True)
class Plan:
    """What the galleries are looked at for, and what tells the maps that stand in for it.

    Attributes:
        views: of each gallery, by its id.
        samples: by benchmark and question, images that tell its linear map; empty without maps.
    """

    views: Mapping[str, Views]
    samples: Mapping[str, Mapping[str, Sequence[Image]]]


@dataclass(frozen=True)
class Wanted:
    """Images and the prompts that they are looked at for.

    Attributes:
        images: N of them.
        prompts: V of them; None is for nothing in particular.
        needed: which image is looked at for which prompt. Shape (V, N), bool, on the CPU.
    """

    images: Sequence[Image]
    prompts: Sequence[str | None]
    needed: torch.Tensor


def questions_of(views: Mapping[str, Views]) -> list[str]:
    """What all galleries are looked at for, each question once."""
    prompts = (prompt for own in views.values() for prompt in own.prompts)
    return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))


def both_ways(images: Sequence[Image], question: str) -> Wanted:
    """Images that are looked at without and with a question, in this order."""
    return Wanted(images, [None, question], torch.ones(2, len(images), dtype=torch.bool))


def whole_galleries(benchmarks: Iterable[Benchmark], views: Mapping[str, Views]) -> Wanted:
    """All images of galleries that are looked at.

    Args:
        benchmarks: whose galleries they are; a shared one counts once.
        views: of each gallery, by its id.
    """
    parts: list[tuple[list[Image], Views]] = []
    for benchmark in {b.gallery_id: b for b in benchmarks}.values():
        images = [item for item in benchmark.gallery if isinstance(item, Image)]
        if images:
            parts.append((images, views[benchmark.gallery_id]))
    prompts = list(dict.fromkeys(prompt for _, own in parts for prompt in own.prompts))
    needed = torch.zeros(len(prompts), sum(len(images) for images, _ in parts)).bool()
    start = 0
    for images, own in parts:
        places = [prompts.index(prompt) for prompt in own.prompts]
        # Without questions, all are encoded, also those that no query ranks.
        wanted = own.needed if own.prompted else torch.ones_like(own.needed)
        needed[places, start : start + len(images)] = wanted
        start += len(images)
    return Wanted([image for images, _ in parts for image in images], prompts, needed)
