"""Token labelling: which cell a patch belongs to, what is learned, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import PIL.Image
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForImageTextToText

from cirlab.errors import UserError
from cirlab.records import DecodedImage, LabelledImage, SampleKey
from cirlab.world.labels import LABEL_COUNTS
from datamodules import WorldLabelData
from lightning_modules import TokenLabelling
from lightning_modules.token_labelling import cells_of_patches
from lightning_modules.vision_language_model import MLLMFromScratch, set_image_tower
from tests.tiny_mllm import TEXT, VISION

TOWER = VISION | {"image_size": 64}


def module(folder: Path, **options: Any) -> TokenLabelling:
    settings: dict[str, Any] = {"vision": TOWER, "labels": LABEL_COUNTS} | options
    made = TokenLabelling(export_to=str(folder), **settings)
    made.configure_model()
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenLabelling, Path]:
    """Two steps on twelve pictures."""
    folder = tmp_path_factory.mktemp("labels") / "tower"
    L.seed_everything(0)
    made = module(folder)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(made, WorldLabelData(samples=12, batch_size=6))
    return made, folder


def test_a_patch_belongs_to_the_cell_of_its_middle() -> None:
    assert cells_of_patches(3, 3).tolist() == list(range(9))
    # Middles at 1/8, 3/8, 5/8, 7/8 of the side.
    assert cells_of_patches(4, 3).view(4, 4)[0].tolist() == [0, 1, 1, 2]
    assert cells_of_patches(4, 3).view(4, 4)[:, 0].tolist() == [0, 3, 3, 6]


def test_the_loss_is_taken_over_labelled_cells_alone(tmp_path: Path) -> None:
    made = module(tmp_path, labels={"colour": 3}, grid=1)
    picture = DecodedImage("a", PIL.Image.new("RGB", (64, 64), "red"))
    with_label, without = (LabelledImage(picture, {"colour": (label,)}) for label in (2, -1))
    collate = made.train_collator()
    with torch.no_grad():
        loss = made.losses(collate([with_label, without]))["colour"]
        batch = collate([with_label])
        patches = made.tower(pixel_values=batch["pixels"]).last_hidden_state[0, 1:]
        expected = cross_entropy(made.heads["colour"](patches), torch.full((len(patches),), 2))
    torch.testing.assert_close(loss, expected)


def test_pixels_are_what_llavas_processor_makes_of_a_picture(tmp_path: Path) -> None:
    made = module(tmp_path)
    records = WorldLabelData(samples=2, batch_size=2).train_dataset()
    record = records[SampleKey(0, 1)]
    pixels = made.train_collator()([record])["pixels"]
    scratch = MLLMFromScratch(
        TOWER, TEXT | {"model_type": "mistral", "max_position_embeddings": 512}
    )
    _, processor = scratch.build(NoConversations())
    theirs = processor.image_processor(record.image.load(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, theirs)


class NoConversations:
    """A tokenizer then has no merges to learn."""

    def __len__(self) -> int:
        return 0


def test_a_language_model_starts_with_what_it_writes(
    trained: tuple[TokenLabelling, Path], tmp_path: Path
) -> None:
    made, folder = trained
    written = AutoModel.from_pretrained(folder)
    scratch = MLLMFromScratch(
        TOWER,
        TEXT | {"model_type": "mistral", "max_position_embeddings": 512},
        vision_weights=str(folder),
    )
    model, _ = scratch.build(NoConversations())
    assert isinstance(model, type(AutoModelForImageTextToText.from_config(model.config)))
    for name, weight in made.tower.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], weight.cpu(), rtol=0, atol=0)
        started = model.model.vision_tower.state_dict()[name]
        torch.testing.assert_close(started, weight.cpu(), rtol=0, atol=0)


def test_another_tower_is_refused(trained: tuple[TokenLabelling, Path], tmp_path: Path) -> None:
    _, folder = trained
    text = TEXT | {"model_type": "mistral", "max_position_embeddings": 512}
    other = MLLMFromScratch(TOWER | {"intermediate_size": 40}, text)
    model, _ = other.build(NoConversations())
    with pytest.raises(UserError, match="another architecture"):
        set_image_tower(model, folder)
    with pytest.raises(UserError, match="no image tower"):
        set_image_tower(model, tmp_path / "none")


def test_missing_labels_are_named(tmp_path: Path) -> None:
    collate = module(tmp_path, labels={"colour": 3}).train_collator()
    picture = DecodedImage("a", PIL.Image.new("RGB", (64, 64)))
    with pytest.raises(UserError, match="'a' has 2 labels of 'colour'"):
        collate([LabelledImage(picture, {"colour": (1, 2)})])
