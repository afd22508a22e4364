"""A network of timm's in the place of BLIP's image tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.scratch import new_blip, set_image_tower
from cirlab.encoders.blip.weights import BlipParts, load_blip, save_blip
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from tests.tiny_blip import TEXT, WORDS

NETWORK = "test_efficientnet"
VISION: dict[str, Any] = {"architecture": NETWORK, "image_size": 64}


def parts(vision: dict[str, Any] = VISION, decoder: bool = False) -> BlipParts:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return new_blip(vision, TEXT, dim=16, words=WORDS, mean=half, std=half, decoder=decoder)


@pytest.fixture(scope="module")
def encoder() -> BlipMatcher:
    return BlipMatcher("timm", parts(), max_length=16).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_words_look_at_the_cells_of_the_last_map(
    encoder: BlipMatcher, pixels: torch.Tensor
) -> None:
    hidden = encoder.hidden_images(pixels)
    last = encoder.model.vision_model.network.forward_features(pixels)
    assert hidden.shape == (2, 1 + 4, last.shape[1])
    torch.testing.assert_close(hidden[:, 0], last.mean(dim=(2, 3)))
    torch.testing.assert_close(hidden[:, 2], last[:, :, 0, 1])
    torch.testing.assert_close(hidden[:, 3], last[:, :, 1, 0])
    # What a search compares comes from the mean, and what matching reads from the cells, too.
    other = hidden.clone()
    other[:, 1:] = hidden[:, 1:].roll(1, dims=2)
    torch.testing.assert_close(encoder.image_vectors(other), encoder.image_vectors(hidden))
    tokens = encoder.processor.tokenize(["a red circle", "is it blue ?"])
    assert not torch.allclose(encoder.match(tokens, other), encoder.match(tokens, hidden))


@torch.no_grad()
def test_fewer_cells_are_means_of_the_maps(pixels: torch.Tensor, tmp_path: Path) -> None:
    made = parts(VISION | {"image_size": 128, "grid": 2})
    model = made.model.eval()
    large = torch.cat([pixels.repeat(1, 1, 1, 2)] * 2, dim=2)
    hidden = model.vision_model(pixel_values=large).last_hidden_state
    last = model.vision_model.network.forward_features(large)
    assert last.shape[2:] == (4, 4) and hidden.shape[1] == 1 + 4
    torch.testing.assert_close(hidden[:, 0], last.mean(dim=(2, 3)))
    torch.testing.assert_close(hidden[:, 2], last[:, :, :2, 2:].mean(dim=(2, 3)))
    save_blip(made, tmp_path)
    again = load_blip(str(tmp_path)).model.eval().vision_model(pixel_values=large)
    torch.testing.assert_close(again.last_hidden_state, hidden)


def test_it_begins_with_the_networks_own_weights(tmp_path: Path, pixels: torch.Tensor) -> None:
    torch.manual_seed(5)
    trained = timm.create_model(NETWORK, num_classes=10).train()
    path = tmp_path / "model.safetensors"
    trained(torch.randn(4, 3, 64, 64))
    trained.eval()
    # Published files need not tell how many batches the norms have seen.
    state = {n: v.clone() for n, v in trained.state_dict().items() if "num_batches" not in n}
    save_file(state, path)
    model = parts().model.eval()
    set_image_tower(model, path)
    with torch.no_grad():
        found = model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(found, trained.forward_features(pixels).mean(dim=(2, 3)))
    with pytest.raises(UserError, match=r"vision_weights: there is no file .*/none; point it to"):
        set_image_tower(model, tmp_path / "none")
    other = parts({"architecture": "test_resnet", "image_size": 64}).model
    with pytest.raises(UserError, match=r"weights of test_resnet are not in .*model\.safetensors"):
        set_image_tower(other, path)


def test_a_folder_keeps_it(encoder: BlipMatcher, pixels: torch.Tensor, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    again = load_dual_encoder(f"blip:{tmp_path}").eval()
    with torch.no_grad():
        torch.testing.assert_close(again.encode_images(pixels), encoder.encode_images(pixels))
    smaller = load_blip(str(tmp_path), image_size=32)
    with torch.no_grad():
        assert smaller.model.vision_model(pixel_values=pixels).last_hidden_state.shape[1] == 5
    assert smaller.processor.image_processor.size["height"] == 32
    # transformers would make a vision transformer with random weights of it.
    with pytest.raises(ZeroDivisionError):
        transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path)


def test_a_decoder_lies_beside_it(tmp_path: Path, pixels: torch.Tensor) -> None:
    made = parts(decoder=True)
    save_blip(made, tmp_path)
    one, other = (
        BlipMatcher("m", which, max_length=16).eval()
        for which in (made, load_blip(str(tmp_path), decoder=True))
    )
    with torch.no_grad():
        hidden, tokens = one.hidden_images(pixels), one.processor.tokenize(["a red", "blue ?"])
        torch.testing.assert_close(
            other.caption_loss(tokens, hidden), one.caption_loss(tokens, hidden)
        )


@pytest.mark.parametrize(
    ("vision", "says"),
    [
        ({"architecture": "mobilenet_7", "image_size": 64}, "'mobilenet_7', which timm does not"),
        ({"architecture": "test_vit", "image_size": 160}, "'test_vit' gives .* choose a convolut"),
        ({"architecture": NETWORK}, "vision lacks 'image_size'; beside architecture"),
        (VISION | {"hidden_size": 64}, "vision has 'hidden_size'; beside architecture"),
        (VISION | {"grid": 3}, "grid is 3, but the last map of test_efficientnet has 2 cells"),
    ],
)
def test_what_is_no_such_network_is_refused(vision: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parts(vision)
