"""What all dual encoders share: a text side, lengths of texts and what is cut, sizes of images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.dual.open_clip_models import OpenClipEncoder
from cirlab.encoders.scratch import write_clip_folder
from cirlab.errors import UserError
from cirlab.records import Query
from tests.tiny import WORDS, write_tiny_blip, write_tiny_clip

#: Of one token each.
LONG = "a red circle on a blue square " * 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 12, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
    write_clip_folder(
        root / "hf",
        {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        WORDS,
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        text_transformer={
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 20,
        },
    )
    return {
        "clip": write_tiny_clip(root / "clip"),
        "blip": write_tiny_blip(root / "blip"),
        "hf": root / "hf",
    }


def encoder(folders: dict[str, Path], kind: str, **options: Any) -> DualEncoder:
    if kind == "hf":
        return OpenClipEncoder(f"local-dir:{folders[kind]}", load_weights=False, **options)
    prefix = "blip:" if kind == "blip" else "local-dir:"
    return load_dual_encoder(f"{prefix}{folders[kind]}", **options)


#: How names of the weights begin that texts pass.
TEXT_SIDES = {
    "clip": ("transformer", "token_embedding", "positional_emb", "ln_final", "text_projection"),
    "hf": ("text.transformer", "text.proj"),
    "blip": ("text_encoder", "text_proj"),
}


@pytest.mark.parametrize("kind", TEXT_SIDES)
def test_the_text_side_is_what_texts_pass_and_images_do_not(
    kind: str, folders: dict[str, Path]
) -> None:
    found = encoder(folders, kind).requires_grad_(False)
    text = {id(parameter) for parameter in found.text_parameters()}
    named: Any = dict(found.model.named_parameters())
    names = {name for name, parameter in named.items() if id(parameter) in text}
    expected = {name for name in named if name.startswith(TEXT_SIDES[kind])}
    unread = {name for name in expected if "crossattention" in name or ".pooler." in name}
    assert names == expected - unread
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if kind == "blip":
        assert unread


@pytest.mark.parametrize("kind", TEXT_SIDES)
def test_texts_that_lose_words_are_told(kind: str, folders: dict[str, Path]) -> None:
    """To the word: a text that just fits loses none."""
    tokenize = encoder(folders, kind, max_length=10).processor.tokenize
    tokenize = pickle.loads(pickle.dumps(tokenize))
    words = LONG.split()
    texts = ["", *(" ".join(words[:count]) for count in (1, 8, 9, 24))]
    assert tokenize.max_length == 10
    assert tokenize.cut(texts).tolist() == [False, False, False, True, True]
    ids = tokenize([texts[2], texts[3], texts[4]])["input_ids"]
    assert ids.shape == (3, 10)
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[0], ids[2])


@pytest.mark.parametrize(("kind", "own"), [("clip", 12), ("hf", 12), ("blip", 35)])
def test_longer_texts_are_read_where_they_are_asked_for(
    kind: str, own: int, folders: dict[str, Path]
) -> None:
    assert encoder(folders, kind).processor.tokenize.max_length == own
    longer = encoder(folders, kind, max_length=18).eval()
    words = LONG.split()
    texts = [" ".join(words[:16]), " ".join([*words[:15], "green"])]
    with torch.no_grad():
        one, other = longer.encode_texts(longer.processor.tokenize(texts))
    assert not torch.allclose(one, other, atol=1e-4)


def test_positions_of_longer_texts_are_interpolated_and_saved(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    short = encoder(folders, "clip")
    longer = encoder(folders, "clip", max_length=24).eval()
    stretched = longer.model.positional_embedding
    assert stretched.shape[0] == 24
    # Each place becomes two, a quarter of the way to either neighbour.
    before = short.model.positional_embedding
    torch.testing.assert_close(stretched[2], 0.25 * before[0] + 0.75 * before[1])
    longer.save(tmp_path)
    again = load_dual_encoder(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        tokens = again.processor.tokenize([LONG])
        assert tokens["input_ids"].shape == (1, 24)
        torch.testing.assert_close(again.encode_texts(tokens), longer.encode_texts(tokens))
    plain = open_clip.create_model(f"local-dir:{tmp_path}")
    assert plain.context_length == 24


def test_an_image_size_of_ones_own(folders: dict[str, Path]) -> None:
    for kind in ("clip", "blip"):
        larger = encoder(folders, kind, image_size=48).eval()
        with torch.no_grad():
            assert larger.encode_images(torch.zeros(1, 3, 48, 48)).shape == (1, 16)


@pytest.mark.parametrize(
    ("kind", "length", "places"),
    [("blip", 41, 40), ("hf", 21, 20), ("blip", 1, 40), ("hf", 1, 20)],
)
def test_texts_that_there_are_no_places_for_are_refused(
    kind: str, length: int, places: int, folders: dict[str, Path]
) -> None:
    says = rf"max_length is {length}, but the text encoder of .* has {places} places; choose from 2"
    with pytest.raises(UserError, match=says):
        encoder(folders, kind, max_length=length)


def test_queries_tell_which_are_cut_on_request(folders: dict[str, Path]) -> None:
    images = ImageReader(encoder(folders, "clip").processor)
    asked = [Query(id=text, text=text, targets=("x",)) for text in ("a red circle", LONG)]
    assert "cut" not in DualQueryReader(images)(asked)
    assert DualQueryReader(images, tell_cut=True)(asked)["cut_texts"].tolist() == [False, True]


def test_kept_vectors_are_taken_as_they_are(folders: dict[str, Path]) -> None:
    vectors = torch.randn(2, 16)
    assert torch.equal(encoder(folders, "clip").embed_images({"vectors": vectors}), vectors)
