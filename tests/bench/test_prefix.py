"""The measurement of further prompts is of the sizes that it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.prefix import further_prompt, inputs, noise, random_llava
from cirlab.encoders.mllm.prompted_images import PromptedImages


def test_pictures_and_prompts_have_the_tokens_of_the_table(tmp_path: Path) -> None:
    llm = random_llava(tmp_path, image_tokens=16)
    rng = np.random.default_rng(0)
    pictures = [noise(rng, 56) for _ in range(2)]
    group, words = inputs(llm, pictures), torch.arange(10, 15)
    images = PromptedImages(llm)
    with torch.no_grad():
        prefix = images.prefix(group)
        torch.testing.assert_close(
            images.proceed(prefix, words), images.whole(group, words), atol=1e-5, rtol=0
        )
    # One token begins the message.
    assert (len(prefix), prefix.length) == (2, 17)
    row = further_prompt(llm, pictures, words, "tiny")
    assert row.name == "further prompt of 5 tokens, 17 before it, tiny"
    assert len(row.ours) == len(row.reference) > 1 and min(row.ours) > 0
