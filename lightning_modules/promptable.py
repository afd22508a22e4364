"""Promptable embeddings: images are looked at for what a query asks about.

Paper: arXiv 2505.15877, over VLM2Vec (arXiv 2410.05160). One general vector of an image leaves
attributes out that are not what it shows first; with a question behind the picture, a multimodal
LLM's vector tells them. Queries are plain text. Gallery images are looked at

- `general`: without a question, once;
- `whole`: with the query's question, picture and question in one forward each;
- `prefix`: the same vectors, but the picture is encoded once and each question runs its own tokens
  alone (`cirlab.encoders.prefix`);
- `linear`: without a question, once; the query is moved by a linear map that a few images looked at
  both ways tell (the paper's approximation, `cirlab.retrieval.linear`).

Trained contrastively on images with and without questions, as VLM2Vec is with instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable

from cirlab import distributed
from cirlab.encoders.export import Exported
from cirlab.encoders.export_code import script
from cirlab.encoders.mllm import MLLMSettings
from cirlab.encoders.mllm_export import prompt_reader, save_mllm
from cirlab.encoders.mllm_processor import (
    IMAGE_MARK,
    TEXT_MARK,
    MLLMProcessor,
    Prompt,
    check_marks,
)
from cirlab.encoders.prefix import (
    ImagePrefixCollator,
    PromptedImages,
    check_same_prefix,
    suffix_ids,
)
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss, text_ids
from cirlab.prompts import OwnPrompt, PromptChooser
from cirlab.records import Image, Item, PromptedPair, Query, SampleKey
from cirlab.retrieval.linear import (
    LinearMethod,
    check_linear_map,
    draw_sample,
    linear_map,
    transform,
)
from cirlab.retrieval.views import plan_views
from lightning_modules.learner import Inputs, Schedule
from lightning_modules.multimodal import MultimodalRetrieval

Looking = Literal["general", "whole", "prefix", "linear"]


@dataclass(frozen=True)
class PromptableTemplates:
    """What the model reads; `<image>` stands for the picture, `{text}` for the words.

    Attributes:
        image: of images looked at for nothing in particular.
        prompted: of images looked at for a question, its text.
        text: of queries.
    """

    image: str = f"{IMAGE_MARK} Represent the given image."
    prompted: str = (
        f"{IMAGE_MARK}\nRepresent the given image with the following question: {TEXT_MARK}\n"
    )
    text: str = TEXT_MARK

    def __post_init__(self) -> None:
        both = (IMAGE_MARK, TEXT_MARK)
        marks = {"image": (IMAGE_MARK,), "prompted": both, "text": (TEXT_MARK,)}
        check_marks(
            {f"templates.{name}": template for name, template in asdict(self).items()},
            {f"templates.{name}": held for name, held in marks.items()},
        )


@dataclass(frozen=True)
class LinearSample:
    """From which images the linear map is told.

    Attributes:
        count: how many images for each question (K; 100 in the paper).
        seed: another one chooses other images.
        source: "benchmark" draws them from the images that the question's queries rank, as the
            paper does: they are seen before they are ranked. "training" draws them from the
            training images of the data.
        method: least squares of minimum norm (the paper's), ridge regression, or the orthogonal map
            (Procrustes).
        ridge: weight of the squared entries of the map, of ridge regression alone.
    """

    count: int = 100
    seed: int = 0
    source: Literal["benchmark", "training"] = "benchmark"
    method: LinearMethod = "least_squares"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        check_linear_map(self.method, self.ridge)
        if self.count < 1:
            raise UserError(f"linear.count is {self.count}; set it to 1 image or more")

    def __str__(self) -> str:
        ridge = f" {self.ridge:g}" if self.method == "ridge" else ""
        images = f"{self.count} {self.source} images of seed {self.seed}"
        return f"{self.method}{ridge} from {images}"

    def draw(self, images: Sequence[Image]) -> list[Image]:
        """Some of the images.

        Raises:
            UserError: there are not so many.
        """
        unique = list({image.id: image for image in images}.values())
        return [unique[at] for at in draw_sample([i.id for i in unique], self.count, self.seed)]


class Promptable(MultimodalRetrieval):
    """Trains on images with and without questions, and looks at galleries with questions.

    Args:
        llm: the multimodal LLM and how it is adapted.
        templates: what it reads of images, questions and queries.
        prompts: gives each query its question; null takes the benchmark's own.
        looking: how gallery images are looked at, see above.
        linear: of `looking: linear`, from which images its map is told.
        loss: the contrastive loss between texts and images; the default is VLM2Vec's: InfoNCE from
            query to target, temperature 0.02.
        chunk_size: prompts encoded at once in training, so that the batch may be of any size
            (GradCache); null keeps what every prompt computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; null keeps it constant.
    """

    train_record = PromptedPair
    query_kinds = frozenset({"text", "dialogue"})
    # Which questions are needed differs from process to process, and with it the forwards.
    shardable = False
    learning_arguments = MultimodalRetrieval.learning_arguments | {"prompts", "looking", "linear"}

    def __init__(
        self,
        llm: MLLMSettings,
        templates: PromptableTemplates | None = None,
        prompts: PromptChooser | None = None,
        looking: Looking = "prefix",
        linear: LinearSample | None = None,
        loss: ContrastiveLoss | None = None,
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(llm, chunk_size, optimizer, schedule)
        if looking not in get_args(Looking):
            raise UserError(f"looking is {looking!r}; choose one of {', '.join(get_args(Looking))}")
        self.templates = templates or PromptableTemplates()
        self.prompts = prompts or OwnPrompt()
        self.looking: Looking = looking
        self.linear = linear or LinearSample()
        self.loss = loss or ContrastiveLoss(temperature=0.02, symmetric=False)
        #: By benchmark, where queries are moved.
        self._maps: dict[str, QuestionMaps] = {}

    # ---- weights ------------------------------------------------------------------------

    def on_weights_read(self) -> None:
        check_same_prefix(self._llm.processor, [self.templates.image, self.templates.prompted])
        self._images = PromptedImages(self._llm)

    def fixed_prompts(self) -> Sequence[str]:
        return tuple(asdict(self.templates).values())

    # ---- training -----------------------------------------------------------------------

    def train_collator(self) -> Callable[[Sequence[PromptedPair]], Inputs]:
        return TrainCollator(self._llm.processor, self.templates)

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        queries, targets = self._llm(batch["query"]), self._llm(batch["target"])
        return {
            "prompted": self.loss(queries, targets, batch["ids"], group=self.data_parallel_group)
        }

    # ---- export -------------------------------------------------------------------------

    def export(self, folder: Path, merged: bool) -> Exported:
        load = save_mllm(self._llm, folder, merged=merged)
        prompts = asdict(self.templates)
        prompts["composed"] = prompts.pop("prompted")
        return Exported(
            what="A multimodal language model embeds texts and images in one space (cosine). An "
            "image with a text is looked at for what that text asks about.",
            code=script(load, prompt_reader(self._llm, prompts)),
        )

    # ---- evaluation ---------------------------------------------------------------------

    def prompts_for(self, queries: Sequence[Query]) -> Sequence[str | None]:
        if self.looking in ("general", "linear"):
            return [None] * len(queries)
        return self.prompts(queries)

    def approximation(self) -> str:
        return str(self.linear) if self.looking == "linear" else ""

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return ImagePrefixCollator(self._llm.processor, self.templates.image)

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._llm.processor, self.templates)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        needed = torch.ones(1, len(inputs["order"]), dtype=torch.bool)
        return self.encode_views(inputs, [prompt], needed)[0]

    def encode_views(
        self, inputs: Inputs, prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        images = self._images
        suffixes = [self._suffix(prompt) for prompt in prompts]
        vectors = torch.zeros(len(prompts), len(inputs["order"]), self._llm.dim, device=self.device)
        # Where each row of the groups, one after the other, belongs.
        rows = inputs["order"].argsort().cpu()
        for group in inputs["groups"]:
            here, rows = rows[: len(group["input_ids"])], rows[len(group["input_ids"]) :]
            views = needed[:, here].any(dim=1).nonzero().flatten().tolist()
            if self.looking == "prefix" and views:
                prefix = images.prefix(group)
                found = [images.proceed(prefix, suffixes[view]) for view in views]
            else:
                found = [images.whole(group, suffixes[view]) for view in views]
            for view, rows_of in zip(views, found, strict=True):
                vectors[view, here] = rows_of
        return vectors * needed[..., None].to(vectors.device)

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        return self._llm(inputs)

    def validation_step(
        self, batch: Inputs, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        found = super().validation_step(batch, batch_idx, dataloader_idx)
        if self.looking == "linear" and batch["kind"] == "queries":
            maps = self._maps[batch["source"]]
            found["query"] = maps.moved(found["query"], batch["index"].tolist())
        return found

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._tell_maps()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._tell_maps()

    def _suffix(self, prompt: str | None) -> torch.Tensor:
        template = self.templates.image if prompt is None else self.templates.prompted
        return suffix_ids(self._llm.processor, template, prompt or "").to(self.device)

    # ---- linear map ---------------------------------------------------------------------

    def _tell_maps(self) -> None:
        """The linear map of each benchmark's questions, on every process the same."""
        self._maps = {}
        if self.looking != "linear":
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        known = _training_images(data) if self.linear.source == "training" else None
        plan = distributed.from_first(partial(plan_views, data.benchmarks, self.prompts))
        for benchmark in data.benchmarks:
            views = plan[benchmark.gallery_id]
            maps: dict[str, torch.Tensor] = {}
            for place, prompt in enumerate(views.prompts):
                if prompt is not None:
                    images = known or _ranked_images(views.needed[place], benchmark.gallery)
                    maps[prompt] = self._map(prompt, self.linear.draw(images))
            chosen = [views.prompts[place] for place in views.view[benchmark.name].tolist()]
            self._maps[benchmark.name] = QuestionMaps(chosen, maps, benchmark.wordings)

    def _map(self, prompt: str, images: Sequence[Image]) -> torch.Tensor:
        collate, pairs = self.image_collator(), []
        needed = torch.ones(2, SAMPLE_BATCH, dtype=torch.bool)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for start in range(0, len(images), SAMPLE_BATCH):
                part = images[start : start + SAMPLE_BATCH]
                inputs = self.trainer.strategy.batch_to_device(collate(part), self.device)
                pairs.append(self.encode_views(inputs, [None, prompt], needed[:, : len(part)]))
        general, prompted = torch.cat(pairs, dim=1)
        return linear_map(general, prompted, self.linear.method, self.linear.ridge)


@dataclass(frozen=True)
class QuestionMaps:
    """The linear maps of a benchmark's questions.

    Attributes:
        chosen: each query's question.
        maps: of each question.
        wordings: in how many wordings each query is asked, one after the other.
    """

    chosen: Sequence[str | None]
    maps: Mapping[str, torch.Tensor]
    wordings: int

    def moved(self, queries: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
        """Each query moved by the map of its question; those without one stay.

        Args:
            queries: shape (B, D).
            index: their positions among all that are asked.
        """
        chosen = [self.chosen[number // self.wordings] for number in index]
        rows = [
            query if prompt is None else transform(query[None], self.maps[prompt])[0]
            for query, prompt in zip(queries, chosen, strict=True)
        ]
        return torch.stack(rows)


def _training_images(data: Any) -> list[Image]:
    records = data.train_dataset()
    return [records[SampleKey(0, n)].image for n in range(min(len(records), POOL))]


def _ranked_images(needed: torch.Tensor, gallery: Sequence[Item]) -> list[Image]:
    """Those that the queries of one view rank; `needed` is of shape (N,)."""
    items = [gallery[row] for row in needed.nonzero().flatten().tolist()]
    return [item for item in items if isinstance(item, Image)]


#: Training images that the linear map's are drawn from, the first of the data.
POOL = 10_000
#: Images of the linear map that are encoded at once.
SAMPLE_BATCH = 64


@dataclass(frozen=True)
class TrainCollator:
    """Prompted pairs to {"query", "target", "ids"}; equal words for one question are one target."""

    processor: MLLMProcessor
    templates: PromptableTemplates

    def __call__(self, records: Sequence[PromptedPair]) -> Inputs:
        targets = [self._target(record) for record in records]
        return {
            "query": self.processor([Prompt(self.templates.text, r.text) for r in records]),
            "target": self.processor(targets),
            "ids": text_ids([f"{record.prompt}\n{record.text}" for record in records]),
        }

    def _target(self, record: PromptedPair) -> Prompt:
        image = record.image.load()
        if record.prompt is None:
            return Prompt(self.templates.image, image=image)
        return Prompt(self.templates.prompted, record.prompt, image)


@dataclass(frozen=True)
class QueryCollator:
    """The words of queries to inputs of the model."""

    processor: MLLMProcessor
    templates: PromptableTemplates

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        return self.processor([Prompt(self.templates.text, query.text) for query in queries])
