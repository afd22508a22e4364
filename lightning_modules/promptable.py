"""Promptable embeddings: images are looked at for what a query asks about.

Paper: arXiv 2505.15877, over VLM2Vec (arXiv 2410.05160). One general vector of an image leaves
attributes out that are not what it shows first; with a question behind the picture, a multimodal
LLM's vector tells them. Queries are plain text. Gallery images are looked at

- `general`: without a question, once;
- `whole`: with the query's question, picture and question in one forward each;
- `prefix`: the same vectors, but the picture is encoded once and each question runs its own tokens
  alone (`cirlab.encoders.mllm.prefix`);
- `linear`: without a question, once; the query is moved by a linear map that a few images looked at
  both ways tell (the paper's approximation, `cirlab.retrieval.linear`).

Trained contrastively on images with and without questions, as VLM2Vec is with instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn

from cirlab import distributed
from cirlab.encoders.export import Exported
from cirlab.encoders.export_code import script
from cirlab.encoders.feature_cache import cached_views
from cirlab.encoders.image_names import place
from cirlab.encoders.mllm.export import prompt_reader, save_mllm
from cirlab.encoders.mllm.identity import encoder_identity, prefix_identity, view_identity
from cirlab.encoders.mllm.image_views import ImageViews, NamedImages
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, check_same_prefix, suffix_ids
from cirlab.encoders.mllm.processor import (
    IMAGE_MARK,
    TEXT_MARK,
    MLLMProcessor,
    Prompt,
    check_marks,
)
from cirlab.encoders.mllm.prompt_length import check_questions
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss, text_ids
from cirlab.prompts import OwnPrompt, PromptChooser
from cirlab.reading.files import check_writable
from cirlab.records import Image, PromptedPair, Query
from cirlab.retrieval.linear import linear_map
from cirlab.retrieval.views import Approximation, Views, plan_views
from lightning_modules.kept_views import KeptViews, PlacesOnly, batches
from lightning_modules.learner import Inputs
from lightning_modules.multimodal import MultimodalRetrieval
from lightning_modules.question_maps import (
    LinearSample,
    QuestionMaps,
    ranked_images,
    training_images,
)
from lightning_modules.schedule import Schedule

Looking = Literal["general", "whole", "prefix", "linear"]


@dataclass(frozen=True)
class PromptableTemplates:
    """What the model reads; `<image>` stands for the picture, `{text}` for the words.

    In evaluations a question is never cut, whatever `llm.long_text` is: one that is too long is
    refused. Images are read once for both their templates, which therefore begin alike up to the
    picture (`looking: general` reads `image` alone).

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
class PrefixBudget:
    """Where prefixes of pictures are kept for further prompts, and how much they may take.

    Attributes:
        gib: the most that they take; what has not been used for the longest makes way.
        folder: where files lie, which serve later runs, too; null keeps prefixes in memory, for
            images that several galleries of one evaluation share.
    """

    gib: float = 1.0
    folder: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gib < math.inf:
            raise UserError(
                f"prefixes.gib is {self.gib}; set it above 0 and below infinity, or prefixes to "
                "null to keep none"
            )
        if self.folder is not None and not self.folder.strip():
            raise UserError(
                f"prefixes.folder is {self.folder!r}; name a folder, or set it to null to keep "
                "prefixes in memory"
            )


