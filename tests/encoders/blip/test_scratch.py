"""A BLIP without weights: what it knows, and the image tower it may begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.scratch import set_image_tower
from cirlab.encoders.blip.weights import save_blip
from cirlab.errors import UserError
from cirlab.world.language import full_caption
from cirlab.world.scene import draw_scene, generator
from cirlab.world.vocabulary import dialogue_vocabulary
from lightning_modules import Blip, TokenLabelling
from lightning_modules.blip import BlipFromScratch
from tests.tiny_blip import TEXT, VISION, scratch, tiny_blip


def test_it_knows_the_words_of_captions_and_dialogues() -> None:
    tokenizer = scratch().build(decoder=False, start=False).processor.tokenizer
    known = tokenizer.get_vocab()
    assert set(dialogue_vocabulary()) <= set(known)
    scene = draw_scene(generator("val", 3))
    ids = tokenizer(full_caption(scene))["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    # The two further tokens are the last, as in the published models.
    assert (known["[DEC]"], known["[ENC]"]) == (len(known) - 2, len(known) - 1)


def test_positions_of_patches_differ_at_the_start() -> None:
    """In transformers' own default they are zero to ten digits, so that no patch has a place."""
    model = scratch().build(decoder=False, start=False).model
    positions = model.vision_model.embeddings.position_embedding
    assert positions.std().item() == pytest.approx(0.02, rel=0.2)


def test_texts_and_pictures_are_told_apart_at_the_start() -> None:
    encoder: BlipMatcher = tiny_blip()
    tokens = encoder.processor.tokenize(["a red circle", "is it blue ?"])
    vectors = encoder.encode_texts(tokens)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_words_may_begin_with_vectors(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\nblue\ncircle\n")
    vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float16)
    np.save(tmp_path / "vectors.16d.npy", vectors)
    options = {"vocabulary": str(tmp_path), "word_vectors": True}
    parts = scratch(**options).build(decoder=True, start=True)
    rows = parts.processor.tokenizer.convert_tokens_to_ids(["red", "blue", "circle"])
    found = parts.model.text_encoder.embeddings.word_embeddings.weight[rows, :16].detach()
    given = torch.from_numpy(vectors).float()
    ratio = found / given
    torch.testing.assert_close(ratio, ratio.mean().expand(3, 16), rtol=1e-3, atol=0)
    assert parts.decoder.get_input_embeddings().weight is parts.model.get_input_embeddings().weight
    with pytest.raises(UserError, match=r"word_vectors: true needs a folder of word vectors"):
        scratch(word_vectors=True)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `TokenLabelling` writes it."""
    folder = tmp_path_factory.mktemp("tower")
    vision = VISION | {"image_size": 64, "model_type": "blip_vision_model"}
    torch.manual_seed(5)
    module = TokenLabelling(vision, {"colour": 3}, export_to=str(folder))
    module.configure_model()
    module.tower.save_pretrained(folder)
    return folder


def test_it_may_begin_with_a_tower_that_sees(tower: Path, tmp_path: Path) -> None:
    parts = scratch(vision_weights=str(tower)).build(decoder=True, start=True)
    again = scratch(vision_weights=str(tower)).build(decoder=True, start=True)
    other = scratch().build(decoder=True, start=True)
    name = "encoder.layers.0.self_attn.qkv.weight"
    first, second, third = (
        part.model.vision_model.get_parameter(name) for part in (parts, again, other)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
    with pytest.raises(UserError, match=r"there is no image tower in .*/nothing; train one first"):
        set_image_tower(parts.model, tmp_path / "nothing")
    wider = BlipFromScratch(VISION | {"image_size": 96}, TEXT, vision_weights=str(tower))
    with pytest.raises(UserError, match="is of another architecture than from_scratch"):
        wider.build(decoder=False, start=True)
    # An evaluation has no need of it.
    wider.build(decoder=False, start=False)


def test_it_may_begin_with_another_blip(tmp_path: Path) -> None:
    other = scratch().build(decoder=False, start=True)
    save_blip(other, tmp_path / "other")
    begun = scratch(weights=str(tmp_path / "other")).build(decoder=True, start=True)
    assert begun.decoder is not None
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(begun.model.state_dict()[name], value)
    # What the decoder shares with the text encoder is that, still.
    shared = "encoder.layer.0.output.dense.weight"
    ours, theirs = begun.model.text_encoder, begun.decoder.bert
    assert ours.get_parameter(shared) is theirs.get_parameter(shared)
    with pytest.raises(UserError, match=r"there is no BLIP in .*/none; train one first"):
        scratch(weights=str(tmp_path / "none")).build(decoder=False, start=True)
    wider = BlipFromScratch(VISION | {"image_size": 96}, TEXT, weights=str(tmp_path / "other"))
    with pytest.raises(UserError, match="is of another architecture or vocabulary"):
        wider.build(decoder=False, start=True)
    # An evaluation has no need of it.
    scratch(weights=str(tmp_path / "none")).build(decoder=False, start=False)
    with pytest.raises(UserError, match="set one of the two to null"):
        scratch(weights="a", vision_weights="b")


def test_from_scratch_needs_a_place_to_go(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from_scratch needs export_to"):
        Blip(from_scratch=scratch())
