"""A multimodal LLM and its processor by name, and what is refused of either before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import jinja2
import PIL.Image
import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MODEL_CLASSES,
)
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from cirlab.encoders.mllm.parts import NEVER_QUANTISED
from cirlab.encoders.mllm.processor import IMAGE_MARK, MLLMProcessor, Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError

#: Options of processors that the model's own configuration holds as well: the sizes that
#: LLaVA-NeXT cuts pictures into tiles at.
ALSO_THE_MODELS = "image_grid_pinpoints"


def load_mllm(
    settings: MLLMSettings, device: torch.device | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model in eval mode, as transformers hands it out, and processor.

    Raises:
        UserError: they cannot be read.
    """
    folder = resolve_folder(settings.name)
    placement: dict[str, Any] = {}
    if settings.four_bit is not None:
        four_bit = settings.four_bit.config()
        four_bit.llm_int8_skip_modules = NEVER_QUANTISED
        place = {"": device or torch.device("cpu")}
        placement = {"quantization_config": four_bit, "device_map": place}
    with weights_or_sentence(settings.name, key="llm.name"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        if not settings.trust_remote_code and type(config) not in MODEL_CLASSES:
            raise UserError(
                f"{settings.name} (llm.name) is a {config.model_type}, which reads no pictures; "
                "name a multimodal LLM, one that transformers loads as image-text-to-text"
            )
        processor = AutoProcessor.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code
        )
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=settings.dtype,
            attn_implementation=settings.attention,
            trust_remote_code=settings.trust_remote_code,
            **placement,
        )
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(
            f"{settings.name} (llm.name) has no processor for pictures and text; name a multimodal "
            "LLM (AutoModelForImageTextToText)"
        )
    _check_options(settings, processor)
    if settings.padding_side is not None:
        processor.tokenizer.padding_side = settings.padding_side
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    processor.chat_template = _chat_template(settings, processor)
    return model, processor


def check_template(processor: MLLMProcessor) -> None:
    """Refuse a chat template that has no place for pictures.

    Raises:
        UserError: it leaves them out.
    """
    probe = Prompt(f"{IMAGE_MARK} a", image=PIL.Image.new("RGB", (8, 8)))
    token = getattr(processor.processor, "image_token", None)
    try:
        rendered = processor.render(probe)
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template is no Jinja template ({error}); correct llm.chat_template"
        ) from error
    if token is not None and token not in rendered:
        raise UserError(
            f"the chat template writes no image token {token!r} where a message has a picture; set "
            "llm.chat_template to one for pictures and text"
        )


def _chat_template(settings: MLLMSettings, processor: ProcessorMixin) -> str:
    given = settings.chat_template
    if given is not None:
        # A template is longer than a name of a file may be.
        is_template = "{" in given
        return given if is_template else _read_template(Path(given))
    template = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    if template is None:
        raise UserError(
            f"{settings.name} (llm.name) has no chat template; set llm.chat_template to a Jinja "
            "template or a file that holds one"
        )
    return str(template)


def _check_options(settings: MLLMSettings, processor: ProcessorMixin) -> None:
    """Transformers passes over options that it does not know."""
    valid = getattr(processor.image_processor, "valid_kwargs", None)
    known = sorted(get_type_hints(valid)) if valid is not None else list(settings.processor_options)
    unknown = [name for name in settings.processor_options if name not in known]
    if unknown:
        raise UserError(
            f"llm.processor_options has {unknown[0]!r}, which {settings.name}'s processor of "
            f"pictures does not know; it knows {', '.join(known)}"
        )
    if ALSO_THE_MODELS in settings.processor_options:
        raise UserError(
            f"llm.processor_options has {ALSO_THE_MODELS!r}, which the model {settings.name} must "
            "be told as well; change it in a copy of the folder, in config.json and in the "
            "processor's configuration"
        )


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"llm.chat_template is {path}, which is neither a Jinja template nor a file; correct it"
        )
    return path.read_text(encoding="utf-8")
