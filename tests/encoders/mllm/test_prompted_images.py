"""A prompt behind a picture's prefix: the vectors of one forward, in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.errors import UserError
from tests.encoders.mllm.prompting import (
    GENERAL,
    PROMPTED,
    QUESTIONS,
    mllm,
    pictures,
    plain,
    prefixes,
)
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    layouts = (*LAYOUTS, "llava-mistral")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in layouts}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "llava-mistral"])
def test_vectors_are_those_of_one_forward(layout: str, side: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout], padding_side=side)
    images = PromptedImages(model)
    batch = ImagePrefixCollator(model.processor, GENERAL)(pictures())
    if layout.startswith(("qwen", "llava_next")):
        assert any((group["attention_mask"] == 0).any() for group in batch["groups"])
    kept = [images.prefix(group) for group in batch["groups"]]
    for template, text in [(GENERAL, ""), *((PROMPTED, question) for question in QUESTIONS)]:
        suffix = suffix_ids(model.processor, template, text)
        expected = plain(model, template, text)
        by_prefix = torch.cat([images.proceed(p, suffix) for p in kept])[batch["order"]]
        assert (by_prefix - expected).abs().max() < 1e-4
        with torch.no_grad():
            whole = torch.cat([images.whole(g, suffix) for g in batch["groups"]])[batch["order"]]
        assert (whole - expected).abs().max() < 1e-5
        torch.testing.assert_close(by_prefix.norm(dim=1), torch.ones(5))


def test_mixed_precision_may_round_as_16_bits_do(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No two sums agree as closely as that.
    monkeypatch.setattr("cirlab.encoders.mllm.prompted_images.CLOSE", -1.0)
    model = mllm(folders["llava-llama"])
    (group, *_) = ImagePrefixCollator(model.processor, GENERAL)(pictures())["groups"]
    with torch.autocast("cpu", torch.bfloat16):
        PromptedImages(model).prefix(group)
    with pytest.raises(UserError, match="attention is not causal"):
        PromptedImages(model).prefix(group)


@pytest.mark.parametrize("layout", ["llava-llama", "qwen2_vl"])
def test_adapters_and_a_projection_take_part(layout: str, folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = mllm(folders[layout], frozen=False, lora=Lora(rank=2, alpha=4), projection=8)
    suffix = suffix_ids(model.processor, PROMPTED, QUESTIONS[0])
    images = PromptedImages(model)
    vectors = []
    for spread in (0.0, 0.3):
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=spread)
        kept, order = prefixes(model, images)
        vectors.append(torch.cat([images.proceed(p, suffix) for p in kept])[order])
        expected = plain(model, PROMPTED, QUESTIONS[0])
        assert (vectors[-1] - expected).abs().max() < 1e-4
    assert vectors[0].shape == (5, 8) and (vectors[0] - vectors[1]).abs().max() > 1e-2


@pytest.mark.parametrize("layout", ["llava-mistral", "qwen2_vl"])
def test_in_16_bits_it_is_as_near_as_their_rounding(layout: str, folders: dict[str, Path]) -> None:
    exact = plain(mllm(folders[layout]), PROMPTED, QUESTIONS[0])
    model = mllm(folders[layout], dtype="bfloat16")
    images = PromptedImages(model)
    kept, order = prefixes(model, images)
    suffix = suffix_ids(model.processor, PROMPTED, QUESTIONS[0])
    vectors = torch.cat([images.proceed(p, suffix) for p in kept])[order]
    rounding = (plain(model, PROMPTED, QUESTIONS[0]) - exact).norm(dim=1).max()
    assert vectors.dtype == torch.float32
    assert 0 < (vectors - exact).norm(dim=1).max() < 3 * rounding < 0.1


def test_a_sliding_window_shorter_than_the_prompt_is_kept_to(tmp_path: Path) -> None:
    folder = write_tiny_mllm(tmp_path / "window", "llava-mistral")
    wide = mllm(folder)
    edit(folder, lambda config: config["text_config"].update(sliding_window=5))
    model = mllm(folder)
    images = PromptedImages(model)
    kept, order = prefixes(model, images)
    for question in QUESTIONS:
        suffix = suffix_ids(model.processor, PROMPTED, question)
        vectors = torch.cat([images.proceed(p, suffix) for p in kept])[order]
        expected = plain(model, PROMPTED, question)
        assert (vectors - expected).abs().max() < 1e-4
        assert (plain(wide, PROMPTED, question) - expected).abs().max() > 1e-3


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ---- what is refused ------------------------------------------------------------------------


def test_attention_that_looks_ahead_is_refused(folders: dict[str, Path]) -> None:
    model = mllm(folders["llava-llama"])
    for layer in model.backbone.get_submodule("language_model.layers"):
        layer.self_attn.register_forward_pre_hook(look_ahead, with_kwargs=True)
    with pytest.raises(
        UserError, match=r"its attention is not causal; name another model, or encode picture"
    ):
        prefixes(model, PromptedImages(model))


def look_ahead(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every token sees all tokens, as in a model with a bidirectional prefix."""
    module.is_causal = False
    return args, kwargs | {"attention_mask": None}


def test_pooling_over_the_picture_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"llm\.pooling is mean, which takes in .*pooling: last"):
        PromptedImages(mllm(folders["llava-llama"], pooling="mean"))


def test_layers_without_a_cache_by_token_are_refused(folders: dict[str, Path]) -> None:
    model = mllm(folders["llava-mistral"])
    kinds = ["full_attention", "linear_attention"]
    model.speaker.config.get_text_config().layer_types = kinds
    with pytest.raises(UserError, match="layers of kind linear_attention"):
        PromptedImages(model)
    plain_only = PromptedImages(model, by_prefix=False)
    with pytest.raises(ValueError, match="by_prefix is False"):
        plain_only.prefix({})


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_one_forward_needs_neither_a_cache_nor_the_last_token(
    pooling: Any, folders: dict[str, Path]
) -> None:
    model = mllm(folders["llava-llama"], pooling=pooling)
    images = PromptedImages(model, by_prefix=False)
    batch = ImagePrefixCollator(model.processor, GENERAL)(pictures())
    suffix = suffix_ids(model.processor, PROMPTED, QUESTIONS[0])
    with torch.no_grad():
        whole = torch.cat([images.whole(g, suffix) for g in batch["groups"]])[batch["order"]]
    assert (whole - plain(model, PROMPTED, QUESTIONS[0])).abs().max() < 1e-5


def test_a_prompt_too_long_behind_its_picture_says_how_long_it_is(
    folders: dict[str, Path],
) -> None:
    long = "is there a red circle? " * 9
    folder = folders["llava-llama"]
    suffix = suffix_ids(mllm(folder).processor, PROMPTED, long)
    needed = len(suffix) + 5
    refusing = PromptedImages(mllm(folder, max_length=needed - 1))
    group = ImagePrefixCollator(refusing.llm.processor, GENERAL)(pictures()[:1])["groups"][0]
    said = f"has {needed} tokens, .* at least {needed}"
    with pytest.raises(UserError, match=said):
        refusing.proceed(refusing.prefix(group), suffix)
    with pytest.raises(UserError, match=said):
        refusing.whole(group, suffix)
    images = PromptedImages(mllm(folder, max_length=needed))
    assert images.proceed(images.prefix(group), suffix).shape == (1, 32)


def test_in_training_there_is_no_prefix(folders: dict[str, Path]) -> None:
    model = mllm(folders["llava-llama"])
    images = PromptedImages(model)
    model.train()
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        prefixes(model, images)
