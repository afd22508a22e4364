"""A CLIP-style dual encoder, trained contrastively on image-caption pairs.

Radford et al., arXiv 2103.00020: symmetric InfoNCE with a learned temperature. This module
makes the zoo's tiny CLIP and adapts real towers to one's own photographs; what it writes is an
open_clip folder that every method here and open_clip itself load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from safetensors.torch import load_file
from torch.nn.functional import normalize

from cirlab.chunking import check_chunk_size, in_chunks, split
from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.dual.open_clip_models import OpenClipEncoder
from cirlab.encoders.export import (
    Exported,
    check_merging,
    open_clip_text,
    save_dual_encoder,
)
from cirlab.encoders.export_code import script
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.pair_collator import PairCollator
from cirlab.encoders.scratch import read_word_vectors, set_word_vectors, write_clip_folder
from cirlab.encoders.vocabulary import vocabulary_words
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss
from cirlab.records import Image, Pair, Query
from lightning_modules.base import RetrievalModule
from lightning_modules.frozen_features import frozen_features
from lightning_modules.learner import Inputs
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: CLIP clips its learned scale at 100 (section 2.5).
MIN_TEMPERATURE = 0.01


@dataclass
class ClipFromScratch:
    """An open_clip model that starts without weights.

    Attributes:
        vision: open_clip's `vision_cfg`.
        text: open_clip's `text_cfg` without vocabulary and tokenizer.
        embed_dim: dimensions of the shared space.
        vocabulary: "world", or a folder of word vectors whose words are taken.
        text_transformer: configuration of a transformers text tower with its `model_type`; null
            for open_clip's own.
        caption_files: pairs.jsonl files whose frequent words join the vocabulary.
        word_vectors: start the token embedding from the vectors of the `vocabulary` folder.
        image_weights: safetensors file of the timm trunk; null starts it at random.
        mean: of the pixels in [0, 1], a channel.
        std: of the pixels in [0, 1], a channel.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int = 128
    vocabulary: str = "world"
    caption_files: list[str] = field(default_factory=list)
    text_transformer: dict[str, Any] | None = None
    word_vectors: bool = False
    image_weights: str | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def write(self, folder: Path) -> None:
        """Write configuration and tokenizer in open_clip's layout, without weights."""
        write_clip_folder(
            folder,
            {"embed_dim": self.embed_dim, "vision_cfg": self.vision, "text_cfg": self.text},
            words=vocabulary_words(self.vocabulary, self.caption_files),
            preprocess={"mean": self.mean, "std": self.std, "interpolation": "bicubic"},
            text_transformer=self.text_transformer,
        )


