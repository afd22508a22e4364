"""What is divided among processes, and what is refused; tests/distributed trains with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, MistralConfig

from cirlab.errors import UserError
from lightning_modules.sharding import check_shardable, layers, whole_on_every_process


def method(dtype: torch.dtype = torch.float32) -> nn.Module:
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    llm = AutoModel.from_config(config).to(dtype).requires_grad_(False)
    return nn.ModuleDict({"llm": llm, "projection": nn.Linear(16, 4)})


def test_layers_and_what_trains_are_divided_and_the_rest_is_whole() -> None:
    built = method()
    check_shardable(built)
    assert [type(layer).__name__ for layer in layers(built)] == ["MistralDecoderLayer"] * 2
    whole = whole_on_every_process(built)
    names = {name for name, parameter in built.named_parameters() if parameter in whole}
    assert names == {"llm.embed_tokens.weight", "llm.norm.weight"}


def test_a_method_without_layers() -> None:
    with pytest.raises(UserError, match=r"Linear as configured has none; .*strategy ddp"):
        check_shardable(nn.Linear(2, 2))


def test_a_single_number_cannot_be_divided() -> None:
    built = method()
    built.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(UserError, match=r"^scale is .* shape \(1,\)"):
        check_shardable(built)


def test_types_of_what_trains_have_to_agree_and_others_need_not() -> None:
    check_shardable(method(torch.bfloat16))
    with pytest.raises(UserError, match=r"bfloat16 and torch\.float32, .*llm\.dtype: float32"):
        check_shardable(method(torch.bfloat16).requires_grad_(True))
