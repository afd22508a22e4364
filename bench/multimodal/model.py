"""A multimodal LLM with random weights and adapters, in bfloat16 or over 4 bits."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoModelForImageTextToText, PreTrainedModel

from bench.multimodal.architectures import Architecture
from cirlab.encoders.adapters import FourBit, Lora, add_lora_to_llm
from cirlab.encoders.mllm import OUTSIDE_LANGUAGE_MODEL, language_model

#: On every matrix of the language model, as in the experiments with published settings.
LORA = Lora(rank=64, alpha=64, dropout=0.0)


class Embedder(nn.Module):
    """What InstructCIR trains (`cirlab.encoders.mllm`), built without any file.

    Args:
        architecture: its sizes.
        four_bit: how the language model's matrices are stored; None keeps bfloat16.
        device: where the weights are made.
        lora: the adapters.
    """

    def __init__(
        self,
        architecture: Architecture,
        four_bit: FourBit | None,
        device: torch.device,
        lora: Lora = LORA,
    ) -> None:
        super().__init__()
        model = random_weights(architecture, device)
        if four_bit is not None:
            quantise(language_model(model), four_bit)
            # transformers sets it where it quantises, and peft looks at it.
            model.__dict__["is_loaded_in_4bit"] = True
        self.adapted = add_lora_to_llm(
            model, lora, quantized=four_bit is not None, exclude=OUTSIDE_LANGUAGE_MODEL
        )
        self.inner: PreTrainedModel = model
        self.train()

    def recompute_layers(self, wanted: bool) -> None:
        """Switch gradient checkpointing on or off."""
        if wanted:
            kwargs = {"use_reentrant": False}
            self.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        else:
            self.inner.gradient_checkpointing_disable()

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors at the last token, (B, D)."""
        if "image_grid_thw" in inputs:
            inputs = inputs | {"pixel_values": inputs["pixel_values"].flatten(0, 1)}
        backbone: Any = self.inner.base_model
        hidden = backbone(**inputs, use_cache=False).last_hidden_state
        return normalize(hidden[:, -1].float(), dim=-1)


def random_weights(architecture: Architecture, device: torch.device) -> PreTrainedModel:
    """The model in bfloat16, without gradients."""
    with device:
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            architecture.config(), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.requires_grad_(False)


def quantise(module: nn.Module, four_bit: FourBit) -> None:
    """Replace every linear layer by one of 4 bits, one after the other, in place."""
    # By name: a list of the layers would keep all of them in memory until the last is replaced.
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for name in names:
        module.set_submodule(name, _quantised(module.get_submodule(name), four_bit))


def _quantised(layer: nn.Module, how: FourBit) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    new = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=getattr(torch, how.compute_dtype),
        compress_statistics=how.double_quant,
        quant_type=how.quant_type,
        device="meta",
    )
    weight: Any = bnb.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=how.double_quant,
        quant_type=how.quant_type,
        module=new,
    )
    # Moving it is what quantises it, also to where it is.
    new.weight = weight.to(layer.weight.device)
    new.bias = layer.bias
    return new
