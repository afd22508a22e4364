"""Who sees the image: a multimodal LLM, BLIP or BLIP-2, or the built-in world itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from cirlab.dialogue.talk import Answerer
from cirlab.encoders.fingerprint import fingerprint
from cirlab.encoders.llm import Dtype
from cirlab.encoders.mllm.loading import check_template, load_mllm
from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt, check_marks
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.mllm.speaking import replies
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError
from cirlab.records import Image
from cirlab.world.image import SceneImage
from cirlab.world.oracle import answer_to
from cirlab.world.scene import Scene

#: The question and nothing else.
BARE = f"{IMAGE_MARK}{TEXT_MARK}"
#: BLIP-2's own way to be asked (arXiv 2301.12597, section 4.2); BLIP is asked the bare question.
BLIP2_PROMPT = f"Question: {TEXT_MARK} Answer:"
#: Models of the visual question answering class that write their answers; others choose of a list.
_WRITERS = ("blip", "blip-2")
#: Tokens of models that tell no limit.
_NO_LIMIT = 1 << 20


class MLLMAnswerer:
    """A multimodal LLM answers, by the likeliest words.

    Args:
        name: hub name, local folder or `zoo:name`.
        prompt: what it is told; `<image>` stands for the image, `{text}` for the question.
        max_new_tokens: longest answer.
        batch_size: questions answered at once.
        dtype: of the weights; "auto" keeps the file's.
        device: where it runs.
        max_length: tokens of image and question.

    Raises:
        UserError: the weights cannot be read, or the prompt lacks a place.
    """

    def __init__(
        self,
        name: str,
        prompt: str = BARE,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        dtype: Dtype = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        check_marks({"prompt": prompt}, {"prompt": (IMAGE_MARK, TEXT_MARK)})
        settings = MLLMSettings(name, frozen=True, padding_side="left", dtype=dtype)
        loaded, processor = load_mllm(settings)
        model: Any = loaded
        self.model = model.to(torch.device(device))
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", _NO_LIMIT)
        self.processor = MLLMProcessor(processor, limit - max_new_tokens, group_size=batch_size)
        check_template(self.processor)
        self.name, self.prompt, self.dtype = name, prompt, dtype
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "mllm",
            "name": self.name,
            "weights": fingerprint(self.model.named_parameters()),
            "dtype": self.dtype,
            "prompt": self.prompt,
            "max_new_tokens": self.max_new_tokens,
        }

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        said: dict[int, str] = {}
        for rows in _batches(_by_length(questions), self.batch_size):
            prompts = [Prompt(self.prompt, questions[row], images[row].load()) for row in rows]
            told = replies(
                self.model, self.processor, prompts, self.max_new_tokens, description=None
            )
            said |= dict(zip(rows, told, strict=True))
        return [said[row] for row in range(len(questions))]


class BlipAnswerer:
    """BLIP (arXiv 2201.12086) or BLIP-2 (arXiv 2301.12597) for visual question answering.

    Questions of equal length are answered together: BLIP's decoder in transformers reads the
    padding of shorter ones, which would change their answers.

    Args:
        name: hub name or local folder, e.g. Salesforce/blip-vqa-base, Salesforce/blip2-opt-2.7b.
        max_new_tokens: longest answer.
        batch_size: questions answered at once.
        dtype: of the weights; "auto" keeps the file's.
        device: where it runs.

    Raises:
        UserError: the weights cannot be read, or are another model's.
    """

    def __init__(
        self,
        name: str,
        max_new_tokens: int = 16,
        batch_size: int = 32,
        dtype: Dtype = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        folder = resolve_folder(name)
        with weights_or_sentence(name, key="--answer-model"):
            kind = AutoConfig.from_pretrained(folder).model_type
            if kind not in _WRITERS:
                raise UserError(
                    f"{name!r} (--answer-model) is a {kind}; name a BLIP or BLIP-2 that answers "
                    "questions, or choose the answerer mllm"
                )
            self.processor: Any = AutoProcessor.from_pretrained(folder)
            loaded: Any = AutoModelForVisualQuestionAnswering.from_pretrained(
                folder, dtype=dtype, output_loading_info=True
            )
        self.model, told = loaded
        # A BLIP that retrieves or describes has no decoder of answers: transformers draws one.
        if missing := sorted(told["missing_keys"]):
            raise UserError(
                f"{name!r} (--answer-model) is a {kind} without {len(missing)} of the weights that "
                f"answer questions, {missing[0]!r} first; name one that was trained to answer"
            )
        self.model = self.model.eval().to(torch.device(device))
        self.prompt = BLIP2_PROMPT if kind == "blip-2" else TEXT_MARK
        # A model that continues a text gives the text back before its answer.
        text = self.model.config.text_config
        self._repeats = kind == "blip-2" and not text.is_encoder_decoder
        self.name, self.kind, self.dtype = name, kind, dtype
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "weights": fingerprint(self.model.named_parameters()),
            "dtype": self.dtype,
            "prompt": self.prompt,
            "max_new_tokens": self.max_new_tokens,
        }

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        texts = [self.prompt.replace(TEXT_MARK, question) for question in questions]
        lengths = (
            [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]] if texts else []
        )
        alike: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            alike.setdefault(length, []).append(row)
        said: dict[int, str] = {}
        for rows_of_length in alike.values():
            for rows in _batches(rows_of_length, self.batch_size):
                pictures = [images[row].load() for row in rows]
                told = self._answers(pictures, [texts[row] for row in rows])
                said |= dict(zip(rows, told, strict=True))
        return [said[row] for row in range(len(questions))]

    @torch.inference_mode()
    def _answers(self, pictures: list[PIL.Image.Image], texts: list[str]) -> list[str]:
        """Of questions of equal length."""
        inputs = self.processor(images=pictures, text=texts, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens
        )
        if self._repeats:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        said = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in said]


def load_answerer(name: str, key: str, **options: Any) -> MLLMAnswerer | BlipAnswerer:
    """BLIP or BLIP-2 where the weights are theirs, a multimodal LLM otherwise.

    Args:
        name: hub name, local folder or `zoo:name`.
        key: the option that names it.
        options: of both, such as `device`.

    Raises:
        UserError: the weights cannot be read.
    """
    with weights_or_sentence(name, key=key):
        kind = AutoConfig.from_pretrained(resolve_folder(name)).model_type
    return (BlipAnswerer if kind in _WRITERS else MLLMAnswerer)(name, **options)


@dataclass(frozen=True)
class WorldAnswerer:
    """The built-in world knows what its pictures show (`cirlab.world.oracle`)."""

    def identity(self) -> dict[str, Any]:
        return {"kind": "world"}

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        pairs = zip(map(_shown_scene, images), questions, strict=True)
        return [answer_to(scene, question) for scene, question in pairs]


def _shown_scene(image: Image) -> Scene:
    if not isinstance(image, SceneImage):
        raise UserError(
            f"the answerer world is asked about {image.id!r}, which is no picture of the built-in "
            "world; choose another answerer"
        )
    return image.scene


@dataclass
class Remembering:
    """Asks another answerer nothing twice, within one session.

    Attributes:
        answerer: who is asked.
    """

    answerer: Answerer
    _known: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def identity(self) -> dict[str, Any]:
        return dict(self.answerer.identity())

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        keys = [(image.id, question) for image, question in zip(images, questions, strict=True)]
        lacking = {key: row for row, key in enumerate(keys) if key not in self._known}
        if lacking:
            rows = list(lacking.values())
            said = self.answerer.answer(
                [images[row] for row in rows], [questions[row] for row in rows]
            )
            self._known |= dict(zip(lacking, said, strict=True))
        return [self._known[key] for key in keys]


def _by_length(texts: Sequence[str]) -> list[int]:
    """Rows in the order of their texts' lengths, equal texts beside each other."""
    return sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row], row))


def _batches(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
