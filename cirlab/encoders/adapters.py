"""LoRA adapters and 4-bit base weights, by the libraries that own them (peft, bitsandbytes)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

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
        targets: names (or name endings) of the layers to adapt, "all-linear", or a regular
            expression for whole names.
    """

    rank: int = 64
    alpha: int = 64
    dropout: float = 0.1
    targets: list[str] | str = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"LoRA has rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; rank must "
                "be at least 1, alpha above 0, and dropout at least 0 and below 1"
            )
        if not self.targets:
            raise UserError(
                'LoRA has no targets; name the layers to adapt, or set targets: "all-linear"'
            )

    def config(self, exclude: str | None = None) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            exclude_modules=exclude,
        )


@dataclass
class FourBit:
    """4-bit base weights (QLoRA, Dettmers et al., 2023). One GPU or DDP, never sharded.

    Attributes:
        quant_type: NormalFloat or plain floating point.
        double_quant: quantise the quantisation constants as well.
        compute_dtype: of the matrix products.
    """

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

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


def add_lora_to_llm(
    model: PreTrainedModel, lora: Lora, quantized: bool, exclude: str | None = None
) -> nn.Module:
    """Freeze the model and give it trainable adapters.

    Args:
        model: base weights.
        lora: the adapters.
        quantized: whether the base weights are in 4 bits.
        exclude: regular expression for whole names of layers that stay as they are, whatever the
            targets are: an image tower's, beside a language model.

    Raises:
        UserError: a target matches no layer.
    """
    with _known_targets(model, lora, exclude):
        if quantized:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return get_peft_model(model, lora.config(exclude))


def stack_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """Freeze a model's adapters and add trainable ones beside them.

    Raises:
        UserError: the model has no adapters, or a target matches no layer.
    """
    if not isinstance(model, PeftModel):
        raise UserError("second_lora stands beside the adapters of lora; set lora as well")
    with _known_targets(model, lora):
        model.add_adapter(SECOND_ADAPTER, lora.config())
    # The tuner takes several adapters at once, the wrapper only one.
    model.base_model.set_adapter(["default", SECOND_ADAPTER])  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{SECOND_ADAPTER}." in name)
    return model


def add_lora_to_tower(tower: nn.Module, lora: Lora) -> None:
    """The same for a vision tower, in place."""
    tower.requires_grad_(False)
    with _known_targets(tower, lora):
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
def _known_targets(model: nn.Module, lora: Lora, exclude: str | None = None) -> Iterator[None]:
    """Refuse targets that no layer has; peft takes a list in which only one name is right."""
    own = _own_layers(model, exclude)
    if not isinstance(lora.targets, str):
        unknown = [
            target
            for target in lora.targets
            if not any(name == target or name.endswith(f".{target}") for name in own)
        ]
        if unknown:
            raise _unknown(unknown, own)
    try:
        yield
    except ValueError as error:
        raise _unknown(lora.targets, own) from error


def _unknown(targets: list[str] | str, own: dict[str, nn.Module]) -> UserError:
    linear = dict.fromkeys(
        name.rpartition(".")[2] for name, layer in own.items() if isinstance(layer, nn.Linear)
    )
    return UserError(
        f"LoRA targets {targets!r} match no layer that peft can adapt; among this model's layers "
        f"are {', '.join(list(linear)[:12])}"
    )


def _own_layers(model: nn.Module, exclude: str | None) -> dict[str, nn.Module]:
    """A model's layers by name, without what is excluded or belongs to adapters."""
    layers = dict(model.named_modules())
    tuned = {n: layer for n, layer in layers.items() if isinstance(layer, BaseTunerLayer)}
    inside = {f"{n}.{part}" for n in tuned for part, _ in layers[n].named_modules()}
    return {
        name: tuned[name].get_base_layer() if name in tuned else layer
        for name, layer in layers.items()
        if name not in inside and not (exclude is not None and re.fullmatch(exclude, name))
    }
