"""What a query is made of does not depend on the batch it comes in."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import torch

from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.records import DecodedImage, Query
from lightning_modules import CLIP
from tests.tiny import write_tiny_clip


def query(text: str, colour: str = "red") -> Query:
    image = DecodedImage(id=colour, pixels=PIL.Image.new("RGB", (32, 32), colour))
    return Query(id=text or colour, text=text, targets=("x",), image=image)


def test_a_query_without_words_is_asked_by_its_image_in_any_batch(tmp_path: Path) -> None:
    name = f"local-dir:{write_tiny_clip(tmp_path / 'clip')}"
    module = CLIP(model=name)
    module.configure_model()
    module.eval()
    collate = module.query_collator()
    silent, spoken = query(""), query("a blue circle", "green")
    with torch.no_grad():
        alone = collate([silent])
        together = collate([spoken, silent])
        by_image = module.encode_images(module.image_collator()([silent.image]))
        for inputs, row in ((alone, 0), (together, 1)):
            torch.testing.assert_close(module.encode_queries(inputs)[row], by_image[0])
            parts = module.encode_baselines(inputs)
            assert set(parts) == {"image_only", "text_only"}
            assert not parts["text_only"][row].any()
        both = module.encode_queries(together)[0]
        parts = module.encode_baselines(together)
        expected = parts["image_only"][0] + parts["text_only"][0]
        torch.testing.assert_close(both, expected / expected.norm())


def test_queries_without_images_have_words_alone(tmp_path: Path) -> None:
    encoder = load_dual_encoder(f"local-dir:{write_tiny_clip(tmp_path / 'clip')}")
    asked = [Query(id=t, text=t, targets=("x",)) for t in ("a circle", "a square")]
    inputs = DualQueryReader(ImageReader(encoder.processor))(asked)
    parts = encoder.query_parts(inputs)
    assert set(parts) == {"text_only"}
    torch.testing.assert_close(parts["text_only"], encoder.encode_texts(inputs["text"]))
