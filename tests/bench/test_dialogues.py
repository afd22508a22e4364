"""The measurement compares two trainings that are one, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.dialogues import REPEATS, Epochs, epochs
from cirlab.records import Pair
from tests.tiny import write_tiny_clip
from tests.tiny_blip import pairs


def test_kept_vectors_and_images_are_trained_on_alike(tmp_path: Path) -> None:
    name = f"local-dir:{write_tiny_clip(tmp_path / 'clip')}"
    asked: list[int] = []

    def records(epoch: int) -> list[Pair]:
        asked.append(epoch)
        return pairs(4)

    row = epochs(name, records, tmp_path, "tiny")
    assert len(row.ours) == len(row.reference) == REPEATS and min(row.ours) > 0
    # The first is asked for what is kept; then each in turn.
    assert asked == [0] + [epoch for epoch in range(REPEATS) for _ in range(2)]


def test_other_losses_are_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"local-dir:{write_tiny_clip(tmp_path / 'clip')}"

    def keep(self: Epochs, *_: Any) -> None:
        next(p for p in self.module.parameters() if p.requires_grad).data.normal_()

    monkeypatch.setattr(Epochs, "keep", keep)
    with pytest.raises(ValueError, match="kept vectors gave losses"):
        epochs(name, lambda epoch: pairs(4), tmp_path, "tiny")
