"""Dual encoders through the calls that load real weights: open_clip, timm towers, BLIP."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from transformers import AutoTokenizer, BlipForImageTextRetrieval

from cirlab.encoders.adapters import TowerLora, adapters_disabled, add_lora_to_tower
from cirlab.encoders.dual.model import OpenClipEncoder, load_dual_encoder
from cirlab.encoders.names import ZOO
from cirlab.encoders.scratch import write_clip_folder
from cirlab.errors import UserError
from tests.tiny import WORDS, write_tiny_blip, write_tiny_clip


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


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no open_clip_config\.json"):
        load_dual_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_dual_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(UserError, match="holds no weights"):
        load_dual_encoder(f"local-dir:{tmp_path}")


def test_weights_that_are_nowhere_are_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'ViT-Q-99' \(clip\) are neither in a local folder"):
        load_dual_encoder("ViT-Q-99")


@pytest.mark.parametrize("broken", ["configuration", "weights"])
def test_weights_that_lie_there_but_do_not_load_are_told_so(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(ZOO / "tiny_clip", folder)
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    if broken == "configuration":
        config.write_text(config.read_text().replace('"embed_dim": 128', '"embed_dim": 64'))
        says = r"do not fit the configuration beside them: .*cause: .*size mismatch for"
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
        says = r"lie in a local folder but cannot be read; copy them again"
    with pytest.raises(UserError, match=says) as caught:
        load_dual_encoder(f"local-dir:{folder}")
    assert "hub" not in str(caught.value)
