"""What is kept of a model is never taken for what another state of it would make."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.identity import encoder_identity, prefix_identity, view_identity
from cirlab.encoders.mllm.prefix_tokens import suffix_ids
from cirlab.encoders.mllm.settings import MLLMSettings
from tests.tiny_mllm import write_tiny_mllm

TEMPLATE = "<image> Look for: {text}"
PRECISION = "32-true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mllm(tmp_path_factory.mktemp("identity") / "llava")


@pytest.fixture(scope="module")
def frozen(folder: Path) -> EmbeddingMLLM:
    return read(folder, frozen=True)


def read(folder: Path, **settings: Any) -> EmbeddingMLLM:
    return EmbeddingMLLM(MLLMSettings(str(folder), max_length=200, **settings))


def identity(llm: EmbeddingMLLM) -> str:
    return encoder_identity(llm, PRECISION)


# ---- the encoder --------------------------------------------------------------------------


def test_a_model_is_the_same_wherever_it_lies(tmp_path: Path, folder: Path) -> None:
    copied = read(shutil.copytree(folder, tmp_path / "copy"), frozen=True)
    assert identity(copied) == identity(read(folder, frozen=True))


def reads_pictures_otherwise(llm: EmbeddingMLLM) -> None:
    images: Any = llm.processor.processor
    images.image_processor.do_normalize = False


def computes_otherwise(llm: EmbeddingMLLM) -> None:
    llm.speaker.config.get_text_config().rms_norm_eps = 0.1


def is_given_other_options(llm: EmbeddingMLLM) -> None:
    llm.settings.processor_options["do_normalize"] = False


def pools_otherwise(llm: EmbeddingMLLM) -> None:
    llm.settings.pooling = "mean"


def attends_otherwise(llm: EmbeddingMLLM) -> None:
    llm.settings.attention = "eager"


@pytest.mark.parametrize(
    "change",
    [
        reads_pictures_otherwise,
        computes_otherwise,
        is_given_other_options,
        pools_otherwise,
        attends_otherwise,
    ],
)
def test_a_model_of_the_same_weights_that_is_another(
    frozen: EmbeddingMLLM, change: Callable[[EmbeddingMLLM], None]
) -> None:
    changed = deepcopy(frozen)
    assert identity(changed) == identity(frozen)
    change(changed)
    assert identity(changed) != identity(frozen)


def test_the_same_values_in_fewer_bits_are_others(frozen: EmbeddingMLLM) -> None:
    few = deepcopy(frozen).bfloat16()
    many = deepcopy(few).float()
    for name, weight in few.state_dict().items():
        assert torch.equal(weight.float(), many.state_dict()[name].float())
    assert identity(few) != identity(many)


def test_the_precision_of_the_arithmetic_tells_apart_what_is_kept(frozen: EmbeddingMLLM) -> None:
    processor = frozen.processor
    encoders = [encoder_identity(frozen, precision) for precision in ("32-true", "bf16-mixed")]
    assert len({prefix_identity(e, processor, TEMPLATE) for e in encoders}) == 2
    assert len({view_identity(e, processor, TEMPLATE, "stars", "whole") for e in encoders}) == 2


def test_another_base_is_another_model(tmp_path: Path, folder: Path) -> None:
    edited = shutil.copytree(folder, tmp_path / "edited")
    weights = load_file(edited / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    weights[name] = weights[name] * 1.001
    save_file(weights, edited / "model.safetensors", {"format": "pt"})
    assert identity(read(edited, frozen=True)) != identity(read(folder, frozen=True))


def nudge(llm: EmbeddingMLLM, name: str) -> None:
    """Change the last value of one tensor."""
    weight = next(p for n, p in llm.named_parameters() if n.endswith(name))
    with torch.no_grad():
        weight.view(-1)[-1] += 1e-3


@pytest.mark.parametrize("learned", [True, False])
def test_no_change_of_any_weight_is_missed(folder: Path, learned: bool) -> None:
    llm = read(folder, lora=Lora(rank=4))
    llm.requires_grad_(learned)
    before = identity(llm)
    assert identity(llm) == before
    nudge(llm, "q_proj.lora_B.default.weight")
    adapted = identity(llm)
    nudge(llm, "language_model.layers.1.self_attn.q_proj.base_layer.weight")
    assert len({before, adapted, identity(llm)}) == 3


def test_adapters_that_count_more_are_others(folder: Path) -> None:
    found = set()
    for alpha in (4, 8):
        torch.manual_seed(0)
        found.add(identity(read(folder, lora=Lora(rank=4, alpha=alpha))))
    assert len(found) == 2


# ---- what it makes of a picture -----------------------------------------------------------


def test_a_prefix_is_told_apart_by_model_and_by_words_before_the_picture(
    frozen: EmbeddingMLLM,
) -> None:
    def prefix(template: str = TEMPLATE, encoder: str = "a") -> str:
        return prefix_identity(encoder, frozen.processor, template)

    assert prefix() == prefix("<image>Represent the image for this question: {text}")
    assert len({prefix(), prefix(f"Look: {TEMPLATE}"), prefix(encoder="b")}) == 3


def test_a_vector_is_told_apart_by_model_prompt_and_way(frozen: EmbeddingMLLM) -> None:
    def view(
        template: str = TEMPLATE, text: str = "stars", way: str = "whole", encoder: str = "a"
    ) -> str:
        return view_identity(encoder, frozen.processor, template, text, way)

    before = f"Look: {TEMPLATE}"
    behind = [suffix_ids(frozen.processor, t, "stars").tolist() for t in (TEMPLATE, before)]
    assert behind[0] == behind[1]
    assert view() == view()
    others = [view(text="moons"), view(way="prefix"), view("<image> {text}?"), view(before)]
    assert len({view(), *others, view(encoder="b")}) == 6
