"""InstructCIR: a multimodal LLM becomes an embedder of images with instructions, in two stages.

Paper: arXiv 2412.05756. Stage 1 aligns the model's one-word summary of an image with that of its
caption. Stage 2 aligns the summary of an image under an instruction with that of the caption which
the instruction leads to; the image's own caption is the hard negative, and no target image is
needed. Prompts, loss and temperature are those of the released evaluation and loss code
(zhwl2117/InstructCIR); its training settings were not released. Queries and gallery both pass
through the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from cirlab.encoders.export import Exported
from cirlab.encoders.export_code import script
from cirlab.encoders.mllm.export import prompt_reader, save_mllm
from cirlab.encoders.mllm.processor import (
    IMAGE_MARK,
    TEXT_MARK,
    MLLMProcessor,
    Prompt,
    check_marks,
)
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.losses import ContrastiveLoss, image_ids, text_ids
from cirlab.records import CaptionTriplet, Image, Pair, Query
from lightning_modules.learner import Inputs
from lightning_modules.multimodal import MultimodalRetrieval
from lightning_modules.schedule import Schedule


@dataclass(frozen=True)
class Prompts:
    """What the model is asked; its answer's first word is the embedding.

    `<image>` stands for the picture, `{text}` for the words. The released code has "desribe" in the
    composed prompt; experiments/paper has its wording to the letter.

    Attributes:
        image: of gallery images, and of reference images alone.
        text: of captions, and of queries without a picture. Not released; after E5-V.
        composed: of reference images with an instruction.
    """

    image: str = f"{IMAGE_MARK}\n Describe this image in one word:"
    text: str = f"{TEXT_MARK}\n Summary above sentence in one word:"
    composed: str = (
        f'{IMAGE_MARK}Modify this image with "{TEXT_MARK}", describe modified image in one word:'
    )

    def __post_init__(self) -> None:
        both = (IMAGE_MARK, TEXT_MARK)
        marks = {"image": (IMAGE_MARK,), "text": (TEXT_MARK,), "composed": both}
        check_marks(
            {f"prompts.{name}": template for name, template in asdict(self).items()},
            {f"prompts.{name}": held for name, held in marks.items()},
        )


class InstructCIR(MultimodalRetrieval):
    """InstructCIR, stage 1 on pairs, stage 2 on caption triplets.

    Args:
        llm: the multimodal LLM and how it is adapted.
        prompts: what it is asked of images, captions and composed queries.
        loss: the contrastive loss; the default is the released one: InfoNCE from query to target
            only, temperature 0.05.
        hard_negatives: tell the target's caption from the captions of the batch's reference images
            as well (stage 2 only).
        chunk_size: prompts encoded at once in training, so that the batch may be of any size
            (GradCache); null keeps what every prompt computed.
        init_from: checkpoint of the stage before, of this architecture; a pattern
            (`runs/instructcir_stage1/version_*/checkpoints/best.ckpt`) takes the newest file.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = (Pair, CaptionTriplet)
    query_kinds = frozenset({"composed", "text", "image", "dialogue"})
    learning_arguments = MultimodalRetrieval.learning_arguments | {"hard_negatives", "init_from"}

    def __init__(
        self,
        llm: MLLMSettings,
        prompts: Prompts | None = None,
        loss: ContrastiveLoss | None = None,
        hard_negatives: bool = True,
        chunk_size: int | None = None,
        init_from: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(llm, chunk_size, optimizer, schedule)
        self.prompts = prompts or Prompts()
        self.loss = loss or ContrastiveLoss(temperature=0.05, symmetric=False)
        self.hard_negatives = hard_negatives
        self.init_from = init_from

    # ---- weights ------------------------------------------------------------------------

    def on_weights_read(self) -> None:
        if self.init_from is not None:
            self.start_from(self.init_from)

    def fixed_prompts(self) -> Sequence[str]:
        return tuple(asdict(self.prompts).values())

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[Any]], Inputs]:
        return TrainCollator(self._llm.processor, self.prompts)

    def negatives_per_query(self, global_batch: int) -> int:
        of_triplets = self.trainer.datamodule.train_record is CaptionTriplet  # type: ignore[attr-defined]
        pool = 2 * global_batch if of_triplets and self.hard_negatives else global_batch
        return pool - 1

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        queries, targets = self._llm(batch["query"]), self._llm(batch["target"])
        if "reference" not in batch:
            loss = self.loss(queries, targets, batch["ids"], group=self.data_parallel_group)
            return {"caption": loss}
        loss = self.loss(
            queries,
            targets,
            batch["ids"],
            negatives=self._llm(batch["reference"]) if self.hard_negatives else None,
            negative_ids=batch["reference_ids"],
            group=self.data_parallel_group,
        )
        return {"composed": loss}

    # ---- export -------------------------------------------------------------------------

    def export(self, folder: Path, merged: bool) -> Exported:
        load = save_mllm(self._llm, folder, merged=merged)
        return Exported(
            what="A multimodal language model embeds images, texts, and images with an instruction "
            "in one space: what it would answer in one word (cosine). Gallery images and queries "
            "alike pass through it.",
            code=script(load, prompt_reader(self._llm, asdict(self.prompts))),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return ImageCollator(self._llm.processor, self.prompts)

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._llm.processor, self.prompts)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self._llm(inputs)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        return self._llm(inputs["query"])

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        if "image_only" not in inputs:
            return {}
        return {name: self._llm(inputs[name]) for name in ("image_only", "text_only")}


