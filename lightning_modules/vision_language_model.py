"""A small multimodal LLM from scratch: it learns to describe pictures and to answer questions.

Real methods here start from such models (LLaVA, arXiv 2304.08485; Qwen2-VL, arXiv 2409.12191). This
module makes the zoo's tiny one, in LLaVA's layout, by next-word prediction on conversations, where
only what is answered counts (LLaVA, section 4.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from cirlab.encoders.mllm import MLLMSettings, load_mllm
from cirlab.encoders.mllm_processor import MLLMProcessor
from cirlab.encoders.scratch_mllm import (
    PAD,
    role_token,
    subword_tokenizer,
    write_mllm_folder,
)
from cirlab.records import Conversation, SampleKey
from lightning_modules.learner import Inputs, Learner, Schedule

log = logging.getLogger(__name__)

#: Targets that the loss leaves out.
IGNORED = -100


class VisionLanguageModel(Learner):
    """Trains a LLaVA on `Conversation` records.

    Args:
        vision: transformers configuration of the image tower, `model_type` included.
        text: that of the language model; vocabulary size and special tokens are filled in.
        export_to: folder that receives the model, in transformers' layout.
        texts: the tokenizer learns its merges from this many conversations of the data.
        prompts: further texts that it learns them from, those that methods put to the model.
        vocabulary: entries of the vocabulary, at most.
        group_size: conversations padded to one length.
        start: folder of a model to go on from, with its tokenizer; null starts from random weights.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = Conversation
    shardable = False

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        export_to: str,
        texts: int = 4000,
        prompts: list[str] | None = None,
        vocabulary: int = 1024,
        group_size: int = 32,
        start: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.vision, self.text, self.export_to = vision, text, Path(export_to)
        self.texts, self.prompts, self.vocabulary = texts, prompts or [], vocabulary
        self.group_size, self.start = group_size, start
        self.model: Any = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        self.model, self.transformers_processor = self._begun() if self.start else self._scratch()
        self.model.train()
        self.processor = MLLMProcessor(
            self.transformers_processor,
            max_length=self.text["max_position_embeddings"],
            group_size=self.group_size,
        )

    def _begun(self) -> tuple[Any, Any]:
        """An earlier training's model and processor."""
        model, processor = load_mllm(MLLMSettings(str(self.start)))
        return model, processor

    def _scratch(self) -> tuple[Any, Any]:
        """A model of random weights, and a tokenizer learned from the data."""
        tokenizer = subword_tokenizer(
            self._texts(), self.vocabulary, self.text["max_position_embeddings"]
        )
        # Not in export_to: what an earlier run has left there stays whole until this one ends.
        with TemporaryDirectory() as folder:
            write_mllm_folder(Path(folder), self.vision, self.text, tokenizer)
            processor = AutoProcessor.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
        return AutoModelForImageTextToText.from_config(config), processor

    def _texts(self) -> Iterable[str]:
        """Prompts, and texts of the training data's first conversations."""
        yield from self.prompts
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        records = data.train_dataset()
        keys = (SampleKey(0, i) for i in range(len(records)))
        for key in islice(keys, self.texts):
            for turn in records[key].turns:
                yield from turn

    def train_collator(self) -> Callable[[Sequence[Conversation]], Inputs]:
        return ConversationCollator(self.processor)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Mean over the answered words of the whole batch."""
        total, count = torch.zeros((), device=self.device), 0
        for group in batch["groups"]:
            inputs = {key: value for key, value in group.items() if key != "labels"}
            labels = group["labels"][:, 1:]
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            # The head is the widest layer: it reads only what counts.
            counts = labels != IGNORED
            logits = self.model.lm_head(hidden[counts]).float()
            total = total + cross_entropy(logits, labels[counts], reduction="sum")
            count += int(counts.sum())
        return {"next_word": total / max(count, 1)}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        self.model.save_pretrained(self.export_to)
        self.transformers_processor.save_pretrained(self.export_to)
        log.info("exported to %s", self.export_to)


@dataclass(frozen=True)
class ConversationCollator:
    """Conversations to groups of similar length, each with its `labels`."""

    processor: MLLMProcessor

    def __call__(self, records: Sequence[Conversation]) -> Inputs:
        """{"groups": inputs of the model with "labels" (G, L), `IGNORED` but for answers}."""
        ordered = sorted(records, key=lambda r: (r.image is None, sum(map(_length, r.turns))))
        with_image = sum(record.image is not None for record in ordered)
        size = self.processor.group_size
        parts = (ordered[:with_image], ordered[with_image:])
        return {
            "groups": [
                self._group(part[start : start + size])
                for part in parts
                for start in range(0, len(part), size)
            ]
        }

    def _group(self, records: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        processor = self.processor.processor
        images = [record.image.load() for record in records if record.image is not None]
        inputs = processor(
            text=[self.processor.chat(messages(record)) for record in records],
            images=images or None,
            padding=True,
            return_tensors="pt",
        )
        inputs["labels"] = self._labels(inputs["input_ids"])
        return dict(inputs)

    def _labels(self, ids: torch.Tensor) -> torch.Tensor:
        """What stands between the assistant's token and the end of its message, end included."""
        tokenizer = self.processor.tokenizer
        vocabulary = tokenizer.get_vocab()
        begin, user = (vocabulary[role_token(role)] for role in ("assistant", "user"))
        begun, asked = (ids == begin).cumsum(dim=1), (ids == user).cumsum(dim=1)
        # After as many answers were begun as questions asked, the assistant speaks.
        answered = (begun == asked) & (asked > 0) & (ids != begin)
        padding = ids == vocabulary[PAD]
        return torch.where(answered & ~padding, ids, IGNORED)


def messages(record: Conversation) -> list[dict[str, Any]]:
    """A conversation as chat templates take it, the picture before the first question."""
    found: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(record.turns):
        picture = [{"type": "image"}] if number == 0 and record.image is not None else []
        found.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return found


def _length(turn: tuple[str, str]) -> int:
    return len(turn[0]) + len(turn[1])