class Promptable(MultimodalRetrieval):
    """Trains on images with and without questions, and looks at galleries with questions.

    Args:
        llm: the multimodal LLM and how it is adapted.
        templates: what it reads of images, questions and queries.
        prompts: gives each query its question; null takes the benchmark's own.
        looking: how gallery images are looked at, see above.
        linear: of `looking: linear`, from which images its map is told.
        store: folder where an evaluation keeps the vectors of gallery images under each prompt, and
            takes those from that are there: no image is opened whose vectors are. Null keeps none.
        prefixes: of `looking: prefix`, keeps the prefixes of pictures: in a folder for prompts of
            later runs, in memory within one evaluation; null keeps none.
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
    learning_arguments = MultimodalRetrieval.learning_arguments | {
        "prompts",
        "looking",
        "linear",
        "store",
        "prefixes",
    }

    def __init__(
        self,
        llm: MLLMSettings,
        templates: PromptableTemplates | None = None,
        prompts: PromptChooser | None = None,
        looking: Looking = "prefix",
        linear: LinearSample | None = None,
        store: str | None = None,
        prefixes: PrefixBudget | None = None,
        loss: ContrastiveLoss | None = None,
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(llm, chunk_size, optimizer, schedule)
        if looking not in get_args(Looking):
            raise UserError(f"looking is {looking!r}; choose one of {', '.join(get_args(Looking))}")
        if store is not None and not store.strip():
            raise UserError(
                f"store is {store!r}; name a folder, or set it to null to keep no vectors"
            )
        if prefixes is not None and looking != "prefix":
            raise UserError(
                f"prefixes are kept of looking: prefix alone, but looking is {looking!r}; set "
                "prefixes to null, or looking to prefix"
            )
        self.templates = templates or PromptableTemplates()
        self.prompts = prompts or OwnPrompt()
        self.looking: Looking = looking
        self.linear = linear or LinearSample()
        self.store, self.prefixes = store, prefixes
        self.loss = loss or ContrastiveLoss(temperature=0.02, symmetric=False)
        #: By benchmark, where queries are moved.
        self._maps: dict[str, QuestionMaps] = {}
        self._kept: KeptViews | None = None
        #: Identity of the weights as they are in this evaluation, where something is kept.
        self._encoder = ""

    # ---- weights ------------------------------------------------------------------------

    def on_weights_read(self) -> None:
        if self.looking != "general":
            self._check_templates()
        by_prefix = self.looking == "prefix"
        images = PromptedImages(self._llm, by_prefix=by_prefix)
        self._views = ImageViews(images, by_prefix=by_prefix)

    def _check_templates(self) -> None:
        """Refuse templates that do not continue one picture, by whichever way."""
        templates = self.templates
        asked = {"templates.image": templates.image, "templates.prompted": templates.prompted}
        for template in asked.values():
            # Refuses one with its words before the picture.
            suffix_ids(self._llm.processor, template)
        check_same_prefix(self._llm.processor, asked)

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

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.enable_validation:
            # What an evaluation would refuse is refused before training, not after its first epoch.
            self._plan()

    def prompts_for(self, queries: Sequence[Query]) -> Sequence[str | None]:
        if self.looking in ("general", "linear"):
            return [None] * len(queries)
        return self.prompts(queries)

    def approximation(self) -> Approximation | None:
        if self.looking != "linear":
            return None
        return Approximation(str(self.linear), self.prompts)

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return PlacesOnly() if self._keeps_vectors else self._image_reader()

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._llm.processor, self.templates)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        count = len(inputs["places"] if "places" in inputs else inputs["order"])
        return self.encode_views(inputs, [prompt], torch.ones(1, count, dtype=torch.bool))[0]

    def encode_views(
        self, inputs: Inputs, prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        if "places" in inputs:
            assert self._kept is not None, "vectors are kept before galleries are read"
            return self._kept(inputs["places"], prompts, needed).to(self.device)
        return self._views(inputs, [self._suffix(prompt) for prompt in prompts], needed)

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
        self._prepare()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._prepare()

    def _prepare(self) -> None:
        """What is known before galleries are read: of the weights as they are now."""
        self._views.kept, self._kept, self._maps = None, None, {}
        if self._evaluates:
            distributed.together(self._check_folders)
        plan = self._plan()
        if self._evaluates and not (self.store is None and self.prefixes is None):
            self._encoder = encoder_identity(self._llm, str(self.trainer.precision))
        if self.prefixes is not None and self._evaluates:
            self._views.kept = PrefixCache(
                Path(self.prefixes.folder) if self.prefixes.folder else None,
                self.prefixes.gib,
                prefix_identity(self._encoder, self._llm.processor, self.templates.image),
            )
        if self._keeps_vectors:
            self._kept = self._keep(*self._wanted())
        if self.looking == "linear":
            self._tell_maps(plan)

    def _plan(self) -> Plan:
        """What is looked at for which question, on every process the same.

        Raises:
            UserError: a question is too long, or there are too few images to tell its map by.
        """
        linear = self.looking == "linear"
        if linear and self._data.on_error == "skip":
            raise UserError(
                "looking: linear learns its maps from images and skips none, but "
                "data.init_args.on_error is skip: set it to raise, or looking to prefix"
            )
        asked = partial(plan_views, self._data.benchmarks, self.prompts) if linear else None
        views = self.views if asked is None else distributed.from_first(asked)
        questions = dict.fromkeys(p for v in views.values() for p in v.prompts if p is not None)
        chooser = f"model.init_args.prompts ({type(self.prompts).__name__})"
        check_questions(self._llm.processor, self.templates.prompted, list(questions), chooser)
        return Plan(views, self._samples(views) if linear else {})

    def _samples(self, views: Mapping[str, Views]) -> dict[str, dict[str, list[Image]]]:
        """From which images the map of each question is told, by benchmark and question."""
        known = training_images(self._data) if self.linear.source == "training" else None
        found: dict[str, dict[str, list[Image]]] = {}
        for benchmark in self._data.benchmarks:
            own, found[benchmark.name] = views[benchmark.gallery_id], {}
            for prompt, needed in zip(own.prompts, own.needed, strict=True):
                if prompt is not None:
                    images = ranked_images(needed, benchmark.gallery) if known is None else known
                    found[benchmark.name][prompt] = self.linear.draw(images, prompt)
        return found

    def _check_folders(self) -> None:
        if self.store is not None:
            check_writable(Path(self.store), "store")
        if self.prefixes is not None and self.prefixes.folder is not None:
            check_writable(Path(self.prefixes.folder), "prefixes.folder")

    def _suffix(self, prompt: str | None) -> torch.Tensor:
        words = suffix_ids(self._llm.processor, self._template(prompt), prompt or "")
        return words.to(self.device)

    def _template(self, prompt: str | None) -> str:
        return self.templates.image if prompt is None else self.templates.prompted

    def _image_reader(self) -> Callable[[Sequence[Image]], Inputs]:
        reader = ImagePrefixCollator(self._llm.processor, self.templates.image)
        return reader if self.prefixes is None else NamedImages(reader)

    # ---- kept vectors -------------------------------------------------------------------

    @property
    def _evaluates(self) -> bool:
        """Whether the weights stay what they are; in training nothing is kept."""
        return self.trainer.state.fn != TrainerFn.FITTING

    @property
    def _keeps_vectors(self) -> bool:
        return self.store is not None and self._evaluates

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _wanted(self) -> tuple[list[Image], list[str | None], torch.Tensor]:
        """All images that are looked at, for which prompts, and (V, N) which for which."""
        if self._data.on_error == "skip":
            raise UserError(
                "store keeps vectors of all images and skips none: set data.init_args.on_error to "
                "raise, or store to null"
            )
        parts: list[tuple[list[Image], Views]] = []
        for benchmark in {b.gallery_id: b for b in self._data.benchmarks}.values():
            images = [item for item in benchmark.gallery if isinstance(item, Image)]
            if images:
                parts.append((images, self.views[benchmark.gallery_id]))
        prompts = list(dict.fromkeys(prompt for _, views in parts for prompt in views.prompts))
        needed = torch.zeros(len(prompts), sum(len(images) for images, _ in parts)).bool()
        start = 0
        for images, views in parts:
            places = [prompts.index(prompt) for prompt in views.prompts]
            # Without questions, all are encoded, also those that no query ranks.
            wanted = views.needed if views.prompted else torch.ones_like(views.needed)
            needed[places, start : start + len(images)] = wanted
            start += len(images)
        return [image for images, _ in parts for image in images], prompts, needed

    def _keep(
        self, images: Sequence[Image], prompts: Sequence[str | None], needed: torch.Tensor
    ) -> KeptViews:
        """Vectors of images under prompts, of which only what is not there is computed.

        Args:
            images: N of them.
            prompts: V of them.
            needed: shape (V, N), bool.
        """
        way = "prefix" if self.looking == "prefix" else "whole"
        identities = [
            view_identity(
                self._encoder, self._llm.processor, self._template(prompt), prompt or "", way
            )
            for prompt in prompts
        ]

        def compute(images: Sequence[Image], lacking: torch.Tensor) -> Iterator[torch.Tensor]:
            return self._encoded(images, prompts, lacking, description="images under prompts")

        assert self.store is not None
        caches = cached_views(Path(self.store), identities, images, needed, compute)
        return KeptViews(prompts, caches, self._llm.dim)

    def _encoded(
        self,
        images: Sequence[Image],
        prompts: Sequence[str | None],
        needed: torch.Tensor,
        description: str | None = None,
    ) -> Iterator[torch.Tensor]:
        """Batches of unit vectors, each (V, B, D)."""
        start = 0
        for inputs in batches(self, images, self._image_reader(), description):
            end = start + len(inputs["order"])
            # Not around the yield: whoever reads the batches would compute in it as well.
            with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
                vectors = self.encode_views(inputs, prompts, needed[:, start:end])
            yield vectors
            start = end

    # ---- linear maps --------------------------------------------------------------------

    def _tell_maps(self, plan: Plan) -> None:
        """The linear map of each benchmark's questions, on every process the same."""
        for benchmark in self._data.benchmarks:
            views, samples = plan.views[benchmark.gallery_id], plan.samples[benchmark.name]
            maps = {prompt: self._map(prompt, images) for prompt, images in samples.items()}
            chosen = [views.prompts[view] for view in views.view[benchmark.name].tolist()]
            self._maps[benchmark.name] = QuestionMaps(chosen, maps, benchmark.wordings)

    def _map(self, prompt: str, images: Sequence[Image]) -> torch.Tensor:
        prompts, needed = [None, prompt], torch.ones(2, len(images), dtype=torch.bool)
        if self._keeps_vectors:
            kept = self._keep(images, prompts, needed)
            pairs = kept([place(image) for image in images], prompts, needed).to(self.device)
        else:
            pairs = torch.cat(list(self._encoded(images, prompts, needed)), dim=1)
        general, prompted = pairs
        return linear_map(general, prompted, self.linear.method, self.linear.ridge)


@dataclass(frozen=True)
class Plan:
    """What an evaluation needs to know before pictures are read.

    Attributes:
        views: of each gallery, by its id.
        samples: by benchmark and question, images that tell its linear map; empty without maps.
    """

    views: Mapping[str, Views]
    samples: Mapping[str, Mapping[str, Sequence[Image]]]


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
