"""A language model learns to answer chats: instruction tuning, of a given one or from scratch.

By next-word prediction on conversations in the model's own chat template, where only the last
answer counts (as LLaVA is tuned, arXiv 2304.08485, section 4.2). This module makes the zoo's tiny
rewriter of dialogues, the part that DAR (arXiv 2501.15379) leaves to a large one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cirlab.distributed import gather
from cirlab.encoders.mllm.scratch import CHAT_TEMPLATE, subword_tokenizer
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.encoders.special_tokens import without_special_tokens
from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Targets that the loss leaves out.
IGNORED = -100
#: Tokens, of which conversations are padded to a multiple: few widths, for which libraries prepare
#: their kernels once.
STEP = 16


@dataclass
class LLMFromScratch:
    """A causal language model without weights, and a tokenizer learned from the training data.

    Attributes:
        config: transformers configuration, `model_type` included; vocabulary size and special
            tokens are filled in.
        texts: the tokenizer learns its merges from this many conversations of the data.
        vocabulary: entries of the vocabulary, at most.
    """

    config: dict[str, Any]
    texts: int = 2000
    vocabulary: int = 1024

    def build(self, records: Any) -> tuple[Any, PreTrainedTokenizerBase]:
        """Model of random weights, and tokenizer with a chat template.

        Args:
            records: the training data, conversations by `SampleKey`.
        """
        limit = self.config["max_position_embeddings"]
        tokenizer = subword_tokenizer(self._texts(records), self.vocabulary, limit)
        tokenizer.chat_template = CHAT_TEMPLATE
        config = AutoConfig.for_model(
            **self.config,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        return AutoModelForCausalLM.from_config(config), tokenizer

    def _texts(self, records: Any) -> Iterable[str]:
        for number in range(min(self.texts, len(records))):
            for turn in records[SampleKey(0, number)].turns:
                yield from turn


class ChatLanguageModel(Learner):
    """Trains a causal language model on `Conversation` records without pictures.

    Args:
        export_to: folder that receives the model at the end of training, in transformers' layout.
        model: hub name, folder or `zoo:` model with a chat template to go on from; null with
            `from_scratch`.
        from_scratch: an architecture without weights.
        group_size: conversations padded to one length.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.

    Raises:
        UserError: both or neither of `model` and `from_scratch` are given.
    """

    train_record = Conversation
    shardable = False

    def __init__(
        self,
        export_to: str,
        model: str | None = None,
        from_scratch: LLMFromScratch | None = None,
        group_size: int = 32,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if (model is None) == (from_scratch is None):
            raise UserError(
                "ChatLanguageModel takes either model or from_scratch: set exactly one of the two"
            )
        self.start, self.scratch = model, from_scratch
        self.export_to, self.group_size = Path(export_to), group_size
        self.model: Any = None
        self.tokenizer: Any = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        if self.start is not None:
            folder = resolve_folder(self.start)
            with weights_or_sentence(self.start, key="model.init_args.model"):
                self.tokenizer = AutoTokenizer.from_pretrained(folder)
                self.model = AutoModelForCausalLM.from_pretrained(folder)
            if not self.tokenizer.chat_template:
                raise UserError(
                    f"the model {self.start!r} (model.init_args.model) has no chat template; "
                    "choose one that was trained to follow instructions"
                )
        else:
            assert self.scratch is not None
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.model, self.tokenizer = self.scratch.build(data.train_dataset())
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        self.model.train()

    def train_collator(self) -> Callable[[Sequence[Conversation]], Inputs]:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return ChatCollator(self.tokenizer, self.group_size, limit)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Mean over the answered words of the whole batch."""
        total, words = torch.zeros((), device=self.device), 0
        for group in batch["groups"]:
            inputs = {key: value for key, value in group.items() if key != "labels"}
            labels = group["labels"][:, 1:]
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            counts = labels != IGNORED
            # The head is the widest layer: it reads only what counts.
            logits = self.model.get_output_embeddings()(hidden[counts]).float()
            total = total + cross_entropy(logits, labels[counts], reduction="sum")
            words += int(counts.sum())
        # Processes answer different numbers of words; averaged over them, it is the mean over all.
        every = gather(torch.tensor([words], device=self.device), self.data_parallel_group)
        return {"next_word": total / every.float().mean().clamp(min=1)}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        self.model.save_pretrained(self.export_to)
        self.tokenizer.save_pretrained(self.export_to)
        log.info("exported to %s", self.export_to)


@dataclass(frozen=True)
class ChatCollator:
    """Conversations to groups of similar length, each with its `labels`.

    Attributes:
        tokenizer: with a chat template.
        group_size: conversations padded to one length.
        limit: tokens that the model reads; None: any number.
    """

    tokenizer: PreTrainedTokenizerBase
    group_size: int
    limit: int | None = None

    def __call__(self, records: Sequence[Conversation]) -> Inputs:
        """{"groups": inputs of the model with "labels" (G, L), `IGNORED` but for last answers}.

        Raises:
            UserError: a conversation is longer than the model reads.
        """
        chats = sorted((self._ids(record) for record in records), key=lambda chat: len(chat[0]))
        size = self.group_size
        return {"groups": [_padded(chats[i : i + size]) for i in range(0, len(chats), size)]}

    def _ids(self, record: Conversation) -> tuple[list[int], int]:
        """Tokens of a conversation, and how many of them come before the last answer."""
        messages = [
            {"role": role, "content": without_special_tokens(self.tokenizer, text)}
            for turn in record.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        asked = self._tokens(messages[:-1], ask=True)
        whole = self._tokens(messages, ask=False)
        if self.limit is not None and len(whole) > self.limit:
            raise UserError(
                f"a conversation has {len(whole)} tokens, but the model reads {self.limit}; take a "
                "model that reads more, or shorter data"
            )
        return whole, len(asked)

    def _tokens(self, messages: list[dict[str, str]], *, ask: bool) -> list[int]:
        # A template writes the beginning of the text itself.
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _padded(chats: Sequence[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """Padded on the right: in a causal model nothing that counts looks at what comes later."""
    width = -(-max(len(ids) for ids, _ in chats) // STEP) * STEP
    tokens = torch.zeros((len(chats), width), dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for row, (ids, asked) in enumerate(chats):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        labels[row, asked : len(ids)] = torch.tensor(ids[asked:])
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
