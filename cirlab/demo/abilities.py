"""Captioning, visual question answering, features and image-text matching, by models' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from cirlab.demo.captioning import MAX_NEW_TOKENS, AskedCaptioner, Captioner, load_captioner
from cirlab.demo.matching import Matcher, load_matcher
from cirlab.dialogue.answerers import load_answerer
from cirlab.dialogue.talk import Answerer
from cirlab.encoders.dual.blip import BLIP_PREFIX
from cirlab.encoders.names import ZOO, ZOO_PREFIX
from cirlab.records import Image

ANSWERER, CLIP, BLIP = (f"{ZOO_PREFIX}{name}" for name in ("tiny_mllm", "tiny_clip", "tiny_blip"))


@dataclass(frozen=True)
class Match:
    """How a text goes with an image.

    Attributes:
        text: what is said.
        similarity: cosine of the two vectors.
        together: how sure a model is that reads the two together, in [0, 1]; None without one.
    """

    text: str
    similarity: float
    together: float | None


def default_captioner() -> str:
    """The zoo's BLIP where there is one, else its multimodal LLM."""
    return BLIP if _has_blip() else ANSWERER


def default_matcher() -> str:
    """The zoo's BLIP where there is one, else its CLIP."""
    return f"{BLIP_PREFIX}{BLIP}" if _has_blip() else CLIP


def _has_blip() -> bool:
    return (ZOO / BLIP.removeprefix(ZOO_PREFIX)).is_dir()


class Abilities:
    """What can be asked of an image; each model is loaded when it is first asked.

    Args:
        captioner: a multimodal LLM, BLIP or BLIP-2: hub name, local folder or `zoo:name`; None
            takes the zoo's.
        answerer: the same, of BLIP one that answers questions.
        matcher: an open_clip model, `zoo:name`, or `blip:name`; None takes the zoo's.
        pretrained: open_clip's tag of the matcher's weights.
        device: where they run.

    Raises:
        UserError: from any method whose weights cannot be read.
    """

    def __init__(
        self,
        captioner: str | None = None,
        answerer: str = ANSWERER,
        matcher: str | None = None,
        pretrained: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.captioner = captioner or default_captioner()
        self.answerer = answerer
        self.matcher = matcher or default_matcher()
        self.pretrained, self.device = pretrained, device

    def caption(self, image: Image) -> str:
        """What the image shows, in words."""
        return self._captioner.captions([image])[0]

    def answer(self, image: Image, question: str) -> str:
        """An answer to a question about the image; may be empty."""
        return self._answerer.answer([image], [question])[0]

    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        """Unit vectors (B, D), float32, in one space with `text_features`."""
        return self._matcher.images(images)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (B, D), float32."""
        return self._matcher.texts(texts)

    def match(self, image: Image, texts: Sequence[str]) -> list[Match]:
        """How each text goes with the image, the best first.

        By the model that reads both together if the matcher has one, else by similarity.
        """
        if not texts:
            return []
        similarities = self.text_features(texts) @ self.image_features([image])[0]
        sure: Sequence[float | None] = self._matcher.together(image, texts) or [None] * len(texts)
        found = map(Match, texts, similarities.tolist(), sure)
        return sorted(found, key=lambda each: (each.together or 0.0, each.similarity), reverse=True)

    @cached_property
    def _captioner(self) -> Captioner:
        if self.captioner == self.answerer:
            return AskedCaptioner(self._answerer)
        return load_captioner(self.captioner, self.device)

    @cached_property
    def _answerer(self) -> Answerer:
        return load_answerer(
            self.answerer, "--answerer", device=self.device, max_new_tokens=MAX_NEW_TOKENS
        )

    @cached_property
    def _matcher(self) -> Matcher:
        return load_matcher(self.matcher, self.pretrained, self.device)
