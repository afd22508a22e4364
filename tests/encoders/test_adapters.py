"""LoRA: what it is given to, what is refused, and training in 4 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cirlab.encoders.adapters import Lora, add_lora_to_llm, add_lora_to_tower, stack_lora
from cirlab.errors import UserError

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
LINEAR = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def mistral() -> PreTrainedModel:
    return AutoModel.from_config(AutoConfig.for_model("mistral", **SIZES))


def adapted(model: nn.Module) -> set[str]:
    """Last names of the layers that have adapters."""
    return {name.split(".lora_A")[0].rpartition(".")[2] for name in weights(model)}


def weights(model: nn.Module) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if "lora_A" in name}


def test_targets_by_name_and_all_linear() -> None:
    some = add_lora_to_llm(mistral(), Lora(rank=2, targets=["q_proj", "mlp.up_proj"]), False)
    assert adapted(some) == {"q_proj", "up_proj"}
    every = add_lora_to_llm(mistral(), Lora(rank=2), False)
    assert adapted(every) == set(LINEAR.split(", "))


def llava() -> PreTrainedModel:
    """An image tower beside a language model; both have a q_proj."""
    vision = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
    vision |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {"model_type": "mistral", **SIZES}
    config = AutoConfig.for_model("llava", vision_config=vision, text_config=text)
    return AutoModel.from_config(config)


#: Everything but the language model.
OUTSIDE = r"(?!.*\blanguage_model\.).*"


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], r".*\.q_proj"])
def test_excluded_layers_stay_as_they_are(targets: list[str] | str) -> None:
    lora = Lora(rank=2, targets=targets)
    assert any("vision" in name for name in weights(add_lora_to_llm(llava(), lora, False)))
    model = add_lora_to_llm(llava(), lora, False, exclude=OUTSIDE)
    assert all("language_model" in name for name in weights(model))
    assert adapted(model) == (set(LINEAR.split(", ")) if targets == "all-linear" else {"q_proj"})


def test_a_target_of_the_excluded_part_alone_is_refused() -> None:
    lora = Lora(rank=2, targets=["out_proj"])
    add_lora_to_llm(llava(), lora, False)
    with pytest.raises(UserError, match=rf"\['out_proj'\] match no layer.* are {LINEAR}$"):
        add_lora_to_llm(llava(), lora, False, exclude=OUTSIDE)


@pytest.mark.parametrize("targets", [["nonsense"], ["nonsense", "q_proj"], ["proj"]])
def test_every_name_must_match(targets: list[str]) -> None:
    wrong = targets[:1]
    with pytest.raises(UserError) as error:
        add_lora_to_llm(mistral(), Lora(targets=targets), False)
    assert str(error.value) == (
        f"LoRA targets {wrong} match no layer that peft can adapt; among this model's layers "
        f"are {LINEAR}"
    )


def test_an_expression_or_a_layer_that_peft_cannot_adapt_is_refused_alike() -> None:
    for targets in (r".*\.nonsense", ["self_attn"]):
        with pytest.raises(UserError, match=f"match no layer that peft can adapt.*{LINEAR}"):
            add_lora_to_llm(mistral(), Lora(targets=targets), False)
    assert adapted(add_lora_to_llm(mistral(), Lora(targets=r".*\.(k|v)_proj"), False)) == {
        "k_proj",
        "v_proj",
    }


def test_towers_and_second_adapters_name_their_own_layers() -> None:
    tower = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"layers are 0$"):
        add_lora_to_tower(tower, Lora(targets=["c_fc"]))
    first = add_lora_to_llm(mistral(), Lora(rank=2), False)
    with pytest.raises(UserError, match=f"layers are {LINEAR}$"):
        stack_lora(first, Lora(targets=["lora_A"]))


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": []}]
)
def test_values_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="LoRA has"):
        Lora(**wrong)


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    model = mistral().eval()
    inputs = torch.tensor([[1, 2, 3]])
    before = model(inputs).last_hidden_state
    adapted_model = add_lora_to_llm(model, Lora(rank=4, alpha=8, dropout=0.0), False)
    assert torch.equal(adapted_model(inputs).last_hidden_state, before)
    layer: Any = adapted_model.get_submodule("base_model.model.layers.0.mlp.up_proj")
    assert layer.scaling == {"default": 2.0}
