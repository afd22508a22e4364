"""LoRA adapters and 4-bit base weights, by the libraries that own them (peft, bitsandbytes)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from cirlab.errors import UserError

SECOND_ADAPTER = "second"


@dataclass
class Lora:
    """Low-rank adaptation (Hu et al., 2021).

    Attributes:
        rank: inner dimension of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input, a fraction.
        targets: names (or name endings) of the layers to adapt, or "all-linear".
    """

    rank: int = 64
    alpha: int = 64
    dropout: float = 0.1
    targets: list[str] | str = "all-linear"

    def config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
        )


@dataclass
class FourBit:
    """4-bit base weights (QLoRA, Dettmers et al., 2023). One GPU or DDP, never sharded.

    Attributes:
        quant_type: "nf4" or "fp4".
        double_quant: quantise the quantisation constants as well.
        compute_dtype: dtype of the matrix products, e.g. "bfloat16".
    """

    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    def config(self) -> BitsAndBytesConfig:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
        )


@dataclass
class TowerLora(Lora):
    """LoRA for a vision tower, whose layers have other names than an LLM's.

    The default names the two linear layers of open_clip's transformer blocks.
    """

    targets: list[str] | str = field(default_factory=lambda: ["c_fc", "c_proj"])


def add_lora_to_llm(model: PreTrainedModel, lora: Lora, quantized: bool) -> nn.Module:
    """Freeze the model and give it trainable adapters."""
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with _unknown_targets(lora):
        return get_peft_model(model, lora.config())


def stack_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """Freeze a model's adapters and add trainable ones beside them.

    Raises:
        UserError: the model has no adapters.
    """
    if not isinstance(model, PeftModel):
        raise UserError("second_lora stands beside the adapters of lora; set lora as well")
    with _unknown_targets(lora):
        model.add_adapter(SECOND_ADAPTER, lora.config())
    # The tuner takes several adapters at once, the wrapper only one.
    model.base_model.set_adapter(["default", SECOND_ADAPTER])  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{SECOND_ADAPTER}." in name)
    return model


def add_lora_to_tower(tower: nn.Module, lora: Lora) -> None:
    """The same for a vision tower, in place."""
    tower.requires_grad_(False)
    with _unknown_targets(lora):
        inject_adapter_in_model(lora.config(), tower)


@contextmanager
def adapters_disabled(module: nn.Module) -> Iterator[None]:
    """Run `module` as it was before its adapters, for the baselines of a tuned tower."""
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def _unknown_targets(lora: Lora) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"LoRA targets {lora.targets!r} match no layer that peft can adapt; "
            f"name layers of this model ({str(error)[:200]})"
        ) from error