class CLIP(RetrievalModule):
    """Contrastive training of any open_clip model.

    Args:
        model: an open_clip name, `hf-hub:`, `local-dir:` or `zoo:` model to start from; null with
            `from_scratch`.
        pretrained: open_clip's tag of the weights, with its built-in names.
        from_scratch: an architecture without weights.
        export_to: folder that receives the trained model at the end of training, in
            open_clip's layout.
        freeze_backbone: train only what follows the image backbone (a timm trunk's projection;
            nothing of a plain vision transformer).
        cache_features: with a frozen backbone, run it once over the training images and keep its
            features in memory-mapped files, instead of once an epoch.
        chunk_size: images and texts encoded at once in training, so that the batch may be of any
            size (GradCache); null keeps what every row computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = Pair
    query_kinds = frozenset({"text", "image", "composed", "dialogue"})
    shardable = False
    learning_arguments = RetrievalModule.learning_arguments | {
        "export_to",
        "cache_features",
        "chunk_size",
    }

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | None = None,
        from_scratch: ClipFromScratch | None = None,
        export_to: str | None = None,
        freeze_backbone: bool = False,
        cache_features: bool = False,
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if (model is None) == (from_scratch is None):
            raise UserError("CLIP takes either model or from_scratch: set exactly one of the two")
        if cache_features and not freeze_backbone:
            raise UserError(
                "cache_features: true needs freeze_backbone: true: features of a backbone that "
                "trains are stale after one step"
            )
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size
        self.start, self.pretrained, self.scratch = model, pretrained, from_scratch
        self.export_to = export_to
        self.freeze_backbone, self.cache_features = freeze_backbone, cache_features
        self.loss = ContrastiveLoss()
        self.encoder: OpenClipEncoder | None = None
        self.cache: FeatureCache | None = None

    # ---- weights ------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.encoder is not None:
            return
        if self.scratch is not None:
            self.encoder = self._from_scratch(self.scratch)
        else:
            assert self.start is not None
            self.encoder = OpenClipEncoder(self.start, pretrained=self.pretrained)
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        self.encoder.train()
        if self.freeze_backbone:
            self.encoder.image_backbone.requires_grad_(False).eval()
        check_chunk_size(self.chunk_size, self.encoder)

    def _from_scratch(self, scratch: ClipFromScratch) -> OpenClipEncoder:
        if self.export_to is None:
            raise UserError("from_scratch needs export_to: the folder of the new model's files")
        # Built in a folder of its own: what an earlier run has exported stays whole until this
        # one has something better, and an evaluation exports nothing.
        with TemporaryDirectory() as folder:
            scratch.write(Path(folder))
            encoder = OpenClipEncoder(f"local-dir:{folder}", load_weights=False)
        encoder.name = f"local-dir:{self.export_to}"
        if scratch.image_weights is not None:
            _load_trunk(encoder, Path(scratch.image_weights))
        if scratch.word_vectors:
            words, vectors = read_word_vectors(Path(scratch.vocabulary))
            tokenizer = encoder.tokenizer.tokenizer
            set_word_vectors(encoder.token_embedding, tokenizer, words, vectors)
        return encoder

    def frozen_base(self) -> dict[str, str]:
        return {"clip": self._encoder.name} if self.freeze_backbone else {}

    @property
    def _encoder(self) -> OpenClipEncoder:
        assert self.encoder is not None, "configure_model has not run"
        return self.encoder

    @property
    def _reader(self) -> ImageReader:
        # Here, and not on_fit_start: Lightning builds the training loader earlier, when it counts
        # the steps for the schedule. Without a trainer (a chat) nothing tells which images come.
        if self.cache_features and self.cache is None and self._trainer is not None:
            self.cache = frozen_features(self, self._encoder)
        return ImageReader(self._encoder.processor, self.cache)

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[Pair]], Inputs]:
        return PairCollator(self._reader)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        encoder = self._encoder
        images = in_chunks(encoder.embed_images, split(batch["image"], self.chunk_size))
        texts = in_chunks(encoder.encode_texts, split(batch["text"], self.chunk_size))
        temperature = encoder.model.logit_scale.float().exp().reciprocal().clamp(MIN_TEMPERATURE)
        # A mean of the two directions, as CLIP has it; the loss class adds them.
        loss = self.loss(
            images, texts, batch["ids"], temperature=temperature, group=self.data_parallel_group
        )
        return {"contrastive": loss / 2}

    def on_fit_end(self) -> None:
        if self.export_to is None or not self.trainer.is_global_zero:
            return
        if self.scratch is not None:
            self.scratch.write(Path(self.export_to))
        self._encoder.save_weights(Path(self.export_to))
        log.info("exported to %s", self.export_to)

    # ---- export -------------------------------------------------------------------------

    def check_export(self, merged: bool) -> None:
        check_merging(merged, adapters=False, four_bit=False)

    def export(self, folder: Path, merged: bool) -> Exported:
        load = save_dual_encoder(self._encoder, folder, "", merged=merged)
        return Exported(
            what="A dual encoder: an image and a text that belong together have similar vectors "
            "(cosine). A folder of open_clip's, whole.",
            code=script(load, open_clip_text()),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return self._reader

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return DualQueryReader(self._reader, tell_cut=True)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._encoder.embed_images(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        """Queries by their text, by their image, or by the sum of both."""
        parts = list(self._encoder.query_parts(inputs).values())
        return normalize(torch.stack(parts).sum(dim=0), dim=-1)

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return self._encoder.query_parts(inputs) if "image" in inputs else {}


def _load_trunk(encoder: OpenClipEncoder, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"image_weights {path} is missing; point it to a safetensors file")
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    missing, _ = encoder.image_backbone.load_state_dict(weights, strict=False)
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} weights of the image trunk, {missing[0]} first"
        )