@dataclass(frozen=True)
class TrainCollator:
    """Pairs or caption triplets to {"query", "target", "ids"[, "reference", "reference_ids"]}."""

    processor: MLLMProcessor
    prompts: Prompts

    def __call__(self, records: Sequence[Pair] | Sequence[CaptionTriplet]) -> Inputs:
        if isinstance(records[0], Pair):
            return self._pairs([record for record in records if isinstance(record, Pair)])
        return self._triplets([record for record in records if isinstance(record, CaptionTriplet)])

    def _pairs(self, pairs: list[Pair]) -> Inputs:
        captions = [random.choice(pair.captions) for pair in pairs]
        return {
            "query": ImageCollator(self.processor, self.prompts)([p.image for p in pairs]),
            "target": self._captions(captions),
            "ids": image_ids([pair.image for pair in pairs]),
        }

    def _triplets(self, triplets: list[CaptionTriplet]) -> Inputs:
        targets = [triplet.target_caption for triplet in triplets]
        references = [triplet.caption for triplet in triplets]
        composed = [Prompt(self.prompts.composed, t.text, t.reference.load()) for t in triplets]
        return {
            "query": self.processor(composed),
            "target": self._captions(targets),
            # The same words, said of two images, are one target.
            "ids": text_ids(targets),
            "reference": self._captions(references),
            "reference_ids": text_ids(references),
        }

    def _captions(self, captions: Sequence[str]) -> Inputs:
        return self.processor([Prompt(self.prompts.text, caption) for caption in captions])


@dataclass(frozen=True)
class ImageCollator:
    """Images to inputs of the model, each with the image prompt."""

    processor: MLLMProcessor
    prompts: Prompts

    def __call__(self, images: Sequence[Image]) -> Inputs:
        return self.processor([Prompt(self.prompts.image, image=i.load()) for i in images])


@dataclass(frozen=True)
class QueryCollator:
    """Queries to {"query"}, and of composed ones their parts: {"image_only", "text_only"}."""

    processor: MLLMProcessor
    prompts: Prompts

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        images = [query.image.load() if query.image is not None else None for query in queries]
        prompts = [self._prompt(q.text, image) for q, image in zip(queries, images, strict=True)]
        inputs = {"query": self.processor(prompts)}
        # All queries of a benchmark have a picture, or none has: every batch has parts, or none.
        if any(image is None for image in images):
            return inputs
        pictures = [Prompt(self.prompts.image, image=image) for image in images]
        words = [Prompt(self.prompts.text, query.text) for query in queries]
        return inputs | {
            "image_only": self.processor(pictures),
            "text_only": self.processor(words),
        }

    def _prompt(self, text: str, image: Any) -> Prompt:
        if image is None:
            return Prompt(self.prompts.text, text)
        return Prompt(self.prompts.composed if text else self.prompts.image, text, image)
