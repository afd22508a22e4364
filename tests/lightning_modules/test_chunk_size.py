"""A step in chunks is the step of the whole batch: clipping, accumulation and dropout included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.encoders.adapters import TowerLora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from lightning_modules import CLIP, CoLLM, EmbeddingLanguageModel, InstructCIR
from lightning_modules.collm import LLMSettings
from tests.chunked import KINDS, Kind, difference, method, one_step, records, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_whole_batch(kind: Kind, models: Path) -> None:
    whole = one_step(kind, lambda: method(kind, models))
    chunked = one_step(kind, lambda: method(kind, models, chunk_size=3))
    assert difference(whole, chunked) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_drawn_once(kind: Kind, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(dropout: float) -> torch.Tensor:
        return one_step(kind, lambda: method(kind, models, dropout, chunk_size=3))

    chunked = step(0.5)
    assert difference(chunked, step(0.0)) > 0.1, "nothing was dropped"
    # The same chunks, everything kept.
    monkeypatch.setattr("cirlab.chunking.checkpoint", kept)
    assert difference(chunked, step(0.5)) < 1e-4


def kept(encode: Callable[[Any], Any], chunk: Any, **_: Any) -> Any:
    return encode(chunk)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_layers_computed_again_give_the_same_step(
    kind: Kind, chunk_size: int | None, models: Path
) -> None:
    """Also where dropout is on: it is drawn once for a chunk and once for a layer in it."""
    plain = one_step(kind, lambda: method(kind, models, 0.5, chunk_size=chunk_size))
    again = one_step(
        kind,
        lambda: method(kind, models, 0.5, chunk_size=chunk_size, gradient_checkpointing=True),
    )
    assert difference(plain, again) < 1e-4


def bytes_kept(module: CoLLM) -> int:
    """Bytes that autograd keeps for the backward pass, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = module.train_collator()(records("triplets"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = module.losses(batch)
    assert losses
    return sum(kept.values())


def test_less_is_kept_by_each_of_them(models: Path) -> None:
    def kept_with(**options: Any) -> int:
        module = method("triplets", models, **options)
        module.configure_model()
        assert isinstance(module, CoLLM)
        return bytes_kept(module)

    plain = kept_with()
    assert kept_with(gradient_checkpointing=True) < 0.7 * plain
    assert kept_with(chunk_size=2) < 0.2 * plain


def test_evaluation_reads_whole_batches(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = method("pairs", models, chunk_size=3)
    module.configure_model()
    assert isinstance(module, CoLLM)
    monkeypatch.setattr(module.llm, "_read_in_chunks", None)
    inputs = module.image_collator()([pair.image for pair in records("pairs")])
    with torch.no_grad():
        assert module.eval().encode_images(inputs).shape == (20, 16)
        tokens = module.llm.processor(["a red circle"] * 20)
        assert module.encode_queries({"query": tokens}).shape == (20, 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CLIP(model="zoo:tiny_clip", chunk_size=0),
        lambda: CoLLM(clip="zoo:tiny_clip", llm=LLMSettings("zoo:tiny_llm"), chunk_size=0),
        lambda: EmbeddingLanguageModel({}, "nowhere", chunk_size=0),
        lambda: InstructCIR(MLLMSettings("zoo:tiny_mllm"), chunk_size=0),
    ],
)
def test_a_chunk_has_a_row(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match="chunk_size is 0; set it to the rows"):
        make()


def test_a_tower_that_takes_statistics_of_its_batch_is_refused() -> None:
    tower = CLIP(model="RN50", chunk_size=4)
    with pytest.raises(UserError, match=r"chunk_size is 4, but layer .*BatchNorm2d"):
        tower.configure_model()
    # Adapters train the tower; without them it keeps the statistics that it has.
    lora = TowerLora(rank=1, targets=["c_proj"])
    settings = LLMSettings("zoo:tiny_llm", frozen=True)
    CoLLM(clip="RN50", llm=settings, chunk_size=4).configure_model()
    with pytest.raises(UserError, match="BatchNorm2d"):
        CoLLM(clip="RN50", llm=settings, tower_lora=lora, chunk_size=4).configure_model()
