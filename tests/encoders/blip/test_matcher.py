from __future__ import annotations

import math
from pathlib import Path

import PIL.Image
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from cirlab.encoders.blip.matcher import BlipMatcher, text_vectors
from cirlab.errors import UserError
from tests.tiny_blip import tiny_blip, write_tokenizer

TEXTS = ["a red circle", "is it on the left ? yes"]


@pytest.fixture(scope="module")
def encoder() -> BlipMatcher:
    return tiny_blip()


@pytest.fixture(scope="module")
def pixels(encoder: BlipMatcher) -> torch.Tensor:
    return encoder.processor.images([PIL.Image.new("RGB", (9, 7), c) for c in ("red", "blue")])


def test_transformers_scores_are_ours(encoder: BlipMatcher, pixels: torch.Tensor) -> None:
    """Its class reads the text as it is given it; BLIP marks a text that is to be matched."""
    tokens = encoder.processor.tokenize(TEXTS)
    hidden = encoder.hidden_images(pixels)
    marked = tokens | {"input_ids": tokens["input_ids"].clone()}
    marked["input_ids"][:, 0] = encoder.encode_id
    assert isinstance(encoder.model, transformers.BlipForImageTextRetrieval)
    theirs = encoder.model(pixel_values=pixels, use_itm_head=True, **marked).itm_score
    torch.testing.assert_close(encoder.match(tokens, hidden), theirs)
    cosines = encoder.model(pixel_values=pixels, use_itm_head=False, **tokens).itm_score
    ours = encoder.image_vectors(hidden) @ encoder.encode_texts(tokens).T
    torch.testing.assert_close(ours, cosines)
    torch.testing.assert_close(encoder.image_vectors(hidden), encoder.encode_images(pixels))


def test_words_are_read_up_to_the_longest_text(encoder: BlipMatcher) -> None:
    tokens = encoder.processor.tokenize(["a " * 50, "a red"])
    assert tokens["input_ids"].shape == (2, 16)
    places = encoder.model.config.text_config.max_position_embeddings
    with pytest.raises(UserError, match=f"max_length is {places + 1}, but .* has {places} places"):
        BlipMatcher("tiny", encoder.parts, max_length=places + 1)


def test_tokenizers_that_do_not_know_blips_words_take_its_last_rows(tmp_path: Path) -> None:
    """As those on the hub: the embedding matrix has two rows more than they have words."""
    encoder = tiny_blip()
    known = (encoder.decode_id, encoder.encode_id)
    plain = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    assert known == (len(plain), len(plain) + 1)
    encoder.parts.processor.tokenizer = plain
    again = BlipMatcher("plain", encoder.parts, max_length=16)
    assert (again.decode_id, again.encode_id) == known
    encoder.model.config.text_config.vocab_size = len(plain)
    none = BlipMatcher("none", encoder.parts, max_length=16)
    assert none.encode_id == plain.cls_token_id


@pytest.mark.parametrize("images", [True, False])
def test_slow_encoders_are_copies_that_say_the_same(encoder: BlipMatcher, images: bool) -> None:
    slow = encoder.towers(images)
    assert not any(p.requires_grad for p in slow.parameters())
    assert ("vision_model" in slow) == images
    names = dict(encoder.model.named_parameters())
    assert set(dict(slow.named_parameters())) < set(names)
    assert not any("crossattention" in name for name, _ in slow.named_parameters())
    assert any("crossattention" in name for name in names)
    tokens = encoder.processor.tokenize(TEXTS)
    expected = encoder.encode_texts(tokens)
    torch.testing.assert_close(text_vectors(slow, tokens), expected)
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.zero_()
    torch.testing.assert_close(encoder.encode_texts(tokens), expected)


def test_the_temperature_stays_within_bounds() -> None:
    encoder = tiny_blip()
    for value, kept in ((3.0, 0.5), (0.0001, 0.001), (0.2, 0.2)):
        nn.init.constant_(encoder.log_temperature, math.log(value))
        encoder.clamp_temperature()
        assert encoder.temperature.item() == pytest.approx(kept)
