"""What the model reads of images, questions and queries: templates, and the batches they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cirlab.encoders.mllm.prefix_tokens import check_same_prefix, suffix_ids
from cirlab.encoders.mllm.processor import (
    IMAGE_MARK,
    TEXT_MARK,
    MLLMProcessor,
    Prompt,
    check_marks,
)
from cirlab.losses import text_ids
from cirlab.records import PromptedPair, Query
from lightning_modules.learner import Inputs


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

    def of_image(self, prompt: str | None) -> str:
        """The template of an image that is looked at for this question, or for none."""
        return self.image if prompt is None else self.prompted

    def check_one_picture(self, processor: MLLMProcessor) -> None:
        """Refuse templates of images that do not continue one picture, by whichever way.

        Raises:
            UserError: one has words before the picture, or they do not begin alike.
        """
        of_images = {"templates.image": self.image, "templates.prompted": self.prompted}
        for template in of_images.values():
            # Refuses one with its words before the picture.
            suffix_ids(processor, template)
        check_same_prefix(processor, of_images)


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
        template = self.templates.of_image(record.prompt)
        return Prompt(template, record.prompt or "", record.image.load())


@dataclass(frozen=True)
class QueryCollator:
    """The words of queries to inputs of the model."""

    processor: MLLMProcessor
    templates: PromptableTemplates

    def __call__(self, queries: Sequence[Query]) -> Inputs:
        return self.processor([Prompt(self.templates.text, query.text) for query in queries])
