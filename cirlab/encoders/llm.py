"""A causal language model as an embedder: words and visual tokens in, one vector out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cirlab.chunking import in_chunks
from cirlab.encoders.adapters import FourBit, Lora, add_lora_to_llm, stack_lora
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError

#: Stands for the one visual token in a text; never in any model's vocabulary.
IMAGE_PLACEHOLDER = "<|cirlab image|>"
#: The sentence before every query (CoLLM, supplement, 7.2).
INSTRUCTION = "Find the image that matches the query."

#: A batch is read in this many parts, shortest texts first: templates over two captions are
#: several times longer than a caption, and padding would be most of what the model computes.
LENGTH_GROUPS = 4

Pooling = Literal["last", "mean"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Attention = Literal["sdpa", "flash_attention_2", "eager"]


@dataclass(frozen=True)
class LLMProcessor:
    """The picklable half: texts with image placeholders to padded token ids.

    The placeholder gets the id after the vocabulary's last, so that a model's embedding
    matrix keeps its size. An end-of-sequence token closes every text, as embedding LLMs are
    trained (E5-Mistral, arXiv 2401.00368, section 3.1): its position is the one pooled.

    Attributes:
        max_length: tokens, the placeholder and both ends included; longer texts lose words
            before the end token.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def image_id(self) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        assert isinstance(token_id, int)
        return token_id

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, each (B, L) int64.

        Padded to the longest, rounded up to a multiple of 8.
        """
        rows = self.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        end = self.tokenizer.eos_token_id
        closed = [
            [*(row[:-1] if row[-1] == end else row)[: self.max_length - 1], end] for row in rows
        ]
        # Few distinct lengths let allocators reuse what they have freed, and suit tensor cores.
        padded = self.tokenizer.pad(
            {"input_ids": closed}, pad_to_multiple_of=8, return_tensors="pt"
        )
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


@dataclass(frozen=True)
class QueryTemplate:
    """The LLM's input (supplement, 7.2); a missing modality is left out with its label."""

    instruction: str = INSTRUCTION

    def __call__(self, *, image: bool, text: str | None) -> str:
        parts = [f"Instruct: {self.instruction}\nQuery:"]
        if image:
            parts.append(f"Image: {IMAGE_PLACEHOLDER}")
        if text is not None:
            parts.append(f"Text: {text}")
        return " ".join(parts)


