"""What every retrieval method shares: the encoding contract.

A method subclasses `RetrievalModule` and fills in the abstract methods. Validation only
encodes: ranking and scoring are the retrieval callback's work (`callbacks.retrieval`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn

from cirlab.benchmarks.base import QueryKind
from cirlab.encoders.cut_texts import CutTexts
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prompt_length import check_prompts
from cirlab.records import Image, Item, Query
from cirlab.retrieval.views import Approximation, Views, view_name
from lightning_modules.learner import Inputs, Learner
from lightning_modules.schedule import Schedule


class RetrievalModule(Learner):
    """One published method: how it learns and how it encodes.

    Batches: training batches come from `train_collator`. Evaluation batches are made by the
    data module around `image_collator` and `query_collator` and hold
    `kind` ("gallery", "captions" or "queries"), `source` (gallery id or benchmark name),
    `index` (B,) positions in the dataset, `valid` (B,) and `inputs`. Where these hold `cut_texts`
    (B,), which texts lost words, it is counted and told.

    Args:
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves over the run; None keeps it constant.
    """

    #: Whether `rerank` is there: a second stage that reads query and item together.
    reranks: ClassVar[bool] = False
    #: Kinds of queries of which `encode_baselines` gives parts that are ranked beside them.
    composed_kinds: ClassVar[frozenset[QueryKind]] = frozenset({"composed"})
    #: What each gallery is looked at for, by its id; set by the retrieval callback before it has
    #: galleries encoded.
    views: Mapping[str, Views] = MappingProxyType({})

    def __init__(self, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__(optimizer, schedule)
        self._cut_texts = CutTexts()

    @abstractmethod
    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        """A picklable function from gallery images to the inputs of `encode_images`."""

    @abstractmethod
    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        """A picklable function from queries to the inputs of `encode_queries`."""

    @abstractmethod
    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        """Unit vectors of gallery images, (B, D)."""

    @abstractmethod
    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        """Unit vectors of queries, (B, D)."""

    def as_asked(self, queries: Sequence[Query]) -> Sequence[Query]:
        """Queries as the method searches for them, to be looked at: reworded, or with a picture."""
        return queries

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Unit vectors of a composed query's parts by the same encoder.

        Returns {"image_only": (B, D), "text_only": (B, D)}, the same for every batch of a
        benchmark, or nothing where the method has no such parts. They count for queries of
        `composed_kinds` only; the retrieval callback adds their sum, and counts for how many
        queries the whole is better and worse than each.
        """
        return {}

    def encode_baseline_gallery(self, inputs: Inputs) -> torch.Tensor | None:
        """Gallery vectors for the baselines, (B, D), where they need their own.

        They do where `encode_images` has left the space of the pretrained encoder (a tuned
        vision tower); None: the gallery serves both.
        """
        return None

    def prompts_for(self, queries: Sequence[Query]) -> Sequence[str | None]:
        """What the gallery's images are looked at for, query by query.

        None is for nothing in particular. It is asked once a run, before training, for all queries
        of each benchmark whose gallery holds images. Rank 0 alone is asked, so no collectives.

        Raises:
            UserError: a query has no prompt, but needs one.
        """
        return [None] * len(queries)

    def approximation(self) -> Approximation | None:
        """What stands in for looking at images with a prompt, a part of the protocol; or nothing.

        Asked on rank 0 alone, as `prompts_for` is.
        """
        return None

    def encode_views(
        self, inputs: Inputs, prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors of gallery images looked at for each prompt. Shape (V, B, D).

        Only called where `prompts_for` has given a prompt.

        Args:
            inputs: B images, as for `encode_images`.
            prompts: V of them; None, if it is there, is the first and means `encode_images`.
            needed: what will be ranked; the other vectors are left zero. Shape (V, B), bool, on
                the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} gives prompts, but has no encode_views")

    def rerank(
        self,
        queries: Sequence[Query],
        items: Sequence[Item],
        pairs: torch.Tensor,
        scores: torch.Tensor,
    ) -> torch.Tensor:
        """Second-stage scores of some queries with some of their best items; higher is better.

        Only called where `reranks` is true, in evaluation mode and without gradients. Each image
        comes in one call, with all its pairs. Processes share the calls and may make different
        numbers of them, so no collectives.

        Args:
            queries: raw records, to be read by the method's own collators.
            items: gallery images, or captions.
            pairs: positions in `queries` and in `items`. Shape (P, 2), int64.
            scores: cosine similarities of the pairs by the first stage. Shape (P,), float32.

        Returns:
            Shape (P,).
        """
        raise NotImplementedError(f"{type(self).__name__} sets reranks, but has no rerank")

    # ---- prompts and limits -------------------------------------------------------------

    @staticmethod
    def limits(arguments: Mapping[str, Any]) -> frozenset[str]:
        """Arguments, dotted, that change nothing but what is refused.

        A run that was refused something goes on, and its checkpoint is evaluated, under others.

        Args:
            arguments: all of a configuration, for some may count as limits only beside others.
        """
        return frozenset()

    def fixed_prompts(self) -> Sequence[str]:
        """Templates of all prompts of a multimodal LLM, those of evaluations and queries included.

        They are checked before the first step, for an evaluation's prompt that is too long would
        otherwise be found at the end of an epoch.
        """
        return ()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._check_prompts()

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_prompts()

    def on_test_start(self) -> None:
        self._check_prompts()

    def _check_prompts(self) -> None:
        for part in self.modules():
            if isinstance(part, EmbeddingMLLM):
                check_prompts(part.processor, self.fixed_prompts())

    # ---- evaluation ---------------------------------------------------------------------

    def validation_step(
        self, batch: Inputs, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        """Encode one evaluation batch; the retrieval callback picks the vectors up.

        Returns {"gallery": (B, D)[, "view_1": (B, D), ...][, "baseline": (B, D)]} or
        {"query": (B, D)[, "image_only": (B, D), "text_only": (B, D)]}.
        """
        inputs = batch["inputs"]
        if "cut_texts" in inputs:
            self._cut_texts.see(batch["source"], batch["index"], inputs["cut_texts"])
        if batch["kind"] == "gallery":
            vectors = self._encode_gallery(batch)
            baseline = self.encode_baseline_gallery(inputs)
            return vectors if baseline is None else vectors | {"baseline": baseline}
        if batch["kind"] == "captions":
            return {"gallery": self.encode_queries(inputs)}
        return {"query": self.encode_queries(inputs)} | self.encode_baselines(inputs)

    def on_validation_end(self) -> None:
        self._cut_texts.tell()

    def on_test_end(self) -> None:
        self._cut_texts.tell()

    def _encode_gallery(self, batch: Inputs) -> dict[str, torch.Tensor]:
        views = self.views.get(batch["source"])
        if views is None or not views.prompted:
            return {"gallery": self.encode_images(batch["inputs"], prompt=batch.get("prompt"))}
        needed = views.needed[:, batch["index"].cpu()]
        encoded = self.encode_views(batch["inputs"], views.prompts, needed)
        places = range(len(views.prompts))
        return {view_name(place): rows for place, rows in zip(places, encoded, strict=True)}

    def test_step(
        self, batch: Inputs, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        """The same, on the benchmarks of the test run."""
        return self.validation_step(batch, batch_idx, dataloader_idx)
