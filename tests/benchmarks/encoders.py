"""What encoders that are easy to see through reach on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cirlab.benchmarks.base import Benchmark
from cirlab.retrieval.evaluation import Encoded, Evaluation, Gallery, evaluate


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def evaluated(benchmark: Benchmark, gallery: torch.Tensor, queries: torch.Tensor) -> Evaluation:
    """By these vectors, shapes (N, D) and (Q, D)."""
    images = Encoded({"gallery": gallery}, torch.ones(len(gallery), dtype=torch.bool))
    asked = Encoded({"query": queries}, torch.ones(len(queries), dtype=torch.bool))
    return evaluate(benchmark, Gallery(benchmark.gallery, images), asked)


def constant(benchmark: Benchmark, value: float = 1.0) -> Evaluation:
    """An encoder that has collapsed: the same vector for everything."""
    sizes = len(benchmark.gallery), len(benchmark.queries)
    gallery, queries = (torch.full((size, 4), value) for size in sizes)
    return evaluated(benchmark, gallery, queries)


def ranking(benchmark: Benchmark, best: Callable[[int], Sequence[str]]) -> Evaluation:
    """An encoder whose query number q finds the images `best(q)` first, in this order."""
    position = {image.id: i for i, image in enumerate(benchmark.gallery)}
    queries = torch.zeros(len(benchmark.queries), len(position))
    for row in range(len(queries)):
        for place, name in enumerate(best(row)):
            queries[row, position[name]] = 1 - 0.01 * place
    # Unit vectors of the axes: a query's score of an image is its entry, up to the query's length.
    return evaluated(benchmark, torch.eye(len(position)), queries)
