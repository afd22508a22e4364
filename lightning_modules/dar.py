"""DAR: a dialogue is rewritten, drawn, and searched by words and picture together.

Long et al., "Diffusion Augmented Retrieval: A Training-Free Approach to Interactive Text-to-Image
Retrieval" (SIGIR 2025, arXiv 2501.15379). After each round an LLM writes all that is known into one
caption (`cirlab.dialogue.rewriting`), a text-to-image model draws it (`cirlab.imagination`), and a
dual encoder searches with both (`cirlab.imagination.fusion`). Nothing is trained, but the encoder
that its released code loads was: by ChatIR, on dialogues. Which one is used is told.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

import torch
from torch.nn.functional import normalize

from cirlab import distributed
from cirlab.dialogue.rewriting import Rewriter
from cirlab.encoders.dual.collate import ImageReader
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from cirlab.imagination import Imagination, Request
from cirlab.imagination.fusion import FusionSchedule
from cirlab.records import Image, Query
from lightning_modules.base import RetrievalModule
from lightning_modules.learner import Inputs

EncoderTraining = Literal["zero_shot", "fine_tuned"]


class DAR(RetrievalModule):
    """Words and drawn pictures search together; training-free.

    Args:
        clip: the dual encoder: an open_clip name, `local-dir:folder`, `blip:name` or `zoo:name`.
        encoder_training: "zero_shot" if it has never read a dialogue, "fine_tuned" if it was
            trained on them (what ChatIR exports); it changes nothing but what the run says of
            itself.
        clip_pretrained: open_clip's tag of the weights, with its built-in names.
        image_size: pixels; null keeps the weights' own.
        max_length: tokens of a text; null takes the encoder's own. Texts that are longer lose
            their last words, which is counted and told.
        rewriter: writes dialogues into captions; null searches with the texts as the benchmark
            gives them, for dialogues that are rewritten already.
        imagination: draws the texts, or has pictures of them; null searches with texts alone.
        fusion: how much pictures count; null takes the published weights.
    """

    query_kinds = frozenset({"dialogue"})
    composed_kinds = frozenset({"dialogue"})
    shardable = False

    def __init__(
        self,
        clip: str,
        encoder_training: EncoderTraining,
        clip_pretrained: str | None = None,
        image_size: int | None = None,
        max_length: int | None = None,
        rewriter: Rewriter | None = None,
        imagination: Imagination | None = None,
        fusion: FusionSchedule | None = None,
    ) -> None:
        super().__init__(torch.optim.AdamW, None)
        if encoder_training not in get_args(EncoderTraining):
            raise UserError(
                f"encoder_training is {encoder_training!r}; set it to zero_shot or fine_tuned"
            )
        self.clip_name, self.clip_pretrained = clip, clip_pretrained
        self.encoder_training = encoder_training
        self.image_size, self.max_length = image_size, max_length
        self.rewriter, self.imagination = rewriter, imagination
        self.fusion = fusion or FusionSchedule()
        if imagination is None and fusion is not None and fusion.draws:
            raise UserError(
                f"fusion gives pictures a weight ({list(fusion.weights)}), but there is no "
                "imagination; add one, or set fusion to null"
            )
        self.encoder: DualEncoder | None = None
        self._known: dict[str, Told] | None = None

    # ---- weights ------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.encoder is None:
            self.encoder = load_dual_encoder(
                self.clip_name, self.clip_pretrained, self.image_size, self.max_length
            )
            self.encoder.requires_grad_(False).eval()

    def frozen_base(self) -> dict[str, str]:
        return {"clip": self._encoder.name}

    @property
    def _encoder(self) -> DualEncoder:
        assert self.encoder is not None, "configure_model has not run"
        return self.encoder

    # ---- nothing is trained -------------------------------------------------------------

    def train_collator(self) -> NoReturn:
        raise UserError("DAR is training-free; run validate instead of fit")

    def losses(self, batch: Inputs) -> NoReturn:
        self.train_collator()

    def check_export(self, merged: bool) -> None:
        raise UserError(
            f"DAR has learned nothing that could be exported; load {self.clip_name} itself"
        )

    # ---- evaluation ---------------------------------------------------------------------

    def told(self, queries: Sequence[Query]) -> list[Told]:
        """What the queries become: texts, and pictures of them.

        On all processes together, which share the drawing. Queries of a running evaluation are
        rewritten and drawn once, all before the first is searched.
        """
        if self._known is not None:
            return [self._known[key_of(query)] for query in queries]
        texts = [query.text for query in queries]
        if self.rewriter is not None:
            texts = self.rewriter([query.rounds for query in queries])
        if self.imagination is None:
            return [Told(text) for text in texts]
        named = zip(queries, texts, strict=True)
        requests = [Request(*place_of(query), text) for query, text in named]
        share = requests[distributed.rank() :: distributed.world_size()]
        draw = self.imagination.pictures
        # Where it draws, a part each; then all have all.
        distributed.together(lambda: draw(share) if share else None)
        pictures = distributed.together(lambda: draw(requests))
        return [Told(text, tuple(found)) for text, found in zip(texts, pictures, strict=True)]

    def as_asked(self, queries: Sequence[Query]) -> list[Query]:
        told = self.told(queries)
        return [each.as_query(query) for each, query in zip(told, queries, strict=True)]

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return ImageReader(self._encoder.processor)

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        # Here, and not when the evaluation starts: Lightning has made its loaders by then.
        trainer = self._trainer
        if trainer is None:
            return ToldCollator(ImageReader(self._encoder.processor), ask=self.told)
        if self._known is None:
            queries = [q for b in self._dialogues for q in b.queries]
            distinct = list({key_of(query): query for query in queries}.values())
            told = self.told(distinct)
            self._known = dict(zip(map(key_of, distinct), told, strict=True))
        return ToldCollator(ImageReader(self._encoder.processor), known=self._known)

    @property
    def _dialogues(self) -> list[Any]:
        benchmarks = self.trainer.datamodule.benchmarks  # type: ignore[attr-defined]
        return [benchmark for benchmark in benchmarks if benchmark.kind in self.query_kinds]

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._encoder.embed_images(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        parts = self._parts(inputs)
        if "image_only" not in parts:
            return parts["text_only"]
        return self.fusion(parts["text_only"], parts["image_only"], inputs["round"])

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """The text alone and the picture alone; `sum` weighs both the same."""
        parts = self._parts(inputs)
        return parts if "image_only" in parts else {}

    def _parts(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        parts = {"text_only": self._encoder.encode_texts(inputs["text"])}
        if "image" in inputs:
            drawn = self._encoder.embed_images(inputs["image"])
            of_each = drawn.unflatten(0, (len(parts["text_only"]), -1))
            parts["image_only"] = normalize(of_each.mean(dim=1), dim=-1)
        return parts


@dataclass(frozen=True)
class Told:
    """What a query became.

    Attributes:
        text: that is searched and was drawn.
        pictures: of the text, equally many for all queries.
    """

    text: str
    pictures: tuple[Image, ...] = ()

    def as_query(self, query: Query) -> Query:
        """The query as it was asked, to be looked at: with the first of its pictures."""
        image = self.pictures[0] if self.pictures else None
        return dataclasses.replace(query, text=self.text, image=image)


@dataclass(frozen=True)
class ToldCollator:
    """Queries to {"text": tokens, "cut_texts": (B,), "round": (B,)} and "image" of B x n pictures.

    Attributes:
        images: reads the pictures.
        known: what queries became, by `key_of`; picklable, for loader workers.
        ask: tells it where nothing is known before.
    """

    images: ImageReader
    known: Mapping[str, Told] = field(default_factory=dict)
    ask: Callable[[Sequence[Query]], Sequence[Told]] | None = None

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        told = self.ask(queries) if self.ask else [self.known[key_of(query)] for query in queries]
        texts, tokenize = [each.text for each in told], self.images.processor.tokenize
        inputs: dict[str, Any] = {
            "text": tokenize(texts),
            "cut_texts": tokenize.cut(texts),
            "round": torch.tensor([len(query.rounds) - 1 for query in queries]),
        }
        if pictures := [picture for each in told for picture in each.pictures]:
            inputs["image"] = self.images(pictures)
        return inputs


def place_of(query: Query) -> tuple[str, int]:
    """Dialogue and round, by which its picture is named."""
    dialogue, _, number = query.id.rpartition("#")
    if dialogue:
        return dialogue, int(number)
    # Of a chat, which has no name.
    return f"chat-{key_of(query)[:16]}", len(query.rounds) - 1


def key_of(query: Query) -> str:
    """Tells queries apart by what is asked in which dialogue."""
    words = "\0".join((query.id, query.text, *query.rounds))
    return hashlib.sha256(words.encode()).hexdigest()
