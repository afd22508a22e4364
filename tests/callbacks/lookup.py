"""A benchmark whose vectors are known, so that every metric can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import PIL.Image
import torch

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.errors import UserError
from cirlab.metrics import mean_average_precisions, mean_rank, recalls
from cirlab.records import DecodedImage, FileImage, Image, Query, SampleKey, Triplet
from datamodules.base import RetrievalData

DIM = 8


def vectors(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def picture(number: int) -> DecodedImage:
    shade = (37 * number % 256, 91 * number % 256, 143 * number % 256)
    return DecodedImage(id=f"image{number}", pixels=PIL.Image.new("RGB", (16, 16), shade))


class LookupBenchmark(Benchmark):
    """Query i looks for images i and i + 1, excludes its reference, and has look-alikes.

    Args:
        name: of the benchmark.
        images: in the gallery.
        asked: number of queries.
        gallery: its id, for benchmarks that share one.
        broken: of these images and references there is no file.
        rerank_depth: how many images of each query the second stage ranks again.
    """

    kind: QueryKind = "composed"
    breakdowns = ("parity",)

    def __init__(
        self,
        name: str = "lookup",
        images: int = 23,
        asked: int = 11,
        gallery: str = "shelf",
        broken: Sequence[int] = (),
        rerank_depth: int | None = None,
    ) -> None:
        self.rerank_depth = rerank_depth
        self.name = name
        self.images = images
        self.count = asked
        self.shelf = gallery
        self.broken = frozenset(broken)

    @property
    def gallery_id(self) -> str:
        return self.shelf

    def setup(self) -> None:
        self.gallery = [self._image(i) for i in range(self.images)]
        self.queries = [self._query(i) for i in range(self.count)]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        assert ranks.subset is not None
        metrics = recalls(ranks.targets, (1, 5)) | mean_average_precisions(ranks.targets, (5,))
        metrics |= recalls(ranks.subset, (1,), prefix="subset_recall")
        return metrics | {"mean_rank": mean_rank(ranks.targets)}

    def _image(self, number: int) -> Image:
        if number in self.broken:
            return FileImage(id=f"image{number}", path=Path("nowhere.jpg"))
        return picture(number)

    def _query(self, number: int) -> Query:
        reference = (number + 5) % self.images
        near = [(number + step) % self.images for step in (0, 7, 8, 9)]
        return Query(
            id=f"{self.name}{number}",
            text=f"make it number {number}",
            image=self._image(reference),
            targets=(f"image{number}", f"image{number + 1}"),
            exclude=(f"image{reference}",),
            subset=tuple(f"image{i}" for i in near),
            tags={"parity": "even+all" if number % 2 == 0 else "odd+all"},
        )


def numbers_of_images(images: Sequence[Image]) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor([int(image.id.removeprefix("image")) for image in images])}


def numbers_of_queries(queries: Sequence[Query]) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor([int(query.text.split()[-1]) for query in queries])}


def numbers_of_triplets(triplets: Sequence[Triplet]) -> dict[str, torch.Tensor]:
    return numbers_of_images([triplet.reference for triplet in triplets])


class LookupModule(L.LightningModule):
    """Encodes by looking vectors up.

    Args:
        parts: give the vectors of the parts of queries, too.
        own_space: rank the parts in a gallery space of their own.
        bad_query: the vector of this query is NaN.
        bad_second: the second stage fails on this image.
    """

    train_record = Triplet
    reranks = True
    query_kinds = frozenset({"composed"})

    def __init__(
        self,
        parts: bool = True,
        own_space: bool = False,
        bad_query: int | None = None,
        bad_second: int | None = None,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.own_space = own_space
        self.bad_second = bad_second
        self.second = vectors(100, len(NAMES)) @ vectors(100, len(NAMES) + 1).T
        self.weight = torch.nn.Parameter(torch.zeros(1))
        tables = {name: vectors(100, seed) for seed, name in enumerate(NAMES)}
        if bad_query is not None:
            tables["query"][bad_query] = torch.nan
        for name, table in tables.items():
            self.register_buffer(name, table)

    def image_collator(self) -> Callable[..., Any]:
        return numbers_of_images

    def query_collator(self) -> Callable[..., Any]:
        return numbers_of_queries

    def train_collator(self) -> Callable[..., Any]:
        return numbers_of_triplets

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch["number"]).sum()

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        number = batch["inputs"]["number"]
        names = ["query", "image_only", "text_only"][: 3 if self.parts else 1]
        if batch["kind"] == "gallery":
            names = ["gallery", "baseline"][: 2 if self.own_space else 1]
        if batch["kind"] == "captions":
            return {"gallery": self.get_buffer("query")[number]}
        return {name: self.get_buffer(name)[number] for name in names}

    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def rerank(
        self,
        queries: Sequence[Query],
        items: Sequence[Image],
        pairs: torch.Tensor,
        scores: torch.Tensor,
    ) -> torch.Tensor:
        rows = numbers_of_queries(queries)["number"][pairs[:, 0]]
        columns = numbers_of_images(items)["number"]
        if self.bad_second in columns.tolist():
            raise UserError(f"image{self.bad_second} does not decode; remove it")
        return self.second[rows, columns[pairs[:, 1]]] + scores

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


NAMES = ("gallery", "query", "image_only", "text_only", "baseline")


class LookupTriplets:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: SampleKey) -> Triplet:
        return Triplet(picture(key.index), ("",), picture(key.index + 1))


class LookupData(RetrievalData):
    train_record: type = Triplet

    def __init__(self, *benchmarks: Benchmark, **options: Any) -> None:
        settings: dict[str, Any] = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
        super().__init__(**{**settings, "benchmarks": list(benchmarks), "seed": 0, **options})

    def train_dataset(self) -> Any:
        return LookupTriplets()


def quiet_trainer(**options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**settings, **options})
