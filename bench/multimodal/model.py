"""A multimodal LLM with random weights and adapters, in bfloat16 or over 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from bench.multimodal.architectures import Architecture
from cirlab.chunking import split
from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.llm import checkpoint_layers
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.parts import language_model
from cirlab.encoders.mllm.settings import MLLMSettings

#: On every matrix of the language model, as in the experiments with published settings.
LORA = Lora(rank=64, alpha=64, dropout=0.0)


class Embedder(EmbeddingMLLM):
    """The encoder that InstructCIR trains, around a model that comes from no file.

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
        nn.Module.__init__(self)
        model = random_weights(architecture, device)
        if four_bit is not None:
            quantise(language_model(model), four_bit)
            # transformers sets it where it quantises, and peft looks at it.
            model.__dict__["is_loaded_in_4bit"] = True
        settings = MLLMSettings(architecture.name, lora=lora, four_bit=four_bit, dtype="bfloat16")
        self.take(model, settings)
        self.train()

    def keep(self, chunk_size: int | None, recompute_layers: bool) -> None:
        """What is kept for the backward pass.

        Args:
            chunk_size: rows of a chunk, of which only vectors are kept; None keeps all.
            recompute_layers: gradient checkpointing.
        """
        self.chunked = chunk_size is not None
        if recompute_layers:
            checkpoint_layers(self.speaker)
        else:
            self.speaker.gradient_checkpointing_disable()

    def grouped(self, inputs: Mapping[str, torch.Tensor], chunk_size: int | None) -> dict[str, Any]:
        """Tensors of B rows as `MLLMProcessor` makes batches, in chunks or in its groups."""
        groups = split(inputs, chunk_size or self.settings.group_size)
        for group in groups:
            if "image_grid_thw" in group:
                group["pixel_values"] = group["pixel_values"].flatten(0, 1)
        rows = len(inputs["input_ids"])
        return {"groups": groups, "order": torch.arange(rows), "cut": torch.tensor(0)}


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
