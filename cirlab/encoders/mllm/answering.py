"""What a multimodal LLM answers to questions about a picture, which it looks at once for all.

An answer is the likeliest token, one after the other (greedy), up to the model's own end of a
reply. Questions continue the picture's prefix (`cirlab.encoders.mllm.prefix`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix import Prefix
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.errors import UserError


class Answer(NamedTuple):
    """What the model says.

    Attributes:
        text: without blanks around it; may be empty.
        cut: whether the model had not come to an end.
    """

    text: str
    cut: bool


@torch.no_grad()
def answers(
    images: PromptedImages, prefix: Prefix, question: torch.Tensor, max_new_tokens: int
) -> list[Answer]:
    """The answers to one question about each of some pictures.

    Args:
        images: whose prefix it is.
        prefix: of G pictures, on the model's device.
        question: as `cirlab.encoders.mllm.prefix_tokens.suffix_ids` makes it. Shape (S,).
        max_new_tokens: longest answer in tokens.

    Raises:
        UserError: picture, question and answer together may exceed the model's limit.
    """
    llm = images.llm
    _check_length(llm, prefix.length + len(question), max_new_tokens)
    ends = torch.tensor(_ends(llm), device=prefix.mask.device)
    # Its type is lost in transformers' models.
    head: Any = llm.speaker.get_output_embeddings()
    behind = images.follow(prefix)
    state = behind.read(question.expand(len(prefix), -1))
    ended = torch.zeros(len(prefix), dtype=torch.bool, device=prefix.mask.device)
    said: list[torch.Tensor] = []
    while True:
        token = head(state).argmax(dim=-1)
        ended = ended | torch.isin(token, ends)
        # What comes after an end is never decoded.
        said.append(token.masked_fill(ended, int(llm.processor.tokenizer.pad_token_id or 0)))
        if len(said) == max_new_tokens or ended.all():
            return _decoded(llm, torch.stack(said, dim=1), ended)
        state = behind.read(said[-1][:, None])


def _decoded(llm: EmbeddingMLLM, tokens: torch.Tensor, ended: torch.Tensor) -> list[Answer]:
    """Tokens (G, T), padded behind each end."""
    texts = llm.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    cut = (~ended).tolist()
    return [Answer(text.strip(), over) for text, over in zip(texts, cut, strict=True)]


def _ends(llm: EmbeddingMLLM) -> Sequence[int]:
    """Tokens by which the model ends a reply."""
    configured: Any = getattr(llm.speaker.generation_config, "eos_token_id", None)
    if configured is None:
        configured = llm.processor.tokenizer.eos_token_id
    return configured if isinstance(configured, list) else [configured]


def _check_length(llm: EmbeddingMLLM, asked: int, max_new_tokens: int) -> None:
    limit = llm.settings.max_length
    if asked + max_new_tokens > limit:
        raise UserError(
            f"a picture with its question has {asked} tokens, which leaves no {max_new_tokens} "
            f"for the answer below llm.max_length {limit}; raise llm.max_length to at least "
            f"{asked + max_new_tokens}, or lower max_new_tokens"
        )
