"""The smallest method, benchmark and files that data modules can be tried with."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import PIL.Image
import torch

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.records import DecodedImage, FileImage, Image, Pair, Query, SampleKey
from datamodules.base import RetrievalData


def jpeg(shade: int, size: int = 8) -> bytes:
    """A grey JPEG whose pixels are about `shade`."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (size, size), (shade, shade, shade)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_images(root: Path, count: int) -> list[str]:
    """root/images/0.jpg ..., each darker than the next; their paths relative to root."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        (root / name).write_bytes(jpeg(10 * i))
    return names


def write_folder(root: Path, count: int = 12, split: str = "train") -> list[str]:
    """A whole data folder: pairs with two captions, composed queries, a gallery."""
    names = write_images(root, count)
    folder = root / split
    pairs = [{"image": n, "captions": [f"{n} a", f"{n} b"], "more": 1} for n in names]
    write_jsonl(folder / "pairs.jsonl", pairs)
    composed = [
        {
            "id": f"q{i}",
            "reference": name,
            "text": f"brighter than {i}",
            "targets": names[i + 1 : i + 4],
            "category": "even" if i % 2 == 0 else "odd",
        }
        for i, name in enumerate(names[:-3])
    ]
    write_jsonl(folder / "composed.jsonl", composed)
    (folder / "gallery.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return names


class Numbers:
    """A dataset whose records tell by which key they were drawn."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Pair:
        pixels = PIL.Image.new("RGB", (2, 2))
        image = DecodedImage(id=str(key.index), pixels=pixels)
        return Pair(image=image, captions=(f"{key.epoch}-{key.index}",))


class NumbersData(RetrievalData):
    train_record: type = Pair

    def __init__(self, length: int = 40, **options: Any) -> None:
        settings: dict[str, Any] = {
            "batch_size": 8,
            "eval_batch_size": 4,
            "num_workers": 0,
            "benchmarks": None,
            "seed": 0,
        }
        super().__init__(**{**settings, **options})
        self.length = length

    def train_dataset(self) -> Any:
        return Numbers(self.length)


class ToyBenchmark(Benchmark):
    """A gallery of files or of numbers, and a text query for each of the first few."""

    kind: QueryKind = "text"

    def __init__(
        self, name: str = "toy", images: int = 7, queries: int = 5, files: Sequence[Path] = ()
    ) -> None:
        self.name = name
        self.images = images
        self.count = queries
        self.files = files

    def setup(self) -> None:
        black = PIL.Image.new("RGB", (2, 2))
        self.gallery: list[Image] = [
            DecodedImage(id=str(i), pixels=black) for i in range(self.images)
        ]
        if self.files:
            self.gallery = [FileImage(id=path.name, path=path) for path in self.files]
        self.queries = [Query(id=str(i), text="?", targets=(str(i),)) for i in range(self.count)]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        return {}


def collate_pairs(records: Sequence[Any]) -> dict[str, Any]:
    """Captions, ids, mean brightness, and a number from each global generator."""
    noise = [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002
    images = [r if isinstance(r, Image) else r.image for r in records]
    grey = [float(np.asarray(image.load()).mean()) for image in images if image is not None]
    return {
        "captions": [r.captions[0] if isinstance(r, Pair) else "" for r in records],
        "ids": [r.id if isinstance(r, Image) else r.image.id for r in records],
        "grey": torch.tensor(grey),
        "noise": torch.tensor(noise),
    }


def collate_queries(queries: Sequence[Query]) -> dict[str, Any]:
    return {"length": torch.tensor([len(query.text) for query in queries])}


class ToyModule(L.LightningModule):
    """Keeps what it is given; its one weight follows the noise, so runs can be compared."""

    def __init__(
        self, record: type | tuple[type, ...] = Pair, kinds: Sequence[str] = ("text", "composed")
    ) -> None:
        super().__init__()
        self.train_record = record
        self.query_kinds = frozenset(kinds)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[str, ...], tuple[float, ...]]] = []
        self.evaluated: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def train_collator(self) -> Callable[..., Any]:
        return collate_pairs

    def image_collator(self) -> Callable[..., Any]:
        return collate_pairs

    def query_collator(self) -> Callable[..., Any]:
        return collate_queries

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        noise = tuple(batch["noise"].tolist())
        self.seen.append((self.current_epoch, tuple(batch["captions"]), noise))
        self.skipped += batch["skipped"]
        return (self.weight * batch["noise"].sum()).sum()

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.evaluated.append(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> L.Trainer:
    """A CPU trainer that leaves nothing behind."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**quiet, **options})


def fit(data: RetrievalData, module: ToyModule | None = None, **options: Any) -> ToyModule:
    """Train; returns the module with what it saw."""
    module = module or ToyModule(record=data.train_record)
    checkpoint = options.pop("ckpt_path", None)
    trainer(**options).fit(module, datamodule=data, ckpt_path=checkpoint)
    return module
