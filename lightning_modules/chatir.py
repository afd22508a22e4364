"""ChatIR: a text encoder learns to find images by dialogues of any length.

Levy et al., "Chatting Makes Perfect: Chat-based Image Retrieval" (NeurIPS 2023, arXiv 2305.20062),
section 3 and supplement D. The image side of a dual encoder stays as it is, so that a gallery needs
to be encoded once whatever is learned; the text side is trained on the first rounds of dialogues
(`cirlab.dialogue.partial`), by a surrogate of recall@k or by InfoNCE. Training code was never
released; figures that the paper lacks are those of PlugIR's (Lee et al., ACL 2024).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from cirlab.chunking import check_chunk_size, in_chunks, split
from cirlab.encoders.dual.collate import ImageReader
from cirlab.encoders.dual.encoder import DualEncoder, Tokenizer
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.export import Exported, check_merging, dual_text, save_dual_encoder
from cirlab.encoders.export_code import script
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss, pair_ids
from cirlab.recall_surrogate import RecallSurrogate
from cirlab.records import Image, Pair, Query
from lightning_modules.base import RetrievalModule
from lightning_modules.frozen_features import frozen_vectors
from lightning_modules.learner import Inputs
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)


class ChatIR(RetrievalModule):
    """The text side of a dual encoder, trained on partial dialogues (`records: partial_dialogues`).

    Args:
        clip: the dual encoder: an open_clip name, `local-dir:folder`, `blip:name` or `zoo:name`;
            `blip:` takes hub names, folders, `zoo:name` and files of BLIP's own code.
        clip_pretrained: open_clip's tag of the weights, with its built-in names.
        image_size: pixels; positions are interpolated if it is not the weights' own. Null keeps it.
        max_length: tokens of a text, of which longer ones lose the newest words; ChatIR reads 200.
            Null takes open_clip's own, and a caption's 35 of BLIP. More than an open_clip model was
            trained with interpolates its positions, which then have to be trained.
        loss: what is minimised; null takes the surrogate of recall@k.
        cache_features: run the image side once over all images and keep their vectors in
            memory-mapped files; needs data with a fixed set of training images.
        dropout: of the text side in training; null keeps what the model has.
        chunk_size: texts and images encoded at once in training, so that the batch may be of any
            size (GradCache); null keeps what every row computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = Pair
    query_kinds = frozenset({"text", "dialogue"})
    shardable = False
    learning_arguments = RetrievalModule.learning_arguments | {
        "loss",
        "cache_features",
        "dropout",
        "chunk_size",
    }

    def __init__(
        self,
        clip: str,
        clip_pretrained: str | None = None,
        image_size: int | None = None,
        max_length: int | None = None,
        loss: RecallSurrogate | ContrastiveLoss | None = None,
        cache_features: bool = False,
        dropout: float | None = None,
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        check_chunk_size(chunk_size)
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"dropout is {dropout}; choose a share from 0 to below 1, or null")
        self.clip_name, self.clip_pretrained = clip, clip_pretrained
        self.image_size, self.max_length = image_size, max_length
        self.loss = loss or RecallSurrogate()
        self.cache_features = cache_features
        self.cache: FeatureCache | None = None
        self.dropout, self.chunk_size = dropout, chunk_size
        self.encoder: DualEncoder | None = None
        self._told = False

    # ---- weights ------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.encoder is not None:
            return
        encoder = load_dual_encoder(
            self.clip_name, self.clip_pretrained, self.image_size, self.max_length
        )
        encoder.requires_grad_(False)
        for parameter in encoder.text_parameters():
            parameter.requires_grad_(True)
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        encoder.train()
        encoder.image_side.eval()
        if self.dropout is not None:
            _set_dropout(encoder, self.dropout)
        check_chunk_size(self.chunk_size, encoder)
        self.encoder = encoder

    def frozen_base(self) -> dict[str, str]:
        return {"clip": self._encoder.name}

    def frozen_settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "max_length": self.max_length}

    @property
    def _encoder(self) -> DualEncoder:
        assert self.encoder is not None, "configure_model has not run"
        return self.encoder

    @property
    def _reader(self) -> ImageReader:
        # Here, and not on_fit_start: Lightning builds the training loader earlier, when it counts
        # the steps for the schedule. Without a trainer (a chat) nothing tells which images come.
        if self.cache_features and self.cache is None and self._trainer is not None:
            self.cache = frozen_vectors(self, self._encoder)
        return ImageReader(self._encoder.processor, self.cache, cached="vectors")

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[Pair]], Inputs]:
        return TrainCollator(self._reader)

    def training_step(self, batch: Inputs, batch_idx: int) -> torch.Tensor:
        cut = batch["cut_texts"].float().mean()
        self.log("train/cut_texts", cut)
        if cut and not self._told and self.trainer.is_global_zero:
            self._told = True
            log.warning(
                "some dialogues are longer than the %d tokens that %s reads, which never sees "
                "their newest words; train/cut_texts is their share, max_length reads more",
                self._encoder.processor.tokenize.max_length,
                self._encoder.name,
            )
        return super().training_step(batch, batch_idx)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        encoder = self._encoder
        texts = in_chunks(encoder.encode_texts, split(batch["text"], self.chunk_size))
        with torch.no_grad():
            images = in_chunks(encoder.embed_images, split(batch["image"], self.chunk_size))
        group = self.data_parallel_group
        return {"dialogue": self.loss(texts, images, batch["ids"], group=group)}

    # ---- export -------------------------------------------------------------------------

    def check_export(self, merged: bool) -> None:
        check_merging(merged, adapters=False, four_bit=False)

    def export(self, folder: Path, merged: bool) -> Exported:
        load = save_dual_encoder(self._encoder, folder, "", merged=merged)
        return Exported(
            what="A dual encoder whose text side reads dialogues: what was said so far, joined by "
            "the separator of its training, and the image that was meant have similar vectors "
            "(cosine). A whole folder of the library that the encoder is of.",
            code=script(load, dual_text(self._encoder)),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return self._reader

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._encoder.processor.tokenize)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._encoder.embed_images(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        return self._encoder.encode_texts(inputs["text"])


def _set_dropout(encoder: DualEncoder, share: float) -> None:
    """Of all that is in training mode.

    Raises:
        UserError: there is none to set.
    """
    layers = [m for m in encoder.modules() if isinstance(m, nn.Dropout) and m.training]
    if not layers:
        raise UserError(
            f"dropout is {share}, but the text side of {encoder.name} has no such layers; set it "
            "to null"
        )
    for layer in layers:
        layer.p = share


@dataclass(frozen=True)
class TrainCollator:
    """Pairs of an image and partial dialogues to a batch, a random one for each."""

    images: ImageReader

    def __call__(self, records: Sequence[Pair]) -> Inputs:
        tokenize = self.images.processor.tokenize
        texts = [random.choice(pair.captions) for pair in records]
        return {
            "ids": pair_ids(records),
            "text": tokenize(texts),
            "cut_texts": tokenize.cut(texts),
            "image": self.images([pair.image for pair in records]),
        }


@dataclass(frozen=True)
class QueryCollator:
    """Texts and dialogues to tokens, and which of them lost words."""

    tokenize: Tokenizer

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        texts = [query.text for query in queries]
        return {"text": self.tokenize(texts), "cut_texts": self.tokenize.cut(texts)}
