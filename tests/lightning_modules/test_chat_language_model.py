"""A language model that learns to answer chats: what counts in its loss, what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from cirlab.chat.llm import Decoding, InstructionLLM
from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from datamodules import WorldRewritingData
from lightning_modules import ChatLanguageModel
from lightning_modules.chat_language_model import IGNORED, LLMFromScratch

CONFIG = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def scratch(**options: Any) -> LLMFromScratch:
    return LLMFromScratch(CONFIG | options, texts=40, vocabulary=400)


def train(folder: Path, samples: int = 12, **options: Any) -> ChatLanguageModel:
    L.seed_everything(0)
    if "model" not in options:
        options.setdefault("from_scratch", scratch())
    module = ChatLanguageModel(export_to=str(folder), group_size=4, **options)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, WorldRewritingData(samples=samples, batch_size=6, rounds=3))
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatLanguageModel, Path]:
    """Two steps on twelve dialogues."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    return train(folder), folder


def test_only_the_last_answer_counts_its_end_included(
    trained: tuple[ChatLanguageModel, Path],
) -> None:
    module, _ = trained
    turns = (("a star\nwhere? at sea", "a star, at sea"), ("a ring\nwhen? at night", "a ring"))
    short = Conversation((("a cross", "a cross <|end|> at sea"),))
    (group,) = module.train_collator()([Conversation(turns), short])["groups"]
    said = [module.tokenizer.decode(row[row != IGNORED]) for row in group["labels"]]
    # What looks like a special token is words. The shorter conversation stands first.
    assert said == ["a cross < |end|> at sea<|end|>", "a ring<|end|>"]
    counted = group["labels"] != IGNORED
    assert (group["input_ids"][counted] == group["labels"][counted]).all()
    assert not (counted & (group["attention_mask"] == 0)).any()
    whole = module.tokenizer.decode(group["input_ids"][1][group["attention_mask"][1] == 1])
    assert whole.startswith(
        "<|user|>a star\nwhere? at sea<|end|><|assistant|>a star, at sea<|end|>"
    )


def test_the_loss_is_the_mean_over_all_answered_words(
    trained: tuple[ChatLanguageModel, Path],
) -> None:
    module, _ = trained
    records = WorldRewritingData(samples=12, batch_size=6).train_dataset()
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


def test_what_it_writes_answers_as_any_instruction_llm(
    trained: tuple[ChatLanguageModel, Path],
) -> None:
    module, folder = trained
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in module.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.cpu(), rtol=0, atol=0)
    llm = InstructionLLM(str(folder))
    chats = [[{"role": "user", "content": text}] for text in ("a star", "a ring\nwhere? at sea")]
    assert len(llm.replies(chats, Decoding(max_new_tokens=4), seed=0)) == 2
    # It reads a chat as it was trained to.
    (group,) = module.train_collator()([Conversation((("a star", "a"),))])["groups"]
    asked = int((group["labels"][0] != IGNORED).nonzero()[0])
    assert llm._ids(chats[0]) == group["input_ids"][0, :asked].tolist()


def test_a_second_training_goes_on_from_the_first(
    trained: tuple[ChatLanguageModel, Path], tmp_path: Path
) -> None:
    first, folder = trained
    second = train(tmp_path / "second", model=str(folder), optimizer=still)
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=0, atol=0)


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("options", [{}, {"model": "any", "from_scratch": scratch()}])
def test_it_starts_from_a_model_or_from_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="exactly one of the two"):
        ChatLanguageModel(export_to="x", **options)


def test_models_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'zoo:tiny_llm' .*has no chat template; choose one that"):
        train(tmp_path, model="zoo:tiny_llm")


def test_what_the_model_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens, but the model reads 24; take a model that reads"):
        train(tmp_path, from_scratch=scratch(max_position_embeddings=24))
