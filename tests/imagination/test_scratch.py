"""A CLIP's text tower reads the same in a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from cirlab.imagination.scratch import text_encoder
from tests.tiny import write_tiny_blip


def test_the_zoos_words_keep_their_meaning() -> None:
    texts = ["a small plain red star at the top left, on a beach", "two rings", ""]
    tower, tokenizer = text_encoder("zoo:tiny_clip")
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    clip = load_dual_encoder("zoo:tiny_clip").eval()
    assert tokens["input_ids"].shape == (3, clip.processor.tokenize.max_length)
    with torch.inference_mode():
        ends = tower.eval()(input_ids=tokens["input_ids"]).pooler_output
        projected = torch.nn.functional.normalize(ends @ clip.model.text_projection, dim=-1)
        expected = clip.encode_texts(clip.processor.tokenize(texts))
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-4)


def test_another_text_tower_is_refused(tmp_path: Path) -> None:
    name = f"blip:{write_tiny_blip(tmp_path)}"
    with pytest.raises(UserError, match=r"from_scratch.words is 'blip:.*not open_clip's own"):
        text_encoder(name)
