"""A frozen tower runs once over the photographs of a run, and training reads what it gave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks.genecis import SquareCrop
from cirlab.errors import UserError
from cirlab.records import FileImage, Query
from datamodules import FolderData
from lightning_modules import CoLLM
from lightning_modules.collm import LLMSettings, Synthesis
from lightning_modules.frozen_features import distinct, evaluated_images
from tests.callbacks.lookup import quiet_trainer
from tests.datamodules.toys import ToyBenchmark, write_jsonl
from tests.tiny import write_tiny_clip, write_tiny_llm


class Watched(CoLLM):
    """Keeps what training reads of the images."""

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        self.read.append(set(batch["image"]))
        return super().losses(batch)

    read: list[set[str]]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(12):
        PIL.Image.new("RGB", (40, 40), (20 * i, 255 - 20 * i, 90)).save(root / f"images/{i}.png")
        rows.append({"image": f"images/{i}.png", "captions": ["a red circle"]})
    write_jsonl(root / "train" / "pairs.jsonl", rows)
    return root


@pytest.mark.parametrize("cached", [True, False])
def test_training_reads_features_if_they_are_cached(
    cached: bool, photographs: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Watched(
        clip=f"local-dir:{write_tiny_clip(tmp_path / 'clip')}",
        llm=LLMSettings(str(write_tiny_llm(tmp_path / "llm"))),
        synthesis=Synthesis(rotation=0.0),
        cache_features=cached,
    )
    module.read = []
    trainer: L.Trainer = quiet_trainer(default_root_dir=str(tmp_path), limit_val_batches=0)
    data = FolderData(str(photographs), "pairs", batch_size=4, eval_batch_size=4, num_workers=0)
    trainer.fit(module, datamodule=data)
    assert module.read == [{"features"} if cached else {"pixels"}] * 3
    assert len(list((tmp_path / "runs" / "cache").rglob("*.npy"))) == cached


def test_a_file_is_read_once_and_so_is_each_of_its_parts() -> None:
    """Under whatever ids data and benchmarks know it."""
    path = Path("photograph.jpg")
    crops = [SquareCrop(id=f"crop {side}", path=path, box=(0, 0, side, side)) for side in (8, 9)]

    benchmark = ToyBenchmark()
    benchmark.gallery = [FileImage(id="gallery", path=path), *crops]
    benchmark.queries = [Query(id="0", text="?", targets=("gallery",), image=crops[0])]
    training = [FileImage(id="training", path=path)]
    data = SimpleNamespace(benchmarks=[benchmark])
    images = distinct([*training, *evaluated_images(data)])
    assert [image.id for image in images] == ["gallery", "crop 8", "crop 9"]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_evaluation_reads_features_of_what_it_evaluates(
    on_error: Literal["raise", "skip"], photographs: Path, tmp_path: Path
) -> None:
    """Not of the training images; and none if it may meet broken ones."""
    files = [photographs / "images" / f"{i}.png" for i in range(5)]

    class Images(ToyBenchmark):
        kind = "image"

        def setup(self) -> None:
            super().setup()
            self.queries = [Query(i.id, "", (i.id,), image=i) for i in self.gallery[:3]]

    asked = Images(files=files)

    class Seeing(CoLLM):
        read: list[set[str]]

        def _image_features(self, images: Any) -> torch.Tensor:
            self.read.append(set(images))
            return super()._image_features(images)

    module = Seeing(
        clip=f"local-dir:{write_tiny_clip(tmp_path / 'clip')}",
        llm=LLMSettings(str(write_tiny_llm(tmp_path / "llm"))),
        synthesis=Synthesis(rotation=0.0),
        cache_features=True,
    )
    module.read = []
    data = FolderData(
        str(photographs),
        "pairs",
        batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        benchmarks=[asked],
        on_error=on_error,
    )
    trainer = quiet_trainer(default_root_dir=str(tmp_path), callbacks=[RetrievalEvaluation()])
    trainer.validate(module, datamodule=data, verbose=False)
    kept = list((tmp_path / "runs" / "cache").rglob("*.npy"))
    assert module.read == [{"features"} if on_error == "raise" else {"pixels"}] * 3
    assert [len(np.load(path)) for path in kept] == ([5] if on_error == "raise" else [])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_ends_the_run_with_its_sentence(
    num_workers: int, photographs: Path, tmp_path: Path
) -> None:
    """Not with a worker's traceback around it."""
    (photographs / "images" / "6.png").write_bytes(b"no image")
    module = CoLLM(
        clip=f"local-dir:{write_tiny_clip(tmp_path / 'clip')}",
        llm=LLMSettings(str(write_tiny_llm(tmp_path / "llm"))),
        synthesis=Synthesis(rotation=0.0),
        cache_features=True,
    )
    trainer = quiet_trainer(default_root_dir=str(tmp_path), limit_val_batches=0)
    data = FolderData(
        str(photographs), "pairs", batch_size=4, eval_batch_size=4, num_workers=num_workers
    )
    with pytest.raises(UserError, match=r"^image \S*images/6\.png does not decode \("):
        trainer.fit(module, datamodule=data)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
