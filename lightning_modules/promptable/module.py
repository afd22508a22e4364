"""How Promptable learns, and how it looks at galleries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
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
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.prompt_length import check_questions
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss
from cirlab.prompts import OwnPrompt, PromptChooser
from cirlab.records import Image, PromptedPair, Query
from cirlab.retrieval.linear import linear_map
from cirlab.retrieval.views import Approximation
from lightning_modules.learner import Inputs
from lightning_modules.multimodal import MultimodalRetrieval
from lightning_modules.promptable.encoding import encoded
from lightning_modules.promptable.keeping import KeptViews, PlacesOnly, PrefixBudget, check_folders
from lightning_modules.promptable.plan import (
    Plan,
    Wanted,
    both_ways,
    questions_of,
    whole_galleries,
)
from lightning_modules.promptable.question_maps import (
    LinearSample,
    QuestionMaps,
    map_samples,
    stood_in_for,
)
from lightning_modules.promptable.templates import (
    PromptableTemplates,
    QueryCollator,
    TrainCollator,
)
from lightning_modules.schedule import Schedule

Looking = Literal["general", "whole", "prefix", "linear"]


class Promptable(MultimodalRetrieval):
    """Trains on images with and without questions, and looks at galleries with questions.

    Args:
        llm: the multimodal LLM and how it is adapted.
        templates: what it reads of images, questions and queries.
        prompts: gives each query its question; null takes the benchmark's own.
        looking: how gallery images are looked at (`lightning_modules.promptable` tells the ways).
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
            self.templates.check_one_picture(self._llm.processor)
        by_prefix = self.looking == "prefix"
        images = PromptedImages(self._llm, by_prefix=by_prefix)
        self._views = ImageViews(images, by_prefix=by_prefix)

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

    def _image_reader(self) -> Callable[[Sequence[Image]], Inputs]:
        reader = ImagePrefixCollator(self._llm.processor, self.templates.image)
        return reader if self.prefixes is None else NamedImages(reader)

    def _suffix(self, prompt: str | None) -> torch.Tensor:
        words = suffix_ids(self._llm.processor, self.templates.of_image(prompt), prompt or "")
        return words.to(self.device)

    # ---- what is known before galleries are read ----------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.enable_validation:
            # What an evaluation would refuse is refused before training, not after its first epoch.
            self._plan()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._prepare()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._prepare()

    def _prepare(self) -> None:
        """Make ready what evaluation steps need, for the weights as they are now."""
        self._views.kept, self._kept, self._maps = None, None, {}
        if self._evaluates:
            distributed.together(partial(check_folders, self.store, self.prefixes))
        plan = self._plan()
        if self._evaluates and not (self.store is None and self.prefixes is None):
            self._encoder = encoder_identity(self._llm, str(self.trainer.precision))
        if self.prefixes is not None and self._evaluates:
            template = self.templates.image
            identity = prefix_identity(self._encoder, self._llm.processor, template)
            self._views.kept = self.prefixes.cache(identity)
        if self._keeps_vectors:
            self._kept = self._keep(self._whole_galleries())
        if self.looking == "linear":
            self._tell_maps(plan)

    def _plan(self) -> Plan:
        """What is looked at for which question, on every process the same.

        Raises:
            UserError: a question is too long, or there are too few images to tell its map by.
        """
        linear = self.looking == "linear"
        views = stood_in_for(self._data, self.prompts) if linear else self.views
        chooser = f"model.init_args.prompts ({type(self.prompts).__name__})"
        template = self.templates.prompted
        check_questions(self._llm.processor, template, questions_of(views), chooser)
        return Plan(views, map_samples(self.linear, self._data, views) if linear else {})

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

    # ---- kept vectors -------------------------------------------------------------------

    def _whole_galleries(self) -> Wanted:
        if self._data.on_error == "skip":
            raise UserError(
                "store keeps vectors of all images and skips none: set data.init_args.on_error to "
                "raise, or store to null"
            )
        return whole_galleries(self._data.benchmarks, self.views)

    def _keep(self, wanted: Wanted) -> KeptViews:
        """Vectors of images under prompts, of which only what is not there is computed."""

        def compute(images: Sequence[Image], lacking: torch.Tensor) -> Iterator[torch.Tensor]:
            rest = Wanted(images, wanted.prompts, lacking)
            return encoded(self, rest, self._image_reader(), "images under prompts")

        assert self.store is not None
        identities = [self._identity(prompt) for prompt in wanted.prompts]
        caches = cached_views(Path(self.store), identities, wanted.images, wanted.needed, compute)
        return KeptViews(wanted.prompts, caches, self._llm.dim)

    def _identity(self, prompt: str | None) -> str:
        """Whatever decides the vector of a picture under a prompt."""
        template, processor = self.templates.of_image(prompt), self._llm.processor
        way = "prefix" if self.looking == "prefix" else "whole"
        return view_identity(self._encoder, processor, template, prompt or "", way)

    # ---- linear maps --------------------------------------------------------------------

    def _tell_maps(self, plan: Plan) -> None:
        """The linear map of each benchmark's questions, on every process the same."""
        for benchmark in self._data.benchmarks:
            views, samples = plan.views[benchmark.gallery_id], plan.samples[benchmark.name]
            maps = {question: self._map(question, images) for question, images in samples.items()}
            chosen = [views.prompts[view] for view in views.view[benchmark.name].tolist()]
            self._maps[benchmark.name] = QuestionMaps(chosen, maps, benchmark.wordings)

    def _map(self, question: str, images: Sequence[Image]) -> torch.Tensor:
        wanted = both_ways(images, question)
        if self._keeps_vectors:
            places = [place(image) for image in images]
            pairs = self._keep(wanted)(places, wanted.prompts, wanted.needed).to(self.device)
        else:
            pairs = torch.cat(list(encoded(self, wanted, self._image_reader())), dim=1)
        general, prompted = pairs
        return linear_map(general, prompted, self.linear.method, self.linear.ridge)
