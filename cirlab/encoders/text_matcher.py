"""A text embedder that finds, by a query, those of many short texts that answer it.

Embedding LLMs are told by an instruction before the query what is looked for; the texts themselves
are read as they are (E5-Mistral, arXiv 2401.00368; GritLM, arXiv 2402.09906).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize, pad

from cirlab.encoders.adapters import FourBit
from cirlab.encoders.llm import Attention, Dtype, EmbeddingLLM, LLMProcessor, Pooling
from cirlab.encoders.mllm.processor import TEXT_MARK, check_marks
from cirlab.errors import UserError


@dataclass(frozen=True)
class TextMatcherSettings:
    """The text embedder and what it reads.

    Attributes:
        name: hub name, local folder or `zoo:name`.
        query: what it reads of a query, whose words stand for `{text}`.
        answer: what it reads of a text that is looked for.
        four_bit: 4-bit weights; null keeps all bits.
        dtype: of the weights; "auto" keeps the file's.
        attention: transformers' implementation of it.
        pooling: "last" takes the last token, "mean" averages.
        max_length: longest query or text in tokens; longer ones lose words at their end.
    """

    name: str
    query: str = f"Instruct: Find a caption that contains the given information\nQuery: {TEXT_MARK}"
    answer: str = TEXT_MARK
    four_bit: FourBit | None = None
    dtype: Dtype = "float32"
    attention: Attention = "sdpa"
    pooling: Pooling = "last"
    max_length: int = 512

    def __post_init__(self) -> None:
        templates = {"matcher.query": self.query, "matcher.answer": self.answer}
        check_marks(templates, dict.fromkeys(templates, (TEXT_MARK,)))
        if self.max_length < 1:
            raise UserError(f"matcher.max_length is {self.max_length}; set it to 1 token or more")


@dataclass(frozen=True)
class QueryReader:
    """The picklable half: queries' words to token ids."""

    processor: LLMProcessor
    template: str

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """As `LLMProcessor`."""
        return self.processor([self.template.replace(TEXT_MARK, text) for text in texts])


class TextMatcher(nn.Module):
    """Unit vectors of queries and of texts, of which an empty one fits every query worst.

    An empty text would have the vector of its template, or of no words at all, and that might lie
    nearer to a query than what others say. One more dimension is therefore given to all: q becomes
    (q, 1) / sqrt(2), a text (v, 0) and an empty one (0, -1). Scores of texts stay in their order,
    and none is below an empty one's.

    Args:
        settings: which model, and what it reads.
        device: where 4-bit weights are placed; other weights are moved by the trainer.

    Raises:
        UserError: the weights cannot be read.
    """

    def __init__(self, settings: TextMatcherSettings, device: torch.device | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.llm = EmbeddingLLM(
            settings.name,
            four_bit=settings.four_bit,
            frozen=True,
            dtype=settings.dtype,
            attention=settings.attention,
            pooling=settings.pooling,
            max_length=settings.max_length,
            device=device,
            key="matcher.name",
        )
        #: Vectors of the texts read so far, on the CPU.
        self._known: dict[str, torch.Tensor] = {}

    @property
    def dim(self) -> int:
        return self.llm.width + 1

    @property
    def reader(self) -> QueryReader:
        return QueryReader(self.llm.processor, self.settings.query)

    def forget(self) -> None:
        """Texts that were read before will be read again."""
        self._known.clear()

    def queries(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors of queries as `reader` makes them, (B, D), float32."""
        return normalize(pad(self._read(inputs), (0, 1), value=1.0), dim=-1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of texts, (N, D), float32, on the CPU."""
        if not texts:
            return torch.empty(0, self.dim)
        return torch.stack([self._text(text) for text in texts])

    def _text(self, text: str) -> torch.Tensor:
        """One vector, (D,).

        Texts are read one by one: what a batch holds beside them would show in their last digits,
        and equal texts are to score the same wherever they are said.
        """
        if text not in self._known:
            if text.strip():
                words = self.settings.answer.replace(TEXT_MARK, text)
                device = next(self.llm.parameters()).device
                read = self.llm.processor([words])
                vectors = self._read({name: ids.to(device) for name, ids in read.items()})
                self._known[text] = pad(vectors, (0, 1))[0].cpu()
            else:
                self._known[text] = pad(torch.tensor([-1.0]), (self.llm.width, 0))
        return self._known[text]

    def _read(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.llm(inputs["input_ids"], inputs["attention_mask"])
        return normalize(hidden.float(), dim=-1)
