"""A tiny Promptable on a few pictures of the world: made, trained and evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks import RetrievalEvaluation
from cirlab.benchmarks import WorldFacet
from cirlab.benchmarks.base import Benchmark
from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.records import SampleKey
from datamodules import WorldData
from lightning_modules.promptable import LinearSample, PrefixBudget, Promptable

ARMS: dict[str, dict[str, Any]] = {
    "general": {"looking": "general"},
    "whole": {"looking": "whole"},
    "prefix": {"looking": "prefix"},
    "kept prefixes": {"looking": "prefix", "prefixes": PrefixBudget(0.1)},
    "linear": {"looking": "linear", "linear": LinearSample(count=8)},
    "ridge": {"looking": "linear", "linear": LinearSample(count=8, method="ridge")},
    "procrustes": {"looking": "linear", "linear": LinearSample(count=8, method="procrustes")},
}


def method(folder: Path, llm: dict[str, Any] | None = None, **options: Any) -> Promptable:
    torch.manual_seed(0)
    settings = {"lora": Lora(rank=4, alpha=8), "max_length": 256, "group_size": 3} | (llm or {})
    llm = MLLMSettings(str(folder), **settings)
    module = Promptable(llm, **options)
    module.configure_model()
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return module


def data(**options: Any) -> WorldData:
    settings: dict[str, Any] = {"samples": 8, "batch_size": 4, "eval_batch_size": 16}
    settings["benchmarks"] = [WorldFacet(families=8, queries_per_facet=2, negatives=5)]
    return WorldData(records="prompted", series_size=1, **(settings | options))


def fit(module: Promptable, **options: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
        callbacks=[RetrievalEvaluation()],
    )
    trainer.fit(module, data(**options))


def evaluate(
    module: Promptable, benchmark: Benchmark | None = None, on_error: str = "raise", **options: Any
) -> dict[str, Any]:
    """Results of one benchmark; `options` are the trainer's."""
    retrieval = RetrievalEvaluation()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[retrieval],
        **options,
    )
    settings = {} if benchmark is None else {"benchmarks": [benchmark]}
    trainer.validate(module, data(on_error=on_error, **settings), verbose=False)
    (results,) = retrieval.results.values()
    return results


@contextmanager
def pictures_read(module: Promptable) -> Iterator[list[int]]:
    """Notes how many pictures pass the image tower at once within the block."""
    counts: list[int] = []

    def note(_: object, args: object, inputs: dict[str, Any]) -> None:
        if "pixel_values" in inputs:
            counts.append(len(inputs["input_ids"]))

    handle = module.llm.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def images(count: int) -> list[Any]:
    records = data().train_dataset()
    return [records[SampleKey(0, number)].image for number in range(count)]
