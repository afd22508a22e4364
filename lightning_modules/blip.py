"""BLIP for retrieval: contrast against slow encoders, and matching of hard pairs.

Li et al., arXiv 2201.12086, sections 3 and 4.1; figures of the training from
github.com/salesforce/BLIP, train_retrieval.py and its configurations. Image and text are searched
by their vectors (ITC); the best of a search are put in order again by the encoder that reads both
together (ITM). From scratch it also learns to describe pictures (LM), as in BLIP's pretraining, and
makes the zoo's tiny BLIP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn.functional import cross_entropy, normalize, pad
from torch.nn.parallel import DistributedDataParallel

from cirlab.distributed import all_gather_object, gather, gather_with_grad
from cirlab.encoders.blip.collate import Augmentation, AugmentedReader, PairCollator
from cirlab.encoders.blip.export import blip_snippet
from cirlab.encoders.blip.matcher import BlipMatcher, hidden_images, image_vectors, text_vectors
from cirlab.encoders.blip.scratch import new_blip, set_image_tower
from cirlab.encoders.blip.weights import TOKENIZER, BlipParts, load_blip
from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.export import Exported, check_merging
from cirlab.encoders.export_code import script
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.llm import checkpoint_layers
from cirlab.encoders.vocabulary import WORLD, vocabulary_words
from cirlab.errors import UserError
from cirlab.matching import hard_negatives
from cirlab.momentum import PairQueue, Vectors, momentum_contrast, momentum_update
from cirlab.records import Caption, Image, Item, Pair, Query
from cirlab.world.vocabulary import dialogue_vocabulary
from lightning_modules.base import RetrievalModule
from lightning_modules.frozen_features import frozen_features
from lightning_modules.learner import Inputs, Schedule

log = logging.getLogger(__name__)

#: Parts of the module that only training needs.
TEACHING = ("teacher.", "queue.")
#: Pairs that are matched at once in the second stage.
PAIRS = 256


@dataclass
class BlipFromScratch:
    """A BLIP that starts without weights.

    Attributes:
        vision: transformers' configuration of the image tower.
        text: that of the text encoder, and of the decoder, which shares all but its self-attention.
        embed_dim: dimensions of the shared space.
        vocabulary: "world", the words of captions and dialogues, or a folder of word vectors whose
            words are taken.
        caption_files: pairs.jsonl files whose frequent words join the vocabulary.
        vision_weights: folder of an image tower of that configuration to start with
            (`TokenLabelling` writes one); null starts it at random.
        mean: of the pixels in [0, 1], a channel.
        std: of the pixels in [0, 1], a channel.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int = 128
    vocabulary: str = WORLD
    caption_files: list[str] = field(default_factory=list)
    vision_weights: str | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def build(self, decoder: bool, start: bool) -> BlipParts:
        """Model and processor.

        Args:
            decoder: with a text decoder.
            start: training begins, so that an image tower is needed to start with.
        """
        words = vocabulary_words(self.vocabulary, self.caption_files)
        words += dialogue_vocabulary() if self.vocabulary == WORLD else ()
        parts = new_blip(
            self.vision,
            self.text,
            dim=self.embed_dim,
            words=list(dict.fromkeys(words)),
            mean=self.mean,
            std=self.std,
            decoder=decoder,
        )
        if self.vision_weights is not None and start:
            set_image_tower(parts.model, Path(self.vision_weights))
        return parts