class EmbeddingLLM(nn.Module):
    """A decoder-only transformer read out at its last token.

    Args:
        name: a hub name, a local folder, or `zoo:name`.
        lora: adapters; None trains all weights, unless `frozen`.
        four_bit: 4-bit base weights.
        frozen: train nothing of it.
        dtype: of the base weights; "auto" keeps the file's.
        attention: transformers' implementation of it.
        pooling: "last" takes the last real token under either padding side; "mean" averages.
        max_length: longest text in tokens.
        chunk_size: most texts read at once in training, in constant memory
            (`cirlab.chunking`); None keeps what every text computed.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping
            what it computed.
        device: where 4-bit weights are placed; other weights are moved by the trainer.
        key: the YAML key that names it, for error messages.
    """

    def __init__(
        self,
        name: str,
        *,
        lora: Lora | None = None,
        four_bit: FourBit | None = None,
        frozen: bool = False,
        dtype: Dtype = "float32",
        attention: Attention = "sdpa",
        pooling: Pooling = "last",
        max_length: int = 512,
        chunk_size: int | None = None,
        gradient_checkpointing: bool = False,
        device: torch.device | None = None,
        key: str = "llm",
    ) -> None:
        super().__init__()
        self.name = name
        self.pooling = pooling
        self.chunk_size = chunk_size
        folder = resolve_folder(name)
        placement: dict[str, Any] = {}
        if four_bit is not None:
            placement = {
                "quantization_config": four_bit.config(),
                "device_map": {"": device or torch.device("cpu")},
            }
        with weights_or_sentence(name, key=key):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModel.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, **placement
            )
        if gradient_checkpointing:
            checkpoint_layers(model)
        self.width: int = model.config.hidden_size
        self.model: nn.Module
        # transformers loads in eval mode; what trains is set to train mode by the trainer.
        if lora is not None:
            self.model = add_lora_to_llm(model, lora, quantized=four_bit is not None)
        else:
            self.model = model.requires_grad_(not frozen and four_bit is None)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_tokens([IMAGE_PLACEHOLDER], special_tokens=True)
        self.processor = LLMProcessor(tokenizer, max_length)

    def stack_lora(self, lora: Lora) -> None:
        """Add new adapters beside the present ones, which are frozen and stay at work."""
        self.model = stack_lora(self.model, lora)

    @property
    def _embedding(self) -> nn.Module:
        # Looked up each time: peft may wrap it.
        embedding: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return embedding

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed texts.

        Args:
            input_ids: Shape (B, L). Rows with an image hold its placeholder once.
            attention_mask: 1 for real tokens. Shape (B, L).
            visual_tokens: one per placeholder, in row order. Shape (N, H).

        Returns:
            Shape (B, H), not normalised.
        """
        is_image = input_ids == self.processor.image_id
        order = attention_mask.sum(dim=1).argsort()
        if self.chunk_size and torch.is_grad_enabled() and len(order) > self.chunk_size:
            pooled = self._read_in_chunks(input_ids, attention_mask, is_image, visual_tokens, order)
        else:
            embedded = self._embed(input_ids, is_image, visual_tokens)
            groups = order.chunk(min(LENGTH_GROUPS, len(order)))
            pooled = torch.cat(
                [self._read(embedded[rows], attention_mask[rows]) for rows in groups]
            )
        return pooled[order.argsort()]

    def _embed(
        self, input_ids: torch.Tensor, is_image: torch.Tensor, visual: torch.Tensor | None
    ) -> torch.Tensor:
        """Words and visual tokens, (B, L, H)."""
        embed = self._embedding
        # The placeholder's id lies outside the embedding matrix.
        embedded: torch.Tensor = embed(input_ids.masked_fill(is_image, 0))
        if visual is not None:
            # By position: the backward pass of `masked_scatter` reads the whole mask.
            places = is_image.nonzero(as_tuple=True)
            embedded = embedded.index_put(places, visual.to(embedded.dtype))
        return embedded

    def _read_in_chunks(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        is_image: torch.Tensor,
        visual: torch.Tensor | None,
        order: torch.Tensor,
    ) -> torch.Tensor:
        """Texts in the given order, embedded and read chunk by chunk. (B, H)."""
        assert self.chunk_size is not None
        # Each placeholder's number, in row order.
        number = is_image.flatten().cumsum(0).reshape(is_image.shape) - 1

        def read(rows: torch.Tensor) -> torch.Tensor:
            own = None if visual is None else visual[number[rows][is_image[rows]]]
            return self._read(
                self._embed(input_ids[rows], is_image[rows], own), attention_mask[rows]
            )

        chunks = max(LENGTH_GROUPS, math.ceil(len(order) / self.chunk_size))
        return in_chunks(read, order.chunk(chunks))

    def _read(self, embedded: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Texts of similar length, without the columns that none of them fills. (B, H)."""
        used = attention_mask.any(dim=0).nonzero().squeeze(1)
        embedded, attention_mask = embedded[:, used], attention_mask[:, used]
        # Counted from the first real token, so that left padding moves no position.
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Have each decoder layer computed again in the backward pass, in training.

    Raises:
        UserError: the model has no such layers.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} has no layers that can be computed again; set "
            "llm.gradient_checkpointing: false"
        )
    # transformers 5 renames it; the old name warns.
    old = model.gradient_checkpointing_enable
    # The reentrant variant needs inputs with gradients, which frozen embeddings have not.
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector per sequence, right under either padding side.

    Args:
        hidden: Shape (B, L, H).
        attention_mask: Shape (B, L).
        pooling: the last real token, or the mean of all.

    Returns:
        Shape (B, H).
    """
    if pooling == "mean":
        weights = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    length = attention_mask.shape[1]
    last = length - 1 - attention_mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
