"""A multimodal LLM as an embedder: pictures, words, or both in; one unit vector out.

One class over transformers' image-text-to-text models (LLaVA's layout with any language model,
Qwen2-VL and its successors, ...). The vector is the last layer's state at the last token, where the
model would begin to answer "in one word" (E5-V, arXiv 2407.12580; InstructCIR, arXiv 2412.05756;
VLM2Vec, arXiv 2410.05160). Causal attention makes it see all that was said before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from cirlab.chunking import in_chunks
from cirlab.encoders.adapters import add_lora_to_llm
from cirlab.encoders.llm import checkpoint_layers, pool
from cirlab.encoders.mllm.loading import check_template, load_mllm
from cirlab.encoders.mllm.parts import (
    OUTSIDE_LANGUAGE_MODEL,
    connector,
    image_tower,
    language_model,
)
from cirlab.encoders.mllm.processor import MLLMProcessor
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError

log = logging.getLogger(__name__)

#: What a processor tells of the sizes of pictures.
IMAGE_SHAPES = ("image_grid_thw", "image_sizes")


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
