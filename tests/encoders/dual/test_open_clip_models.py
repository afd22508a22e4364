"""Models of open_clip through the calls that load real weights, with timm's towers too."""

from __future__ import annotations

import pickle
from pathlib import Path

import PIL.Image
import pytest
import torch

from cirlab.encoders.adapters import TowerLora, adapters_disabled, add_lora_to_tower
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.dual.open_clip_models import OpenClipEncoder
from cirlab.encoders.scratch import write_clip_folder
from tests.tiny import WORDS, write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClipEncoder:
    folder = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    encoder = load_dual_encoder(f"local-dir:{folder}")
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def photo(colour: str) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (48, 40), colour)


def test_vectors_are_unit_and_distinct(clip: OpenClipEncoder) -> None:
    images = clip.encode_images(clip.processor.images([photo("red"), photo("blue")]))
    texts = clip.encode_texts(clip.processor.tokenize(["a red circle", "a blue square"]))
    for vectors in (images, texts):
        assert vectors.shape == (2, clip.dim) == (2, 16)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_the_text_is_read_at_its_end_token(clip: OpenClipEncoder) -> None:
    """A word after the end would change nothing; the last word before it does."""
    tokens = clip.processor.tokenize(["a red circle", "a red square"])["input_ids"]
    end = clip.tokenizer.tokenizer.eos_token_id
    assert (tokens == end).sum(dim=1).tolist() == [1, 1]
    assert end == tokens.max().item()
    vectors = clip.encode_texts({"input_ids": tokens})
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_the_processor_travels_to_loader_workers(clip: OpenClipEncoder) -> None:
    copy = pickle.loads(pickle.dumps(clip.processor))
    torch.testing.assert_close(copy.images([photo("red")]), clip.processor.images([photo("red")]))


def test_the_temperature_has_a_dimension(clip: OpenClipEncoder) -> None:
    assert clip.model.logit_scale.shape == (1,)


def test_tower_lora_can_be_switched_off_for_the_baselines(tmp_path: Path) -> None:
    encoder = load_dual_encoder(f"local-dir:{write_tiny_clip(tmp_path)}").eval()
    pixels = encoder.processor.images([photo("red")])
    before = encoder.encode_images(pixels)
    add_lora_to_tower(encoder.image_tower, TowerLora(rank=2, alpha=2, dropout=0.0))
    adapters = [p for n, p in encoder.image_tower.named_parameters() if "lora_B" in n]
    assert adapters
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_()
    assert not torch.allclose(encoder.encode_images(pixels), before, atol=1e-4)
    with adapters_disabled(encoder):
        torch.testing.assert_close(encoder.encode_images(pixels), before)
    assert all(p.requires_grad for p in adapters)
    assert not torch.allclose(encoder.encode_images(pixels), before, atol=1e-4)


def test_a_timm_tower_splits_into_backbone_and_projection(tmp_path: Path) -> None:
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "mobilenetv2_100_same",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    }
    write_clip_folder(tmp_path, architecture, WORDS, {"mean": [0.5] * 3, "std": [0.5] * 3})
    encoder = OpenClipEncoder(f"local-dir:{tmp_path}", load_weights=False).eval()
    pixels = encoder.processor.images([photo("red"), photo("blue")])
    features = encoder.backbone_features(pixels)
    assert features.shape == (2, 1280)
    torch.testing.assert_close(encoder.project_features(features), encoder.image_embeddings(pixels))
