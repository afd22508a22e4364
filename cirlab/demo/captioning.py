"""Who describes an image: BLIP's decoder, or a multimodal LLM that is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoProcessor

from cirlab.dialogue.answerers import load_answerer
from cirlab.dialogue.talk import Answerer
from cirlab.encoders.blip.checkpoint import DECODER
from cirlab.encoders.blip.weights import BlipForConditionalGeneration
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError
from cirlab.records import Image
from cirlab.world.conversation import DESCRIBE

KEY = "--captioner"
#: Of the longest description; the built-in world's need that many.
MAX_NEW_TOKENS = 96


class Captioner(Protocol):
    """Who describes images."""

    def captions(self, images: Sequence[Image]) -> list[str]:
        """A description of each image."""
        ...


def load_captioner(name: str, device: str | torch.device = "cpu") -> Captioner:
    """BLIP where the weights are its own, otherwise a multimodal LLM or BLIP-2.

    Args:
        name: hub name, local folder or `zoo:name`.
        device: where it runs.

    Raises:
        UserError: the weights cannot be read, or have no decoder.
    """
    with weights_or_sentence(name, key=KEY):
        kind = AutoConfig.from_pretrained(resolve_folder(name)).model_type
    if kind == "blip":
        return BlipCaptioner(name, device)
    asked = load_answerer(name, KEY, device=device, max_new_tokens=MAX_NEW_TOKENS)
    return AskedCaptioner(asked)


class BlipCaptioner:
    """BLIP (arXiv 2201.12086), by the likeliest words.

    Args:
        name: hub name, local folder or `zoo:name`, e.g. Salesforce/blip-image-captioning-base.
        device: where it runs.

    Raises:
        UserError: the weights cannot be read, or have no decoder.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        folder = resolve_folder(name)
        with weights_or_sentence(name, key=KEY):
            loaded: Any = BlipForConditionalGeneration.from_pretrained(
                folder, output_loading_info=True
            )
            self.processor: Any = AutoProcessor.from_pretrained(folder)
        model, info = loaded
        if any(weight.startswith(DECODER) for weight in info["missing_keys"]):
            raise UserError(
                f"{name!r} ({KEY}) is a BLIP without a text decoder; name one that describes "
                "images, such as Salesforce/blip-image-captioning-base, or a multimodal LLM"
            )
        self.model: Any = model.eval().to(torch.device(device))
        # Behind the token that begins every description.
        places: int = self.model.config.text_config.max_position_embeddings - 1
        self.max_new_tokens = min(MAX_NEW_TOKENS, places)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image]) -> list[str]:
        pictures = [image.load() for image in images]
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        tokens = self.model.generate(
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
        )
        said = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in said]


class AskedCaptioner:
    """One that answers questions is told to describe the image.

    Args:
        answerer: is told.
        prompt: what.
    """

    def __init__(self, answerer: Answerer, prompt: str = DESCRIBE) -> None:
        self.answerer, self.prompt = answerer, prompt

    def captions(self, images: Sequence[Image]) -> list[str]:
        return self.answerer.answer(images, [self.prompt] * len(images))
