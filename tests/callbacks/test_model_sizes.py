"""The table stands once before a training; an evaluation has a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch.optim import AdamW
from torch.utils.data import DataLoader

from callbacks import ModelSizes
from lightning_modules import CLIP
from tests.chunked import Records, records
from tests.tiny import write_tiny_clip


class Validated(Records):
    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, CLIP)
        read: Any = self.trainer.lightning_module.image_collator()
        images: Any = [pair.image for pair in records("clip")]
        return DataLoader(
            images, 20, collate_fn=lambda i: {"kind": "gallery", "source": "", "inputs": read(i)}
        )


@pytest.fixture
def trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ModelSizes()],
    )


def test_once_before_training_and_a_line_for_evaluation(
    trainer: L.Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = CLIP(f"local-dir:{write_tiny_clip(tmp_path / 'clip')}", optimizer=AdamW)
    trainer.fit(module, Validated("clip"))
    table = capsys.readouterr().out
    count = f"{sum(p.numel() for p in module.parameters()):,}"
    (row,) = [line.split() for line in table.splitlines() if "encoder" in line]
    # Weights and gradients are of one size; Adam keeps two of them.
    assert row == ["encoder", "float32", count, count, "0.2", "0.2", "0.5", "1.0"]
    assert table.count("Activations come on top") == 1 and "CLIP:" not in table

    trainer.validate(module, Validated("clip"))
    assert f"CLIP: {count} parameters, 0.2 MiB (float32)" in capsys.readouterr().out
