"""BLIP as a method: how it learns from pairs, searches by vectors and matches what it found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from cirlab.encoders.blip.augmentation import Augmentation, AugmentedReader
from cirlab.encoders.blip.export import blip_snippet
from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.tower import TimmTower
from cirlab.encoders.blip.weights import TOKENIZER, load_blip
from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.export import Exported, check_merging
from cirlab.encoders.export_code import script
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.llm import checkpoint_layers
from cirlab.encoders.pair_collator import PairCollator
from cirlab.errors import UserError
from cirlab.momentum import PairQueue, Vectors, momentum_update
from cirlab.records import Image, Item, Pair, Query
from lightning_modules.base import RetrievalModule
from lightning_modules.blip.losses import (
    ReadPairs,
    contrast_loss,
    describing_loss,
    matching_loss,
    slow_vectors,
)
from lightning_modules.blip.second_stage import match_logits
from lightning_modules.blip.settings import BlipFromScratch, Contrast
from lightning_modules.frozen_features import frozen_features, frozen_hidden
from lightning_modules.learner import Inputs
from lightning_modules.schedule import Schedule

log = logging.getLogger(__name__)

#: Parts of the module that only training needs.
TEACHING = ("teacher.", "queue.")


class Blip(RetrievalModule):
    """BLIP, trained on pairs; a dialogue is a text.

    Args:
        model: a hub name, a folder of transformers', `zoo:name`, or a file of BLIP's own code
            (model_base_retrieval_coco.pth, chatir_weights.ckpt); null with `from_scratch`.
        from_scratch: an architecture without weights.
        export_to: folder that receives the trained model at the end of training, in transformers'
            layout.
        tokenizer: of a file of BLIP's own code, which has none.
        image_size: pixels; positions are interpolated if it is not the weights' own. Null keeps it.
        max_length: tokens of a text. BLIP reads 35 of a caption, ChatIR 200 of a dialogue.
        contrast: image-text contrast (ITC).
        itm_weight: of image-text matching (ITM) in the loss; 0 leaves it out.
        lm_weight: of describing pictures (LM) in the loss; 0 leaves the decoder out.
        negative_all_rank: hard negatives of ITM from all processes' batches, or from the own.
        freeze_image: true trains the text side only; "tower" also the projection of images into
            the shared space.
        cache_features: with a frozen tower, run it once over all pictures and keep in memory-mapped
            files what it says: of each one vector of the shared space, or, where more is needed
            (ITM, LM, a projection that trains), class token and patches in 16 bits.
        augmentation: how training pictures are changed; null leaves them.
        dropout: of the text side in training, 0.1 in BLIP; null keeps the configuration's.
        gradient_checkpointing: compute each layer of image tower and text encoder again in the
            backward pass instead of keeping what it computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = Pair
    query_kinds = frozenset({"text", "image", "dialogue"})
    shardable = False
    reranks = True
    learning_arguments = RetrievalModule.learning_arguments | {
        "export_to",
        "max_length",
        "contrast",
        "negative_all_rank",
        "cache_features",
        "augmentation",
        "dropout",
        "gradient_checkpointing",
    }

    def __init__(
        self,
        model: str | None = None,
        from_scratch: BlipFromScratch | None = None,
        export_to: str | None = None,
        tokenizer: str = TOKENIZER,
        image_size: int | None = None,
        max_length: int = 35,
        contrast: Contrast | None = None,
        itm_weight: float = 1.0,
        lm_weight: float = 0.0,
        negative_all_rank: bool = False,
        freeze_image: bool | Literal["tower"] = False,
        cache_features: bool = False,
        augmentation: Augmentation | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if (model is None) == (from_scratch is None):
            raise UserError("Blip takes either model or from_scratch: set exactly one of the two")
        if from_scratch is not None and export_to is None:
            raise UserError("from_scratch needs export_to: the folder of the new model's files")
        if itm_weight < 0 or lm_weight < 0:
            raise UserError(
                f"itm_weight is {itm_weight} and lm_weight {lm_weight}; set each to 0 or more"
            )
        if cache_features and (not freeze_image or augmentation):
            raise UserError(
                "cache_features: true keeps what a frozen image tower says of each picture as it "
                "is: set freeze_image to true or tower, and augmentation: null"
            )
        self.start, self.scratch, self.export_to = model, from_scratch, export_to
        self.tokenizer_name, self.image_size, self.max_length = tokenizer, image_size, max_length
        self.contrast = contrast or Contrast()
        self.itm_weight, self.lm_weight = itm_weight, lm_weight
        self.negative_all_rank = negative_all_rank
        self.freeze_image, self.cache_features = freeze_image, cache_features
        self.augmentation, self.dropout = augmentation, dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.encoder: BlipMatcher | None = None
        self.teacher: nn.Module | None = None
        self.queue: PairQueue | None = None
        self.cache: FeatureCache | None = None

    # ---- weights ------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.encoder is None:
            self.encoder = self._build()
            # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
            self.encoder.train()
            self._freeze(self.encoder)
            if self.gradient_checkpointing:
                checkpoint_layers(self.encoder.model)
        if self.teacher is None and self._is_fitting:
            self.add_teacher()

    def _build(self) -> BlipMatcher:
        decoder = self.lm_weight > 0
        if self.scratch is not None:
            parts = self.scratch.build(decoder, start=self._is_fitting)
            return BlipMatcher(str(self.export_to), parts, self.max_length)
        assert self.start is not None
        parts = load_blip(
            self.start,
            tokenizer=self.tokenizer_name,
            image_size=self.image_size,
            dropout=self.dropout,
            decoder=decoder,
        )
        return BlipMatcher(self.start, parts, self.max_length)

    def _freeze(self, encoder: BlipMatcher) -> None:
        if self.freeze_image:
            whole = self.freeze_image is True
            frozen = encoder.image_backbone if whole else encoder.image_tower
            frozen.requires_grad_(False).eval()
        elif isinstance(encoder.image_tower, TimmTower):
            raise UserError(
                "freeze_image is false, but the image tower is a network of timm's, whose batch "
                "statistics the slow encoders would not follow; set freeze_image: tower"
            )
        # What no loss reaches would keep processes waiting for its gradient.
        if not self.itm_weight:
            encoder.model.itm_head.requires_grad_(False)
        if not self.itm_weight and not self.lm_weight:
            for layer in encoder.model.text_encoder.encoder.layer:
                layer.crossattention.requires_grad_(False)

    def add_teacher(self) -> None:
        """Build what only training needs: the slow encoders and the queue."""
        encoder = self._encoder
        self.teacher = encoder.towers(
            images=not self.freeze_image, projection=self.freeze_image == "tower"
        )
        self.queue = PairQueue(self.contrast.queue_size, encoder.dim)
        # They are the same on all processes by themselves; DDP would send them at every step.
        ignored = [f"queue.{name}" for name, _ in self.queue.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, ignored)

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def frozen_base(self) -> dict[str, str]:
        frozen = self.scratch is None and (self.freeze_image or not self.itm_weight)
        return {"blip": self._encoder.name} if frozen else {}

    def frozen_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("image_size", "freeze_image", "itm_weight")}

    @property
    def _encoder(self) -> BlipMatcher:
        assert self.encoder is not None, "configure_model has not run"
        return self.encoder

    @property
    def _reader(self) -> ImageReader:
        # Here, and not on_fit_start: Lightning builds the training loader earlier, when it counts
        # the steps for the schedule. Without a trainer (a chat) nothing tells which images come.
        if self.cache_features and self.cache is None and self._trainer is not None:
            keep = frozen_hidden if self._keeps_hidden else frozen_features
            self.cache = keep(self, self._encoder)
        what: Literal["hidden", "features"] = "hidden" if self._keeps_hidden else "features"
        return ImageReader(self._encoder.processor, self.cache, what)

    @property
    def _keeps_hidden(self) -> bool:
        """Whether one vector of an image is not enough."""
        joint = bool(self.itm_weight or self.lm_weight)
        return (
            joint
            or self.freeze_image == "tower"
            or isinstance(self._encoder.image_tower, TimmTower)
        )

    # ---- checkpoints --------------------------------------------------------------------

    def learned_names(self) -> set[str]:
        """With the slow encoders and the queue, and both names of what the decoder shares.

        From scratch every weight is the run's own, those too that no loss reaches, and what a
        frozen tower was given.
        """
        if self.scratch is not None:
            return set(self.state_dict())
        named = self.named_parameters(remove_duplicate=False)
        names = {name for name, parameter in named if parameter.requires_grad}
        teaching = {name for name in self.state_dict() if name.startswith(TEACHING)}
        return super().learned_names() | names | teaching

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.teacher is None:
            weights = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {n: v for n, v in weights if not n.startswith(TEACHING)}
        super().on_load_checkpoint(checkpoint)

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[Pair]], Inputs]:
        if self.augmentation is None:
            return PairCollator(self._reader)
        processor = self._encoder.processor
        size = self._encoder.model.config.vision_config.image_size
        return PairCollator(AugmentedReader(processor, augment=self.augmentation.transform(size)))

    def negatives_per_query(self, global_batch: int) -> int:
        return global_batch - 1 + self.contrast.queue_size

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        encoder, group = self._encoder, self.data_parallel_group
        assert self.teacher is not None and self.queue is not None, "add_teacher has not run"
        encoder.clamp_temperature()
        pairs = self._read_pairs(batch)
        slow, alpha = slow_vectors(self.teacher, batch, pairs), self._alpha()
        terms = {"itc": contrast_loss(encoder, pairs, slow, self.queue, alpha=alpha, group=group)}
        if self.itm_weight:
            candidates = pairs.of_all_processes(group) if self.negative_all_rank else pairs
            terms["itm"] = self.itm_weight * matching_loss(encoder, pairs, candidates)
        if self.lm_weight:
            terms["lm"] = self.lm_weight * describing_loss(encoder, pairs, group)
        return terms

    def _read_pairs(self, batch: Inputs) -> ReadPairs:
        hidden = self._hidden(batch["image"])
        vectors = Vectors(
            self._image_vectors(batch["image"], hidden), self._encoder.encode_texts(batch["text"])
        )
        return ReadPairs(vectors, hidden, batch["text"], batch["ids"])

    def _hidden(self, image: Inputs) -> torch.Tensor | None:
        """Class token and patches, (B, N, H); None where only vectors are kept of the images."""
        if "features" in image:
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_image):
            return self._encoder.hidden_of(image)

    def _image_vectors(self, image: Inputs, hidden: torch.Tensor | None) -> torch.Tensor:
        if hidden is None:
            return self._encoder.embed_images(image)
        return self._encoder.image_vectors(hidden)

    def _alpha(self) -> float:
        """The share of soft targets in this step."""
        if self._trainer is None:
            return self.contrast.alpha
        return self.contrast.alpha_at(self.global_step, self.trainer.estimated_stepping_batches)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        assert self.teacher is not None
        momentum_update(self.teacher, self._towers, self.contrast.momentum)

    @property
    def _towers(self) -> nn.Module:
        model: nn.Module = self._encoder.model
        return model

    def on_fit_end(self) -> None:
        if self.export_to is None or not self.trainer.is_global_zero:
            return
        self._encoder.save(Path(self.export_to))
        log.info("exported to %s", self.export_to)

    # ---- export -------------------------------------------------------------------------

    def check_export(self, merged: bool) -> None:
        check_merging(merged, adapters=False, four_bit=False)

    def export(self, folder: Path, merged: bool) -> Exported:
        encoder = self._encoder
        encoder.save(folder)
        timm = isinstance(encoder.image_tower, TimmTower)
        layout = (
            "Its image tower is a network of timm's, which transformers' class has not: the code "
            "below puts the two together."
            if timm
            else "A folder of transformers', whole."
        )
        return Exported(
            what="A BLIP: an image and a text that belong together have similar vectors (cosine), "
            f"and a second score reads the two together. {layout}",
            code=script(blip_snippet(encoder.encode_id, self.max_length, timm)),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return self._reader

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return DualQueryReader(self._reader, tell_cut=True)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._encoder.embed_images(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        """Texts and dialogues by their words, images by what they show."""
        parts = list(self._encoder.query_parts(inputs).values())
        return normalize(torch.stack(parts).sum(dim=0), dim=-1)

    def rerank(
        self,
        queries: Sequence[Query],
        items: Sequence[Item],
        pairs: torch.Tensor,
        scores: torch.Tensor,
    ) -> torch.Tensor:
        """The logit of "they belong together" and the cosine, added (BLIP, train_retrieval.py)."""
        return match_logits(self._encoder, self._hidden_reader, queries, items, pairs) + scores

    @property
    def _hidden_reader(self) -> ImageReader:
        """Of what matching reads; a vector that is kept of an image does not do."""
        return self._reader if self._keeps_hidden else ImageReader(self._encoder.processor)
