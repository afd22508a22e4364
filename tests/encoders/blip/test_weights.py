"""BLIP by name: folders that transformers loads too, other image sizes, decoders."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import PIL.Image
import pytest
import torch
import transformers
from torch.nn.functional import interpolate
from transformers import AutoProcessor

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.weights import load_blip, resized_positions
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from tests.tiny_blip import tiny_blip, write_tiny_blip


def test_one_folder_is_loaded_by_both_of_transformers_classes(tmp_path: Path) -> None:
    encoder = tiny_blip(decoder=True)
    encoder.log_temperature.data.fill_(math.log(0.03))
    encoder.save(tmp_path)
    retrieval = transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path)
    captioning, info = transformers.BlipForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(retrieval.state_dict()[name], value), name
    processor = AutoProcessor.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    tokens = encoder.processor.tokenize(["a red circle", "blue is on the left"])
    hidden = encoder.hidden_images(pixels)
    loss, words = encoder.caption_loss(tokens, hidden)
    ids = torch.cat([torch.full((2, 1), encoder.decode_id), tokens["input_ids"][:, 1:]], dim=1)
    labels = ids.masked_fill(tokens["attention_mask"] == 0, -100)
    theirs = captioning(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=tokens["attention_mask"],
        labels=labels,
    ).loss
    torch.testing.assert_close(loss / words, theirs)
    said = captioning.eval().generate(pixel_values=pixels, max_new_tokens=4)
    assert said[:, 0].tolist() == [encoder.decode_id] * 2
    assert processor.tokenizer.convert_ids_to_tokens(said[0, :1].tolist()) == ["[DEC]"]
    again = BlipMatcher("again", load_blip(str(tmp_path), decoder=True), max_length=16).eval()
    assert again.temperature.item() == pytest.approx(0.03)
    found, _ = again.caption_loss(tokens, hidden)
    torch.testing.assert_close(found, loss)


def test_a_folder_with_a_decoder_loads_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each class of transformers reports what another one has left in the folder."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    write_tiny_blip(tmp_path, decoder=True)
    transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path)
    assert "UNEXPECTED" in caplog.text
    caplog.clear()
    load_blip(str(tmp_path), decoder=True)
    assert caplog.text == ""


def test_the_decoder_shares_all_but_its_self_attention_and_its_head() -> None:
    encoder = tiny_blip(decoder=True)
    shared = {id(p) for p in encoder.model.text_encoder.parameters()}
    own = {n for n, p in encoder.decoder.named_parameters() if id(p) not in shared}
    assert {name.split(".")[0] for name in own} == {"bert", "cls"}
    assert all(".attention." in name for name in own if name.startswith("bert"))
    assert any(".crossattention." in n for n, _ in encoder.decoder.named_parameters())
    assert "cls.predictions.decoder.weight" not in own


def test_weights_without_a_decoder_are_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the weights .* hold no text decoder; set it to 0"):
        load_blip(str(write_tiny_blip(tmp_path)), decoder=True)


def test_positions_of_another_image_size_are_interpolated(tmp_path: Path) -> None:
    folder = str(write_tiny_blip(tmp_path))
    small, large = (
        BlipMatcher("b", load_blip(folder, image_size=size), 16).eval() for size in (None, 64)
    )
    before = small.model.vision_model.embeddings.position_embedding
    after = large.model.vision_model.embeddings.position_embedding
    assert (before.shape, after.shape) == ((1, 5, 64), (1, 17, 64))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    plane = before[0, 1:, 0].reshape(1, 1, 2, 2)
    expected = interpolate(plane, size=(4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(after[0, 1:, 0].reshape(4, 4), expected[0, 0])
    pixels = large.processor.images([PIL.Image.new("RGB", (40, 50), "red")])
    assert pixels.shape == (1, 3, 64, 64)
    # transformers does the same on the fly.
    on_the_fly = small.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(large.hidden_images(pixels), on_the_fly.last_hidden_state)
    large.save(tmp_path / "large")
    assert load_blip(str(tmp_path / "large")).model.config.vision_config.image_size == 64
    with pytest.raises(UserError, match="image_size is 40; set it to a multiple of"):
        load_blip(folder, image_size=40)


def test_positions_keep_their_place() -> None:
    positions = torch.arange(10.0).reshape(1, 10, 1)
    torch.testing.assert_close(resized_positions(positions, 3), positions)
    enlarged = resized_positions(positions, 6)[0, 1:, 0].reshape(6, 6)
    assert (enlarged.diff(dim=0) > 0).all() and (enlarged.diff(dim=1) > 0).all()


def test_dropout_is_set_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = str(write_tiny_blip(tmp_path))
    rates = {}
    for dropout in (None, 0.25):
        model = load_blip(folder, dropout=dropout).model
        layers = [m for m in model.text_encoder.modules() if isinstance(m, torch.nn.Dropout)]
        rates[dropout] = {layer.p for layer in layers}
    assert rates == {None: {0.0}, 0.25: {0.25}}


def test_a_dual_encoder_reads_the_same_folder(tmp_path: Path) -> None:
    encoder = load_dual_encoder(f"blip:{write_tiny_blip(tmp_path)}").eval()
    vectors = encoder.encode_texts(encoder.processor.tokenize(["a red circle"]))
    same = tiny_blip()
    expected = same.encode_texts(same.processor.tokenize(["a red circle"]))
    torch.testing.assert_close(vectors, expected)


def test_weights_that_are_nowhere_are_told() -> None:
    with pytest.raises(UserError, match=r"the zoo holds no model 'zoo:nothing'"):
        load_blip("zoo:nothing")
    with pytest.raises(UserError, match=r"'/no/such/folder' \(model\) are neither"):
        load_blip("/no/such/folder")
