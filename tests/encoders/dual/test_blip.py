"""BLIP as a dual encoder: the similarities that transformers' own contrastive path has."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import torch
from transformers import AutoTokenizer, BlipForImageTextRetrieval

from cirlab.encoders.dual.loading import load_dual_encoder
from tests.tiny import write_tiny_blip


def photo(colour: str) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (48, 40), colour)


def test_blip_loads_from_a_transformers_folder(tmp_path: Path) -> None:
    encoder = load_dual_encoder(f"blip:{write_tiny_blip(tmp_path)}").eval()
    pixels = encoder.processor.images([photo("red"), photo("blue")])
    texts = ["a red circle", "a blue"]
    images, captions = (
        encoder.encode_images(pixels),
        encoder.encode_texts(encoder.processor.tokenize(texts)),
    )
    assert images.shape == captions.shape == (2, 16)
    # transformers' own contrastive path is the oracle.
    reference = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = reference(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels,
            use_itm_head=False,
        )[0]
    torch.testing.assert_close(images @ captions.T, scores, atol=1e-5, rtol=1e-4)
