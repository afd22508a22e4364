"""A painter: what it begins with, its objective, its slow average, what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.errors import UserError
from cirlab.imagination.pipeline import Pipeline, Settings
from cirlab.records import SampleKey
from lightning_modules import Painter, PainterFromScratch, PictureAutoencoder
from tests.lightning_modules.test_picture_autoencoder import SMALL, fit, pictures

UNET: dict[str, Any] = {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 1,
    "norm_num_groups": 2,
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    fit(PictureAutoencoder(SMALL, str(folder)), pictures(4))
    return folder


def painter(autoencoder: Path, folder: Path, **options: Any) -> Painter:
    return Painter(PainterFromScratch(str(autoencoder), UNET), str(folder), **options)


def test_what_it_writes_draws_with_the_slow_average(autoencoder: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    module = painter(autoencoder, tmp_path)
    fit(module, pictures(12))
    drawing = Pipeline(str(tmp_path), "float32", torch.device("cpu"))
    (picture,) = drawing.draw(["a red star"], [0], Settings(steps=2, guidance=2.0))
    assert picture.size == (16, 16)
    written = DiffusionPipeline.from_pretrained(tmp_path)
    for name, part in (("words", written.text_encoder), ("unet", written.unet)):
        slow, fast = module.slow[name].state_dict(), module.learned[name].state_dict()
        assert any(not torch.equal(slow[key], fast[key]) for key in slow)
        for key, value in part.state_dict().items():
            torch.testing.assert_close(value.float(), slow[key].half().float(), rtol=0, atol=0)


def test_the_loss_is_that_of_rectified_flow(autoencoder: Path, tmp_path: Path) -> None:
    module = painter(autoencoder, tmp_path, noises=3, without_words=0.0)
    module.configure_model()
    assert module.learned is not None
    records = [pictures(4).train_dataset()[SampleKey(0, number)] for number in range(2)]
    batch = module.train_collator()(records)
    torch.manual_seed(0)
    loss = module.losses(batch)["velocity"].detach()
    with torch.no_grad():
        scale = module.autoencoder.config.scaling_factor
        clean = module.autoencoder.encode(batch["pixels"]).latent_dist.mean * scale
        torch.manual_seed(0)
        noise = torch.randn(6, *clean.shape[1:])
        level = torch.randn(6).sigmoid()
        errors = []
        for number in range(6):
            x, e, s = clean[number % 2], noise[number], level[number]
            words = module.learned["words"](input_ids=batch["tokens"][[number % 2]])[0]
            mixed = ((1 - s) * x + s * e)[None]
            velocity = module.learned["unet"](mixed, 1000 * s[None], words).sample[0]
            errors.append((velocity - (e - x)).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_captions_are_left_out_as_often_as_asked(autoencoder: Path, tmp_path: Path) -> None:
    records = [pictures(64).train_dataset()[SampleKey(0, number)] for number in range(64)]
    for share, least, most in ((0.0, 0, 0), (1.0, 64, 64), (0.5, 20, 44)):
        module = painter(autoencoder, tmp_path, without_words=share)
        module.configure_model()
        torch.manual_seed(0)
        tokens = module.train_collator()(records)["tokens"]
        # Beginning, end, and padding.
        empty = (tokens[:, 1] == module._pipeline.tokenizer.eos_token_id).sum()
        assert least <= int(empty) <= most


def test_only_unet_and_words_learn_and_checkpoints_hold_the_average(
    autoencoder: Path, tmp_path: Path
) -> None:
    module = painter(autoencoder, tmp_path)
    module.configure_model()
    tops = {name.split(".")[0] for name in module.learned_names()}
    assert tops == {"learned", "slow"}
    assert not any(p.requires_grad for p in module.autoencoder.parameters())
    assert module.frozen_base() == {"autoencoder": str(autoencoder)}


def test_bad_input_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noises is 0"):
        painter(autoencoder, tmp_path, noises=0)
    with pytest.raises(UserError, match=r"without_words is 1\.5"):
        painter(autoencoder, tmp_path, without_words=1.5)
    with pytest.raises(UserError, match="there is no autoencoder in"):
        painter(tmp_path / "none", tmp_path).configure_model()
