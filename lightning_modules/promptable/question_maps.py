"""Linear maps that stand in for looking at images with a question.

The paper's approximation (arXiv 2505.15877): W from K images that were looked at both ways moves
the query, and the gallery stays as it is (`cirlab.retrieval.linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from cirlab import distributed
from cirlab.errors import UserError
from cirlab.prompts import PromptChooser
from cirlab.reading.jsonl import shown
from cirlab.records import Image, Item, SampleKey
from cirlab.retrieval.linear import LinearMethod, check_linear_map, draw_sample, transform
from cirlab.retrieval.views import Views, plan_views

#: Training images that the linear map's are drawn from, the first of the data.
POOL = 10_000


@dataclass(frozen=True)
class LinearSample:
    """From which images the linear map is told.

    Attributes:
        count: how many images for each question (K; 100 in the paper).
        seed: another one chooses other images.
        source: "benchmark" draws them from the images that the question's queries rank, as the
            paper does: they are seen before they are ranked. "training" draws them from the
            training images of the data.
        method: least squares of minimum norm (the paper's), ridge regression, or the orthogonal map
            (Procrustes).
        ridge: weight of the squared entries of the map, of ridge regression alone.
    """

    count: int = 100
    seed: int = 0
    source: Literal["benchmark", "training"] = "benchmark"
    method: LinearMethod = "least_squares"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        check_linear_map(self.method, self.ridge)
        if self.count < 1:
            raise UserError(f"linear.count is {self.count}; set it to 1 image or more")

    def __str__(self) -> str:
        ridge = f" {self.ridge:g}" if self.method == "ridge" else ""
        images = f"{self.count} {self.source} images of seed {self.seed}"
        return f"{self.method}{ridge} from {images}"

    def draw(self, images: Sequence[Image], question: str) -> list[Image]:
        """Some of the images.

        Args:
            images: to draw from; one that comes twice counts once.
            question: whose map they are to tell, for errors.

        Raises:
            UserError: there are not so many.
        """
        unique = list({image.id: image for image in images}.values())
        if self.count > len(unique):
            raise UserError(
                f"linear.count is {self.count}, but there are {len(unique)} {self.source} images "
                f"to tell the map of the question {shown(question)} by; set linear.count to at "
                f"most {len(unique)}, or looking to prefix"
            )
        return [unique[at] for at in draw_sample([i.id for i in unique], self.count, self.seed)]


@dataclass(frozen=True)
class QuestionMaps:
    """The linear maps of a benchmark's questions.

    Attributes:
        chosen: each query's question.
        maps: of each question.
        wordings: in how many wordings each query is asked, one after the other.
    """

    chosen: Sequence[str | None]
    maps: Mapping[str, torch.Tensor]
    wordings: int

    def moved(self, queries: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
        """Each query moved by the map of its question; those without one stay.

        Args:
            queries: shape (B, D).
            index: their positions among all that are asked.
        """
        chosen = [self.chosen[number // self.wordings] for number in index]
        rows = [
            query if prompt is None else transform(query[None], self.maps[prompt])[0]
            for query, prompt in zip(queries, chosen, strict=True)
        ]
        return torch.stack(rows)


def stood_in_for(data: Any, prompts: PromptChooser) -> dict[str, Views]:
    """What galleries would be looked at for without maps, by gallery; on every process the same.

    Args:
        data: the data module, with benchmarks that are set up.
        prompts: gives each query its question.

    Raises:
        UserError: the data leave images out, or a query has no question, but needs one.
    """
    if data.on_error == "skip":
        raise UserError(
            "looking: linear learns its maps from images and skips none, but "
            "data.init_args.on_error is skip: set it to raise, or looking to prefix"
        )
    return distributed.from_first(partial(plan_views, data.benchmarks, prompts))


def map_samples(
    linear: LinearSample, data: Any, views: Mapping[str, Views]
) -> dict[str, dict[str, list[Image]]]:
    """From which images the map of each question is told, by benchmark and question.

    Args:
        linear: how many and which.
        data: the data module, with benchmarks that are set up.
        views: what maps stand in for, by gallery.

    Raises:
        UserError: there are too few images.
    """
    known = _training_images(data) if linear.source == "training" else None
    found: dict[str, dict[str, list[Image]]] = {}
    for benchmark in data.benchmarks:
        own, found[benchmark.name] = views[benchmark.gallery_id], {}
        for prompt, needed in zip(own.prompts, own.needed, strict=True):
            if prompt is not None:
                images = _ranked_images(needed, benchmark.gallery) if known is None else known
                found[benchmark.name][prompt] = linear.draw(images, prompt)
    return found


def _training_images(data: Any) -> list[Image]:
    """The first training images of a data module of prompted pairs."""
    records = data.train_dataset()
    return [records[SampleKey(0, n)].image for n in range(min(len(records), POOL))]


def _ranked_images(needed: torch.Tensor, gallery: Sequence[Item]) -> list[Image]:
    """Those that the queries of one view rank; `needed` is of shape (N,)."""
    items = [gallery[row] for row in needed.nonzero().flatten().tolist()]
    return [item for item in items if isinstance(item, Image)]
