"""The multimodal LLM from scratch: what counts in its loss, what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from datamodules import WorldConversationData
from lightning_modules import VisionLanguageModel
from lightning_modules.vision_language_model import IGNORED, MLLMFromScratch
from tests.tiny_mllm import TEXT, VISION


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionLanguageModel, Path]:
    """Two steps on twelve conversations."""
    folder = tmp_path_factory.mktemp("vlm") / "model"
    return train(folder), folder


def scratch() -> MLLMFromScratch:
    return MLLMFromScratch(
        vision=VISION | {"image_size": 64},
        text=TEXT | {"model_type": "mistral", "max_position_embeddings": 512},
        texts=40,
        vocabulary=400,
    )


def train(folder: Path, **options: Any) -> VisionLanguageModel:
    L.seed_everything(0)
    if "model" not in options:
        options["from_scratch"] = scratch()
    module = VisionLanguageModel(export_to=str(folder), group_size=4, **options)
    data = WorldConversationData(samples=12, batch_size=6, editing=0.3)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


def test_only_what_is_answered_counts(trained: tuple[VisionLanguageModel, Path]) -> None:
    module, _ = trained
    turns = (("what is the place?", "on a beach"), ("Describe this image.", "a red ring"))
    (group,) = module.train_collator()([Conversation(turns)])["groups"]
    counted = group["labels"][group["labels"] != IGNORED]
    said = module.processor.tokenizer.decode(counted)
    assert said == "on a beach<|end|>a red ring<|end|>"
    assert (group["input_ids"][group["labels"] != IGNORED] == counted).all()


def test_the_loss_is_the_mean_over_all_answered_words(
    trained: tuple[VisionLanguageModel, Path],
) -> None:
    module, _ = trained
    records = WorldConversationData(samples=12, batch_size=6, editing=0.3).train_dataset()
    batch = module.train_collator()([records[SampleKey(0, i)] for i in range(6)])
    assert len(batch["groups"]) > 1
    losses, counts = [], []
    with torch.no_grad():
        for group in batch["groups"]:
            losses.append(float(module.model(**group).loss))
            counts.append(int((group["labels"][:, 1:] != IGNORED).sum()))
        ours = float(module.losses(batch)["next_word"])
    expected = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_what_it_writes_is_loaded_by_transformers(
    trained: tuple[VisionLanguageModel, Path],
) -> None:
    module, folder = trained
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    for name, weight in module.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.cpu(), rtol=0, atol=0)
    assert AutoProcessor.from_pretrained(folder).chat_template


def test_a_second_training_goes_on_from_the_first(
    trained: tuple[VisionLanguageModel, Path], tmp_path: Path
) -> None:
    first, folder = trained
    second = train(tmp_path / "second", model=str(folder), optimizer=still)
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=0, atol=0)


def test_a_frozen_tower_stays_as_it_was_while_the_language_model_learns(
    trained: tuple[VisionLanguageModel, Path], tmp_path: Path
) -> None:
    first, folder = trained
    second = train(tmp_path / "second", model=str(folder), freeze_tower=True)
    before, after = first.model.state_dict(), second.model.state_dict()
    moved = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert any("language_model" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("options", [{}, {"model": "any", "from_scratch": scratch()}])
def test_it_starts_from_a_model_or_from_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="exactly one of the two"):
        VisionLanguageModel(export_to="any", **options)
