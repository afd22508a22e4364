"""What is kept of a model is never taken for what another state of it would make."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm import EmbeddingMLLM, MLLMSettings
from cirlab.encoders.mllm_identity import encoder_identity, prefix_identity, view_identity
from tests.tiny_mllm import write_tiny_mllm

TEMPLATE = "<image> Look for: {text}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mllm(tmp_path_factory.mktemp("identity") / "llava")


def test_the_identity_changes_with_all_that_changes_a_prefix(tmp_path: Path, folder: Path) -> None:
    folder = shutil.copytree(folder, tmp_path / "llava")

    def identity(template: str = TEMPLATE, precision: str = "32-true", **settings: Any) -> str:
        llm = EmbeddingMLLM(MLLMSettings(str(folder), frozen=True, max_length=200, **settings))
        return prefix_identity(llm, template, precision)

    same = identity()
    other_words = "<image>Represent the image for this question: {text}"
    assert identity() == same == identity(other_words)
    resized = {"size": {"height": 32, "width": 32}, "do_normalize": False}
    changed = [
        identity(f"Look: {TEMPLATE}"),
        identity(precision="bf16-mixed"),
        identity(dtype="bfloat16"),
        identity(processor_options=resized),
        identity(attention="eager"),
    ]
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    save_file(
        weights | {name: weights[name] * 1.001}, folder / "model.safetensors", {"format": "pt"}
    )
    changed.append(identity())
    assert len({same, *changed}) == 7
    copied = shutil.copytree(folder, tmp_path / "copy")
    llm = EmbeddingMLLM(MLLMSettings(str(copied), frozen=True, max_length=200))
    assert prefix_identity(llm, TEMPLATE, "32-true") == changed[-1]


def test_no_change_of_what_is_learned_is_missed(folder: Path) -> None:
    llm = EmbeddingMLLM(MLLMSettings(str(folder), lora=Lora(rank=4), max_length=200))
    before = encoder_identity(llm, "32-true")
    assert encoder_identity(llm, "32-true") == before
    weight = next(p for name, p in llm.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        weight.view(-1)[-2] += 1e-3
    assert encoder_identity(llm, "32-true") != before


def test_adapters_that_count_more_are_others(folder: Path) -> None:
    found = set()
    for alpha in (4, 8):
        torch.manual_seed(0)
        llm = EmbeddingMLLM(
            MLLMSettings(str(folder), lora=Lora(rank=4, alpha=alpha), max_length=200)
        )
        found.add(encoder_identity(llm, "32-true"))
    assert len(found) == 2


def test_a_vector_is_told_apart_by_prompt_and_way(folder: Path) -> None:
    llm = EmbeddingMLLM(MLLMSettings(str(folder), frozen=True, max_length=200))

    def identity(template: str = TEMPLATE, text: str = "stars", way: str = "whole") -> str:
        return view_identity(llm, template, text, "32-true", way)

    assert identity() == identity()
    others = [identity(text="moons"), identity(way="prefix"), identity("<image> {text}?")]
    assert len({identity(), *others}) == 4
