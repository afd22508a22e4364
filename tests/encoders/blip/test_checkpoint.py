"""Files of BLIP's own code: what they hold becomes transformers' model, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import transformers

from cirlab.encoders.blip.checkpoint import read_blip_checkpoint, transformers_name
from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.weights import load_blip
from cirlab.errors import UserError
from tests.tiny_blip import own_checkpoint, tiny_blip, write_tokenizer


@pytest.fixture(scope="module")
def original() -> BlipMatcher:
    return tiny_blip(decoder=True)


def written(path: Path, encoder: BlipMatcher, holder: str | None = "model", **more: Any) -> Path:
    state = own_checkpoint(encoder) | more.pop("weights", {})
    for name in more.pop("without", ()):
        del state[name]
    torch.save(state if holder is None else {holder: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("holder", ["model", "state_dict", None])
def test_a_file_gives_the_same_model(
    original: BlipMatcher, tmp_path: Path, holder: str | None
) -> None:
    path = written(tmp_path / "model_base_retrieval_coco.pth", original, holder)
    parts = load_blip(str(path), tokenizer=write_tokenizer(tmp_path / "words"))
    assert isinstance(parts.model, transformers.BlipForImageTextRetrieval)
    for name, value in original.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    read = BlipMatcher("read", parts, max_length=16).eval()
    # BLIP's file begins at the temperature that it has learned.
    assert read.temperature.item() == pytest.approx(0.05)
    texts = ["a red circle", "is it on the left ? yes"]
    pixels = original.processor.images([PIL.Image.new("RGB", (32, 32), c) for c in ("red", "blue")])
    with torch.no_grad():
        for encoder in (original, read):
            tokens = encoder.processor.tokenize(texts)
            hidden = encoder.hidden_images(pixels)
            found = [encoder.image_vectors(hidden), encoder.encode_texts(tokens)]
            found.append(encoder.match(tokens, hidden))
            if encoder is original:
                expected = found
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (read.encode_id, read.decode_id) == (original.encode_id, original.decode_id)


def test_a_trainers_prefix_and_the_decoder_are_read(original: BlipMatcher, tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in own_checkpoint(original).items()}
    torch.save({"state_dict": state}, tmp_path / "chatir_weights.ckpt")
    words = write_tokenizer(tmp_path / "words")
    parts = load_blip(str(tmp_path / "chatir_weights.ckpt"), tokenizer=words, decoder=True)
    tokens = original.processor.tokenize(["a red circle"])
    hidden = torch.randn(1, 5, 64)
    with torch.no_grad():
        expected, count = original.caption_loss(tokens, hidden)
        found, _ = BlipMatcher("read", parts, max_length=16).eval().caption_loss(tokens, hidden)
    assert count == 4
    torch.testing.assert_close(found, expected)


def test_what_only_training_needs_is_left_out(original: BlipMatcher, tmp_path: Path) -> None:
    _, state = read_blip_checkpoint(written(tmp_path / "a.pth", original))
    assert set(state) == set(original.model.state_dict())
    for name in ("visual_encoder_m.norm.weight", "idx_queue", "queue_ptr", "temp"):
        assert transformers_name(name) is None


def test_all_names_that_do_not_map_are_told(original: BlipMatcher, tmp_path: Path) -> None:
    one = torch.zeros(1)
    strange = {"visual_encoder.blocks.0.ls1.gamma": one, "fusion.weight": one}
    strange |= {"text_encoder.pooler.dense.weight": one, "itm_head.bias": torch.zeros(3)}
    path = written(
        tmp_path / "a.pth",
        original,
        weights=strange,
        without=["text_proj.weight", "visual_encoder.blocks.1.attn.qkv.bias"],
    )
    with pytest.raises(UserError) as caught:
        read_blip_checkpoint(path)
    assert str(caught.value) == (
        f"{path} does not fit transformers' BLIP for image-text retrieval: fusion.weight, "
        "text_encoder.pooler.dense.weight, visual_encoder.blocks.0.ls1.gamma map to nothing; "
        "text_proj.weight, vision_model.encoder.layers.1.self_attn.qkv.bias are missing; "
        "itm_head.bias have another shape than the rest implies; name a checkpoint of BLIP's "
        "retrieval or pretraining model"
    )


def test_files_that_are_no_blip_are_refused(original: BlipMatcher, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no BLIP checkpoint .*a\.pth; download it"):
        load_blip(str(tmp_path / "a.pth"))
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"it holds no visual_encoder\.cls_token"):
        load_blip(str(tmp_path / "b.pth"))
    written(tmp_path / "c.pth", original, without=["vision_proj.weight"])
    with pytest.raises(UserError, match=r"retrieval model: it lacks vision_proj\.weight"):
        load_blip(str(tmp_path / "c.pth"))
    torch.save({"model": own_checkpoint(original), "config": Path("x")}, tmp_path / "d.pth")
    with pytest.raises(UserError, match="not loaded as it may run code"):
        load_blip(str(tmp_path / "d.pth"))


def test_a_tokenizer_of_other_words_is_refused(original: BlipMatcher, tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", original)
    other = tiny_blip()
    other.parts.processor.tokenizer.add_tokens(["new"])
    other.parts.processor.tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match=r"knows 26 tokens, but .*a\.pth has 25; set tokenizer"):
        load_blip(str(path), tokenizer=str(tmp_path / "words"))
