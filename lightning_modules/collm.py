"""CoLLM: a language model composes image and text into one query vector.

Paper: arXiv 2503.19910 (CVPR 2025). An image embedding f(v) becomes one visual token g(f(v)) of
an LLM; the LLM's last token, projected, is compared with the gallery's f(v), which never passes
the LLM. Pre-training needs image-caption pairs only: triplets are synthesised from each batch
(section 3.2, `cirlab.composition`). Fine-tuning uses real triplets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from cirlab.chunking import check_chunk_size, in_chunks, split
from cirlab.composition import modification_texts, nearest_neighbours, random_neighbours, slerp
from cirlab.distributed import all_gather_object, gather, rank
from cirlab.encoders.adapters import FourBit, Lora, TowerLora, adapters_disabled, add_lora_to_tower
from cirlab.encoders.augmentation import rotate
from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.export import (
    Exported,
    check_merging,
    save_dual_encoder,
    save_language_model,
)
from cirlab.encoders.export_code import script, text_reader
from cirlab.encoders.feature_cache import FeatureCache
from cirlab.encoders.llm import (
    INSTRUCTION,
    Attention,
    Dtype,
    EmbeddingLLM,
    LLMProcessor,
    Pooling,
    QueryTemplate,
)
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss, image_ids, target_ids
from cirlab.records import Image, Pair, Query, Triplet
from lightning_modules.base import RetrievalModule
from lightning_modules.collm_query import CONNECTOR, query_snippet
from lightning_modules.frozen_features import frozen_features
from lightning_modules.learner import Inputs
from lightning_modules.schedule import Schedule


@dataclass
class Synthesis:
    """How triplets are made from pairs (section 3.2); the switches are the ablations of Table 6.

    Attributes:
        image: the reference is a Slerp of the target's image and its neighbour's; false takes the
            target's own image.
        text: the modification text may speak of both captions; false takes the target's.
        slerp_weight: 0 is the target's image, 1 the neighbour's; 0.5 in the paper.
        template_probability: how often a template over both captions is used; else the
            target's caption alone.
        neighbour: the most similar image of the batch, or any other (ablation).
        scope: search the neighbour among this process's images or the global batch's. The paper
            does not say; local costs no communication and depends on the per-process batch.
        rotation: degrees; the reference is seen through a random rotation of up to this. The
            paper names an augmentation and draws a rotated image, but lists no parameters.
    """

    image: bool = True
    text: bool = True
    slerp_weight: float = 0.5
    template_probability: float = 0.75
    neighbour: Literal["nearest", "random"] = "nearest"
    scope: Literal["local", "global"] = "local"
    rotation: float = 10.0

    def __post_init__(self) -> None:
        for name in ("slerp_weight", "template_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"synthesis.{name} is {getattr(self, name)}; choose a value from 0 to 1"
                )


@dataclass
class LLMSettings:
    """The LLM and how it is adapted.

    Attributes:
        name: hub name, local folder or `zoo:name`.
        lora: adapters; null trains every weight unless `frozen`.
        second_lora: adapters of fine-tuning, beside those of `init_from`, which are then frozen.
        four_bit: 4-bit base weights; needs `lora` or `frozen`.
        frozen: train nothing of it.
        dtype: of the base weights.
        attention: transformers' implementation of it.
        pooling: the paper does not say; its LLM is trained to be read at the last token.
        max_length: longest query in tokens.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping
            what it computed.
    """

    name: str
    lora: Lora | None = None
    second_lora: Lora | None = None
    four_bit: FourBit | None = None
    frozen: bool = False
    dtype: Dtype = "float32"
    attention: Attention = "sdpa"
    pooling: Pooling = "last"
    max_length: int = 256
    gradient_checkpointing: bool = False


class CoLLM(RetrievalModule):
    """CoLLM, trained on pairs (`records: pairs`) or on triplets (`records: triplets`).

    Args:
        clip: the dual encoder whose image tower embeds reference and gallery: an open_clip name,
            `local-dir:folder`, `blip:name` or `zoo:name`.
        llm: the language model.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
        clip_pretrained: open_clip's tag of the weights, with its built-in names.
        tower_lora: adapters of the image tower; null freezes it. The paper adapts CLIP's towers
            in pre-training and freezes BLIP-L's, as well as every tower in fine-tuning.
        tower_frozen: keep the tower's adapters as `init_from` has them.
        loss: the contrastive loss; the default is HN-NCE with the constants of the
            implementation that the paper says it follows (temperature 0.07, alpha 1, beta 0.5).
        synthesis: how triplets are made from pairs.
        image_query: train the query by image alone, c_v (pairs only).
        text_query: train the query by caption alone, c_w (pairs only).
        reference_negatives: also tell the target from the reference images of the batch
            (triplets only). Not in the paper: the reference is removed or tolerated in its
            benchmarks, but its look-alikes are not.
        texts: how several texts of a triplet become one: a random one, all in order, or a random
            number of them in random order. The paper says that they can be combined, not how.
        cache_features: run the frozen tower once over all images and keep what it says in a
            memory-mapped file; needs data with a fixed set of images and no augmentation.
        init_from: checkpoint of a CoLLM to start from, of this architecture; a pattern
            (`runs/collm/version_*/checkpoints/best.ckpt`) takes the newest file.
        instruction: the sentence before the query.
        chunk_size: images and queries encoded at once in training, so that the batch may be of
            any size (GradCache); null keeps what every row computed.
    """

    train_record = (Pair, Triplet)
    query_kinds = frozenset({"composed", "text", "image", "dialogue"})
    learning_arguments = RetrievalModule.learning_arguments | {
        "loss",
        "synthesis",
        "image_query",
        "text_query",
        "reference_negatives",
        "texts",
        "cache_features",
        "chunk_size",
        "init_from",
        "llm.attention",
        "llm.gradient_checkpointing",
    }

    def __init__(
        self,
        clip: str,
        llm: LLMSettings,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        clip_pretrained: str | None = None,
        tower_lora: TowerLora | None = None,
        tower_frozen: bool = False,
        loss: ContrastiveLoss | None = None,
        synthesis: Synthesis | None = None,
        image_query: bool = True,
        text_query: bool = True,
        reference_negatives: bool = True,
        texts: Literal["one", "all", "some"] = "some",
        cache_features: bool = False,
        init_from: str | None = None,
        instruction: str = INSTRUCTION,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        check_chunk_size(chunk_size)
        self.clip_name, self.clip_pretrained = clip, clip_pretrained
        self.llm_settings = llm
        self.tower_lora, self.tower_frozen = tower_lora, tower_frozen
        self.loss = loss or ContrastiveLoss(temperature=0.07, alpha=1.0, beta=0.5)
        self.synthesis = synthesis or Synthesis()
        self.image_query, self.text_query = image_query, text_query
        self.reference_negatives = reference_negatives
        self.texts = texts
        self.cache_features = cache_features
        self.cache: FeatureCache | None = None
        if cache_features and (tower_lora is not None or self.synthesis.rotation):
            raise UserError(
                "cache_features: true needs a frozen tower and pictures that do not change: set "
                "tower_lora: null and synthesis.rotation: 0"
            )
        self.init_from = init_from
        self.chunk_size = chunk_size
        self.template = QueryTemplate(instruction)
        self.clip: DualEncoder | None = None

    # ---- weights ------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.clip is not None:
            return
        settings = self.llm_settings
        clip = load_dual_encoder(self.clip_name, self.clip_pretrained).requires_grad_(False)
        self.llm = EmbeddingLLM(
            settings.name,
            lora=settings.lora,
            four_bit=settings.four_bit,
            frozen=settings.frozen,
            dtype=settings.dtype,
            attention=settings.attention,
            pooling=settings.pooling,
            max_length=settings.max_length,
            chunk_size=self.chunk_size,
            gradient_checkpointing=settings.gradient_checkpointing,
            device=self.weights_device,
        )
        if self.tower_lora is not None:
            add_lora_to_tower(clip.image_tower, self.tower_lora)
        width = self.llm.width
        # Two layers with GELU, LLaVA's connector, whose code the paper trains with.
        self.adapter = nn.Sequential(nn.Linear(clip.dim, width), nn.GELU(), nn.Linear(width, width))
        self.projection = nn.Linear(width, clip.dim)
        self.clip = clip
        if self.init_from is not None:
            self.start_from(self.init_from)
        if settings.second_lora is not None:
            self.llm.stack_lora(settings.second_lora)
        if self.tower_frozen:
            clip.requires_grad_(False)
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        self.llm.train(not settings.frozen)
        clip.image_tower.train(self.tower_lora is not None and not self.tower_frozen)
        check_chunk_size(self.chunk_size, clip, self.llm)

    def frozen_base(self) -> dict[str, str]:
        return {"clip": self._clip.name, "llm": self.llm.name}

    def frozen_settings(self) -> dict[str, Any]:
        llm = asdict(self.llm_settings)
        return {f"llm.{name}": llm[name] for name in ("dtype", "four_bit")}

    @property
    def _reader(self) -> ImageReader:
        # Here, and not on_fit_start: Lightning builds the training loader earlier, when it counts
        # the steps for the schedule. Without a trainer (a chat) nothing tells which images come.
        if self.cache_features and self.cache is None and self._trainer is not None:
            self.cache = frozen_features(self, self._clip)
        return ImageReader(self._clip.processor, self.cache)

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[Any]], Inputs]:
        return TrainCollator(self._reader, self.llm.processor, self.template, self.texts)

    def negatives_per_query(self, global_batch: int) -> int:
        of_triplets = self.trainer.datamodule.train_record is Triplet  # type: ignore[attr-defined]
        pool = 2 * global_batch if of_triplets and self.reference_negatives else global_batch
        return pool - 1

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        if "reference" in batch:
            return self._triplet_losses(batch)
        return self._pair_losses(batch)

    def _triplet_losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        reference = self._image_features(batch["reference"])
        targets = self._image_features(batch["image"])
        composed = self._compose(batch["query"], reference)
        negatives = reference if self.reference_negatives else None
        return {
            "composed": self.loss(
                composed,
                targets,
                batch["ids"],
                negatives,
                batch["reference_ids"],
                group=self.data_parallel_group,
            )
        }

    def _pair_losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Three queries per pair (section 3.3, equation 5), each with a third of the weight."""
        targets, ids = self._image_features(batch["image"]), batch["ids"]
        reference, texts = self._synthesise(batch, targets)
        tokens = self.llm.processor([self.template(image=True, text=text) for text in texts])
        tokens = {key: value.to(self.device) for key, value in tokens.items()}
        queries = {"composed": self._compose(tokens, reference)}
        if self.image_query:
            queries["image"] = self._compose(batch["image_query"], reference)
        if self.text_query:
            queries["text"] = self._compose(batch["text_query"], None)
        group = self.data_parallel_group
        return {
            name: self.loss(query, targets, ids, group=group) / len(queries)
            for name, query in queries.items()
        }

    def _synthesise(self, batch: Inputs, targets: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """Reference embeddings (B, D) and modification texts of this batch's triplets."""
        how, captions = self.synthesis, list(batch["captions"])
        own = targets.detach()
        if how.rotation:
            own = self._image_features({"pixels": rotate(batch["image"]["pixels"], how.rotation)})
        if not (how.image or how.text):
            return own, captions
        pool, pool_captions, offset = own.detach(), captions, 0
        if how.scope == "global":
            group = self.data_parallel_group
            pool, offset = gather(pool, group), rank(group) * len(own)
            pool_captions = [text for part in all_gather_object(captions, group) for text in part]
        if how.neighbour == "nearest":
            neighbour = nearest_neighbours(own.detach(), pool, offset)
        else:
            neighbour = random_neighbours(len(own), len(pool), offset).to(own.device)
        reference = slerp(own, pool[neighbour], how.slerp_weight) if how.image else own
        if not how.text:
            return reference, captions
        others = [pool_captions[j] for j in neighbour.tolist()]
        return reference, modification_texts(captions, others, how.template_probability)

    def _image_features(self, images: Inputs) -> torch.Tensor:
        """f(v), unit vectors (B, D); see `DualEncoder.embed_images`."""
        tower_learns = self.tower_lora is not None and not self.tower_frozen
        chunks = split(images, self.chunk_size if torch.is_grad_enabled() else None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and tower_learns):
            return in_chunks(self._clip.embed_images, chunks)

    def _compose(self, tokens: Inputs, reference: torch.Tensor | None) -> torch.Tensor:
        """C = p(Phi(...)), unit vectors (B, D)."""
        visual = None if reference is None else self.adapter(reference)
        hidden = self.llm(tokens["input_ids"], tokens["attention_mask"], visual)
        return normalize(self.projection(hidden.to(self.projection.weight.dtype)).float(), dim=-1)

    @property
    def _clip(self) -> DualEncoder:
        assert self.clip is not None, "configure_model has not run"
        return self.clip

    # ---- export -------------------------------------------------------------------------

    def check_export(self, merged: bool) -> None:
        llm = self.llm_settings
        adapters = llm.lora is not None or self.tower_lora is not None
        four_bit = llm.four_bit is not None and llm.lora is not None
        check_merging(merged, adapters=adapters, four_bit=four_bit)

    def export(self, folder: Path, merged: bool) -> Exported:
        """The LLM's part in `llm/`, the image tower's in `clip/`, the rest beside them."""
        settings = self.llm_settings
        clip = save_dual_encoder(self._clip, folder, "clip", merged=merged)
        llm = save_language_model(
            self.llm.model, folder, "llm", base=settings.name, merged=merged, dtype=settings.dtype
        )
        self.llm.processor.tokenizer.save_pretrained(folder / "llm")
        parts = {"adapter": self.adapter, "projection": self.projection}
        weights = nn.ModuleDict(parts).state_dict()
        save_file({n: w.cpu().contiguous() for n, w in weights.items()}, folder / CONNECTOR)
        words = text_reader('folder / "llm"', settings.max_length, settings.pooling)
        query = query_snippet(self.template, width=self.llm.width, dim=self._clip.dim)
        return Exported(
            what="A language model composes a picture, a text, or both into one query vector; the "
            "gallery has the vectors of a dual encoder's image tower (cosine).",
            code=script(clip, llm, words, query),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return self._reader

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._reader, self.llm.processor, self.template)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._image_features(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        reference = self._image_features(inputs["image"]) if "image" in inputs else None
        return self._compose(inputs["query"], reference)

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        if "image" not in inputs:
            return {}
        with adapters_disabled(self._clip):
            return self._clip.query_parts(inputs)

    def encode_baseline_gallery(self, inputs: Inputs) -> torch.Tensor | None:
        if self.tower_lora is None:
            return None
        with adapters_disabled(self._clip):
            return self._clip.embed_images(inputs)


@dataclass(frozen=True)
class TrainCollator:
    """Pairs or triplets to a batch."""

    images: ImageReader
    words: LLMProcessor
    template: QueryTemplate
    texts: Literal["one", "all", "some"]

    def __call__(self, records: Sequence[Pair] | Sequence[Triplet]) -> Inputs:
        if isinstance(records[0], Triplet):
            return self._triplets([record for record in records if isinstance(record, Triplet)])
        return self._pairs([record for record in records if isinstance(record, Pair)])

    def _pairs(self, pairs: list[Pair]) -> Inputs:
        captions = [random.choice(pair.captions) for pair in pairs]
        return {
            "image": self.images([pair.image for pair in pairs]),
            "ids": image_ids([pair.image for pair in pairs]),
            "captions": captions,
            "image_query": self.words([self.template(image=True, text=None)] * len(pairs)),
            "text_query": self.words([self.template(image=False, text=c) for c in captions]),
        }

    def _triplets(self, triplets: list[Triplet]) -> Inputs:
        texts = [self._text(triplet) for triplet in triplets]
        return {
            "reference": self.images([t.reference for t in triplets]),
            "reference_ids": image_ids([t.reference for t in triplets]),
            "image": self.images([t.target for t in triplets]),
            "ids": target_ids(triplets),
            "query": self.words([self.template(image=True, text=text) for text in texts]),
        }

    def _text(self, triplet: Triplet) -> str:
        if self.texts == "all":
            return ", ".join(triplet.texts)
        count = 1 if self.texts == "one" else random.randint(1, len(triplet.texts))
        return ", ".join(random.sample(triplet.texts, count))


@dataclass(frozen=True)
class QueryCollator:
    """Queries to what the LLM reads and, with a reference image, what the baselines read."""

    images: ImageReader
    words: LLMProcessor
    template: QueryTemplate

    def __call__(self, records: Sequence[Query]) -> Inputs:
        inputs = DualQueryReader(self.images)(records)
        texts = [
            self.template(image="image" in inputs, text=query.text or None) for query in records
        ]
        return inputs | {"query": self.words(texts)}