@dataclass
class Contrast:
    """Image-text contrast (ITC) against slow encoders and a queue.

    Attributes:
        queue_size: pairs of earlier steps that are negatives, too; 0 for none.
        momentum: share of its old weights that a slow encoder keeps in a step.
        alpha: share of soft targets, what the slow encoders find similar.
        alpha_warmup: fraction of all steps over which that share rises from zero; BLIP takes the
            first of six epochs.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_warmup: float = 1 / 6

    def __post_init__(self) -> None:
        for name in ("momentum", "alpha", "alpha_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"contrast.{name} is {getattr(self, name)}; choose a value from 0 to 1"
                )


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
        freeze_image: train the text side only.
        cache_features: with a frozen image side and without ITM and LM, run the image tower once
            over all pictures and keep their vectors in memory-mapped files.
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
        freeze_image: bool = False,
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
        if cache_features and (not freeze_image or itm_weight or lm_weight or augmentation):
            raise UserError(
                "cache_features: true keeps one vector of each picture, which is enough only for "
                "contrast with a frozen image side: set freeze_image: true, itm_weight: 0, "
                "lm_weight: 0 and augmentation: null"
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
            encoder.image_backbone.requires_grad_(False).eval()
        # What no loss reaches would keep processes waiting for its gradient.
        if not self.itm_weight:
            encoder.model.itm_head.requires_grad_(False)
        if not self.itm_weight and not self.lm_weight:
            for layer in encoder.model.text_encoder.encoder.layer:
                layer.crossattention.requires_grad_(False)

    def add_teacher(self) -> None:
        """Build what only training needs: the slow encoders and the queue."""
        encoder = self._encoder
        self.teacher = encoder.towers(images=not self.freeze_image)
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
            self.cache = frozen_features(self, self._encoder)
        return ImageReader(self._encoder.processor, self.cache)

    # ---- checkpoints --------------------------------------------------------------------

    def learned_names(self) -> set[str]:
        """With the slow encoders and the queue, and both names of what the decoder shares.

        From scratch every weight is the run's own, those too that no loss reaches.
        """
        named = self.named_parameters(remove_duplicate=False)
        whole = self.scratch is not None
        names = {name for name, parameter in named if parameter.requires_grad or whole}
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
        encoder, tokens, ids = self._encoder, batch["text"], batch["ids"]
        encoder.clamp_temperature()
        hidden = self._hidden(batch["image"])
        fast = Vectors(self._image_vectors(batch["image"], hidden), encoder.encode_texts(tokens))
        terms = {"itc": self._contrast(fast, batch)}
        if self.itm_weight:
            assert hidden is not None
            terms["itm"] = self.itm_weight * self._match(fast, hidden, tokens, ids)
        if self.lm_weight:
            assert hidden is not None
            terms["lm"] = self.lm_weight * self._describe(hidden, tokens)
        return terms

    def _hidden(self, image: Inputs) -> torch.Tensor | None:
        """Class token and patches, (B, N, H); None where only vectors are kept of the images."""
        if "pixels" not in image:
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_image):
            return self._encoder.hidden_images(image["pixels"])

    def _image_vectors(self, image: Inputs, hidden: torch.Tensor | None) -> torch.Tensor:
        if hidden is None:
            return self._encoder.embed_images(image)
        return self._encoder.image_vectors(hidden)

    def _contrast(self, fast: Vectors, batch: Inputs) -> torch.Tensor:
        """ITC (equation 1 of ALBEF, arXiv 2107.07651, with soft targets)."""
        assert self.queue is not None, "add_teacher has not run"
        loss, slow, ids = momentum_contrast(
            fast,
            self._slow(fast, batch),
            batch["ids"],
            self.queue,
            temperature=self._encoder.temperature,
            alpha=self._alpha(),
            group=self.data_parallel_group,
        )
        self.queue.push(slow, ids)
        return loss

    @torch.no_grad()
    def _slow(self, fast: Vectors, batch: Inputs) -> Vectors:
        teacher = self.teacher
        assert teacher is not None
        images = fast.images.detach()
        if not self.freeze_image:
            images = image_vectors(teacher, hidden_images(teacher, batch["image"]["pixels"]))
        return Vectors(images, text_vectors(teacher, batch["text"]))

    def _alpha(self) -> float:
        """The share of soft targets in this step."""
        if self._trainer is None or not self.contrast.alpha_warmup:
            return self.contrast.alpha
        steps = self.contrast.alpha_warmup * float(self.trainer.estimated_stepping_batches)
        return self.contrast.alpha * min(1.0, self.global_step / steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        assert self.teacher is not None
        momentum_update(self.teacher, self._towers, self.contrast.momentum)

    @property
    def _towers(self) -> nn.Module:
        model: nn.Module = self._encoder.model
        return model

    def _match(
        self, fast: Vectors, hidden: torch.Tensor, tokens: Inputs, ids: torch.Tensor
    ) -> torch.Tensor:
        """ITM: each pair, each text with a wrong image, and each image with a wrong text."""
        candidates = self._candidates(fast, hidden, tokens, ids)
        scale = self._encoder.temperature.detach()
        images = hard_negatives(fast.texts @ candidates.images.T / scale, ids, candidates.ids)
        texts = hard_negatives(fast.images @ candidates.texts.T / scale, ids, candidates.ids)
        padded = _widened(tokens, candidates.tokens["input_ids"].shape[1])
        asked = [padded, padded, _rows(candidates.tokens, texts.place)]
        shown = [hidden, candidates.hidden[images.place], hidden]
        together = {key: torch.cat([part[key] for part in asked]) for key in padded}
        logits = self._encoder.match(together, torch.cat(shown)).float()
        right = torch.arange(len(logits), device=ids.device) < len(ids)
        counted = torch.cat([torch.ones_like(images.found), images.found, texts.found])
        each = cross_entropy(logits, right.long(), reduction="none")
        return (each * counted).sum() / counted.sum()

    def _candidates(
        self, fast: Vectors, hidden: torch.Tensor, tokens: Inputs, ids: torch.Tensor
    ) -> _Candidates:
        """What negatives are drawn from."""
        group = self.data_parallel_group
        if not self.negative_all_rank:
            return _Candidates(fast.images, fast.texts, hidden, tokens, ids)
        width = max(all_gather_object(tokens["input_ids"].shape[1], group))
        padded = _widened(tokens, width)
        return _Candidates(
            gather(fast.images, group),
            gather(fast.texts, group),
            gather_with_grad(hidden, group),
            {key: gather(value, group) for key, value in padded.items()},
            gather(ids, group),
        )

    def _describe(self, hidden: torch.Tensor, tokens: Inputs) -> torch.Tensor:
        """LM: the mean over the words of all captions."""
        total, words = self._encoder.caption_loss(tokens, hidden)
        # Processes read different numbers of words; averaged over them, it is the mean over all.
        every = gather(words.reshape(1), self.data_parallel_group)
        return total / every.float().mean().clamp(min=1)

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
        return Exported(
            what="A BLIP: an image and a text that belong together have similar vectors (cosine), "
            "and a second score reads the two together. A folder of transformers', whole.",
            code=script(blip_snippet(encoder.encode_id, self.max_length)),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return self._reader

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return DualQueryReader(self._reader)

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
        asked, found = pairs.unbind(dim=1)
        if isinstance(items[0], Image):
            images = [item for item in items if isinstance(item, Image)]
            words, seen = [query.text for query in queries], found
            said = asked
        else:
            images = [query.image for query in queries if query.image is not None]
            words = [item.text for item in items if isinstance(item, Caption)]
            seen, said = asked, found
        _check_matchable(queries, words, images, len(items))
        reader = self._encoder.processor
        pixels = reader.images([image.load() for image in images]).to(self.device)
        hidden = self._encoder.hidden_images(pixels)
        tokens = {key: value.to(self.device) for key, value in reader.tokenize(words).items()}
        logits = [
            self._encoder.match(_trimmed(_rows(tokens, text)), hidden[image])
            for text, image in zip(said.split(PAIRS), seen.split(PAIRS), strict=True)
        ]
        return torch.cat(logits)[:, 1].float().cpu() + scores


@dataclass(frozen=True)
class _Candidates:
    """Images and texts that negatives of ITM are drawn from, row by row.

    Attributes:
        images: unit vectors. Shape (M, D).
        texts: unit vectors. Shape (M, D).
        hidden: class token and patches. Shape (M, N, H).
        tokens: each (M, L).
        ids: of the images. Shape (M,), int64.
    """

    images: torch.Tensor
    texts: torch.Tensor
    hidden: torch.Tensor
    tokens: Mapping[str, torch.Tensor]
    ids: torch.Tensor


def _rows(tokens: Mapping[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key: value[rows.to(value.device)] for key, value in tokens.items()}


def _widened(tokens: Mapping[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Tokens with padding up to a width; the mask makes any token a padding."""
    return {key: pad(value, (0, width - value.shape[1])) for key, value in tokens.items()}


def _trimmed(tokens: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tokens without the columns that are padding in all rows."""
    longest = int(tokens["attention_mask"].sum(dim=1).max())
    return {key: value[:, :longest] for key, value in tokens.items()}


def _check_matchable(
    queries: Sequence[Query], words: Sequence[str], images: Sequence[Image], items: int
) -> None:
    texts = len(words) == items or all(words)
    if not texts or len(images) not in (len(queries), items):
        raise UserError(
            f"the second stage reads a text together with an image, but query {queries[0].id!r} or "
            "another one of its benchmark and what it asks for are both images or both texts; set "
            "rerank_depth: null there"
        )
