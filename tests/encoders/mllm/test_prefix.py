"""What is kept of pictures serves any prompt, in any order, taken apart and put together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirlab.encoders.mllm.prefix import ROOM, Prefix
from cirlab.encoders.mllm.prefix_tokens import suffix_ids
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.prompted_images import PromptedImages
from tests.encoders.mllm.prompting import PROMPTED, QUESTIONS, mllm, plain, prefixes
from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    layouts = ("llava-llama", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in layouts}


@pytest.mark.parametrize("layout", ["llava-llama", "qwen2_5_vl"])
def test_a_prefix_serves_many_prompts_in_any_order(layout: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout])
    images = PromptedImages(model)
    suffixes = [suffix_ids(model.processor, PROMPTED, question) for question in QUESTIONS]
    (kept, *_), _ = prefixes(model, images)
    before = list(kept.rows())
    first = [images.proceed(kept, suffix) for suffix in suffixes]
    # In between, the model reads something else.
    model(model.processor([Prompt("{text}", "a red circle")]))
    again = [images.proceed(kept, suffix) for suffix in reversed(suffixes)][::-1]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for row, same in zip(before, kept.rows(), strict=True):
        torch.testing.assert_close(row.layers, same.layers, rtol=0, atol=0)
    assert (first[0] - first[1]).abs().max() > 1e-3


def test_a_prompt_may_be_longer_than_the_room_that_is_left_for_it(
    folders: dict[str, Path],
) -> None:
    model = mllm(folders["llava-llama"])
    images = PromptedImages(model)
    (kept, *_), _ = prefixes(model, images)
    long = "is there a red circle, " * 9
    for text in (QUESTIONS[0], long, QUESTIONS[0]):
        suffix = suffix_ids(model.processor, PROMPTED, text)
        assert (len(suffix) > ROOM) == (text == long)
        expected = plain(model, PROMPTED, text)[:3]
        assert (images.proceed(kept, suffix) - expected).abs().max() < 1e-4
        # Kept ones have no room at all.
        alone = torch.cat([images.proceed(row, suffix) for row in kept.rows()])
        assert (alone - expected).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["llava-llama", "llava_next", "qwen2_vl", "qwen3_vl"])
def test_prefixes_are_taken_apart_and_put_together(layout: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout], group_size=2)
    images = PromptedImages(model)
    kept, order = prefixes(model, images)
    single = [row for prefix in kept for row in prefix.rows()]
    assert [len(row) for row in single] == [1] * 5
    assert all((row.mask == 1).all() for row in single)
    mixed = Prefix.join([single[i] for i in order.tolist()])
    suffix = suffix_ids(model.processor, PROMPTED, QUESTIONS[1])
    expected = plain(model, PROMPTED, QUESTIONS[1])
    assert (images.proceed(mixed, suffix) - expected).abs().max() < 1e-4
    halves = Prefix.join([Prefix.join(single[:2]), Prefix.join(single[2:])])
    assert (images.proceed(halves, suffix)[order] - expected).abs().max() < 1e-4
