"""A small multimodal LLM from scratch: it learns to describe pictures and to answer questions.

Real methods here start from such models (LLaVA, arXiv 2304.08485; Qwen2-VL, arXiv 2409.12191). This
module makes the zoo's tiny one, in LLaVA's layout, by next-word prediction on conversations, where
only what is answered counts (LLaVA, section 4.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from cirlab.distributed import gather
from cirlab.encoders.mllm.loading import load_mllm
from cirlab.encoders.mllm.processor import MLLMProcessor
from cirlab.encoders.mllm.scratch import (
    PAD,
    role_token,
    subword_tokenizer,
    write_mllm_folder,
)
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Targets that the loss leaves out.
IGNORED = -100


@dataclass
class MLLMFromScratch:
    """A LLaVA that starts without weights, and a tokenizer learned from the training data.

    Attributes:
        vision: transformers configuration of the image tower, `model_type` included.
        text: that of the language model; vocabulary size and special tokens are filled in.
        texts: the tokenizer learns its merges from this many conversations of the data.
        prompts: further texts that it learns them from, those that methods put to the model.
        vocabulary: entries of the vocabulary, at most.
        vision_weights: folder of an image tower of that configuration to start with
            (`TokenLabelling` writes one); null starts it at random.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    texts: int = 4000
    prompts: list[str] = field(default_factory=list)
    vocabulary: int = 1024
    vision_weights: str | None = None

    def build(self, records: Any) -> tuple[Any, Any]:
        """Model of random weights, and processor.

        Args:
            records: the training data, conversations by `SampleKey`.
        """
        limit = self.text["max_position_embeddings"]
        tokenizer = subword_tokenizer(self._texts(records), self.vocabulary, limit)
        with TemporaryDirectory() as folder:
            write_mllm_folder(Path(folder), self.vision, self.text, tokenizer)
            processor = AutoProcessor.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_config(config)
        if self.vision_weights is not None:
            set_image_tower(model, Path(self.vision_weights))
        return model, processor

    def _texts(self, records: Any) -> Iterable[str]:
        yield from self.prompts
        for number in range(min(self.texts, len(records))):
            for turn in records[SampleKey(0, number)].turns:
                yield from turn


def set_image_tower(model: Any, folder: Path) -> None:
    """Give a LLaVA the image tower of a folder.

    Raises:
        UserError: there is none, or it is of another architecture.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"from_scratch.vision_weights: there is no image tower in {folder}; train one first "
            "(`python -m cirlab fit -c experiments/zoo/tower.yaml`), or set vision_weights to null"
        )
    tower = model.model.vision_tower
    weights = AutoModel.from_pretrained(folder).state_dict()
    shapes = {name: value.shape for name, value in tower.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise UserError(
            f"from_scratch.vision_weights: the image tower in {folder} is of another architecture "
            "than from_scratch.vision; give both the same configuration"
        )
    tower.load_state_dict(weights)


class VisionLanguageModel(Learner):
    """Trains a multimodal LLM on `Conversation` records.

    Args:
        export_to: folder that receives the model at the end of training, in transformers' layout.
        model: hub name, folder or `zoo:` model to go on from; null with `from_scratch`.
        from_scratch: an architecture without weights.
        group_size: conversations padded to one length.
        freeze_tower: leave the image tower as it is (LLaVA, section 4.2). One that has learned to
            see forgets it while the language model learns to speak.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = Conversation
    shardable = False

    def __init__(
        self,
        export_to: str,
        model: str | None = None,
        from_scratch: MLLMFromScratch | None = None,
        group_size: int = 32,
        freeze_tower: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if (model is None) == (from_scratch is None):
            raise UserError(
                "VisionLanguageModel takes either model or from_scratch: set exactly one of the two"
            )
        self.start, self.scratch = model, from_scratch
        self.export_to = Path(export_to)
        self.group_size = group_size
        self.freeze_tower = freeze_tower
        self.model: Any = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        if self.start is not None:
            self.model, own = load_mllm(MLLMSettings(self.start))
        else:
            assert self.scratch is not None
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.model, own = self.scratch.build(data.train_dataset())
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        self.model.train()
        self.model.model.vision_tower.requires_grad_(not self.freeze_tower)
        limit = self.model.config.get_text_config().max_position_embeddings
        self.processor = MLLMProcessor(own, max_length=limit, group_size=self.group_size)

    def train_collator(self) -> Callable[[Sequence[Conversation]], Inputs]:
        return ConversationCollator(self.processor)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Mean over the answered words of the whole batch."""
        total, words = torch.zeros((), device=self.device), 0
        for group in batch["groups"]:
            inputs = {key: value for key, value in group.items() if key != "labels"}
            labels = group["labels"][:, 1:]
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            # The head is the widest layer: it reads only what counts.
            counts = labels != IGNORED
            logits = self.model.lm_head(hidden[counts]).float()
            total = total + cross_entropy(logits, labels[counts], reduction="sum")
            words += int(counts.sum())
        # Processes answer different numbers of words; averaged over them, it is the mean over all.
        every = gather(torch.tensor([words], device=self.device), self.data_parallel_group)
        return {"next_word": total / every.float().mean().clamp(min=1)}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        self.model.save_pretrained(self.export_to)
        self.processor.processor.save_pretrained(self.export_to)
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
