"""A multimodal LLM as an embedder: pictures, words, or both in; one unit vector out.

One class over transformers' image-text-to-text models (LLaVA's layout with any language model,
Qwen2-VL and its successors, ...). The vector is the last layer's state at the last token, where the
model would begin to answer "in one word" (E5-V, arXiv 2407.12580; InstructCIR, arXiv 2412.05756;
VLM2Vec, arXiv 2410.05160). Causal attention makes it see all that was said before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_type_hints

import jinja2
import PIL.Image
import torch
from torch import nn
from torch.nn.functional import normalize
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

from cirlab.chunking import in_chunks
from cirlab.encoders.adapters import FourBit, Lora, add_lora_to_llm
from cirlab.encoders.llm import Attention, Dtype, Pooling, checkpoint_layers, pool
from cirlab.encoders.mllm.processor import IMAGE_MARK, LongText, MLLMProcessor, Prompt
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError

log = logging.getLogger(__name__)

PaddingSide = Literal["left", "right"]

#: Everything but the language model's own layers: an image tower and its connector keep their
#: weights, whatever they are called.
OUTSIDE_LANGUAGE_MODEL = r"(?!.*\blanguage_model\.).*"
#: Parts that stay in their own precision where the language model is in 4 bits.
NEVER_QUANTISED = ["model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head"]

#: Options of processors that the model's own configuration holds as well: the sizes that
#: LLaVA-NeXT cuts pictures into tiles at.
ALSO_THE_MODELS = "image_grid_pinpoints"

#: What a processor tells of the sizes of pictures.
IMAGE_SHAPES = ("image_grid_thw", "image_sizes")


@dataclass
class MLLMSettings:
    """The multimodal LLM and how it is adapted.

    Attributes:
        name: hub name, local folder or `zoo:name`.
        lora: adapters of the language model; null trains every weight of it unless `frozen`.
        four_bit: 4-bit base weights of the language model; needs `lora` or `frozen`.
        frozen: train nothing of it.
        tune_connector: train what leads from the image tower to the language model; the tower
            itself is never trained.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping
            what it computed.
        dtype: of the base weights; "auto" keeps the file's.
        attention: transformers' implementation of it.
        pooling: "last" takes the last token, "mean" averages.
        projection: dimensions of a learned linear head; null compares the last layer's states
            themselves.
        padding_side: null keeps the tokenizer's own. Vectors are the same under either.
        max_length: tokens of a prompt, the picture's included.
        long_text: refuse a longer one, or cut words from the end of its text.
        group_size: prompts padded to one length, where no `chunk_size` is set.
        chat_template: Jinja template, or a file that holds one; null takes the model's own.
        processor_options: of the model's processor, e.g. {size: {shortest_edge: 3136,
            longest_edge: 401408}} for Qwen2-VL, which are pixels of a picture.
        trust_remote_code: run code that lies beside the weights.
    """

    name: str
    lora: Lora | None = None
    four_bit: FourBit | None = None
    frozen: bool = False
    tune_connector: bool = False
    gradient_checkpointing: bool = False
    dtype: Dtype = "float32"
    attention: Attention = "sdpa"
    pooling: Pooling = "last"
    projection: int | None = None
    padding_side: PaddingSide | None = None
    max_length: int = 1024
    long_text: LongText = "refuse"
    group_size: int = 16
    chat_template: str | None = None
    processor_options: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "group_size", "projection"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"llm.{name} is {getattr(self, name)}; set it to 1 or more")
        if self.four_bit is not None and self.lora is None and not self.frozen:
            raise UserError(
                "llm.four_bit stores weights that cannot be trained; set llm.lora, or llm.frozen"
            )


class EmbeddingMLLM(nn.Module):
    """An image-text-to-text model, read out at the end of a prompt.

    Args:
        settings: which model, and how it is adapted.
        chunk_size: prompts encoded at once, in constant memory (`cirlab.chunking`); None keeps
            what every prompt computed.
        device: where 4-bit weights are placed; other weights are moved by the trainer.

    Raises:
        UserError: the weights cannot be read, have no chat template, or a limit of theirs is
            exceeded.
    """

    def __init__(
        self,
        settings: MLLMSettings,
        chunk_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        model, processor = load_mllm(settings, device)
        _check_length(settings, model)
        self.processor = MLLMProcessor(
            processor,
            max_length=settings.max_length,
            group_size=chunk_size or settings.group_size,
            long_text=settings.long_text,
            options=settings.processor_options,
        )
        check_template(self.processor)
        self.take(model, settings, chunk_size)

    def take(
        self, model: PreTrainedModel, settings: MLLMSettings, chunk_size: int | None = None
    ) -> None:
        """Adapt a model and read by it from now on.

        Args:
            model: with the weights of the base.
            settings: how it is adapted; no file is read.
            chunk_size: as of the class.
        """
        self.name, self.settings = settings.name, settings
        self.cut = 0
        self.chunked = chunk_size is not None
        self.width: int = model.config.get_text_config().hidden_size
        self.model: nn.Module = _adapted(model, settings)
        if settings.gradient_checkpointing:
            checkpoint_layers(model)
        self.projection = (
            nn.Linear(self.width, settings.projection, bias=False) if settings.projection else None
        )
        self.dim = settings.projection or self.width

    @property
    def speaker(self) -> PreTrainedModel:
        """The transformers model within the adapters, with its language modelling head."""
        inner: Any = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @property
    def backbone(self) -> nn.Module:
        """The model without its language modelling head."""
        backbone: nn.Module = self.speaker.base_model
        return backbone

    def forward(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Embed prompts as `MLLMProcessor` makes them. Unit vectors, shape (B, D)."""
        self._tell_cut(int(inputs["cut"]))
        groups = inputs["groups"]
        if self.chunked:
            # What no gradient passes through need not be computed again in the backward pass.
            seen = [self._look(group) for group in groups] if torch.is_grad_enabled() else groups
            vectors = in_chunks(self._read, seen)
        else:
            vectors = torch.cat([self._read(group) for group in groups])
        return vectors[inputs["order"]]

    def _tell_cut(self, count: int) -> None:
        """Warn of texts that lost words: at the first, and whenever there are twice as many."""
        before, self.cut = self.cut, self.cut + count
        if count and (not before or before.bit_length() < self.cut.bit_length()):
            log.warning(
                "%d texts so far were longer than llm.max_length %d and lost words at their end",
                self.cut,
                self.settings.max_length,
            )

    def _look(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """The group with what the frozen image tower sees in place of its pixels, where it can."""
        tower = image_tower(self.speaker)
        if "pixel_values" not in group or tower is None or self.settings.tune_connector:
            return group
        shapes = {key: group[key] for key in IMAGE_SHAPES if key in group}
        with torch.no_grad():
            features = tower(group["pixel_values"], return_dict=True, **shapes)
        # The states of its layers are large, and nobody reads them.
        features.last_hidden_state = features.hidden_states = features.attentions = None
        rest = {key: value for key, value in group.items() if key != "pixel_values"}
        return rest | {"mm_encoder_outputs": {"image": features}}

    def _read(self, group: Mapping[str, Any]) -> torch.Tensor:
        """One group of prompts. Unit vectors, shape (G, D), float32."""
        hidden = self.backbone(**group, use_cache=False).last_hidden_state
        return self.unit(pool(hidden, group["attention_mask"], self.settings.pooling))

    def unit(self, pooled: torch.Tensor) -> torch.Tensor:
        """From the last layer's states, pooled (G, W), to unit vectors (G, D), float32."""
        if self.projection is not None:
            pooled = self.projection(pooled.to(self.projection.weight.dtype))
        return normalize(pooled.float(), dim=-1)


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


def _check_length(settings: MLLMSettings, model: PreTrainedModel) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and settings.max_length > limit:
        raise UserError(
            f"llm.max_length is {settings.max_length}, but {settings.name} reads no more than "
            f"{limit} tokens; lower it"
        )


def _adapted(model: PreTrainedModel, settings: MLLMSettings) -> nn.Module:
    """The model with the weights that train, and no others, set to train."""
    model.requires_grad_(False)
    adapted: nn.Module = model
    if settings.lora is not None:
        quantised = settings.four_bit is not None
        adapted = add_lora_to_llm(
            model, settings.lora, quantized=quantised, exclude=OUTSIDE_LANGUAGE_MODEL
        )
    elif not settings.frozen:
        language_model(model).requires_grad_(True)
    if settings.tune_connector:
        connector(model).requires_grad_(True).register_forward_pre_hook(_in_own_type)
    # Steps of an optimiser are too small for what is trained in 16 bits.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _in_own_type(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What a part of 16 bits hands to one of 32."""
    own = next(module.parameters()).dtype
    return tuple(value.to(own) if value.is_floating_point() else value for value in inputs)


def language_model(model: PreTrainedModel) -> nn.Module:
    """The decoder, without its head."""
    found = getattr(model.base_model, "language_model", None)
    if found is None:
        raise UserError(
            f"{type(model).__name__} has no part called language_model; use a model of LLaVA's or "
            "Qwen-VL's layout"
        )
    assert isinstance(found, nn.Module)
    return found


def image_tower(model: PreTrainedModel) -> Callable[..., Any] | None:
    """What makes the language model's tokens of pixels; None where the model takes pixels only."""
    backbone = model.base_model
    if "mm_encoder_outputs" not in signature(backbone.forward).parameters:
        return None
    # Its type is lost in transformers' modules.
    found: Any = backbone.get_image_features
    assert callable(found)
    return found


def connector(model: PreTrainedModel) -> nn.Module:
    """What leads from the image tower to the language model.

    Raises:
        UserError: this model has none of a known name.
    """
    for name in ("multi_modal_projector", "visual.merger"):
        try:
            return model.base_model.get_submodule(name)
        except AttributeError:
            continue
    raise UserError(
        f"{type(model).__name__} has no connector of a known name; set llm.tune_connector to false"
    )
