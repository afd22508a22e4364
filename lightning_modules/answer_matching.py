"""Answer, then match: images are described in words first, and words are searched.

A comparison of Promptable embeddings (arXiv 2505.15877; `eval_t_detailed` of the released code):
a multimodal LLM answers the query's question about each gallery image, and a text embedder ranks
the answers as it would rank captions. What the answer does not say cannot be found. Nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from cirlab.encoders.mllm.answering import Answer, answers
from cirlab.encoders.mllm.image_views import row_groups
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, check_marks
from cirlab.encoders.mllm.prompt_length import check_questions
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.text_matcher import QueryReader, TextMatcher, TextMatcherSettings
from cirlab.errors import UserError
from cirlab.prompts import OwnPrompt, PromptChooser
from cirlab.records import Image, Query
from cirlab.reporting.answers import AnswerSheet, Said
from lightning_modules.learner import Inputs
from lightning_modules.multimodal import MultimodalRetrieval


class AnswerThenMatch(MultimodalRetrieval):
    """A multimodal LLM answers questions about images; a text embedder finds the answer.

    Each picture is looked at once for all questions, and only asked what a query needs to know.
    The run's folder gets all answers (`answers.jsonl`).

    Args:
        llm: the multimodal LLM that answers; it must be frozen.
        matcher: the text embedder, and what it reads of queries and answers.
        ask: what the multimodal LLM reads; `<image>` stands for the picture, `{text}` for the
            question.
        prompts: gives each query its question; null takes the benchmark's own.
        describe: what images are asked for queries without a question.
        max_new_tokens: longest answer in tokens; a longer one is cut off, which is told.
    """

    query_kinds = frozenset({"text", "dialogue"})
    # Processes are asked different questions, whose answers are not equally long.
    shardable = False

    def __init__(
        self,
        llm: MLLMSettings,
        matcher: TextMatcherSettings,
        ask: str = f"{IMAGE_MARK}\n{TEXT_MARK}",
        prompts: PromptChooser | None = None,
        describe: str = "Describe this image in detail.",
        max_new_tokens: int = 128,
    ) -> None:
        super().__init__(llm, chunk_size=None, optimizer=torch.optim.AdamW, schedule=None)
        if not llm.frozen or llm.lora is not None or llm.projection is not None:
            raise UserError(
                "AnswerThenMatch trains nothing and lets llm answer as it is; set llm.frozen to "
                "true, and llm.lora and llm.projection to null"
            )
        if llm.tune_connector:
            raise UserError(
                "llm.tune_connector is true, but AnswerThenMatch trains nothing; set it to false"
            )
        check_marks({"ask": ask}, {"ask": (IMAGE_MARK, TEXT_MARK)})
        if not describe.strip():
            raise UserError(
                "model.init_args.describe is empty; write what images are asked for queries "
                "without a question, such as: Describe this image in detail."
            )
        if max_new_tokens < 1:
            raise UserError(
                f"model.init_args.max_new_tokens is {max_new_tokens}; set it to 1 or more"
            )
        self.matcher_settings = matcher
        self.ask, self.describe = ask, describe
        self.prompts = prompts or OwnPrompt()
        self.max_new_tokens = max_new_tokens
        self.matcher: TextMatcher | None = None
        self._sheet = AnswerSheet()
        #: Of the batch at hand, answers by row and question.
        self._answered: dict[tuple[int, str], Answer] = {}

    # ---- weights ------------------------------------------------------------------------

    def on_weights_read(self) -> None:
        self._images = PromptedImages(self._llm)
        # Refuses a template that does not begin with the picture.
        suffix_ids(self._llm.processor, self.ask, self.describe)
        self.matcher = TextMatcher(self.matcher_settings, self.weights_device)

    def fixed_prompts(self) -> Sequence[str]:
        return (self.ask,)

    def frozen_base(self) -> dict[str, str]:
        return super().frozen_base() | {"matcher": self.matcher_settings.name}

    @property
    def _matcher(self) -> TextMatcher:
        assert self.matcher is not None, "configure_model has not run"
        return self.matcher

    # ---- nothing is trained -------------------------------------------------------------

    def train_collator(self) -> NoReturn:
        raise UserError("AnswerThenMatch is training-free; run validate instead of fit")

    def losses(self, batch: Inputs) -> NoReturn:
        self.train_collator()

    def check_export(self, merged: bool) -> None:
        raise UserError(
            "AnswerThenMatch has learned nothing that could be exported; load "
            f"{self.llm_settings.name} and {self.matcher_settings.name} themselves"
        )

    # ---- evaluation ---------------------------------------------------------------------

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._check_questions()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._check_questions()

    def _check_questions(self) -> None:
        chooser = f"model.init_args.prompts ({type(self.prompts).__name__}) or describe"
        planned = [prompt for views in self.views.values() for prompt in views.prompts]
        questions = [self.describe if prompt is None else prompt for prompt in planned]
        check_questions(self._llm.processor, self.ask, list(dict.fromkeys(questions)), chooser)

    def prompts_for(self, queries: Sequence[Query]) -> Sequence[str | None]:
        return self.prompts(queries)

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return AskedImages(ImagePrefixCollator(self._llm.processor, self.ask))

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return QueryCollator(self._matcher.reader)

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        needed = torch.ones(1, len(inputs["order"]), dtype=torch.bool)
        return self.encode_views(inputs, [prompt], needed)[0]

    def encode_views(
        self, inputs: Inputs, prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        questions = [self.describe if prompt is None else prompt for prompt in prompts]
        self._answered = self._answers(inputs, questions, needed)
        vectors = torch.zeros(*needed.shape, self._matcher.dim)
        for view, question in enumerate(questions):
            rows = needed[view].nonzero().flatten().tolist()
            said = [self._answered[row, question].text for row in rows]
            vectors[view, rows] = self._matcher.texts(said)
        return vectors.to(self.device)

    def _answers(
        self, inputs: Inputs, questions: Sequence[str], needed: torch.Tensor
    ) -> dict[tuple[int, str], Answer]:
        """What is needed to know of which rows, (V, B), by row and question."""
        asked = [suffix_ids(self._llm.processor, self.ask, text) for text in questions]
        found: dict[tuple[int, str], Answer] = {}
        for group, rows in row_groups(inputs):
            if not needed[:, rows].any():
                continue
            prefix = self._images.prefix(group)
            for view in needed[:, rows].any(dim=1).nonzero().flatten().tolist():
                wanted = needed[view, rows]
                chosen = prefix.select(wanted)
                said = answers(self._images, chosen, asked[view], self.max_new_tokens)
                places = [(row, questions[view]) for row in rows[wanted].tolist()]
                found |= zip(places, said, strict=True)
        return found

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        return self._matcher.queries(inputs)

    # ---- what was answered --------------------------------------------------------------

    def validation_step(
        self, batch: Inputs, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        found = super().validation_step(batch, batch_idx, dataloader_idx)
        if batch["kind"] == "gallery":
            self._note(batch)
        return found

    def _note(self, batch: Inputs) -> None:
        """Write down what was answered of the batch, but of images that could not be read."""
        ids, places, valid = batch["inputs"]["ids"], batch["index"].tolist(), batch["valid"]
        for (row, question), (text, cut) in self._answered.items():
            if valid[row]:
                said = Said(batch["source"], places[row], ids[row], question, text, cut)
                self._sheet.note(said)

    def on_validation_epoch_end(self) -> None:
        self._write_answers()

    def on_test_epoch_end(self) -> None:
        self._write_answers()

    def _write_answers(self) -> None:
        self._matcher.forget()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # Every process asks: the trainer broadcasts the answer of the first.
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        self._sheet.write(folder, self.max_new_tokens)


@dataclass(frozen=True)
class AskedImages:
    """Images to what `PromptedImages` takes, and their ids."""

    collate: ImagePrefixCollator

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        return self.collate(images) | {"ids": [image.id for image in images]}


@dataclass(frozen=True)
class QueryCollator:
    """The words of queries to inputs of the text embedder."""

    read: QueryReader

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        return self.read([query.text for query in queries])
