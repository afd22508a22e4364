"""A small embedding LLM from scratch: next words, and texts that mean the same.

Real methods here start from embedding LLMs (E5-Mistral, arXiv 2401.00368; SFR-Embedding-2):
language models that were then trained contrastively on text pairs, an instruction before the
query, read out at the last token. This module makes the zoo's tiny one by the same two
objectives at once. It sees no image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cirlab.chunking import check_chunk_size, each_chunk, split
from cirlab.distributed import gather, rank
from cirlab.encoders.export import Exported, check_merging, save_language_model
from cirlab.encoders.export_code import EMBED_TEXT, Snippet, script, text_reader
from cirlab.encoders.llm import LLMProcessor, QueryTemplate, pool
from cirlab.encoders.scratch import read_word_vectors, set_word_vectors, write_llm_folder
from cirlab.encoders.vocabulary import WORLD, vocabulary_words
from cirlab.losses import ContrastiveLoss
from cirlab.records import TextPair
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule


class EmbeddingLanguageModel(Learner):
    """Trains a transformers causal LM on `TextPair` records.

    Args:
        config: transformers configuration, `model_type` included; vocabulary size and special
            tokens are filled in.
        export_to: folder that receives the model, in transformers' layout.
        vocabulary: "world", or a folder of word vectors whose words are taken and whose vectors
            start the embedding matrix.
        caption_files: pairs.jsonl files whose frequent words join the vocabulary.
        temperature: of the contrastive loss (unitless).
        max_length: longest text in tokens.
        chunk_size: texts read at once in training, so that the batch may be of any size
            (GradCache); null keeps what every text computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = TextPair
    shardable = False

    def __init__(
        self,
        config: dict[str, Any],
        export_to: str,
        vocabulary: str = WORLD,
        caption_files: list[str] | None = None,
        temperature: float = 0.05,
        max_length: int = 128,
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.config, self.export_to, self.vocabulary = config, Path(export_to), vocabulary
        self.caption_files = caption_files or []
        check_chunk_size(chunk_size)
        self.max_length, self.chunk_size = max_length, chunk_size
        self.contrastive = ContrastiveLoss(temperature=temperature)
        self.model: Any = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        # Not in export_to: what an earlier run has left there stays whole until this one ends.
        with TemporaryDirectory() as folder:
            self._write_folder(Path(folder))
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_config(config).train()
        if self.vocabulary != WORLD:
            words, vectors = read_word_vectors(Path(self.vocabulary))
            embedding = self.model.get_input_embeddings()
            set_word_vectors(embedding, self.tokenizer, words, vectors)
        check_chunk_size(self.chunk_size, self.model)

    def _write_folder(self, folder: Path) -> None:
        """Configuration and tokenizer in transformers' layout, without weights."""
        words = vocabulary_words(self.vocabulary, self.caption_files)
        write_llm_folder(folder, self.config, words)

    def train_collator(self) -> Callable[[Sequence[TextPair]], Inputs]:
        return TextPairCollator(LLMProcessor(self.tokenizer, self.max_length), QueryTemplate())

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        query, query_words = self._read(batch["query"])
        target, target_words = self._read(batch["target"])
        group = self.data_parallel_group
        # Ids of the pairs, of which no two processes have the same.
        rows = torch.arange(len(query), device=query.device) + rank(group) * len(query)
        return {
            "contrastive": self.contrastive(query, target, rows, group=group),
            "next_word": (query_words + target_words) / 2,
        }

    def _read(self, tokens: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, H), unit length, and the loss of the next word, nats a token."""
        parts = each_chunk(self._read_chunk, split(tokens, self.chunk_size))
        embeddings, nats, words = zip(*parts, strict=True)
        # One mean over all words, of which chunks and processes hold different numbers; averaged
        # over the processes, it is that of one with the whole batch.
        count = gather(torch.stack(words).sum().reshape(1), self.data_parallel_group).float().mean()
        return torch.cat(embeddings), torch.stack(nats).sum() / count

    def _read_chunk(self, tokens: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings of some texts (C, H), nats of all their next words, and number of these."""
        assert self.model is not None
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        embeddings = pool(out.hidden_states[-1], mask, "last")
        following = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        logits = out.logits[:, :-1].flatten(0, 1).float()
        nats = cross_entropy(logits, following.flatten(), reduction="sum")
        return normalize(embeddings.float(), dim=-1), nats, (following >= 0).sum()

    def check_export(self, merged: bool) -> None:
        check_merging(merged, adapters=False, four_bit=False)

    def export(self, folder: Path, merged: bool) -> Exported:
        assert self.model is not None
        self._write_folder(folder)
        load = save_language_model(self.model, folder, "", base="", merged=merged)
        read = text_reader("folder", self.max_length, "last")
        embed = Snippet(("from torch.nn.functional import normalize",), EMBED_TEXT)
        return Exported(
            what="A language model that embeds texts: those of one image have similar vectors "
            "(cosine). A folder of transformers', whole.",
            code=script(load, read, embed),
        )

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            assert self.model is not None
            self._write_folder(self.export_to)
            self.model.save_pretrained(self.export_to)


@dataclass(frozen=True)
class TextPairCollator:
    """Text pairs to token ids; the query carries the instruction, the target does not."""

    words: LLMProcessor
    template: QueryTemplate

    def __call__(self, records: Sequence[TextPair]) -> Inputs:
        queries = [self.template(image=False, text=pair.query) for pair in records]
        return {
            "query": self.words(queries),
            "target": self.words([pair.target for pair in records]),
        }
